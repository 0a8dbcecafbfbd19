//! What the pod exports. Closed label sets; a client-sent model name never becomes a label.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, RwLock, atomic::AtomicU64},
    time::{Duration, Instant},
};

use crds::exposition::openmetrics_to_prometheus;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeMetric, MetricEncoder, text::encode},
    metrics::{
        MetricType,
        counter::Counter,
        exemplar::HistogramWithExemplars,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};

use super::{
    Bounds, Memory, OUTCOMES, Outcome, REASONS, Reason, collect,
    events::Events,
    triton::{Totals, Triton},
    window::Maximum,
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
struct ResponseLabels {
    route: &'static str,
    code: u16,
}

/// What leads from a bucket of the latency to a request that fell into it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Example {
    /// Its trace.
    pub trace_id: String,
    /// Its own id, where it is not too long for OpenMetrics.
    pub request_id: Option<String>,
}

type Seconds = Gauge<f64, AtomicU64>;

/// Histograms by model, each with bounds of its own, which a family cannot have.
#[derive(Debug, Clone)]
struct OwnBounds<H>(Arc<RwLock<Vec<(ModelLabel, H)>>>);

impl<H> Default for OwnBounds<H> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<H: Clone> OwnBounds<H> {
    fn of(&self, label: &ModelLabel, make: impl FnOnce() -> H) -> H {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = all.iter().find(|(known, _)| known == label) {
            return known.clone();
        }
        let histogram = make();
        all.push((label.clone(), histogram.clone()));
        histogram
    }
}

impl<H: EncodeMetric> EncodeMetric for OwnBounds<H> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        all.iter().try_for_each(|(label, histogram)| histogram.encode(encoder.encode_family(label)?))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }

    fn is_empty(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    /// Where the text is written before it becomes the older form. Kept: for many models it is large.
    page: Mutex<String>,
    families: Families,
    /// The same numbers once more by the names that Triton gives them, where they are wanted.
    triton: Option<Triton>,
}

#[derive(Default)]
struct Families {
    received: Family<ModelLabel, Counter>,
    requests: Family<OutcomeLabels, Counter>,
    errors: Family<ReasonLabels, Counter>,
    responses: Family<ResponseLabels, Counter>,
    latency: OwnBounds<HistogramWithExemplars<Example>>,
    latency_max: Family<ModelLabel, Seconds>,
    queue_time: OwnBounds<Histogram>,
    inference_time: OwnBounds<Histogram>,
    decode_time: OwnBounds<Histogram>,
    batch_size: OwnBounds<Histogram>,
    queue_depth: Family<ModelLabel, Gauge>,
    queue_depth_max: Family<ModelLabel, Gauge>,
    inflight: Family<ModelLabel, Gauge>,
    oldest_age: Family<ModelLabel, Seconds>,
    enqueued: Family<ModelLabel, Counter>,
    dequeued: Family<ModelLabel, Counter>,
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
fn latency_bounds(objective: Option<Duration>) -> Vec<f64> {
    let mut bounds: Vec<f64> = exponential_buckets(0.001, 2.0, 15).chain([0.5]).collect();
    bounds.extend(objective.map(|objective| objective.as_secs_f64()));
    bounds.sort_by(f64::total_cmp);
    bounds.dedup();
    bounds
}

/// 0.1 ms to 0.8 s by steps of two.
fn queue_bounds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_1, 2.0, 14))
}

/// 0.2 ms to 1.6 s by steps of two.
fn inference_bounds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_2, 2.0, 14))
}

/// 0.2 ms to 0.2 s by steps of two.
fn decode_bounds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_2, 2.0, 11))
}

/// The model's buckets: powers of two, and the largest batch.
fn batch_bounds(batch_size: usize) -> Histogram {
    let powers = exponential_buckets(1.0, 2.0, 11).filter(|size| *size < batch_size as f64);
    Histogram::new(powers.chain([batch_size as f64]).collect::<Vec<_>>())
}

impl Metrics {
    /// All metrics, with what is known of the build, of ONNX Runtime, of the process and of its GPUs.
    #[must_use]
    pub fn new(runtime_version: &str, events: &Arc<Events>, triton_names: bool) -> Self {
        let families = Families::default();
        let mut registry = Registry::default();
        families.register(registry.sub_registry_with_prefix("ortolan"));
        let build = Info::new(vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("onnxruntime", runtime_version.to_owned()),
        ]);
        let ours = registry.sub_registry_with_prefix("ortolan");
        ours.register("build", "Versions of this program", build);
        ours.register_collector(Box::new(collect::Consumers(Arc::clone(events))));
        ours.register_collector(Box::new(collect::Lines));
        // Without a thread to ask there are no numbers of GPUs.
        if let Ok(gpus) = collect::Gpus::find() {
            ours.register_collector(Box::new(gpus));
        }
        registry.register_collector(Box::new(collect::Process));
        let triton = triton_names.then(Triton::default);
        if let Some(triton) = &triton {
            registry.register_collector(Box::new(triton.clone()));
        }
        Self { registry, page: Mutex::default(), families, triton }
    }

    /// The handles of one model, all present at 0.
    #[must_use]
    pub fn model(&self, name: &str, bounds: &Bounds) -> ModelMetrics {
        self.families.model(name, bounds, self.triton.as_ref().map(|triton| triton.model(name)))
    }

    /// The provider that a model really uses, and whether it is another than it was to use.
    pub fn provider_in_use(&self, model: &str, provider: &'static str, is_fallback: bool) {
        let label = ModelLabel { model: model.to_owned() };
        self.families.provider.get_or_create(&ProviderLabels { model: model.to_owned(), provider }).set(1);
        self.families.fallback.get_or_create(&label).set(i64::from(is_fallback));
    }

    /// A response was sent on a route of ours.
    pub fn responded(&self, route: &'static str, code: u16) {
        self.families.responses.get_or_create(&ResponseLabels { route, code }).inc();
    }

    /// OpenMetrics 1.0 text.
    #[must_use]
    pub fn openmetrics_text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    fn write(&self, text: &mut String) {
        // Writing to a string cannot fail; a metric that refuses to encode is left out.
        let _ = encode(text, &self.registry);
    }

    /// Prometheus text format 0.0.4, for tools that do not read OpenMetrics.
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        let mut page = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        page.clear();
        self.write(&mut page);
        openmetrics_to_prometheus(&page)
    }
}

impl Families {
    fn register(&self, r: &mut Registry) {
        r.register("requests_received", "Prediction requests that named a model we serve", self.received.clone());
        r.register("requests", "Prediction requests by how they ended", self.requests.clone());
        r.register("errors", "Prediction requests that were not answered, by reason", self.errors.clone());
        r.register("http_responses", "Responses over HTTP by route and status code", self.responses.clone());
        r.register(
            "request_latency_seconds",
            "From the headers of a request to its answer, of those that were answered, failed or passed their deadline",
            self.latency.clone(),
        );
        r.register(
            "request_latency_max_seconds",
            "The longest from the headers of a request to its answer, in the last minute",
            self.latency_max.clone(),
        );
        r.register("queue_time_seconds", "From the queue's entrance to the start of the run", self.queue_time.clone());
        r.register("inference_time_seconds", "Time of a run of ONNX Runtime", self.inference_time.clone());
        r.register("decode_time_seconds", "From body bytes to samples", self.decode_time.clone());
        r.register("batch_size", "Samples in a run", self.batch_size.clone());
        r.register("batch_size_limit", "Most samples in a run", self.batch_size_limit.clone());
        r.register("queue_depth", "Samples that wait", self.queue_depth.clone());
        r.register("queue_depth_max", "Most samples that waited in the last minute", self.queue_depth_max.clone());
        r.register(
            "queue_limit_seconds",
            "Longest predicted wait that is let in (max_queue_ms)",
            self.queue_limit.clone(),
        );
        r.register("inflight_samples", "Samples that run", self.inflight.clone());
        r.register("queue_oldest_age_seconds", "Age of the sample that has waited longest", self.oldest_age.clone());
        r.register("samples_enqueued", "Samples let into the queue", self.enqueued.clone());
        r.register("samples_dequeued", "Samples that left the queue, whatever the reason", self.dequeued.clone());
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

    fn model(&self, name: &str, bounds: &Bounds, triton: Option<Arc<Totals>>) -> ModelMetrics {
        let label = ModelLabel { model: name.to_owned() };
        let outcome = |outcome| self.requests.get_or_create_owned(&OutcomeLabels { model: name.to_owned(), outcome });
        let error = |reason| self.errors.get_or_create_owned(&ReasonLabels { model: name.to_owned(), reason });
        let state = |state| self.instances.get_or_create_owned(&StateLabels { model: name.to_owned(), state });
        let now = Instant::now();
        self.queue_limit.get_or_create(&label).set(bounds.max_wait.as_secs_f64());
        self.batch_size_limit.get_or_create(&label).set(i64::try_from(bounds.batch_size).unwrap_or(i64::MAX));
        if let Some(objective) = bounds.latency_objective {
            self.objective.get_or_create(&label).set(objective.as_secs_f64());
        }
        ModelMetrics(Arc::new(Handles {
            received: self.received.get_or_create_owned(&label),
            outcomes: OUTCOMES.map(outcome),
            errors: REASONS.map(error),
            latency: self
                .latency
                .of(&label, || HistogramWithExemplars::new(latency_bounds(bounds.latency_objective).into_iter())),
            latency_max: (Maximum::new(now), self.latency_max.get_or_create_owned(&label)),
            queue_time: self.queue_time.of(&label, queue_bounds),
            inference_time: self.inference_time.of(&label, inference_bounds),
            decode_time: self.decode_time.of(&label, decode_bounds),
            batch_size: self.batch_size.of(&label, || batch_bounds(bounds.batch_size)),
            queue_depth: self.queue_depth.get_or_create_owned(&label),
            queue_depth_max: (Maximum::new(now), self.queue_depth_max.get_or_create_owned(&label)),
            inflight: self.inflight.get_or_create_owned(&label),
            oldest_age: self.oldest_age.get_or_create_owned(&label),
            enqueued: self.enqueued.get_or_create_owned(&label),
            dequeued: self.dequeued.get_or_create_owned(&label),
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
            triton,
            label,
        }))
    }
}

struct Handles {
    received: Counter,
    outcomes: [Counter; OUTCOMES.len()],
    errors: [Counter; REASONS.len()],
    latency: HistogramWithExemplars<Example>,
    latency_max: (Maximum, Seconds),
    queue_time: Histogram,
    inference_time: Histogram,
    decode_time: Histogram,
    batch_size: Histogram,
    queue_depth: Gauge,
    queue_depth_max: (Maximum, Gauge),
    inflight: Gauge,
    oldest_age: Seconds,
    enqueued: Counter,
    dequeued: Counter,
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
    triton: Option<Arc<Totals>>,
    label: ModelLabel,
}

/// The metrics of one model; a method for each thing that happens.
#[derive(Clone)]
pub struct ModelMetrics(Arc<Handles>);

impl ModelMetrics {
    /// A prediction request came in.
    pub fn received(&self) {
        self.0.received.inc();
    }

    /// A prediction request ended.
    pub fn ended(&self, outcome: Outcome, latency: Duration, now: Instant, example: Option<Example>) {
        self.0.outcomes[outcome as usize].inc();
        // Who is refused is told within a millisecond: beside many of those nobody would see how slow the answers are.
        if outcome.is_of_the_model() {
            self.0.latency.observe(latency.as_secs_f64(), example, None);
            self.0.latency_max.0.record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX), now);
        }
        self.in_tritons_words(|triton| triton.ended(outcome, latency));
    }

    fn in_tritons_words(&self, tell: impl FnOnce(&Totals)) {
        if let Some(triton) = &self.0.triton {
            tell(triton);
        }
    }

    /// A prediction request was not answered.
    pub fn error(&self, reason: Reason) {
        self.0.errors[reason as usize].inc();
    }

    /// A body was turned into samples.
    pub fn decoded(&self, time: Duration) {
        self.0.decode_time.observe(time.as_secs_f64());
        self.in_tritons_words(|triton| triton.decoded(time));
    }

    /// Samples came into the queue; `depth` wait now.
    pub fn enqueued(&self, samples: usize, depth: usize, now: Instant) {
        self.0.enqueued.inc_by(samples as u64);
        self.0.queue_depth_max.0.record(depth as u64, now);
        self.depth(depth);
    }

    /// Samples left the queue; `depth` wait now.
    pub fn dequeued(&self, samples: usize, depth: usize) {
        self.0.dequeued.inc_by(samples as u64);
        self.depth(depth);
    }

    fn depth(&self, depth: usize) {
        self.0.queue_depth.set(i64::try_from(depth).unwrap_or(i64::MAX));
        self.in_tritons_words(|triton| triton.pending(depth));
    }

    /// A sample had waited that long when its run began.
    pub fn waited(&self, time: Duration) {
        self.0.queue_time.observe(time.as_secs_f64());
        self.in_tritons_words(|triton| triton.waited(time));
    }

    /// A run of that many samples began.
    pub fn run_began(&self, samples: usize) {
        self.0.batch_size.observe(samples as f64);
        self.0.inflight.inc_by(i64::try_from(samples).unwrap_or(i64::MAX));
    }

    /// A run of that many samples came back.
    pub fn run_ended(&self, samples: usize, time: Duration) {
        self.0.inference_time.observe(time.as_secs_f64());
        self.in_tritons_words(|triton| triton.ran(samples, time));
    }

    /// So many samples run no more: their run ended, or was given up.
    pub fn left_run(&self, samples: usize) {
        self.0.inflight.dec_by(i64::try_from(samples).unwrap_or(i64::MAX));
    }

    /// Requests are refused from now on, or are not any more.
    pub fn overloaded(&self, overloaded: bool) {
        self.0.overloaded.set(i64::from(overloaded));
    }

    /// What is looked up at each scrape; `oldest` is the age of the sample that has waited longest.
    pub fn scraped(&self, oldest: Duration, now: Instant) {
        self.0.oldest_age.set(oldest.as_secs_f64());
        let (maximum, gauge) = &self.0.latency_max;
        gauge.set(Duration::from_micros(maximum.get(now)).as_secs_f64());
        let (maximum, gauge) = &self.0.queue_depth_max;
        // What stands still was recorded when it came, which may be long ago.
        maximum.record(u64::try_from(self.0.queue_depth.get()).unwrap_or_default(), now);
        gauge.set(i64::try_from(maximum.get(now)).unwrap_or(i64::MAX));
    }

    /// The model was loaded and warmed up.
    pub fn loaded(&self, load: Duration, warmup: Duration, instances: usize) {
        self.0.load_seconds.set(load.as_secs_f64());
        self.0.warmup_seconds.set(warmup.as_secs_f64());
        self.0.starts.inc_by(instances as u64);
        self.0.running.inc_by(i64::try_from(instances).unwrap_or(i64::MAX));
    }

    /// An instance was given up: its run did not come back.
    pub fn instance_lost(&self) {
        self.0.running.dec();
        self.0.lost.inc();
        self.0.evictions.inc();
    }

    /// An instance's session broke; another is being opened in its place.
    pub fn instance_broke(&self) {
        self.0.running.dec();
        self.0.broken.inc();
        self.0.crashes.inc();
    }

    /// A session was opened in place of a broken one.
    pub fn instance_mended(&self) {
        self.0.broken.dec();
        self.0.running.inc();
        self.0.starts.inc();
    }

    /// An instance was given up: no session could be opened in place of a broken one.
    pub fn broken_instance_lost(&self) {
        self.0.broken.dec();
        self.0.lost.inc();
        self.0.evictions.inc();
    }

    /// Whether some bucket keeps the latency objective.
    pub fn objective_feasible(&self, feasible: bool) {
        self.0.objective_feasible.get_or_create(&self.0.label).set(i64::from(feasible));
    }

    /// What ONNX Runtime's arena holds.
    pub fn memory(&self, memory: Memory) {
        for (kind, bytes) in [("in_use", memory.in_use), ("peak", memory.peak)] {
            let labels = KindLabels { model: self.0.label.model.clone(), kind };
            self.0.memory.get_or_create(&labels).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crds::exposition::with_table;

    use super::*;
    use crate::observe::Observer;
    use crate::observe::events::{Event, Subscription, consumer::Consumer, redact::Redactor};

    fn metrics() -> Metrics {
        Metrics::new("1.31.1", &Arc::new(Events::quiet()), true)
    }

    fn bounds(objective: Option<Duration>) -> Bounds {
        Bounds { batch_size: 8, max_wait: Duration::from_millis(500), latency_objective: objective }
    }

    #[test]
    fn every_metric_is_present_at_zero_once_its_model_is_known() {
        let metrics = metrics();
        let _model = metrics.model("espresso", &bounds(None));
        let text = metrics.prometheus_text();
        for line in [
            "ortolan_requests_received_total{model=\"espresso\"} 0",
            "ortolan_requests_total{model=\"espresso\",outcome=\"rejected\"} 0",
            "ortolan_errors_total{model=\"espresso\",reason=\"queue_full\"} 0",
            "ortolan_queue_depth{model=\"espresso\"} 0",
            "ortolan_queue_depth_max{model=\"espresso\"} 0",
            "ortolan_samples_dequeued_total{model=\"espresso\"} 0",
            "ortolan_request_latency_seconds_count{model=\"espresso\"} 0",
            "ortolan_instances{model=\"espresso\",state=\"lost\"} 0",
            "ortolan_instance_crashes_total{model=\"espresso\"} 0",
            "ortolan_queue_limit_seconds{model=\"espresso\"} 0.5",
            "ortolan_overloaded{model=\"espresso\"} 0",
        ] {
            assert!(text.lines().any(|seen| seen == line), "expected {line} in\n{text}");
        }
        for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
            assert!(text.lines().any(|line| line.starts_with(&format!("{name} "))), "expected {name} in\n{text}");
        }
    }

    #[test]
    fn the_objective_is_a_bound_of_the_latency_and_an_exemplar_leads_to_a_trace() {
        let metrics = metrics();
        let model = metrics.model("espresso", &bounds(Some(Duration::from_millis(30))));
        let example = Example { trace_id: "0a".to_owned(), request_id: Some("r-1".to_owned()) };
        model.ended(Outcome::ok, Duration::from_millis(20), Instant::now(), Some(example));
        let text = metrics.openmetrics_text();
        let line = text.lines().find(|line| line.contains("latency_seconds_bucket{le=\"0.03\"")).unwrap();
        assert!(line.contains(" 1 # {trace_id=\"0a\",request_id=\"r-1\"} 0.02"), "{line}");
        assert!(!metrics.prometheus_text().contains("trace_id"));
    }

    #[test]
    fn a_queue_that_stays_full_is_as_deep_as_it_is_however_long_nobody_comes() {
        let metrics = metrics();
        let (model, now) = (metrics.model("espresso", &bounds(None)), Instant::now());
        let says = |line: &str| metrics.prometheus_text().lines().any(|seen| seen == line);
        model.enqueued(7, 7, now);
        model.scraped(Duration::ZERO, now + Duration::from_secs(300));
        assert!(says("ortolan_queue_depth_max{model=\"espresso\"} 7"));
        model.dequeued(7, 0);
        model.scraped(Duration::ZERO, now + Duration::from_secs(310));
        assert!(says("ortolan_queue_depth_max{model=\"espresso\"} 7"), "ten seconds ago it was");
    }

    /// Dashboards add the latencies of several models, so they must leave out the bounds that not all of them have.
    #[test]
    fn what_dashboards_add_up_are_the_bounds_that_all_models_have() {
        let text = |bounds: Vec<f64>| bounds.iter().map(|bound| format!("{bound}|")).collect::<String>() + "[+]Inf";
        let shared = text(latency_bounds(None));
        for objective in [1, 30, 512, 40_000] {
            let own = latency_bounds(Some(Duration::from_millis(objective)));
            assert!(latency_bounds(None).iter().all(|bound| own.contains(bound)), "{own:?}");
        }
        for name in ["model.json", "models.json"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/dashboards").join(name);
            let dashboard = std::fs::read_to_string(path).unwrap();
            let mut selectors = dashboard.split("ortolan_request_latency_seconds_bucket{").skip(1).peekable();
            assert!(selectors.peek().is_some(), "{name}");
            for selector in selectors {
                let selector = selector.split_once('}').unwrap().0;
                assert!(selector.contains(&format!("le=~\\\"{shared}\\\"")), "{selector} in {name}, expected {shared}");
            }
        }
    }

    #[test]
    fn the_memory_of_a_model_is_that_of_all_its_instances() {
        let observer = Observer::quiet("1.31.1");
        let model = observer.model("espresso", &bounds(None));
        let weighed = |index, arena, in_use| model.weighed(index, Memory { arena, in_use, peak: in_use + 1 });
        assert_eq!(model.memory_bytes(), None);
        weighed(0, 7, 100);
        weighed(1, 8, 20);
        assert_eq!(model.memory_bytes(), Some(120));
        let says = |line: &str| observer.metrics.prometheus_text().lines().any(|seen| seen == line);
        assert!(says("ortolan_model_memory_bytes{model=\"espresso\",kind=\"in_use\"} 120"));
        assert!(says("ortolan_model_memory_bytes{model=\"espresso\",kind=\"peak\"} 122"));
        // These two share one.
        weighed(2, 8, 30);
        assert_eq!(model.memory_bytes(), Some(130));
        // One of them was opened anew, and one is given up.
        weighed(1, 9, 5);
        assert_eq!(model.memory_bytes(), Some(135));
        model.broken_instance_lost(1);
        assert_eq!(model.memory_bytes(), Some(130));
    }

    #[test]
    fn refusals_and_callers_who_left_do_not_hide_how_slow_answers_are() {
        let metrics = metrics();
        let model = metrics.model("espresso", &bounds(None));
        for outcome in OUTCOMES {
            model.ended(outcome, Duration::from_millis(3), Instant::now(), None);
        }
        let text = metrics.openmetrics_text();
        let count = "ortolan_request_latency_seconds_count{model=\"espresso\"} 3";
        assert!(text.lines().any(|line| line == count), "expected {count}, for ok, expired and failed, in\n{text}");
    }

    #[test]
    fn the_older_text_form_names_counters_in_full() {
        let metrics = metrics();
        metrics.model("espresso", &bounds(None)).received();
        let text = metrics.prometheus_text();
        assert!(text.contains("# TYPE ortolan_requests_received_total counter\n"), "{text}");
        assert!(text.contains("# TYPE ortolan_build_info gauge\n"), "{text}");
        assert!(text.contains("ortolan_requests_received_total{model=\"espresso\"} 1\n"), "{text}");
        assert!(!text.contains("# EOF"), "{text}");
        assert!(metrics.openmetrics_text().ends_with("# EOF\n"));
    }

    #[test]
    fn triton_s_names_have_the_same_numbers() {
        let metrics = metrics();
        let model = metrics.model("espresso", &bounds(None));
        model.ended(Outcome::ok, Duration::from_millis(3), Instant::now(), None);
        model.ended(Outcome::expired, Duration::from_millis(3), Instant::now(), None);
        model.run_ended(4, Duration::from_millis(2));
        let text = metrics.prometheus_text();
        for line in [
            "nv_inference_request_success{model=\"espresso\",version=\"1\"} 1",
            "nv_inference_request_failure{model=\"espresso\",version=\"1\",reason=\"OTHER\"} 1",
            "nv_inference_count{model=\"espresso\",version=\"1\"} 4",
            "nv_inference_compute_infer_duration_us{model=\"espresso\",version=\"1\"} 2000",
        ] {
            assert!(text.lines().any(|seen| seen == line), "expected {line} in\n{text}");
        }
    }

    /// UPDATE=1 writes it anew.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a person says so")]
    fn the_table_of_the_docs_has_every_metric() {
        struct Nobody;
        impl Consumer for Nobody {
            fn consume(&mut self, _: &[Arc<Event>]) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
                Ok(())
            }
        }
        let (rules, gather) = (Some(Vec::new()), Duration::ZERO);
        let subscription = Subscription { name: "log", rules, gather, consumer: Box::new(Nobody) };
        let events = Events::start(vec![subscription], Redactor::new(&[]).unwrap()).unwrap();
        let mut metrics = Metrics::new("1.31.1", &Arc::new(events), false);
        metrics.registry.sub_registry_with_prefix("ortolan").register_collector(Box::new(collect::Gpus::example()));
        let model = metrics.model("espresso", &bounds(Some(Duration::from_millis(30))));
        model.objective_feasible(true);
        model.memory(Memory { arena: 0, in_use: 1, peak: 2 });
        metrics.provider_in_use("espresso", "cpu", false);
        metrics.responded("/ready", 200);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/observability.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let wanted = with_table(&page, "metrics", &metrics.openmetrics_text()).unwrap();
        if std::env::var("UPDATE").is_ok() {
            return std::fs::write(&path, &wanted).unwrap();
        }
        assert!(wanted == page, "UPDATE=1 cargo test -p inference-pod --lib the_table writes the page anew");
    }

    #[test]
    fn a_model_has_at_most_120_series() {
        let metrics = metrics();
        let bounds = Bounds { batch_size: 1024, ..bounds(Some(Duration::from_millis(30))) };
        let model = metrics.model("espresso", &bounds);
        model.ended(Outcome::ok, Duration::from_millis(3), Instant::now(), None);
        model.objective_feasible(true);
        model.memory(Memory { arena: 0, in_use: 1, peak: 2 });
        metrics.provider_in_use("espresso", "cpu", false);
        let text = metrics.prometheus_text();
        let ours = |line: &&str| line.starts_with("ortolan_") && line.contains("model=\"espresso\"");
        let series = text.lines().filter(ours).count();
        assert!(series <= 120, "{series} series");
    }
}
