//! Builds tables from a plan: what `gen` does for one machine and `pdserve up` for a whole cluster on it.

use std::net::IpAddr;

use crate::check::{MAX_DEVICES, MAX_INSTANCES, Placed, Scope, check};
use crate::document::Groups;
use crate::{Device, Error, GlobalRankTable, HostRankTable, Problem, Role, Server};

/// The instances of one machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPlan {
    pub ip: IpAddr,
    /// `Some` = this machine is the service entry (at most one of a cluster); inside, the scheduler's port if it is to be written.
    pub scheduler: Option<Option<u16>>,
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
    /// An empty instance, a device used twice, sizes that differ or a port used twice, named by the flag
    /// (`--decode-server-list[0]`) that gave it.
    pub fn build(&self) -> Result<HostRankTable, Error> {
        let lists = [
            self.scheduler.iter().map(|port| self.server(&[], *port)).collect(),
            self.prefill.iter().map(|planned| self.server(&planned.devices, planned.port)).collect(),
            self.decode.iter().map(|planned| self.server(&planned.devices, planned.port)).collect(),
        ];
        let groups = Groups { file: "command line".to_owned(), lists };
        let mut placed = groups.placed();
        name_by_flag(&mut placed);
        match check(&groups.file, &placed, Scope::Part).into_iter().next() {
            Some(error) => Err(error),
            None => Ok(HostRankTable(groups)),
        }
    }

    fn server(&self, devices: &[(u32, IpAddr)], port: Option<u16>) -> Server {
        let device = |(rank_id, (device_id, device_ip)): (u32, &(u32, IpAddr))| Device {
            device_id: *device_id,
            device_ip: *device_ip,
            rank_id,
        };
        Server {
            server_id: self.ip.to_string(),
            server_ip: self.ip.into(),
            devices: (0..).zip(devices).map(device).collect(),
            port,
        }
    }
}

/// Errors about a plan point at what was typed.
fn name_by_flag(placed: &mut [Placed<'_>]) {
    let mut counts = [0usize; 3];
    for entry in placed {
        let index = &mut counts[entry.role.group()];
        entry.path = match entry.role {
            Role::Scheduler => "--api-server".to_owned(),
            role => format!("--{role}-server-list[{index}]"),
        };
        *index += 1;
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
///
/// # Errors
/// Too many instances or devices, a port beyond 65535 or used twice, no decode instance.
pub fn single_host(plan: &SingleHost) -> Result<GlobalRankTable, Error> {
    let refuse = |flag: &str, problem| Err(Error::new("command line", flag, problem));
    for (flag, found) in [("--prefill", plan.prefill), ("--decode", plan.decode)] {
        if found > MAX_INSTANCES {
            return refuse(flag, Problem::TooManyInstances { found });
        }
    }
    if plan.tensor_parallel_size > MAX_DEVICES {
        return refuse("--tensor-parallel-size", Problem::TooManyDevices { found: plan.tensor_parallel_size });
    }
    let prefill = planned(plan, 0..plan.prefill, plan.prefill_base_port)?;
    let decode = planned(plan, plan.prefill..plan.prefill + plan.decode, plan.decode_base_port)?;
    HostPlan { ip: plan.ip, scheduler: Some(Some(plan.scheduler_port)), prefill, decode }.build()?.into_global()
}

/// Instances `range` of the cluster: numbers of the devices follow from the instance's number.
fn planned(plan: &SingleHost, range: std::ops::Range<usize>, base_port: u16) -> Result<Vec<PlannedInstance>, Error> {
    let size = plan.tensor_parallel_size;
    let start = range.start;
    let instance = |i: usize| {
        let port = usize::from(base_port) + (i - start);
        let port = u16::try_from(port)
            .ok()
            .filter(|port| *port > 0)
            .ok_or_else(|| Error::new("command line", "--port", Problem::NotAPort { found: port.to_string() }))?;
        // Instances and devices are bounded: the product fits easily.
        let devices = (i * size..(i + 1) * size).map(|device| (device as u32, plan.ip)).collect();
        Ok(PlannedInstance { devices, port: Some(port) })
    };
    range.map(instance).collect()
}
