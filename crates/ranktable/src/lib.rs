//! Rank tables: the documents that say which instances make a cluster, on which machines and devices.
//!
//! A `GlobalRankTable` in hand is a whole, consistent cluster: whatever can be wrong with the text was refused
//! with an [`Error`] that names the file, the place in it, what was found, what was expected and the fix.

mod check;
mod document;
mod error;
mod file;
mod identity;
mod merge;
mod parse;
mod plan;
mod ports;
mod write;

pub use check::{MAX_DEVICES, MAX_FILE_BYTES, MAX_INSTANCES};
pub use document::{Device, GlobalRankTable, HostRankTable, LocalRankTable, Role, Server, ServerAddress};
pub use error::{Error, Problem};
pub use file::read;
pub use identity::{Identity, InstanceEntry, instances, instances_with_ports};
pub use merge::merge;
pub use plan::{HostPlan, PlannedInstance};
pub use ports::NodePorts;
