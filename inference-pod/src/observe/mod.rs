//! What the process tells about itself.
//!
//! ```text
//! what happens ─▸ ModelObserver ─┬─▸ metrics, window      before anybody reads them, never sampled, never dropped
//!                                └─▸ events ─▸ consumers  log, audit, trace: behind bounded channels
//! ```

pub mod asked;
#[cfg(feature = "metrics")]
mod buckets;
#[cfg(feature = "metrics")]
mod collect;
pub mod events;
pub mod health;
pub mod lines;
#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(not(feature = "metrics"))]
#[path = "metrics_off.rs"]
pub mod metrics;
#[cfg(feature = "metrics")]
mod numbers;
pub mod otel;
#[cfg(feature = "metrics")]
mod page;
pub mod process;
pub mod progress;
pub mod route;
pub mod span;
#[cfg(feature = "metrics")]
mod tally;
#[cfg(feature = "metrics")]
mod triton;
pub mod window;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::http::{HeaderMap, HeaderName};
#[cfg(feature = "metrics")]
use prometheus_client::encoding::EncodeLabelValue;
use smallvec::SmallVec;

pub use self::metrics::Metrics;
use self::{
    events::{Batch, Detail, Ended, Event, Events, Kind, Who, redact::Redactor},
    health::Check,
    metrics::ModelMetrics,
    progress::Progress,
    span::{Sampler, Span, TraceId, trace_id},
    window::{Answered, Seen},
};
use crate::queue::Passed;

/// How a request ended. Closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "metrics", derive(EncodeLabelValue))]
#[expect(non_camel_case_types, reason = "the encoder writes variant names as they stand")]
pub enum Outcome {
    /// Answered with a prediction.
    ok,
    /// Refused: the queue was full.
    rejected,
    /// Its deadline passed.
    expired,
    /// Its caller left.
    cancelled,
    /// Its input was wrong.
    invalid,
    /// The run failed.
    failed,
}

impl Outcome {
    /// Whether the model answered, or should have.
    #[must_use]
    pub fn is_of_the_model(self) -> bool {
        matches!(self, Self::ok | Self::expired | Self::failed)
    }
}

/// All of them, in their order.
pub const OUTCOMES: [Outcome; 6] =
    [Outcome::ok, Outcome::rejected, Outcome::expired, Outcome::cancelled, Outcome::invalid, Outcome::failed];

impl Outcome {
    /// Its name in metrics and lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        ["ok", "rejected", "expired", "cancelled", "invalid", "failed"][self as usize]
    }
}

/// Why a request was not answered. Closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "metrics", derive(EncodeLabelValue))]
#[expect(non_camel_case_types, reason = "the encoder writes variant names as they stand")]
pub enum Reason {
    /// 400.
    bad_input,
    /// 413.
    too_large,
    /// 415.
    unsupported_type,
    /// 429.
    queue_full,
    /// 500.
    run_failed,
    /// 503.
    not_ready,
    /// 504.
    deadline,
}

/// All of them, in their order.
pub const REASONS: [Reason; 7] = [
    Reason::bad_input,
    Reason::too_large,
    Reason::unsupported_type,
    Reason::queue_full,
    Reason::run_failed,
    Reason::not_ready,
    Reason::deadline,
];

/// What a model promises and takes, beside its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Most samples in a run.
    pub batch_size: usize,
    /// Longest predicted wait that is let in.
    pub max_wait: Duration,
    /// The latency that the choice of batches is to keep.
    pub latency_objective: Option<Duration>,
}

/// What the queue of a model and its instances hold at a moment, and what has come to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Standing {
    /// What has come to the queue.
    pub passed: Passed,
    /// Samples that wait.
    pub waiting: usize,
    /// Requests that are being decoded, or wait for it.
    pub decoding: usize,
    /// Age of the sample that has waited longest.
    pub oldest: Duration,
    /// Samples that run.
    pub running: usize,
}

/// Memory that an arena of ONNX Runtime holds for a session, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// The same for all sessions that share an arena, and for no others.
    pub arena: usize,
    /// Now.
    pub in_use: u64,
    /// At most.
    pub peak: u64,
}

/// Overload is over when nothing was refused for so long.
const CALM: Duration = Duration::from_secs(5);

/// The client's own name for a request, or ours.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The name of what a request is a part of, where its client gives one.
const CORRELATION_ID: HeaderName = HeaderName::from_static("x-correlation-id");

/// Ids are no longer in what we write.
const LONGEST_ID: usize = 128;

/// What an exemplar's labels may have together; OpenMetrics 1.0.
const LONGEST_EXEMPLAR: usize = 128;

/// What the whole process tells.
pub struct Observer {
    /// Its numbers.
    pub metrics: Metrics,
    /// What happens.
    pub events: Arc<Events>,
    sampler: Option<Sampler>,
    baggage: Vec<String>,
    window: Duration,
}

/// What an [`Observer`] is made of.
pub struct Parts {
    /// Where events go.
    pub events: Arc<Events>,
    /// Decides which requests are traced; nobody where there is no collector.
    pub sampler: Option<Sampler>,
    /// Keys of baggage that are kept.
    pub baggage: Vec<String>,
    /// What `/health/detailed` shows is of the last so much.
    pub window: Duration,
    /// Whether the metrics come once more by the names that Triton gives them.
    pub triton_names: bool,
    /// Version of ONNX Runtime.
    pub runtime_version: String,
}

impl Observer {
    /// Puts it together.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts { events, sampler, baggage, window, triton_names, runtime_version } = parts;
        Self { metrics: Metrics::new(&runtime_version, &events, triton_names), events, sampler, baggage, window }
    }

    /// One that counts, and tells nobody of anything.
    #[must_use]
    pub fn quiet(runtime_version: &str) -> Self {
        let events = Arc::new(Events::quiet());
        Self::new(Parts {
            events,
            sampler: None,
            baggage: Vec::new(),
            window: Duration::from_secs(60),
            triton_names: false,
            runtime_version: runtime_version.to_owned(),
        })
    }

    /// That of one model.
    #[must_use]
    pub fn model(&self, name: &str, bounds: &Bounds) -> ModelObserver {
        ModelObserver(Arc::new(Inner {
            metrics: self.metrics.model(name, bounds, self.window, self.sampler.is_some()),
            model: name.into(),
            events: Arc::clone(&self.events),
            overload: Overload::default(),
            memory: Mutex::default(),
        }))
    }

    /// Share of the requests without a `traceparent` that are traced; `None` where there is no collector.
    #[must_use]
    pub fn trace_sample(&self) -> Option<f64> {
        self.sampler.as_ref().map(Sampler::share)
    }

    /// Another share.
    pub fn set_trace_sample(&self, share: f64) {
        if let Some(sampler) = &self.sampler {
            sampler.set_share(share);
        }
    }

    /// Somebody changed what is told to whom.
    pub fn changed(&self, to: &str) {
        self.tell(Kind::ObservabilityChanged, || Detail::Changed { to: to.to_owned() });
    }

    /// A check of `/health/detailed` changed its mind.
    pub fn health_changed(&self, check: &Check) {
        self.tell(Kind::HealthChanged, || Detail::Health {
            check: check.name,
            status: check.status.name(),
            message: match &check.model {
                Some(model) => format!("model {model}: {}", check.message),
                None => check.message.clone(),
            },
        });
    }

    fn tell(&self, kind: Kind, detail: impl FnOnce() -> Detail) {
        self.events.emit(kind, false, || Event { kind, at: crate::clock::now(), model: "".into(), detail: detail() });
    }

    /// Who asks: decides whether the request is traced.
    #[must_use]
    pub fn caller<'a>(&'a self, headers: &'a HeaderMap, route: &'static str) -> Caller<'a> {
        let span = self.sampler.as_ref().and_then(|sampler| sampler.begin(headers));
        Caller { headers, route, span, baggage: &self.baggage }
    }
}

/// Who asks.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    headers: &'a HeaderMap,
    route: &'static str,
    baggage: &'a [String],
    /// The request's span, where it is traced.
    pub span: Option<Span>,
}

impl Caller<'_> {
    /// What came with the request.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.headers
    }

    fn who(&self) -> Who {
        Who {
            request_id: self.header(&REQUEST_ID).unwrap_or_default(),
            correlation_id: self.header(&CORRELATION_ID),
            trace_id: self.span.map(|span| span.trace).or_else(|| trace_id(self.headers)),
            route: self.route,
            span: self.span,
            // A trace that begins here has none.
            trace_state: self.span.filter(|span| span.parent != 0).and_then(|_| span::trace_state(self.headers)),
            baggage: self.kept_baggage(),
        }
    }

    fn header(&self, name: &HeaderName) -> Option<String> {
        // All of it is ASCII.
        let value = self.headers.get(name)?.to_str().ok()?;
        Some(value[..value.len().min(LONGEST_ID)].to_owned())
    }

    fn kept_baggage(&self) -> Vec<(String, String)> {
        if self.baggage.is_empty() || self.span.is_none() {
            return Vec::new();
        }
        span::baggage(self.headers, self.baggage)
    }

    fn example(&self, events: &Events) -> Option<Example> {
        let trace = self.span?.trace;
        Some(Example { trace, request_id: self.header(&REQUEST_ID), redactor: Arc::clone(events.redactor()) })
    }
}

/// A request that fell into a bucket of the latency, and has a trace that tells more of it.
#[derive(Debug, Clone)]
pub struct Example {
    trace: TraceId,
    /// As it came.
    request_id: Option<String>,
    redactor: Arc<Redactor>,
}

impl Example {
    /// The ids of its trace and, where there is room for it, its own. Cleaned here and not where it is made, which is in the way
    /// of the request: most are replaced before anybody reads them.
    #[must_use]
    pub fn ids(&self) -> (String, Option<String>) {
        let trace_id = self.trace.to_string();
        let room = LONGEST_EXEMPLAR - "trace_idrequest_id".len() - trace_id.len();
        let request_id = self.request_id.as_deref().map(|id| self.redactor.clean(id)).filter(|id| id.len() <= room);
        (trace_id, request_id)
    }
}

/// How a request ended, as far as it is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct End {
    /// How.
    pub outcome: Outcome,
    /// When its headers were there.
    pub began: Instant,
    /// When.
    pub at: Instant,
    /// From body bytes to samples, where it got so far.
    pub decode_time: Option<Duration>,
}

impl End {
    /// From its headers to its answer.
    #[must_use]
    pub fn latency(&self) -> Duration {
        self.at.saturating_duration_since(self.began)
    }

    #[cfg(test)]
    fn after(outcome: Outcome, latency: Duration, at: Instant) -> Self {
        Self { outcome, began: at - latency, at, decode_time: None }
    }
}

/// How a request ended, as its handler knows it.
pub struct Conclusion<'a> {
    /// How.
    pub outcome: Outcome,
    /// Why, where it was not answered.
    pub reason: Option<Reason>,
    /// The HTTP status, or what would be it.
    pub status: u16,
    /// The whole chain of errors; only called where somebody wants to know.
    pub error: &'a dyn Fn() -> Option<String>,
}

/// What is told of one model: a method for each thing that happens.
#[derive(Clone)]
pub struct ModelObserver(Arc<Inner>);

struct Inner {
    metrics: ModelMetrics,
    model: Arc<str>,
    events: Arc<Events>,
    overload: Overload,
    /// What each instance weighed last.
    memory: Mutex<BTreeMap<usize, Memory>>,
}

/// What the arenas hold, each counted once.
fn sum(memory: &BTreeMap<usize, Memory>) -> Memory {
    let arenas: BTreeMap<usize, &Memory> = memory.values().map(|memory| (memory.arena, memory)).collect();
    let add = |sum: Memory, memory: &&Memory| Memory {
        in_use: sum.in_use + memory.in_use,
        peak: sum.peak + memory.peak,
        ..sum
    };
    arenas.values().fold(Memory::default(), add)
}

/// Whether requests are refused.
#[derive(Default)]
struct Overload {
    is_on: AtomicBool,
    refusals: Mutex<Refusals>,
}

#[derive(Default)]
struct Refusals {
    /// Since the process began.
    total: u64,
    overload: Option<Episode>,
}

/// An overload, as long as it lasts.
#[derive(Clone, Copy)]
struct Episode {
    began: Instant,
    /// When a request was refused last.
    last: Instant,
    /// Refused before it.
    before: u64,
}

impl Overload {
    fn refusals(&self) -> MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ModelObserver {
    /// Its numbers.
    #[must_use]
    pub fn metrics(&self) -> &ModelMetrics {
        &self.0.metrics
    }

    /// What was counted and timed in the last minute or so.
    #[must_use]
    pub fn seen(&self, now: Instant) -> Seen {
        self.0.metrics.seen(now)
    }

    /// Requests that were answered since the process began; where a latency is named, also how many of them `within` it.
    #[must_use]
    pub fn answered(&self, within: Option<Duration>) -> Answered {
        self.0.metrics.answered(within)
    }

    /// Requests that the queue has refused since the process began.
    #[must_use]
    pub fn refused_total(&self) -> u64 {
        self.0.overload.refusals().total
    }

    /// Whether requests are refused.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        self.0.overload.is_on.load(Ordering::Relaxed)
    }

    fn emit(&self, kind: Kind, traced: bool, detail: impl FnOnce() -> Detail) {
        let model = &self.0.model;
        self.0.events.emit(kind, traced, || Event {
            kind,
            at: crate::clock::now(),
            model: Arc::clone(model),
            detail: detail(),
        });
    }

    /// A prediction request came in.
    pub fn received(&self, caller: &Caller<'_>) {
        self.emit(Kind::RequestReceived, false, || Detail::Received(caller.who()));
    }

    /// A prediction request that began then ended now.
    pub fn ended(&self, caller: &Caller<'_>, conclusion: &Conclusion<'_>, began: Instant, progress: &Progress) {
        let (outcome, at) = (conclusion.outcome, Instant::now());
        let is_traced = caller.span.is_some();
        if !is_traced {
            self.0.metrics.ended(End { outcome, began, at, decode_time: progress.decode_time() });
        }
        if is_traced || conclusion.reason.is_some() || self.0.events.want(Kind::of(outcome)) {
            let end = End { outcome, began, at, decode_time: progress.decode_time() };
            self.ended_not_only_well(end, caller, conclusion, progress);
        }
    }

    /// Apart from what happens to every request: of that each line of code counts, for by the next request the processor has forgotten
    /// it.
    #[cold]
    fn ended_not_only_well(&self, end: End, caller: &Caller<'_>, conclusion: &Conclusion<'_>, progress: &Progress) {
        let &Conclusion { outcome, reason, status, error } = conclusion;
        if caller.span.is_some() {
            let example = if outcome == Outcome::ok { caller.example(&self.0.events) } else { None };
            self.0.metrics.ended_traced(end, example);
        }
        if let Some(reason) = reason {
            self.0.metrics.error(reason);
        }
        if reason == Some(Reason::queue_full) {
            self.refused(end.at);
        }
        self.emit(Kind::of(outcome), caller.span.is_some(), || {
            let (who, timings, error) = (caller.who(), progress.timings(end.at), error());
            Detail::Ended(Box::new(Ended { who, outcome, status, total: end.latency(), timings, error }))
        });
    }

    fn refused(&self, now: Instant) {
        let overload = &self.0.overload;
        let mut refusals = overload.refusals();
        let before = refusals.total;
        refusals.total += 1;
        match &mut refusals.overload {
            Some(episode) => episode.last = now,
            none => {
                *none = Some(Episode { began: now, last: now, before });
                drop(refusals);
                overload.is_on.store(true, Ordering::Relaxed);
                self.0.metrics.overloaded(true);
                self.emit(Kind::OverloadBegun, false, || Detail::Overload { refused: 1, lasted: Duration::ZERO });
            }
        }
    }

    /// Looks whether an overload is over. To be called now and then.
    pub fn watch(&self, now: Instant) {
        let overload = &self.0.overload;
        if !overload.is_on.load(Ordering::Relaxed) {
            return;
        }
        let mut refusals = overload.refusals();
        let is_over = |episode: &mut Episode| now.saturating_duration_since(episode.last) >= CALM;
        let Some(Episode { began, last, before }) = refusals.overload.take_if(is_over) else { return };
        let refused = refusals.total - before;
        overload.is_on.store(false, Ordering::Relaxed);
        drop(refusals);
        self.0.metrics.overloaded(false);
        self.emit(Kind::OverloadEnded, false, || Detail::Overload { refused, lasted: last - began });
    }

    /// The model was loaded and warmed up.
    pub fn loaded(&self, load: Duration, warmup: Duration, instances: usize, provider: &'static str, batching: &str) {
        self.0.metrics.loaded(load, warmup, instances);
        self.emit(Kind::ModelLoaded, false, || Detail::Loaded {
            load,
            warmup,
            provider,
            batching: batching.to_owned(),
        });
        for index in 0..instances {
            self.emit(Kind::InstanceStarted, false, || Detail::Instance {
                index,
                cause: "the model was loaded".to_owned(),
            });
        }
    }

    /// An instance was given up: its run did not come back.
    pub fn instance_lost(&self, index: usize) {
        self.0.metrics.instance_lost();
        let cause = || "a terminated run did not come back".to_owned();
        self.emit(Kind::InstanceEvicted, false, || Detail::Instance { index, cause: cause() });
    }

    /// An instance's session broke; another is being opened in its place.
    pub fn instance_broke(&self, index: usize, cause: &str) {
        self.0.metrics.instance_broke();
        self.emit(Kind::InstanceCrashed, false, || Detail::Instance { index, cause: cause.to_owned() });
    }

    /// A session was opened in place of a broken one.
    pub fn instance_mended(&self, index: usize) {
        self.0.metrics.instance_mended();
        let cause = || "opened in place of a broken one".to_owned();
        self.emit(Kind::InstanceStarted, false, || Detail::Instance { index, cause: cause() });
    }

    /// An instance was given up: no session could be opened in place of a broken one.
    pub fn broken_instance_lost(&self, index: usize) {
        self.0.metrics.broken_instance_lost();
        self.weigh(|instances| _ = instances.remove(&index));
        let cause = || "no session could be opened in place of a broken one".to_owned();
        self.emit(Kind::InstanceEvicted, false, || Detail::Instance { index, cause: cause() });
    }

    /// What the arena of an instance holds.
    pub fn weighed(&self, index: usize, memory: Memory) {
        self.weigh(|instances| {
            // Whoever shares it weighed it earlier.
            instances.values_mut().filter(|other| other.arena == memory.arena).for_each(|other| *other = memory);
            instances.insert(index, memory);
        });
    }

    fn weigh(&self, change: impl FnOnce(&mut BTreeMap<usize, Memory>)) {
        let mut instances = self.0.memory.lock().unwrap_or_else(PoisonError::into_inner);
        let were_there = !instances.is_empty();
        change(&mut instances);
        // Where none says what it holds there is no number.
        if were_there || !instances.is_empty() {
            self.0.metrics.memory(sum(&instances));
        }
    }

    /// Bytes that the arenas of the model's instances held when somebody looked last; `None` where nobody knows.
    #[must_use]
    pub fn memory_bytes(&self) -> Option<u64> {
        let instances = self.0.memory.lock().unwrap_or_else(PoisonError::into_inner);
        Some(sum(&instances).in_use).filter(|bytes| *bytes > 0)
    }

    /// Whether anybody wants to know of a batch with these spans among its jobs.
    #[must_use]
    pub fn wants_batch(&self, links: &[Span]) -> bool {
        !links.is_empty() || self.0.events.want(Kind::BatchRun)
    }

    /// A batch ran.
    pub fn batch_ran(&self, batch: Batch) {
        self.emit(Kind::BatchRun, batch.span.is_some(), || Detail::Batch(batch));
    }
}

/// The spans of the jobs of a batch that are traced.
pub type Links = SmallVec<[Span; 4]>;
