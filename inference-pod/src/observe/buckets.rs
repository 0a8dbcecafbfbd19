//! A histogram as plain numbers, for several that change together under one lock. The library's own has a lock for each: a request
//! would take a dozen, which costs more than all the counting.

use std::fmt;

use prometheus_client::encoding::{MetricEncoder, NoLabelSet};

/// What was observed, by the smallest bound that it does not exceed.
#[derive(Debug)]
pub struct Buckets {
    /// Each bound with its own count; the last is infinite.
    buckets: Vec<(f64, u64)>,
    sum: f64,
    count: u64,
}

impl Buckets {
    /// Nothing yet. The bounds ascend and are finite.
    #[must_use]
    pub fn new(bounds: impl IntoIterator<Item = f64>) -> Self {
        let buckets = bounds.into_iter().chain([f64::INFINITY]).map(|bound| (bound, 0)).collect();
        Self { buckets, sum: 0.0, count: 0 }
    }

    /// A number came up.
    pub fn observe(&mut self, number: f64) {
        self.sum += number;
        self.count += 1;
        if let Some((_, count)) = self.buckets.iter_mut().find(|(bound, _)| *bound >= number) {
            *count += 1;
        }
    }

    /// Writes the histogram's lines.
    ///
    /// # Errors
    /// What the encoder says.
    pub fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_histogram::<NoLabelSet>(self.sum, self.count, &self.buckets, None)
    }
}
