//! `pdserve bench serve`: load over HTTP, as clients send it.
//!
//! ```text
//! servers (given, or clusters of our own) -> for each round, for each server: jobs -> outcomes -> figures -> table, JSON, page
//! ```
//! Prompts are lists of token ids and end-of-text is ignored, so lengths are exact; a request that ends with another number of
//! tokens counts as an error. Several servers take turns, round by round, and get the same prompts.

mod args;
mod chunk;
mod cluster;
mod interfere;
mod lengths;
mod load;
mod outcome;
mod picture;
mod prompts;
mod result;
mod target;
mod workload;

use anyhow::ensure;

pub(crate) use args::Args;
use args::{Common, Workload};
pub(super) use chunk::Chunk;
use cluster::OwnCluster;
use load::Load;
use prompts::PromptSource;
use result::{Measured, Run};
pub(super) use target::Target;
use workload::{FixedSpec, Pace};

use crate::bench::conditions::Conditions;
use crate::web;

/// Loads the servers and reports.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    let workload = args.workload;
    let common = workload.common();
    let both = !common.url.is_empty() && !common.up.is_empty();
    ensure!(!both, "--url loads what runs already and arguments after -- start a cluster: give one of them");
    let conditions = Conditions::gather();
    let mut clusters = Vec::new();
    let servers = servers(common, &mut clusters).await?;
    let rounds = rounds(&workload, &servers).await?;
    for cluster in clusters {
        cluster.stop().await?;
    }
    result::report(workload.common(), conditions, &servers, &rounds)
}

/// Connects to what is to be loaded, starting it where no URL was given.
async fn servers(common: &Common, clusters: &mut Vec<OwnCluster>) -> anyhow::Result<Vec<Target>> {
    let mut found = common.named_urls();
    let mut descriptions: Vec<_> = found.iter().map(|(_, url)| url.clone()).collect();
    if found.is_empty() {
        for args in common.clusters() {
            let description = format!("up {}", args.join(" ")).trim_end().to_owned();
            eprintln!("starting pdserve {description} ...");
            let cluster = OwnCluster::start(&args).await?;
            found.push((None, cluster.url.clone()));
            descriptions.push(description);
            clusters.push(cluster);
        }
    }
    let web = web::client(common.cacert.as_deref())?;
    let mut servers = Vec::new();
    for (index, ((name, url), description)) in found.iter().zip(descriptions).enumerate() {
        let label = name.clone().unwrap_or_else(|| label(index, found.len()));
        servers.push(Target::connect(label, description, url, common.model.as_deref(), web.clone()).await?);
    }
    Ok(servers)
}

/// A short name for the heads of columns.
fn label(index: usize, count: usize) -> String {
    match u8::try_from(index) {
        _ if count == 1 => "server".to_owned(),
        Ok(letter @ 0..26) => char::from(b'a' + letter).to_string(),
        _ => format!("server {index}"),
    }
}

/// Every server in every round, in turns.
async fn rounds(workload: &Workload, servers: &[Target]) -> anyhow::Result<Vec<Vec<Measured>>> {
    let common = workload.common();
    let load = Load { vocab: common.vocab, limit: common.timeout() };
    for server in servers {
        load.warm_up(server).await?;
    }
    let mut rounds = Vec::new();
    for round in 0..common.rounds {
        // Each server is first as often as the others.
        let mut order: Vec<_> = (0..servers.len()).collect();
        order.rotate_left(round as usize % servers.len());
        let mut measured = Vec::new();
        for index in order {
            let server = &servers[index];
            eprintln!("round {} of {}: {}", round + 1, common.rounds, server.label);
            let mut source = PromptSource::new(common.seed, round, common.shared_prefix);
            measured.push((index, measure(workload, &load, server, &mut source).await?));
        }
        measured.sort_by_key(|&(index, _)| index);
        rounds.push(measured.into_iter().map(|(_, measured)| measured).collect());
    }
    Ok(rounds)
}

async fn measure(
    workload: &Workload,
    load: &Load,
    server: &Target,
    source: &mut PromptSource,
) -> anyhow::Result<Measured> {
    let common = workload.common();
    let users = |spec: &FixedSpec, source: &mut PromptSource| {
        (workload::fixed(spec, common.seed, source), Pace::Users(spec.concurrency as usize))
    };
    let (jobs, pace) = match workload {
        Workload::Interfere { spec, .. } => return interfere::run(spec, load, server, source).await,
        Workload::Mixed { .. } => users(&FixedSpec::MIXED, source),
        Workload::Fixed { spec, .. } => users(spec, source),
        Workload::Poisson { spec, .. } => (workload::poisson(spec, common.seed, source), Pace::Clock),
        Workload::Trace { spec, .. } => (workload::trace(spec, source)?, Pace::Clock),
    };
    workload::check_fits(&jobs, server.max_model_len, &server.label)?;
    let (outcomes, wall) = load.run(server, jobs, pace).await;
    let figures = outcome::figures(&outcomes, wall, &common.limits());
    let run = Run { label: server.label.clone(), outcomes, wall };
    Ok(Measured { server: server.label.clone(), figures, runs: vec![run] })
}
