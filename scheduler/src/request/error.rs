//! Why a request, or one attempt at it, cannot go on.

use std::time::Duration;

use types::{Role, Stage};

use crate::link::Failure;

/// Why a request ends without an answer. Texts go to the client: no instance, no address.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("{limit} requests are in flight, which is the limit; try again soon")]
    Overloaded { limit: usize },
    #[error("{limit} requests are waiting for room, which is the limit; try again soon")]
    LineFull { limit: usize },
    #[error("no room on any instance within {} s; try again soon", .waited.as_secs())]
    NoRoom { waited: Duration },
    #[error("no {role} instance is available; try again soon")]
    NoInstance { role: Role },
    #[error("{tokens} tokens are more than any instance can hold ({tokens_max})")]
    TooLong { tokens: u32, tokens_max: u32 },
    #[error("the workers failed {attempts} attempts at this request; try again soon")]
    Attempts { attempts: u32 },
    #[error("the worker refused the request: {message}")]
    Rejected { message: String },
    #[error("{unread} bytes of the answer were not read; the stream was cancelled")]
    SlowReader { unread: usize },
    #[error("internal error")]
    Internal,
}

/// Why an attempt ended early: it failed (and another may follow), or the request as a whole cannot go on.
pub(super) enum Broken {
    Attempt(Stage, Failure),
    Request(RequestError),
}

/// Why tokens could not be taken.
pub(super) enum Taken {
    Unexpected(Failure),
    Request(RequestError),
}

impl Taken {
    pub(super) fn during(self, stage: Stage) -> Broken {
        match self {
            Taken::Unexpected(failure) => Broken::Attempt(stage, failure),
            Taken::Request(error) => Broken::Request(error),
        }
    }
}

impl From<RequestError> for Broken {
    fn from(error: RequestError) -> Self {
        Broken::Request(error)
    }
}

/// Says at which stage an attempt failed.
pub(super) fn at(stage: Stage) -> impl Fn(Failure) -> Broken {
    move |failure| Broken::Attempt(stage, failure)
}
