//! The runs: traces and the plants that they meet.

use super::{
    STEPS_PER_SECOND,
    plant::{Model, Settings, TICKS_PER_STEP},
    traces::{self, Shape},
};

/// Cases of each shape.
pub const PER_SHAPE: u64 = 8;

/// Never more replicas than this.
pub const MAX_REPLICAS: u32 = 80;

/// A run.
#[derive(Debug, Clone)]
pub struct Case {
    /// The kind of its load.
    pub shape: Shape,
    /// From 0.
    pub number: u64,
    /// No constant was chosen by it.
    pub is_held_out: bool,
    /// Where it runs.
    pub plant: Settings,
    /// Replicas at the begin.
    pub start_with: u32,
    /// Requests of each step.
    pub arrivals: Vec<u32>,
    /// The load of each second, in replicas.
    pub levels: Vec<f64>,
    /// Of the plant and of the autoscaler.
    pub seed: u64,
}

impl Case {
    /// The case of that number; odd ones are held out. Both halves have the same models, start times and scarcity, and loads that
    /// are drawn anew.
    #[must_use]
    pub fn new(shape: Shape, number: u64) -> Self {
        let kind = number / 2;
        let seed = (shape as u64) << 8 | number;
        let mut rng = fastrand::Rng::with_seed(0x5eed_0000 | seed);
        let levels = shape.levels(seconds(shape, kind), &mut rng);
        let peak = levels.iter().copied().fold(0.0, f64::max);
        let plant = plant(kind, peak);
        let arrivals = traces::arrivals(&levels, plant.model.rate(), &mut rng);
        let start_with = (levels[0] * 1.5).ceil() as u32;
        Self { shape, number, is_held_out: number % 2 == 1, plant, start_with, arrivals, levels, seed }
    }

    /// All cases.
    #[must_use]
    pub fn all() -> Vec<Self> {
        Shape::ALL.iter().flat_map(|shape| (0..PER_SHAPE).map(|number| Self::new(*shape, number))).collect()
    }

    /// How long it is.
    #[must_use]
    pub fn hours(&self) -> f64 {
        self.arrivals.len() as f64 / (3600 * STEPS_PER_SECOND) as f64
    }
}

/// An hour and a half; a day takes six hours or, twice in each half, all of its 24.
fn seconds(shape: Shape, kind: u64) -> usize {
    match (shape, kind) {
        (Shape::Diurnal, 0 | 1) => 24 * 3600,
        (Shape::Diurnal, _) => 6 * 3600,
        _ => 5400,
    }
}

/// Share of a start that is loading and warming up, which a pod tells of; the rest is scheduling, image and container.
const LOADING: f64 = 0.5;

/// The pods' own default: so long a pod stays once it is to go.
const DRAIN_STEPS: u64 = 5 * STEPS_PER_SECOND;

fn plant(kind: u64, peak: f64) -> Settings {
    let (start_seconds, instances, batch, batch_ticks, sample_ticks) = match kind {
        // As on a CPU: each sample of a batch takes its time.
        0 => (5, 1, 8, 8, 4),
        // Without batches, several at once.
        1 => (30, 4, 1, 40, 0),
        // As on a GPU: a batch takes about as long however full it is.
        2 => (120, 1, 8, 32, 1),
        _ => (30, 2, 8, 48, 4),
    };
    // A sample may wait as long as a full batch takes, and is refused where it would wait two and a half times as long.
    let run_steps = (batch_ticks + sample_ticks * u64::from(batch)) / TICKS_PER_STEP;
    let (max_wait_steps, late_wait_steps) = (run_steps * 5 / 2, run_steps);
    let model = Model { instances, batch, batch_ticks, sample_ticks, max_wait_steps, late_wait_steps };
    // Devices are scarce in the last of them: what the peak takes, and hardly more.
    let nodes = if kind == 3 { (peak * 1.15).ceil() as usize } else { 100 };
    let start_steps = start_seconds * STEPS_PER_SECOND;
    let load_steps = (start_steps as f64 * LOADING) as u64;
    Settings { model, start_steps, load_steps, start_jitter: 0.2, nodes, imbalance: 0.1, drain_steps: DRAIN_STEPS }
}
