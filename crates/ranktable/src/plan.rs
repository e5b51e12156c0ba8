//! Builds tables from a plan: what `gen` does for one machine and `pdserve up` for a whole cluster on it.

use std::net::IpAddr;

use crate::{Error, GlobalRankTable, HostRankTable};

/// The instances of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPlan {
    pub ip: IpAddr,
    /// This machine is the service entry (at most one of a cluster).
    pub scheduler: bool,
    pub prefill: Vec<PlannedInstance>,
    pub decode: Vec<PlannedInstance>,
}

/// One instance: its devices in rank order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedInstance {
    /// Device number and address.
    pub devices: Vec<(u32, IpAddr)>,
    pub port: Option<u16>,
}

impl HostPlan {
    /// # Errors
    /// The same as parsing the table that results: an empty instance, a device used twice, sizes that differ, a port used twice.
    pub fn build(&self) -> Result<HostRankTable, Error> {
        unimplemented!()
    }
}

/// A cluster on one machine, devices numbered from 0, instance `i` of a role on its base port + `i`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SingleHost {
    pub ip: IpAddr,
    pub prefill: usize,
    pub decode: usize,
    pub tensor_parallel_size: usize,
    pub scheduler_port: u16,
    pub prefill_base_port: u16,
    pub decode_base_port: u16,
}

/// The global table of such a cluster, ports included; [`GlobalRankTable::local_tables`] gives one table an instance.
pub fn single_host(plan: &SingleHost) -> Result<GlobalRankTable, Error> {
    let _ = plan;
    unimplemented!()
}
