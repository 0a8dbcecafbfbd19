//! All autoscalers over all targets on all cases.

use std::time::Duration;

use ortolan_operator::scaling::Policy;

use super::{
    STEPS_PER_SECOND,
    cases::{Case, MAX_REPLICAS},
    hpa::{Hpa, Metric},
    knative::Knative,
    ours::Ours,
    run,
    score::{Frontier, Score},
    traces::Shape,
};

/// Who scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Who {
    /// Mode Operator.
    Ours,
    /// The HorizontalPodAutoscaler, by what is in the pods when they are scraped.
    HpaGauge,
    /// The same, by the average between scrapes.
    HpaAverage,
    /// Knative.
    Knative,
}

impl Who {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ours, Self::HpaGauge, Self::HpaAverage, Self::Knative];

    /// Its name in tables and files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ours => "Operator",
            Self::HpaGauge => "HPA, gauge",
            Self::HpaAverage => "HPA, average",
            Self::Knative => "Knative",
        }
    }
}

/// Targets that are tried: samples in a replica, as shares of what it runs at once.
pub const TARGETS: [f64; 12] = [0.2, 0.28, 0.36, 0.44, 0.52, 0.6, 0.68, 0.76, 0.84, 0.92, 1.0, 1.15];

/// What one autoscaler cost with one target on one case.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The kind of load.
    pub shape: Shape,
    /// The number of the case.
    pub number: u64,
    /// No constant was chosen by it.
    pub is_held_out: bool,
    /// Who scaled.
    pub who: Who,
    /// As a share of what a replica runs at once.
    pub target: f64,
    /// What it cost.
    pub score: Score,
}

/// Runs one.
#[must_use]
pub fn outcome(case: &Case, who: Who, target: f64, policy: impl Fn(f64) -> Policy) -> Outcome {
    let samples = target * f64::from(case.plant.model.slots);
    let load_time = Duration::from_secs(case.plant.start_steps / STEPS_PER_SECOND);
    let score = match who {
        Who::Ours => run(case, &mut Ours::new(policy(samples), load_time, case.seed)).0,
        Who::HpaGauge => run(case, &mut Hpa::new(Metric::Gauge, samples, MAX_REPLICAS, case.seed)).0,
        Who::HpaAverage => run(case, &mut Hpa::new(Metric::Average, samples, MAX_REPLICAS, case.seed)).0,
        Who::Knative => run(case, &mut Knative::new(samples, MAX_REPLICAS, case.seed)).0,
    };
    Outcome { shape: case.shape, number: case.number, is_held_out: case.is_held_out, who, target, score }
}

/// The frontier of one or several on a case: where there are several, the best of them at each share of violations.
#[must_use]
pub fn frontier(outcomes: &[Outcome], shape: Shape, number: u64, who: &[Who]) -> Frontier {
    let is_of = |it: &&Outcome| (it.shape, it.number) == (shape, number) && who.contains(&it.who);
    let point = |it: &Outcome| (it.score.violations(), it.score.replica_hours);
    Frontier::of(outcomes.iter().filter(is_of).map(point).collect())
}
