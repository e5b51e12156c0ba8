//! `NODE_PORTS`: the HTTP ports of all prefill, then all decode instances, in the order of the global table.

use crate::Error;

/// The parsed list. Whether it fits a table is checked by [`crate::instances_with_ports`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePorts(pub(crate) Vec<u16>);

impl NodePorts {
    /// Parses `8088,8089`.
    ///
    /// # Errors
    /// An item that is no number from 1 to 65535, named as `NODE_PORTS[i]`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let _ = text;
        unimplemented!()
    }

    pub fn ports(&self) -> &[u16] {
        &self.0
    }
}
