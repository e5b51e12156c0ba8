//! Holds the fields of a body against the table, and reads them afterwards.
//!
//! A [`Fields`] exists only after every known field has passed its line, so reading cannot fail.

use serde_json::{Map, Value};

use crate::error::Shown;
use crate::fields::{Endpoint, Field, Kind, find};
use crate::{ApiError, Bounds};

/// The fields of a body, each within its type and range.
pub(crate) struct Fields<'a> {
    fields: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn check(fields: &'a Map<String, Value>, endpoint: Endpoint, bounds: &Bounds) -> Result<Self, ApiError> {
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            if let Some(field) = find(endpoint, name) {
                check_field(field, value, bounds)?;
            }
        }
        Ok(Self { fields })
    }

    /// The value of a field that is present and not null.
    pub(crate) fn get(&self, name: &str) -> Option<&'a Value> {
        self.fields.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn bool(&self, name: &str) -> Option<bool> {
        self.get(name).and_then(Value::as_bool)
    }

    pub(crate) fn number(&self, name: &str) -> Option<f64> {
        self.get(name).and_then(Value::as_f64)
    }

    pub(crate) fn integer(&self, name: &str) -> Option<i64> {
        self.get(name).and_then(whole)
    }

    /// An integer whose line keeps it within u32; a negative one counts as absent.
    pub(crate) fn count(&self, name: &str) -> Option<u32> {
        self.integer(name).and_then(|value| u32::try_from(value).ok())
    }

    pub(crate) fn text(&self, name: &str) -> Option<&'a str> {
        self.get(name).and_then(Value::as_str)
    }

    /// A list field, refused when it is no list or has more than `max` entries.
    pub(crate) fn list(&self, name: &str, max: u64) -> Result<Option<&'a [Value]>, ApiError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let Value::Array(items) = value else { return Err(wrong(name, "a list", value)) };
        at_most(name, "entries", items.len(), max)?;
        Ok(Some(items))
    }
}

fn check_field(field: &Field, value: &Value, bounds: &Bounds) -> Result<(), ApiError> {
    let name = field.name;
    match &field.kind {
        Kind::Bool if !value.is_boolean() => Err(wrong(name, "true or false", value)),
        Kind::Number { min, max, min_allowed } => check_number(name, value, *min, *max, *min_allowed),
        Kind::Integer { min, max } => check_integer(name, value, *min, max(bounds)),
        Kind::Text { chars_max } => check_text(name, value, chars_max(bounds)).map(|_| ()),
        Kind::NotYet { neutral, what } if !neutral(value) => Err(ApiError::not_supported(name, what)),
        Kind::Bool | Kind::NotYet { .. } | Kind::Structured { .. } | Kind::Accepted => Ok(()),
    }
}

fn check_number(name: &str, value: &Value, min: f64, max: f64, min_allowed: bool) -> Result<(), ApiError> {
    let Some(found) = value.as_f64() else { return Err(wrong(name, "a number", value)) };
    let above_min = if min_allowed { found >= min } else { found > min };
    if above_min && found <= max {
        return Ok(());
    }
    let lowest = if min_allowed { format!("at least {min}") } else { format!("greater than {min}") };
    Err(ApiError::bad_field(name, format!("{name} must be {lowest} and at most {max}, got {}", Shown(value))))
}

fn check_integer(name: &str, value: &Value, min: i64, max: i64) -> Result<(), ApiError> {
    if !value.is_number() {
        return Err(wrong(name, "a whole number", value));
    }
    match whole(value) {
        Some(found) if (min..=max).contains(&found) => Ok(()),
        _ => Err(ApiError::bad_field(
            name,
            format!("{name} must be a whole number from {min} to {max}, got {}", Shown(value)),
        )),
    }
}

/// A string of at most `chars_max` characters.
pub(crate) fn check_text<'a>(name: &str, value: &'a Value, chars_max: u64) -> Result<&'a str, ApiError> {
    let Value::String(text) = value else { return Err(wrong(name, "a string", value)) };
    at_most(name, "characters", text.chars().count(), chars_max)?;
    Ok(text)
}

/// Refuses a count above its bound.
pub(crate) fn at_most(name: &str, what: &str, found: usize, max: u64) -> Result<(), ApiError> {
    if found as u64 > max {
        return Err(ApiError::bad_field(name, format!("{name} has {found} {what}, more than the {max} allowed")));
    }
    Ok(())
}

/// A value of the wrong type.
pub(crate) fn wrong(name: &str, expected: &str, found: &Value) -> ApiError {
    ApiError::bad_field(name, format!("{name} must be {expected}, got {}", Shown(found)))
}

/// A token id.
pub(crate) fn token_id(name: &str, value: &Value) -> Result<u32, ApiError> {
    check_integer(name, value, 0, i64::from(u32::MAX))?;
    whole(value).and_then(|id| u32::try_from(id).ok()).ok_or_else(|| wrong(name, "a token id", value))
}

/// A JSON number without fraction that fits i64; floats up to 2^53 only, where they are exact.
fn whole(value: &Value) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    value.as_i64().or_else(|| {
        value.as_f64().filter(|found| found.fract() == 0.0 && found.abs() <= EXACT).map(|found| found as i64)
    })
}
