//! Builds tables from a plan: what `gen` does for one machine and `pdserve up` for a whole cluster on it.

use std::net::IpAddr;

use crate::check::{Placed, Scope, check};
use crate::document::Groups;
use crate::{Device, Error, HostRankTable, Role, Server};

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
