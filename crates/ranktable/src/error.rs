//! Every way a rank table, or what is given beside it, can be wrong.
//!
//! An error prints as one line: where, what was found, what was expected, and how to fix it.

use std::fmt;

use crate::Role;

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    /// The file as it was given, or `environment`, `command line`.
    pub file: String,
    /// Where in it, for example `server_group_list[1].server_list[0].device[1].rank_id`; empty = the whole of it.
    pub path: String,
    pub problem: Problem,
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

/// What is wrong. Each variant holds the value found and what it was compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The file cannot be opened, read or written.
    Unreadable { message: String },
    TooLarge { limit: u64 },
    NotJson { message: String },
    RoleMismatch { found: Role, expected: Role },
}

pub(crate) struct Explanation {
    pub(crate) found: String,
    pub(crate) expected: String,
    pub(crate) fix: String,
}

impl Problem {
    /// The sentence parts of this problem.
    fn explain(&self) -> Explanation {
        unimplemented!()
    }
}
