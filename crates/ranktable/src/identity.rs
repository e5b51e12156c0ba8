//! Which instance of the cluster a process is: its local entry found in the global table.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::document::instance_name;
use crate::{Device, Error, GlobalRankTable, LocalRankTable, NodePorts, Problem, Role, Server};

/// An instance's place in the cluster. Exists only if the local and the global table agree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub role: Role,
    /// Within its group, from 0.
    pub index: usize,
    /// `scheduler`, `prefill-0`, `decode-1`.
    pub instance: String,
    pub server_ip: IpAddr,
    /// In rank order; empty for the scheduler.
    pub devices: Vec<Device>,
    /// The port that the global table gives, if it does.
    pub port: Option<u16>,
    /// The local table, for errors.
    file: String,
}

/// One prefill or decode instance of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceEntry {
    /// `prefill-0`, `decode-1`.
    pub name: String,
    pub role: Role,
    pub server_ip: IpAddr,
    pub devices: Vec<Device>,
    pub port: Option<u16>,
}

impl Identity {
    /// Finds the local entry in the global table by server and devices. The local `group_id` is never read:
    /// the tables of prefill and decode instances both say "0".
    ///
    /// # Errors
    /// No entry shares a device with the local one, more than one does, or the one that does is not identical.
    pub fn resolve(global: &GlobalRankTable, local: &LocalRankTable) -> Result<Identity, Error> {
        let fail = |path: &str, problem| Error::new(&local.file, path, problem);
        let placed = global.0.placed();
        let matches: Vec<usize> = (0..placed.len()).filter(|i| overlaps(&local.server, placed[*i].server)).collect();
        let name = |i: usize| {
            let role = placed[i].role;
            instance_name(role, placed[..i].iter().filter(|earlier| earlier.role == role).count())
        };
        let entry = describe(&local.server);
        let found = match matches.as_slice() {
            [found] => *found,
            [] => {
                let known = (0..placed.len()).map(|i| format!("{}: {}", name(i), describe(placed[i].server))).collect();
                return Err(fail("server_list[0]", Problem::LocalNotFound { entry, known }));
            }
            [first, second, ..] => {
                let (first, second) = (name(*first), name(*second));
                return Err(fail("server_list[0].device", Problem::LocalMatchesTwo { entry, first, second }));
            }
        };
        let (role, server) = (placed[found].role, placed[found].server);
        if let Some((suffix, found_text, expected)) = difference(&local.server, server) {
            let global = format!("{}: {}{suffix}", placed[found].file, placed[found].path);
            let problem = Problem::LocalDiffers { found: found_text, expected, instance: name(found), global };
            return Err(fail(&format!("server_list[0]{suffix}"), problem));
        }
        Ok(Identity {
            role,
            index: placed[..found].iter().filter(|earlier| earlier.role == role).count(),
            instance: name(found),
            server_ip: server.server_ip.ip(),
            devices: server.devices.clone(),
            port: server.port,
            file: local.file.clone(),
        })
    }

    /// Refuses to run as `role` if the tables say otherwise.
    pub fn require_role(&self, role: Role) -> Result<(), Error> {
        if self.role == role {
            return Ok(());
        }
        let problem = Problem::RoleMismatch { found: self.role, expected: role };
        Err(Error::new(&self.file, "server_list[0]", problem))
    }

    /// `--tensor-parallel-size` must be the number of devices.
    pub fn require_tensor_parallel_size(&self, size: usize) -> Result<(), Error> {
        let expected = self.devices.len();
        if size == expected {
            return Ok(());
        }
        let instance = self.instance.clone();
        Err(Error::new(
            "command line",
            "--tensor-parallel-size",
            Problem::TensorParallelSize { found: size, expected, instance },
        ))
    }

    /// The port listened on must be the one that the scheduler will call, as far as it is known.
    pub fn require_port(&self, port: u16, instances: &[InstanceEntry]) -> Result<(), Error> {
        let known = instances.iter().find(|entry| entry.name == self.instance).and_then(|entry| entry.port);
        match known.or(self.port) {
            Some(expected) if expected != port => {
                let instance = self.instance.clone();
                Err(Error::new("command line", "--port", Problem::ListenPort { found: port, expected, instance }))
            }
            _ => Ok(()),
        }
    }
}

/// Prefill instances, then decode instances, in table order: the order of `NODE_PORTS`.
pub fn instances(global: &GlobalRankTable) -> Vec<InstanceEntry> {
    let entry = |role: Role, (index, server): (usize, &Server)| InstanceEntry {
        name: instance_name(role, index),
        role,
        server_ip: server.server_ip.ip(),
        devices: server.devices.clone(),
        port: server.port,
    };
    let of = |role: Role| global.servers(role).iter().enumerate().map(move |item| entry(role, item));
    of(Role::Prefill).chain(of(Role::Decode)).collect()
}

/// The same with every `port` known: from `NODE_PORTS`, or else from the table's own `port` keys.
///
/// # Errors
/// A wrong number of ports, one port twice on a machine, two sources that disagree, or an instance without a port.
pub fn instances_with_ports(
    global: &GlobalRankTable,
    node_ports: Option<&NodePorts>,
) -> Result<Vec<InstanceEntry>, Error> {
    let mut entries = instances(global);
    let Some(NodePorts(ports)) = node_ports else {
        return match entries.iter().position(|entry| entry.port.is_none()) {
            Some(i) => {
                let instance = entries.swap_remove(i).name;
                Err(Error::new("environment", "NODE_PORTS", Problem::PortMissing { instance }))
            }
            None => Ok(entries),
        };
    };
    let fail = |path: String, problem| Err(Error::new("environment", path, problem));
    if ports.len() != entries.len() {
        let order = entries.iter().map(|entry| entry.name.as_str()).collect::<Vec<_>>().join(", ");
        let problem = Problem::NodePortsLength { found: ports.len(), expected: entries.len(), order };
        return fail("NODE_PORTS".to_owned(), problem);
    }
    let mut taken: HashMap<(IpAddr, u16), String> = HashMap::new();
    let scheduler = global.scheduler();
    taken
        .extend(scheduler.port.map(|port| ((scheduler.server_ip.ip(), port), format!("{}: scheduler", global.file()))));
    for (i, (entry, port)) in entries.iter_mut().zip(ports).enumerate() {
        let place = format!("NODE_PORTS[{i}]");
        if let Some(expected) = entry.port.filter(|known| known != port) {
            let problem = Problem::PortDisagrees { found: *port, expected, instance: entry.name.clone() };
            return fail(place, problem);
        }
        if let Some(first) = taken.insert((entry.server_ip, *port), place.clone()) {
            return fail(place, Problem::PortTwice { port: *port, server: entry.server_ip.to_string(), first });
        }
        entry.port = Some(*port);
    }
    Ok(entries)
}

/// Same machine, and a device in common or both without: the same instance, if the rest is equal too.
fn overlaps(local: &Server, global: &Server) -> bool {
    let no_device = local.devices.is_empty() && global.devices.is_empty();
    local.same_machine(global)
        && (no_device || local.device_ids().any(|id| global.device_ids().any(|other| other == id)))
}

/// The first difference: path inside the entry, local value, global value. A port that one table leaves out is none.
fn difference(local: &Server, global: &Server) -> Option<(String, String, String)> {
    let differ = |suffix: String, local: String, global: String| (local != global).then_some((suffix, local, global));
    let quoted = |value: &dyn std::fmt::Display| format!("\"{value}\"");
    let ids = |server: &Server| {
        let ids: Vec<String> = server.device_ids().map(|id| id.to_string()).collect();
        format!("devices {}", ids.join(","))
    };
    let device = |(i, (ours, theirs)): (usize, (&Device, &Device))| {
        let path = |key| format!(".device[{i}].{key}");
        differ(path("device_ip"), quoted(&ours.device_ip), quoted(&theirs.device_ip))
    };
    differ(".server_id".into(), quoted(&local.server_id), quoted(&global.server_id))
        .or_else(|| differ(".server_ip".into(), quoted(&local.server_ip.ip()), quoted(&global.server_ip.ip())))
        .or_else(|| differ(".device".into(), ids(local), ids(global)))
        .or_else(|| local.devices.iter().zip(&global.devices).enumerate().find_map(device))
        .or_else(|| differ(".port".into(), quoted(&local.port?), quoted(&global.port?)))
}

/// `10.0.0.18 devices 4,5`
fn describe(server: &Server) -> String {
    let ids: Vec<String> = server.device_ids().map(|id| id.to_string()).collect();
    match ids.len() {
        0 => format!("{} without device", server.server_ip),
        1 => format!("{} device {}", server.server_ip, ids[0]),
        _ => format!("{} devices {}", server.server_ip, ids.join(",")),
    }
}
