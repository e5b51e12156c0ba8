use std::path::PathBuf;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    worker: WorkerArgs,
}

/// Tables of one scheduler, one prefill instance on cards 4 and 5, one decode instance on card 6.
const GLOBAL: &str = r#"{"version":"1.0","status":"completed","server_group_list":[
 {"group_id":"0","server_count":"1","server_list":[{"server_id":"127.0.0.1","server_ip":"127.0.0.1"}]},
 {"group_id":"1","server_count":"1","server_list":[{"server_id":"127.0.0.1","server_ip":"127.0.0.1","device":[
  {"device_id":"4","device_ip":"127.0.0.1","rank_id":"0"},{"device_id":"5","device_ip":"127.0.0.1","rank_id":"1"}]}]},
 {"group_id":"2","server_count":"1","server_list":[{"server_id":"127.0.0.1","server_ip":"127.0.0.1","device":[
  {"device_id":"6","device_ip":"127.0.0.1","rank_id":"0"},{"device_id":"7","device_ip":"127.0.0.1","rank_id":"1"}]}]}]}"#;
const LOCAL: &str = r#"{"version":"1.0","status":"completed","group_id":"0","server_count":"1","server_list":[
 {"server_id":"127.0.0.1","server_ip":"127.0.0.1","device":[
  {"device_id":"4","device_ip":"127.0.0.1","rank_id":"0"},{"device_id":"5","device_ip":"127.0.0.1","rank_id":"1"}]}]}"#;

struct Files {
    _dir: tempfile::TempDir,
    model: PathBuf,
    global: PathBuf,
    local: PathBuf,
}

fn files() -> Files {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        std::fs::write(dir.path().join(name), text).unwrap();
        dir.path().join(name)
    };
    let (global, local) = (write("global.json", GLOBAL), write("local.json", LOCAL));
    write("config.json", "{}");
    Files { model: dir.path().to_owned(), global, local, _dir: dir }
}

fn decide(role: Role, flags: &[&str]) -> Result<Config, String> {
    let files = files();
    let mut typed = vec!["worker".to_owned(), format!("--model={}", files.model.display())];
    typed.push(format!("--global-rank-table={}", files.global.display()));
    typed.push(format!("--rank-table={}", files.local.display()));
    typed.extend(flags.iter().map(|flag| (*flag).to_owned()));
    let cli = Cli::try_parse_from(typed).map_err(|error| error.to_string())?;
    Config::decide(&cli.worker, role).map_err(|error| error.to_string())
}

#[test]
fn the_table_says_who_this_is() {
    let config = decide(Role::Prefill, &["--node-ports", "8088,8089"]).unwrap();
    assert_eq!((config.instance.as_str(), config.listen.port()), ("prefill-0", 8088));
    assert_eq!((config.engine.tensor_parallel_size, config.engine.max_num_batched_tokens), (2, 2048));
    assert_eq!(config.transports, TransportKind::ALL);
    let config = decide(Role::Prefill, &["--port=9001", "--max-model-len=4096", "--kv-transports", "grpc"]).unwrap();
    assert_eq!((config.listen.port(), config.engine.max_model_len), (9001, Some(4096)));
    assert_eq!(config.transports, [TransportKind::Grpc]);
}

#[test]
fn what_cannot_work_is_refused_with_its_name() {
    let check = |role, flags: &[&str], parts: &[&str]| {
        let error = decide(role, flags).unwrap_err();
        for part in parts {
            assert!(error.contains(part), "{flags:?}: {error:?} lacks {part:?}");
        }
    };
    let prefill = Role::Prefill;
    check(Role::Decode, &["--port=1"], &["prefill", "decode", "local.json"]);
    check(prefill, &[], &["--port", "NODE_PORTS"]);
    check(prefill, &["--port=9000", "--node-ports=8088,8089"], &["9000", "8088"]);
    check(prefill, &["--node-ports=8088"], &["NODE_PORTS", "1", "2"]);
    check(prefill, &["--node-ports=8088,8088"], &["NODE_PORTS", "8088"]);
    check(prefill, &["--port=1", "--tensor-parallel-size=1"], &["--tensor-parallel-size", "1", "2"]);
    check(prefill, &["--port=1", "--max-model-len=4096", "--max-num-batched-tokens=2048"], &["4096", "2048"]);
    check(prefill, &["--port=1", "--block-size=12"], &["--block-size", "12", "multiple of 8"]);
    check(prefill, &["--port=1", "--quantization=awq"], &["--quantization", "awq", "none"]);
    check(prefill, &["--port=1", "--device=cuda:0"], &["--device", "not built in"]);
    check(prefill, &["--port=1", "--kv-cache-dtype=fp8"], &["--kv-cache-dtype", "fp8", "bf16"]);
    check(prefill, &["--port=1", "--kv-transports=rdma"], &["--kv-transports", "rdma", "shm"]);
    check(prefill, &["--port=1", "--host=no such host"], &["--host", "no such host"]);
    check(
        prefill,
        &["--port=1", "--host=0.0.0.0"],
        &["--host 0.0.0.0", "PDSERVE_CLUSTER_SECRET", "--cluster-secret-file"],
    );
    check(prefill, &["--port=1", "--cluster-secret-file=/nonexistent"], &["--cluster-secret-file /nonexistent"]);
    check(prefill, &["--port=1", "--model=/nonexistent"], &["--model"]);
    check(prefill, &["--port=1", "--max-num-batched-tokens=0"], &["--max-num-batched-tokens"]);
}

#[test]
fn a_secret_opens_the_port_to_other_machines() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "0123456789abcdef0123456789abcdef\n").unwrap();
    let flag = format!("--cluster-secret-file={}", file.path().display());
    let config = decide(Role::Prefill, &["--port=1", "--host=0.0.0.0", &flag]).unwrap();
    assert!(config.credentials.secret.is_some());
    assert_eq!(config.transfer(1, "m").credentials.secret, config.credentials.secret);
    std::fs::write(file.path(), "short").unwrap();
    let error = decide(Role::Prefill, &["--port=1", "--host=0.0.0.0", &flag]).unwrap_err();
    assert!(error.contains("--cluster-secret-file") && error.contains("5 bytes"), "{error}");
}

#[test]
fn without_tables_both_variables_are_named() {
    let cli = Cli::try_parse_from(["worker", "--model", "."]).unwrap();
    // Neither variable is set where tests run.
    let error = Config::decide(&cli.worker, Role::Prefill).unwrap_err().to_string();
    assert!(error.starts_with("GLOBAL_RANK_TABLE_FILE_PATH and RANK_TABLE_FILE_PATH not set"), "{error}");
}
