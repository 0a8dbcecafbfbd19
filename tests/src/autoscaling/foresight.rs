//! Who knows the load beforehand, which nobody does: how much whoever keeps to a target could save at all.
//!
//! At each second it has as many replicas as the target asks for at the highest load until a pod that is asked for now serves. So
//! each is there just when it is needed, and goes when nobody will need it before another could have been started in its place. What
//! single requests do by chance it does not know.

use std::collections::VecDeque;

use super::{Autoscaler, STEPS_PER_SECOND, cases::Case, plant::Plant};

/// Has the number of each second.
#[derive(Debug)]
pub struct Foresight {
    numbers: Vec<u32>,
}

impl Foresight {
    /// Aims at so many samples in a replica.
    #[must_use]
    pub fn new(case: &Case, samples: f64, max: u32) -> Self {
        let per_replica = samples / f64::from(case.plant.model.places());
        let latest_start = case.plant.start_steps as f64 * (1.0 + case.plant.start_jitter);
        let seconds = (latest_start / STEPS_PER_SECOND as f64).ceil() as usize;
        let number = |level: f64| ((level / per_replica).ceil() as u32).clamp(1, max);
        Self { numbers: highest_ahead(&case.levels, seconds).into_iter().map(number).collect() }
    }
}

impl Autoscaler for Foresight {
    fn decide(&mut self, plant: &Plant) -> u32 {
        let second = (plant.now() / STEPS_PER_SECOND) as usize;
        self.numbers.get(second).copied().unwrap_or_else(|| plant.wanted())
    }
}

/// At each place the highest of the levels from it on, so many of those behind it included.
fn highest_ahead(levels: &[f64], further: usize) -> Vec<f64> {
    // Places of levels that are higher than all between them and the one looked at, the highest last.
    let mut falling: VecDeque<usize> = VecDeque::new();
    let mut highest = vec![0.0; levels.len()];
    for at in (0..levels.len()).rev() {
        while falling.front().is_some_and(|next| levels[*next] <= levels[at]) {
            falling.pop_front();
        }
        falling.push_front(at);
        while falling.back().is_some_and(|last| *last > at + further) {
            falling.pop_back();
        }
        highest[at] = falling.back().map_or(levels[at], |last| levels[*last]);
    }
    highest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_ahead_is_that_of_each_window() {
        let mut rng = fastrand::Rng::with_seed(3);
        let levels: Vec<f64> = (0..300).map(|_| f64::from(rng.u32(..20))).collect();
        for further in [0, 1, 7, 400] {
            let expected =
                |at: usize| levels[at..levels.len().min(at + further + 1)].iter().copied().fold(0.0, f64::max);
            let expected: Vec<f64> = (0..levels.len()).map(expected).collect();
            assert_eq!(highest_ahead(&levels, further), expected, "{further}");
        }
    }
}
