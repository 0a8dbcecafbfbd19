//! Knative's pod autoscaler with its defaults, after its documentation "Additional autoscaling configuration for Knative Pod
//! Autoscaler" and `pkg/autoscaler/scaling`.
//!
//! Metrics are the concurrency that each ready pod's proxy reports, averaged over a second; every pod is heard and nothing is
//! late, which is kinder than the sampling of the real one. There is no activator: its queue would only hide refusals.

use std::collections::{BTreeMap, VecDeque};

use super::{
    Autoscaler, STEPS_PER_SECOND,
    plant::{Plant, average},
};

const TICK_STEPS: u64 = 2 * STEPS_PER_SECOND;
const STABLE_SECONDS: usize = 60;
const PANIC_SECONDS: usize = 6;
const PANIC_THRESHOLD: f64 = 2.0;
const MAX_SCALE_UP: f64 = 1000.0;
const MAX_SCALE_DOWN: f64 = 2.0;

/// Stable and panic mode.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mode {
    panic_since: Option<u64>,
    most: u32,
}

impl Mode {
    /// It begins in panic where there is more than one replica, so that it does not fall before it knows anything.
    #[must_use]
    pub fn begin(now: u64, ready: u32) -> Self {
        Self { panic_since: (ready > 1).then_some(now), most: ready }
    }

    /// Whether it panics.
    #[must_use]
    pub fn is_panic(&self) -> bool {
        self.panic_since.is_some()
    }

    /// Replicas, from the concurrency of both windows, all pods together.
    pub fn replicas(&mut self, now: u64, ready: u32, stable: f64, panic: f64, target: f64) -> u32 {
        let ready = f64::from(ready.max(1));
        let limit = |replicas: f64| {
            let (least, most) = ((ready / MAX_SCALE_DOWN).floor(), (ready * MAX_SCALE_UP).ceil());
            replicas.max(least).min(most) as u32
        };
        let by_panic = (panic / target).ceil();
        let (stable, panic) = (limit((stable / target).ceil()), limit(by_panic));
        let window = STABLE_SECONDS as u64 * STEPS_PER_SECOND;
        if by_panic / ready >= PANIC_THRESHOLD {
            self.panic_since = Some(now);
        } else if self.panic_since.is_some_and(|since| since + window < now) {
            *self = Self::default();
        }
        if !self.is_panic() {
            return stable;
        }
        self.most = self.most.max(stable).max(panic);
        self.most
    }
}

/// The autoscaler with its windows.
#[derive(Debug)]
pub struct Knative {
    target: f64,
    max: u32,
    phase: u64,
    mode: Option<Mode>,
    /// Concurrency of all pods in each of the last seconds, the last one first.
    seconds: VecDeque<f64>,
    before: BTreeMap<u64, u64>,
}

impl Knative {
    /// Aims at so many samples in a replica; that is the target after the target utilization was taken off.
    #[must_use]
    pub fn new(target: f64, max: u32, seed: u64) -> Self {
        let phase = fastrand::Rng::with_seed(seed).u64(..TICK_STEPS);
        Self { target, max, phase, mode: None, seconds: VecDeque::new(), before: BTreeMap::new() }
    }

    fn hear(&mut self, plant: &Plant) {
        let integrals: BTreeMap<u64, u64> = plant.ready().map(|pod| (pod.id, pod.totals.load_ticks)).collect();
        let since = |(id, integral): (&u64, &u64)| integral - self.before.get(id).unwrap_or(&0);
        let sum: u64 = integrals.iter().map(since).sum();
        self.before = integrals;
        self.seconds.push_front(average(sum, STEPS_PER_SECOND));
        self.seconds.truncate(STABLE_SECONDS);
    }

    fn average(&self, seconds: usize) -> f64 {
        let count = self.seconds.len().min(seconds).max(1);
        self.seconds.iter().take(seconds).sum::<f64>() / count as f64
    }
}

impl Autoscaler for Knative {
    fn decide(&mut self, plant: &Plant) -> u32 {
        if plant.now().is_multiple_of(STEPS_PER_SECOND) {
            self.hear(plant);
        }
        if plant.now() % TICK_STEPS != self.phase || self.seconds.is_empty() {
            return plant.wanted();
        }
        let (stable, panic) = (self.average(STABLE_SECONDS), self.average(PANIC_SECONDS));
        let ready = plant.ready().count() as u32;
        let mode = self.mode.get_or_insert_with(|| Mode::begin(plant.now(), ready));
        mode.replicas(plant.now(), ready, stable, panic, self.target).clamp(1, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = STEPS_PER_SECOND;

    #[test]
    fn the_documented_example_asks_for_fifteen() {
        // 100 requests at once, a concurrency of 10 at 70 %.
        assert_eq!(Mode::default().replicas(0, 10, 100.0, 100.0, 10.0 * 0.7), 15);
    }

    #[test]
    fn panic_begins_at_twice_the_ready_pods_and_ends_a_stable_window_after_the_last_of_it() {
        let mut mode = Mode::default();
        assert_eq!(mode.replicas(0, 2, 10.0, 30.0, 10.0), 1, "three for two is no panic, and the stable window counts");
        assert!(!mode.is_panic());
        assert_eq!(mode.replicas(2 * SECOND, 2, 12.0, 40.0, 10.0), 4, "four for two is");
        assert_eq!(mode.replicas(4 * SECOND, 2, 15.0, 60.0, 10.0), 6, "it rises in panic");
        assert_eq!(mode.replicas(6 * SECOND, 6, 15.0, 20.0, 10.0), 6, "and does not fall");
        assert_eq!(mode.replicas(64 * SECOND, 6, 15.0, 20.0, 10.0), 6, "a window after the last threshold");
        assert!(mode.is_panic());
        assert_eq!(mode.replicas(66 * SECOND, 6, 15.0, 20.0, 10.0), 3, "half of what is ready may go at once");
        assert!(!mode.is_panic());
        assert_eq!(mode.replicas(68 * SECOND, 3, 15.0, 20.0, 10.0), 2);
    }

    #[test]
    fn more_than_one_replica_at_the_begin_are_kept_for_a_window() {
        let mut mode = Mode::begin(0, 5);
        assert_eq!(mode.replicas(2 * SECOND, 5, 1.0, 1.0, 10.0), 5);
        assert_eq!(mode.replicas(62 * SECOND, 5, 1.0, 1.0, 10.0), 2);
    }
}
