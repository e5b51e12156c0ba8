//! Where this instance stands in the rank tables: found at start, and again when a scheduler comes that has read another table.
//!
//! A table may gain and lose lines while instances run. An instance that its tables still describe goes on under the name and hash
//! of the new one; one that they describe otherwise must be started anew.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use ranktable::{Device, GlobalRankTable, Identity, LocalRankTable, NodePorts};
use types::{InstanceId, Role};

use crate::WorkerArgs;
use crate::config::ConfigError;

/// This instance's line of the tables.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) instance: InstanceId,
    /// Of the global table; all roles must have read the same.
    pub(crate) table_hash: String,
    pub(crate) identity: Identity,
    pub(crate) port: u16,
}

/// What a running instance cannot change: it must be what a table that is read again says.
#[derive(Clone, Debug)]
pub struct Tables {
    args: WorkerArgs,
    role: Role,
    address: SocketAddr,
    devices: Vec<Device>,
}

impl Place {
    /// # Errors
    /// Tables that cannot be read or used, or that know this instance under another role or port.
    pub(crate) fn find(args: &WorkerArgs, role: Role) -> Result<Self, ConfigError> {
        let (global, local) = files(args)?;
        let global = GlobalRankTable::load(global)?;
        let identity = Identity::resolve(&global, &LocalRankTable::load(local)?)?;
        identity.require_role(match role {
            Role::Scheduler => ranktable::Role::Scheduler,
            Role::Prefill => ranktable::Role::Prefill,
            Role::Decode => ranktable::Role::Decode,
        })?;
        let port = port(args, &global, &identity)?;
        Ok(Self { instance: identity.instance.clone().into(), table_hash: global.hash(), identity, port })
    }

    pub(crate) fn server_ip(&self) -> IpAddr {
        self.identity.server_ip
    }

    /// To find it again.
    pub(crate) fn tables(&self, args: &WorkerArgs, role: Role) -> Tables {
        let address = SocketAddr::new(self.server_ip(), self.port);
        Tables { args: args.clone(), role, address, devices: self.identity.devices.clone() }
    }
}

impl Tables {
    /// The line as it is now.
    ///
    /// # Errors
    /// Those of [`Place::find`], or another address or other devices than this process has.
    pub(crate) fn find(&self) -> Result<Place, ConfigError> {
        let place = Place::find(&self.args, self.role)?;
        let address = SocketAddr::new(place.server_ip(), place.port);
        if address != self.address || place.identity.devices != self.devices {
            return Err(ConfigError::Moved { instance: place.instance, before: self.address, now: address });
        }
        Ok(place)
    }
}

fn files(args: &WorkerArgs) -> Result<(&Path, &Path), ConfigError> {
    match (&args.global_rank_table, &args.rank_table) {
        (Some(global), Some(local)) => Ok((global, local)),
        (global, local) => {
            let unset = [(global, "GLOBAL_RANK_TABLE_FILE_PATH"), (local, "RANK_TABLE_FILE_PATH")];
            let names: Vec<_> = unset.iter().filter(|(path, _)| path.is_none()).map(|(_, name)| *name).collect();
            Err(ConfigError::NoTables { missing: names.join(" and ") })
        }
    }
}

/// The port given, checked against the one that the scheduler will call, or that one.
fn port(args: &WorkerArgs, global: &GlobalRankTable, identity: &Identity) -> Result<u16, ConfigError> {
    let node_ports = args.node_ports.as_deref().map(str::trim).filter(|ports| !ports.is_empty());
    let instances = match node_ports.map(NodePorts::parse).transpose()? {
        Some(ports) => ranktable::instances_with_ports(global, Some(&ports))?,
        None => ranktable::instances(global),
    };
    let announced = instances.iter().find(|entry| entry.name == identity.instance).and_then(|entry| entry.port);
    let port = args.port.or(announced).ok_or(ConfigError::NoPort)?;
    identity.require_port(port, &instances)?;
    Ok(port)
}
