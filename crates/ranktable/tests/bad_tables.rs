//! Every way a table can be wrong, one case each: the valid 2P2D table, one edit, and the exact text of the error.
#![expect(clippy::unwrap_used, reason = "a failing unwrap fails the test")]

use std::collections::BTreeSet;

use ranktable::{
    Error, GlobalRankTable, HostPlan, HostRankTable, Identity, LocalRankTable, NodePorts, PlannedInstance, Problem,
    Role, instances_with_ports, merge,
};
use serde_json::{Value, json};

/// The variants met by a test, to prove that none is left out.
#[derive(Default)]
struct Met(BTreeSet<String>);

impl Met {
    fn check(&mut self, found: Option<Error>, expected: &str) {
        let found = found.unwrap_or_else(|| panic!("no error, expected: {expected}"));
        assert_eq!(found.to_string(), expected);
        self.0.insert(variant(&found.problem));
    }
}

fn variant(problem: &Problem) -> String {
    format!("{problem:?}").split([' ', '{']).next().unwrap_or_default().to_owned()
}

fn two_prefill_two_decode() -> Value {
    let server = |devices: [u32; 2]| {
        let device = |rank: usize| {
            json!({ "device_id": devices[rank].to_string(), "device_ip": format!("10.1.0.{}", devices[rank]),
                    "rank_id": rank.to_string() })
        };
        json!({ "server_id": "10.0.0.18", "server_ip": "10.0.0.18", "device": [device(0), device(1)] })
    };
    json!({ "version": "1.0", "status": "completed", "server_group_list": [
        { "group_id": "0", "server_count": "1",
          "server_list": [{ "server_id": "10.0.0.18", "server_ip": "10.0.0.18" }] },
        { "group_id": "1", "server_count": "2", "server_list": [server([0, 1]), server([2, 3])] },
        { "group_id": "2", "server_count": "2", "server_list": [server([4, 5]), server([6, 7])] },
    ]})
}

fn set(value: &mut Value, pointer: &str, new: Value) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match value.pointer_mut(parent).unwrap() {
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = new,
        Value::Object(object) => drop(object.insert(key.to_owned(), new)),
        _ => panic!("{pointer}"),
    }
}

fn remove(value: &mut Value, pointer: &str) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    match value.pointer_mut(parent).unwrap() {
        Value::Array(list) => drop(list.remove(key.parse().unwrap())),
        Value::Object(object) => drop(object.shift_remove(key)),
        _ => panic!("{pointer}"),
    }
}

const P0: &str = "/server_group_list/1/server_list/0";
const P1: &str = "/server_group_list/1/server_list/1";
const D1: &str = "/server_group_list/2/server_list/1";

/// One value replaced: the text of the first error.
#[expect(clippy::too_many_lines, reason = "one flat table")]
fn replaced() -> Vec<(String, Value, &'static str)> {
    let at = |place: &str, key: &str| format!("{place}{key}");
    vec![
        (
            "/version".into(),
            json!("2.0"),
            "g.json: version: found \"2.0\", expected \"1.0\"; fix: write the file again with ranktable-tool gen or merge: other versions are not supported",
        ),
        (
            "/status".into(),
            json!("initializing"),
            "g.json: status: found \"initializing\", expected \"completed\"; fix: wait until whoever writes the table has completed it, then start again",
        ),
        (
            "/server_group_list".into(),
            json!({}),
            "g.json: server_group_list: found an object, expected a list; fix: put a list here, or write the file again with ranktable-tool gen or merge",
        ),
        (
            "/server_group_list/1".into(),
            json!("P"),
            "g.json: server_group_list[1]: found a string, expected an object; fix: put an object here, or write the file again with ranktable-tool gen or merge",
        ),
        (
            "/server_group_list/1/group_id".into(),
            json!("2"),
            "g.json: server_group_list[1].group_id: found 3 groups without group \"1\" (prefill), expected exactly 3 groups: \"0\" scheduler, \"1\" prefill, \"2\" decode; fix: keep a group without instances as {\"group_id\": \"N\", \"server_count\": \"0\", \"server_list\": []}",
        ),
        (
            "/server_group_list/1/server_count".into(),
            json!("3"),
            "g.json: server_group_list[1].server_count: found \"3\", expected \"2\", the length of server_list; fix: correct server_count, or restore the missing entries",
        ),
        (
            at(P0, "/device/1/device_id"),
            json!(1),
            "g.json: server_group_list[1].server_list[0].device[1].device_id: found the number 1, expected a string; fix: put the value in double quotes: every number in a rank table is a JSON string",
        ),
        (
            at(P0, "/device/1/device_id"),
            json!("01"),
            "g.json: server_group_list[1].server_list[0].device[1].device_id: found \"01\", expected a whole number from 0 to 4294967295 in decimal digits; fix: write it as a plain number in quotes, for example \"4\"",
        ),
        (
            at(P0, "/device/1/device_ip"),
            json!("10.1.0"),
            "g.json: server_group_list[1].server_list[0].device[1].device_ip: found \"10.1.0\", expected an IP address (or localhost as server_ip); fix: write the address in full, for example 10.0.0.18",
        ),
        (
            at(P0, "/server_ip"),
            json!("10,0,0,18"),
            "g.json: server_group_list[1].server_list[0].server_ip: found \"10,0,0,18\", expected an IP address (or localhost as server_ip); fix: write the address in full, for example 10.0.0.18",
        ),
        (
            at(P0, "/server_id"),
            json!(""),
            "g.json: server_group_list[1].server_list[0].server_id: found \"\", expected a name of the machine; fix: use the machine's IP address, as ranktable-tool gen does",
        ),
        (
            at(P0, "/port"),
            json!("0"),
            "g.json: server_group_list[1].server_list[0].port: found \"0\", expected a port from 1 to 65535; fix: write the HTTP port of the instance, for example 8088",
        ),
        (
            at(P0, "/device/1/rank_id"),
            json!("2"),
            "g.json: server_group_list[1].server_list[0].device[1].rank_id: found \"2\", expected \"1\": rank_id starts at 0 in every instance and counts up without gaps; fix: number the devices of each instance \"0\", \"1\", ... in the order of the list",
        ),
        (
            at(P0, "/device/1/rank_id"),
            json!("0"),
            "g.json: server_group_list[1].server_list[0].device[1].rank_id: found \"0\" a second time, expected \"1\"; fix: number the devices of each instance \"0\", \"1\", ... in the order of the list",
        ),
        (
            at(P0, "/device/1/device_id"),
            json!("0"),
            "g.json: server_group_list[1].server_list[0].device[1].device_id: found device 0 twice in one instance (first at server_group_list[1].server_list[0].device[0].device_id), expected each device once; fix: list every device of the instance once",
        ),
        (
            at(D1, "/device/0/device_id"),
            json!("1"),
            "g.json: server_group_list[2].server_list[1].device[0].device_id: found device 1 of 10.0.0.18 in two instances (first at server_group_list[1].server_list[0].device[1].device_id), expected each device in one instance only; fix: give each instance devices of its own",
        ),
        (
            at(P1, "/device"),
            two_prefill_two_decode().pointer("/server_group_list/1/server_list/0/device").unwrap().clone(),
            "g.json: server_group_list[1].server_list[1]: found the same instance of 10.0.0.18 a second time (first at server_group_list[1].server_list[0]), expected each instance once; fix: remove one of the two entries; merge each machine's table once",
        ),
        (
            at(P1, "/device"),
            json!([]),
            "g.json: server_group_list[1].server_list[1].device: found no device, expected at least one: a prefill instance runs on devices; fix: list the devices of the instance, numbered from 0 on a machine without accelerators",
        ),
        (
            at(P1, "/device"),
            json!([{ "device_id": "2", "device_ip": "10.1.0.2", "rank_id": "0" }]),
            "g.json: server_group_list[1].server_list[1].device: found a prefill instance of 1 device, expected 2, as in the first prefill instance (server_group_list[1].server_list[0]); fix: give all prefill instances the same number of devices: --tensor-parallel-size is one value a role",
        ),
        (
            at(D1, "/device"),
            json!([{ "device_id": "6", "device_ip": "10.1.0.6", "rank_id": "0" }]),
            "g.json: server_group_list[2].server_list[1].device: found a decode instance of 1 device, expected 2, as in the first decode instance (server_group_list[2].server_list[0]); fix: give all decode instances the same number of devices: --tensor-parallel-size is one value a role",
        ),
        (
            "/server_group_list/0/server_list/0/device".into(),
            json!([{ "device_id": "9", "device_ip": "10.1.0.9", "rank_id": "0" }]),
            "g.json: server_group_list[0].server_list[0].device: found 1 device, expected no device: the scheduler runs on the CPU; fix: remove the key \"device\" of the scheduler's entry",
        ),
        (
            "/server_group_list/0".into(),
            json!({ "group_id": "0", "server_count": "0", "server_list": [] }),
            "g.json: server_group_list[0].server_list: found no scheduler, expected exactly one machine that is the service entry; fix: run gen with --api-server on one machine, then merge again",
        ),
        (
            "/server_group_list/0".into(),
            json!({ "group_id": "0", "server_count": "2", "server_list": [{ "server_id": "10.0.0.18", "server_ip": "10.0.0.18" }, { "server_id": "10.0.0.19", "server_ip": "10.0.0.19" }] }),
            "g.json: server_group_list[0].server_list[1]: found a second scheduler (first at server_group_list[0].server_list[0]), expected exactly one machine that is the service entry; fix: run gen with --api-server on one machine only",
        ),
        (
            "/server_group_list/2".into(),
            json!({ "group_id": "2", "server_count": "0", "server_list": [] }),
            "g.json: server_group_list[2].server_list: found no decode instance, expected at least one; fix: run gen with --decode-server-list on one machine at least, then merge",
        ),
        (
            "/server_group_list/0/server_list/0".into(),
            json!({ "server_id": "localhost", "server_ip": "localhost" }),
            "g.json: server_group_list[0].server_list[0].server_ip: found \"localhost\", expected an address that the other machines can reach; fix: run gen on that machine again with --ip ADDRESS",
        ),
    ]
}

/// One value taken out.
fn removed() -> Vec<(String, &'static str)> {
    vec![
        ("/version".into(), "g.json: version: found nothing, expected this key; fix: add \"version\": \"1.0\""),
        (
            "/server_group_list".into(),
            "g.json: server_group_list: found nothing, expected this key; fix: add \"server_group_list\": [...] with the 3 groups",
        ),
        (
            "/server_group_list/1".into(),
            "g.json: server_group_list: found 2 groups without group \"1\" (prefill), expected exactly 3 groups: \"0\" scheduler, \"1\" prefill, \"2\" decode; fix: keep a group without instances as {\"group_id\": \"N\", \"server_count\": \"0\", \"server_list\": []}",
        ),
        (
            P0.into(),
            "g.json: server_group_list[1].server_count: found \"2\", expected \"1\", the length of server_list; fix: correct server_count, or restore the missing entries",
        ),
        (
            format!("{P0}/device"),
            "g.json: server_group_list[1].server_list[0].device: found no device, expected at least one: a prefill instance runs on devices; fix: list the devices of the instance, numbered from 0 on a machine without accelerators",
        ),
        (
            format!("{P0}/device/0"),
            "g.json: server_group_list[1].server_list[0].device[0].rank_id: found \"1\", expected \"0\": rank_id starts at 0 in every instance and counts up without gaps; fix: number the devices of each instance \"0\", \"1\", ... in the order of the list",
        ),
        (
            format!("{P0}/device/1/rank_id"),
            "g.json: server_group_list[1].server_list[0].device[1].rank_id: found nothing, expected this key; fix: add \"rank_id\": \"0\"",
        ),
    ]
}

fn global(met: &mut Met) {
    let first = |value: &Value| GlobalRankTable::parse("g.json", &value.to_string()).err();
    for (pointer, new, expected) in replaced() {
        let mut value = two_prefill_two_decode();
        set(&mut value, &pointer, new);
        met.check(first(&value), expected);
    }
    for (pointer, expected) in removed() {
        let mut value = two_prefill_two_decode();
        remove(&mut value, &pointer);
        met.check(first(&value), expected);
    }
    let mut value = two_prefill_two_decode();
    value["server_group_list"].as_array_mut().unwrap().swap(1, 2);
    met.check(first(&value), "g.json: server_group_list[1].group_id: found \"2\", expected \"1\" (prefill); fix: order the groups \"0\" scheduler, \"1\" prefill, \"2\" decode");
    let mut value = two_prefill_two_decode();
    set(&mut value, &format!("{P0}/port"), json!("8088"));
    set(&mut value, &format!("{D1}/port"), json!("8088"));
    met.check(first(&value), "g.json: server_group_list[2].server_list[1].port: found port 8088 of 10.0.0.18 a second time (first at server_group_list[1].server_list[0].port), expected a port of its own for every instance on a machine; fix: choose another port");
}

fn text(met: &mut Met) {
    let first = |text: &str| GlobalRankTable::parse("g.json", text).err();
    met.check(first("not json"), "g.json: found text that is not JSON (expected ident at line 1 column 2), expected a JSON object; fix: write the file again with ranktable-tool gen or merge");
    met.check(first("[]"), "g.json: found a list, expected an object; fix: put an object here, or write the file again with ranktable-tool gen or merge");
    met.check(first(&" ".repeat((4 << 20) + 1)), "g.json: found more than 4194304 bytes, expected a rank table of at most 4194304 bytes; fix: check that the path names a rank table");
    met.check(GlobalRankTable::load("/no/such".as_ref()).err(), "/no/such: found an unreadable file (No such file or directory (os error 2)), expected a file that this process can read; fix: check the path and its permissions (mode 0600 means the owner only)");
    let table = GlobalRankTable::parse("g.json", &two_prefill_two_decode().to_string()).unwrap();
    met.check(table.save("/no/such/g.json".as_ref()).err(), "/no/such/g.json: found a place that cannot be written (No such file or directory (os error 2)), expected a directory that this process can write to; fix: check the directory and its permissions, or choose another");
}

/// A one-machine table of one decode instance, as `gen` would write it.
fn host(ip: &str, scheduler: bool, device: &str) -> HostRankTable {
    let entry = json!({ "server_id": ip, "server_ip": ip });
    let schedulers = if scheduler { vec![entry.clone()] } else { Vec::new() };
    let mut decode = entry;
    decode["device"] = json!([{ "device_id": device, "device_ip": "10.1.0.22", "rank_id": "0" }]);
    let table = json!({ "version": "1.0", "status": "completed", "server_group_list": [
        { "group_id": "0", "server_count": schedulers.len().to_string(), "server_list": schedulers },
        { "group_id": "1", "server_count": "0", "server_list": [] },
        { "group_id": "2", "server_count": "1", "server_list": [decode] },
    ]});
    HostRankTable::parse(&format!("{ip}.json"), &table.to_string()).unwrap()
}

fn merging(met: &mut Met) {
    let mut check = |tables: &[HostRankTable], expected| met.check(merge(tables).err(), expected);
    check(
        &[host("10.0.0.1", false, "0"), host("10.0.0.2", false, "0")],
        "merged table: server_group_list[0].server_list: found no scheduler, expected exactly one machine that is the service entry; fix: run gen with --api-server on one machine, then merge again",
    );
    check(
        &[host("10.0.0.1", true, "0"), host("10.0.0.2", true, "0")],
        "10.0.0.2.json: server_group_list[0].server_list[0]: found a second scheduler (first at 10.0.0.1.json: server_group_list[0].server_list[0]), expected exactly one machine that is the service entry; fix: run gen with --api-server on one machine only",
    );
    check(
        &[host("10.0.0.1", true, "0"), host("localhost", false, "0")],
        "localhost.json: server_group_list[2].server_list[0].server_ip: found \"localhost\", expected an address that the other machines can reach; fix: run gen on that machine again with --ip ADDRESS",
    );
    check(
        &[host("10.0.0.1", true, "0"), host("10.0.0.1", false, "0")],
        "10.0.0.1.json: server_group_list[2].server_list[0]: found the same instance of 10.0.0.1 a second time (first at server_group_list[2].server_list[0]), expected each instance once; fix: remove one of the two entries; merge each machine's table once",
    );
    let mut prefill = two_prefill_two_decode();
    set(&mut prefill, "/server_group_list/0", json!({ "group_id": "0", "server_count": "0", "server_list": [] }));
    let prefill = HostRankTable::parse("p.json", &prefill.to_string()).unwrap();
    let mut decode = two_prefill_two_decode();
    remove(&mut decode, D1);
    set(&mut decode, "/server_group_list/2/server_count", json!("1"));
    set(&mut decode, "/server_group_list/1", json!({ "group_id": "1", "server_count": "0", "server_list": [] }));
    set(&mut decode, "/server_group_list/2/server_list/0/device/0/device_id", json!("8"));
    let decode = HostRankTable::parse("d.json", &decode.to_string()).unwrap();
    check(
        &[prefill, decode],
        "d.json: server_group_list[2].server_list[0].device[1].device_id: found device 5 of 10.0.0.18 in two tables (first at p.json: server_group_list[2].server_list[0].device[1].device_id), expected each device in one instance only; fix: merge each machine's table once, and give every machine its own address with gen --ip",
    );
}

/// The local table of an entry of the valid global one.
fn local(pointer: &str) -> Value {
    let entry = two_prefill_two_decode().pointer(pointer).unwrap().clone();
    json!({ "version": "1.0", "status": "completed", "group_id": "0", "server_count": "1", "server_list": [entry] })
}

fn identity(met: &mut Met) {
    let table = GlobalRankTable::parse("g.json", &two_prefill_two_decode().to_string()).unwrap();
    let mut check = |edit: &dyn Fn(&mut Value), expected| {
        let mut value = local(P0);
        edit(&mut value);
        let found = LocalRankTable::parse("l.json", &value.to_string())
            .and_then(|local| Identity::resolve(&table, &local))
            .and_then(|identity| {
                identity.require_role(Role::Prefill)?;
                identity.require_tensor_parallel_size(4)?;
                Ok(identity)
            });
        met.check(found.err(), expected);
    };
    check(
        &|_| {},
        "command line: --tensor-parallel-size: found 4, expected 2, the number of devices of prefill-0; fix: start it with --tensor-parallel-size 2, or change the devices in the rank tables",
    );
    check(
        &|value| *value = local(D1),
        "l.json: server_list[0]: found the table of a decode instance, expected that of a prefill instance; fix: point RANK_TABLE_FILE_PATH at a prefill instance's table, or start this one as decode",
    );
    check(
        &|value| set(value, "/server_list", json!([])),
        "l.json: server_count: found \"1\", expected \"0\", the length of server_list; fix: correct server_count, or restore the missing entries",
    );
    check(
        &|value| {
            set(value, "/server_list", json!([]));
            set(value, "/server_count", json!("0"));
        },
        "l.json: server_list: found 0 entries, expected exactly one: a local table describes one instance; fix: give the instance its own local_ranktable file; the global table belongs in GLOBAL_RANK_TABLE_FILE_PATH",
    );
    check(
        &|value| set(value, "/server_list/0/device/1/device_id", json!("7")),
        "l.json: server_list[0].device: found 10.0.0.18 devices 0,7, which overlaps prefill-0 and decode-1, expected the devices of exactly one instance; fix: use the local table that ranktable-tool gen wrote for this instance",
    );
    check(
        &|value| set(value, "/server_list/0/device/1/device_id", json!("8")),
        "l.json: server_list[0].device: found devices 0,8, expected devices 0,1 as prefill-0 has it in g.json: server_group_list[1].server_list[0].device; fix: use the local and global tables of one run of ranktable-tool",
    );
    check(
        &|value| set(value, "/server_list/0/device/1/device_ip", json!("10.1.0.9")),
        "l.json: server_list[0].device[1].device_ip: found \"10.1.0.9\", expected \"10.1.0.1\" as prefill-0 has it in g.json: server_group_list[1].server_list[0].device[1].device_ip; fix: use the local and global tables of one run of ranktable-tool",
    );
    check(
        &|value| {
            set(value, "/server_list/0/server_id", json!("10.0.0.99"));
            set(value, "/server_list/0/server_ip", json!("10.0.0.99"));
        },
        "l.json: server_list[0]: found 10.0.0.99 devices 0,1, expected an entry of the global table (scheduler: 10.0.0.18 without device; prefill-0: 10.0.0.18 devices 0,1; prefill-1: 10.0.0.18 devices 2,3; decode-0: 10.0.0.18 devices 4,5; decode-1: 10.0.0.18 devices 6,7); fix: use the local and global tables of one run of ranktable-tool, and the merged table on every machine",
    );
}

fn ports(met: &mut Met) {
    let mut value = two_prefill_two_decode();
    let mut check = |value: &Value, ports: Option<&str>, expected| {
        let table = GlobalRankTable::parse("g.json", &value.to_string()).unwrap();
        let local = LocalRankTable::parse("l.json", &local(P1).to_string()).unwrap();
        let entries =
            ports.map(NodePorts::parse).transpose().and_then(|ports| instances_with_ports(&table, ports.as_ref()));
        met.check(
            entries.and_then(|entries| Identity::resolve(&table, &local)?.require_port(9000, &entries)).err(),
            expected,
        );
    };
    check(
        &value,
        None,
        "environment: NODE_PORTS: found no port of prefill-0, expected the HTTP port of every prefill and decode instance; fix: set NODE_PORTS, for example 8088,8089, or write the tables with gen --prefill-ports and --decode-ports",
    );
    check(
        &value,
        Some("1,2,3"),
        "environment: NODE_PORTS: found 3 ports, expected 4, one an instance in the order prefill-0, prefill-1, decode-0, decode-1; fix: list the HTTP ports of all prefill, then all decode instances, in the order of the global table",
    );
    check(
        &value,
        Some("1,x,3,4"),
        "environment: NODE_PORTS[1]: found \"x\", expected a port from 1 to 65535; fix: write the HTTP port of the instance, for example 8088",
    );
    check(
        &value,
        Some("1,2,0,4"),
        "environment: NODE_PORTS[2]: found \"0\", expected a port from 1 to 65535; fix: write the HTTP port of the instance, for example 8088",
    );
    check(
        &value,
        Some("1,2,2,4"),
        "environment: NODE_PORTS[2]: found port 2 of 10.0.0.18 a second time (first at NODE_PORTS[1]), expected a port of its own for every instance on a machine; fix: choose another port",
    );
    check(
        &value,
        Some("1,2,3,4"),
        "command line: --port: found 9000, expected 2, where the scheduler calls prefill-1; fix: start it with --port 2, or correct NODE_PORTS",
    );
    set(&mut value, &format!("{P0}/port"), json!("8088"));
    check(
        &value,
        Some("1,2,3,4"),
        "environment: NODE_PORTS[0]: found 1, expected 8088, the port of prefill-0 in the global table; fix: correct one of the two, or unset NODE_PORTS",
    );
}

/// `prefill` and `decode` hold each instance's number of devices and its port.
fn host_plan(prefill: &[(usize, u16)], decode: &[(usize, u16)]) -> HostPlan {
    let ip = [127, 0, 0, 1].into();
    let mut device = 0..;
    let mut instances = |list: &[(usize, u16)]| {
        let instance = |&(size, port): &(usize, u16)| PlannedInstance {
            devices: device.by_ref().take(size).map(|id| (id, ip)).collect(),
            port: Some(port),
        };
        list.iter().map(instance).collect()
    };
    HostPlan { ip, scheduler: Some(Some(9000)), prefill: instances(prefill), decode: instances(decode) }
}

fn plans(met: &mut Met) {
    let plan = |plan: HostPlan| plan.build().and_then(HostRankTable::into_global);
    assert!(plan(host_plan(&[(2, 8088)], &[(2, 8188)])).is_ok());
    assert!(plan(host_plan(&[], &[(1, 8188)])).is_ok(), "decode instances alone compute prompts themselves");
    let mut check = |prefill: &[_], decode: &[_], expected| met.check(plan(host_plan(prefill, decode)).err(), expected);
    check(
        &(0..1025).map(|i| (1, 10000 + i)).collect::<Vec<_>>(),
        &[(1, 8188)],
        "command line: server_group_list[1].server_list: found 1025 instances, expected at most 1024 in one group; fix: split the cluster",
    );
    check(
        &[(65, 8088)],
        &[(65, 8188)],
        "command line: --prefill-server-list[0].device: found 65 devices, expected at most 64 in one instance; fix: use smaller instances",
    );
    check(
        &[(1, 8088)],
        &[(1, 8088)],
        "command line: --decode-server-list[0].port: found port 8088 of 127.0.0.1 a second time (first at --prefill-server-list[0].port), expected a port of its own for every instance on a machine; fix: choose another port",
    );
}

#[test]
fn every_problem_names_place_value_and_fix() {
    let mut met = Met::default();
    global(&mut met);
    text(&mut met);
    merging(&mut met);
    identity(&mut met);
    ports(&mut met);
    plans(&mut met);
    let source = include_str!("../src/error.rs");
    let declared = source.split("pub enum Problem {").nth(1).unwrap().split("\n}").next().unwrap();
    let declared: BTreeSet<String> = declared
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with(char::is_uppercase))
        .map(|line| line.split([' ', ',']).next().unwrap().to_owned())
        .collect();
    assert_eq!(met.0, declared, "a problem without a case");
    let page = include_str!("../../../docs/rank-tables.md");
    for name in declared {
        assert!(page.contains(&format!("`{name}`")), "{name} is not explained in docs/rank-tables.md");
    }
}

#[test]
fn all_problems_are_listed() {
    let mut value = two_prefill_two_decode();
    set(&mut value, "/version", json!("2"));
    set(&mut value, &format!("{P0}/device/0/device_ip"), json!("x"));
    set(&mut value, &format!("{D1}/server_ip"), json!(7));
    let paths: Vec<String> =
        GlobalRankTable::problems("g.json", &value.to_string()).into_iter().map(|error| error.path).collect();
    assert_eq!(
        paths,
        [
            "version",
            "server_group_list[1].server_list[0].device[0].device_ip",
            "server_group_list[2].server_list[1].server_ip",
        ]
    );
}

#[test]
fn unknown_keys_and_layout_do_not_matter() {
    let plain = two_prefill_two_decode();
    let mut extra = plain.clone();
    set(&mut extra, "/comment", json!({ "by": "someone" }));
    set(&mut extra, &format!("{P0}/device/0/super_device_id"), json!("77"));
    let parse = |text: String| GlobalRankTable::parse("g.json", &text).unwrap();
    let (plain, extra) = (parse(plain.to_string()), parse(serde_json::to_string_pretty(&extra).unwrap()));
    assert_eq!(plain.hash(), extra.hash());
    assert_eq!(plain, extra);
}
