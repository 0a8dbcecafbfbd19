//! What the pod exports. Closed label sets; a client-sent model name never becomes a label.
//!
//! prometheus-client writes OpenMetrics; [`Metrics::prometheus_text`] turns that into the older text form.

use std::{
    fmt::Write as _,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Registry,
};

/// How a request ended. Closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
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

const OUTCOMES: [Outcome; 6] =
    [Outcome::ok, Outcome::rejected, Outcome::expired, Outcome::cancelled, Outcome::invalid, Outcome::failed];

/// Why a request was not answered. Closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
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

const REASONS: [Reason; 7] = [
    Reason::bad_input,
    Reason::too_large,
    Reason::unsupported_type,
    Reason::queue_full,
    Reason::run_failed,
    Reason::not_ready,
    Reason::deadline,
];

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
struct ProviderLabels {
    model: String,
    provider: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseLabels {
    route: &'static str,
    code: u16,
}

type Seconds = Gauge<f64, AtomicU64>;

/// All metrics of the process.
pub struct Metrics {
    registry: Registry,
    received: Family<ModelLabel, Counter>,
    requests: Family<OutcomeLabels, Counter>,
    errors: Family<ReasonLabels, Counter>,
    responses: Family<ResponseLabels, Counter>,
    latency: Family<ModelLabel, Histogram>,
    queue_time: Family<ModelLabel, Histogram>,
    inference_time: Family<ModelLabel, Histogram>,
    decode_time: Family<ModelLabel, Histogram>,
    batch_size: Family<ModelLabel, Histogram>,
    queue_depth: Family<ModelLabel, Gauge>,
    inflight: Family<ModelLabel, Gauge>,
    oldest_age: Family<ModelLabel, Seconds>,
    enqueued: Family<ModelLabel, Counter>,
    dequeued: Family<ModelLabel, Counter>,
    load_seconds: Family<ModelLabel, Seconds>,
    warmup_seconds: Family<ModelLabel, Seconds>,
    instances: Family<StateLabels, Gauge>,
    objective_feasible: Family<ModelLabel, Gauge>,
    provider: Family<ProviderLabels, Gauge>,
}

/// 1 ms to 16 s by steps of two, and half a second, the shipped bound of the queue.
fn latency_bounds() -> Histogram {
    let mut bounds: Vec<f64> = exponential_buckets(0.001, 2.0, 15).collect();
    bounds.push(0.5);
    bounds.sort_by(f64::total_cmp);
    Histogram::new(bounds)
}

/// 0.1 ms to 1.6 s by steps of two.
fn part_bounds() -> Histogram {
    Histogram::new(exponential_buckets(0.000_1, 2.0, 15))
}

/// The batch sizes of every model are among the powers of two.
fn batch_bounds() -> Histogram {
    Histogram::new(exponential_buckets(1.0, 2.0, 11))
}

impl Metrics {
    /// All metrics, with what is known of the build and of ONNX Runtime.
    #[must_use]
    pub fn new(runtime_version: &str) -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("ortolan"),
            received: Family::default(),
            requests: Family::default(),
            errors: Family::default(),
            responses: Family::default(),
            latency: Family::new_with_constructor(latency_bounds),
            queue_time: Family::new_with_constructor(part_bounds),
            inference_time: Family::new_with_constructor(part_bounds),
            decode_time: Family::new_with_constructor(part_bounds),
            batch_size: Family::new_with_constructor(batch_bounds),
            queue_depth: Family::default(),
            inflight: Family::default(),
            oldest_age: Family::default(),
            enqueued: Family::default(),
            dequeued: Family::default(),
            load_seconds: Family::default(),
            warmup_seconds: Family::default(),
            instances: Family::default(),
            objective_feasible: Family::default(),
            provider: Family::default(),
        };
        metrics.register(runtime_version);
        metrics
    }

    fn register(&mut self, runtime_version: &str) {
        let r = &mut self.registry;
        r.register("requests_received", "Prediction requests that named a model we serve", self.received.clone());
        r.register("requests", "Prediction requests by how they ended", self.requests.clone());
        r.register("errors", "Prediction requests that were not answered, by reason", self.errors.clone());
        r.register("http_responses", "HTTP responses by route and status code", self.responses.clone());
        r.register("request_latency_seconds", "From the headers of a request to its answer", self.latency.clone());
        r.register("queue_time_seconds", "From the queue's entrance to the start of the run", self.queue_time.clone());
        r.register("inference_time_seconds", "Time of a run of ONNX Runtime", self.inference_time.clone());
        r.register("decode_time_seconds", "From body bytes to samples", self.decode_time.clone());
        r.register("batch_size", "Samples in a run", self.batch_size.clone());
        r.register("queue_depth", "Samples that wait", self.queue_depth.clone());
        r.register("inflight_samples", "Samples that run", self.inflight.clone());
        r.register("queue_oldest_age_seconds", "Age of the sample that has waited longest", self.oldest_age.clone());
        r.register("samples_enqueued", "Samples let into the queue", self.enqueued.clone());
        r.register("samples_dequeued", "Samples that left the queue, whatever the reason", self.dequeued.clone());
        r.register("model_load_seconds", "Time from file to session", self.load_seconds.clone());
        r.register("model_warmup_seconds", "Time of probe and warm-up", self.warmup_seconds.clone());
        r.register("instances", "Instances by state", self.instances.clone());
        r.register(
            "latency_objective_feasible",
            "1 where a batch can keep latency_objective_ms, 0 where none can; only with an objective",
            self.objective_feasible.clone(),
        );
        r.register("execution_provider_info", "The execution provider really in use", self.provider.clone());
        let build = Info::new(vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("onnxruntime", runtime_version.to_owned()),
        ]);
        r.register("build", "Versions of this program", build);
    }

    /// The handles of one model, all present at 0.
    #[must_use]
    pub fn model(&self, name: &str) -> ModelMetrics {
        let label = ModelLabel { model: name.to_owned() };
        let outcome = |outcome| self.requests.get_or_create_owned(&OutcomeLabels { model: name.to_owned(), outcome });
        let error = |reason| self.errors.get_or_create_owned(&ReasonLabels { model: name.to_owned(), reason });
        let state = |state| self.instances.get_or_create_owned(&StateLabels { model: name.to_owned(), state });
        ModelMetrics(Arc::new(Handles {
            received: self.received.get_or_create_owned(&label),
            outcomes: OUTCOMES.map(outcome),
            errors: REASONS.map(error),
            latency: self.latency.get_or_create_owned(&label),
            queue_time: self.queue_time.get_or_create_owned(&label),
            inference_time: self.inference_time.get_or_create_owned(&label),
            decode_time: self.decode_time.get_or_create_owned(&label),
            batch_size: self.batch_size.get_or_create_owned(&label),
            queue_depth: self.queue_depth.get_or_create_owned(&label),
            inflight: self.inflight.get_or_create_owned(&label),
            oldest_age: self.oldest_age.get_or_create_owned(&label),
            enqueued: self.enqueued.get_or_create_owned(&label),
            dequeued: self.dequeued.get_or_create_owned(&label),
            load_seconds: self.load_seconds.get_or_create_owned(&label),
            warmup_seconds: self.warmup_seconds.get_or_create_owned(&label),
            running: state("running"),
            broken: state("broken"),
            lost: state("lost"),
            objective: self.objective_feasible.clone(),
            label,
        }))
    }

    /// The provider that a model really uses.
    pub fn provider_in_use(&self, model: &str, provider: &'static str) {
        self.provider.get_or_create(&ProviderLabels { model: model.to_owned(), provider }).set(1);
    }

    /// A response was sent on a route of ours.
    pub fn responded(&self, route: &'static str, code: u16) {
        self.responses.get_or_create(&ResponseLabels { route, code }).inc();
    }

    /// OpenMetrics 1.0 text.
    #[must_use]
    pub fn openmetrics_text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail; a metric that refuses to encode is left out.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// Prometheus text format 0.0.4, for tools that do not read OpenMetrics.
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        openmetrics_to_prometheus(&self.openmetrics_text())
    }
}

/// In the older form a counter's metadata carries its full name, an info is a gauge, and there is no end mark.
fn openmetrics_to_prometheus(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    let types: Vec<(&str, &str)> = openmetrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "))
        .filter_map(|rest| rest.rsplit_once(' '))
        .collect();
    let suffix = |name: &str| match types.iter().find(|(known, _)| *known == name) {
        Some((_, "counter")) => "_total",
        Some((_, "info")) => "_info",
        _ => "",
    };
    for line in openmetrics.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT")) {
        let written = match line.strip_prefix("# ").and_then(|rest| rest.split_once(' ')) {
            Some((keyword @ ("TYPE" | "HELP"), rest)) => {
                let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let rest = if keyword == "TYPE" && rest == "info" { "gauge" } else { rest };
                writeln!(text, "# {keyword} {name}{} {rest}", suffix(name))
            }
            _ => writeln!(text, "{line}"),
        };
        debug_assert!(written.is_ok(), "writing to a string cannot fail");
    }
    text
}

struct Handles {
    received: Counter,
    outcomes: [Counter; OUTCOMES.len()],
    errors: [Counter; REASONS.len()],
    latency: Histogram,
    queue_time: Histogram,
    inference_time: Histogram,
    decode_time: Histogram,
    batch_size: Histogram,
    queue_depth: Gauge,
    inflight: Gauge,
    oldest_age: Seconds,
    enqueued: Counter,
    dequeued: Counter,
    load_seconds: Seconds,
    warmup_seconds: Seconds,
    running: Gauge,
    broken: Gauge,
    lost: Gauge,
    objective: Family<ModelLabel, Gauge>,
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
    pub fn ended(&self, outcome: Outcome, latency: Duration) {
        self.0.outcomes[outcome as usize].inc();
        self.0.latency.observe(latency.as_secs_f64());
    }

    /// A prediction request was not answered.
    pub fn error(&self, reason: Reason) {
        self.0.errors[reason as usize].inc();
    }

    /// A body was turned into samples.
    pub fn decoded(&self, time: Duration) {
        self.0.decode_time.observe(time.as_secs_f64());
    }

    /// Samples came into the queue; `depth` wait now.
    pub fn enqueued(&self, samples: usize, depth: usize) {
        self.0.enqueued.inc_by(samples as u64);
        self.depth(depth);
    }

    /// Samples left the queue; `depth` wait now.
    pub fn dequeued(&self, samples: usize, depth: usize) {
        self.0.dequeued.inc_by(samples as u64);
        self.depth(depth);
    }

    fn depth(&self, depth: usize) {
        self.0.queue_depth.set(i64::try_from(depth).unwrap_or(i64::MAX));
    }

    /// A sample had waited that long when its run began.
    pub fn waited(&self, time: Duration) {
        self.0.queue_time.observe(time.as_secs_f64());
    }

    /// A run of that many samples began.
    pub fn run_began(&self, samples: usize) {
        self.0.batch_size.observe(samples as f64);
        self.0.inflight.inc_by(i64::try_from(samples).unwrap_or(i64::MAX));
    }

    /// A run of that many samples ended.
    pub fn run_ended(&self, samples: usize, time: Duration) {
        self.0.inference_time.observe(time.as_secs_f64());
        self.0.inflight.dec_by(i64::try_from(samples).unwrap_or(i64::MAX));
    }

    /// Age of the sample that has waited longest; read at each scrape.
    pub fn oldest_age(&self, age: Duration) {
        self.0.oldest_age.set(age.as_secs_f64());
    }

    /// The model was loaded and warmed up.
    pub fn loaded(&self, load: Duration, warmup: Duration, instances: usize) {
        self.0.load_seconds.set(load.as_secs_f64());
        self.0.warmup_seconds.set(warmup.as_secs_f64());
        self.0.running.set(i64::try_from(instances).unwrap_or(i64::MAX));
    }

    /// An instance was given up: its run did not come back.
    pub fn instance_lost(&self) {
        self.0.running.dec();
        self.0.lost.inc();
    }

    /// An instance's session broke; another is being opened in its place.
    pub fn instance_broke(&self) {
        self.0.running.dec();
        self.0.broken.inc();
    }

    /// A session was opened in place of a broken one.
    pub fn instance_mended(&self) {
        self.0.broken.dec();
        self.0.running.inc();
    }

    /// An instance was given up: no session could be opened in place of a broken one.
    pub fn broken_instance_lost(&self) {
        self.0.broken.dec();
        self.0.lost.inc();
    }

    /// Whether some bucket keeps the latency objective.
    pub fn objective_feasible(&self, feasible: bool) {
        self.0.objective.get_or_create(&self.0.label).set(i64::from(feasible));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_is_present_at_zero_once_its_model_is_known() {
        let metrics = Metrics::new("1.31.1");
        let _model = metrics.model("espresso");
        let text = metrics.prometheus_text();
        for line in [
            "ortolan_requests_received_total{model=\"espresso\"} 0",
            "ortolan_requests_total{model=\"espresso\",outcome=\"rejected\"} 0",
            "ortolan_errors_total{model=\"espresso\",reason=\"queue_full\"} 0",
            "ortolan_queue_depth{model=\"espresso\"} 0",
            "ortolan_samples_dequeued_total{model=\"espresso\"} 0",
            "ortolan_request_latency_seconds_count{model=\"espresso\"} 0",
            "ortolan_instances{model=\"espresso\",state=\"lost\"} 0",
        ] {
            assert!(text.lines().any(|seen| seen == line), "expected {line} in\n{text}");
        }
    }

    #[test]
    fn the_older_text_form_names_counters_in_full() {
        let metrics = Metrics::new("1.31.1");
        metrics.model("espresso").received();
        let text = metrics.prometheus_text();
        assert!(text.contains("# TYPE ortolan_requests_received_total counter\n"), "{text}");
        assert!(text.contains("# TYPE ortolan_build_info gauge\n"), "{text}");
        assert!(text.contains("ortolan_requests_received_total{model=\"espresso\"} 1\n"), "{text}");
        assert!(!text.contains("# EOF"), "{text}");
        assert!(metrics.openmetrics_text().ends_with("# EOF\n"));
    }

    #[test]
    fn a_model_has_at_most_120_series() {
        let metrics = Metrics::new("1.31.1");
        metrics.model("espresso").ended(Outcome::ok, Duration::from_millis(3));
        metrics.provider_in_use("espresso", "cpu");
        let text = metrics.prometheus_text();
        let series = text.lines().filter(|line| line.contains("model=\"espresso\"")).count();
        assert!(series <= 120, "{series} series");
    }
}
