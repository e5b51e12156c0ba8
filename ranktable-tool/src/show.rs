//! `show`: a global table as a tree of roles, instances and devices.

use std::collections::HashMap;
use std::io::Write;

use ranktable::{HostRankTable, NodePorts, Role, Server, instances_with_ports};

use crate::args::Show;
use crate::error::Error;

pub(crate) fn run(args: &Show, out: &mut dyn Write) -> Result<(), Error> {
    let table = HostRankTable::load(&args.global)?;
    let whole = table.clone().into_global();
    let mut ports = HashMap::new();
    if let Some(text) = &args.node_ports {
        let entries = instances_with_ports(whole.as_ref().map_err(Clone::clone)?, Some(&NodePorts::parse(text)?))?;
        ports.extend(entries.into_iter().filter_map(|entry| Some((entry.name, entry.port?))));
    }
    let heading = whole.map_or_else(|_| "part of a cluster".to_owned(), |whole| crate::validate::summary(&whole));
    writeln!(out, "{}: {heading}", args.global.display())?;
    for (role, last) in [(Role::Scheduler, false), (Role::Prefill, false), (Role::Decode, true)] {
        write!(out, "{}", group(&table, role, last, &ports))?;
    }
    Ok(())
}

/// One role: a branch of the tree.
fn group(table: &HostRankTable, role: Role, last: bool, ports: &HashMap<String, u16>) -> String {
    let (fork, bar) = if last { ("└── ", "    ") } else { ("├── ", "│   ") };
    let entries: Vec<(String, &Server)> = table.instances(role).collect();
    let mut text = format!("{fork}{role}{}\n", if entries.is_empty() { " (none)" } else { "" });
    for (i, (name, server)) in entries.iter().enumerate() {
        let (inner_fork, inner_bar) =
            if i + 1 == entries.len() { ("└── ", "    ") } else { ("├── ", "│   ") };
        let port = ports.get(name).copied().or(server.port);
        text.push_str(&format!("{bar}{inner_fork}{name}  {}\n", place(server, port)));
        for (d, device) in server.devices.iter().enumerate() {
            let leaf = if d + 1 == server.devices.len() { "└── " } else { "├── " };
            let (rank, id, ip) = (device.rank_id, device.device_id, device.device_ip);
            text.push_str(&format!("{bar}{inner_bar}{leaf}rank {rank}  device {id}  {ip}\n"));
        }
    }
    text
}

/// `10.0.0.18:8088`
fn place(server: &Server, port: Option<u16>) -> String {
    match port {
        Some(port) => std::net::SocketAddr::new(server.server_ip.ip(), port).to_string(),
        None => server.server_ip.to_string(),
    }
}
