//! The rank tables of a cluster on one machine: devices numbered from 0, every worker on a port that was free.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use ranktable::{HostPlan, PlannedInstance, Role};

use super::plan::WORKER_IP;
use crate::ports;

/// Where the tables lie and what they say about each worker.
#[derive(Debug)]
pub(super) struct Tables {
    pub(super) global: PathBuf,
    /// The scheduler's own table.
    pub(super) scheduler: PathBuf,
    pub(super) workers: Vec<WorkerTable>,
}

/// One prefill or decode instance, in table order.
#[derive(Debug)]
pub(super) struct WorkerTable {
    /// `prefill-0`, `decode-1`.
    pub(super) name: String,
    pub(super) role: Role,
    pub(super) port: u16,
    /// For KV.
    pub(super) kv_port: u16,
    pub(super) file: PathBuf,
}

/// How many instances, and how many ranks each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    /// Where the tables say that the workers are.
    pub(super) ip: IpAddr,
    pub(super) prefill: usize,
    pub(super) decode: usize,
    pub(super) tensor_parallel_size: usize,
}

impl Shape {
    /// Chooses ports and writes the global and all local tables into `dir`.
    pub(super) fn write_tables(&self, scheduler: SocketAddr, dir: &Path) -> anyhow::Result<Tables> {
        let mut ports = free_ports(2 * (self.prefill + self.decode))?;
        let kv_ports = ports.split_off(self.prefill + self.decode);
        let mut instances: Vec<_> = ports.iter().enumerate().map(|(i, &port)| self.instance(i, port)).collect();
        let decode = instances.split_off(self.prefill);
        let plan = HostPlan { ip: self.ip, scheduler: Some(Some(scheduler.port())), prefill: instances, decode };
        let table = plan.build()?.into_global()?;
        let global = dir.join("global_ranktable.json");
        table.save(&global)?;
        let mut files = Vec::new();
        for (name, local) in table.local_tables() {
            let file = dir.join(format!("local_ranktable_{name}.json"));
            local.save(&file)?;
            files.push((name, file));
        }
        let (_, scheduler) = files.remove(0);
        let roles = std::iter::repeat_n(Role::Prefill, self.prefill).chain(std::iter::repeat(Role::Decode));
        let workers = files.into_iter().zip(roles).zip(ports.into_iter().zip(kv_ports));
        let workers = workers
            .map(|(((name, file), role), (port, kv_port))| WorkerTable { name, role, port, kv_port, file })
            .collect();
        Ok(Tables { global, scheduler, workers })
    }

    fn instance(&self, index: usize, port: u16) -> PlannedInstance {
        let size = self.tensor_parallel_size;
        let devices = (index * size..(index + 1) * size).map(|device| (device as u32, self.ip)).collect();
        PlannedInstance { devices, port: Some(port) }
    }
}

/// Ports that are free now. They are held until all are known, so that they differ.
fn free_ports(count: usize) -> anyhow::Result<Vec<u16>> {
    let held = (0..count).map(|_| ports::hold_port(WORKER_IP)).collect::<Result<Vec<_>, _>>();
    let held = held.context("no free port for the workers")?;
    held.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use ranktable::{GlobalRankTable, Identity, LocalRankTable};

    #[test]
    fn every_worker_finds_itself_in_the_tables() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { ip: [127, 0, 0, 1].into(), prefill: 2, decode: 1, tensor_parallel_size: 2 };
        let tables = shape.write_tables("127.0.0.1:9000".parse().unwrap(), dir.path()).unwrap();
        let global = GlobalRankTable::load(&tables.global).unwrap();
        assert_eq!(tables.workers.len(), 3);
        for worker in &tables.workers {
            let identity = Identity::resolve(&global, &LocalRankTable::load(&worker.file).unwrap()).unwrap();
            assert_eq!((identity.instance, identity.role), (worker.name.clone(), worker.role));
            assert_eq!((identity.port, identity.devices.len()), (Some(worker.port), 2));
        }
        let scheduler = Identity::resolve(&global, &LocalRankTable::load(&tables.scheduler).unwrap()).unwrap();
        assert_eq!(scheduler.role, Role::Scheduler);
    }

    #[test]
    fn a_cluster_may_have_no_prefill_instance() {
        let dir = tempfile::tempdir().unwrap();
        let shape = Shape { ip: [127, 0, 0, 1].into(), prefill: 0, decode: 1, tensor_parallel_size: 1 };
        let tables = shape.write_tables("127.0.0.1:9000".parse().unwrap(), dir.path()).unwrap();
        assert_eq!(tables.workers[0].name, "decode-0");
    }
}
