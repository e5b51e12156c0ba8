//! The global rank table: who should exist. Read at start and again whenever its file changes, while requests run.
//!
//! An instance is known by its role and address. Lines that stay keep their connection; a new line is connected to at once; what a
//! line that went still has to do, it finishes. A file that cannot be used (half-written, say) changes nothing.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ranktable::{GlobalRankTable, NodePorts};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;
use types::{InstanceId, Role};

use crate::args::Args;
use crate::cluster::Cluster;
use crate::config::ConfigError;
use crate::connection;

/// One instance of the rank table and where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub id: InstanceId,
    pub role: Role,
    pub address: SocketAddr,
}

/// The file, and the flags that its lines must agree with.
#[derive(Clone, Debug)]
pub struct TableFile {
    path: PathBuf,
    node_ports: Option<NodePorts>,
    tensor_parallel_size: Option<u32>,
    listen: SocketAddr,
}

/// Who should exist, in table order: prefill first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    pub instances: Vec<Target>,
    /// Workers must have read the same.
    pub hash: String,
}

impl TableFile {
    /// A table whose `port` keys say where the instances listen.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let listen = SocketAddr::from(([0, 0, 0, 0], 0));
        Self { path: path.into(), node_ports: None, tensor_parallel_size: None, listen }
    }

    pub(crate) fn from_args(args: &Args) -> Result<Self, ConfigError> {
        Ok(Self {
            path: args.global_rank_table.clone(),
            node_ports: args.node_ports.as_deref().map(NodePorts::parse).transpose()?,
            tensor_parallel_size: args.tensor_parallel_size,
            listen: SocketAddr::new(args.host, args.port),
        })
    }

    /// The instances of the file with their addresses.
    ///
    /// # Errors
    /// The file cannot be read or used, or it disagrees with the flags; the text names the place and the fix.
    pub fn read(&self) -> Result<Table, ConfigError> {
        let table = GlobalRankTable::load(&self.path)?;
        Ok(Table { instances: self.targets(&table)?, hash: table.hash() })
    }

    fn targets(&self, table: &GlobalRankTable) -> Result<Vec<Target>, ConfigError> {
        let entries = ranktable::instances_with_ports(table, self.node_ports.as_ref())?;
        let mut targets = Vec::with_capacity(entries.len());
        for entry in entries {
            if let Some(size) = self.tensor_parallel_size.filter(|&size| size as usize != entry.devices.len()) {
                let (instance, devices, file) = (entry.name, entry.devices.len(), table.file().to_owned());
                return Err(ConfigError::TensorParallelSize { size, instance, devices, file });
            }
            let role = match entry.role {
                ranktable::Role::Prefill => Role::Prefill,
                ranktable::Role::Decode => Role::Decode,
                ranktable::Role::Scheduler => continue,
            };
            let address = SocketAddr::new(entry.server_ip, entry.port.unwrap_or_default());
            let id = InstanceId::from(entry.name);
            if address == self.listen {
                return Err(ConfigError::OwnAddress { listen: self.listen, instance: id });
            }
            targets.push(Target { id, role, address });
        }
        Ok(targets)
    }

    /// As [`TableFile::read`], beside the async threads.
    async fn look(&self) -> Result<Table, String> {
        let file = self.clone();
        let read = tokio::task::spawn_blocking(move || file.read()).await;
        read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }
}

/// Keeps a connection to every instance of the table, and looks at its file, if there is one, for ever.
pub(crate) async fn keep(cluster: Arc<Cluster>, file: Option<TableFile>, every: Duration) {
    let mut keepers = JoinSet::new();
    for slot in cluster.slots() {
        keepers.spawn(connection::keep(cluster.clone(), slot));
    }
    let Some(file) = file else { return while keepers.join_next().await.is_some() {} };
    let mut looks = interval(every);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut complaint = None;
    loop {
        tokio::select! {
            biased;
            Some(_) = keepers.join_next() => continue,
            _ = looks.tick() => {}
        }
        let found = file.look().await;
        match found {
            Ok(table) => {
                complaint = None;
                let added = cluster.list(&table);
                added.into_iter().for_each(|slot| drop(keepers.spawn(connection::keep(cluster.clone(), slot))));
            }
            // Once for each thing that is wrong.
            Err(error) if complaint.as_ref() != Some(&error) => {
                warn!(%error, "rank table changed and cannot be used: the last good one stays");
                complaint = Some(error);
            }
            Err(_) => {}
        }
    }
}
