//! What can go wrong around the tables: arguments that do not fit together, a machine that does not tell its addresses.

use std::net::IpAddr;
use std::path::PathBuf;

/// Each says what was found, what was expected, and how to fix it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no subcommand given; fix: start with `gen`, `merge`, `validate`, `show` or `role`, or see --help")]
    NoCommand,

    #[error(
        "{flag}: found \"{found}\", expected device ids joined by commas, for example 4,5; fix: write one argument an instance"
    )]
    DeviceList { flag: String, found: String },

    #[error(
        "gen has no instance to write; fix: give --prefill-server-list, --decode-server-list or --api-server, or several of them"
    )]
    NoInstance,

    #[error(
        "--global-ranktable-list: found no table; fix: name the global table of every machine, separated by blanks"
    )]
    NoTables,

    #[error(
        "{name}: the file name of two instances, devices {first} and devices {second}; fix: give --separator _ (or any other text) to keep the names apart"
    )]
    NameClash { name: String, first: String, second: String },

    #[error("this machine has no address but loopback ones; fix: give --ip ADDRESS")]
    NoAddress,

    #[error("the addresses of this machine cannot be listed ({0}); fix: give --ip ADDRESS")]
    Interfaces(std::io::Error),

    #[error("--interface: found \"{name}\", expected one of {known}; fix: name an interface that has an address")]
    NoInterface { name: String, known: String },

    #[error(
        "--device-ip: found {}, expected {expected}, one a device; fix: list one address for each device, prefill first",
        Count(*found, "address")
    )]
    DeviceAddressCount { found: usize, expected: usize },

    #[error("device {device} has no address: {tried}; fix: give --device-ip or --interface")]
    DeviceAddress { device: u32, tried: String },

    #[error("{flag}: found {}, expected {expected}, one an instance; fix: list as many ports as instances", Count(*found, "port"))]
    PortCount { flag: String, found: usize, expected: usize },

    #[error("{}: {source}; fix: check the directory, or give another with --save-dir", path.display())]
    SaveDir { path: PathBuf, source: std::io::Error },

    #[error("{} found, listed above", Count(*problems, "problem"))]
    Invalid { problems: usize },

    #[error(transparent)]
    Table(#[from] ranktable::Error),

    #[error("the output cannot be written: {0}")]
    Output(#[from] std::io::Error),
}

/// `1 problem`, `2 problems`, `2 addresses`
struct Count(usize, &'static str);

impl std::fmt::Display for Count {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = if self.1.ends_with('s') { "es" } else { "s" };
        write!(f, "{} {}{}", self.0, self.1, if self.0 == 1 { "" } else { plural })
    }
}

/// For messages: an interface and its address.
pub(crate) fn interface_list(interfaces: &[(String, IpAddr)]) -> String {
    let items: Vec<String> = interfaces.iter().map(|(name, ip)| format!("{name} ({ip})")).collect();
    if items.is_empty() { "none".to_owned() } else { items.join(", ") }
}
