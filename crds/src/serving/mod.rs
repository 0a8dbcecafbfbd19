//! The serving config: one parser for people, who write files, and for the operator, which renders them.
//!
//! Several layers make one config. A later layer overrides an earlier one key by key, `models` merge by name, any other
//! list is replaced as a whole, and `null` takes a setting back to its default. The environment comes last and speaks for
//! everything but `models`. [`parse`] reports all faults at once.

mod check;
mod layers;
mod model;
mod observability;
mod options;
mod reference;
mod server;

pub use check::{Fault, Faults, event_rule_faults, log_level_fault, parse, parse_options};
pub use layers::{ENVIRONMENT_PREFIX, Layer, environment_layer};
pub use model::{ExecutionProvider, ModelConfig, Task};
pub use observability::{
    AuditConfig, Bounds, EVENTS, EventRule, EventsConfig, HealthConfig, MetricsConfig, ObservabilityConfig,
    TracingConfig,
};
pub use options::{
    Channels, CudaOptions, ImageOptions, Labels, Layout, ModelOptions, Resize, TextOptions, VersionOptions,
    WarmupOptions,
};
pub use reference::reference;
pub use server::{LogFormat, LoggingConfig, ModelControl, RateLimit, RateLimitBy, ServerConfig, TlsConfig};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Everything that `inference-pod serve` is told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServingConfig {
    /// Ports, limits and time-outs of the process.
    pub server: ServerConfig,
    /// How the process logs.
    pub logging: LoggingConfig,
    /// What the process tells about itself, and to whom.
    pub observability: ObservabilityConfig,
    /// The models to serve; each name once.
    pub models: Vec<ModelConfig>,
}

/// The JSON schema of [`ServingConfig`], for editors and for the reference in the docs.
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(ServingConfig).to_value()
}
