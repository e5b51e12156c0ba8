//! Whole hand-overs over every transport, between stores that are plain vectors.
//!
//! `harness` builds a pair, `raw` speaks the wire by hand; the rest are cases.

mod bounds;
mod faults;
mod forged;
mod harness;
mod leases;
mod matrix;
mod raw;
mod secret;
