//! What can be typed. Both forms, `gen --flag` and `--mode gen --flag`, share the flags below.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

const EXAMPLES: &str = "\
Examples:
  One machine, one prefill instance on devices 4,5 and one decode instance on 6,7:
    ranktable-tool gen --prefill-server-list 4,5 --decode-server-list 6,7 --api-server --save-dir ./save_dir
  Two instances of two devices each are two arguments:
    ranktable-tool gen --prefill-server-list 0,1 2,3 --decode-server-list 4,5 6,7 --api-server
  Several machines: gen on each (--api-server on one of them), then merge, then copy the result to all:
    ranktable-tool merge --global-ranktable-list global_ranktable_10.0.0.18.json global_ranktable_10.0.0.19.json
  Look before starting anything:
    ranktable-tool validate global_ranktable_merge.json --local local_ranktable_10.0.0.18_45.json --node-ports 8088,8089
    ranktable-tool show global_ranktable_merge.json

The original tool's form works as well: ranktable-tool --mode gen --prefill-server-list 4,5 ...";

/// Write, merge, check and show rank tables: which instances make a cluster, on which machines and devices.
#[derive(Debug, Parser)]
#[command(name = "ranktable-tool", version, args_conflicts_with_subcommands = true, after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,

    /// The subcommand as a flag, as in the original tool.
    #[arg(long, value_enum)]
    pub(crate) mode: Option<Mode>,

    #[command(flatten)]
    pub(crate) machine: Machine,

    #[command(flatten)]
    pub(crate) tables: Tables,

    #[command(flatten)]
    pub(crate) save: Save,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Mode {
    Gen,
    Merge,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write this machine's tables: the global one, and a local one for each instance.
    Gen {
        #[command(flatten)]
        machine: Machine,
        #[command(flatten)]
        save: Save,
    },
    /// Join the global tables of several machines into global_ranktable_merge.json.
    Merge {
        #[command(flatten)]
        tables: Tables,
        #[command(flatten)]
        save: Save,
    },
    /// Check tables, and all that has to agree with them, before anything is started.
    Validate(Validate),
    /// Draw the instances, devices and ports of a global table.
    Show(Show),
    /// Print the role of an instance: scheduler, prefill or decode.
    Role(Role),
}

/// The instances of this machine.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Instances of this machine (gen)")]
pub(crate) struct Machine {
    /// Prefill instances: one argument each, its device ids joined by commas.
    #[arg(long, num_args = 1.., value_name = "IDS")]
    pub(crate) prefill_server_list: Vec<String>,

    /// Decode instances: one argument each, its device ids joined by commas.
    #[arg(long, num_args = 1.., value_name = "IDS")]
    pub(crate) decode_server_list: Vec<String>,

    /// This machine is the service entry; exactly one machine of a cluster is.
    #[arg(long)]
    pub(crate) api_server: bool,

    /// Address by which the other machines reach this one [default: the first non-loopback address].
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) ip: Option<IpAddr>,

    /// Addresses of the devices, in the order in which they are listed, prefill first
    /// [default: hccn_tool, then /etc/hccn.conf, then this machine's address].
    #[arg(long, value_delimiter = ',', num_args = 1.., value_name = "ADDRESS", conflicts_with = "interface")]
    pub(crate) device_ip: Vec<IpAddr>,

    /// Network interface whose address all devices get.
    #[arg(long, value_name = "NAME")]
    pub(crate) interface: Option<String>,

    /// Ports of the prefill instances, to be written into the tables; with them NODE_PORTS is not needed.
    #[arg(long, value_delimiter = ',', value_name = "PORTS", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) prefill_ports: Vec<u16>,

    /// Ports of the decode instances.
    #[arg(long, value_delimiter = ',', value_name = "PORTS", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) decode_ports: Vec<u16>,

    /// Port of the scheduler.
    #[arg(long, value_name = "PORT", requires = "api_server", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) scheduler_port: Option<u16>,

    /// Between the device ids in a local table's file name [default: none].
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub(crate) separator: String,
}

/// The tables to merge.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Tables to join (merge)")]
pub(crate) struct Tables {
    /// Global tables, one of each machine; their order is the order of the instances, and so of NODE_PORTS.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub(crate) global_ranktable_list: Vec<PathBuf>,
}

/// Where files go.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Output")]
pub(crate) struct Save {
    /// Directory for the files; it is made if it is not there, and files of the same name are replaced.
    #[arg(long, default_value = ".", value_name = "DIR")]
    pub(crate) save_dir: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Validate {
    /// Global tables.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) global: Vec<PathBuf>,

    /// Local tables, each of which must be an entry of every global one.
    #[arg(long, num_args = 1.., value_name = "FILE")]
    pub(crate) local: Vec<PathBuf>,

    /// Ports of all prefill, then all decode instances, in the order of the table.
    #[arg(long, env = "NODE_PORTS", value_name = "PORTS")]
    pub(crate) node_ports: Option<String>,

    /// The tables are single machines' shares of a cluster, as gen writes them: groups may be empty.
    #[arg(long, conflicts_with_all = ["local", "node_ports"])]
    pub(crate) part: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Show {
    /// A global table, or one machine's share of it.
    #[arg(value_name = "FILE", env = "GLOBAL_RANK_TABLE_FILE_PATH")]
    pub(crate) global: PathBuf,

    /// Ports of all prefill, then all decode instances, in the order of the table.
    #[arg(long, env = "NODE_PORTS", value_name = "PORTS")]
    pub(crate) node_ports: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Role {
    /// The cluster's table.
    #[arg(long, value_name = "FILE", env = "GLOBAL_RANK_TABLE_FILE_PATH")]
    pub(crate) global: PathBuf,

    /// The instance's own table.
    #[arg(long, value_name = "FILE", env = "RANK_TABLE_FILE_PATH")]
    pub(crate) local: PathBuf,
}
