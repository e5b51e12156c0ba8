//! Sets up where a process's log lines go: one line per event on stderr, each naming the process.
//!
//! `PDSERVE_LOG` filters (default `info`), `PDSERVE_LOG_FORMAT=json` switches from text to JSON.

use std::fmt;
use std::io::IsTerminal;
use std::time::Instant;

use parking_lot::Mutex;
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt as text};

use crate::Seldom;
use crate::otlp::{self, Exporter};

const FILTER_VAR: &str = "PDSERVE_LOG";
const FORMAT_VAR: &str = "PDSERVE_LOG_FORMAT";

/// Why logging could not be set up; the process should stop with it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{FILTER_VAR}={value:?} is no log filter: {reason}; use for example info or info,scheduler=debug")]
    Filter { value: String, reason: String },
    #[error("{FORMAT_VAR}={0:?} is unknown; use text or json")]
    Format(String),
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT={endpoint:?} cannot be used: {reason}")]
    Export { endpoint: String, reason: String },
    #[error("logging was set up twice in this process")]
    Twice,
}

/// Starts logging for this process, for example `prefill-0`. Keep the [`Exporter`] until the end: dropping it sends the last spans.
///
/// With the feature `otlp` and `OTEL_EXPORTER_OTLP_ENDPOINT` set, spans are exported too; that needs a running tokio runtime.
pub fn init(process: &str) -> Result<Exporter, Error> {
    let filter = filter(std::env::var(FILTER_VAR).ok())?;
    let json = is_json(std::env::var(FORMAT_VAR).ok())?;
    let (spans, exporter) = otlp::start(process)?;
    let stderr = log_layer(process, json);
    tracing_subscriber::registry()
        .with(stderr.and_then(spans).with_filter(filter))
        .try_init()
        .map_err(|_| Error::Twice)?;
    otlp::warn_if_missing();
    Ok(exporter)
}

fn filter(value: Option<String>) -> Result<EnvFilter, Error> {
    let value = value.filter(|value| !value.trim().is_empty()).unwrap_or_else(|| "info".into());
    // Connection chatter of the wire libraries is not the operator's at info.
    let directives = format!("h2=warn,hyper=warn,hyper_util=warn,tonic=warn,tower=warn,{value}");
    EnvFilter::try_new(directives).map_err(|error| Error::Filter { value, reason: error.to_string() })
}

fn is_json(value: Option<String>) -> Result<bool, Error> {
    match value.as_deref().map(str::trim) {
        None | Some("" | "text") => Ok(false),
        Some("json") => Ok(true),
        Some(other) => Err(Error::Format(other.to_owned())),
    }
}

fn log_layer(process: &str, json: bool) -> Box<dyn Layer<Registry> + Send + Sync> {
    let process = process.to_owned();
    // A log line that cannot be written (disk full, closed pipe) is lost; it must not stop the process.
    let layer = text::layer().with_writer(std::io::stderr).log_internal_errors(false);
    if json {
        let format = JsonLine { process, inner: Format::default().json().flatten_event(true) };
        return Box::new(layer.json().event_format(ExportSeldom::of(format)));
    }
    let format = TextLine { process, inner: Format::default().with_target(false) };
    Box::new(layer.with_ansi(std::io::stderr().is_terminal()).event_format(ExportSeldom::of(format)))
}

/// One line per minute and part of the span exporter: while nobody takes the spans it would say so with every batch. (A filter that
/// looks at events, not call sites, leaves its verdict behind for the next event of the thread.)
struct ExportSeldom<F> {
    told: Mutex<Seldom<&'static str>>,
    inner: F,
}

impl<F> ExportSeldom<F> {
    fn of(inner: F) -> Self {
        Self { told: Mutex::default(), inner }
    }
}

impl<S, N, F> FormatEvent<S, N> for ExportSeldom<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let target = event.metadata().target();
        let due = !target.starts_with("opentelemetry") || self.told.lock().due(target, Instant::now());
        if due { self.inner.format_event(ctx, out, event) } else { Ok(()) }
    }
}

/// `prefill-0 <time> INFO <message> <fields>`
struct TextLine<F> {
    process: String,
    inner: F,
}

impl<S, N, F> FormatEvent<S, N> for TextLine<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        write!(out, "{} ", self.process)?;
        self.inner.format_event(ctx, out, event)
    }
}

/// `{"process":"prefill-0","timestamp":...}`
struct JsonLine<F> {
    process: String,
    inner: F,
}

impl<S, N, F> FormatEvent<S, N> for JsonLine<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut line = String::new();
        self.inner.format_event(ctx, Writer::new(&mut line), event)?;
        let rest = line.strip_prefix('{').ok_or(fmt::Error)?;
        // Process names are instance names: letters, digits and dashes, so Debug quoting is JSON quoting.
        write!(out, "{{\"process\":{:?},{rest}", self.process)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Captured {
        fn line(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    fn writer(captured: &Captured) -> impl Fn() -> Captured + use<> {
        let captured = captured.clone();
        move || captured.clone()
    }

    #[test]
    fn text_is_one_line_that_names_process_and_fields() {
        let captured = Captured::default();
        let format = TextLine { process: "decode-1".into(), inner: Format::default().with_target(false) };
        let layer = text::layer().with_writer(writer(&captured)).with_ansi(false).event_format(format);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(stage = %types::Stage::Reserved, blocks = 3, "reserved");
        });
        let line = captured.line();
        assert!(line.starts_with("decode-1 "), "{line}");
        assert!(line.ends_with(" INFO reserved stage=reserved blocks=3\n"), "{line}");
    }

    #[test]
    fn json_is_one_object_with_process_and_flat_fields() {
        let captured = Captured::default();
        let format = JsonLine { process: "decode-1".into(), inner: Format::default().json().flatten_event(true) };
        let layer = text::layer().with_writer(writer(&captured)).json().event_format(format);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::info!(stage = %types::Stage::Reserved, blocks = 3, "reserved");
        });
        let line = captured.line();
        assert!(line.starts_with("{\"process\":\"decode-1\",\"timestamp\":"), "{line}");
        assert!(line.contains("\"stage\":\"reserved\",\"blocks\":3"), "{line}");
        assert!(line.ends_with("}\n"), "{line}");
    }

    #[test]
    fn an_export_that_fails_again_and_again_is_told_once_a_minute() {
        let captured = Captured::default();
        let format = ExportSeldom::of(Format::default().with_ansi(false));
        let layer = text::layer().with_writer(writer(&captured)).event_format(format);
        let layer = layer.with_filter(filter(None).unwrap());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for _ in 0..3 {
                tracing::error!(target: "opentelemetry_sdk", "not exported");
                tracing::info!("served");
                tracing::debug!("not asked for");
            }
        });
        let said = captured.line();
        let count = |what: &str| said.lines().filter(|line| line.contains(what)).count();
        assert_eq!((count("not exported"), count("served"), count("not asked for")), (1, 3, 0), "{said}");
    }

    #[test]
    fn logging_starts_once() {
        assert!(init("test-0").is_ok());
        tracing::info!(stage = %types::Stage::Admitted, "a line that goes to stderr");
        assert!(matches!(init("test-0"), Err(Error::Twice)));
    }

    #[test]
    fn wrong_settings_are_named() {
        assert!(filter(None).is_ok());
        assert!(filter(Some("scheduler=debug,info".into())).is_ok());
        let error = filter(Some("a=b=c".into())).unwrap_err().to_string();
        assert!(error.starts_with("PDSERVE_LOG=\"a=b=c\" is no log filter"), "{error}");
        assert_eq!(
            is_json(Some("xml".into())).unwrap_err().to_string(),
            "PDSERVE_LOG_FORMAT=\"xml\" is unknown; use text or json"
        );
        assert!(is_json(Some("json".into())).unwrap());
        assert!(!is_json(None).unwrap());
    }
}
