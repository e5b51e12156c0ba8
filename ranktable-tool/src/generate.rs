//! `gen`: this machine's share of a cluster, as one global table and a local one for each instance.
//!
//! Everything is checked before the first file is written.

use std::collections::HashMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;

use ranktable::{HostPlan, HostRankTable, LocalRankTable, PlannedInstance};

use crate::address::{self, Sources};
use crate::args::{Machine, Save};
use crate::error::Error;

pub(crate) fn run(machine: &Machine, save: &Save, sources: &Sources, out: &mut dyn Write) -> Result<(), Error> {
    let plan = plan(machine, sources)?;
    let table = plan.build()?;
    let files = name_files(&table, plan.ip, &machine.separator)?;
    make_directory(&save.save_dir)?;
    for (name, local) in &files {
        let path = save.save_dir.join(name);
        local.save(&path)?;
        writeln!(out, "wrote {}", path.display())?;
    }
    let path = save.save_dir.join(format!("global_ranktable_{}.json", plan.ip));
    table.save(&path)?;
    writeln!(out, "wrote {}", path.display())?;
    if let Err(error) = table.into_global() {
        writeln!(out, "not a whole cluster yet ({}): merge it with the other machines' tables", missing(&error))?;
    }
    Ok(())
}

/// What a machine's share lacks. Other problems cannot be left after the share was built.
fn missing(error: &ranktable::Error) -> &'static str {
    match *error.problem {
        ranktable::Problem::NoScheduler => "no scheduler",
        _ => "no decode instance",
    }
}

pub(crate) fn make_directory(path: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(|source| Error::SaveDir { path: path.to_owned(), source })
}

fn plan(machine: &Machine, sources: &Sources) -> Result<HostPlan, Error> {
    let prefill = device_lists("--prefill-server-list", &machine.prefill_server_list)?;
    let decode = device_lists("--decode-server-list", &machine.decode_server_list)?;
    if prefill.is_empty() && decode.is_empty() && !machine.api_server {
        return Err(Error::NoInstance);
    }
    let prefill_ports = ports("--prefill-ports", &machine.prefill_ports, prefill.len())?;
    let decode_ports = ports("--decode-ports", &machine.decode_ports, decode.len())?;
    let ip = machine.ip.map_or_else(address::host, Ok)?;
    let devices = prefill.iter().chain(&decode).flatten().copied().collect::<Vec<u32>>();
    let mut addresses = device_addresses(machine, sources, &devices, ip)?.into_iter();
    let mut instances = |lists: Vec<Vec<u32>>, ports: Vec<Option<u16>>| -> Vec<PlannedInstance> {
        let instance = |(ids, port): (Vec<u32>, Option<u16>)| PlannedInstance {
            devices: ids.into_iter().zip(&mut addresses).collect(),
            port,
        };
        lists.into_iter().zip(ports).map(instance).collect()
    };
    let (prefill, decode) = (instances(prefill, prefill_ports), instances(decode, decode_ports));
    Ok(HostPlan { ip, scheduler: machine.api_server.then_some(machine.scheduler_port), prefill, decode })
}

/// `["0,1", "2,3"]`: two instances of two devices.
fn device_lists(flag: &str, arguments: &[String]) -> Result<Vec<Vec<u32>>, Error> {
    let one = |argument: &String| {
        let ids: Result<Vec<u32>, _> = argument.split(',').map(|id| id.trim().parse()).collect();
        ids.map_err(|_| Error::DeviceList { flag: flag.to_owned(), found: argument.clone() })
    };
    arguments.iter().map(one).collect()
}

/// One port for each instance, or none for any.
fn ports(flag: &str, ports: &[u16], expected: usize) -> Result<Vec<Option<u16>>, Error> {
    match ports.len() {
        0 => Ok(vec![None; expected]),
        found if found == expected => Ok(ports.iter().copied().map(Some).collect()),
        found => Err(Error::PortCount { flag: flag.to_owned(), found, expected }),
    }
}

/// One address a device.
fn device_addresses(machine: &Machine, sources: &Sources, devices: &[u32], ip: IpAddr) -> Result<Vec<IpAddr>, Error> {
    if let Some(name) = &machine.interface {
        return Ok(vec![address::of_interface(name)?; devices.len()]);
    }
    match machine.device_ip.len() {
        0 => devices.iter().map(|device| sources.device(*device, ip)).collect(),
        found if found == devices.len() => Ok(machine.device_ip.clone()),
        found => Err(Error::DeviceAddressCount { found, expected: devices.len() }),
    }
}

/// The file name of each instance's table. Ids are joined as the original tool does, so cards 1,2 and card 12 clash.
fn name_files(table: &HostRankTable, ip: IpAddr, separator: &str) -> Result<Vec<(String, LocalRankTable)>, Error> {
    let mut owners: HashMap<String, String> = HashMap::new();
    let mut files = Vec::new();
    for (_, local) in table.local_tables() {
        let ids: Vec<String> = local.server().device_ids().map(|id| id.to_string()).collect();
        let suffix = if ids.is_empty() { "host".to_owned() } else { ids.join(separator) };
        let name = format!("local_ranktable_{ip}_{suffix}.json");
        let second = ids.join(",");
        if let Some(first) = owners.insert(name.clone(), second.clone()) {
            return Err(Error::NameClash { name, first, second });
        }
        files.push((name, local));
    }
    Ok(files)
}
