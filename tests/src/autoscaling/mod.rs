//! A simulator of autoscaling: replicas, a load, and who decides how many replicas there are. Virtual time, fixed seeds, no
//! input or output.
//!
//! ```text
//! traces: requests of each step ▸ plant: pods that start, serve, refuse and drain ▸ score
//!                                   ▲      │ what pods tell
//!                                   └── an autoscaler: ours, Hpa, Knative, Foresight
//! ```
//!
//! [`ours`] drives the operator's own decision; [`hpa`] and [`knative`] are written anew after what their projects publish;
//! [`foresight`] knows what is to come.
//! [`score`] says what a run cost and compares autoscalers at equal violations. Vocabulary: a *trace* is the requests of a run;
//! a *case* is a trace with the plant that it meets; *violations* are requests that were refused or answered late; a *frontier*
//! is what an autoscaler costs at each share of violations, over all targets.

pub mod cases;
pub mod compare;
pub mod foresight;
pub mod hpa;
pub mod knative;
pub mod ours;
pub mod plant;
pub mod score;
pub mod table;
pub mod traces;

use cases::Case;
use plant::Plant;
use score::Score;

/// Steps of the virtual clock in a second.
pub const STEPS_PER_SECOND: u64 = 10;

/// Decides how many replicas there should be.
pub trait Autoscaler {
    /// Called at every step; most times the answer is [`Plant::wanted`].
    fn decide(&mut self, plant: &Plant) -> u32;
}

/// Replicas over the time of a run, for a plot.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Course {
    /// Replicas that are asked for, at each second.
    pub wanted: Vec<u32>,
    /// Replicas that serve, at each second.
    pub ready: Vec<u32>,
}

/// Runs a case from its begin to its end.
pub fn run(case: &Case, autoscaler: &mut dyn Autoscaler) -> (Score, Course) {
    let mut plant = Plant::new(&case.plant, case.start_with, case.seed);
    let mut course = Course::default();
    let mut steps = score::Steps::default();
    for arrivals in &case.arrivals {
        plant.step(*arrivals);
        let wanted = autoscaler.decide(&plant);
        steps.note(plant.now(), plant.wanted(), wanted);
        plant.scale(wanted);
        if plant.now().is_multiple_of(STEPS_PER_SECOND) {
            course.wanted.push(wanted);
            course.ready.push(plant.ready().count() as u32);
        }
    }
    (Score::of(&plant, &steps), course)
}
