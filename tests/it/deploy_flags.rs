#![expect(clippy::unwrap_used, reason = "a failing unwrap fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command as Process;

use clap::{Command, CommandFactory};
use ranktable::{GlobalRankTable, Identity, LocalRankTable};

/// Flags of other programs, in our files.
const FOREIGN_FLAGS: [(&str, &[&str]); 10] = [
    ("curl", &["--max-time"]),
    ("docker", &["--build", "--device", "--env-file", "--gpus", "--net"]),
    ("cargo", &["--example", "--locked", "--release", "--workspace"]),
    ("other routers", &["--pd-disaggregation", "--prometheus-port", "--vllm-pd-disaggregation"]),
    ("simulation", &["--seeds"]),
    ("kubectl", &["--from-literal"]),
    ("apt-get", &["--no-install-recommends"]),
    ("useradd", &["--create-home", "--uid"]),
    ("Dockerfile COPY", &["--from"]),
    ("a placeholder", &["--flag"]),
];

/// Names in capitals that no binary reads.
const FOREIGN_VARIABLES: [(&str, &str); 4] = [
    ("MODEL_DIR", "compose.yaml takes the model's directory from it"),
    ("NODE_IP", "a placeholder"),
    ("RUST_LOG", "the simulation's log filter"),
    ("TOOL_CALLS", "a token of Mistral's models"),
];

/// Variables that are no flags: `telemetry` reads the first two, `kernels` the third; a secret on a command line could be read by anyone.
const LIBRARY_VARIABLES: [&str; 4] = ["PDSERVE_LOG", "PDSERVE_LOG_FORMAT", "PDSERVE_ISA", scheduler::SECRET_VARIABLE];

/// What a command line may begin with. `start_servers.sh` passes its flags to any of the three roles.
fn programs(name: &str) -> Vec<Command> {
    match name {
        "pdserve" => vec![pdserve::Cli::command()],
        "ranktable-tool" => vec![ranktable_tool::Args::command()],
        "scheduler" => vec![scheduler::Args::command()],
        "prefill" | "prefill-worker" => vec![prefill_worker::Args::command()],
        "decode" | "decode-worker" => vec![decode_worker::Args::command()],
        "start_servers.sh" => ["scheduler", "prefill", "decode"].into_iter().flat_map(programs).collect(),
        _ => Vec::new(),
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the repository").to_owned()
}

/// Every text file of a directory, with its path inside the repository.
fn texts(directory: &str) -> Vec<(String, String)> {
    let mut open = vec![root().join(directory)];
    let mut files = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if let Ok(text) = fs::read_to_string(&path) {
            files.push((path.strip_prefix(root()).unwrap().display().to_string(), text));
        }
    }
    files.sort();
    files
}

fn every_command() -> Vec<Command> {
    let mut open = vec![pdserve::Cli::command()];
    let mut all = Vec::new();
    while let Some(mut command) = open.pop() {
        command.build();
        open.extend(command.get_subcommands().cloned());
        all.push(command);
    }
    all
}

/// Words of `text` that `wanted` accepts, cut where a name of a flag or variable ends.
fn words<'a>(text: &'a str, wanted: impl Fn(&str) -> bool + 'a) -> impl Iterator<Item = &'a str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).filter(move |word| wanted(word))
}

fn is_flag(word: &str) -> bool {
    word.strip_prefix("--").is_some_and(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
}

fn is_variable(word: &str) -> bool {
    let capital = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    word.contains('_') && word.starts_with(|c: char| c.is_ascii_uppercase()) && word.chars().all(capital)
}

fn long_names(arg: &clap::Arg) -> Vec<&str> {
    [arg.get_long().into_iter().collect(), arg.get_all_aliases().unwrap_or_default()].concat()
}

#[test]
fn only_known_flags_and_variables_are_named() {
    let commands = every_command();
    let arguments = || commands.iter().flat_map(Command::get_arguments);
    let mut flags: BTreeSet<String> = arguments().flat_map(long_names).map(|name| format!("--{name}")).collect();
    flags.extend(FOREIGN_FLAGS.iter().flat_map(|(_, flags)| flags.iter().map(|flag| (*flag).to_owned())));
    let mut variables: BTreeSet<&str> = arguments().filter_map(|arg| arg.get_env()?.to_str()).collect();
    variables.extend(LIBRARY_VARIABLES.iter().chain(FOREIGN_VARIABLES.iter().map(|(name, _)| name)));
    let mut unknown = Vec::new();
    for (file, text) in texts("deploy").into_iter().chain(texts("docs")) {
        let of_file = words(&text, is_flag).filter(|flag| !flags.contains(*flag));
        let of_file = of_file.chain(words(&text, is_variable).filter(|name| !variables.contains(name)));
        unknown.extend(of_file.map(|word| format!("{file}: {word}")));
    }
    assert!(unknown.is_empty(), "no binary knows: {unknown:#?}");
}

#[test]
fn the_original_guide_s_flags_are_taken_by_every_role() {
    let line = "--model=m --tensor-parallel-size 2 --max-model-len=4096 --max-num-seqs 256 --max-num-batched-tokens=4096 \
                --host 0.0.0.0 --port=8088 --served-model-name name --quantization=awq \
                --global-rank-table g --rank-table l";
    assert_eq!(check_line(&format!("start_servers.sh {line}")), 3);
}

/// The words of a command line; what stands in quotes is in one word.
fn split(line: &str) -> Vec<String> {
    let (mut words, mut quote, mut begun) = (Vec::new(), None, false);
    for c in line.chars() {
        if quote == Some(c) {
            quote = None;
        } else if quote.is_none() && matches!(c, '\'' | '"') {
            quote = Some(c);
        } else if quote.is_none() && c.is_whitespace() {
            begun = false;
        } else {
            if !begun {
                words.push(String::new());
            }
            begun = true;
            words.last_mut().expect("a word has begun").push(c);
        }
    }
    words
}

/// Parses a command line with the programs that it names; how many there are.
fn check_line(line: &str) -> usize {
    let mut words = split(line);
    if words.first().is_some_and(|word| word == "sh") {
        words.remove(0);
    }
    let program = words.first().and_then(|word| word.rsplit('/').next()).unwrap_or_default().to_owned();
    let programs = programs(&program);
    for command in &programs {
        // The tables come from the environment; a parse without them would only say that they are missing.
        let command = command.clone().mut_args(|arg| if arg.get_env().is_some() { arg.required(false) } else { arg });
        if let Err(error) = command.try_get_matches_from(&words) {
            panic!("{line}\n{error}");
        }
    }
    programs.len()
}

#[test]
fn every_command_of_the_docs_parses() {
    let mut checked = 0;
    for (file, text) in texts("docs") {
        let blocks = text.split("```sh\n").skip(1).filter_map(|block| block.split("```").next());
        for line in blocks.flat_map(|block| block.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>()) {
            checked += check_line(&line);
        }
        assert!(file != "docs/ascend-guide.md" || checked > 10, "the guide's commands were not found");
    }
}

#[test]
fn every_command_of_compose_and_kubernetes_parses() {
    let list = |text: &str| text.replace("\", \"", " ").replace("[\"", "").replace("\"]", "");
    let compose = fs::read_to_string(root().join("deploy/compose.yaml")).unwrap();
    let mut checked = 0;
    let mut program = String::new();
    for line in compose.lines().map(str::trim) {
        if let Some(file) = line.strip_prefix("env_file: env/") {
            program = file.trim_end_matches(".env").to_owned();
        } else if let Some(entry) = line.strip_prefix("entrypoint: ") {
            program = list(entry);
        } else if let Some(command) = line.strip_prefix("command: ") {
            checked += check_line(&format!("{program} {}", list(command)));
        }
    }
    for role in ["scheduler", "prefill", "decode"] {
        let text = fs::read_to_string(root().join(format!("deploy/k8s/{role}.yaml"))).unwrap();
        let flags: Vec<&str> = text.lines().filter_map(|line| line.trim().strip_prefix("- --")).collect();
        assert!(!flags.is_empty(), "{role}");
        checked += check_line(&format!("{role} --{}", flags.join(" --")));
    }
    assert_eq!(checked, 7);
}

#[test]
fn the_tables_of_the_kubernetes_example_belong_together() {
    let tables = root().join("deploy/k8s/tables");
    let global = GlobalRankTable::load(&tables.join("global_ranktable_10.0.0.18.json")).unwrap();
    for (role, ids) in [("scheduler", "host"), ("prefill", "45"), ("decode", "67")] {
        let name = format!("local_ranktable_10.0.0.18_{ids}.json");
        let local = LocalRankTable::load(&tables.join(&name)).unwrap();
        assert_eq!(Identity::resolve(&global, &local).unwrap().role.as_str(), role);
        let manifest = fs::read_to_string(root().join(format!("deploy/k8s/{role}.yaml"))).unwrap();
        assert!(manifest.contains(&format!("value: /tables/{name}")), "{role}.yaml does not use {name}");
    }
}

/// Runs `start_servers.sh --port=1 'a b'` beside a `pdserve` that says the role is `role` and prints what it is started with.
fn start(role: &str, tables: bool) -> (bool, String) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name| directory.path().join(name);
    fs::copy(root().join("deploy/start_servers.sh"), path("start_servers.sh")).unwrap();
    let stub = format!("#!/bin/sh\n[ \"$1 $2\" = 'ranktable role' ] && echo {role} && exit\nprintf '<%s>' \"$@\"\n");
    fs::write(path("stub"), stub).unwrap();
    // Copied by another process: a file that this one has open for writing, even in a child forked by another test this instant,
    // could not be run ("text file busy").
    assert!(Process::new("cp").arg(path("stub")).arg(path("pdserve")).status().unwrap().success());
    fs::set_permissions(path("pdserve"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut script = Process::new("sh");
    script.arg(path("start_servers.sh")).args(["--port=1", "a b"]);
    for name in ["GLOBAL_RANK_TABLE_FILE_PATH", "RANK_TABLE_FILE_PATH"] {
        if tables {
            script.env(name, "table.json")
        } else {
            script.env_remove(name)
        };
    }
    let output = script.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn the_script_starts_the_role_of_the_table() {
    let started = |command: &str| (true, format!("<{command}><--port=1><a b>"));
    assert_eq!(start("scheduler", true), started("scheduler"));
    assert_eq!(start("prefill", true), started("prefill-worker"));
    assert_eq!(start("decode", true), started("decode-worker"));
    let (success, said) = start("mixed", true);
    assert!(!success && said.contains("unknown role \"mixed\""), "{said}");
    let (success, said) = start("prefill", false);
    assert!(!success && said.contains("GLOBAL_RANK_TABLE_FILE_PATH: set it to"), "{said}");
}
