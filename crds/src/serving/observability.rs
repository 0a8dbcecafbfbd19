//! Settings of what the process tells about itself: `observability`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Everything that can happen, by name.
pub const EVENTS: [&str; 16] = [
    "request.received",
    "request.completed",
    "request.rejected",
    "request.expired",
    "request.cancelled",
    "request.invalid",
    "request.failed",
    "batch.run",
    "instance.started",
    "instance.crashed",
    "instance.evicted",
    "model.loaded",
    "overload.begun",
    "overload.ended",
    "health.changed",
    "observability.changed",
];

/// What the process tells about itself, and to whom.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ObservabilityConfig {
    /// What `/metrics` shows.
    pub metrics: MetricsConfig,
    /// Traces, sent by OTLP.
    pub tracing: TracingConfig,
    /// What happens, and who is told of it.
    pub events: EventsConfig,
    /// When `/health/detailed` warns.
    pub health: HealthConfig,
}

/// What `/metrics` shows.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// The same numbers once more by the names that Triton gives them (`nv_inference_…`), for dashboards that know those.
    pub triton_names: bool,
}

/// Traces, sent by OTLP over HTTP.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TracingConfig {
    /// Base URL of a collector, for example `http://collector:4318`; null takes OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, else
    /// OTEL_EXPORTER_OTLP_ENDPOINT, and where neither is set there are no traces.
    #[schemars(length(max = 2048))]
    pub endpoint: Option<String>,
    /// Share of the requests without a `traceparent` that are traced; those with one follow its flag. OTEL_TRACES_SAMPLER wins
    /// over it.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sample: f64,
    /// Keys of W3C `baggage` that become attributes of a request's span.
    #[schemars(length(max = 16))]
    pub baggage: Vec<String>,
}

impl Default for TracingConfig {
    fn default() -> Self {
        Self { endpoint: None, sample: 0.01, baggage: Vec::new() }
    }
}

/// What happens, and who is told of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EventsConfig {
    /// Which events become lines of the log; the first rule that fits an event decides.
    #[schemars(length(max = 64))]
    pub log: Vec<EventRule>,
    /// A file of events, for whoever has to show later what was done.
    pub audit: AuditConfig,
    /// Regular expressions; what they match is never written anywhere.
    #[schemars(length(max = 64))]
    pub redact: Vec<String>,
}

impl Default for EventsConfig {
    fn default() -> Self {
        let rule = |events: &str, per_second| EventRule { events: events.to_owned(), sample: 1.0, per_second };
        Self {
            log: vec![
                rule("request.failed", Some(10.0)),
                rule("request.expired", Some(10.0)),
                rule("request.invalid", Some(1.0)),
                rule("instance.*", None),
                rule("model.*", None),
                rule("overload.*", None),
                rule("health.*", None),
                rule("observability.*", None),
            ],
            audit: AuditConfig::default(),
            redact: Vec::new(),
        }
    }
}

/// Who is told of which events, and how often.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventRule {
    /// An event (`request.failed`), all of a kind (`request.*`), or all (`*`).
    #[schemars(length(min = 1, max = 64))]
    pub events: String,
    /// Share of them.
    #[serde(default = "all")]
    #[schemars(range(min = 0.0, max = 1.0))]
    pub sample: f64,
    /// Most of them in a second; null has no limit.
    #[serde(default)]
    #[schemars(range(min = 0.001, max = 1_000_000.0))]
    pub per_second: Option<f64>,
}

fn all() -> f64 {
    1.0
}

impl EventRule {
    /// Whether the rule speaks of an event.
    #[must_use]
    pub fn fits(&self, event: &str) -> bool {
        match self.events.strip_suffix('*') {
            Some(beginning) => event.starts_with(beginning),
            None => event == self.events,
        }
    }

    /// Whether it speaks of anything that can happen.
    #[must_use]
    pub fn fits_any(&self) -> bool {
        EVENTS.iter().any(|event| self.fits(event))
    }
}

/// A file of events as JSON lines.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AuditConfig {
    /// The file; null writes none.
    #[schemars(length(max = 4096))]
    pub file: Option<PathBuf>,
    /// A file that is larger is put aside as FILE.1, that one as FILE.2, and so on.
    #[schemars(range(min = 4096, max = 1_099_511_627_776_u64))]
    pub max_bytes: u64,
    /// Files that are kept beside the one that is written.
    #[schemars(range(min = 1, max = 1000))]
    pub keep: u32,
    /// Which events; the first rule that fits an event decides.
    #[schemars(length(max = 64))]
    pub events: Vec<EventRule>,
}

impl Default for AuditConfig {
    fn default() -> Self {
        Self {
            file: None,
            max_bytes: 64 << 20,
            keep: 4,
            events: vec![EventRule { events: "*".to_owned(), sample: 1.0, per_second: None }],
        }
    }
}

/// When `/health/detailed` warns. A share of 0.9 is 90 %.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HealthConfig {
    /// What is counted and timed there is of the last so many seconds.
    #[schemars(range(min = 10, max = 600))]
    pub window_seconds: u32,
    /// Share of requests that failed or were answered too late.
    pub error_rate: Bounds,
    /// Predicted wait, as a share of `max_queue_ms`.
    pub queue: Bounds,
    /// Memory of the process, as a share of its limit.
    pub memory: Bounds,
    /// Room taken on the disk of the audit file.
    pub disk: Bounds,
    /// 95th percentile of the latency, as a share of the model's `latency_objective_ms`.
    pub latency_objective: Bounds,
}

impl Default for HealthConfig {
    fn default() -> Self {
        let bounds = |warning, error| Bounds { warning, error };
        Self {
            window_seconds: 60,
            error_rate: bounds(0.01, 0.1),
            queue: bounds(0.8, 1.0),
            memory: bounds(0.85, 0.95),
            disk: bounds(0.85, 0.95),
            latency_objective: bounds(1.0, 2.0),
        }
    }
}

/// From where on a number is worth a warning, and from where on it is an error.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Bounds {
    /// A warning from here on.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub warning: f64,
    /// An error from here on.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub error: f64,
}
