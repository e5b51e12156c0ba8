//! The picture of ARCHITECTURE.md as a table: which room may know which. An edge that is not here fails.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Room, its directory, the rooms of ours it may depend on.
const ROOMS: &[(&str, &str, &[&str])] = &[
    (
        "fuzz-targets",
        "fuzz/targets",
        &["openai", "transfer", "edge", "kv", "proto", "ranktable", "text", "engine", "worker", "types"],
    ),
    (
        "simulation",
        "simulation",
        &["scheduler", "prefill-worker", "decode-worker", "worker", "net", "transfer", "proto", "kv", "text", "types"],
    ),
    ("types", "crates/types", &[]),
    ("net", "crates/net", &[]),
    ("ranktable", "crates/ranktable", &[]),
    ("kernels", "crates/kernels", &[]),
    ("kv", "crates/kv", &["types"]),
    ("text", "crates/text", &["types"]),
    ("openai", "crates/openai", &["types"]),
    ("telemetry", "crates/telemetry", &["types"]),
    ("proto", "proto", &["types"]),
    ("edge", "crates/edge", &["net", "types"]),
    ("engine", "crates/engine", &["kernels", "kv", "types"]),
    ("transfer", "crates/transfer", &["kv", "net", "proto", "edge", "telemetry", "types"]),
    // text: grammars need the vocabulary beside the sampler.
    (
        "worker",
        "crates/worker",
        &["engine", "transfer", "kv", "net", "proto", "edge", "ranktable", "telemetry", "text", "types"],
    ),
    ("scheduler", "scheduler", &["types", "kv", "net", "text", "openai", "proto", "edge", "ranktable", "telemetry"]),
    ("ranktable-tool", "ranktable-tool", &["ranktable"]),
    ("prefill-worker", "prefill-worker", &["worker", "engine", "transfer", "kv", "proto", "telemetry", "types"]),
    ("decode-worker", "decode-worker", &["worker", "engine", "transfer", "kv", "proto", "telemetry", "types"]),
    (
        "pdserve",
        "pdserve",
        &[
            "scheduler",
            "prefill-worker",
            "decode-worker",
            // up and bench transfer: which cores an instance keeps to.
            "worker",
            "ranktable-tool",
            "ranktable",
            "engine",
            "transfer",
            "kv",
            "kernels",
            "edge",
            // bench gateway: workers without a model.
            "proto",
            "types",
        ],
    ),
];

/// Rooms whose code must stay synchronous and replayable.
const NO_ASYNC: &[&str] = &["types", "ranktable", "kernels", "kv", "engine"];

/// The one room that may hold unsafe code.
const UNSAFE_ROOM: &str = "kernels";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Names in `[dependencies]` of a room's manifest (not the dev- and build-dependencies).
fn dependencies(directory: &str) -> Vec<String> {
    let path = root().join(directory).join("Cargo.toml");
    let manifest = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let lines = manifest.lines().skip_while(|line| line.trim() != "[dependencies]").skip(1);
    let entries = lines.take_while(|line| !line.starts_with('['));
    entries.filter_map(|line| line.split(['.', '=', ' ']).next()).filter(|n| !n.is_empty()).map(str::to_owned).collect()
}

fn rust_files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => rust_files(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|e| e == "rs"))
        .collect()
}

#[test]
fn rooms_know_only_the_rooms_below() {
    let known: BTreeMap<_, _> = ROOMS.iter().map(|&(name, ..)| (name, ())).collect();
    for (name, directory, allowed) in ROOMS {
        for dependency in dependencies(directory) {
            let ours = known.contains_key(dependency.as_str());
            assert!(!ours || allowed.contains(&dependency.as_str()), "{name} may not depend on {dependency}");
        }
    }
}

#[test]
fn every_workspace_member_is_in_the_table() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = manifest.split("members = [").nth(1).and_then(|rest| rest.split(']').next()).unwrap();
    let members: Vec<_> = members.split(',').map(|m| m.trim().trim_matches('"')).filter(|m| !m.is_empty()).collect();
    for member in members.into_iter().filter(|&member| member != "tests") {
        assert!(ROOMS.iter().any(|&(_, directory, _)| directory == member), "{member} is not in the layer table");
    }
}

#[test]
fn the_core_is_synchronous() {
    for (name, directory, _) in ROOMS.iter().filter(|room| NO_ASYNC.contains(&room.0)) {
        let found = dependencies(directory);
        let banned = found.iter().find(|d| d.starts_with("tokio") || d.starts_with("tonic") || d.as_str() == "futures");
        assert!(banned.is_none(), "{name} depends on {banned:?}; the core must stay synchronous");
    }
}

#[test]
fn the_scheduler_reaches_no_arithmetic() {
    let mut seen = vec!["scheduler"];
    let mut next = 0;
    while let Some(&room) = seen.get(next) {
        next += 1;
        let directory = ROOMS.iter().find(|r| r.0 == room).unwrap().1;
        let found = dependencies(directory);
        let ours = ROOMS.iter().filter(|r| found.iter().any(|d| d == r.0)).map(|r| r.0);
        let new: Vec<_> = ours.filter(|r| !seen.contains(r)).collect();
        seen.extend(new);
    }
    for banned in ["engine", "kernels", "transfer", "worker"] {
        assert!(!seen.contains(&banned), "scheduler reaches {banned}");
    }
}

#[test]
fn unsafe_code_lives_in_one_room() {
    for (name, directory, _) in ROOMS.iter().filter(|room| room.0 != UNSAFE_ROOM) {
        for file in rust_files(&root().join(directory).join("src")) {
            let text = std::fs::read_to_string(&file).unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let opens =
                |line: &str| line.contains("unsafe {") || line.contains("unsafe fn") || line.contains("unsafe impl");
            let hit = code.enumerate().find(|(_, line)| opens(line));
            assert!(hit.is_none(), "{name}: unsafe in {} ({hit:?})", file.display());
        }
    }
}

#[test]
fn candle_types_stay_out_of_public_signatures() {
    for file in rust_files(&root().join("crates/engine/src")) {
        let text = std::fs::read_to_string(&file).unwrap();
        let public = text.lines().filter(|line| line.trim_start().starts_with("pub "));
        let hit = public.into_iter().find(|line| line.contains("candle"));
        assert!(hit.is_none(), "{}: {hit:?}", file.display());
    }
}
