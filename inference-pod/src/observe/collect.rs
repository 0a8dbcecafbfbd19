//! Metrics that are looked up when somebody scrapes: of the process, its GPUs, the consumers of events, and Triton's names.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use nvml_wrapper::Nvml;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::{
    asked::{Asked, STALE},
    events::Events,
    lines::LOST,
    process::process_facts,
    route::Route,
};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResponseLabels {
    route: &'static str,
    code: u16,
}

/// Responses over HTTP. Nearly all are 200: to count one of those is to add to a number that lies at a known place.
#[derive(Debug, Default)]
pub struct Responses {
    good: [AtomicU64; Route::COUNT],
    others: Mutex<BTreeMap<(Route, u16), u64>>,
}

impl Responses {
    /// A response was sent.
    pub fn count(&self, route: Route, code: u16) {
        if code == GOOD {
            self.good[route.index()].fetch_add(1, Ordering::Relaxed);
        } else {
            *self.others().entry((route, code)).or_default() += 1;
        }
    }

    fn others(&self) -> MutexGuard<'_, BTreeMap<(Route, u16), u64>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const GOOD: u16 = 200;

/// Responses by route and status.
#[derive(Debug)]
pub struct ByRoute(pub Arc<Responses>);

impl Collector for ByRoute {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        let help = "Responses over HTTP by route and status code";
        let mut family = encoder.encode_descriptor("http_responses", help, None, MetricType::Counter)?;
        let good = Route::all().map(|route| ((route, GOOD), self.0.good[route.index()].load(Ordering::Relaxed)));
        let others = self.0.others().clone();
        for ((route, code), count) in good.filter(|(_, count)| *count > 0).chain(others) {
            let labels = ResponseLabels { route: route.label(), code };
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

type Encoded = Result<(), fmt::Error>;

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: f64) -> Encoded {
    let gauge = ConstGauge::new(value);
    gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)
}

/// `process_*`, by the names that all client libraries have for them.
#[derive(Debug)]
pub struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        let Some(facts) = process_facts() else { return Ok(()) };
        let cpu = ConstCounter::new(facts.cpu_seconds);
        let help = "Processor time, user and system, in seconds";
        let kind = MetricType::Counter;
        cpu.encode(encoder.encode_descriptor("process_cpu_seconds", help, None, kind)?)?;
        let e = &mut encoder;
        gauge(e, "process_resident_memory_bytes", "Memory that is really there", facts.resident_bytes as f64)?;
        gauge(e, "process_virtual_memory_bytes", "Addresses taken", facts.virtual_bytes as f64)?;
        gauge(e, "process_start_time_seconds", "Start, in seconds of the epoch", facts.start_seconds)?;
        gauge(e, "process_open_fds", "Open files and sockets", facts.open_files as f64)?;
        gauge(e, "process_max_fds", "Most open files and sockets", facts.max_files as f64)?;
        gauge(e, "process_threads", "Threads", facts.threads as f64)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GpuLabel {
    gpu: String,
}

/// A GPU: its number, memory in use, all of its memory, and the share of the time that it is busy.
type GpuFacts = (GpuLabel, [f64; 3]);

/// GPUs that the driver shows to this process, by NVML.
#[derive(Debug)]
pub struct Gpus(Asked<Vec<GpuFacts>>);

impl Gpus {
    /// Asks the driver, where there is one.
    ///
    /// # Errors
    /// What the system said where it could not start a thread.
    pub fn find() -> std::io::Result<Self> {
        let find = || Nvml::init().ok().map(|driver| move || gpu_facts(&driver));
        Asked::start("gpus", find).map(Self)
    }

    /// One that is not there, for the table of metrics.
    #[cfg(test)]
    pub fn example() -> Self {
        Self(Asked::always(vec![(GpuLabel { gpu: "0".to_owned() }, [1.0, 2.0, 0.5])]))
    }
}

fn gpu_facts(driver: &Nvml) -> Vec<GpuFacts> {
    let facts = |index: u32| {
        let device = driver.device_by_index(index).ok()?;
        let memory = device.memory_info().ok()?;
        // Not told of slices of a GPU (MIG).
        let busy = device.utilization_rates().map_or(f64::NAN, |rates| f64::from(rates.gpu) / 100.0);
        Some((GpuLabel { gpu: index.to_string() }, [memory.used as f64, memory.total as f64, busy]))
    };
    (0..driver.device_count().unwrap_or_default()).filter_map(facts).collect()
}

impl Collector for Gpus {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        // No number is better than one that has not been true for a while.
        let (Some(facts), age) = self.0.last(Instant::now()) else { return Ok(()) };
        if age >= STALE {
            return Ok(());
        }
        let names = [
            ("gpu_memory_used_bytes", "Memory in use on a GPU, by whomever"),
            ("gpu_memory_total_bytes", "Memory of a GPU"),
            ("gpu_utilization_ratio", "Share of the time in which a GPU was busy, by whomever"),
        ];
        for (which, (name, help)) in names.into_iter().enumerate() {
            let kind = MetricType::Gauge;
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (label, numbers) in facts.iter().filter(|(_, numbers)| !numbers[which].is_nan()) {
                ConstGauge::new(numbers[which]).encode(family.encode_family(label)?)?;
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DropLabels {
    consumer: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ConsumerLabel {
    consumer: &'static str,
}

/// What became of the events of each consumer.
#[derive(Debug)]
pub struct Consumers(pub Arc<Events>);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LossLabel {
    reason: &'static str,
}

/// Lines of the log that nobody can read.
#[derive(Debug)]
pub struct Lines;

impl Collector for Lines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        let help = "Lines of the log that did not reach standard error: too many waited, or writing failed";
        let kind = MetricType::Counter;
        let mut family = encoder.encode_descriptor("log_lines_dropped", help, None, kind)?;
        for (reason, count) in [("full", LOST.full()), ("failed", LOST.failed())] {
            ConstCounter::new(count).encode(family.encode_family(&LossLabel { reason })?)?;
        }
        Ok(())
    }
}

impl Collector for Consumers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Encoded {
        use MetricType::{Counter, Gauge};
        let help = "Events that a consumer did not get";
        let mut family = encoder.encode_descriptor("events_dropped", help, None, Counter)?;
        for (consumer, counts) in self.0.counts() {
            for (reason, count) in [("full", counts.full), ("open", counts.open), ("failed", counts.failed)] {
                let labels = DropLabels { consumer, reason };
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
        let mut family = encoder.encode_descriptor("events_consumed", "Events that a consumer took", None, Counter)?;
        for (consumer, counts) in self.0.counts() {
            ConstCounter::new(counts.consumed).encode(family.encode_family(&ConsumerLabel { consumer })?)?;
        }
        let help = "1 while a consumer of events is cut off, else 0";
        let mut family = encoder.encode_descriptor("consumer_open", help, None, Gauge)?;
        for (consumer, counts) in self.0.counts() {
            ConstGauge::new(i64::from(counts.is_open)).encode(family.encode_family(&ConsumerLabel { consumer })?)?;
        }
        Ok(())
    }
}
