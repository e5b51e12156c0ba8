//! `docs/bounds.md` is written from the tables of bounds, and stays so.

use types::Bound;

const HEAD: &str = "# Bounds

A number for everything that comes from outside. Written from the tables in the code; the test of `tests/it/bounds.rs` holds it to them, and says how to write it anew.
";

fn section(title: &str, rows: &[Bound]) -> String {
    let lines =
        rows.iter().map(|Bound { name, value, above, doc }| format!("| {name} | {value} | {doc} | {above} |\n"));
    format!(
        "\n## {title}\n\n| bound | default | what it bounds | above it |\n| --- | --- | --- | --- |\n{}",
        lines.collect::<String>()
    )
}

fn page() -> String {
    let public = scheduler::Bounds::default();
    let keys = scheduler::Access::default().requests_per_key;
    let fields =
        openai::Bounds::TABLE.iter().map(|bound| format!("| {} | {} | {} |\n", bound.name, bound.default, bound.doc));
    [
        HEAD.to_owned(),
        section("Public port: requests", &public.table()),
        format!("\nOf one API key at most {keys} requests are in flight (`--api-key-concurrency`); one more is answered 429 with Retry-After.\n"),
        section("Public port: connections", &public.port.table()),
        section("Control port of a worker: connections", &worker::port_bounds().table()),
        format!("\nA control message is at most {} bytes; a longer one ends the stream.\n", proto::CONTROL_MESSAGE_BYTES_MAX),
        section("KV port of a decode instance", &transfer::KvBounds::default().table()),
        "\n## Request fields\n\nAbove any of these a request is answered 400, naming the field and the bound; 413 for its body.\n\n\
         | bound | default | what it bounds |\n| --- | --- | --- |\n"
            .to_owned(),
        fields.collect(),
    ]
    .concat()
}

#[test]
fn the_page_of_bounds_is_that_of_the_tables() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/bounds.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == page(), "docs/bounds.md is not current; UPDATE_DOCS=1 cargo test -p tests bounds writes it anew");
}
