//! What chat templates expect of Python: `json.dumps` and `strftime`, letter for letter, since the model was trained on their output.

use std::io::{self, Write};

use minijinja::value::Kwargs;
use minijinja::{Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};

/// The filter `tojson(indent=None, ensure_ascii=False, separators=None, sort_keys=False)` as transformers defines it.
pub(crate) fn tojson(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    let ensure_ascii: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let [item, key] = match separators.as_deref() {
        None if indent.is_some() => [",".to_owned(), ": ".to_owned()],
        None => [", ".to_owned(), ": ".to_owned()],
        Some([item, key]) => [item.clone(), key.clone()],
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators must be two strings")),
    };
    let failed = |error| Error::new(ErrorKind::BadSerialization, "tojson: no JSON value").with_source(error);
    let mut json = serde_json::to_value(value).map_err(failed)?;
    if sort_keys == Some(true) {
        json.sort_all_objects();
    }
    let style = Dumps { item, key, indent, ensure_ascii: ensure_ascii == Some(true), depth: 0, empty: true };
    let mut out = Vec::new();
    json.serialize(&mut Serializer::with_formatter(&mut out, style)).map_err(failed)?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

/// Python's layout of JSON.
struct Dumps {
    item: String,
    key: String,
    indent: Option<usize>,
    ensure_ascii: bool,
    depth: usize,
    /// Nothing was written since the last opening bracket.
    empty: bool,
}

impl Dumps {
    fn open<W: ?Sized + Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.empty = true;
        out.write_all(bracket)
    }

    fn close<W: ?Sized + Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if !self.empty {
            self.new_line(out)?;
        }
        self.empty = false;
        out.write_all(bracket)
    }

    fn next<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.empty = false;
        if !first {
            out.write_all(self.item.as_bytes())?;
        }
        self.new_line(out)
    }

    fn new_line<W: ?Sized + Write>(&self, out: &mut W) -> io::Result<()> {
        match self.indent {
            Some(indent) => write!(out, "\n{:1$}", "", indent * self.depth),
            None => Ok(()),
        }
    }
}

impl Formatter for Dumps {
    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"[")
    }
    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.next(out, first)
    }
    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }
    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }
    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.next(out, first)
    }
    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.key.as_bytes())
    }
    fn write_string_fragment<W: ?Sized + Write>(&mut self, out: &mut W, fragment: &str) -> io::Result<()> {
        if !self.ensure_ascii {
            return out.write_all(fragment.as_bytes());
        }
        fragment.chars().try_for_each(|character| match character {
            '\0'..='\x7f' => write!(out, "{character}"),
            _ => character.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}")),
        })
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

/// `strftime` of a moment in UTC, with the directives that date lines use; an unknown one stays as it is.
pub(crate) fn strftime(unix_seconds: u64, format: &str) -> String {
    let moment = Moment::new(unix_seconds);
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('-') => {
                out.push_str(characters.next().map_or("-".into(), |code| moment.field(code)).trim_start_matches('0'))
            }
            Some(code) => out.push_str(&moment.field(code)),
            None => out.push('%'),
        }
    }
    out
}

/// A moment in UTC, taken apart.
struct Moment {
    year: u64,
    /// From 1.
    month: u64,
    /// From 1.
    day: u64,
    /// Monday = 0.
    weekday: u64,
    /// From 1.
    day_of_year: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Moment {
    fn new(unix_seconds: u64) -> Self {
        let (days, seconds) = (unix_seconds / 86_400, unix_seconds % 86_400);
        let mut year = 1970;
        let mut rest = days;
        // A template's clock is within centuries, and 400 years repeat exactly.
        year += rest / 146_097 * 400;
        rest %= 146_097;
        while rest >= days_of_year(year) {
            rest -= days_of_year(year);
            year += 1;
        }
        let day_of_year = rest + 1;
        let mut month = 1;
        while rest >= days_of_month(year, month) {
            rest -= days_of_month(year, month);
            month += 1;
        }
        // The epoch was a Thursday.
        let weekday = (days + 3) % 7;
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        Self { year, month, day: rest + 1, weekday, day_of_year, hour, minute, second }
    }

    fn field(&self, code: char) -> String {
        let month = MONTHS[(self.month as usize - 1) % 12];
        let weekday = DAYS[self.weekday as usize % 7];
        let hour12 = (self.hour + 11) % 12 + 1;
        match code {
            'Y' => self.year.to_string(),
            'y' => format!("{:02}", self.year % 100),
            'm' => format!("{:02}", self.month),
            'd' => format!("{:02}", self.day),
            'B' => month.to_owned(),
            'b' | 'h' => month[..3].to_owned(),
            'A' => weekday.to_owned(),
            'a' => weekday[..3].to_owned(),
            'j' => format!("{:03}", self.day_of_year),
            'H' => format!("{:02}", self.hour),
            'I' => format!("{hour12:02}"),
            'M' => format!("{:02}", self.minute),
            'S' => format!("{:02}", self.second),
            'p' => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            'F' => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            'T' => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            'Z' => "UTC".to_owned(),
            'z' => "+0000".to_owned(),
            '%' => "%".to_owned(),
            other => format!("%{other}"),
        }
    }
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_of_year(year: u64) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_of_month(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use minijinja::{Environment, context};
    use serde_json::json;

    use super::*;

    #[test]
    fn dates() {
        let check = |unix, format, expected: &str| assert_eq!(strftime(unix, format), expected, "{unix} {format}");
        check(0, "%A %d %B %Y %H:%M:%S %j", "Thursday 01 January 1970 00:00:00 001");
        check(951_782_400, "%a %d %b %Y", "Tue 29 Feb 2000");
        check(1_721_951_999, "%d %b %Y, %-d. %I:%M %p", "25 Jul 2024, 25. 11:59 PM");
        check(1_735_689_599, "%F %T %y %%", "2024-12-31 23:59:59 24 %");
        check(1_741_305_600, "%-d/%-m/%Y", "7/3/2025");
        check(4_102_444_800, "%F", "2100-01-01");
        check(4_107_542_400, "%F", "2100-03-01");
        check(0, "100% %q", "100% %q");
    }

    #[test]
    fn json_is_laid_out_as_python_does() {
        let mut environment = Environment::new();
        environment.add_filter("tojson", tojson);
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        let value = json!({ "b": [1, 2.0, "<é>"], "a": {}, "c": [], "d": null, "e": { "f": true } });
        let check = |call: &str, expected: &str| {
            let found =
                environment.render_str(&format!("{{{{ v|{call} }}}}"), context!(v => minijinja::value::Serde(&value)));
            assert_eq!(found.unwrap(), expected, "{call}");
        };
        check("tojson", r#"{"b": [1, 2.0, "<é>"], "a": {}, "c": [], "d": null, "e": {"f": true}}"#);
        let indented = "{\n  \"b\": [\n    1,\n    2.0,\n    \"<é>\"\n  ],\n  \"a\": {},\n  \"c\": [],\n  \"d\": null,\n  \"e\": {\n    \"f\": true\n  }\n}";
        check("tojson(indent=2)", indented);
        check("tojson(2)", indented);
        check(
            "tojson(separators=(',', ':'), sort_keys=true)",
            r#"{"a":{},"b":[1,2.0,"<é>"],"c":[],"d":null,"e":{"f":true}}"#,
        );
        check(
            "tojson(ensure_ascii=true)",
            r#"{"b": [1, 2.0, "<\u00e9>"], "a": {}, "c": [], "d": null, "e": {"f": true}}"#,
        );
    }
}
