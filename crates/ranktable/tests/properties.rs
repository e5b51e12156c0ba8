//! What must hold for every topology, and for every damaged file.
#![expect(clippy::unwrap_used, reason = "a failing unwrap fails the test")]

use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use ranktable::{
    GlobalRankTable, HostPlan, HostRankTable, Identity, LocalRankTable, NodePorts, PlannedInstance, Role, instances,
    instances_with_ports, merge,
};
use serde_json::Value;

/// A cluster as it would be typed: for every machine how many prefill and decode instances, and their sizes.
#[derive(Clone, Debug)]
struct Topology {
    hosts: Vec<(usize, usize)>,
    prefill_size: usize,
    decode_size: usize,
    service_entry: usize,
    with_ports: bool,
}

fn topology() -> impl Strategy<Value = Topology> {
    (
        prop::collection::vec((0..4usize, 0..4usize), 1..5),
        1..5usize,
        1..5usize,
        any::<prop::sample::Index>(),
        any::<bool>(),
    )
        .prop_map(|(mut hosts, prefill_size, decode_size, entry, with_ports)| {
            if hosts.iter().all(|(_, decode)| *decode == 0) {
                hosts[0].1 = 1;
            }
            let service_entry = entry.index(hosts.len());
            Topology { hosts, prefill_size, decode_size, service_entry, with_ports }
        })
}

impl Topology {
    fn plans(&self) -> Vec<HostPlan> {
        self.hosts.iter().enumerate().map(|(host, counts)| self.plan(host, *counts)).collect()
    }

    /// Cards of one machine are dealt out in turn, prefill first.
    fn plan(&self, host: usize, (prefill, decode): (usize, usize)) -> HostPlan {
        let ip = |last: usize| IpAddr::V4(Ipv4Addr::new(10, host as u8, 0, last as u8));
        let mut card = 0;
        let mut deal = |count: usize, size: usize| -> Vec<PlannedInstance> {
            let mut instance = || {
                let devices = (card..card + size).map(|id| (id as u32, ip(100 + id))).collect();
                card += size;
                PlannedInstance { devices, port: self.with_ports.then_some(8000 + card as u16) }
            };
            (0..count).map(|_| instance()).collect()
        };
        let (prefill, decode) = (deal(prefill, self.prefill_size), deal(decode, self.decode_size));
        HostPlan { ip: ip(1), scheduler: (host == self.service_entry).then_some(None), prefill, decode }
    }
}

fn merged(plans: &[HostPlan]) -> GlobalRankTable {
    let reread = |plan: &HostPlan| {
        let table = plan.build().unwrap();
        let again = HostRankTable::parse("host.json", &table.to_json()).unwrap();
        assert_eq!(table, again);
        again
    };
    let global = merge(&plans.iter().map(reread).collect::<Vec<_>>()).unwrap();
    let again = GlobalRankTable::parse("merged.json", &global.to_json()).unwrap();
    assert_eq!((again.to_json(), again.hash()), (global.to_json(), global.hash()));
    again
}

fn check_identity(global: &GlobalRankTable, local: &LocalRankTable, role: Role) {
    let local = LocalRankTable::parse("local.json", &local.to_json()).unwrap();
    let identity = Identity::resolve(global, &local).unwrap();
    assert_eq!(identity.role, role);
    assert_eq!(identity.devices, local.server().devices);
    if role != Role::Scheduler {
        assert_eq!(&global.servers(role)[identity.index], local.server());
        let entry = instances(global).into_iter().find(|entry| entry.name == identity.instance).unwrap();
        assert_eq!((entry.role, entry.server_ip, entry.port), (role, identity.server_ip, identity.port));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_instance_of_every_topology_finds_itself(topology in topology()) {
        let plans = topology.plans();
        let global = merged(&plans);
        for plan in &plans {
            let roles = [Role::Scheduler, Role::Prefill, Role::Decode];
            let counts = [usize::from(plan.scheduler.is_some()), plan.prefill.len(), plan.decode.len()];
            let roles = roles.into_iter().zip(counts).flat_map(|(role, count)| vec![role; count]);
            let locals = plan.build().unwrap().local_tables();
            prop_assert_eq!(locals.len(), counts.iter().sum::<usize>());
            for (role, (_, local)) in roles.zip(&locals) {
                check_identity(&global, local, role);
            }
        }
    }

    #[test]
    fn node_ports_follow_the_table(topology in topology()) {
        let global = merged(&Topology { with_ports: false, ..topology }.plans());
        let count = instances(&global).len();
        let text = (0..count).map(|i| (8000 + i).to_string()).collect::<Vec<_>>().join(",");
        let ports = NodePorts::parse(&text).unwrap();
        let entries = instances_with_ports(&global, Some(&ports)).unwrap();
        for (i, entry) in entries.iter().enumerate() {
            prop_assert_eq!(entry.port, Some(8000 + i as u16));
        }
        prop_assert!(instances_with_ports(&global, None).is_err());
    }

    #[test]
    fn a_damaged_table_is_refused_with_a_place(topology in topology(), damage in damage()) {
        let text = merged(&topology.plans()).to_json();
        let mut value: Value = serde_json::from_str(&text).unwrap();
        let spots = count_spots(&value);
        // Spot 0 is the document itself, which has no path.
        let spot = 1 + damage.spot.index(spots - 1);
        apply(&mut value, spot, &damage.replacement);
        let text = value.to_string();
        for (error, all) in [
            (GlobalRankTable::parse("t.json", &text).err(), GlobalRankTable::problems("t.json", &text)),
            (HostRankTable::parse("t.json", &text).err(), HostRankTable::problems("t.json", &text)),
        ] {
            prop_assert_eq!(error.as_ref(), all.first());
            for error in all {
                prop_assert!(!error.path.is_empty(), "{error}");
                prop_assert!(error.to_string().contains("; fix: "));
            }
        }
    }

    #[test]
    fn no_text_makes_it_panic(topology in topology(), at in any::<prop::sample::Index>(), bytes in ".{0,8}") {
        let mut text = merged(&topology.plans()).to_json();
        let at = at.index(text.len());
        text.insert_str(at, &bytes);
        let _ = GlobalRankTable::problems("t.json", &text);
        let _ = LocalRankTable::problems("t.json", &text);
        let _ = NodePorts::parse(&bytes);
    }
}

/// `None` removes what stands there.
#[derive(Clone, Debug)]
struct Damage {
    spot: prop::sample::Index,
    replacement: Option<Value>,
}

fn damage() -> impl Strategy<Value = Damage> {
    let replacement = prop_oneof![
        Just(None),
        Just(Some(Value::Null)),
        Just(Some(Value::Array(Vec::new()))),
        Just(Some(serde_json::json!({}))),
        any::<u32>().prop_map(|number| Some(number.into())),
        any::<u8>().prop_map(|number| Some(number.to_string().into())),
        "[0-9a-z.,:-]{0,10}".prop_map(|text| Some(text.into())),
    ];
    (any::<prop::sample::Index>(), replacement).prop_map(|(spot, replacement)| Damage { spot, replacement })
}

fn children(value: &mut Value) -> Vec<&mut Value> {
    match value {
        Value::Array(list) => list.iter_mut().collect(),
        Value::Object(object) => object.values_mut().collect(),
        _ => Vec::new(),
    }
}

/// Values in the document, itself included.
fn count_spots(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count_spots).sum(),
        Value::Object(object) => object.values().map(count_spots).sum(),
        _ => 0,
    }
}

/// Damages the `spot`-th value in document order, counted from `value` itself.
fn apply(value: &mut Value, mut spot: usize, replacement: &Option<Value>) {
    spot -= 1;
    let mut remove = None;
    for (i, child) in children(value).into_iter().enumerate() {
        let size = count_spots(child);
        if spot >= size {
            spot -= size;
        } else if spot > 0 {
            return apply(child, spot, replacement);
        } else if let Some(replacement) = replacement {
            return child.clone_from(replacement);
        } else {
            remove = Some(i);
            break;
        }
    }
    match (value, remove) {
        (Value::Array(list), Some(i)) => drop(list.remove(i)),
        (Value::Object(object), Some(i)) => {
            let key = object.keys().nth(i).unwrap().clone();
            object.shift_remove(&key);
        }
        _ => unreachable!("the spot lies in the document"),
    }
}
