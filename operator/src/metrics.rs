//! What the operator counts, with a method for each event.

use std::time::Duration;

use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// The operator's metrics.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    reconciles: Family<ReconcileLabels, Counter>,
    reconcile_time: Histogram,
    writes: Family<WriteLabels, Counter>,
    watch_restarts: Family<KindLabel, Counter>,
    leader: Gauge,
    models: Gauge<i64>,
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

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: String,
}

/// From what costs nothing to what waits for a slow API server.
const RECONCILE_BOUNDS: [f64; 10] = [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.1, 0.5, 2.0, 10.0];

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("ortolan_operator");
        let reconciles = Family::default();
        let writes = Family::default();
        let watch_restarts = Family::default();
        let reconcile_time = Histogram::new(RECONCILE_BOUNDS);
        let leader: Gauge = Gauge::default();
        let models: Gauge<i64> = Gauge::default();
        registry.register("reconciles", "Reconciles of InferenceModels, by result", reconciles.clone());
        registry.register_with_unit("reconcile", "Time of a reconcile", Unit::Seconds, reconcile_time.clone());
        registry.register("writes", "Writes to the API server, by kind and result", writes.clone());
        registry.register(
            "watch_restarts",
            "Watches that ended in an error and were begun again",
            watch_restarts.clone(),
        );
        registry.register("leader", "1 while this process may write, else 0", leader.clone());
        registry.register("models", "InferenceModels that are known", models.clone());
        for result in [ReconcileResult::ok, ReconcileResult::error] {
            let _ = reconciles.get_or_create(&ReconcileLabels { result });
        }
        Self { registry, reconciles, reconcile_time, writes, watch_restarts, leader, models }
    }
}

impl Metrics {
    /// A reconcile has ended.
    pub fn reconciled(&self, result: ReconcileResult, time: Duration) {
        self.reconciles.get_or_create(&ReconcileLabels { result }).inc();
        self.reconcile_time.observe(time.as_secs_f64());
    }

    /// A write has ended.
    pub fn wrote(&self, kind: &str, result: WriteResult) {
        self.writes.get_or_create(&WriteLabels { kind: kind.to_owned(), result }).inc();
    }

    /// A watch is begun again after an error.
    pub fn watch_restarted(&self, kind: &str) {
        self.watch_restarts.get_or_create(&KindLabel { kind: kind.to_owned() }).inc();
    }

    /// This process may write, or may not any more.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// So many InferenceModels are known.
    pub fn knows(&self, models: usize) {
        self.models.set(i64::try_from(models).unwrap_or(i64::MAX));
    }

    /// All of them, as OpenMetrics.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
