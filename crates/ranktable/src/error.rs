//! Every way a rank table, or what is given beside it, can be wrong.
//!
//! An error prints as one line: where, what was found, what was expected, and how to fix it.

use std::fmt;

use crate::Role;
use crate::check::{MAX_DEVICES, MAX_FILE_BYTES, MAX_INSTANCES};

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// The file as it was given, or `environment`, `command line`.
    pub file: String,
    /// Where in it, for example `server_group_list[1].server_list[0].device[1].rank_id`; empty = the whole of it.
    pub path: String,
    /// Boxed, because results carry an error at every return.
    pub problem: Box<Problem>,
}

impl Error {
    pub(crate) fn new(file: impl Into<String>, path: impl Into<String>, problem: Problem) -> Self {
        Self { file: file.into(), path: path.into(), problem: Box::new(problem) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Explanation { found, expected, fix } = self.problem.explain();
        write!(f, "{}: ", self.file)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "found {found}, expected {expected}; fix: {fix}")
    }
}

/// What is wrong. Each variant holds the value found and what it was compared with; `first` is the place it clashes with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    // The file.
    Unreadable { message: String },
    Unwritable { message: String },
    TooLarge,
    NotJson { message: String },

    // One value.
    WrongType { found: String, expected: &'static str },
    MissingKey { example: &'static str },
    Version { found: String },
    Status { found: String },
    NotANumber { found: String },
    NotAPort { found: String },
    BadAddress { found: String },
    EmptyServerId,

    // Groups and counts.
    GroupCount { found: usize, missing: Vec<Role> },
    MissingGroup { missing: Role },
    GroupOrder { found: String, expected: Role },
    ServerCount { found: String, entries: usize },
    LocalEntryCount { found: usize },
    TooManyInstances { found: usize },
    TooManyDevices { found: usize },

    // Entries against each other.
    RankTwice { found: u32, expected: u32 },
    RankGap { found: u32, expected: u32 },
    DeviceTwiceInInstance { device: u32, first: String },
    DeviceTwiceOnServer { device: u32, server: String, first: String },
    DeviceTwiceInMerge { device: u32, server: String, first: String },
    InstanceTwice { server: String, first: String },
    SizesDiffer { role: Role, found: usize, expected: usize, first: String },
    SchedulerHasDevice { found: usize },
    MissingDevice { role: Role },
    NoScheduler,
    TwoSchedulers { first: String },
    NoDecode,
    Loopback { found: String },
    PortTwice { port: u16, server: String, first: String },

    // The local table against the global one.
    LocalNotFound { entry: String, known: Vec<String> },
    LocalMatchesTwo { entry: String, first: String, second: String },
    LocalDiffers { found: String, expected: String, instance: String, global: String },

    // What is given beside the tables.
    RoleMismatch { found: Role, expected: Role },
    TensorParallelSize { found: usize, expected: usize, instance: String },
    NodePortsLength { found: usize, expected: usize, order: String },
    PortDisagrees { found: u16, expected: u16, instance: String },
    PortMissing { instance: String },
    ListenPort { found: u16, expected: u16, instance: String },
}

struct Explanation {
    found: String,
    expected: String,
    fix: String,
}

fn explanation(found: impl Into<String>, expected: impl Into<String>, fix: impl Into<String>) -> Explanation {
    Explanation { found: found.into(), expected: expected.into(), fix: fix.into() }
}

/// `1 device`, `2 devices`
fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

/// `group "1" (prefill)`
fn group_name(role: Role) -> String {
    format!("group \"{}\" ({role})", role.group())
}

const GENERATE: &str = "write the file again with ranktable-tool gen or merge";
const THREE_GROUPS: &str = "exactly 3 groups: \"0\" scheduler, \"1\" prefill, \"2\" decode";
const EMPTY_GROUP: &str =
    "keep a group without instances as {\"group_id\": \"N\", \"server_count\": \"0\", \"server_list\": []}";

impl Problem {
    #[expect(clippy::too_many_lines, reason = "one flat table from problem to sentence")]
    fn explain(&self) -> Explanation {
        use Problem::*;
        match self {
            Unreadable { message } => explanation(
                format!("an unreadable file ({message})"),
                "a file that this process can read",
                "check the path and its permissions (mode 0600 means the owner only)",
            ),
            Unwritable { message } => explanation(
                format!("a place that cannot be written ({message})"),
                "a directory that this process can write to",
                "check the directory and its permissions, or choose another",
            ),
            TooLarge => explanation(
                format!("more than {MAX_FILE_BYTES} bytes"),
                format!("a rank table of at most {MAX_FILE_BYTES} bytes"),
                "check that the path names a rank table",
            ),
            NotJson { message } => explanation(format!("text that is not JSON ({message})"), "a JSON object", GENERATE),

            WrongType { found, expected } => explanation(
                found,
                *expected,
                if *expected == "a string" {
                    "put the value in double quotes: every number in a rank table is a JSON string".to_owned()
                } else {
                    format!("put {expected} here, or {GENERATE}")
                },
            ),
            MissingKey { example } => explanation("nothing", "this key", format!("add {example}")),
            Version { found } => {
                explanation(format!("\"{found}\""), "\"1.0\"", format!("{GENERATE}: other versions are not supported"))
            }
            Status { found } => explanation(
                format!("\"{found}\""),
                "\"completed\"",
                "wait until whoever writes the table has completed it, then start again",
            ),
            NotANumber { found } => explanation(
                format!("\"{found}\""),
                "a whole number from 0 to 4294967295 in decimal digits",
                "write it as a plain number in quotes, for example \"4\"",
            ),
            NotAPort { found } => explanation(
                format!("\"{found}\""),
                "a port from 1 to 65535",
                "write the HTTP port of the instance, for example 8088",
            ),
            BadAddress { found } => explanation(
                format!("\"{found}\""),
                "an IP address (or localhost as server_ip)",
                "write the address in full, for example 10.0.0.18",
            ),
            EmptyServerId => {
                explanation("\"\"", "a name of the machine", "use the machine's IP address, as ranktable-tool gen does")
            }

            GroupCount { found, missing } => {
                let without: Vec<String> = missing.iter().map(|role| group_name(*role)).collect();
                let without =
                    if without.is_empty() { String::new() } else { format!(" without {}", without.join(", ")) };
                explanation(format!("{}{without}", count(*found, "group")), THREE_GROUPS, EMPTY_GROUP)
            }
            MissingGroup { missing } => {
                explanation(format!("3 groups without {}", group_name(*missing)), THREE_GROUPS, EMPTY_GROUP)
            }
            GroupOrder { found, expected } => explanation(
                format!("\"{found}\""),
                format!("\"{}\" ({expected})", expected.group()),
                "order the groups \"0\" scheduler, \"1\" prefill, \"2\" decode",
            ),
            ServerCount { found, entries } => explanation(
                format!("\"{found}\""),
                format!("\"{entries}\", the length of server_list"),
                "correct server_count, or restore the missing entries",
            ),
            LocalEntryCount { found } => explanation(
                format!("{found} entries"),
                "exactly one: a local table describes one instance",
                "give the instance its own local_ranktable file; the global table belongs in GLOBAL_RANK_TABLE_FILE_PATH",
            ),
            TooManyInstances { found } => explanation(
                format!("{found} instances"),
                format!("at most {MAX_INSTANCES} in one group"),
                "split the cluster",
            ),
            TooManyDevices { found } => explanation(
                format!("{found} devices"),
                format!("at most {MAX_DEVICES} in one instance"),
                "use smaller instances",
            ),

            RankTwice { found, expected } => explanation(
                format!("\"{found}\" a second time"),
                format!("\"{expected}\""),
                "number the devices of each instance \"0\", \"1\", ... in the order of the list",
            ),
            RankGap { found, expected } => explanation(
                format!("\"{found}\""),
                format!("\"{expected}\": rank_id starts at 0 in every instance and counts up without gaps"),
                "number the devices of each instance \"0\", \"1\", ... in the order of the list",
            ),
            DeviceTwiceInInstance { device, first } => explanation(
                format!("device {device} twice in one instance (first at {first})"),
                "each device once",
                "list every device of the instance once",
            ),
            DeviceTwiceOnServer { device, server, first } => explanation(
                format!("device {device} of {server} in two instances (first at {first})"),
                "each device in one instance only",
                "give each instance devices of its own",
            ),
            DeviceTwiceInMerge { device, server, first } => explanation(
                format!("device {device} of {server} in two tables (first at {first})"),
                "each device in one instance only",
                "merge each machine's table once, and give every machine its own address with gen --ip",
            ),
            InstanceTwice { server, first } => explanation(
                format!("the same instance of {server} a second time (first at {first})"),
                "each instance once",
                "remove one of the two entries; merge each machine's table once",
            ),
            SizesDiffer { role, found, expected, first } => explanation(
                format!("a {role} instance of {}", count(*found, "device")),
                format!("{expected}, as in the first {role} instance ({first})"),
                format!(
                    "give all {role} instances the same number of devices: --tensor-parallel-size is one value a role"
                ),
            ),
            SchedulerHasDevice { found } => explanation(
                count(*found, "device"),
                "no device: the scheduler runs on the CPU",
                "remove the key \"device\" of the scheduler's entry",
            ),
            MissingDevice { role } => explanation(
                "no device",
                format!("at least one: a {role} instance runs on devices"),
                "list the devices of the instance, numbered from 0 on a machine without accelerators",
            ),
            NoScheduler => explanation(
                "no scheduler",
                "exactly one machine that is the service entry",
                "run gen with --api-server on one machine, then merge again",
            ),
            TwoSchedulers { first } => explanation(
                format!("a second scheduler (first at {first})"),
                "exactly one machine that is the service entry",
                "run gen with --api-server on one machine only",
            ),
            NoDecode => explanation(
                "no decode instance",
                "at least one",
                "run gen with --decode-server-list on one machine at least, then merge",
            ),
            Loopback { found } => explanation(
                format!("\"{found}\""),
                "an address that the other machines can reach",
                "run gen on that machine again with --ip ADDRESS",
            ),
            PortTwice { port, server, first } => explanation(
                format!("port {port} of {server} a second time (first at {first})"),
                "a port of its own for every instance on a machine",
                "choose another port",
            ),

            LocalNotFound { entry, known } => explanation(
                entry,
                format!("an entry of the global table ({})", known.join("; ")),
                "use the local and global tables of one run of ranktable-tool, and the merged table on every machine",
            ),
            LocalMatchesTwo { entry, first, second } => explanation(
                format!("{entry}, which overlaps {first} and {second}"),
                "the devices of exactly one instance",
                "use the local table that ranktable-tool gen wrote for this instance",
            ),
            LocalDiffers { found, expected, instance, global } => explanation(
                found,
                format!("{expected} as {instance} has it in {global}"),
                "use the local and global tables of one run of ranktable-tool",
            ),

            RoleMismatch { found, expected } => explanation(
                format!("the table of a {found} instance"),
                format!("that of a {expected} instance"),
                format!("point RANK_TABLE_FILE_PATH at a {expected} instance's table, or start this one as {found}"),
            ),
            TensorParallelSize { found, expected, instance } => explanation(
                format!("{found}"),
                format!("{expected}, the number of devices of {instance}"),
                format!("start it with --tensor-parallel-size {expected}, or change the devices in the rank tables"),
            ),
            NodePortsLength { found, expected, order } => explanation(
                count(*found, "port"),
                format!("{expected}, one an instance in the order {order}"),
                "list the HTTP ports of all prefill, then all decode instances, in the order of the global table",
            ),
            PortDisagrees { found, expected, instance } => explanation(
                format!("{found}"),
                format!("{expected}, the port of {instance} in the global table"),
                "correct one of the two, or unset NODE_PORTS",
            ),
            PortMissing { instance } => explanation(
                format!("no port of {instance}"),
                "the HTTP port of every prefill and decode instance",
                "set NODE_PORTS, for example 8088,8089, or write the tables with gen --prefill-ports and --decode-ports",
            ),
            ListenPort { found, expected, instance } => explanation(
                format!("{found}"),
                format!("{expected}, where the scheduler calls {instance}"),
                format!("start it with --port {expected}, or correct NODE_PORTS"),
            ),
        }
    }
}
