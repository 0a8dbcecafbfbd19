//! A trace for each reconcile, sent to a collector by OTLP over HTTP.
//!
//! ```text
//! reconcile
//! ├─ observe
//! ├─ validate
//! ├─ build
//! ├─ apply
//! └─ status
//! ```
//!
//! A reconcile leaves its spans in the [`outbox`] and waits for nobody. Its log lines carry its trace's id.

mod outbox;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use crds::resource::InferenceModel;
use kube::ResourceExt as _;
use opentelemetry::{
    Context, InstrumentationScope, KeyValue,
    trace::{Span as _, SpanBuilder, Status, TraceContextExt as _, TraceId, Tracer as _, TracerProvider as _},
};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkError,
    trace::{Sampler, SdkTracer, SdkTracerProvider, SpanExporter as _},
};

use self::outbox::Outbox;
use crate::{
    clock,
    metrics::{Metrics, ReconcileResult, Step},
};

/// A collector that takes longer is none.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(5);

/// What is left at the end is sent within this time or not at all.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Why no traces can be sent.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The address is no URL, for example.
    #[error("cannot send traces to {url}")]
    Exporter {
        /// Where they should go.
        url: String,
        /// Why they cannot.
        source: ExporterBuildError,
    },
    /// No client.
    #[error("cannot make a client for traces")]
    Client(#[from] reqwest::Error),
    /// No runtime, or no thread.
    #[error("cannot wait for a collector")]
    Waiting(#[from] std::io::Error),
}

/// Where traces go, and which.
#[derive(Debug)]
pub struct Destination {
    /// The whole address, with its path.
    pub url: String,
    /// The share of reconciles that are traced; None: what the variable OTEL_TRACES_SAMPLER says, else all.
    pub sample: Option<f64>,
    /// The name of this process among those of its kind.
    pub identity: String,
}

/// Makes traces. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// Sends to that place. The variables OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say who we are, OTEL_EXPORTER_OTLP_HEADERS
    /// what the collector wants to know beside.
    ///
    /// # Errors
    /// [`TraceError`].
    pub fn new(to: &Destination, metrics: Arc<Metrics>) -> Result<Self, TraceError> {
        // Whoever installed one before us has one that does.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(EXPORT_TIMEOUT).build()?;
        let exporter = SpanExporter::builder().with_http().with_http_client(client).with_endpoint(&to.url);
        let exporter = exporter.with_timeout(EXPORT_TIMEOUT).build();
        let mut exporter = exporter.map_err(|source| TraceError::Exporter { url: to.url.clone(), source })?;
        exporter.set_resource(&resource(&to.identity));
        let mut provider = SdkTracerProvider::builder().with_span_processor(Outbox::open(exporter, metrics)?);
        if let Some(share) = to.sample {
            provider = provider.with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(share))));
        }
        let provider = provider.build();
        let scope = InstrumentationScope::builder("ortolan").with_version(env!("CARGO_PKG_VERSION")).build();
        let tracer = provider.tracer_with_scope(scope);
        Ok(Self { provider, tracer })
    }

    /// A reconcile begins; None where it is not among those that are traced.
    #[must_use]
    pub fn begin(&self, model: &InferenceModel) -> Option<Trace> {
        let (began, at) = (Instant::now(), SystemTime::from(clock::now()));
        let root = self.tracer.build_with_context(named("reconcile".into(), at), &Context::new());
        if !root.span_context().is_sampled() {
            return None;
        }
        let context = Context::new().with_span(root);
        context.span().set_attributes(attributes(model));
        Some(Trace { tracer: self.tracer.clone(), context, began, at })
    }

    /// Sends what is left, for a second at most. No trace is made afterwards.
    ///
    /// # Errors
    /// Where that was not enough.
    pub async fn end(self) -> Result<(), OTelSdkError> {
        let ended = tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(END_TIMEOUT)).await;
        ended.map_err(|error| OTelSdkError::InternalFailure(error.to_string()))?
    }
}

/// Who we are; what the environment says goes first.
fn resource(identity: &str) -> Resource {
    let from_environment = Resource::builder().build();
    let unnamed =
        from_environment.get(&"service.name".into()).is_none_or(|name| name.as_str().starts_with("unknown_service"));
    let mut attributes = vec![
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", identity.to_owned()),
    ];
    if unnamed {
        attributes.push(KeyValue::new("service.name", "ortolan-operator"));
    }
    Resource::builder().with_attributes(attributes).build()
}

fn attributes(model: &InferenceModel) -> Vec<KeyValue> {
    vec![
        KeyValue::new("k8s.namespace.name", model.namespace().unwrap_or_default()),
        KeyValue::new("ortolan.inference_model", model.name_any()),
        KeyValue::new("ortolan.uid", model.uid().unwrap_or_default()),
        KeyValue::new("ortolan.generation", model.metadata.generation.unwrap_or_default()),
    ]
}

fn named(name: Cow<'static, str>, at: SystemTime) -> SpanBuilder {
    SpanBuilder::from_name(name).with_start_time(at)
}

/// The trace of one reconcile.
pub struct Trace {
    tracer: SdkTracer,
    context: Context,
    began: Instant,
    /// The same moment by the clock.
    at: SystemTime,
}

/// A step that has ended.
pub struct Stretch {
    /// Which one.
    pub step: Step,
    /// When it began.
    pub from: Instant,
    /// When it ended.
    pub to: Instant,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

/// How a reconcile ended.
pub struct Ending {
    /// As it is counted; None where it is not, for whoever leads goes on with it, or nobody.
    pub result: Option<ReconcileResult>,
    /// When it is begun again, if nothing happens.
    pub requeue: Option<Duration>,
    /// Why it failed, if it did.
    pub error: Option<String>,
}

impl Trace {
    /// What makes this the trace of whatever a future does.
    #[must_use]
    pub fn context(&self) -> Context {
        self.context.clone()
    }

    /// A step has ended.
    pub fn step(&self, stretch: Stretch) {
        let Stretch { step, from, to, error } = stretch;
        // As its label is written.
        let name = format!("{step:?}").into();
        let mut span = self.tracer.build_with_context(named(name, self.time(from)), &self.context);
        if let Some(error) = error {
            span.set_status(Status::error(error));
        }
        span.end_with_timestamp(self.time(to));
    }

    /// The reconcile has ended.
    pub fn ended(&self, ending: Ending) {
        let Ending { result, requeue, error } = ending;
        let span = self.context.span();
        let result = result.map_or_else(|| "left".to_owned(), |result| format!("{result:?}"));
        span.set_attribute(KeyValue::new("ortolan.result", result));
        if let Some(requeue) = requeue {
            span.set_attribute(KeyValue::new("ortolan.requeue_seconds", requeue.as_secs_f64()));
        }
        if let Some(error) = error {
            span.set_status(Status::error(error));
        }
        span.end_with_timestamp(self.time(Instant::now()));
    }

    fn time(&self, moment: Instant) -> SystemTime {
        self.at + moment.saturating_duration_since(self.began)
    }
}

/// The trace that whoever asks is a part of, where it is sent.
#[must_use]
pub fn current() -> Option<TraceId> {
    Context::map_current(|context| {
        let span = context.span().span_context().clone();
        span.is_sampled().then(|| span.trace_id())
    })
}
