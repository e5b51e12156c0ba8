//! The chassis both workers sit on: engine thread, identity, health, drain.
