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
use crate::observe::{Outcome, otel::Tracing, span::Span};

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
    /// Sends to the collector at that URL. The variables OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say who we are and win
    /// over `who`, OTEL_EXPORTER_OTLP_HEADERS says what the collector wants to know beside.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn new(tracing: &Tracing, who: &Resident<'_>) -> Result<Self, TraceError> {
        let Tracing { url, timeout, sampling: _ } = tracing;
        // Whoever installed one before us has one that does.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(*timeout).build()?;
        let mut exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_endpoint(url)
            .with_timeout(*timeout)
            .build()?;
        exporter.set_resource(&resource(Resource::builder().build(), who));
        let scope = InstrumentationScope::builder("ortolan").with_version(env!("CARGO_PKG_VERSION")).build();
        let waiting = runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Self { exporter, waiting, scope })
    }
}

/// Who sends the spans, where the environment says nothing else.
#[derive(Debug, Clone, Copy)]
pub struct Resident<'a> {
    /// Name of the service.
    pub service: &'a str,
    /// The variable OTEL_SERVICE_NAME, which is stronger than all else.
    pub named: Option<&'a str>,
    /// Name of the host: in Kubernetes that of the pod.
    pub host: Option<&'a str>,
    /// The revision that this process belongs to.
    pub revision: Option<&'a str>,
}

/// What the environment says, and of `who` what it says nothing of.
fn resource(from_environment: Resource, who: &Resident<'_>) -> Resource {
    let Resident { service, named, host, revision } = *who;
    let says = |key: &'static str| {
        let said = from_environment.get(&key.into());
        // The library's own word where nobody has said anything.
        said.is_some_and(|value| !value.as_str().starts_with("unknown_service"))
    };
    let ours = [
        ("service.name", Some(service)),
        ("service.version", Some(env!("CARGO_PKG_VERSION"))),
        ("service.instance.id", host),
        ("ortolan.revision", revision),
    ];
    let unsaid = ours.into_iter().filter(|(key, _)| !says(key)).chain([("service.name", named)]);
    let missing = unsaid.filter_map(|(key, value)| Some(KeyValue::new(key, value?.to_owned())));
    let attributes = from_environment.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
    Resource::builder_empty().with_attributes(attributes.chain(missing)).build()
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
    state: TraceState,
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
        let state = TraceState::NONE;
        Self { name, kind, span, parent_is_remote: false, state, from, time, attributes, links, status }
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
        let Draft { name, kind, span, parent_is_remote, state, from, time, attributes, links, status } = draft;
        let mut span_links = SpanLinks::default();
        span_links.links = links.into_iter().map(|link| Link::with_context(context(link, TraceState::NONE))).collect();
        SpanData {
            span_context: context(span, state),
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

fn context(span: Span, state: TraceState) -> SpanContext {
    let (trace, id) = (span.trace.0.into(), SpanId::from(span.id));
    SpanContext::new(trace, id, TraceFlags::SAMPLED, false, state)
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
    // What is no state is not passed on.
    let state = who.trace_state.as_deref().and_then(|state| state.parse().ok()).unwrap_or(TraceState::NONE);
    let drafts = [Some(request), decode, queue, inference].into_iter().flatten();
    drafts.map(|draft| Draft { state: state.clone(), ..draft }).collect()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::events::{Kind, Timings, Who};

    #[test]
    fn what_the_environment_says_of_us_wins_and_the_rest_is_ours() {
        let said = |attributes: &[(&'static str, &'static str)], named| {
            let attributes = attributes.iter().map(|(key, value)| KeyValue::new(*key, *value));
            let environment = Resource::builder_empty().with_attributes(attributes).build();
            let who = Resident { service: "ours", named, host: Some("pod-7"), revision: Some("r3") };
            let resource = resource(environment, &who);
            ["service.name", "service.version", "service.instance.id", "ortolan.revision", "team"]
                .map(|key| resource.get(&key.into()).map(|value| value.to_string()).unwrap_or_default())
        };
        let version = env!("CARGO_PKG_VERSION");
        assert_eq!(said(&[("service.name", "unknown_service:x")], None), ["ours", version, "pod-7", "r3", ""]);
        let theirs =
            [("service.name", "theirs"), ("service.version", "9"), ("service.instance.id", "i"), ("team", "t")];
        assert_eq!(said(&theirs, None), ["theirs", "9", "i", "r3", "t"]);
        assert_eq!(said(&theirs, Some("named")), ["named", "9", "i", "r3", "t"]);
    }

    #[test]
    fn spans_of_a_request_carry_the_state_of_its_trace() {
        let states = |state: &str| {
            let who = Who { span: Some(Span::root()), trace_state: Some(state.to_owned()), ..Who::default() };
            let timings = Timings { decode: Some((Duration::ZERO, Duration::ZERO)), ..Timings::default() };
            let (outcome, status, total, error) = (Outcome::ok, 200, Duration::ZERO, None);
            let ended = Ended { who, outcome, status, total, timings, error };
            let detail = Detail::Ended(Box::new(ended.clone()));
            let event = Event { kind: Kind::RequestCompleted, at: crate::clock::now(), model: "m".into(), detail };
            of_request(&event, &ended).into_iter().map(|draft| draft.state.header()).collect::<Vec<_>>()
        };
        assert_eq!(states("blue=1,red=2"), ["blue=1,red=2", "blue=1,red=2"]);
        assert_eq!(states("none"), ["", ""]);
    }
}
