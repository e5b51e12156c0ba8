//! Which instance of the cluster a process is: its local entry found in the global table.

use std::net::IpAddr;

use crate::{Device, Error, GlobalRankTable, LocalRankTable, NodePorts, Role};

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
    /// The port that the table gives, if it does.
    pub port: Option<u16>,
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
    pub fn resolve(global: &GlobalRankTable, local: &LocalRankTable) -> Result<Identity, Error> {
        let _ = (global, local);
        unimplemented!()
    }

    /// Refuses to run as `role` if the tables say otherwise.
    pub fn require_role(&self, role: Role) -> Result<(), Error> {
        let _ = (role, &self.file);
        unimplemented!()
    }

    /// `--tensor-parallel-size` must be the number of devices.
    pub fn require_tensor_parallel_size(&self, size: usize) -> Result<(), Error> {
        let _ = size;
        unimplemented!()
    }

    /// The port listened on must be the one that the scheduler will call, as far as it is known.
    pub fn require_port(&self, port: u16, instances: &[InstanceEntry]) -> Result<(), Error> {
        let _ = (port, instances);
        unimplemented!()
    }
}

/// Prefill instances, then decode instances, in table order: the order of `NODE_PORTS`.
pub fn instances(global: &GlobalRankTable) -> Vec<InstanceEntry> {
    let _ = global;
    unimplemented!()
}

/// The same with every `port` known: from `NODE_PORTS`, or else from the table's own `port` keys.
///
/// # Errors
/// A wrong number of ports, one port twice on a machine, two sources that disagree, or an instance without a port.
pub fn instances_with_ports(global: &GlobalRankTable, node_ports: Option<&NodePorts>) -> Result<Vec<InstanceEntry>, Error> {
    let _ = (global, node_ports);
    unimplemented!()
}
