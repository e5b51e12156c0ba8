//! The tool from the outside: what it writes byte for byte, what it prints, what it refuses.

#![expect(clippy::unwrap_used, reason = "a failing unwrap fails the test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;

/// Runs one command line, in which `{dir}` stands for `directory`: what it printed, then `error: ...` if it failed.
fn run(directory: &Path, line: &str) -> String {
    let dir = directory.display().to_string();
    let words = line.split_whitespace().map(|word| word.replace("{dir}", &dir));
    let args = ranktable_tool::Args::try_parse_from(std::iter::once("ranktable-tool".to_owned()).chain(words)).unwrap();
    let mut out = Vec::new();
    let result = ranktable_tool::run_to(args, &mut out);
    let mut text = String::from_utf8(out).unwrap();
    if let Err(error) = result {
        text.push_str(&format!("error: {error}\n"));
    }
    text.replace(&dir, "{dir}")
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn tables(directory: &Path) -> BTreeMap<String, String> {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
    files.map(|path| (path.file_name().unwrap().to_string_lossy().into(), fs::read_to_string(path).unwrap())).collect()
}

/// Runs the `commands` of a golden directory and compares every file.
fn check_golden(name: &str) {
    let directory = tempfile::tempdir().unwrap();
    let expected = golden(name);
    for line in fs::read_to_string(expected.join("commands")).unwrap().lines() {
        let said = run(directory.path(), line);
        assert!(!said.contains("error"), "{line}: {said}");
    }
    assert_eq!(tables(directory.path()), tables(&expected));
}

#[test]
fn written_files_equal_the_golden_ones() {
    check_golden("1p1d-tp2");
    check_golden("2p2d-tp2");
    check_golden("two-hosts-merged");
}

/// What a command says with the golden directory as `{dir}`; nothing may be written there.
fn check(name: &str, line: &str, expected: &str) {
    assert_eq!(run(&golden(name), line), expected, "{line}");
}

#[test]
fn right_tables_are_said_to_be_right() {
    let one = "1p1d-tp2";
    check(
        one,
        "validate {dir}/global_ranktable_10.0.0.18.json --local {dir}/local_ranktable_10.0.0.18_45.json \
         {dir}/local_ranktable_10.0.0.18_67.json {dir}/local_ranktable_10.0.0.18_host.json --node-ports 8088,8089",
        "OK {dir}/global_ranktable_10.0.0.18.json: 1 prefill x 2 devices, 1 decode x 2 devices, scheduler on 10.0.0.18, hash 13f3db8af52bad43\n\
         OK {dir}/local_ranktable_10.0.0.18_45.json: prefill-0\n\
         OK {dir}/local_ranktable_10.0.0.18_67.json: decode-0\n\
         OK {dir}/local_ranktable_10.0.0.18_host.json: scheduler\n\
         OK NODE_PORTS: prefill-0 10.0.0.18:8088, decode-0 10.0.0.18:8089\n",
    );
    check(
        "two-hosts-merged",
        "validate --part {dir}/global_ranktable_10.0.0.19.json",
        "OK {dir}/global_ranktable_10.0.0.19.json: a machine with prefill-0, decode-0\n",
    );
    for (ids, role) in [("45", "prefill\n"), ("67", "decode\n"), ("host", "scheduler\n")] {
        let line = format!(
            "role --global {{dir}}/global_ranktable_10.0.0.18.json --local {{dir}}/local_ranktable_10.0.0.18_{ids}.json"
        );
        check(one, &line, role);
    }
}

#[test]
fn wrong_tables_are_listed_with_every_problem() {
    check(
        "two-hosts-merged",
        "validate {dir}/global_ranktable_merge.json {dir}/global_ranktable_10.0.0.19.json \
         --local {dir}/../1p1d-tp2/local_ranktable_10.0.0.18_67.json --node-ports 8088,8089",
        "OK {dir}/global_ranktable_merge.json: 2 prefill x 2 devices, 1 decode x 2 devices, scheduler on 10.0.0.18, hash 2da52928b4d03db0\n\
         error: {dir}/global_ranktable_10.0.0.19.json: server_group_list[0].server_list: found no scheduler, expected exactly one machine that is the service entry; fix: run gen with --api-server on one machine, then merge again\n\
         error: {dir}/../1p1d-tp2/local_ranktable_10.0.0.18_67.json: server_list[0]: found 10.0.0.18 devices 6,7, expected an entry of the global table (scheduler: 10.0.0.18 without device; prefill-0: 10.0.0.18 devices 4,5; prefill-1: 10.0.0.19 devices 0,1; decode-0: 10.0.0.19 devices 10,11); fix: use the local and global tables of one run of ranktable-tool, and the merged table on every machine\n\
         error: environment: NODE_PORTS: found 2 ports, expected 3, one an instance in the order prefill-0, prefill-1, decode-0; fix: list the HTTP ports of all prefill, then all decode instances, in the order of the global table\n\
         error: 3 problems found, listed above\n",
    );
}

#[test]
fn show_draws_the_tree() {
    check(
        "2p2d-tp2",
        "show {dir}/global_ranktable_10.0.0.18.json",
        "{dir}/global_ranktable_10.0.0.18.json: 2 prefill x 2 devices, 2 decode x 2 devices, scheduler on 10.0.0.18, hash 60696e7d358af434\n\
         ├── scheduler\n\
         │   └── scheduler  10.0.0.18:9000\n\
         ├── prefill\n\
         │   ├── prefill-0  10.0.0.18:8088\n\
         │   │   ├── rank 0  device 0  10.0.0.18\n\
         │   │   └── rank 1  device 1  10.0.0.18\n\
         │   └── prefill-1  10.0.0.18:8089\n\
         │       ├── rank 0  device 2  10.0.0.18\n\
         │       └── rank 1  device 3  10.0.0.18\n\
         └── decode\n    \
             ├── decode-0  10.0.0.18:8188\n    \
             │   ├── rank 0  device 4  10.0.0.18\n    \
             │   └── rank 1  device 5  10.0.0.18\n    \
             └── decode-1  10.0.0.18:8189\n        \
                 ├── rank 0  device 6  10.0.0.18\n        \
                 └── rank 1  device 7  10.0.0.18\n",
    );
}

#[test]
fn a_share_of_a_cluster_is_shown_as_such() {
    check(
        "two-hosts-merged",
        "show {dir}/global_ranktable_10.0.0.18.json",
        "{dir}/global_ranktable_10.0.0.18.json: part of a cluster\n\
         ├── scheduler\n\
         │   └── scheduler  10.0.0.18\n\
         ├── prefill\n\
         │   └── prefill-0  10.0.0.18\n\
         │       ├── rank 0  device 4  10.1.0.22\n\
         │       └── rank 1  device 5  10.1.0.23\n\
         └── decode (none)\n",
    );
}

/// `gen` or `merge` refuses, and writes nothing.
fn refused(line: &str, expected: &str) {
    let directory = tempfile::tempdir().unwrap();
    for host in ["18", "19"] {
        let name = format!("global_ranktable_10.0.0.{host}.json");
        fs::copy(golden("two-hosts-merged").join(&name), directory.path().join(&name)).unwrap();
    }
    let before = tables(directory.path());
    assert_eq!(run(directory.path(), line), format!("error: {expected}\n"), "{line}");
    assert_eq!(tables(directory.path()), before, "{line} wrote a file");
}

#[test]
fn what_does_not_fit_together_is_refused_before_anything_is_written() {
    const GEN: &str = "gen --save-dir {dir} --ip 10.0.0.18 --device-ip 10.1.0.1";
    let gen_with =
        |rest: &str, expected: &str| refused(&format!("gen --save-dir {{dir}} --ip 10.0.0.18 {rest}"), expected);
    refused("", "no subcommand given; fix: start with `gen`, `merge`, `validate`, `show` or `role`, or see --help");
    gen_with(
        "",
        "gen has no instance to write; fix: give --prefill-server-list, --decode-server-list or --api-server, or several of them",
    );
    gen_with(
        "--prefill-server-list 0,1 --decode-server-list 1,2",
        "command line: --decode-server-list[0].device[0].device_id: found device 1 of 10.0.0.18 in two instances (first at --prefill-server-list[0].device[1].device_id), expected each device in one instance only; fix: give each instance devices of its own",
    );
    gen_with(
        "--decode-server-list 0,1 2",
        "command line: --decode-server-list[1].device: found a decode instance of 1 device, expected 2, as in the first decode instance (--decode-server-list[0]); fix: give all decode instances the same number of devices: --tensor-parallel-size is one value a role",
    );
    gen_with(
        "--decode-server-list 4-5",
        "--decode-server-list: found \"4-5\", expected device ids joined by commas, for example 4,5; fix: write one argument an instance",
    );
    gen_with(
        "--prefill-server-list 1,2 --decode-server-list 12",
        "local_ranktable_10.0.0.18_12.json: the file name of two instances, devices 1,2 and devices 12; fix: give --separator _ (or any other text) to keep the names apart",
    );
    gen_with("--decode-server-list 4,5 --interface no-such-nic", &no_interface());
    gen_with(
        "--decode-server-list 4,5 --decode-ports 1,2",
        "--decode-ports: found 2 ports, expected 1, one an instance; fix: list as many ports as instances",
    );
    refused(
        &format!("{GEN} --decode-server-list 4,5"),
        "--device-ip: found 1 address, expected 2, one a device; fix: list one address for each device, prefill first",
    );
    refused(
        "--mode merge --save-dir {dir}",
        "--global-ranktable-list: found no table; fix: name the global table of every machine, separated by blanks",
    );
    refused(
        "merge --save-dir {dir} --global-ranktable-list {dir}/global_ranktable_10.0.0.18.json {dir}/global_ranktable_10.0.0.18.json",
        "{dir}/global_ranktable_10.0.0.18.json: server_group_list[0].server_list[0]: found the same instance of 10.0.0.18 a second time (first at server_group_list[0].server_list[0]), expected each instance once; fix: remove one of the two entries; merge each machine's table once",
    );
}

/// Names the interfaces of the machine that the test runs on.
fn no_interface() -> String {
    let known = if_addrs::get_if_addrs().unwrap().into_iter().filter(|face| !face.is_link_local());
    let mut known: Vec<_> = known.map(|face| (face.name.clone(), face.ip())).collect();
    known.sort_by_key(|(_, ip)| ip.is_ipv6());
    let known: Vec<String> = known.into_iter().map(|(name, ip)| format!("{name} ({ip})")).collect();
    let known = known.join(", ");
    format!("--interface: found \"no-such-nic\", expected one of {known}; fix: name an interface that has an address")
}
