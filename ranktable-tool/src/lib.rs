//! Writes, merges, checks and shows rank tables.
//!
//! The documents themselves, and every rule about them, live in `ranktable`; here is what looks at the machine,
//! names files and prints.

mod address;
mod args;
mod error;
mod generate;
mod merge;
mod role;
mod show;
mod validate;

use std::io::Write;

pub use args::Args;
pub use error::Error;

use args::{Command, Mode};

/// Does what the arguments ask and prints to standard output.
pub fn run(args: Args) -> anyhow::Result<()> {
    Ok(run_to(args, &mut std::io::stdout().lock())?)
}

/// The same with the output as a value, which tests read.
pub fn run_to(args: Args, out: &mut dyn Write) -> Result<(), Error> {
    match command(args)? {
        Command::Gen { machine, save } => generate::run(&machine, &save, &address::Sources::default(), out),
        Command::Merge { tables, save } => merge::run(&tables.global_ranktable_list, &save, out),
        Command::Validate(args) => validate::run(&args, out),
        Command::Show(args) => show::run(&args, out),
        Command::Role(args) => role::run(&args, out),
    }
}

/// The original tool's flat form (`--mode gen ...`) means the subcommand of that name.
fn command(args: Args) -> Result<Command, Error> {
    let Args { command, mode, machine, tables, save } = args;
    match (command, mode) {
        (Some(command), _) => Ok(command),
        (None, Some(Mode::Gen)) => Ok(Command::Gen { machine, save }),
        (None, Some(Mode::Merge)) => Ok(Command::Merge { tables, save }),
        (None, None) => Err(Error::NoCommand),
    }
}
