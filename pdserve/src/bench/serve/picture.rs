//! One page with pictures and nothing to load: the table, how latencies are distributed, and when each request ran.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::Context;

use super::outcome::{Outcome, ms};
use super::result::Run;
use super::workload::Class;
use crate::bench::conditions::Conditions;
use crate::bench::report::{Table, cell};
use crate::bench::stats::sorted;

/// One per line of a picture, readable on white by the colour-blind too; further lines begin again.
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const STYLE: &str = "body{font:14px sans-serif;margin:2em;max-width:1200px}table{border-collapse:collapse;margin:1em 0}\
td,th{padding:2px 12px;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}\
svg{margin:0 1em 1em 0}svg text{font:11px sans-serif}.axis{stroke:#999}.grid{stroke:#eee}";
/// Points of a curve: more cannot be seen.
const POINTS_MAX: usize = 300;
/// Requests drawn of one run.
const BARS_MAX: usize = 400;

/// Size of a curve's picture and the frame around it.
const WIDTH: f64 = 360.0;
const HEIGHT: f64 = 200.0;
const MARGIN: f64 = 36.0;
const TIMELINE_WIDTH: f64 = 1100.0;
const BAR: f64 = 5.0;

/// Writes the page; `runs` are the lines of the curves.
pub(super) fn write(
    path: &Path,
    conditions: &Conditions,
    tables: &[Table],
    notes: &[String],
    runs: &[&Run],
) -> anyhow::Result<()> {
    fs::write(path, page(conditions, tables, notes, runs)).with_context(|| format!("cannot write {}", path.display()))
}

fn page(conditions: &Conditions, tables: &[Table], notes: &[String], runs: &[&Run]) -> String {
    let mut body = String::from("<h1>pdserve bench serve</h1><table>");
    for (name, value) in conditions.rows() {
        body += &format!("<tr><td>{}</td><td style=\"text-align:left\">{}</td></tr>", escape(name), escape(value));
    }
    body += "</table>";
    tables.iter().for_each(|table| body += &html_table(table));
    notes.iter().for_each(|note| body += &format!("<p>{}</p>", escape(note)));
    body += &format!("<h2>Latencies of the last round</h2>{}<div>", legend(runs));
    let measured = |outcome: &&Outcome| outcome.class == Class::Measured;
    let of = |values: &dyn Fn(&Outcome) -> Vec<f64>| -> Vec<Vec<f64>> {
        runs.iter()
            .map(|run| sorted(&run.outcomes.iter().filter(measured).flat_map(values).collect::<Vec<_>>()))
            .collect()
    };
    body += &curves("time to first token, ms", &of(&|outcome| outcome.ttft_ms().into_iter().collect()));
    body += &curves("gap between tokens, ms", &of(&|outcome| outcome.gaps_ms().collect()));
    body += &curves("time per output token, ms", &of(&|outcome| outcome.tpot_ms().into_iter().collect()));
    body += "</div><h2>Requests of the last round</h2><p>Pale: waiting for the first token. Full: tokens coming. Grey: a prompt that \
             arrives among others. Black: failed.</p>";
    for (index, run) in runs.iter().enumerate() {
        body += &format!("<h3>{}</h3>{}", escape(&run.label), timeline(run, colour(index)));
    }
    format!(
        "<!DOCTYPE html><html><head><meta charset=\"utf-8\"><title>pdserve bench</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )
}

fn html_table(table: &Table) -> String {
    let head: String = table.columns.iter().map(|name| format!("<th>{}</th>", escape(name))).collect();
    let row = |(label, values): &(String, Vec<Option<f64>>)| {
        let cells: String = values.iter().map(|value| format!("<td>{}</td>", cell(value))).collect();
        format!("<tr><td>{}</td>{cells}</tr>", escape(label))
    };
    let rows: String = table.rows.iter().map(row).collect();
    format!("<h2>{}</h2><table><tr><th></th>{head}</tr>{rows}</table>", escape(&table.title))
}

fn legend(runs: &[&Run]) -> String {
    let entry = |(index, run): (usize, &&Run)| {
        format!("<span style=\"color:{}\">&#9632; {}</span> &nbsp; ", colour(index), escape(&run.label))
    };
    format!("<p>{}</p>", runs.iter().enumerate().map(entry).collect::<String>())
}

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

/// Share of values up to x, over a logarithmic x. `lines` are sorted.
fn curves(title: &str, lines: &[Vec<f64>]) -> String {
    let ends =
        |pick: fn(&[f64]) -> Option<&f64>| lines.iter().filter_map(move |line| pick(line)).copied().map(|v| v.max(0.1));
    let low = ends(<[f64]>::first).fold(f64::INFINITY, f64::min);
    let high = ends(<[f64]>::last).fold(0.0, f64::max);
    if !low.is_finite() {
        return String::new();
    }
    let (low, high) = (low.log10().floor(), high.log10().ceil().max(low.log10().floor() + 1.0));
    let x = |value: f64| MARGIN + (value.max(0.1).log10() - low) / (high - low) * WIDTH;
    let y = |share: f64| MARGIN / 2.0 + (1.0 - share) * HEIGHT;
    let mut svg = svg_open(WIDTH + 2.0 * MARGIN, HEIGHT + 2.0 * MARGIN);
    for decade in low as i32..=high as i32 {
        let (at, bottom) = (x(10f64.powi(decade)), y(0.0));
        let label = cell(&Some(10f64.powi(decade)));
        let _ =
            write!(svg, "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{:.1}\" y2=\"{bottom:.1}\"/>", y(1.0));
        let _ = write!(svg, "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>", bottom + 14.0);
    }
    for share in [0.0, 0.5, 0.9, 0.99] {
        let at = y(share);
        let _ = write!(
            svg,
            "<line class=\"grid\" x1=\"{MARGIN}\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>",
            MARGIN + WIDTH
        );
        let _ = write!(svg, "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{share}</text>", MARGIN - 4.0, at + 4.0);
    }
    for (index, line) in lines.iter().enumerate() {
        let points: String =
            share_points(line).map(|(value, share)| format!("{:.1},{:.1} ", x(value), y(share))).collect();
        let _ = write!(
            svg,
            "<polyline fill=\"none\" stroke-width=\"1.5\" stroke=\"{}\" points=\"{points}\"/>",
            colour(index)
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text></svg>",
        MARGIN + WIDTH / 2.0,
        HEIGHT + 1.3 * MARGIN,
        escape(title)
    );
    svg
}

/// (value, share of values up to it), thinned evenly; the last is always there.
fn share_points(sorted: &[f64]) -> impl Iterator<Item = (f64, f64)> {
    let count = sorted.len();
    let step = count.div_ceil(POINTS_MAX).max(1);
    let kept = (0..count).filter(move |index| index % step == 0 || index + 1 == count);
    kept.map(move |index| (sorted[index], (index + 1) as f64 / count as f64))
}

/// A bar per request, from when it was due to its last token.
fn timeline(run: &Run, colour: &str) -> String {
    let drawn = run.outcomes.len().min(BARS_MAX);
    let end = run.outcomes.iter().map(|outcome| ms(outcome.end)).fold(1.0, f64::max);
    let x = |at: f64| at / end * TIMELINE_WIDTH;
    let mut svg = svg_open(TIMELINE_WIDTH + MARGIN, drawn as f64 * BAR + 20.0);
    for (row, outcome) in run.outcomes.iter().take(drawn).enumerate() {
        let fill = match (&outcome.error, outcome.class) {
            (Some(_), _) => "#000",
            (None, Class::Interfering) => "#888",
            (None, Class::Measured) => colour,
        };
        let first = outcome.events.first().map_or(outcome.end, |event| event.at);
        for (from, to, opacity) in [(outcome.due, first, 0.3), (first, outcome.end, 1.0)] {
            let (from, to, top) = (x(ms(from)), x(ms(to)), row as f64 * BAR);
            let _ = write!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{fill}\" opacity=\"{opacity}\"/>",
                (to - from).max(0.3),
                BAR - 1.0
            );
        }
    }
    let bottom = drawn as f64 * BAR + 14.0;
    let _ = write!(
        svg,
        "<text x=\"0\" y=\"{bottom:.1}\">0</text><text x=\"{TIMELINE_WIDTH}\" y=\"{bottom:.1}\" text-anchor=\"end\">{:.1} s</text></svg>",
        end / 1e3
    );
    if drawn < run.outcomes.len() {
        let _ = write!(svg, "<p>The first {drawn} of {} requests.</p>", run.outcomes.len());
    }
    svg
}

fn svg_open(width: f64, height: f64) -> String {
    format!("<svg width=\"{width:.0}\" height=\"{height:.0}\" xmlns=\"http://www.w3.org/2000/svg\">")
}

/// Text that means itself in HTML, inside attributes too.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            _ => escaped.push(character),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::bench::serve::outcome::tests::outcome;

    #[test]
    fn text_is_escaped() {
        for (text, expected) in [
            ("plain 1/2", "plain 1/2"),
            ("<script>", "&lt;script&gt;"),
            ("a & b", "a &amp; b"),
            ("\"x\" 'y'", "&quot;x&quot; &#39;y&#39;"),
            ("&lt;", "&amp;lt;"),
        ] {
            assert_eq!(escape(text), expected);
        }
    }

    #[test]
    fn foreign_text_reaches_the_page_escaped_only() {
        let bad = "<b>&\"'";
        let mut outcome = outcome(0, &[100, 150, 300]);
        outcome.error = Some(bad.to_owned());
        let run = Run { label: bad.to_owned(), outcomes: vec![outcome], wall: Duration::from_secs(1) };
        let mut table = Table::new(bad, [bad]);
        table.row(bad, vec![Some(1.0)]);
        let page = page(&Conditions::gather().and("server", bad), &[table], &[bad.to_owned()], &[&run]);
        assert!(!page.contains(bad));
        // Condition, title, column, row, note, legend and timeline.
        assert_eq!(page.matches("&lt;b&gt;&amp;&quot;&#39;").count(), 7);
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }

    #[test]
    fn a_curve_ends_with_all_values() {
        for count in [1usize, 2, 299, 1000, 1001] {
            let values: Vec<_> = (0..count).map(|value| value as f64).collect();
            let points: Vec<_> = share_points(&values).collect();
            assert!(points.len() <= POINTS_MAX + 1);
            assert_eq!(points.last(), Some(&((count - 1) as f64, 1.0)));
            assert!(points.is_sorted_by(|a, b| a.1 < b.1));
        }
        assert_eq!(curves("none", &[vec![]]), "");
    }
}
