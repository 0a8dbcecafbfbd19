//! The metrics of a build without them: nothing is counted. For measuring what they cost.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Bounds, End, Example, Memory, Reason, Standing,
    events::Events,
    route::Route,
    window::{Answered, Seen},
};

/// No metrics.
pub struct Metrics;

/// No metrics of a model.
#[derive(Clone)]
pub struct ModelMetrics;

#[expect(missing_docs, reason = "see the build with metrics")]
impl Metrics {
    #[must_use]
    pub fn new(_runtime_version: &str, _events: &Arc<Events>, _triton_names: bool) -> Self {
        Self
    }

    #[must_use]
    pub fn model(&self, _name: &str, _bounds: &Bounds, _window: Duration, _traced: bool) -> ModelMetrics {
        ModelMetrics
    }

    pub fn responded(&self, _route: Route, _code: u16) {}

    #[must_use]
    pub fn openmetrics_text(&self) -> String {
        "# EOF\n".to_owned()
    }

    #[must_use]
    pub fn prometheus_text(&self) -> String {
        String::new()
    }
}

#[expect(missing_docs, reason = "see the build with metrics")]
impl ModelMetrics {
    pub fn provider_in_use(&self, _provider: &'static str, _is_fallback: bool) {}
    pub fn ended(&self, _end: End) {}
    pub fn ended_traced(&self, _end: End, _example: Option<Example>) {}
    #[must_use]
    pub fn seen(&self, _now: Instant) -> Seen {
        Seen::default()
    }
    #[must_use]
    pub fn answered(&self, _within: Option<Duration>) -> Answered {
        Answered::default()
    }
    pub fn error(&self, _reason: Reason) {}
    pub fn run_began(&self, _samples: usize, _waits: impl Iterator<Item = Duration> + Clone) {}
    pub fn run_ended(&self, _samples: usize, _time: Duration) {}
    pub fn overloaded(&self, _overloaded: bool) {}
    pub fn was_deep(&self, _depth: usize, _now: Instant) {}
    pub fn stands(&self, _standing: Standing, _now: Instant) {}
    pub fn loaded(&self, _load: Duration, _warmup: Duration, _instances: usize) {}
    pub fn instance_lost(&self) {}
    pub fn instance_broke(&self) {}
    pub fn instance_mended(&self) {}
    pub fn broken_instance_lost(&self) {}
    pub fn objective_feasible(&self, _feasible: bool) {}
    pub fn memory(&self, _memory: Memory) {}
}
