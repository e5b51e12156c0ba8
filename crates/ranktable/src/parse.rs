//! Reads a document from JSON text. Shape is checked here, value by value; how entries fit together in `check`.
//!
//! Keys that are not ours are ignored, so that tables of newer tools stay readable.

use std::net::IpAddr;
use std::path::Path;

use serde_json::{Map, Value};

use crate::check::{MAX_FILE_BYTES, Placed, Scope, check, check_ranks};
use crate::document::Groups;
use crate::{
    Device, Error, GlobalRankTable, HostRankTable, LocalRankTable, Problem, Role, Server, ServerAddress, file,
};

/// The document, or everything that is wrong with it (never empty).
type Parsed<T> = Result<T, Vec<Error>>;

macro_rules! reading {
    ($name:ident, $parse:expr) => {
        impl $name {
            /// Parses and checks `text`; `file` is only for errors. Unknown keys are ignored.
            ///
            /// # Errors
            /// The first thing that is wrong; `problems` lists all of them.
            pub fn parse(file: &str, text: &str) -> Result<Self, Error> {
                let parsed: Parsed<Self> = $parse(file, text);
                parsed.map_err(|mut errors| errors.swap_remove(0))
            }

            /// Everything that is wrong with `text`; empty = `parse` succeeds.
            pub fn problems(file: &str, text: &str) -> Vec<Error> {
                let parsed: Parsed<Self> = $parse(file, text);
                parsed.err().unwrap_or_default()
            }

            /// Reads and parses a file of at most [`crate::MAX_FILE_BYTES`].
            pub fn load(path: &Path) -> Result<Self, Error> {
                Self::parse(&path.display().to_string(), &file::read(path)?)
            }
        }
    };
}

reading!(GlobalRankTable, |file, text| parse_groups(file, text, Scope::Cluster).map(GlobalRankTable));
reading!(HostRankTable, |file, text| parse_groups(file, text, Scope::Part).map(HostRankTable));
reading!(LocalRankTable, parse_local);

fn parse_groups(file: &str, text: &str, scope: Scope) -> Parsed<Groups> {
    let mut reader = Reader { file, errors: Vec::new() };
    let lists = reader.document(text, Reader::groups);
    let mut errors = reader.errors;
    let Some(lists) = lists else { return Err(errors) };
    let groups = Groups { file: file.to_owned(), lists };
    errors.extend(check(file, &groups.placed(), scope));
    if errors.is_empty() { Ok(groups) } else { Err(errors) }
}

fn parse_local(file: &str, text: &str) -> Parsed<LocalRankTable> {
    let mut reader = Reader { file, errors: Vec::new() };
    let server = reader.document(text, Reader::local);
    let mut errors = reader.errors;
    let Some(server) = server else { return Err(errors) };
    // Which role it has, and so whether it must have devices, only the global table knows.
    let placed = Placed { file, path: "server_list[0]".to_owned(), role: Role::Prefill, server: &server };
    errors.extend(check_ranks(&placed));
    if errors.is_empty() { Ok(LocalRankTable { file: file.to_owned(), server }) } else { Err(errors) }
}

/// Walks a document and collects what is wrong. A method returns `None` after it has put down why.
struct Reader<'a> {
    file: &'a str,
    errors: Vec<Error>,
}

impl Reader<'_> {
    fn fail<T>(&mut self, path: &str, problem: Problem) -> Option<T> {
        self.errors.push(Error::new(self.file, path, problem));
        None
    }

    /// The outermost object: JSON at all, version, status, then `body`.
    fn document<T>(&mut self, text: &str, body: impl FnOnce(&mut Self, &Map<String, Value>) -> Option<T>) -> Option<T> {
        if text.len() as u64 > MAX_FILE_BYTES {
            return self.fail("", Problem::TooLarge);
        }
        let value: Value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(error) => return self.fail("", Problem::NotJson { message: error.to_string() }),
        };
        let object = self.object(&value, "")?;
        let version = self.text(object, "", "version", "\"version\": \"1.0\"");
        if let Some(found) = version.filter(|found| *found != "1.0") {
            let _: Option<()> = self.fail("version", Problem::Version { found: found.to_owned() });
        }
        let status = self.text(object, "", "status", "\"status\": \"completed\"");
        if let Some(found) = status.filter(|found| *found != "completed") {
            let _: Option<()> = self.fail("status", Problem::Status { found: found.to_owned() });
        }
        body(self, object)
    }

    /// The three groups of a global table.
    fn groups(&mut self, object: &Map<String, Value>) -> Option<[Vec<Server>; 3]> {
        let list = self.array(object, "", "server_group_list", "\"server_group_list\": [...] with the 3 groups")?;
        let ids: Vec<Option<&str>> = list.iter().map(|group| group.get("group_id").and_then(Value::as_str)).collect();
        let missing: Vec<Role> =
            Role::ALL.into_iter().filter(|role| !ids.contains(&Some(role.group().to_string().as_str()))).collect();
        if list.len() != Role::ALL.len() {
            return self.fail("server_group_list", Problem::GroupCount { found: list.len(), missing });
        }
        let groups = Role::ALL.map(|role| self.group(&list[role.group()], role, &missing));
        match groups {
            [Some(scheduler), Some(prefill), Some(decode)] => Some([scheduler, prefill, decode]),
            _ => None,
        }
    }

    /// One group; `missing` are the roles of which no group of the list has the id.
    fn group(&mut self, value: &Value, role: Role, missing: &[Role]) -> Option<Vec<Server>> {
        let path = format!("server_group_list[{}]", role.group());
        let object = self.object(value, &path)?;
        let found = self.text(object, &path, "group_id", "\"group_id\": \"0\", \"1\" or \"2\"")?;
        if missing.contains(&role) {
            return self.fail(&format!("{path}.group_id"), Problem::MissingGroup { missing: role });
        }
        if found != role.group().to_string() {
            let problem = Problem::GroupOrder { found: found.to_owned(), expected: role };
            return self.fail(&format!("{path}.group_id"), problem);
        }
        let list = self.server_list(object, &path)?;
        let read = |(i, value)| self.server(value, &format!("{path}.server_list[{i}]"));
        let servers: Vec<Option<Server>> = list.iter().enumerate().map(read).collect();
        servers.into_iter().collect()
    }

    /// The one entry of a local table. Its `group_id` is not looked at: it is "0" whatever the role.
    fn local(&mut self, object: &Map<String, Value>) -> Option<Server> {
        let list = self.server_list(object, "")?;
        match list.as_slice() {
            [value] => self.server(value, "server_list[0]"),
            _ => self.fail("server_list", Problem::LocalEntryCount { found: list.len() }),
        }
    }

    /// `server_list`, checked against `server_count`.
    fn server_list<'v>(&mut self, object: &'v Map<String, Value>, path: &str) -> Option<&'v Vec<Value>> {
        let count = self.text(object, path, "server_count", "\"server_count\": the length of server_list as a string");
        let list = self.array(object, path, "server_list", "\"server_list\": [...] with one entry an instance")?;
        if let Some(found) = count.filter(|found| *found != list.len().to_string()) {
            let problem = Problem::ServerCount { found: found.to_owned(), entries: list.len() };
            let _: Option<()> = self.fail(&join(path, "server_count"), problem);
        }
        Some(list)
    }

    fn server(&mut self, value: &Value, path: &str) -> Option<Server> {
        let object = self.object(value, path)?;
        let server_id = self.text(object, path, "server_id", "\"server_id\": \"10.0.0.18\"");
        if server_id == Some("") {
            let _: Option<()> = self.fail(&join(path, "server_id"), Problem::EmptyServerId);
        }
        let server_ip = self.server_ip(object, path);
        let devices = self.devices(object, path);
        let port = self.port(object, path);
        Some(Server { server_id: server_id?.to_owned(), server_ip: server_ip?, devices: devices?, port: port? })
    }

    fn server_ip(&mut self, object: &Map<String, Value>, path: &str) -> Option<ServerAddress> {
        let found = self.text(object, path, "server_ip", "\"server_ip\": \"10.0.0.18\"")?;
        match ServerAddress::parse(found) {
            Some(address) => Some(address),
            None => self.fail(&join(path, "server_ip"), Problem::BadAddress { found: found.to_owned() }),
        }
    }

    /// No key and an empty list both mean no device.
    fn devices(&mut self, object: &Map<String, Value>, path: &str) -> Option<Vec<Device>> {
        if !object.contains_key("device") {
            return Some(Vec::new());
        }
        let list = self.array(object, path, "device", "\"device\": [...]")?;
        let read = |(i, value)| self.device(value, &format!("{path}.device[{i}]"));
        let devices: Vec<Option<Device>> = list.iter().enumerate().map(read).collect();
        devices.into_iter().collect()
    }

    fn device(&mut self, value: &Value, path: &str) -> Option<Device> {
        let object = self.object(value, path)?;
        let device_id = self.number(object, path, "device_id", "\"device_id\": \"4\"");
        let device_ip = self.text(object, path, "device_ip", "\"device_ip\": \"10.1.0.22\"").and_then(|found| {
            let address: Option<IpAddr> = found.parse().ok();
            let problem = || Problem::BadAddress { found: found.to_owned() };
            address.or_else(|| self.fail(&join(path, "device_ip"), problem()))
        });
        let rank_id = self.number(object, path, "rank_id", "\"rank_id\": \"0\"");
        Some(Device { device_id: device_id?, device_ip: device_ip?, rank_id: rank_id? })
    }

    /// The optional port of an entry; the outer `None` is an error.
    fn port(&mut self, object: &Map<String, Value>, path: &str) -> Option<Option<u16>> {
        if !object.contains_key("port") {
            return Some(None);
        }
        let found = self.text(object, path, "port", "\"port\": \"8088\"")?;
        match parse_port(found) {
            Some(port) => Some(Some(port)),
            None => self.fail(&join(path, "port"), Problem::NotAPort { found: found.to_owned() }),
        }
    }

    fn number(&mut self, object: &Map<String, Value>, path: &str, key: &str, example: &'static str) -> Option<u32> {
        let found = self.text(object, path, key, example)?;
        match found.parse::<u32>() {
            // Only the canonical spelling: "04" and "+4" would be other names of the same card to other readers.
            Ok(number) if number.to_string() == found => Some(number),
            _ => self.fail(&join(path, key), Problem::NotANumber { found: found.to_owned() }),
        }
    }

    fn object<'v>(&mut self, value: &'v Value, path: &str) -> Option<&'v Map<String, Value>> {
        match value {
            Value::Object(object) => Some(object),
            other => self.fail(path, wrong_type(other, "an object")),
        }
    }

    fn array<'v>(
        &mut self,
        object: &'v Map<String, Value>,
        path: &str,
        key: &str,
        example: &'static str,
    ) -> Option<&'v Vec<Value>> {
        match object.get(key) {
            Some(Value::Array(list)) => Some(list),
            Some(other) => self.fail(&join(path, key), wrong_type(other, "a list")),
            None => self.fail(&join(path, key), Problem::MissingKey { example }),
        }
    }

    fn text<'v>(
        &mut self,
        object: &'v Map<String, Value>,
        path: &str,
        key: &str,
        example: &'static str,
    ) -> Option<&'v str> {
        match object.get(key) {
            Some(Value::String(text)) => Some(text),
            Some(other) => self.fail(&join(path, key), wrong_type(other, "a string")),
            None => self.fail(&join(path, key), Problem::MissingKey { example }),
        }
    }
}

/// 1 to 65535 in plain decimal.
pub(crate) fn parse_port(text: &str) -> Option<u16> {
    text.parse::<u16>().ok().filter(|port| *port > 0 && port.to_string() == text)
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

fn wrong_type(value: &Value, expected: &'static str) -> Problem {
    let found = match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("the boolean {value}"),
        Value::Number(value) => format!("the number {value}"),
        Value::String(_) => "a string".to_owned(),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    };
    Problem::WrongType { found, expected }
}
