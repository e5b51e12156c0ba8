//! `role`: one word for start scripts.

use std::io::Write;

use ranktable::{GlobalRankTable, Identity, LocalRankTable};

use crate::args;
use crate::error::Error;

pub(crate) fn run(args: &args::Role, out: &mut dyn Write) -> Result<(), Error> {
    let identity = Identity::resolve(&GlobalRankTable::load(&args.global)?, &LocalRankTable::load(&args.local)?)?;
    Ok(writeln!(out, "{}", identity.role)?)
}
