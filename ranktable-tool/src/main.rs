use clap::Parser;

/// Writes, merges, checks and shows rank tables: which instances make a cluster, on which machines and devices.
#[derive(Parser)]
#[command(name = "ranktable-tool", version)]
struct Cli {
    #[command(flatten)]
    args: ranktable_tool::Args,
}

fn main() -> anyhow::Result<()> {
    ranktable_tool::run(Cli::parse().args)
}
