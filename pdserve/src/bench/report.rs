//! Tables of figures, as text for people and as JSON for programs.

use std::fs;
use std::path::Path;

use anyhow::Context;
use serde_json::{Map, Value, json};

use super::conditions::Conditions;

/// Named rows of numbers under named columns; `None` prints as a dash.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) columns: Vec<String>,
    pub(crate) rows: Vec<(String, Vec<Option<f64>>)>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, columns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { title: title.into(), columns: columns.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, label: impl Into<String>, values: Vec<Option<f64>>) {
        debug_assert_eq!(values.len(), self.columns.len());
        self.rows.push((label.into(), values));
    }

    /// Columns as wide as their widest entry, numbers to the right.
    pub(crate) fn text(&self) -> String {
        let label_width = self.rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0);
        let cells: Vec<Vec<String>> = self.rows.iter().map(|(_, values)| values.iter().map(cell).collect()).collect();
        let width = |column: usize| {
            let entries = cells.iter().map(|row| row[column].chars().count());
            entries.chain([self.columns[column].chars().count()]).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.columns.len()).map(width).collect();
        let line = |label: &str, entries: &[String]| {
            let entries = entries.iter().zip(&widths).map(|(entry, &width)| format!("  {entry:>width$}"));
            format!("{label:<label_width$}{}\n", entries.collect::<String>())
        };
        let body = self.rows.iter().zip(&cells).map(|((label, _), entries)| line(label, entries));
        format!("{}\n{}{}", self.title, line("", &self.columns), body.collect::<String>())
    }

    pub(crate) fn json(&self) -> Value {
        let columns = |values: &[Option<f64>]| {
            let pairs = self.columns.iter().zip(values).map(|(name, value)| (name.clone(), json!(value)));
            Value::Object(pairs.collect())
        };
        let rows: Map<_, _> = self.rows.iter().map(|(label, values)| (label.clone(), columns(values))).collect();
        json!({ "title": self.title, "rows": rows })
    }
}

/// Three digits that matter, and no more than are there.
pub(crate) fn cell(value: &Option<f64>) -> String {
    match *value {
        None => "-".to_owned(),
        Some(value) if value.fract() == 0.0 && value.abs() < 1e6 => format!("{value:.0}"),
        Some(value) if value.abs() >= 100.0 => format!("{value:.0}"),
        Some(value) if value.abs() >= 10.0 => format!("{value:.1}"),
        Some(value) if value.abs() >= 1.0 => format!("{value:.2}"),
        Some(value) => format!("{value:.3}"),
    }
}

/// Prints conditions, tables and notes.
pub(crate) fn print(conditions: &Conditions, tables: &[Table], notes: &[String]) {
    println!("{}", conditions.text());
    for table in tables {
        println!("{}", table.text());
    }
    for note in notes {
        println!("note: {note}");
    }
}

/// Writes conditions, tables and whatever else the measurement has to say.
pub(crate) fn write_json(path: &Path, conditions: &Conditions, tables: &[Table], details: Value) -> anyhow::Result<()> {
    let tables: Vec<_> = tables.iter().map(Table::json).collect();
    let all = json!({ "conditions": conditions.json(), "tables": tables, "details": details });
    fs::write(path, format!("{all:#}\n")).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_show_three_digits() {
        for (value, expected) in [
            (None, "-"),
            (Some(0.0), "0"),
            (Some(32.0), "32"),
            (Some(0.12345), "0.123"),
            (Some(1.2345), "1.23"),
            (Some(12.345), "12.3"),
            (Some(1234.5), "1234"),
        ] {
            assert_eq!(cell(&value), expected);
        }
    }

    #[test]
    fn a_table_lines_up() {
        let mut table = Table::new("speed", ["a", "bcd"]);
        table.row("tok/s", vec![Some(10.0), Some(25.0)]);
        table.row("errors", vec![Some(0.0), None]);
        assert_eq!(table.text(), "speed\n         a  bcd\ntok/s   10   25\nerrors   0    -\n");
        assert_eq!(table.json()["rows"]["tok/s"], json!({ "a": 10.0, "bcd": 25.0 }));
    }
}
