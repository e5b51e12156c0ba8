//! Recorded arrivals: CSV with `t_ms,input_tokens,output_tokens`, or JSON Lines with `timestamp`, `input_length`, `output_length`
//! and `hash_ids` (which prompts share which blocks).

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

/// Tokens that one entry of `hash_ids` stands for.
pub(crate) const HASH_BLOCK: u32 = 512;
/// A line with ids for a prompt of a million tokens is far below this.
const LINE_BYTES_MAX: usize = 1 << 20;

/// One recorded request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Arrival {
    /// Milliseconds after the trace's start.
    pub(crate) at_ms: f64,
    pub(crate) input: u32,
    pub(crate) output: u32,
    /// One per [`HASH_BLOCK`] tokens of the prompt; empty when the trace does not say.
    pub(crate) blocks: Vec<u64>,
}

/// Reads at most `count` requests from the file's start; they must be in order of time.
pub(crate) fn read(path: &Path, count: usize) -> anyhow::Result<Vec<Arrival>> {
    let name = path.display();
    let file = File::open(path).with_context(|| format!("cannot read the trace {name}"))?;
    parse(BufReader::new(file), count).with_context(|| format!("trace {name}"))
}

fn parse(mut from: impl BufRead, count: usize) -> anyhow::Result<Vec<Arrival>> {
    let mut arrivals: Vec<Arrival> = Vec::new();
    let mut line = String::new();
    for number in 1.. {
        line.clear();
        let mut bounded = std::io::Read::take(&mut from, LINE_BYTES_MAX as u64);
        if arrivals.len() == count || bounded.read_line(&mut line)? == 0 {
            break;
        }
        ensure!(line.len() < LINE_BYTES_MAX, "line {number} is longer than {LINE_BYTES_MAX} bytes");
        let Some(arrival) = parse_line(line.trim(), number).with_context(|| format!("line {number}"))? else {
            continue;
        };
        let before = arrivals.last().map_or(0.0, |last| last.at_ms);
        ensure!(arrival.at_ms >= before, "line {number}: {} ms comes after {before} ms", arrival.at_ms);
        arrivals.push(arrival);
    }
    ensure!(!arrivals.is_empty(), "there is no request in it");
    Ok(arrivals)
}

/// `None` for the header and empty lines.
fn parse_line(line: &str, number: usize) -> anyhow::Result<Option<Arrival>> {
    if line.is_empty() || (number == 1 && line.starts_with("t_ms")) {
        return Ok(None);
    }
    let arrival = if line.starts_with('{') { parse_json(line)? } else { parse_csv(line)? };
    ensure!(
        arrival.at_ms.is_finite() && arrival.at_ms >= 0.0,
        "time {} is not a number of milliseconds",
        arrival.at_ms
    );
    ensure!(
        arrival.input > 0 && arrival.output > 0,
        "{} tokens in, {} out: both must be at least 1",
        arrival.input,
        arrival.output
    );
    Ok(Some(arrival))
}

fn parse_json(line: &str) -> anyhow::Result<Arrival> {
    #[derive(Deserialize)]
    struct Row {
        timestamp: f64,
        input_length: u32,
        output_length: u32,
        #[serde(default)]
        hash_ids: Vec<u64>,
    }
    let row: Row = serde_json::from_str(line)?;
    Ok(Arrival { at_ms: row.timestamp, input: row.input_length, output: row.output_length, blocks: row.hash_ids })
}

fn parse_csv(line: &str) -> anyhow::Result<Arrival> {
    let fields: Vec<_> = line.split(',').map(str::trim).collect();
    let &[at_ms, input, output] = &fields[..] else {
        bail!("{} fields, expected t_ms,input_tokens,output_tokens", fields.len())
    };
    let number = |text: &str| text.parse::<u32>().with_context(|| format!("`{text}` is not a number of tokens"));
    let at_ms = at_ms.parse().with_context(|| format!("`{at_ms}` is not a number of milliseconds"))?;
    Ok(Arrival { at_ms, input: number(input)?, output: number(output)?, blocks: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(at_ms: f64, input: u32, output: u32, blocks: &[u64]) -> Arrival {
        Arrival { at_ms, input, output, blocks: blocks.to_vec() }
    }

    #[test]
    fn both_formats_are_read() {
        let csv = "t_ms,input_tokens,output_tokens\n0,374,44\n\n4315.5,396,109\n";
        let json = "{\"timestamp\":0,\"input_length\":6758,\"output_length\":500,\"hash_ids\":[0,14]}\n\
                    {\"timestamp\":40,\"input_length\":1,\"output_length\":2,\"more\":null}";
        for (text, count, expected) in [
            (csv, 10, vec![arrival(0.0, 374, 44, &[]), arrival(4315.5, 396, 109, &[])]),
            (csv, 1, vec![arrival(0.0, 374, 44, &[])]),
            (json, 10, vec![arrival(0.0, 6758, 500, &[0, 14]), arrival(40.0, 1, 2, &[])]),
        ] {
            assert_eq!(parse(text.as_bytes(), count).unwrap(), expected);
        }
    }

    #[test]
    fn errors_name_the_line_and_what_is_wrong() {
        for (text, expected) in [
            ("", "there is no request in it"),
            ("0,1\n", "line 1: 2 fields, expected t_ms,input_tokens,output_tokens"),
            ("0,1,1\n5,x,1\n", "line 2: `x` is not a number of tokens: invalid digit found in string"),
            ("0,0,1\n", "line 1: 0 tokens in, 1 out: both must be at least 1"),
            ("nan,1,1\n", "line 1: time NaN is not a number of milliseconds"),
            ("9,1,1\n8,1,1\n", "line 2: 8 ms comes after 9 ms"),
        ] {
            assert_eq!(format!("{:#}", parse(text.as_bytes(), 10).unwrap_err()), expected);
        }
        assert!(format!("{:#}", parse("{\"timestamp\":1}".as_bytes(), 10).unwrap_err()).contains("input_length"));
        let long = format!("0,1,1{}", " ".repeat(LINE_BYTES_MAX));
        assert!(parse(long.as_bytes(), 10).unwrap_err().to_string().contains("longer than"));
    }
}
