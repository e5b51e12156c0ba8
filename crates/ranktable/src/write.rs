//! Writes the canonical form: exact key order, numbers as strings, indent 4.

use std::path::Path;

use crate::{Error, GlobalRankTable, HostRankTable, LocalRankTable};

macro_rules! writing {
    ($name:ident) => {
        impl $name {
            /// Canonical text, ending with a newline.
            pub fn to_json(&self) -> String {
                unimplemented!()
            }

            /// Writes the canonical text atomically with mode 0600: readers see the old file or the new one.
            pub fn save(&self, path: &Path) -> Result<(), Error> {
                let _ = path;
                unimplemented!()
            }
        }
    };
}

writing!(GlobalRankTable);
writing!(HostRankTable);
writing!(LocalRankTable);

impl GlobalRankTable {
    /// Hash of the canonical text in hex: equal for all instances that read the same cluster, however the file is laid out.
    pub fn hash(&self) -> String {
        unimplemented!()
    }
}
