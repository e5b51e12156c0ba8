//! Writes the canonical form: exact key order, numbers as strings, indent 4.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{Device, Error, GlobalRankTable, HostRankTable, LocalRankTable, Role, Server, document::Groups, file};

macro_rules! writing {
    ($name:ident, $value:expr) => {
        impl $name {
            /// Canonical text, ending with a newline.
            pub fn to_json(&self) -> String {
                pretty(&$value(self))
            }

            /// Writes the canonical text atomically with mode 0600: readers see the old file or the new one.
            pub fn save(&self, path: &Path) -> Result<(), Error> {
                file::write(path, self.to_json().as_bytes())
            }
        }
    };
}

writing!(GlobalRankTable, |table: &GlobalRankTable| groups(&table.0));
writing!(HostRankTable, |table: &HostRankTable| groups(&table.0));
writing!(LocalRankTable, |table: &LocalRankTable| local(&table.server));

impl GlobalRankTable {
    /// BLAKE3 of the canonical text, in hex: equal for all instances that read the same cluster, however their files
    /// are laid out.
    pub fn hash(&self) -> String {
        blake3::hash(self.to_json().as_bytes()).to_hex().to_string()
    }
}

fn groups(groups: &Groups) -> Value {
    let group = |role: Role| {
        let list = &groups.lists[role.group()];
        json!({
            "group_id": role.group().to_string(),
            "server_count": list.len().to_string(),
            "server_list": list.iter().map(server).collect::<Vec<_>>(),
        })
    };
    json!({ "version": "1.0", "status": "completed", "server_group_list": Role::ALL.map(group) })
}

/// The group id is "0" whatever the role, as the original tool writes it.
fn local(entry: &Server) -> Value {
    json!({
        "version": "1.0",
        "status": "completed",
        "group_id": "0",
        "server_count": "1",
        "server_list": [server(entry)],
    })
}

fn server(entry: &Server) -> Value {
    let mut object = Map::new();
    object.insert("server_id".into(), entry.server_id.as_str().into());
    object.insert("server_ip".into(), entry.server_ip.as_str().into());
    if !entry.devices.is_empty() {
        object.insert("device".into(), entry.devices.iter().map(device).collect());
    }
    if let Some(port) = entry.port {
        object.insert("port".into(), port.to_string().into());
    }
    Value::Object(object)
}

fn device(device: &Device) -> Value {
    json!({
        "device_id": device.device_id.to_string(),
        "device_ip": device.device_ip.to_string(),
        "rank_id": device.rank_id.to_string(),
    })
}

fn pretty(value: &Value) -> String {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, formatter);
    serde::Serialize::serialize(value, &mut serializer).expect("writing to memory cannot fail");
    text.push(b'\n');
    String::from_utf8(text).expect("serde_json writes UTF-8")
}
