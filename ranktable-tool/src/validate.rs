//! `validate`: says OK for each thing that is right, or lists everything that is wrong.

use std::fmt::Write as _;
use std::io::Write;
use std::path::Path;

use ranktable::{
    GlobalRankTable, HostRankTable, Identity, InstanceEntry, LocalRankTable, NodePorts, instances_with_ports,
};

use crate::args::Validate;
use crate::error::Error;

pub(crate) fn run(args: &Validate, out: &mut dyn Write) -> Result<(), Error> {
    let mut report = Report { out, problems: 0 };
    let mut tables = Vec::new();
    for file in &args.global {
        if args.part {
            report.part(file)?;
        } else {
            tables.extend(report.global(file)?);
        }
    }
    let locals = args.local.iter().map(|file| report.local(file)).collect::<Result<Vec<_>, _>>()?;
    let ports = args.node_ports.as_deref().map(NodePorts::parse);
    for table in &tables {
        for local in locals.iter().flatten() {
            report.identity(table, local)?;
        }
        if let Some(ports) = &ports {
            report.ports(table, ports.clone())?;
        }
    }
    match report.problems {
        0 => Ok(()),
        problems => Err(Error::Invalid { problems }),
    }
}

/// Prints, and counts what is wrong.
struct Report<'a> {
    out: &'a mut dyn Write,
    problems: usize,
}

impl Report<'_> {
    fn wrong(&mut self, error: &ranktable::Error) -> Result<(), Error> {
        self.problems += 1;
        Ok(writeln!(self.out, "error: {error}")?)
    }

    /// The parsed document, or `None` after all its problems were printed.
    fn document<T>(
        &mut self,
        file: &Path,
        parse: impl FnOnce(&str, &str) -> Result<T, ranktable::Error>,
        problems: impl FnOnce(&str, &str) -> Vec<ranktable::Error>,
    ) -> Result<Option<T>, Error> {
        let name = file.display().to_string();
        let text = match ranktable::read(file) {
            Ok(text) => text,
            Err(error) => return self.wrong(&error).map(|()| None),
        };
        match parse(&name, &text) {
            Ok(document) => Ok(Some(document)),
            Err(_) => {
                problems(&name, &text).iter().try_for_each(|error| self.wrong(error))?;
                Ok(None)
            }
        }
    }

    fn global(&mut self, file: &Path) -> Result<Option<GlobalRankTable>, Error> {
        let table = self.document(file, GlobalRankTable::parse, GlobalRankTable::problems)?;
        if let Some(table) = &table {
            writeln!(self.out, "OK {}: {}", file.display(), summary(table))?;
        }
        Ok(table)
    }

    fn part(&mut self, file: &Path) -> Result<(), Error> {
        if let Some(table) = self.document(file, HostRankTable::parse, HostRankTable::problems)? {
            let names: Vec<String> = table.local_tables().into_iter().map(|(name, _)| name).collect();
            writeln!(self.out, "OK {}: a machine with {}", file.display(), names.join(", "))?;
        }
        Ok(())
    }

    fn local(&mut self, file: &Path) -> Result<Option<LocalRankTable>, Error> {
        self.document(file, LocalRankTable::parse, LocalRankTable::problems)
    }

    fn identity(&mut self, table: &GlobalRankTable, local: &LocalRankTable) -> Result<(), Error> {
        match Identity::resolve(table, local) {
            Ok(identity) => Ok(writeln!(self.out, "OK {}: {}", local.file(), identity.instance)?),
            Err(error) => self.wrong(&error),
        }
    }

    fn ports(&mut self, table: &GlobalRankTable, ports: Result<NodePorts, ranktable::Error>) -> Result<(), Error> {
        match ports.and_then(|ports| instances_with_ports(table, Some(&ports))) {
            Ok(entries) => Ok(writeln!(self.out, "OK NODE_PORTS: {}", addresses(&entries))?),
            Err(error) => self.wrong(&error),
        }
    }
}

/// `2 prefill x 2 devices, 1 decode x 4 devices, hash 0123456789abcdef`
pub(crate) fn summary(table: &GlobalRankTable) -> String {
    let mut text = String::new();
    for (role, servers) in [("prefill", table.prefill()), ("decode", table.decode())] {
        match servers.first().map(|server| server.devices.len()) {
            Some(1) => write!(text, "{} {role} x 1 device, ", servers.len()),
            Some(size) => write!(text, "{} {role} x {size} devices, ", servers.len()),
            None => write!(text, "no {role} (decode instances compute prompts themselves), "),
        }
        .expect("writing to a String cannot fail");
    }
    let hash = table.hash();
    format!("{text}scheduler on {}, hash {}", table.scheduler().server_ip, &hash[..16])
}

/// `prefill-0 10.0.0.18:8088, ...`
fn addresses(entries: &[InstanceEntry]) -> String {
    let address = |entry: &InstanceEntry| {
        let port = entry.port.map(|port| std::net::SocketAddr::new(entry.server_ip, port).to_string());
        format!("{} {}", entry.name, port.unwrap_or_else(|| entry.server_ip.to_string()))
    };
    entries.iter().map(address).collect::<Vec<_>>().join(", ")
}
