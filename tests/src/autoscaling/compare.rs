//! All autoscalers over all targets on all cases.

use std::time::Duration;

use ortolan_operator::scaling::Policy;

use super::{
    Autoscaler, STEPS_PER_SECOND,
    cases::{Case, MAX_REPLICAS},
    foresight::Foresight,
    hpa::{Hpa, Metric},
    knative::Knative,
    ours::{self, Ours},
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
    /// One who knows the load beforehand.
    Foresight,
}

impl Who {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Ours, Self::HpaGauge, Self::HpaAverage, Self::Knative, Self::Foresight];

    /// Its name in tables and files.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ours => "Operator",
            Self::HpaGauge => "HPA, gauge",
            Self::HpaAverage => "HPA, average",
            Self::Knative => "Knative",
            Self::Foresight => "foresight",
        }
    }
}

/// Targets that are tried: samples in a replica, as shares of what it runs at once.
pub const TARGETS: [f64; 16] =
    [0.12, 0.2, 0.28, 0.36, 0.44, 0.52, 0.6, 0.68, 0.76, 0.84, 0.92, 1.0, 1.15, 1.3, 1.5, 1.75];

/// What one autoscaler cost with one target on one case.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The kind of load.
    pub shape: Shape,
    /// The number of the case.
    pub number: u64,
    /// Who scaled.
    pub who: Who,
    /// As a share of what a replica runs at once.
    pub target: f64,
    /// What it cost.
    pub score: Score,
}

/// Runs one. `vary` changes our policy.
#[must_use]
pub fn outcome(case: &Case, who: Who, target: f64, vary: impl Fn(&mut Policy)) -> Outcome {
    let score = run(case, autoscaler(case, who, target, vary).as_mut()).0;
    Outcome { shape: case.shape, number: case.number, who, target, score }
}

/// An autoscaler for a case, which aims at that share of what a replica runs at once.
#[must_use]
pub fn autoscaler(case: &Case, who: Who, target: f64, vary: impl Fn(&mut Policy)) -> Box<dyn Autoscaler> {
    let samples = target * f64::from(case.plant.model.places());
    let mut policy = ours::policy(samples, MAX_REPLICAS);
    vary(&mut policy);
    let load_time = Duration::from_millis(case.plant.load_steps * 1000 / STEPS_PER_SECOND);
    match who {
        Who::Ours => Box::new(Ours::new(policy, load_time, case.seed)),
        Who::HpaGauge => Box::new(Hpa::new(Metric::Gauge, samples, MAX_REPLICAS, case.seed)),
        Who::HpaAverage => Box::new(Hpa::new(Metric::Average, samples, MAX_REPLICAS, case.seed)),
        Who::Knative => Box::new(Knative::new(samples, MAX_REPLICAS, case.seed)),
        Who::Foresight => Box::new(Foresight::new(case, samples, MAX_REPLICAS)),
    }
}

/// The frontier of one or several on a case: where there are several, the best of them at each share of violations.
#[must_use]
pub fn frontier(outcomes: &[Outcome], shape: Shape, number: u64, who: &[Who]) -> Frontier {
    let is_of = |it: &&Outcome| (it.shape, it.number) == (shape, number) && who.contains(&it.who);
    let point = |it: &Outcome| (it.score.violations(), it.score.replica_hours);
    Frontier::of(outcomes.iter().filter(is_of).map(point).collect())
}

/// Other constants than the defaults.
#[derive(Debug, Clone, Copy)]
pub struct Variation {
    /// What is different.
    pub name: &'static str,
    /// Makes it different.
    pub apply: fn(&mut Policy),
}

/// What is tried beside the defaults, to see what they are worth.
pub const VARIATIONS: [Variation; 8] = [
    Variation {
        name: "kept for 5 min, a tenth goes in 20 s",
        apply: |policy| {
            policy.down_stabilization = Duration::from_secs(300);
            policy.down_share = 0.1;
        },
    },
    Variation { name: "kept for 60 s", apply: |policy| policy.down_stabilization = Duration::from_secs(60) },
    Variation {
        name: "loads that come back are not expected to",
        apply: |policy| policy.return_stabilization = policy.down_stabilization,
    },
    Variation {
        name: "no patience: averages of 20 s, all that the target asks for at once",
        apply: |policy| {
            policy.calm_window = policy.stable_window;
            policy.hurried_share = 1e-3;
        },
    },
    Variation { name: "what was too few is not remembered", apply: |policy| policy.too_few_kept = Duration::ZERO },
    Variation {
        name: "half goes at a time where much waits, too",
        apply: |policy| policy.small_down_share = policy.down_share,
    },
    Variation { name: "averages of 60 s", apply: |policy| policy.stable_window = Duration::from_secs(60) },
    Variation { name: "tolerance of 10 %, whatever chance makes", apply: |policy| policy.least_tolerance = 0.1 },
];
