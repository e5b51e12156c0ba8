//! The verdict table: what was done, what had to hold, what was measured.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Map, Value, json};

/// One row.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) id: &'static str,
    pub(super) done: String,
    pub(super) criterion: String,
    pub(super) measured: String,
    pub(super) pass: bool,
}

/// Everything that the drill found.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    pub(super) rows: Vec<Row>,
    figures: Vec<(&'static str, f64)>,
    /// What clients saw that they should not have seen.
    pub(super) examples: Vec<String>,
}

impl Verdict {
    /// Adds a row and says so.
    pub(super) fn row(&mut self, row: Row) {
        println!("       {}  {}: {}", if row.pass { "PASS" } else { "FAIL" }, row.id, row.measured);
        self.rows.push(row);
    }

    /// Keeps the larger of two figures of one name.
    pub(super) fn figure(&mut self, name: &'static str, value: f64) {
        match self.figures.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = known.max(value),
            None => self.figures.push((name, value)),
        }
    }

    pub(super) fn seconds(&mut self, name: &'static str, value: Duration) {
        self.figure(name, value.as_secs_f64());
    }

    pub(super) fn failed(&self) -> usize {
        self.rows.iter().filter(|row| !row.pass).count()
    }

    /// As a Markdown table, which also reads well in a terminal.
    pub(super) fn text(&self) -> String {
        let width = |of: fn(&Row) -> &str| self.rows.iter().map(|row| of(row).chars().count()).max().unwrap_or(0);
        let widths =
            [width(|row| row.id), width(|row| &row.done), width(|row| &row.criterion), width(|row| &row.measured)];
        let mut text = String::new();
        let mut line = |cells: [&str; 5]| {
            let padded = cells.iter().zip(widths.iter().chain([&7])).map(|(cell, &width)| format!("| {cell:width$} "));
            text.extend(padded);
            text.push_str("|\n");
        };
        line(["row", "done", "passes if", "measured", "verdict"]);
        line(["---", "---", "---", "---", "---"]);
        for row in &self.rows {
            line([row.id, &row.done, &row.criterion, &row.measured, if row.pass { "PASS" } else { "FAIL" }]);
        }
        let figures = self.figures.iter().map(|(name, value)| format!("{name}: {value:.2}\n"));
        let figures: String = figures.collect();
        let examples: String = self.examples.iter().map(|example| format!("seen: {example}\n")).collect();
        format!("{text}\n{figures}{examples}")
    }

    pub(super) fn save(&self, seed: u64, minutes: f64, file: &Path) -> anyhow::Result<()> {
        let row = |row: &Row| json!({"id": row.id, "done": row.done, "passes_if": row.criterion, "measured": row.measured, "pass": row.pass});
        let figures: Map<String, Value> =
            self.figures.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let report = json!({
            "version": env!("CARGO_PKG_VERSION"), "seed": seed, "minutes": minutes, "pass": self.failed() == 0,
            "rows": self.rows.iter().map(row).collect::<Vec<_>>(), "figures": figures, "seen": self.examples,
        });
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(file, text + "\n").with_context(|| format!("--report: cannot write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_row_is_counted_and_shown() {
        let row = |id, pass| Row { id, done: "kill".into(), criterion: "nothing".into(), measured: "0".into(), pass };
        let mut verdict = Verdict { rows: vec![row("F1", true), row("F20", false)], ..Verdict::default() };
        verdict.figure("worst gap s", 1.0);
        verdict.figure("worst gap s", 0.5);
        assert_eq!(verdict.failed(), 1);
        let text = verdict.text();
        assert!(text.contains("| F20 | kill | nothing | 0 | FAIL    |\n"), "{text}");
        assert!(text.ends_with("worst gap s: 1.00\n"), "{text}");
    }
}
