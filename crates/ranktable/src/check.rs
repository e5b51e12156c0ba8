//! How the entries of a table must fit together, whether they come from one file, a merge or a plan.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::{Error, Problem, Role, Server};

/// A thousand instances of eight devices need about 2 MB.
pub const MAX_FILE_BYTES: u64 = 4 << 20;
/// Instances in one group; the largest published deployments have some hundreds.
pub const MAX_INSTANCES: usize = 1024;
/// Devices in one instance; tensor parallelism does not pay beyond a few machines' worth.
pub const MAX_DEVICES: usize = 64;

/// How much of a cluster the entries must make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Scope {
    /// One machine's share: groups may be empty.
    Part,
    /// A whole cluster.
    Cluster,
}

/// An entry and where it stands, so that errors can point at it.
#[derive(Clone, Debug)]
pub(crate) struct Placed<'a> {
    pub(crate) file: &'a str,
    pub(crate) path: String,
    pub(crate) role: Role,
    pub(crate) server: &'a Server,
}

impl Placed<'_> {
    fn fail(&self, suffix: &str, problem: Problem) -> Error {
        Error::new(self.file, format!("{}{suffix}", self.path), problem)
    }

    /// This place as seen from `other`: the file is named only if it is another one.
    fn seen_from(&self, other: &Placed<'_>, suffix: &str) -> String {
        let place = format!("{}{suffix}", self.path);
        if self.file == other.file { place } else { format!("{}: {place}", self.file) }
    }
}

/// Everything that is wrong with the entries as a whole. `file` is named by errors that no single entry is guilty of.
pub(crate) fn check(file: &str, entries: &[Placed<'_>], scope: Scope) -> Vec<Error> {
    let mut errors: Vec<Error> = entries.iter().flat_map(check_entry).collect();
    errors.extend(check_counts(file, entries, scope));
    errors.extend(check_sizes(entries));
    errors.extend(check_devices(entries));
    errors.extend(check_ports(entries));
    if scope == Scope::Cluster && entries.iter().any(|entry| !entry.server.same_machine(entries[0].server)) {
        errors.extend(check_loopback(entries));
    }
    errors
}

/// One entry on its own: devices as the role demands, ranks counting up from 0.
pub(crate) fn check_entry(entry: &Placed<'_>) -> Vec<Error> {
    let devices = &entry.server.devices;
    let mut errors = Vec::new();
    match (entry.role, devices.len()) {
        (Role::Scheduler, 0) => {}
        (Role::Scheduler, found) => errors.push(entry.fail(".device", Problem::SchedulerHasDevice { found })),
        (role, 0) => errors.push(entry.fail(".device", Problem::MissingDevice { role })),
        (_, found) if found > MAX_DEVICES => errors.push(entry.fail(".device", Problem::TooManyDevices { found })),
        _ => errors.extend(check_ranks(entry)),
    }
    errors
}

/// Only the first wrong rank is told: the ones after it follow from it.
pub(crate) fn check_ranks(entry: &Placed<'_>) -> Option<Error> {
    let devices = &entry.server.devices;
    let (index, expected, found) =
        (0..).zip(devices).enumerate().map(|(i, (rank, d))| (i, rank, d.rank_id)).find(|(_, rank, id)| rank != id)?;
    let twice = devices[..index].iter().any(|earlier| earlier.rank_id == found);
    let problem = if twice { Problem::RankTwice { found, expected } } else { Problem::RankGap { found, expected } };
    Some(entry.fail(&format!(".device[{index}].rank_id"), problem))
}

fn check_counts(file: &str, entries: &[Placed<'_>], scope: Scope) -> Vec<Error> {
    let mut errors = Vec::new();
    let whole = |path: &str, problem| Error::new(file, path, problem);
    let of = |role| entries.iter().filter(move |entry| entry.role == role);
    for role in Role::ALL {
        let found = of(role).count();
        if found > MAX_INSTANCES {
            errors.push(whole(&list_path(role), Problem::TooManyInstances { found }));
        }
    }
    let mut schedulers = of(Role::Scheduler);
    match (schedulers.next(), schedulers.next()) {
        (None, _) if scope == Scope::Cluster => {
            errors.push(whole(&list_path(Role::Scheduler), Problem::NoScheduler));
        }
        (Some(first), Some(second)) => {
            let place = first.seen_from(second, "");
            let server = second.server.server_ip.to_string();
            let problem = if first.server == second.server {
                Problem::InstanceTwice { server, first: place }
            } else {
                Problem::TwoSchedulers { first: place }
            };
            errors.push(second.fail("", problem));
        }
        _ => {}
    }
    if scope == Scope::Cluster && of(Role::Decode).next().is_none() {
        errors.push(whole(&list_path(Role::Decode), Problem::NoDecode));
    }
    errors
}

/// All instances of a role have as many devices as its first.
fn check_sizes(entries: &[Placed<'_>]) -> Vec<Error> {
    let mut errors = Vec::new();
    for role in [Role::Prefill, Role::Decode] {
        let mut instances = entries.iter().filter(|entry| entry.role == role);
        let Some(first) = instances.next() else { continue };
        let expected = first.server.devices.len();
        errors.extend(instances.filter(|entry| entry.server.devices.len() != expected).map(|entry| {
            let found = entry.server.devices.len();
            let first = first.seen_from(entry, "");
            entry.fail(".device", Problem::SizesDiffer { role, found, expected, first })
        }));
    }
    errors
}

/// A machine is known by its id and by its address; equality of either makes a device the same.
#[derive(PartialEq, Eq, Hash)]
enum Machine<'a> {
    Id(&'a str),
    Ip(IpAddr),
}

fn machine_keys(server: &Server) -> [Machine<'_>; 2] {
    [Machine::Id(&server.server_id), Machine::Ip(server.server_ip.ip())]
}

/// No device belongs to two instances, nor twice to one.
fn check_devices(entries: &[Placed<'_>]) -> Vec<Error> {
    let mut errors = Vec::new();
    let mut seen: HashMap<(Machine<'_>, u32), (usize, usize)> = HashMap::new();
    for (e, entry) in entries.iter().enumerate() {
        let mut clashes = Vec::new();
        for (d, device) in entry.server.devices.iter().enumerate() {
            let id = device.device_id;
            let keys = || machine_keys(entry.server).into_iter().map(move |machine| (machine, id));
            match keys().find_map(|key| seen.get(&key).copied()) {
                Some(first) => clashes.push((d, first)),
                None => seen.extend(keys().map(|key| (key, (e, d)))),
            }
        }
        errors.extend(device_errors(entries, e, &clashes));
    }
    errors
}

/// `clashes`: index of a device of entry `e`, and (entry, device) that had it first.
fn device_errors(entries: &[Placed<'_>], e: usize, clashes: &[(usize, (usize, usize))]) -> Vec<Error> {
    let entry = &entries[e];
    let server = entry.server.server_ip.to_string();
    let all_of_one = clashes.first().map(|(_, (owner, _))| *owner).filter(|owner| {
        let size = entry.server.devices.len();
        *owner != e
            && entries[*owner].role == entry.role
            && entries[*owner].server.devices.len() == size
            && clashes.len() == size
            && clashes.iter().all(|(_, (other, _))| other == owner)
    });
    if let Some(owner) = all_of_one {
        let first = entries[owner].seen_from(entry, "");
        return vec![entry.fail("", Problem::InstanceTwice { server, first })];
    }
    let error = |(d, (owner, index)): &(usize, (usize, usize))| {
        let device = entry.server.devices[*d].device_id;
        let first = entries[*owner].seen_from(entry, &format!(".device[{index}].device_id"));
        let server = server.clone();
        let problem = if *owner == e {
            Problem::DeviceTwiceInInstance { device, first }
        } else if entries[*owner].file == entry.file {
            Problem::DeviceTwiceOnServer { device, server, first }
        } else {
            Problem::DeviceTwiceInMerge { device, server, first }
        };
        entry.fail(&format!(".device[{d}].device_id"), problem)
    };
    clashes.iter().map(error).collect()
}

/// No port of a machine is given to two instances.
fn check_ports(entries: &[Placed<'_>]) -> Vec<Error> {
    let mut errors = Vec::new();
    let mut seen: HashMap<(IpAddr, u16), &Placed<'_>> = HashMap::new();
    for entry in entries {
        let Some(port) = entry.server.port else { continue };
        if let Some(first) = seen.get(&(entry.server.server_ip.ip(), port)) {
            let (server, first) = (entry.server.server_ip.to_string(), first.seen_from(entry, ".port"));
            errors.push(entry.fail(".port", Problem::PortTwice { port, server, first }));
        } else {
            seen.insert((entry.server.server_ip.ip(), port), entry);
        }
    }
    errors
}

/// On several machines, `localhost` means a different one on each.
pub(crate) fn check_loopback(entries: &[Placed<'_>]) -> Vec<Error> {
    let mut errors = Vec::new();
    for entry in entries {
        let (id, ip) = (&entry.server.server_id, &entry.server.server_ip);
        if ip.ip().is_loopback() {
            errors.push(entry.fail(".server_ip", Problem::Loopback { found: ip.to_string() }));
        } else if crate::ServerAddress::parse(id).is_some_and(|id| id.ip().is_loopback()) {
            errors.push(entry.fail(".server_id", Problem::Loopback { found: id.clone() }));
        }
        for (d, device) in entry.server.devices.iter().enumerate().filter(|(_, d)| d.device_ip.is_loopback()) {
            let found = device.device_ip.to_string();
            errors.push(entry.fail(&format!(".device[{d}].device_ip"), Problem::Loopback { found }));
        }
    }
    errors
}

/// `server_group_list[1].server_list`
pub(crate) fn list_path(role: Role) -> String {
    format!("server_group_list[{}].server_list", role.group())
}
