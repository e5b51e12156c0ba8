//! `NODE_PORTS`: the HTTP ports of all prefill, then all decode instances, in the order of the global table.

use crate::parse::parse_port;
use crate::{Error, Problem};

/// The parsed list. Whether it fits a table is checked by [`crate::instances_with_ports`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePorts(pub(crate) Vec<u16>);

impl NodePorts {
    /// Parses `8088,8089`; blanks around a port are allowed.
    ///
    /// # Errors
    /// An item that is no number from 1 to 65535, named as `NODE_PORTS[i]`.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let port = |(i, item): (usize, &str)| {
            parse_port(item.trim()).ok_or_else(|| {
                let problem = Problem::NotAPort { found: item.trim().to_owned() };
                Error::new("environment", format!("NODE_PORTS[{i}]"), problem)
            })
        };
        text.split(',').enumerate().map(port).collect::<Result<_, _>>().map(Self)
    }

    pub fn ports(&self) -> &[u16] {
        &self.0
    }
}
