//! Finds the addresses of this machine and of its devices.
//!
//! A device's address is where KV reaches it. Ascend cards have one of their own; on NVIDIA and CPU machines it is
//! that of the network interface.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;

use crate::error::{Error, interface_list};

/// Where the addresses of Ascend cards are asked for.
#[derive(Debug)]
pub(crate) struct Sources {
    /// Called as `hccn_tool -i CARD -ip -g`.
    pub(crate) hccn_tool: PathBuf,
    /// Has lines `address_CARD=ADDRESS`.
    pub(crate) hccn_conf: PathBuf,
}

impl Default for Sources {
    fn default() -> Self {
        Self { hccn_tool: "hccn_tool".into(), hccn_conf: "/etc/hccn.conf".into() }
    }
}

/// The address of this machine unless one was given: the first that others may reach, IPv4 before IPv6.
pub(crate) fn host() -> Result<IpAddr, Error> {
    let mut candidates: Vec<IpAddr> = interfaces()?.into_iter().map(|(_, ip)| ip).collect();
    candidates.retain(|ip| !ip.is_loopback());
    candidates.sort_by_key(IpAddr::is_ipv6);
    candidates.first().copied().ok_or(Error::NoAddress)
}

/// The address of a named network interface, IPv4 before IPv6.
pub(crate) fn of_interface(name: &str) -> Result<IpAddr, Error> {
    let mut known = interfaces()?;
    known.sort_by_key(|(_, ip)| ip.is_ipv6());
    match known.iter().find(|(candidate, _)| candidate == name) {
        Some((_, ip)) => Ok(*ip),
        None => Err(Error::NoInterface { name: name.to_owned(), known: interface_list(&known) }),
    }
}

/// Addresses that are good for a table: link-local ones need a zone, which a table cannot say.
fn interfaces() -> Result<Vec<(String, IpAddr)>, Error> {
    let all = if_addrs::get_if_addrs().map_err(Error::Interfaces)?;
    Ok(all.into_iter().filter(|face| !face.is_link_local()).map(|face| (face.name.clone(), face.ip())).collect())
}

impl Sources {
    /// The address of a card, or `host` on a machine that has no Ascend software.
    ///
    /// # Errors
    /// The machine has `hccn_tool` or `hccn.conf`, but neither knows the card: its NIC would be a silent wrong answer.
    pub(crate) fn device(&self, device: u32, host: IpAddr) -> Result<IpAddr, Error> {
        let tool = self.ask_tool(device);
        if let Some(Ok(address)) = tool {
            return Ok(address);
        }
        let conf = self.read_conf(device);
        match (tool, conf) {
            (_, Some(Ok(address))) => Ok(address),
            (None, None) => Ok(host),
            (tool, conf) => {
                let tried: Vec<String> = [tool, conf].into_iter().flatten().filter_map(Result::err).collect();
                Err(Error::DeviceAddress { device, tried: tried.join("; ") })
            }
        }
    }

    /// `None`: there is no such tool.
    fn ask_tool(&self, device: u32) -> Option<Result<IpAddr, String>> {
        let name = self.hccn_tool.display();
        let output = match Command::new(&self.hccn_tool).args(["-i", &device.to_string(), "-ip", "-g"]).output() {
            Ok(output) => output,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
            Err(error) => return Some(Err(format!("{name} cannot be run ({error})"))),
        };
        let text = String::from_utf8_lossy(&output.stdout);
        let address = text.lines().find_map(|line| line.trim().strip_prefix("ipaddr:")?.trim().parse().ok());
        let said = || text.lines().next().unwrap_or("nothing").to_owned();
        Some(address.ok_or_else(|| format!("{name} -i {device} -ip -g said {:?}", said())))
    }

    /// `None`: there is no such file.
    fn read_conf(&self, device: u32) -> Option<Result<IpAddr, String>> {
        let name = self.hccn_conf.display();
        let text = match ranktable::read(&self.hccn_conf) {
            Ok(text) => text,
            Err(_) if !self.hccn_conf.exists() => return None,
            Err(error) => return Some(Err(error.to_string())),
        };
        let key = format!("address_{device}");
        let value = text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            (name.trim() == key).then(|| value.trim().to_owned())
        });
        Some(match value {
            Some(value) => value.parse().map_err(|_| format!("{name} says {key}={value}")),
            None => Err(format!("{name} has no line {key}=ADDRESS")),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    const HOST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 18));

    /// What device 4 gets with this tool (a shell script) and this hccn.conf.
    fn check(tool: Option<&str>, conf: Option<&str>, expected: Result<&str, &str>) {
        let directory = tempfile::tempdir().unwrap();
        let path = |name| directory.path().join(name);
        let sources = Sources { hccn_tool: path("hccn_tool"), hccn_conf: path("hccn.conf") };
        if let Some(script) = tool {
            fs::write(path("script"), format!("#!/bin/sh\n{script}\n")).unwrap();
            // Copied by another process: a file that this one has open for writing, even in a child forked by another test this
            // instant, could not be run ("text file busy").
            let copied = Command::new("cp").arg(path("script")).arg(&sources.hccn_tool).status().unwrap();
            assert!(copied.success());
            fs::set_permissions(&sources.hccn_tool, fs::Permissions::from_mode(0o755)).unwrap();
        }
        if let Some(text) = conf {
            fs::write(&sources.hccn_conf, text).unwrap();
        }
        let found = sources.device(4, HOST).map(|ip| ip.to_string()).map_err(|error| error.to_string());
        let place = directory.path().display().to_string();
        let found = found.map_err(|error| error.replace(&place, ""));
        assert_eq!(found.as_deref().map_err(String::as_str), expected);
    }

    #[test]
    fn tool_then_file_then_host() {
        let answers = Some("echo ipaddr:10.1.0.2$2; echo netmask:255.255.255.0");
        check(answers, Some("address_4=10.9.9.9"), Ok("10.1.0.24"));
        check(None, Some("address_3=10.1.0.3\naddress_4 = 10.1.0.4\n"), Ok("10.1.0.4"));
        check(Some("exit 1"), Some("address_4=10.1.0.4"), Ok("10.1.0.4"));
        check(None, None, Ok("10.0.0.18"));
    }

    #[test]
    fn a_machine_with_cards_never_falls_back_silently() {
        check(
            Some("echo no such card"),
            None,
            Err(
                "device 4 has no address: /hccn_tool -i 4 -ip -g said \"no such card\"; fix: give --device-ip or --interface",
            ),
        );
        check(
            Some("exit 1"),
            Some("address_3=10.1.0.3"),
            Err(
                "device 4 has no address: /hccn_tool -i 4 -ip -g said \"nothing\"; /hccn.conf has no line address_4=ADDRESS; fix: give --device-ip or --interface",
            ),
        );
        check(
            None,
            Some("address_4=ten"),
            Err("device 4 has no address: /hccn.conf says address_4=ten; fix: give --device-ip or --interface"),
        );
    }
}
