//! What a run cost, and autoscalers compared at equal violations.

use super::{STEPS_PER_SECOND, plant::Plant};

/// A change of direction counts as a reversal when it comes so soon after the change before: 10 minutes.
pub const REVERSAL_STEPS: u64 = 600 * STEPS_PER_SECOND;

/// What a run, or several, cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Score {
    /// Requests that came.
    pub requests: u64,
    /// Those that were refused.
    pub refused: u64,
    /// Those that were answered late.
    pub late: u64,
    /// Time that pods held a node.
    pub replica_hours: f64,
    /// Changes of the number that was asked for.
    pub changes: u32,
    /// Up after down, or down after up, within [`REVERSAL_STEPS`].
    pub reversals: u32,
    /// Length of the runs.
    pub hours: f64,
}

impl Score {
    /// Of a plant at the end of its run.
    #[must_use]
    pub fn of(plant: &Plant, steps: &Steps) -> Self {
        let totals = plant.totals();
        Self {
            requests: totals.arrived,
            refused: totals.refused,
            late: totals.answered - totals.within,
            replica_hours: hours(plant.node_steps()),
            changes: steps.changes,
            reversals: steps.reversals,
            hours: hours(plant.now()),
        }
    }

    /// Share of the requests that were refused or answered late.
    #[must_use]
    pub fn violations(&self) -> f64 {
        (self.refused + self.late) as f64 / self.requests.max(1) as f64
    }

    /// Reversals of an hour.
    #[must_use]
    pub fn reversals_per_hour(&self) -> f64 {
        f64::from(self.reversals) / self.hours
    }
}

impl std::iter::Sum for Score {
    fn sum<I: Iterator<Item = Self>>(scores: I) -> Self {
        scores.fold(Self::default(), |sum, score| Self {
            requests: sum.requests + score.requests,
            refused: sum.refused + score.refused,
            late: sum.late + score.late,
            replica_hours: sum.replica_hours + score.replica_hours,
            changes: sum.changes + score.changes,
            reversals: sum.reversals + score.reversals,
            hours: sum.hours + score.hours,
        })
    }
}

fn hours(steps: u64) -> f64 {
    steps as f64 / (3600 * STEPS_PER_SECOND) as f64
}

/// Counts changes of the number that is asked for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Steps {
    changes: u32,
    reversals: u32,
    /// When, and whether it was up.
    last: Option<(u64, bool)>,
}

impl Steps {
    /// From so many to so many.
    pub fn note(&mut self, at: u64, from: u32, to: u32) {
        if from == to {
            return;
        }
        let is_up = to > from;
        let is_reversal = |(before, was_up): (u64, bool)| was_up != is_up && at - before <= REVERSAL_STEPS;
        self.changes += 1;
        self.reversals += u32::from(self.last.is_some_and(is_reversal));
        self.last = Some((at, is_up));
    }
}

/// The least replica-hours at which an autoscaler keeps to a share of violations, over all the targets that were tried.
#[derive(Debug, Clone, PartialEq)]
pub struct Frontier {
    /// Violations and replica-hours: more of the one is less of the other.
    points: Vec<(f64, f64)>,
}

/// Shares below it are not told apart: one request of a hundred thousand.
const LEAST_SHARE: f64 = 1e-5;

impl Frontier {
    /// Of violations and replica-hours.
    #[must_use]
    pub fn of(mut tried: Vec<(f64, f64)>) -> Self {
        tried.iter_mut().for_each(|(violations, _)| *violations = violations.max(LEAST_SHARE));
        tried.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        let mut points: Vec<(f64, f64)> = Vec::new();
        for point in tried {
            if points.last().is_none_or(|last| point.1 < last.1) {
                points.push(point);
            }
        }
        Self { points }
    }

    /// The points that make it up.
    #[must_use]
    pub fn points(&self) -> &[(f64, f64)] {
        &self.points
    }

    /// Replica-hours at that share of violations: between two points by the logarithm of the share. `None` where it is never
    /// kept to.
    #[must_use]
    pub fn replica_hours(&self, violations: f64) -> Option<f64> {
        let after = self.points.partition_point(|point| point.0 <= violations);
        let (low, low_hours) = *self.points.get(after.checked_sub(1)?)?;
        let Some((high, high_hours)) = self.points.get(after) else { return Some(low_hours) };
        let share = (violations / low).ln() / (high / low).ln();
        Some(low_hours + share * (high_hours - low_hours))
    }
}

/// One autoscaler beside another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// Replica-hours of the one ÷ those of the other: the geometric mean over the shares of violations that both keep to.
    pub mean: f64,
    /// The largest of them.
    pub worst: f64,
    /// The least share that both keep to.
    pub from: f64,
}

/// Beyond it nobody would run a service who can help it: one request of fifty.
pub const MOST_SHARE: f64 = 0.02;

/// Shares at which two frontiers are compared, evenly spaced by their logarithm.
const SHARES: u32 = 12;

impl Ratio {
    /// From the least share of violations that both keep to, up to [`MOST_SHARE`], or to twice that least where this is more.
    #[must_use]
    pub fn of(ours: &Frontier, theirs: &Frontier) -> Option<Self> {
        let first = |frontier: &Frontier| frontier.points.first().map(|point| point.0);
        let from = first(ours)?.max(first(theirs)?).max(1e-4);
        let to = MOST_SHARE.max(2.0 * from);
        let at = |number: u32| from * (to / from).powf(f64::from(number) / f64::from(SHARES - 1));
        let ratio = |violations| Some(ours.replica_hours(violations)? / theirs.replica_hours(violations)?);
        let ratios: Vec<f64> = (0..SHARES).filter_map(|number| ratio(at(number))).collect();
        let mean = ratios.iter().map(|ratio| ratio.ln()).sum::<f64>() / ratios.len() as f64;
        let worst = ratios.iter().copied().fold(0.0, f64::max);
        Some(Self { mean: mean.exp(), worst, from })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_of_direction_counts_within_ten_minutes() {
        let mut steps = Steps::default();
        let minute = 60 * STEPS_PER_SECOND;
        for (at, from, to) in [(0, 1, 3), (minute, 3, 4), (5 * minute, 4, 2), (14 * minute, 2, 3), (25 * minute, 3, 2)]
        {
            steps.note(at, from, to);
        }
        steps.note(26 * minute, 2, 2);
        assert_eq!((steps.changes, steps.reversals), (5, 2));
    }

    #[test]
    fn a_frontier_keeps_what_nothing_beats() {
        let frontier = Frontier::of(vec![(0.01, 10.0), (0.001, 20.0), (0.02, 12.0), (0.1, 5.0)]);
        assert_eq!(frontier.points(), [(0.001, 20.0), (0.01, 10.0), (0.1, 5.0)]);
        assert_eq!(frontier.replica_hours(0.0001), None);
        assert_eq!(frontier.replica_hours(0.5), Some(5.0));
        let between = frontier.replica_hours(0.001 * 10f64.sqrt()).unwrap();
        assert!((between - 15.0).abs() < 1e-9, "{between}");
    }

    #[test]
    fn the_ratio_is_over_the_shares_that_both_keep_to() {
        let ours = Frontier::of(vec![(0.0005, 9.0), (0.5, 9.0)]);
        let theirs = Frontier::of(vec![(0.001, 10.0), (0.5, 10.0)]);
        let ratio = Ratio::of(&ours, &theirs).unwrap();
        assert!((ratio.mean - 0.9).abs() < 1e-9 && (ratio.worst - 0.9).abs() < 1e-9, "{ratio:?}");
        assert!((ratio.from - 0.001).abs() < 1e-12);
        assert_eq!(Ratio::of(&Frontier::of(vec![]), &theirs), None);
    }
}
