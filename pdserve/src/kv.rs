//! `pdserve kv`: who holds KV blocks, on every instance of a running cluster.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;
use http_body_util::{BodyExt, Limited};
use serde_json::Value;

use crate::web::{self, Web};

const ANSWER_BYTES_MAX: usize = 1 << 20;

/// Show who holds KV blocks on every instance: by phase, then by request, those with most blocks first
#[derive(Parser, Debug)]
pub(crate) struct Args {
    /// The scheduler, which knows where the instances are
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9000")]
    url: String,
    /// The CA of the scheduler's certificate, where it serves https
    #[arg(long, value_name = "FILE")]
    cacert: Option<PathBuf>,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let web = web::client(args.cacert.as_deref())?;
    let ready = ask(&web, &format!("{}/ready", args.url.trim_end_matches('/'))).await?;
    for instance in ready["instances"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let text = |key: &str| instance[key].as_str().unwrap_or("?");
        match ask(&web, &format!("http://{}/kv", text("address"))).await {
            Ok(ledger) => print!("{}", table(&ledger)),
            Err(error) => println!("{}  {error:#}", text("instance")),
        }
    }
    Ok(())
}

async fn ask(web: &Web, url: &str) -> anyhow::Result<Value> {
    let uri = url.parse().with_context(|| format!("--url: {url} is no address"))?;
    let answer = web.get(uri).await.with_context(|| format!("no answer from {url}"))?;
    let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
    serde_json::from_slice(&body).with_context(|| format!("{url} answers no JSON; is it a pdserve?"))
}

/// One instance as lines of text.
fn table(ledger: &Value) -> String {
    let (blocks, phases) = (&ledger["blocks"], &ledger["phases"]);
    let mut text = format!(
        "{}  total {}  free {}  cached {}  leased {}  (computing {}, landing {}, decoding {}, handed over {})\n",
        ledger["instance"].as_str().unwrap_or("?"),
        blocks["total"],
        blocks["free"],
        blocks["cached"],
        blocks["leased"],
        phases["computing"],
        phases["landing"],
        phases["decoding"],
        phases["hand_over"],
    );
    for holder in ledger["holders"].as_array().map(Vec::as_slice).unwrap_or_default() {
        let name = |key: &str| holder[key].as_str().unwrap_or("?");
        let (phase, request, epoch) = (name("phase"), name("request"), &holder["epoch"]);
        let seconds = holder["deadline_ms"].as_f64().unwrap_or(f64::NAN) / 1e3;
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "  {:>6}  {phase:<9}  {request}#{epoch}  ends after {seconds:.1} s of silence",
            holder["blocks"].to_string()
        );
    }
    match ledger["holders_not_listed"].as_u64() {
        None | Some(0) => {}
        Some(more) => text += &format!("  and {more} more\n"),
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_ledger_is_a_line_and_a_line_for_each_holder() {
        let ledger = json!({
            "instance": "decode-0",
            "blocks": {"total": 8, "free": 5, "cached": 1, "leased": 2},
            "phases": {"computing": 0, "landing": 2, "decoding": 0, "hand_over": 0},
            "holders": [{"request": "a", "epoch": 1, "phase": "landing", "blocks": 2, "deadline_ms": 9250}],
            "holders_not_listed": 3,
        });
        let expected = "decode-0  total 8  free 5  cached 1  leased 2  (computing 0, landing 2, decoding 0, handed over 0)\n\
            \x20      2  landing    a#1  ends after 9.2 s of silence\n  and 3 more\n";
        assert_eq!(table(&ledger), expected);
    }
}
