//! Joins the tables of several machines into the cluster's.

use crate::check::{Placed, Scope, check, check_loopback};
use crate::document::Groups;
use crate::{Error, GlobalRankTable, HostRankTable, Role};

/// Concatenates equal groups in the order of the arguments; that order is the order of `NODE_PORTS`.
///
/// # Errors
/// Not exactly one scheduler, no decode instance, the same instance or device twice, sizes that differ, or a loopback
/// address: on every machine that means another one. The first thing that is wrong is returned; it names the table it is in.
pub fn merge(tables: &[HostRankTable]) -> Result<GlobalRankTable, Error> {
    let placed: Vec<Placed<'_>> = tables.iter().flat_map(|table| table.0.placed()).collect();
    let mut errors = if tables.len() > 1 { check_loopback(&placed) } else { Vec::new() };
    errors.extend(check("merged table", &placed, Scope::Cluster));
    if let Some(error) = errors.into_iter().next() {
        return Err(error);
    }
    let list = |role: Role| tables.iter().flat_map(|table| table.0.lists[role.group()].iter().cloned()).collect();
    Ok(GlobalRankTable(Groups { file: "merged table".to_owned(), lists: Role::ALL.map(list) }))
}
