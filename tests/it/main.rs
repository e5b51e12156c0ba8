//! All integration tests, one binary: a module says what belongs in it.
