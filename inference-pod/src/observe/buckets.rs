//! A histogram as plain numbers, for several that change together under one lock. The library's own has a lock for each: a request
//! would take a dozen, which costs more than all the counting.

use std::{fmt, time::Duration};

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

/// What was observed, by the smallest bound that it does not exceed. In whole numbers: nothing is lost of a sum, however large.
#[derive(Debug)]
pub struct Buckets {
    /// Each bound with its own count; the last is the largest number that there is.
    buckets: Vec<(u64, u64)>,
    /// By the bits of a number: where those of so many begin. The bounds of most histograms are steps of two, so from there it is not far.
    begins: [u8; u64::BITS as usize + 1],
    sum: u128,
    count: u64,
    /// The bounds as they are shown, but for the last, which is infinite.
    shown: Vec<f64>,
    /// So many make one of what is shown.
    unit: f64,
}

/// Nanoseconds in a second.
const NANOS: f64 = 1e9;

impl Buckets {
    /// No numbers yet. The bounds ascend and are finite.
    #[must_use]
    pub fn of_numbers(bounds: impl IntoIterator<Item = f64>) -> Self {
        Self::new(bounds, 1.0)
    }

    /// No times yet. The bounds, in seconds, ascend and are finite.
    #[must_use]
    pub fn of_times(bounds: impl IntoIterator<Item = f64>) -> Self {
        Self::new(bounds, NANOS)
    }

    fn new(bounds: impl IntoIterator<Item = f64>, unit: f64) -> Self {
        let shown: Vec<f64> = bounds.into_iter().collect();
        let bounds = shown.iter().map(|bound| (bound * unit).round() as u64).chain([u64::MAX]);
        let buckets: Vec<_> = bounds.map(|bound| (bound, 0)).collect();
        let begins = std::array::from_fn(|bits| {
            let smallest = if bits == 0 { 0 } else { 1 << (bits - 1) };
            let at = buckets.partition_point(|(bound, _)| *bound < smallest);
            // Of more bounds than that it is a longer way.
            u8::try_from(at).unwrap_or(u8::MAX)
        });
        Self { buckets, begins, sum: 0, count: 0, shown, unit }
    }

    /// A number came up.
    pub fn observe(&mut self, number: u64) {
        self.observe_all([number]);
    }

    /// A time came up.
    pub fn observe_time(&mut self, time: Duration) {
        self.observe(nanos(time));
    }

    /// Times came up.
    pub fn observe_times(&mut self, times: impl IntoIterator<Item = Duration>) {
        self.observe_all(times.into_iter().map(nanos));
    }

    fn observe_all(&mut self, numbers: impl IntoIterator<Item = u64>) {
        let (mut sum, mut count) = (0, 0);
        for number in numbers {
            sum += u128::from(number);
            count += 1;
            let begin = self.begins[(u64::BITS - number.leading_zeros()) as usize];
            let mut from_there = self.buckets[usize::from(begin)..].iter_mut();
            if let Some((_, count)) = from_there.find(|(bound, _)| *bound >= number) {
                *count += 1;
            }
        }
        self.sum += sum;
        self.count += count;
    }

    /// Writes the histogram's lines.
    ///
    /// # Errors
    /// What the encoder says.
    pub fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = self.shown.iter().copied().chain([f64::INFINITY]);
        let buckets: Vec<_> = bounds.zip(self.buckets.iter().map(|(_, count)| *count)).collect();
        encoder.encode_histogram::<NoLabelSet>(self.sum as f64 / self.unit, self.count, &buckets, None)
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_number_counts_for_the_smallest_bound_that_it_does_not_exceed(
            bounds in prop::collection::btree_set(0_u32..5000, 0..300),
            numbers in prop::collection::vec(prop_oneof![0_u64..6000, any::<u64>()], 0..50),
        ) {
            let bounds: Vec<u64> = bounds.into_iter().map(u64::from).collect();
            let mut buckets = Buckets::of_numbers(bounds.iter().map(|bound| *bound as f64));
            numbers.iter().for_each(|number| buckets.observe(*number));
            for (at, (bound, count)) in buckets.buckets.iter().enumerate() {
                let above = |number: &u64| at == 0 || *number > bounds[at - 1];
                let fit = numbers.iter().filter(|number| *number <= bound && above(number)).count();
                prop_assert_eq!(*count, fit as u64, "up to {}", bound);
            }
            prop_assert_eq!(buckets.sum, numbers.iter().map(|number| u128::from(*number)).sum());
        }
    }

    #[test]
    fn a_time_that_is_a_bound_is_within_it() {
        let bounds = [0.000_2, 0.001, 0.003, 0.1, 0.3, 16.384];
        let mut buckets = Buckets::of_times(bounds);
        bounds.iter().for_each(|bound| buckets.observe_time(Duration::from_secs_f64(*bound)));
        buckets.observe_time(Duration::MAX);
        assert_eq!(buckets.buckets.iter().map(|(_, count)| *count).collect::<Vec<_>>(), [1; 7]);
    }
}
