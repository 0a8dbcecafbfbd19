//! The metrics of one model: what it counts and times, and a method for each thing that happens.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, LabelSetEncoder, MetricEncoder},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        exemplar::HistogramWithExemplars,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::exponential_buckets,
    },
    registry::Registry,
};

use super::{
    Bounds, End, Example, Memory, OUTCOMES, Outcome, REASONS, Reason, Standing,
    buckets::Buckets,
    page::{Part, Watched},
    tally::Tally,
    triton::Totals,
    window::{Answered, Maximum, Seen, Window},
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabel {
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    model: String,
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    model: String,
    reason: Reason,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    model: String,
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabels {
    model: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabels {
    model: String,
    provider: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ExampleLabels {
    trace_id: String,
    request_id: Option<String>,
}

impl EncodeLabelSet for Example {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> Result<(), fmt::Error> {
        let (trace_id, request_id) = self.ids();
        ExampleLabels { trace_id, request_id }.encode(encoder)
    }
}

type Seconds = Gauge<f64, AtomicU64>;

/// What was looked up when somebody scraped.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
struct Found {
    standing: Standing,
    /// Most samples that waited.
    deepest: usize,
    longest_latency: Duration,
}

/// What the ends of requests change.
pub struct Ends {
    outcomes: [u64; OUTCOMES.len()],
    latency: Latency,
    latency_max: Maximum,
    decode_time: Buckets,
    triton: Option<Arc<Totals>>,
}

impl Ends {
    /// A request has ended.
    pub fn count(&mut self, end: &End, latency: Duration, example: Option<Example>) {
        let End { outcome, decode_time, at, .. } = *end;
        self.outcomes[outcome as usize] += 1;
        if let Some(time) = decode_time {
            self.decode_time.observe_time(time);
        }
        // Who is refused is told within a millisecond: beside many of those nobody would see how slow the answers are.
        if outcome.is_of_the_model() {
            self.latency.observe(latency, example);
            self.latency_max.record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX), at);
        }
        if let Some(triton) = &self.triton {
            triton.ended(outcome, latency, decode_time);
        }
    }
}

/// The latency of requests. The histogram with exemplars has two locks of its own, so it is there only where requests are traced.
#[derive(Debug)]
enum Latency {
    Plain(Buckets),
    WithExemplars(HistogramWithExemplars<Example>),
}

impl Latency {
    fn new(bounds: Vec<f64>, traced: bool) -> Self {
        if traced {
            Self::WithExemplars(HistogramWithExemplars::new(bounds.into_iter()))
        } else {
            Self::Plain(Buckets::of_times(bounds))
        }
    }

    fn observe(&mut self, time: Duration, example: Option<Example>) {
        match self {
            Self::Plain(buckets) => buckets.observe_time(time),
            Self::WithExemplars(histogram) => histogram.observe(time.as_secs_f64(), example, None),
        }
    }

    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Plain(buckets) => buckets.encode(encoder),
            Self::WithExemplars(histogram) => histogram.encode(encoder),
        }
    }
}

/// What runs change, all of it under one lock.
#[derive(Debug)]
struct Runs {
    queue_time: Buckets,
    inference_time: Buckets,
    batch_size: Buckets,
}

/// One of a model's metrics that are kept together.
#[derive(Debug)]
struct Shown<T> {
    label: ModelLabel,
    kept: Arc<T>,
    kind: MetricType,
    encode: fn(&T, &ModelLabel, MetricEncoder<'_>) -> fmt::Result,
}

impl<T: fmt::Debug> EncodeMetric for Shown<T> {
    fn encode(&self, encoder: MetricEncoder<'_>) -> fmt::Result {
        (self.encode)(&self.kept, &self.label, encoder)
    }

    fn metric_type(&self) -> MetricType {
        self.kind
    }
}

fn locked<T>(kept: &Mutex<T>) -> MutexGuard<'_, T> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Default)]
struct Families {
    errors: Family<ReasonLabels, Counter>,
    queue_limit: Family<ModelLabel, Seconds>,
    batch_size_limit: Family<ModelLabel, Gauge>,
    load_seconds: Family<ModelLabel, Seconds>,
    warmup_seconds: Family<ModelLabel, Seconds>,
    instances: Family<StateLabels, Gauge>,
    starts: Family<ModelLabel, Counter>,
    crashes: Family<ModelLabel, Counter>,
    evictions: Family<ModelLabel, Counter>,
    overloaded: Family<ModelLabel, Gauge>,
    objective: Family<ModelLabel, Seconds>,
    objective_feasible: Family<ModelLabel, Gauge>,
    memory: Family<KindLabels, Gauge>,
    provider: Family<ProviderLabels, Gauge>,
    fallback: Family<ModelLabel, Gauge>,
}

/// 1 ms to 16 s by steps of two, half a second (the shipped bound of the queue), and the model's own objective.
pub(super) fn latency_bounds(objective: Option<Duration>) -> Vec<f64> {
    let mut bounds: Vec<f64> = exponential_buckets(0.001, 2.0, 15).chain([0.5]).collect();
    bounds.extend(objective.map(|objective| objective.as_secs_f64()));
    bounds.sort_by(f64::total_cmp);
    bounds.dedup();
    bounds
}

/// 0.2 ms to 0.8 s by steps of two.
fn queue_buckets() -> Buckets {
    Buckets::of_times(exponential_buckets(0.000_2, 2.0, 13))
}

/// 0.2 ms to 1.6 s by steps of two.
fn inference_buckets() -> Buckets {
    Buckets::of_times(exponential_buckets(0.000_2, 2.0, 14))
}

/// 0.2 ms to 0.2 s by steps of two.
fn decode_buckets() -> Buckets {
    Buckets::of_times(exponential_buckets(0.000_2, 2.0, 11))
}

/// The model's buckets: powers of two, and the largest batch.
fn batch_buckets(batch_size: usize) -> Buckets {
    let powers = exponential_buckets(1.0, 2.0, 11).filter(|size| *size < batch_size as f64);
    Buckets::of_numbers(powers.chain([batch_size as f64]))
}

fn encode_outcomes(tally: &Tally, label: &ModelLabel, mut encoder: MetricEncoder<'_>) -> fmt::Result {
    let outcomes = tally.counted().ends.outcomes;
    OUTCOMES.iter().zip(outcomes).try_for_each(|(outcome, count)| {
        let labels = OutcomeLabels { model: label.model.clone(), outcome: *outcome };
        ConstCounter::new(count).encode(encoder.encode_family(&labels)?)
    })
}

fn encode_counter(count: u64, label: &ModelLabel, mut encoder: MetricEncoder<'_>) -> fmt::Result {
    ConstCounter::new(count).encode(encoder.encode_family(label)?)
}

fn encode_gauge(count: usize, label: &ModelLabel, mut encoder: MetricEncoder<'_>) -> fmt::Result {
    ConstGauge::new(i64::try_from(count).unwrap_or(i64::MAX)).encode(encoder.encode_family(label)?)
}

fn encode_seconds(time: Duration, label: &ModelLabel, mut encoder: MetricEncoder<'_>) -> fmt::Result {
    ConstGauge::new(time.as_secs_f64()).encode(encoder.encode_family(label)?)
}

impl Families {
    fn register(&self, r: &mut Registry, handles: &Handles) {
        let of_ends =
            |kind, encode| Shown { label: handles.label.clone(), kept: Arc::clone(&handles.tally), kind, encode };
        let of_runs = |encode| {
            let (label, kept) = (handles.label.clone(), Arc::clone(&handles.runs));
            Shown { label, kept, kind: MetricType::Histogram, encode }
        };
        let found =
            |kind, encode| Shown { label: handles.label.clone(), kept: Arc::clone(&handles.found), kind, encode };
        let counter = |encode| found(MetricType::Counter, encode);
        let gauge = |encode| found(MetricType::Gauge, encode);
        r.register(
            "requests_received",
            "Prediction requests that named a model we serve",
            counter(|found, label, encoder| encode_counter(locked(found).standing.passed.asked, label, encoder)),
        );
        r.register("requests", "Prediction requests by how they ended", of_ends(MetricType::Counter, encode_outcomes));
        r.register("errors", "Prediction requests that were not answered, by reason", self.errors.clone());
        r.register(
            "request_latency_seconds",
            "From the headers of a request to its answer, of those that were answered, failed or passed their deadline",
            of_ends(MetricType::Histogram, |tally, label, mut encoder| {
                tally.counted().ends.latency.encode(encoder.encode_family(label)?)
            }),
        );
        r.register(
            "request_latency_max_seconds",
            "The longest from the headers of a request to its answer, in the last minute",
            gauge(|found, label, encoder| encode_seconds(locked(found).longest_latency, label, encoder)),
        );
        r.register(
            "queue_time_seconds",
            "From the queue's entrance to the start of the run",
            of_runs(|runs, label, mut encoder| locked(runs).queue_time.encode(encoder.encode_family(label)?)),
        );
        r.register(
            "inference_time_seconds",
            "Time of a run of ONNX Runtime",
            of_runs(|runs, label, mut encoder| locked(runs).inference_time.encode(encoder.encode_family(label)?)),
        );
        r.register(
            "decode_time_seconds",
            "From body bytes to samples",
            of_ends(MetricType::Histogram, |tally, label, mut encoder| {
                tally.counted().ends.decode_time.encode(encoder.encode_family(label)?)
            }),
        );
        r.register(
            "batch_size",
            "Samples in a run",
            of_runs(|runs, label, mut encoder| locked(runs).batch_size.encode(encoder.encode_family(label)?)),
        );
        r.register("batch_size_limit", "Most samples in a run", self.batch_size_limit.clone());
        r.register(
            "queue_depth",
            "Samples that wait",
            gauge(|found, label, encoder| encode_gauge(locked(found).standing.waiting, label, encoder)),
        );
        r.register(
            "queue_depth_max",
            "Most samples that waited in the last minute",
            gauge(|found, label, encoder| encode_gauge(locked(found).deepest, label, encoder)),
        );
        r.register(
            "queue_limit_seconds",
            "Longest predicted wait that is let in (max_queue_ms)",
            self.queue_limit.clone(),
        );
        r.register(
            "decoding_requests",
            "Requests that have come in whole and are being decoded, or wait for it",
            gauge(|found, label, encoder| encode_gauge(locked(found).standing.decoding, label, encoder)),
        );
        r.register(
            "inflight_samples",
            "Samples that run",
            gauge(|found, label, encoder| encode_gauge(locked(found).standing.running, label, encoder)),
        );
        r.register(
            "queue_oldest_age_seconds",
            "Age of the sample that has waited longest",
            gauge(|found, label, encoder| encode_seconds(locked(found).standing.oldest, label, encoder)),
        );
        r.register(
            "samples_enqueued",
            "Samples let into the queue",
            counter(|found, label, encoder| encode_counter(locked(found).standing.passed.entered, label, encoder)),
        );
        r.register(
            "samples_dequeued",
            "Samples that left the queue, whatever the reason",
            counter(|found, label, encoder| encode_counter(locked(found).standing.passed.left, label, encoder)),
        );
        r.register(
            "overloaded",
            "1 while requests are refused because the queue is full, else 0",
            self.overloaded.clone(),
        );
        r.register("model_load_seconds", "Time from file to session", self.load_seconds.clone());
        r.register("model_warmup_seconds", "Time of probe and warm-up", self.warmup_seconds.clone());
        r.register("instances", "Instances by state", self.instances.clone());
        r.register("instance_starts", "Sessions that were opened for instances", self.starts.clone());
        r.register("instance_crashes", "Sessions that broke or panicked and were opened anew", self.crashes.clone());
        r.register("instance_evictions", "Instances that were given up", self.evictions.clone());
        r.register("latency_objective_seconds", "latency_objective_ms; only with an objective", self.objective.clone());
        r.register(
            "latency_objective_feasible",
            "1 where a batch can keep latency_objective_ms, 0 where none can; only with an objective",
            self.objective_feasible.clone(),
        );
        r.register(
            "model_memory_bytes",
            "Memory that ONNX Runtime's arenas hold for a model's instances, now and at most; only where they say so",
            self.memory.clone(),
        );
        r.register("execution_provider_info", "The execution provider really in use", self.provider.clone());
        r.register(
            "provider_fallback",
            "1 where another execution provider is in use than the first that was wanted, else 0",
            self.fallback.clone(),
        );
    }

    fn handles(&self, name: &str, bounds: &Bounds, extras: Extras) -> Handles {
        let Extras { traced, window, triton } = extras;
        let label = ModelLabel { model: name.to_owned() };
        let error = |reason| self.errors.get_or_create_owned(&ReasonLabels { model: name.to_owned(), reason });
        let state = |state| self.instances.get_or_create_owned(&StateLabels { model: name.to_owned(), state });
        let now = Instant::now();
        self.queue_limit.get_or_create(&label).set(bounds.max_wait.as_secs_f64());
        self.batch_size_limit.get_or_create(&label).set(i64::try_from(bounds.batch_size).unwrap_or(i64::MAX));
        if let Some(objective) = bounds.latency_objective {
            self.objective.get_or_create(&label).set(objective.as_secs_f64());
        }
        let ends = Ends {
            outcomes: [0; OUTCOMES.len()],
            latency: Latency::new(latency_bounds(bounds.latency_objective), traced),
            latency_max: Maximum::new(now),
            decode_time: decode_buckets(),
            triton: triton.clone(),
        };
        let runs = Runs {
            queue_time: queue_buckets(),
            inference_time: inference_buckets(),
            batch_size: batch_buckets(bounds.batch_size),
        };
        Handles {
            found: Arc::default(),
            depth_max: Mutex::new(Maximum::new(now)),
            tally: Arc::new(Tally::new(ends, Window::new(window, now))),
            runs: Arc::new(Mutex::new(runs)),
            errors: REASONS.map(error),
            overloaded: self.overloaded.get_or_create_owned(&label),
            load_seconds: self.load_seconds.get_or_create_owned(&label),
            warmup_seconds: self.warmup_seconds.get_or_create_owned(&label),
            running: state("running"),
            broken: state("broken"),
            lost: state("lost"),
            starts: self.starts.get_or_create_owned(&label),
            crashes: self.crashes.get_or_create_owned(&label),
            evictions: self.evictions.get_or_create_owned(&label),
            objective_feasible: self.objective_feasible.clone(),
            memory: self.memory.clone(),
            provider: self.provider.clone(),
            fallback: self.fallback.clone(),
            triton,
            label,
        }
    }
}

/// What the metrics of a model have beside their bounds.
pub struct Extras {
    /// Whether requests are traced: then its latency has exemplars.
    pub traced: bool,
    /// What health tells is of the last so much.
    pub window: Duration,
    /// Where the same is told by Triton's names.
    pub triton: Option<Arc<Totals>>,
}

struct Handles {
    found: Arc<Mutex<Found>>,
    depth_max: Mutex<Maximum>,
    tally: Arc<Tally>,
    runs: Arc<Mutex<Runs>>,
    errors: [Counter; REASONS.len()],
    overloaded: Gauge,
    load_seconds: Seconds,
    warmup_seconds: Seconds,
    running: Gauge,
    broken: Gauge,
    lost: Gauge,
    starts: Counter,
    crashes: Counter,
    evictions: Counter,
    objective_feasible: Family<ModelLabel, Gauge>,
    memory: Family<KindLabels, Gauge>,
    provider: Family<ProviderLabels, Gauge>,
    fallback: Family<ModelLabel, Gauge>,
    triton: Option<Arc<Totals>>,
    label: ModelLabel,
}

/// The metrics of one model; a method for each thing that happens.
#[derive(Clone)]
pub struct ModelMetrics {
    handles: Arc<Watched<Handles>>,
    /// That of the handles. Here as well, for each request that ends needs it and nothing else.
    tally: Arc<Tally>,
}

impl ModelMetrics {
    /// Those of a new model, all present at 0, and where they are written from.
    #[must_use]
    pub fn new(name: &str, bounds: &Bounds, extras: Extras) -> (Self, Registry) {
        let (families, mut registry) = (Families::default(), Registry::default());
        let handles = families.handles(name, bounds, extras);
        families.register(registry.sub_registry_with_prefix("ortolan"), &handles);
        let tally = Arc::clone(&handles.tally);
        (Self { handles: Arc::new(Watched::new(handles)), tally }, registry)
    }

    /// The model's name.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.handles.peek().label.model
    }

    /// Brings the model's part of the page up to date.
    ///
    /// # Errors
    /// What a metric says that refuses to be written.
    pub fn write(&self, part: &mut Part, registry: &Registry) -> fmt::Result {
        if self.tally.counted().have_changed() {
            self.handles.touch();
        }
        part.update(&self.handles, registry)
    }

    /// A prediction request ended.
    pub fn ended(&self, end: End) {
        self.tally.ended(end);
    }

    /// One that is traced, and may be an example.
    pub fn ended_traced(&self, end: End, example: Option<Example>) {
        self.tally.ended_traced(end, example);
    }

    /// What was counted and timed in the last minute or so.
    #[must_use]
    pub fn seen(&self, now: Instant) -> Seen {
        // What takes longest is done when requests can end again.
        let last = self.tally.counted().window.last(now);
        last.seen()
    }

    /// Requests that were answered since the process began; where a latency is named, also how many of them `within` it.
    #[must_use]
    pub fn answered(&self, within: Option<Duration>) -> Answered {
        self.tally.counted().window.answered(within)
    }

    fn in_tritons_words(&self, tell: impl FnOnce(&Totals)) {
        if let Some(triton) = &self.handles.peek().triton {
            tell(triton);
        }
    }

    /// A prediction request was not answered.
    pub fn error(&self, reason: Reason) {
        self.handles.errors[reason as usize].inc();
    }

    /// A run of that many samples began, for which its jobs have waited that long.
    pub fn run_began(&self, samples: usize, waits: impl Iterator<Item = Duration> + Clone) {
        self.in_tritons_words(|triton| waits.clone().for_each(|time| triton.waited(time)));
        let mut runs = locked(&self.handles.runs);
        runs.batch_size.observe(samples as u64);
        runs.queue_time.observe_times(waits);
    }

    /// A run of that many samples came back.
    pub fn run_ended(&self, samples: usize, time: Duration) {
        locked(&self.handles.runs).inference_time.observe_time(time);
        self.in_tritons_words(|triton| triton.ran(samples, time));
    }

    /// Requests are refused from now on, or are not any more.
    pub fn overloaded(&self, overloaded: bool) {
        self.handles.overloaded.set(i64::from(overloaded));
    }

    /// So many samples have waited at once, a moment ago.
    pub fn was_deep(&self, depth: usize, now: Instant) {
        locked(&self.handles.peek().depth_max).record(depth as u64, now);
    }

    /// What is looked up at each scrape.
    pub fn stands(&self, standing: Standing, now: Instant) {
        let seen = self.handles.peek();
        let longest_latency = Duration::from_micros(self.tally.counted().ends.latency_max.get(now));
        let deepest = usize::try_from(locked(&seen.depth_max).get(now)).unwrap_or(usize::MAX);
        self.in_tritons_words(|triton| triton.pending(standing.waiting));
        let now_found = Found { standing, deepest, longest_latency };
        let mut found = locked(&seen.found);
        if *found != now_found {
            *found = now_found;
            // Before anybody else finds nothing new.
            self.handles.touch();
        }
    }

    /// The model was loaded and warmed up.
    pub fn loaded(&self, load: Duration, warmup: Duration, instances: usize) {
        self.handles.load_seconds.set(load.as_secs_f64());
        self.handles.warmup_seconds.set(warmup.as_secs_f64());
        self.handles.starts.inc_by(instances as u64);
        self.handles.running.inc_by(i64::try_from(instances).unwrap_or(i64::MAX));
    }

    /// An instance was given up: its run did not come back.
    pub fn instance_lost(&self) {
        self.handles.running.dec();
        self.handles.lost.inc();
        self.handles.evictions.inc();
    }

    /// An instance's session broke; another is being opened in its place.
    pub fn instance_broke(&self) {
        self.handles.running.dec();
        self.handles.broken.inc();
        self.handles.crashes.inc();
    }

    /// A session was opened in place of a broken one.
    pub fn instance_mended(&self) {
        self.handles.broken.dec();
        self.handles.running.inc();
        self.handles.starts.inc();
    }

    /// An instance was given up: no session could be opened in place of a broken one.
    pub fn broken_instance_lost(&self) {
        self.handles.broken.dec();
        self.handles.lost.inc();
        self.handles.evictions.inc();
    }

    /// The provider that the model really uses, and whether it is another than it was to use.
    pub fn provider_in_use(&self, provider: &'static str, is_fallback: bool) {
        let handles = &*self.handles;
        handles.provider.get_or_create(&ProviderLabels { model: handles.label.model.clone(), provider }).set(1);
        handles.fallback.get_or_create(&handles.label).set(i64::from(is_fallback));
    }

    /// Whether some bucket keeps the latency objective.
    pub fn objective_feasible(&self, feasible: bool) {
        self.handles.objective_feasible.get_or_create(&self.handles.label).set(i64::from(feasible));
    }

    /// What ONNX Runtime's arena holds.
    pub fn memory(&self, memory: Memory) {
        for (kind, bytes) in [("in_use", memory.in_use), ("peak", memory.peak)] {
            let labels = KindLabels { model: self.handles.label.model.clone(), kind };
            self.handles.memory.get_or_create(&labels).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }
}
