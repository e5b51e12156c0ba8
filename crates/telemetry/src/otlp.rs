//! Exports spans over OTLP (gRPC) to `OTEL_EXPORTER_OTLP_ENDPOINT`, when that is set.

use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState, TracerProvider};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracerProvider, Tracer};
use tracing::Span;
use tracing_opentelemetry::{OpenTelemetryLayer, OpenTelemetrySpanExt};
use tracing_subscriber::Registry;

use crate::{Error, TraceContext};

const ENDPOINT_VAR: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Sends what is left when dropped.
#[derive(Debug)]
pub struct Exporter(Option<SdkTracerProvider>);

impl Drop for Exporter {
    fn drop(&mut self) {
        // Spans lost at the end cannot be reported anywhere.
        let _ = self.0.take().map(|provider| provider.shutdown());
    }
}

pub(crate) type SpanLayer = Option<OpenTelemetryLayer<Registry, Tracer>>;

pub(crate) fn start(process: &str) -> Result<(SpanLayer, Exporter), Error> {
    let Some(endpoint) = std::env::var(ENDPOINT_VAR).ok().filter(|endpoint| !endpoint.is_empty()) else {
        return Ok((None, Exporter(None)));
    };
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&endpoint)
        .build()
        .map_err(|error| Error::Export { endpoint, reason: error.to_string() })?;
    let resource = Resource::builder()
        .with_service_name("pdserve")
        .with_attribute(KeyValue::new("service.instance.id", process.to_owned()))
        .build();
    let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build();
    let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("pdserve"));
    Ok((Some(layer), Exporter(Some(provider))))
}

pub(crate) fn warn_if_missing() {}

/// Makes `span` a child of a remote caller's span.
pub fn continue_trace(span: &Span, parent: &TraceContext) {
    let flags = if parent.sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    let (trace, id) = (TraceId::from_bytes(parent.trace_id), SpanId::from_bytes(parent.span_id));
    let remote = SpanContext::new(trace, id, flags, true, TraceState::default());
    // Fails only for a span that has already begun to be exported, which keeps its parent.
    let _ = span.set_parent(Context::new().with_remote_span_context(remote));
}
