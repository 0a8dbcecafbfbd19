//! Our numbers by the names that Triton gives them, so that dashboards made for it show something.
//!
//! Names, labels and units are those of Triton's metrics page: times are sums in microseconds, and a request is counted when it
//! has ended. Triton's counters do not end in `_total`, which OpenMetrics asks of counters, so they are written as gauges.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, gauge::ConstGauge},
};

use super::{OUTCOMES, Outcome};

/// The sums of all models.
#[derive(Debug, Clone, Default)]
pub struct Triton(Arc<Mutex<Vec<Model>>>);

type Model = (ModelLabels, Arc<Totals>);

/// The sums of one model.
#[derive(Debug, Default)]
pub struct Totals {
    ended: [AtomicU64; OUTCOMES.len()],
    samples: AtomicU64,
    runs: AtomicU64,
    request: Micros,
    queue: Micros,
    decode: Micros,
    run: Micros,
    pending: AtomicU64,
}

#[derive(Debug, Default)]
struct Micros(AtomicU64);

impl Micros {
    fn add(&self, time: Duration) {
        self.0.fetch_add(u64::try_from(time.as_micros()).unwrap_or_default(), Ordering::Relaxed);
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: String,
    version: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailureLabels {
    model: String,
    version: &'static str,
    reason: &'static str,
}

impl Triton {
    /// The sums of a model, from 0.
    #[must_use]
    pub fn model(&self, name: &str) -> Arc<Totals> {
        let totals = Arc::new(Totals::default());
        let labels = ModelLabels { model: name.to_owned(), version: "1" };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((labels, Arc::clone(&totals)));
        totals
    }
}

impl Totals {
    /// A request has ended.
    pub fn ended(&self, outcome: Outcome, latency: Duration, decode_time: Option<Duration>) {
        self.ended[outcome as usize].fetch_add(1, Ordering::Relaxed);
        if let Some(time) = decode_time {
            self.decode.add(time);
        }
        if outcome == Outcome::ok {
            self.request.add(latency);
        }
    }

    /// A job has waited.
    pub fn waited(&self, time: Duration) {
        self.queue.add(time);
    }

    /// A batch ran.
    pub fn ran(&self, samples: usize, time: Duration) {
        self.samples.fetch_add(samples as u64, Ordering::Relaxed);
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.run.add(time);
    }

    /// So many samples wait.
    pub fn pending(&self, samples: usize) {
        self.pending.store(samples as u64, Ordering::Relaxed);
    }

    fn count(&self, outcomes: &[Outcome]) -> u64 {
        outcomes.iter().map(|outcome| self.ended[*outcome as usize].load(Ordering::Relaxed)).sum()
    }
}

/// A sum, and what it is.
type Shown = (&'static str, &'static str, fn(&Totals) -> u64);

const SHOWN: [Shown; 8] = [
    ("nv_inference_request_success", "Requests that were answered", |t| t.count(&[Outcome::ok])),
    ("nv_inference_count", "Samples that ran", |t| t.samples.load(Ordering::Relaxed)),
    ("nv_inference_exec_count", "Runs", |t| t.runs.load(Ordering::Relaxed)),
    ("nv_inference_request_duration_us", "Microseconds from request to answer, in all", |t| {
        t.request.0.load(Ordering::Relaxed)
    }),
    ("nv_inference_queue_duration_us", "Microseconds of waiting, in all", |t| t.queue.0.load(Ordering::Relaxed)),
    ("nv_inference_compute_input_duration_us", "Microseconds of decoding, in all", |t| {
        t.decode.0.load(Ordering::Relaxed)
    }),
    ("nv_inference_compute_infer_duration_us", "Microseconds of runs, in all", |t| t.run.0.load(Ordering::Relaxed)),
    ("nv_inference_pending_request_count", "Samples that wait", |t| t.pending.load(Ordering::Relaxed)),
];

/// Outcomes by the reasons that Triton knows.
const FAILURES: [(&str, &[Outcome]); 4] = [
    ("REJECTED", &[Outcome::rejected]),
    ("CANCELED", &[Outcome::cancelled]),
    ("BACKEND", &[Outcome::failed]),
    ("OTHER", &[Outcome::invalid, Outcome::expired]),
];

impl Collector for Triton {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let models = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, help, sum) in SHOWN {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (labels, totals) in &models {
                ConstGauge::new(number(sum(totals))).encode(family.encode_family(labels)?)?;
            }
        }
        let (name, help) = ("nv_inference_request_failure", "Requests that were not answered");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (ModelLabels { model, version }, totals) in &models {
            for (reason, outcomes) in FAILURES {
                let labels = FailureLabels { model: model.clone(), version, reason };
                ConstGauge::new(number(totals.count(outcomes))).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
