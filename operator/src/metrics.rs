//! What the operator counts, with a method for each event. Label sets are closed, and every series of a closed set is there at
//! 0 from the start; the one open set, InferenceModels that are not ready, has at most one series for each.

use std::{
    collections::HashMap,
    error::Error,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crds::exposition::openmetrics_to_prometheus;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

use crate::{
    cache::Key,
    causes::chain,
    kinds::OptionalKind,
    process::Process,
    recent::Recent,
    scaling::Reason,
    traces::{Stretch, Trace},
};

/// The operator's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: Family<ReconcileLabels, Counter>,
    reconcile_time: Histogram,
    step_time: Family<StepLabel, Histogram>,
    queue_delay: Histogram,
    writes: Family<WriteLabels, Counter>,
    watch_restarts: Family<KindLabel, Counter>,
    leader: Gauge,
    models: Gauge<i64>,
    not_ready: Family<NotReadyLabels, Gauge>,
    /// The reason by which each of them has its series.
    reasons: Mutex<HashMap<Key, String>>,
    missing_crds: Family<KindLabel, Gauge>,
    scaled_models: Gauge<i64>,
    load_readings: Family<ReadingLabel, Counter>,
    scale_decisions: Family<ReasonLabel, Counter>,
    scale_steps: Family<DirectionLabel, Counter>,
    spans_sent: Counter,
    spans_dropped: Family<SpanLossLabel, Counter>,
    recent: Recent,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReadingLabel {
    result: ReadingResult,
}

/// Whether a pod told its load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the values of a label are lower case")]
enum ReadingResult {
    ok,
    missing,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabel {
    direction: Direction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the values of a label are lower case")]
enum Direction {
    up,
    down,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SpanLossLabel {
    reason: SpanLoss,
}

/// Why a span is not in a collector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the values of a label are lower case")]
pub enum SpanLoss {
    /// Too many waited to be sent.
    full,
    /// The collector did not take it.
    failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReconcileLabels {
    result: ReconcileResult,
}

/// How a reconcile ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the values of a label are lower case")]
pub enum ReconcileResult {
    /// All is as it should be.
    ok,
    /// It will be tried again.
    error,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StepLabel {
    step: Step,
}

/// A step of a reconcile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the values of a label are lower case")]
pub enum Step {
    /// Facts are read.
    observe,
    /// The spec is checked.
    validate,
    /// What should be there is decided.
    build,
    /// Children are written.
    apply,
    /// The status is decided and written, and Events are told.
    status,
}

const STEPS: [Step; 5] = [Step::observe, Step::validate, Step::build, Step::apply, Step::status];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabels {
    kind: String,
    result: WriteResult,
}

/// How a write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the values of a label are lower case")]
pub enum WriteResult {
    /// It was taken.
    ok,
    /// The API server does not take it; the InferenceModel says why.
    refused,
    /// It will be tried again.
    error,
}

const WRITE_RESULTS: [WriteResult; 3] = [WriteResult::ok, WriteResult::refused, WriteResult::error];

/// The kinds that are written.
const WRITTEN: [&str; 8] = [
    "ConfigMap",
    "Deployment",
    "HorizontalPodAutoscaler",
    "InferenceModel",
    "PrometheusRule",
    "ScaledObject",
    "Service",
    "ServiceMonitor",
];

/// The kinds that are watched.
const WATCHED: [&str; 9] = [
    "ConfigMap",
    "Deployment",
    "HorizontalPodAutoscaler",
    "InferenceModel",
    "Pod",
    "PrometheusRule",
    "ScaledObject",
    "Service",
    "ServiceMonitor",
];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct NotReadyLabels {
    namespace: String,
    inference_model: String,
    reason: String,
}

/// From what costs nothing to what waits for a slow API server.
const RECONCILE_BOUNDS: [f64; 10] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 10.0];

/// From a step that only reads memory to one that waits for a slow API server.
const STEP_BOUNDS: [f64; 10] = [0.000_05, 0.000_2, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 10.0];

/// From a queue that is empty to one of minutes: 1 ms to 131 s by steps of two.
fn delay_bounds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 18))
}

fn step_bounds() -> Histogram {
    Histogram::new(STEP_BOUNDS)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            reconciles: Family::default(),
            reconcile_time: Histogram::new(RECONCILE_BOUNDS),
            step_time: Family::new_with_constructor(step_bounds),
            queue_delay: delay_bounds(),
            writes: Family::default(),
            watch_restarts: Family::default(),
            leader: Gauge::default(),
            models: Gauge::default(),
            not_ready: Family::default(),
            reasons: Mutex::default(),
            missing_crds: Family::default(),
            scaled_models: Gauge::default(),
            load_readings: Family::default(),
            scale_decisions: Family::default(),
            scale_steps: Family::default(),
            spans_sent: Counter::default(),
            spans_dropped: Family::default(),
            recent: Recent::default(),
        };
        metrics.register();
        metrics.begin_at_zero();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        self.registry.register_collector(Box::new(Process));
        let r = self.registry.sub_registry_with_prefix("ortolan_operator");
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        r.register("build", "Version of this program", version);
        r.register("reconciles", "Reconciles of InferenceModels, by result", self.reconciles.clone());
        r.register_with_unit("reconcile", "Time of a reconcile", Unit::Seconds, self.reconcile_time.clone());
        r.register_with_unit("reconcile_step", "Time of a step of a reconcile", Unit::Seconds, self.step_time.clone());
        r.register_with_unit(
            "queue_delay",
            "From a change to the start of the reconcile that it asked for",
            Unit::Seconds,
            self.queue_delay.clone(),
        );
        r.register("writes", "Writes to the API server, by kind and result", self.writes.clone());
        r.register(
            "watch_restarts",
            "Watches that ended in an error and were begun again",
            self.watch_restarts.clone(),
        );
        r.register("leader", "1 while this process may write, else 0", self.leader.clone());
        r.register("models", "InferenceModels that are known", self.models.clone());
        r.register(
            "model_not_ready",
            "1 for an InferenceModel that is not Ready, by the reason of that condition; there is no series while it is, nor \
             from an operator that stands by",
            self.not_ready.clone(),
        );
        r.register("missing_crds", "1 for an optional kind that the cluster does not serve", self.missing_crds.clone());
        r.register(
            "scaled_models",
            "InferenceModels whose replicas this process decides on",
            self.scaled_models.clone(),
        );
        r.register(
            "load_readings",
            "Ready pods that were asked for their load, by whether it is known",
            self.load_readings.clone(),
        );
        r.register("scale_decisions", "Decisions on a number of replicas, by reason", self.scale_decisions.clone());
        r.register("scale_steps", "Numbers of replicas that were written, by direction", self.scale_steps.clone());
        r.register("spans_sent", "Spans of reconciles that a collector took", self.spans_sent.clone());
        r.register("spans_dropped", "Spans of reconciles that no collector got, by reason", self.spans_dropped.clone());
    }

    fn begin_at_zero(&self) {
        for result in [ReconcileResult::ok, ReconcileResult::error] {
            let _ = self.reconciles.get_or_create(&ReconcileLabels { result });
        }
        for step in STEPS {
            let _ = self.step_time.get_or_create(&StepLabel { step });
        }
        for kind in WRITTEN.map(str::to_owned) {
            for result in WRITE_RESULTS {
                let _ = self.writes.get_or_create(&WriteLabels { kind: kind.clone(), result });
            }
        }
        for kind in WATCHED.map(str::to_owned) {
            let _ = self.watch_restarts.get_or_create(&KindLabel { kind });
        }
        for kind in OptionalKind::ALL {
            self.serves(kind, true);
        }
        for result in [ReadingResult::ok, ReadingResult::missing] {
            let _ = self.load_readings.get_or_create(&ReadingLabel { result });
        }
        for reason in Reason::ALL.map(Reason::as_str) {
            let _ = self.scale_decisions.get_or_create(&ReasonLabel { reason });
        }
        for direction in [Direction::up, Direction::down] {
            let _ = self.scale_steps.get_or_create(&DirectionLabel { direction });
        }
        for reason in [SpanLoss::full, SpanLoss::failed] {
            self.lost_spans(reason, 0);
        }
    }

    /// So many InferenceModels are scaled by this process.
    pub fn scales(&self, models: usize) {
        self.scaled_models.set(i64::try_from(models).unwrap_or(i64::MAX));
    }

    /// Of the ready pods of a model, the load of so many is known, and of so many it is not.
    pub fn read_loads(&self, known: u32, missing: u32) {
        let count = |result, pods: u32| self.load_readings.get_or_create(&ReadingLabel { result }).inc_by(pods.into());
        count(ReadingResult::ok, known);
        count(ReadingResult::missing, missing);
    }

    /// A number of replicas was decided on.
    pub fn decided(&self, reason: Reason) {
        self.scale_decisions.get_or_create(&ReasonLabel { reason: reason.as_str() }).inc();
    }

    /// A number of replicas was written, higher than before or lower.
    pub fn scaled(&self, is_up: bool) {
        let direction = if is_up { Direction::up } else { Direction::down };
        self.scale_steps.get_or_create(&DirectionLabel { direction }).inc();
    }

    /// A reconcile has ended.
    pub fn reconciled(&self, result: ReconcileResult, time: Duration) {
        self.reconciles.get_or_create(&ReconcileLabels { result }).inc();
        self.reconcile_time.observe(time.as_secs_f64());
        self.recent.reconciled(result, Instant::now());
    }

    /// A reconcile's steps are timed from now on, and are spans of its trace where it has one.
    #[must_use]
    pub fn steps<'a>(&'a self, trace: Option<&'a Trace>) -> Steps<'a> {
        Steps { metrics: self, trace, running: STEPS.first().copied(), began: Instant::now() }
    }

    /// A collector took so many spans.
    pub fn sent_spans(&self, count: u64) {
        self.spans_sent.inc_by(count);
    }

    /// So many spans were dropped.
    pub fn lost_spans(&self, reason: SpanLoss, count: u64) {
        self.spans_dropped.get_or_create(&SpanLossLabel { reason }).inc_by(count);
    }

    /// A change had waited that long when its reconcile began.
    pub fn waited(&self, time: Duration) {
        self.queue_delay.observe(time.as_secs_f64());
    }

    /// A write has ended.
    pub fn wrote(&self, kind: &str, result: WriteResult) {
        self.writes.get_or_create(&WriteLabels { kind: kind.to_owned(), result }).inc();
    }

    /// A watch is begun again after an error.
    pub fn watch_restarted(&self, kind: &str) {
        self.watch_restarts.get_or_create(&KindLabel { kind: kind.to_owned() }).inc();
        self.recent.watch_failed(kind, Instant::now());
    }

    /// A watch has brought something.
    pub fn watch_moved(&self, kind: &str) {
        self.recent.watch_moved(kind);
    }

    /// This process may write, or may not any more. Who stands by says nothing of InferenceModels: the leader does.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
        if !leads {
            self.keep_only(|_| false);
            self.scales(0);
        }
    }

    /// So many InferenceModels are known.
    pub fn knows(&self, models: usize) {
        self.models.set(i64::try_from(models).unwrap_or(i64::MAX));
    }

    /// An InferenceModel is Ready, or is not for that reason.
    pub fn readiness(&self, model: &Key, reason: Option<&str>) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        if reasons.get(model).map(String::as_str) == reason {
            return;
        }
        if let Some(before) = reasons.remove(model) {
            self.not_ready.remove(&not_ready(model, &before));
        }
        if let Some(reason) = reason {
            self.not_ready.get_or_create(&not_ready(model, reason)).set(1);
            reasons.insert(model.clone(), reason.to_owned());
        }
    }

    /// Forgets InferenceModels that are gone.
    pub fn keep_only(&self, is_there: impl Fn(&Key) -> bool) {
        let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
        reasons.retain(|model, reason| {
            is_there(model) || {
                self.not_ready.remove(&not_ready(model, reason));
                false
            }
        });
    }

    /// The cluster serves an optional kind, or does not.
    pub fn serves(&self, kind: OptionalKind, serves: bool) {
        let label = KindLabel { kind: kind.name().to_owned() };
        self.missing_crds.get_or_create(&label).set(i64::from(!serves));
    }

    /// What has happened lately.
    #[must_use]
    pub fn recent(&self) -> &Recent {
        &self.recent
    }

    /// All of them, as OpenMetrics 1.0.
    #[must_use]
    pub fn openmetrics_text(&self) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    /// All of them in text format 0.0.4, for tools that do not read OpenMetrics.
    #[must_use]
    pub fn prometheus_text(&self) -> String {
        openmetrics_to_prometheus(&self.openmetrics_text())
    }
}

fn not_ready(model: &Key, reason: &str) -> NotReadyLabels {
    let (namespace, inference_model) = model.clone();
    NotReadyLabels { namespace, inference_model, reason: reason.to_owned() }
}

/// Times the steps of one reconcile, one after another; also the one in which it is given up.
pub struct Steps<'a> {
    metrics: &'a Metrics,
    trace: Option<&'a Trace>,
    /// None after the last one.
    running: Option<Step>,
    began: Instant,
}

impl Steps<'_> {
    /// A step has ended, and the next one begins.
    pub fn ended(&mut self, step: Step) {
        self.close(step, None);
    }

    /// A step has ended in an error, and the next one begins all the same.
    pub fn failed(&mut self, step: Step, error: &(dyn Error + 'static)) {
        self.close(step, Some(chain(error)));
    }

    /// No other step comes.
    pub fn over(mut self) {
        self.running = None;
    }

    /// The one place where a step is told of, so that metrics and traces say the same.
    fn close(&mut self, step: Step, error: Option<String>) {
        let (from, to) = (self.began, Instant::now());
        self.metrics.step_time.get_or_create(&StepLabel { step }).observe(to.duration_since(from).as_secs_f64());
        if let Some(trace) = self.trace {
            trace.step(Stretch { step, from, to, error });
        }
        self.running = STEPS.into_iter().skip_while(|it| *it != step).nth(1);
        self.began = to;
    }
}

impl Drop for Steps<'_> {
    fn drop(&mut self) {
        if let Some(step) = self.running {
            self.close(step, Some("given up".to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn espresso() -> Key {
        ("coffee".to_owned(), "espresso".to_owned())
    }

    #[test]
    fn every_closed_label_set_and_every_histogram_is_there_at_zero_from_the_start() {
        let text = Metrics::default().prometheus_text();
        for line in [
            "ortolan_operator_reconciles_total{result=\"error\"} 0",
            "ortolan_operator_reconcile_seconds_count 0",
            "ortolan_operator_reconcile_step_seconds_count{step=\"observe\"} 0",
            "ortolan_operator_reconcile_step_seconds_count{step=\"status\"} 0",
            "ortolan_operator_queue_delay_seconds_count 0",
            "ortolan_operator_writes_total{kind=\"ServiceMonitor\",result=\"refused\"} 0",
            "ortolan_operator_watch_restarts_total{kind=\"Pod\"} 0",
            "ortolan_operator_leader 0",
            "ortolan_operator_models 0",
            "ortolan_operator_missing_crds{kind=\"ServiceMonitor\"} 0",
            "ortolan_operator_missing_crds{kind=\"PrometheusRule\"} 0",
            "ortolan_operator_missing_crds{kind=\"ScaledObject\"} 0",
        ] {
            assert!(text.lines().any(|seen| seen == line), "expected {line} in\n{text}");
        }
    }

    #[test]
    fn an_inference_model_has_a_series_only_while_it_is_not_ready_and_one_reason_at_a_time() {
        let metrics = Metrics::default();
        let series = || {
            let text = metrics.prometheus_text();
            let lines = text.lines().filter(|line| line.starts_with("ortolan_operator_model_not_ready{"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        let line = |reason: &str| {
            format!(
                "ortolan_operator_model_not_ready{{namespace=\"coffee\",inference_model=\"espresso\",reason=\"{reason}\"}} 1"
            )
        };
        metrics.readiness(&espresso(), Some("Fetching"));
        metrics.readiness(&espresso(), Some("Fetching"));
        assert_eq!(series(), [line("Fetching")]);
        metrics.readiness(&espresso(), Some("OutOfDisk"));
        assert_eq!(series(), [line("OutOfDisk")]);
        metrics.readiness(&espresso(), None);
        assert!(series().is_empty());
        metrics.readiness(&espresso(), Some("Fetching"));
        metrics.keep_only(|_| false);
        assert!(series().is_empty(), "it was deleted");
        metrics.readiness(&espresso(), Some("Fetching"));
        metrics.leads(false);
        assert!(series().is_empty(), "who stands by says nothing of InferenceModels");
    }

    /// UPDATE=1 writes it anew.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "a person says so")]
    fn the_table_of_the_docs_has_every_metric() {
        let metrics = Metrics::default();
        metrics.readiness(&espresso(), Some("Fetching"));
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/observability.md");
        let page = std::fs::read_to_string(&path).unwrap();
        let wanted = crds::exposition::with_table(&page, "operator metrics", &metrics.openmetrics_text()).unwrap();
        if std::env::var("UPDATE").is_ok() {
            return std::fs::write(&path, &wanted).unwrap();
        }
        assert!(wanted == page, "UPDATE=1 cargo test -p ortolan-operator --lib the_table writes the page anew");
    }

    #[test]
    fn a_scraper_gets_either_form() {
        let metrics = Metrics::default();
        metrics.wrote("Service", WriteResult::ok);
        assert!(metrics.openmetrics_text().ends_with("# EOF\n"));
        let text = metrics.prometheus_text();
        assert!(!text.contains("# EOF") && text.contains("# TYPE ortolan_operator_writes_total counter\n"), "{text}");
    }

    #[test]
    fn the_step_in_which_a_reconcile_is_given_up_is_timed_and_none_twice() {
        let metrics = Metrics::default();
        let timed = |step: Step| {
            let text = metrics.openmetrics_text();
            let count = format!("ortolan_operator_reconcile_step_seconds_count{{step=\"{step:?}\"}} ");
            text.lines().find_map(|line| line.strip_prefix(&count)).unwrap().to_owned()
        };
        let mut given_up = metrics.steps(None);
        [Step::observe, Step::validate, Step::build].into_iter().for_each(|step| given_up.ended(step));
        drop(given_up);
        assert_eq!(STEPS.map(timed), ["1", "1", "1", "1", "0"]);
        let mut whole = metrics.steps(None);
        STEPS.into_iter().for_each(|step| whole.ended(step));
        drop(whole);
        assert_eq!(STEPS.map(timed), ["2", "2", "2", "2", "1"]);
    }
}
