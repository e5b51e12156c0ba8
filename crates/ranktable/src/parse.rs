//! Reads a document from JSON text.

use std::path::Path;

use crate::{Error, GlobalRankTable, HostRankTable, LocalRankTable};

macro_rules! reading {
    ($name:ident) => {
        impl $name {
            /// Parses and checks `text`; `file` is only for errors. Unknown keys are ignored.
            ///
            /// # Errors
            /// The first thing that is wrong; `problems` lists all of them.
            pub fn parse(file: &str, text: &str) -> Result<Self, Error> {
                let _ = (file, text);
                unimplemented!()
            }

            /// Everything that is wrong with `text`; empty = `parse` succeeds.
            pub fn problems(file: &str, text: &str) -> Vec<Error> {
                let _ = (file, text);
                unimplemented!()
            }

            /// Reads and parses a file of bounded size.
            pub fn load(path: &Path) -> Result<Self, Error> {
                let _ = path;
                unimplemented!()
            }
        }
    };
}

reading!(GlobalRankTable);
reading!(HostRankTable);
reading!(LocalRankTable);
