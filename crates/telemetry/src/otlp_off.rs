//! Stands in for span export when the feature `otlp` is not built in: nothing is exported, trace ids still travel.

use tracing::Span;
use tracing_subscriber::layer::Identity;

use crate::{Error, TraceContext};

/// Nothing to keep: export is not built in.
#[derive(Debug)]
pub struct Exporter;

pub(crate) fn start(_process: &str) -> Result<(Identity, Exporter), Error> {
    Ok((Identity::default(), Exporter))
}

/// Says that the operator's endpoint has no effect in this build.
pub(crate) fn warn_if_missing() {
    if std::env::var_os("OTEL_EXPORTER_OTLP_ENDPOINT").is_some() {
        tracing::warn!(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but this build has no span export; build with --features otlp"
        );
    }
}

/// Makes `span` a child of a remote caller's span; without export there is nothing to do.
pub fn continue_trace(_span: &Span, _parent: &TraceContext) {}
