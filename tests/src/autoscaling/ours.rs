//! Mode Operator: reads the pods as the operator's reader does, and decides with the operator's own function.

use std::{collections::BTreeMap, time::Duration};

use ortolan_operator::scaling::{self, History, Policy, Reading, Share, decide::Now};

use super::{
    Autoscaler, STEPS_PER_SECOND,
    plant::{Plant, Totals, average},
};

const PERIOD_STEPS: f64 = 2.0 * STEPS_PER_SECOND as f64;

/// A reading after one that looked like a burst.
const SOON_STEPS: u64 = STEPS_PER_SECOND / 2;

/// The operator's loop.
#[derive(Debug)]
pub struct Ours {
    policy: Policy,
    load_time: Duration,
    rng: fastrand::Rng,
    history: Option<History>,
    read_at: u64,
    next_at: u64,
    /// Of the pods that were read.
    before: BTreeMap<u64, Totals>,
}

impl Ours {
    /// Aims at so many samples in a replica.
    #[must_use]
    pub fn new(policy: Policy, load_time: Duration, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let next_at = rng.u64(1..=PERIOD_STEPS as u64);
        Self { policy, load_time, rng, history: None, read_at: 0, next_at, before: BTreeMap::new() }
    }

    fn read(&mut self, plant: &Plant) -> Reading {
        let steps = plant.now() - self.read_at;
        let mut reading = Reading { at: duration(plant.now()), span: duration(steps), ..Reading::default() };
        let mut share = Share::default();
        let mut read = BTreeMap::new();
        for pod in plant.ready() {
            read.insert(pod.id, pod.totals);
            reading.ready += 1;
            reading.counted += 1;
            reading.load_now += f64::from(pod.load());
            reading.queued_now += f64::from(pod.queued);
            // A first answer has no difference: what the pod has had since it began, and never more than what is there now.
            let Some(before) = self.before.get(&pod.id) else {
                reading.load += average(pod.totals.load_ticks, steps).min(f64::from(pod.load()));
                reading.queued += average(pod.totals.queued_ticks, steps).min(f64::from(pod.queued));
                continue;
            };
            reading.load += average(pod.totals.load_ticks - before.load_ticks, steps);
            reading.queued += average(pod.totals.queued_ticks - before.queued_ticks, steps);
            reading.refused += pod.totals.refused - before.refused;
            share.answered += pod.totals.answered - before.answered;
            share.within += pod.totals.within - before.within;
        }
        reading.in_queue = reading.queued;
        reading.answered = share.answered;
        reading.answers.insert("model".to_owned(), share);
        self.before = read;
        self.read_at = plant.now();
        reading
    }
}

impl Autoscaler for Ours {
    fn decide(&mut self, plant: &Plant) -> u32 {
        if plant.now() < self.next_at {
            return plant.wanted();
        }
        let reading = self.read(plant);
        let now = Now { at: reading.at, wanted: plant.wanted(), in_rollout: false, load_time: self.load_time };
        let history = self.history.get_or_insert_with(|| History::begin(now.at, now.wanted));
        history.read(reading, self.policy.calm_window);
        let decision = scaling::decide(history, &self.policy, &now);
        history.decided(now.at, now.wanted, &decision, &self.policy);
        let jittered = (PERIOD_STEPS * (0.9 + 0.2 * self.rng.f64())).round() as u64;
        self.next_at = plant.now() + if decision.soon { SOON_STEPS } else { jittered };
        decision.desired
    }
}

/// The defaults, between 1 and so many replicas.
#[must_use]
pub fn policy(target: f64, max: u32) -> Policy {
    let max = i32::try_from(max).unwrap_or(i32::MAX);
    let scaling = crds::resource::Scaling { max_replicas: Some(max), ..crds::resource::Scaling::default() };
    Policy { inflight_per_replica: Some(target), ..Policy::from(&scaling) }
}

fn duration(steps: u64) -> Duration {
    Duration::from_millis(steps * 1000 / STEPS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autoscaling::{
        cases::{Case, MAX_REPLICAS, PER_SHAPE},
        compare::{Who, autoscaler},
        run,
        score::Score,
        table::SHOWN_TARGET,
        traces::Shape,
    };

    /// Queues come and go with each replica there.
    const MOST_AT_HIGH_TARGETS: f64 = 5.0;

    fn score(shape: Shape, number: u64) -> Score {
        let case = Case::new(shape, number);
        run(&case, autoscaler(&case, Who::Ours, SHOWN_TARGET, |_| {}).as_mut()).0
    }

    #[test]
    fn steady_noise_makes_fewer_than_two_reversals_an_hour() {
        for number in 0..PER_SHAPE {
            let score = score(Shape::Steady, number);
            assert!(score.reversals_per_hour() < 2.0, "{number}: {score:?}");
        }
    }

    #[test]
    fn steady_noise_makes_hardly_more_at_other_targets() {
        for target in [0.28, 0.52, 0.84, 1.0] {
            for number in 0..PER_SHAPE {
                let case = Case::new(Shape::Steady, number);
                let score = run(&case, autoscaler(&case, Who::Ours, target, |_| {}).as_mut()).0;
                assert!(score.reversals_per_hour() <= 2.0, "{target}, {number}: {score:?}");
            }
        }
    }

    #[test]
    fn a_target_that_no_replica_reaches_without_a_queue_makes_few_reversals() {
        for target in [1.5, 2.0] {
            for number in 0..PER_SHAPE {
                let case = Case::new(Shape::Steady, number);
                let score = run(&case, autoscaler(&case, Who::Ours, target, |_| {}).as_mut()).0;
                assert!(score.reversals_per_hour() < MOST_AT_HIGH_TARGETS, "{target}, {number}: {score:?}");
            }
        }
    }

    #[test]
    fn a_run_is_the_same_every_time() {
        assert_eq!(score(Shape::Spike, 2), score(Shape::Spike, 2));
        assert_ne!(score(Shape::Spike, 2), score(Shape::Spike, 3));
    }

    #[test]
    fn a_step_to_three_times_what_one_carries_is_answered_within_three_seconds_and_taken_back() {
        let case = Case::new(Shape::Step, 0);
        let second = STEPS_PER_SECOND as usize;
        let rate = case.plant.model.rate() / second as f64;
        let load = |seconds: usize, replicas: f64| vec![(rate * replicas).round() as u32; seconds * second];
        let arrivals = [load(60, 0.5), load(120, 3.0), load(400, 0.5)].concat();
        let mut ours = Ours::new(policy(0.7 * f64::from(case.plant.model.places()), MAX_REPLICAS), Duration::ZERO, 1);
        let (_, course) = run(&Case { arrivals, start_with: 1, ..case }, &mut ours);
        assert_eq!(course.wanted[58], 1);
        assert!(course.wanted[62] > 1, "{:?}", &course.wanted[58..70]);
        assert!((4..9).contains(&course.wanted[150]), "{:?}", &course.wanted[140..160]);
        assert_eq!(course.wanted.last(), Some(&1));
    }
}
