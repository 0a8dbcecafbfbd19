//! How long a batch takes, by bucket: measured at warm-up, corrected while serving.

use std::time::Duration;

/// Weight of a new measurement. A tenth: noise averages out, yet a slower machine shows within some dozen runs.
const WEIGHT: f64 = 0.1;

/// A run may pull the estimate to at most this multiple of it, so that one stalled run does not close the queue.
const OUTLIER: f64 = 4.0;

/// Measured time of each bucket, smallest bucket first. Empty where nothing could be measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BucketTimes {
    seconds: Vec<(usize, f64)>,
}

/// The bucket sizes of a model: the powers of two up to `batch_size`, and `batch_size` itself.
#[must_use]
pub fn buckets(batch_size: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = std::iter::successors(Some(1_usize), |size| size.checked_mul(2))
        .take_while(|size| *size < batch_size)
        .collect();
    sizes.push(batch_size.max(1));
    sizes
}

impl BucketTimes {
    /// Sets what a warm-up measured for a bucket.
    pub fn set(&mut self, bucket: usize, time: Duration) {
        match self.seconds.binary_search_by_key(&bucket, |(size, _)| *size) {
            Ok(at) => self.seconds[at].1 = time.as_secs_f64(),
            Err(at) => self.seconds.insert(at, (bucket, time.as_secs_f64())),
        }
    }

    /// Corrects a bucket's time by a run while serving. Other sizes than a bucket's teach nothing, unless nothing is known.
    pub fn record(&mut self, samples: usize, time: Duration) {
        if self.seconds.is_empty() {
            self.set(samples, time);
        }
        if let Ok(at) = self.seconds.binary_search_by_key(&samples, |(size, _)| *size) {
            let known = &mut self.seconds[at].1;
            let seen = time.as_secs_f64().min(*known * OUTLIER);
            *known += WEIGHT * (seen - *known);
        }
    }

    /// Lowers the time of a batch of that many samples, because a job was given up on its account. Only a run corrects an
    /// estimate, and one that is too high would let no run happen: without this it would stand for ever.
    pub fn doubt(&mut self, samples: usize) {
        const SHARE: f64 = 0.8;
        let at =
            self.seconds.iter().position(|(size, _)| *size >= samples).unwrap_or(self.seconds.len().saturating_sub(1));
        if let Some((_, seconds)) = self.seconds.get_mut(at) {
            *seconds *= SHARE;
        }
    }

    /// Each bucket with its time.
    pub fn iter(&self) -> impl Iterator<Item = (usize, Duration)> + '_ {
        self.seconds.iter().map(|(size, seconds)| (*size, Duration::from_secs_f64(*seconds)))
    }

    /// Time of a batch of that many samples: that of the smallest bucket which holds them. Zero where nothing is known.
    #[must_use]
    pub fn of(&self, samples: usize) -> Duration {
        let holding = self.seconds.iter().find(|(size, _)| *size >= samples).or(self.seconds.last());
        holding.map_or(Duration::ZERO, |(size, seconds)| {
            // Beyond the largest bucket a batch costs as much more as it is larger.
            Duration::from_secs_f64(seconds * (samples as f64 / *size as f64).max(1.0))
        })
    }

    /// Time of the largest bucket.
    #[must_use]
    pub fn largest(&self) -> Duration {
        self.seconds.last().map_or(Duration::ZERO, |(_, seconds)| Duration::from_secs_f64(*seconds))
    }

    /// Time per sample at the best bucket; what a long queue costs.
    #[must_use]
    pub fn best_per_sample(&self) -> Duration {
        let best = self.seconds.iter().map(|(size, seconds)| seconds / *size as f64).min_by(f64::total_cmp);
        best.map_or(Duration::ZERO, Duration::from_secs_f64)
    }

    /// Of the buckets that `waiting` samples fill and that take no longer than `limit`, the one with the best time per
    /// sample; of equal ones the larger. `None` where even the smallest takes too long, or nothing is known.
    #[must_use]
    pub fn best_filled_by(&self, waiting: usize, limit: Duration) -> Option<usize> {
        let limit = limit.as_secs_f64();
        let filled = self.seconds.iter().filter(|(size, seconds)| *size <= waiting && *seconds <= limit);
        let cheapest = filled.min_by(|(a, a_seconds), (b, b_seconds)| {
            let per_sample = (a_seconds / *a as f64).total_cmp(&(b_seconds / *b as f64));
            per_sample.then(b.cmp(a))
        });
        cheapest.map(|(size, _)| *size)
    }

    /// Whether anything was measured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seconds.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(measured: &[(usize, u64)]) -> BucketTimes {
        let mut times = BucketTimes::default();
        measured.iter().for_each(|(size, millis)| times.set(*size, Duration::from_millis(*millis)));
        times
    }

    #[test]
    fn buckets_are_powers_of_two_and_the_batch_size() {
        assert_eq!(buckets(1), [1]);
        assert_eq!(buckets(8), [1, 2, 4, 8]);
        assert_eq!(buckets(12), [1, 2, 4, 8, 12]);
        assert_eq!(buckets(0), [1]);
    }

    #[test]
    fn the_cheapest_filled_bucket_wins_and_of_equal_ones_the_larger() {
        let gains = times(&[(1, 5), (2, 7), (4, 11), (8, 21)]);
        let endless = Duration::MAX;
        assert_eq!([1, 2, 3, 4, 7, 8, 9].map(|n| gains.best_filled_by(n, endless)), [1, 2, 2, 4, 4, 8, 8].map(Some));
        let loses = times(&[(1, 6), (2, 11), (4, 23), (8, 50)]);
        assert_eq!(loses.best_filled_by(100, endless), Some(2));
        let equal = times(&[(1, 5), (2, 10), (4, 20)]);
        assert_eq!(equal.best_filled_by(100, endless), Some(4));
    }

    #[test]
    fn a_bucket_that_takes_longer_than_allowed_is_not_chosen() {
        let gains = times(&[(1, 5), (2, 7), (4, 11)]);
        assert_eq!(gains.best_filled_by(8, Duration::from_millis(8)), Some(2));
        assert_eq!(gains.best_filled_by(8, Duration::from_millis(4)), None);
    }

    #[test]
    fn one_stalled_run_moves_the_estimate_a_little_and_many_move_it_all_the_way() {
        let mut seen = times(&[(1, 10)]);
        seen.record(1, Duration::from_secs(60));
        assert!(seen.of(1) < Duration::from_millis(14), "{:?}", seen.of(1));
        (0..200).for_each(|_| seen.record(1, Duration::from_millis(30)));
        assert!(seen.of(1) > Duration::from_millis(29));
        seen.record(3, Duration::from_secs(60));
        assert_eq!(seen.iter().count(), 1, "sizes that are no bucket teach nothing");
    }

    #[test]
    fn a_doubted_estimate_comes_down_until_a_run_can_correct_it() {
        let mut stuck = times(&[(1, 200), (2, 300)]);
        (0..5).for_each(|_| stuck.doubt(1));
        assert!(stuck.of(1) < Duration::from_millis(66), "{:?}", stuck.of(1));
        assert_eq!(stuck.of(2), Duration::from_millis(300));
        BucketTimes::default().doubt(1);
    }

    #[test]
    fn a_model_that_could_not_be_timed_learns_from_its_first_run() {
        let mut unknown = BucketTimes::default();
        unknown.record(1, Duration::from_millis(7));
        assert_eq!(unknown.of(1), Duration::from_millis(7));
    }

    #[test]
    fn a_batch_beyond_the_largest_bucket_costs_in_proportion() {
        let known = times(&[(1, 5), (4, 12)]);
        assert_eq!(known.of(3), Duration::from_millis(12));
        assert_eq!(known.of(8), Duration::from_millis(24));
        assert_eq!(BucketTimes::default().of(8), Duration::ZERO);
    }
}
