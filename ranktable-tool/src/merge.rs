//! `merge`: the tables of all machines joined into the cluster's.

use std::io::Write;
use std::path::PathBuf;

use ranktable::HostRankTable;

use crate::args::Save;
use crate::error::Error;
use crate::{generate, validate};

pub(crate) fn run(files: &[PathBuf], save: &Save, out: &mut dyn Write) -> Result<(), Error> {
    if files.is_empty() {
        return Err(Error::NoTables);
    }
    let tables = files.iter().map(|file| HostRankTable::load(file)).collect::<Result<Vec<_>, _>>()?;
    let table = ranktable::merge(&tables)?;
    generate::make_directory(&save.save_dir)?;
    let path = save.save_dir.join("global_ranktable_merge.json");
    table.save(&path)?;
    writeln!(out, "wrote {}: {}", path.display(), validate::summary(&table))?;
    writeln!(out, "copy it to every machine: all roles read the identical file")?;
    Ok(())
}
