//! The HorizontalPodAutoscaler (autoscaling/v2) with a Pods metric and its default behaviour, after Kubernetes' documentation
//! "Horizontal Pod Autoscaling" and `pkg/controller/podautoscaler`.
//!
//! Metrics reach it through a scrape. Taken is what is kindest of what is plausible: every pod is scraped each 15 s, all at the
//! same time, and the controller decides 5 s later, without a further delay in an adapter or a cache. Ready pods that were not
//! scraped yet are missing; pods that start are unready.

use std::collections::{BTreeMap, VecDeque};

use super::{
    Autoscaler, STEPS_PER_SECOND,
    plant::{Phase, Plant, average},
};

const SYNC_STEPS: u64 = 15 * STEPS_PER_SECOND;
const SCRAPE_AGE_STEPS: u64 = 5 * STEPS_PER_SECOND;
const DOWN_STABILIZATION_STEPS: u64 = 300 * STEPS_PER_SECOND;
const POLICY_PERIOD_STEPS: u64 = 15 * STEPS_PER_SECOND;
const TOLERANCE: f64 = 0.1;

/// How the metric is made of what is scraped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Metric {
    /// The samples in a pod at the moment of the scrape.
    Gauge,
    /// Their average since the scrape before.
    Average,
}

/// What is known of a pod.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Known {
    /// Its metric.
    Value(f64),
    /// It serves, and has no metric.
    Missing,
    /// It does not serve yet.
    Unready,
}

/// Replicas that the pods' metrics ask for, before stabilization and limits.
///
/// `None` where no pod has a metric: nothing is done then.
#[must_use]
pub fn replicas(pods: &[Known], current: u32, target: f64) -> Option<u32> {
    let values: Vec<f64> = pods.iter().filter_map(Known::value).collect();
    let count = |known: Known| pods.iter().filter(|pod| **pod == known).count();
    let (missing, unready) = (count(Known::Missing), count(Known::Unready));
    let ratio = values.iter().sum::<f64>() / values.len() as f64 / target;
    if values.is_empty() {
        return None;
    }
    let unready = if ratio > 1.0 { unready } else { 0 };
    if missing == 0 && unready == 0 {
        return Some(if is_near(ratio) { current } else { ceil(ratio * values.len() as f64) });
    }
    // Who has no metric counts as full on the way down and as idle on the way up, and must not turn the one into the other.
    let assumed = if ratio < 1.0 { target * missing as f64 } else { 0.0 };
    let counted = values.len() + missing + unready;
    let corrected = (values.iter().sum::<f64>() + assumed) / counted as f64 / target;
    let turns = (ratio < 1.0 && corrected > 1.0) || (ratio > 1.0 && corrected < 1.0);
    if is_near(corrected) || turns {
        return Some(current);
    }
    let wanted = ceil(corrected * counted as f64);
    let contradicts = (corrected < 1.0 && wanted > current) || (corrected > 1.0 && wanted < current);
    Some(if contradicts { current } else { wanted })
}

impl Known {
    fn value(&self) -> Option<f64> {
        match self {
            Self::Value(value) => Some(*value),
            Self::Missing | Self::Unready => None,
        }
    }
}

fn is_near(ratio: f64) -> bool {
    (1.0 - ratio).abs() <= TOLERANCE + 1e-9
}

fn ceil(replicas: f64) -> u32 {
    (replicas - 1e-9).ceil().max(0.0) as u32
}

/// The default behaviour: what was recommended and changed lately bounds what is done.
#[derive(Debug, Clone, Default)]
pub struct Behavior {
    recommended: VecDeque<(u64, u32)>,
    added: VecDeque<(u64, u32)>,
    removed: VecDeque<(u64, u32)>,
}

impl Behavior {
    /// What becomes of a recommendation.
    pub fn limit(&mut self, now: u64, current: u32, recommended: u32, max: u32) -> u32 {
        let stabilized = self.stabilize(now, current, recommended);
        let desired = stabilized.clamp(1, max).min(self.most(now, current));
        if desired > current {
            self.added.push_back((now, desired - current));
        } else if desired < current {
            self.removed.push_back((now, current - desired));
        }
        desired
    }

    /// On the way down the most of the last five minutes counts; on the way up there is no window.
    fn stabilize(&mut self, now: u64, current: u32, recommended: u32) -> u32 {
        self.recommended.retain(|(at, _)| at + DOWN_STABILIZATION_STEPS > now);
        let most = self.recommended.iter().map(|(_, replicas)| *replicas).fold(recommended, u32::max);
        self.recommended.push_back((now, recommended));
        current.max(recommended).min(most)
    }

    /// In 15 s four more, or as many more as there were, whichever is more. All may go in 15 s.
    fn most(&mut self, now: u64, current: u32) -> u32 {
        let sum = |changes: &mut VecDeque<(u64, u32)>| {
            changes.retain(|(at, _)| at + POLICY_PERIOD_STEPS > now);
            changes.iter().map(|(_, replicas)| *replicas).sum::<u32>()
        };
        let before = (current + sum(&mut self.removed)).saturating_sub(sum(&mut self.added));
        (before + 4).max(before * 2).max(current)
    }
}

/// The controller with its scrapes.
#[derive(Debug)]
pub struct Hpa {
    metric: Metric,
    target: f64,
    max: u32,
    phase: u64,
    /// Of the last scrape: the integral and the metric by pod.
    scraped: BTreeMap<u64, (u64, f64)>,
    behavior: Behavior,
}

impl Hpa {
    /// Aims at so many samples in a replica.
    #[must_use]
    pub fn new(metric: Metric, target: f64, max: u32, seed: u64) -> Self {
        let phase = fastrand::Rng::with_seed(seed).u64(..SYNC_STEPS);
        Self { metric, target, max, phase, scraped: BTreeMap::new(), behavior: Behavior::default() }
    }

    fn scrape(&mut self, plant: &Plant) {
        let before = std::mem::take(&mut self.scraped);
        for pod in plant.ready() {
            let integral = pod.totals.load_ticks;
            let since = integral - before.get(&pod.id).map_or(0, |(integral, _)| *integral);
            let value = match self.metric {
                Metric::Gauge => f64::from(pod.load()),
                Metric::Average => average(since, SYNC_STEPS),
            };
            self.scraped.insert(pod.id, (integral, value));
        }
    }

    fn known(&self, plant: &Plant) -> Vec<Known> {
        let of = |pod: &super::plant::Pod| match pod.phase {
            Phase::Pending | Phase::Starting(_) => Some(Known::Unready),
            Phase::Ready => Some(self.scraped.get(&pod.id).map_or(Known::Missing, |(_, value)| Known::Value(*value))),
            Phase::Draining(_) => None,
        };
        plant.pods().iter().filter_map(of).collect()
    }
}

impl Autoscaler for Hpa {
    fn decide(&mut self, plant: &Plant) -> u32 {
        let now = plant.now() + SYNC_STEPS - self.phase;
        if (now + SCRAPE_AGE_STEPS).is_multiple_of(SYNC_STEPS) {
            self.scrape(plant);
        }
        if !now.is_multiple_of(SYNC_STEPS) {
            return plant.wanted();
        }
        match replicas(&self.known(plant), plant.wanted(), self.target) {
            Some(recommended) => self.behavior.limit(now, plant.wanted(), recommended, self.max),
            None => plant.wanted(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(values: &[f64]) -> Vec<Known> {
        values.iter().map(|value| Known::Value(*value)).collect()
    }

    #[test]
    fn the_number_follows_the_ratio_as_documented() {
        assert_eq!(replicas(&values(&[200.0, 200.0]), 2, 100.0), Some(4), "twice the target doubles");
        assert_eq!(replicas(&values(&[50.0, 50.0]), 2, 100.0), Some(1), "half of it halves");
        assert_eq!(replicas(&values(&[60.0, 60.0, 60.0]), 3, 100.0), Some(2), "rounded up");
    }

    #[test]
    fn a_ratio_within_a_tenth_of_one_changes_nothing() {
        assert_eq!(replicas(&values(&[110.0, 110.0]), 2, 100.0), Some(2));
        assert_eq!(replicas(&values(&[91.0, 91.0]), 2, 100.0), Some(2));
        assert_eq!(replicas(&values(&[112.0, 112.0]), 2, 100.0), Some(3));
    }

    #[test]
    fn pods_without_a_metric_are_full_on_the_way_down_and_idle_on_the_way_up() {
        let with = |value, other| [values(&[value, value]), vec![other]].concat();
        assert_eq!(replicas(&with(50.0, Known::Missing), 3, 100.0), Some(2), "50 + 50 + 100");
        assert_eq!(replicas(&with(200.0, Known::Missing), 3, 100.0), Some(4), "200 + 200 + 0");
        assert_eq!(replicas(&with(200.0, Known::Unready), 3, 100.0), Some(4), "200 + 200 + 0");
        assert_eq!(replicas(&with(120.0, Known::Unready), 3, 100.0), Some(3), "would turn up into down");
        assert_eq!(replicas(&with(50.0, Known::Unready), 3, 100.0), Some(1), "not counted on the way down");
        assert_eq!(replicas(&[Known::Missing], 1, 100.0), None);
    }

    #[test]
    fn stabilization_keeps_the_most_of_five_minutes() {
        let mut behavior = Behavior::default();
        let second = STEPS_PER_SECOND;
        assert_eq!(behavior.limit(0, 5, 5, 20), 5);
        assert_eq!(behavior.limit(150 * second, 5, 2, 20), 5);
        assert_eq!(behavior.limit(299 * second, 5, 3, 20), 5);
        assert_eq!(behavior.limit(300 * second, 5, 1, 20), 3, "the five has left the window");
    }

    #[test]
    fn a_step_up_adds_four_or_doubles_in_fifteen_seconds() {
        let mut behavior = Behavior::default();
        assert_eq!(behavior.limit(0, 1, 30, 40), 5);
        assert_eq!(behavior.limit(SYNC_STEPS, 5, 30, 40), 10);
        assert_eq!(behavior.limit(2 * SYNC_STEPS, 10, 30, 40), 20);
        assert_eq!(behavior.limit(3 * SYNC_STEPS, 20, 60, 40), 40);
        assert_eq!(behavior.limit(3 * SYNC_STEPS + 10, 40, 100, 100), 40, "the period is not over");
    }
}
