//! Events of traced requests as spans, sent to a collector by OTLP over HTTP.
//!
//! ```text
//! request                     in its caller's trace, or in one of its own
//! ├─ decode
//! ├─ queue
//! └─ inference                linked to the batch that ran it
//!
//! batch                       a trace of its own, linked to its requests that are traced
//! └─ session run
//! ```

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, SystemTime},
};

use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{Link, SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceState},
};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{SpanData, SpanExporter as _, SpanLinks},
};
use tokio::runtime;

use super::{Batch, Detail, Ended, Event, consumer::Consumer};
use crate::observe::{Outcome, span::Span};

/// A collector that takes longer is none.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Sends spans.
pub struct Traces {
    exporter: SpanExporter,
    /// The exporter waits on it; nobody else does.
    waiting: runtime::Runtime,
    scope: InstrumentationScope,
}

/// Why no traces can be sent.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The endpoint is no URL, for example.
    #[error("observability.tracing.endpoint")]
    Exporter(#[from] ExporterBuildError),
    /// No client.
    #[error("cannot make a client for traces")]
    Client(#[from] reqwest::Error),
    /// No runtime.
    #[error("cannot wait for a collector")]
    Waiting(#[from] std::io::Error),
}

impl Traces {
    /// Sends to the collector at that base URL. The variables OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say who we are,
    /// OTEL_EXPORTER_OTLP_HEADERS what the collector wants to know beside.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn new(endpoint: &str, service: &str, revision: Option<&str>) -> Result<Self, TraceError> {
        // Whoever installed one before us has one that does.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(TIMEOUT).build()?;
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(TIMEOUT)
            .build()?;
        exporter.set_resource(&resource(service, revision));
        let scope = InstrumentationScope::builder("ortolan").with_version(env!("CARGO_PKG_VERSION")).build();
        let waiting = runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { exporter, waiting, scope })
    }
}

/// Who we are; what the environment says goes first.
fn resource(service: &str, revision: Option<&str>) -> Resource {
    let from_environment = Resource::builder().build();
    let unnamed =
        from_environment.get(&"service.name".into()).is_none_or(|name| name.as_str().starts_with("unknown_service"));
    let mut attributes = vec![KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))];
    if unnamed {
        attributes.push(KeyValue::new("service.name", service.to_owned()));
    }
    attributes.extend(revision.map(|revision| KeyValue::new("ortolan.revision", revision.to_owned())));
    Resource::builder().with_attributes(attributes).build()
}

impl Consumer for Traces {
    fn consume(&mut self, events: &[Arc<Event>]) -> Result<(), Box<dyn Error + Send + Sync>> {
        let spans = events.iter().flat_map(|event| self.spans(event)).collect();
        self.waiting.block_on(self.exporter.export(spans))?;
        Ok(())
    }
}

/// A span before it is written down.
struct Draft {
    name: &'static str,
    kind: SpanKind,
    span: Span,
    parent_is_remote: bool,
    from: SystemTime,
    time: Duration,
    attributes: Vec<KeyValue>,
    links: Vec<Span>,
    status: Status,
}

impl Draft {
    fn new(name: &'static str, span: Span, from: SystemTime, time: Duration) -> Self {
        let (attributes, links) = (Vec::new(), Vec::new());
        let (kind, status) = (SpanKind::Internal, Status::Unset);
        Self { name, kind, span, parent_is_remote: false, from, time, attributes, links, status }
    }
}

impl Traces {
    fn spans(&self, event: &Event) -> Vec<SpanData> {
        let drafts = match &event.detail {
            Detail::Ended(ended) => of_request(event, ended),
            Detail::Batch(batch) => of_batch(event, batch),
            _ => Vec::new(),
        };
        drafts.into_iter().map(|draft| self.written(draft)).collect()
    }

    fn written(&self, draft: Draft) -> SpanData {
        let Draft { name, kind, span, parent_is_remote, from, time, attributes, links, status } = draft;
        let mut span_links = SpanLinks::default();
        span_links.links = links.into_iter().map(|link| Link::with_context(context(link))).collect();
        SpanData {
            span_context: context(span),
            parent_span_id: SpanId::from(span.parent),
            parent_span_is_remote: parent_is_remote,
            span_kind: kind,
            name: name.into(),
            start_time: from,
            end_time: from + time,
            attributes,
            dropped_attributes_count: 0,
            events: opentelemetry_sdk::trace::SpanEvents::default(),
            links: span_links,
            status,
            instrumentation_scope: self.scope.clone(),
        }
    }
}

fn context(span: Span) -> SpanContext {
    let (trace, id) = (span.trace.0.into(), SpanId::from(span.id));
    SpanContext::new(trace, id, TraceFlags::SAMPLED, false, TraceState::NONE)
}

fn of_request(event: &Event, ended: &Ended) -> Vec<Draft> {
    let Ended { who, outcome, status, total, timings, error } = ended;
    let Some(span) = who.span else { return Vec::new() };
    let began = event.at - *total;
    let mut request = Draft::new("request", span, began, *total);
    request.kind = SpanKind::Server;
    request.parent_is_remote = span.parent != 0;
    request.attributes = vec![
        KeyValue::new("http.route", who.route),
        KeyValue::new("http.response.status_code", i64::from(*status)),
        KeyValue::new("ortolan.model", event.model.to_string()),
        KeyValue::new("ortolan.request_id", who.request_id.clone()),
        KeyValue::new("ortolan.outcome", outcome.name()),
    ];
    let correlation = who.correlation_id.iter().map(|id| KeyValue::new("ortolan.correlation_id", id.clone()));
    let baggage = who.baggage.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    request.attributes.extend(correlation.chain(baggage));
    if matches!(outcome, Outcome::failed | Outcome::expired) {
        request.status = Status::error(error.clone().unwrap_or_default());
    }
    let batch_size = timings.batch_samples.map(|samples| KeyValue::new("ortolan.batch_size", samples as i64));
    request.attributes.extend(batch_size);
    let part = |name, (from, time): (Duration, Duration)| Draft::new(name, span.child(), began + from, time);
    let run = timings.queue.zip(timings.run).map(|((entered, waited), run)| (entered + waited, run));
    let inference = run.map(|run| {
        let mut inference = part("inference", run);
        inference.links.extend(timings.batch);
        inference.status = request.status.clone();
        inference
    });
    let decode = timings.decode.map(|decode| part("decode", decode));
    let queue = timings.queue.map(|queue| part("queue", queue));
    [Some(request), decode, queue, inference].into_iter().flatten().collect()
}

fn of_batch(event: &Event, batch: &Batch) -> Vec<Draft> {
    let Some(span) = batch.span else { return Vec::new() };
    let began = event.at - batch.run;
    let mut whole = Draft::new("batch", span, began, batch.run);
    whole.links = batch.links.to_vec();
    whole.attributes = vec![
        KeyValue::new("ortolan.model", event.model.to_string()),
        KeyValue::new("ortolan.instance", batch.instance as i64),
        KeyValue::new("ortolan.batch_size", batch.samples as i64),
        KeyValue::new("ortolan.jobs", batch.jobs as i64),
    ];
    if !batch.ok {
        whole.status = Status::error("the run failed");
    }
    vec![whole, Draft::new("session run", span.child(), began, batch.run)]
}
