//! A JSON file of a model directory, read key by key; every refusal names file, key and value.

use std::fs::File;
use std::io::Read;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use types::TokenId;

use crate::Error;

/// Largest JSON file read. A config has some kilobytes; the tensor index of the largest models a few megabytes.
const JSON_BYTES_MAX: u64 = 32 << 20;

/// One object of a JSON file: the file itself, or what stands under `prefix`.
#[derive(Clone, Debug)]
pub(crate) struct JsonFile {
    path: PathBuf,
    prefix: String,
    object: Map<String, Value>,
}

impl JsonFile {
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let mut text = Vec::new();
        File::open(path).map_err(io)?.take(JSON_BYTES_MAX + 1).read_to_end(&mut text).map_err(io)?;
        let malformed = |reason| Error::Malformed { path: path.to_owned(), reason };
        if text.len() as u64 > JSON_BYTES_MAX {
            return Err(malformed(format!("larger than {JSON_BYTES_MAX} bytes")));
        }
        match serde_json::from_slice(&text) {
            Ok(Value::Object(object)) => Ok(Self { path: path.to_owned(), prefix: String::new(), object }),
            Ok(_) => Err(malformed("not a JSON object".to_owned())),
            Err(error) => Err(malformed(format!("not JSON: {error}"))),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The refusal of `key`'s value.
    pub(crate) fn unsupported(&self, key: &str, supported: impl Into<String>) -> Error {
        let found = self.object.get(key).map_or_else(|| "missing".to_owned(), Value::to_string);
        let key = format!("{}{key}", self.prefix);
        Error::Unsupported { path: self.path.clone(), key, found, supported: supported.into() }
    }

    /// The value, unless it is missing or null.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// The object under `key`, if there is one.
    pub(crate) fn object(&self, key: &str) -> Result<Option<JsonFile>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => {
                let prefix = format!("{}{key}.", self.prefix);
                Ok(Some(JsonFile { path: self.path.clone(), prefix, object: object.clone() }))
            }
            Some(_) => Err(self.unsupported(key, "an object or null")),
        }
    }

    /// A whole number within `range`.
    pub(crate) fn count(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, Error> {
        self.count_or_none(key, range.clone())?.ok_or_else(|| self.unsupported(key, between(&range)))
    }

    /// As [`JsonFile::count`], `None` if missing or null.
    pub(crate) fn count_or_none(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, Error> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.unsupported(key, between(&range))),
        }
    }

    /// A positive finite number, `default` if missing or null.
    pub(crate) fn positive(&self, key: &str, default: Option<f64>) -> Result<f64, Error> {
        let value = self.get(key).map_or(default, Value::as_f64);
        value.filter(|v| v.is_finite() && *v > 0.0).ok_or_else(|| self.unsupported(key, "a number above 0"))
    }

    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.unsupported(key, "true or false")),
        }
    }

    pub(crate) fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    /// Token ids given as one number or a list; empty if missing or null.
    pub(crate) fn token_ids(&self, key: &str) -> Result<Vec<TokenId>, Error> {
        let id = |value: &Value| value.as_u64().and_then(|id| TokenId::try_from(id).ok());
        let ids = match self.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(id).collect(),
            Some(value) => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.unsupported(key, "a token id or a list of them"))
    }
}

fn between(range: &RangeInclusive<usize>) -> String {
    format!("{} to {}", range.start(), range.end())
}
