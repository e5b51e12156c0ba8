//! The three documents: one machine's table, the cluster's table, one instance's table.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use crate::Error;
use crate::check::{Placed, Scope, check, list_path};

/// What an instance does in the cluster. The group id in the table is its number: 0, 1, 2.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Role {
    Scheduler,
    Prefill,
    Decode,
}

impl Role {
    /// In the order of their groups.
    pub const ALL: [Role; 3] = [Role::Scheduler, Role::Prefill, Role::Decode];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Scheduler => "scheduler",
            Role::Prefill => "prefill",
            Role::Decode => "decode",
        }
    }

    /// The group of a global table that lists this role.
    pub fn group(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A machine's address: an IP, or `localhost` as the tables allow it. Written back as it was read.
#[derive(Clone, Debug)]
pub struct ServerAddress {
    text: String,
    ip: IpAddr,
}

impl ServerAddress {
    /// `None` unless `text` is an IP address or `localhost`.
    pub fn parse(text: &str) -> Option<Self> {
        let ip = if text == "localhost" { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { text.parse().ok()? };
        Some(Self { text: text.to_owned(), ip })
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// `localhost` is 127.0.0.1.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }
}

impl From<IpAddr> for ServerAddress {
    fn from(ip: IpAddr) -> Self {
        Self { text: ip.to_string(), ip }
    }
}

/// Two spellings of one address are equal.
impl PartialEq for ServerAddress {
    fn eq(&self, other: &Self) -> bool {
        self.ip == other.ip
    }
}
impl Eq for ServerAddress {}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One accelerator (or, on a CPU machine, one share of its cores) of an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Physical number on its machine.
    pub device_id: u32,
    /// Where KV reaches the device.
    pub device_ip: IpAddr,
    /// Number inside the instance, from 0.
    pub rank_id: u32,
}

/// One entry of a `server_list`: one instance, not one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Names the machine; usually the same text as `server_ip`.
    pub server_id: String,
    pub server_ip: ServerAddress,
    /// In rank order; empty for the scheduler only.
    pub devices: Vec<Device>,
    /// Port that the instance listens on, if the table says so.
    pub port: Option<u16>,
}

impl Server {
    pub fn device_ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.devices.iter().map(|device| device.device_id)
    }

    /// Whether both entries lie on one machine.
    pub(crate) fn same_machine(&self, other: &Server) -> bool {
        self.server_id == other.server_id || self.server_ip == other.server_ip
    }
}

/// Three groups of entries, each well formed; nothing is said about how they fit together.
#[derive(Clone, Debug)]
pub(crate) struct Groups {
    /// Where the document came from, for errors.
    pub(crate) file: String,
    /// Indexed by [`Role::group`].
    pub(crate) lists: [Vec<Server>; 3],
}

impl PartialEq for Groups {
    fn eq(&self, other: &Self) -> bool {
        self.lists == other.lists
    }
}
impl Eq for Groups {}

/// What `gen` writes on one machine: its own instances only, so groups may be empty. Merge them to get a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRankTable(pub(crate) Groups);

/// A whole cluster: exactly one scheduler, at least one decode instance, no device used twice.
///
/// With no prefill instance the decode instances compute prompts themselves. The file it came from is not part of equality.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GlobalRankTable(pub(crate) Groups);

/// One instance's own entry. It says nothing about the role: see [`crate::Identity::resolve`].
#[derive(Clone, Debug)]
pub struct LocalRankTable {
    pub(crate) file: String,
    pub(crate) server: Server,
}

impl PartialEq for LocalRankTable {
    fn eq(&self, other: &Self) -> bool {
        self.server == other.server
    }
}
impl Eq for LocalRankTable {}

impl GlobalRankTable {
    /// Where it was read from.
    pub fn file(&self) -> &str {
        &self.0.file
    }

    pub fn scheduler(&self) -> &Server {
        &self.0.lists[Role::Scheduler.group()][0]
    }

    /// The entries of one role in table order, which is the order of `NODE_PORTS`.
    pub fn servers(&self, role: Role) -> &[Server] {
        &self.0.lists[role.group()]
    }

    pub fn prefill(&self) -> &[Server] {
        self.servers(Role::Prefill)
    }

    pub fn decode(&self) -> &[Server] {
        self.servers(Role::Decode)
    }

    /// Every instance's own table with its name, scheduler first.
    pub fn local_tables(&self) -> Vec<(String, LocalRankTable)> {
        self.0.named().map(|(name, server)| (name, LocalRankTable::of(server))).collect()
    }
}

impl HostRankTable {
    /// Every instance's own table with its name, scheduler first; the names count this machine's instances only.
    pub fn local_tables(&self) -> Vec<(String, LocalRankTable)> {
        self.0.named().map(|(name, server)| (name, LocalRankTable::of(server))).collect()
    }

    /// The entries of one role with their names, which count this machine's instances only.
    pub fn instances(&self, role: Role) -> impl Iterator<Item = (String, &Server)> {
        self.0.lists[role.group()].iter().enumerate().map(move |(i, server)| (instance_name(role, i), server))
    }

    /// Checks that this one machine is a whole cluster.
    pub fn into_global(self) -> Result<GlobalRankTable, Error> {
        match check(&self.0.file, &self.0.placed(), Scope::Cluster).into_iter().next() {
            Some(error) => Err(error),
            None => Ok(GlobalRankTable(self.0)),
        }
    }
}

impl Groups {
    /// Every entry with its place in the file, scheduler first.
    pub(crate) fn placed(&self) -> Vec<Placed<'_>> {
        let file = self.file.as_str();
        let place = |role: Role| {
            let entries = self.lists[role.group()].iter().enumerate();
            entries.map(move |(i, server)| Placed { file, path: format!("{}[{i}]", list_path(role)), role, server })
        };
        Role::ALL.into_iter().flat_map(place).collect()
    }

    fn named(&self) -> impl Iterator<Item = (String, &Server)> {
        let of =
            |role: Role| self.lists[role.group()].iter().enumerate().map(move |(i, s)| (instance_name(role, i), s));
        Role::ALL.into_iter().flat_map(of)
    }
}

/// `scheduler`, `prefill-0`, `decode-1`.
pub(crate) fn instance_name(role: Role, index: usize) -> String {
    match role {
        Role::Scheduler => role.to_string(),
        Role::Prefill | Role::Decode => format!("{role}-{index}"),
    }
}

impl LocalRankTable {
    /// The local table of one entry of a global table.
    pub fn of(server: &Server) -> Self {
        Self { file: String::new(), server: server.clone() }
    }

    pub fn file(&self) -> &str {
        &self.file
    }

    pub fn server(&self) -> &Server {
        &self.server
    }
}
