//! Writes, merges, checks and shows rank tables.

/// Arguments of `ranktable-tool`, and of `pdserve ranktable`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Does what the arguments ask.
pub fn run(args: Args) -> anyhow::Result<()> {
    let _ = args;
    unimplemented!()
}
