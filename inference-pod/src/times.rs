//! How long a batch takes, by bucket and by length: measured at warm-up, corrected while serving.

use std::{collections::BTreeMap, time::Duration};

/// Runs of a bucket that count: few enough that a slower machine shows soon, enough that some stalled runs do not.
const WINDOW: usize = 15;

/// A bucket that could have been taken so often without being taken is tried once, for only a run corrects its time. One that takes
/// so many times as long as the best is tried after so many times as many, so that tries cost the same share of the time.
const FORGOTTEN_AFTER: f64 = 500.0;

/// The same for a bucket that has not run since the warm-up: whatever held the machine up then is in its time.
const UNTRIED_AFTER: f64 = 50.0;

/// A bucket is not tried where each of its samples seems to cost more than this multiple of the best one's.
const WORTH_A_TRY: f64 = 16.0;

/// Runs of a bucket after which a change of its time is the machine's, and not for want of runs.
const SETTLED_AFTER: usize = 5;

/// The bucket sizes of a model: the powers of two up to `batch_size`, and `batch_size` itself.
#[must_use]
pub fn buckets(batch_size: usize) -> Vec<usize> {
    let mut sizes: Vec<usize> = std::iter::successors(Some(1_usize), |size| size.checked_mul(2))
        .take_while(|size| *size < batch_size)
        .collect();
    sizes.push(batch_size.max(1));
    sizes
}

/// A run may take so much longer than the median and be no exception.
const SLOW_AT_MOST: f64 = 2.0;

/// A batch between two buckets is as expected where it takes so many times what the line between them says.
const NEAR: (f64, f64) = (0.7, 1.5);

/// How much a batch between two buckets says of the next, and how far off the line between them it may be to say it.
const OFF_LINE_WEIGHT: f64 = 0.1;
/// See [`OFF_LINE_WEIGHT`].
const OFF_LINE: (f64, f64) = (0.5, 3.0);

/// The last runs of one bucket. Their median stands for them: whatever a few stalled runs took, it does not move.
#[derive(Debug, Clone, PartialEq)]
struct Bucket {
    samples: usize,
    median: f64,
    /// The same, as those who choose ask for it, again and again between two runs.
    time: Duration,
    /// Nine runs of ten take no longer.
    slow: f64,
    seen: [f64; WINDOW],
    count: usize,
    next: usize,
    /// Times that it could have been taken since it was.
    passed_over: u32,
    /// Runs of other buckets since its own last.
    others_ran: usize,
    /// Its next run is a try, and is to be enough to correct it.
    is_tried: bool,
    /// Jobs that were given up on its account since a batch of its size, or a larger one, last ran.
    doubts: i32,
}

impl Bucket {
    fn new(samples: usize, seconds: f64) -> Self {
        let (median, time, slow) = (0.0, Duration::ZERO, 0.0);
        let (seen, count, next) = ([0.0; WINDOW], 0, 0);
        let (passed_over, others_ran, is_tried, doubts) = (0, 0, false, 0);
        let mut bucket =
            Self { samples, median, time, slow, seen, count, next, passed_over, others_ran, is_tried, doubts };
        bucket.record(seconds);
        bucket
    }

    /// One whose time is an estimate: its first run replaces it.
    fn estimated(samples: usize, seconds: f64) -> Self {
        Self { count: 0, next: 0, ..Self::new(samples, seconds) }
    }

    fn record(&mut self, seconds: f64) {
        (self.passed_over, self.others_ran) = (0, 0);
        if std::mem::take(&mut self.is_tried) {
            (self.seen[0], self.count, self.next) = (self.median, 1, 1);
        }
        self.seen[self.next] = seconds;
        self.next = (self.next + 1) % WINDOW;
        self.count = (self.count + 1).min(WINDOW);
        let mut sorted = self.seen;
        let sorted = &mut sorted[..self.count];
        // Of an even number the lower one: a second run that stalled must not count for more than the first that did not.
        let (_, median, _) = sorted.select_nth_unstable_by((self.count - 1) / 2, f64::total_cmp);
        self.median = *median;
        self.time = Duration::from_secs_f64(self.median);
        let (_, slow, _) = sorted.select_nth_unstable_by((self.count * 9).div_ceil(10) - 1, f64::total_cmp);
        self.slow = slow.min(self.median * SLOW_AT_MOST);
    }

    /// All its times become so many times as long.
    fn scale(&mut self, factor: f64) {
        self.seen.iter_mut().for_each(|seen| *seen *= factor);
        self.median *= factor;
        self.time = Duration::from_secs_f64(self.median);
        self.slow *= factor;
    }

    /// Time that a run has to have, lowered by each doubt.
    fn needed(&self) -> f64 {
        const SHARE: f64 = 0.8;
        self.slow * SHARE.powi(self.doubts)
    }

    fn is_estimated(&self) -> bool {
        self.count == 0
    }

    /// Whether others have to say how fast the machine is by now.
    fn is_old(&self) -> bool {
        self.count <= 1 || self.others_ran >= WINDOW
    }

    /// Whether it was passed over for long enough, beside a best one that takes so long and costs so much for each sample.
    fn is_to_be_tried(&self, best: f64, best_per_sample: f64) -> bool {
        let after = if self.count <= 1 { UNTRIED_AFTER } else { FORGOTTEN_AFTER };
        self.per_sample() <= WORTH_A_TRY * best_per_sample
            && f64::from(self.passed_over) > after * (self.median / best).max(1.0)
    }

    fn per_sample(&self) -> f64 {
        self.median / self.samples as f64
    }
}

/// The bucket for a batch that is about to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chosen {
    /// Its samples.
    pub samples: usize,
    /// Whether it is taken for its time to be measured again.
    pub is_try: bool,
}

/// Measured time of each bucket, smallest bucket first. Empty where nothing could be measured.
#[derive(Debug, Clone, PartialEq)]
pub struct BucketTimes {
    buckets: Vec<Bucket>,
    /// How many times as long as the line between two buckets says a batch of a size between them takes, by the last ones.
    off_line: f64,
}

impl Default for BucketTimes {
    fn default() -> Self {
        Self { buckets: Vec::new(), off_line: 1.0 }
    }
}

impl BucketTimes {
    /// Sets what a warm-up measured for a bucket.
    pub fn set(&mut self, bucket: usize, time: Duration) {
        let new = Bucket::new(bucket, time.as_secs_f64());
        match self.position(bucket) {
            Ok(at) => self.buckets[at] = new,
            Err(at) => self.buckets.insert(at, new),
        }
    }

    /// Corrects a bucket's time by a run while serving.
    pub fn record(&mut self, samples: usize, time: Duration) {
        let time = time.as_secs_f64();
        match self.position(samples) {
            Ok(at) => self.learn(at, time),
            Err(_) if self.buckets.is_empty() => self.buckets.push(Bucket::new(samples, time)),
            Err(_) => self.record_between(samples, time),
        }
        // What needs no more time than this did could have run.
        let run = self.buckets.partition_point(|bucket| bucket.samples < samples) + 1;
        self.buckets.iter_mut().take(run).for_each(|bucket| bucket.doubts = 0);
    }

    /// By as much as the first run of an estimated bucket differs, the others that are estimated will. And by as much as a bucket that
    /// runs becomes slower or faster, so do those that do not: a spell in which all is slow must not put off those that it was seen in, nor
    /// those that it kept from running.
    fn learn(&mut self, at: usize, time: f64) {
        let bucket = &mut self.buckets[at];
        let (before, is_estimated) = (bucket.median, bucket.is_estimated());
        // What a try finds is of its bucket alone.
        let is_settled = bucket.count >= SETTLED_AFTER && !bucket.is_tried;
        bucket.record(time);
        // Of several that run each sees the same spell, and each adds its part.
        let running = self.buckets.iter().filter(|bucket| !bucket.is_old()).count().max(1);
        let factor = match self.buckets[at].median / before {
            factor if is_estimated => factor,
            factor if is_settled => factor.powf(1.0 / running as f64),
            _ => 1.0,
        };
        for (_, other) in self.buckets.iter_mut().enumerate().filter(|(other, _)| *other != at) {
            other.others_ran = other.others_ran.saturating_add(1);
            let follows = if is_estimated { other.is_estimated() } else { other.is_old() };
            if follows && factor.is_normal() {
                other.scale(factor);
            }
        }
    }

    /// A batch that is no bucket, for what waited fills none: where all requests are of three samples no other ever comes. It
    /// corrects the bucket that holds it if that was hardly measured, or is far off and has not run lately; what is measured of itself is
    /// truer.
    fn record_between(&mut self, samples: usize, time: f64) {
        let Some(at) = self.holding(samples) else { return };
        let factor = time / self.between(samples, at);
        if !factor.is_finite() {
            return;
        }
        if samples < self.buckets[at].samples {
            self.off_line += OFF_LINE_WEIGHT * (factor.clamp(OFF_LINE.0, OFF_LINE.1) - self.off_line);
        }
        let is_far_off = !(NEAR.0..=NEAR.1).contains(&factor);
        let bucket = &mut self.buckets[at];
        bucket.others_ran = bucket.others_ran.saturating_add(1);
        let others_ran = bucket.others_ran;
        if bucket.count <= 1 || bucket.is_tried || (is_far_off && others_ran > SETTLED_AFTER) {
            // A full batch takes no less than this one did, and no more than in proportion.
            let most = time * beyond(bucket.samples, samples);
            let full = (bucket.median * factor).clamp(time, most);
            self.learn(at, full);
            self.buckets[at].others_ran = others_ran;
        }
    }

    /// What so many samples are to take, which the bucket at `at` holds: on the line between that and the one below.
    fn between(&self, samples: usize, at: usize) -> f64 {
        let above = &self.buckets[at];
        let below = at.checked_sub(1).map(|at| &self.buckets[at]);
        let Some(below) = below.filter(|_| samples < above.samples) else {
            return above.median * beyond(samples, above.samples);
        };
        let share = (samples - below.samples) as f64 / (above.samples - below.samples) as f64;
        below.median + (above.median - below.median) * share
    }

    /// Time that a batch of that many samples has to have, else it is too late for it: that of a slow run, lowered by each
    /// doubt. A batch needs no more than a larger one. Zero where nothing is known.
    #[must_use]
    pub fn needed(&self, samples: usize) -> Duration {
        self.holding(samples).map_or(Duration::ZERO, |at| {
            let needed = self.buckets[at..].iter().map(Bucket::needed).fold(f64::INFINITY, f64::min);
            Duration::from_secs_f64(needed * beyond(samples, self.buckets[at].samples))
        })
    }

    /// A job of that many samples was given up because of what its batch [needs](Self::needed). Only a run corrects an
    /// estimate, and one that is too high would let no run happen: without doubts it would stand for ever. They change
    /// nothing else that is known of a batch, and a run ends them.
    pub fn doubt(&mut self, samples: usize) {
        if let Some(at) = self.holding(samples) {
            let doubts = &mut self.buckets[at].doubts;
            *doubts = doubts.saturating_add(1);
        }
    }

    /// Each bucket with its time.
    pub fn iter(&self) -> impl Iterator<Item = (usize, Duration)> + '_ {
        self.buckets.iter().map(|bucket| (bucket.samples, bucket.time))
    }

    /// Time of a batch of that many samples: that of the smallest bucket which holds them. Zero where nothing is known.
    #[must_use]
    pub fn of(&self, samples: usize) -> Duration {
        self.holding(samples).map_or(Duration::ZERO, |at| {
            let bucket = &self.buckets[at];
            Duration::from_secs_f64(bucket.median * beyond(samples, bucket.samples))
        })
    }

    /// Time of a batch of that many samples which no rows are added to: between two buckets it is as far off the line between their
    /// times as others were lately.
    #[must_use]
    pub fn unpadded(&self, samples: usize) -> Duration {
        self.holding(samples).map_or(Duration::ZERO, |at| {
            let is_between = self.position(samples).is_err() && samples < self.buckets[at].samples;
            let off_line = if is_between { self.off_line } else { 1.0 };
            Duration::from_secs_f64(self.between(samples, at) * off_line)
        })
    }

    /// Time of the largest bucket of at most that many samples.
    #[must_use]
    pub fn largest(&self, most: usize) -> Duration {
        let largest = self.buckets.iter().rfind(|bucket| bucket.samples <= most).or(self.buckets.first());
        largest.map_or(Duration::ZERO, |bucket| bucket.time)
    }

    /// Time of the best bucket of at most that many samples, the one that the batches of a long queue are of.
    #[must_use]
    pub fn best(&self, most: usize) -> Duration {
        self.cheapest_up_to(most).map_or(Duration::ZERO, |bucket| bucket.time)
    }

    /// Samples of that bucket.
    #[must_use]
    pub fn best_size(&self, most: usize) -> usize {
        self.cheapest_up_to(most).map_or(1, |bucket| bucket.samples)
    }

    /// Time per sample at that bucket; what a long queue costs.
    #[must_use]
    pub fn best_per_sample(&self, most: usize) -> Duration {
        self.cheapest_up_to(most).map_or(Duration::ZERO, |bucket| Duration::from_secs_f64(bucket.per_sample()))
    }

    /// Of the buckets that `waiting` samples fill and that take no longer than `limit`, the one with the best time per
    /// sample; of equal ones the larger. `None` where even the smallest takes too long, or nothing is known.
    #[must_use]
    pub fn best_filled_by(&self, waiting: usize, limit: Duration) -> Option<usize> {
        self.cheapest(|samples, time| samples <= waiting && time <= limit).map(|at| self.buckets[at].samples)
    }

    /// Of the buckets that `fit`, each judged by its samples and its time, and have at most `allowed` samples, the one with the best time
    /// per sample, for a batch that is about to run: now and then it is a bucket whose time is so old that it should be taken
    /// again, if that is no longer than `longest_try`. It may be the smallest that has too many samples, for a time that is too long may be
    /// why it has.
    pub fn choose(
        &mut self,
        allowed: usize,
        longest_try: Duration,
        fits: impl Fn(usize, Duration) -> bool,
    ) -> Option<Chosen> {
        let best = self.cheapest(|samples, time| samples <= allowed && fits(samples, time))?;
        let (best_time, best_per_sample) = (self.buckets[best].median, self.buckets[best].per_sample());
        let mut chosen = best;
        let candidates = self.buckets.partition_point(|bucket| bucket.samples <= allowed) + 1;
        for (at, bucket) in self.buckets.iter_mut().enumerate().take(candidates) {
            if at == best || bucket.time > longest_try || !fits(bucket.samples, bucket.time) {
                continue;
            }
            bucket.passed_over = bucket.passed_over.saturating_add(1);
            if bucket.is_to_be_tried(best_time, best_per_sample) {
                chosen = at;
            }
        }
        let (bucket, is_try) = (&mut self.buckets[chosen], chosen != best);
        bucket.passed_over = 0;
        bucket.is_tried |= is_try;
        Some(Chosen { samples: bucket.samples, is_try })
    }

    /// The smallest bucket over `samples` samples that costs less for each than that many do, and is no larger than
    /// `most`: what waiting for company could lead to.
    #[must_use]
    pub fn cheaper_above(&self, samples: usize, most: usize) -> Option<usize> {
        self.cheaper(samples, most).next()
    }

    /// The buckets over `samples` samples that cost less for each than that many do, and are no larger than `most`; smallest first.
    pub fn cheaper(&self, samples: usize, most: usize) -> impl DoubleEndedIterator<Item = usize> + '_ {
        let now = self.of(samples).as_secs_f64() / samples.max(1) as f64;
        let larger = self.buckets.iter().filter(move |bucket| bucket.samples > samples && bucket.samples <= most);
        larger.filter(move |bucket| bucket.per_sample() < now).map(|bucket| bucket.samples)
    }

    /// The largest bucket that takes no longer than `limit`.
    #[must_use]
    pub fn largest_within(&self, limit: Duration) -> Option<usize> {
        let limit = limit.as_secs_f64();
        self.buckets.iter().rfind(|bucket| bucket.median <= limit).map(|bucket| bucket.samples)
    }

    /// The most samples that a batch may have to take no longer than `limit`; any number where no bucket takes longer, one where all do.
    #[must_use]
    pub fn most_within(&self, limit: Duration) -> usize {
        let is_one_longer = self.buckets.iter().any(|bucket| bucket.time > limit);
        if is_one_longer { self.largest_within(limit).unwrap_or(1) } else { usize::MAX }
    }

    /// Whether nothing was measured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buckets.is_empty()
    }

    fn position(&self, samples: usize) -> Result<usize, usize> {
        self.buckets.binary_search_by_key(&samples, |bucket| bucket.samples)
    }

    /// The smallest bucket that holds so many samples, else the largest.
    fn holding(&self, samples: usize) -> Option<usize> {
        let last = self.buckets.len().checked_sub(1)?;
        Some(self.buckets.partition_point(|bucket| bucket.samples < samples).min(last))
    }

    fn cheapest(&self, fits: impl Fn(usize, Duration) -> bool) -> Option<usize> {
        let fitting = self.buckets.iter().enumerate().filter(|(_, bucket)| fits(bucket.samples, bucket.time));
        let cheapest = fitting.min_by(|(_, a), (_, b)| {
            let per_sample = a.per_sample().total_cmp(&b.per_sample());
            per_sample.then(b.samples.cmp(&a.samples))
        });
        cheapest.map(|(at, _)| at)
    }

    /// Of the buckets that are no larger; the smallest, where all are.
    fn cheapest_up_to(&self, most: usize) -> Option<&Bucket> {
        self.cheapest(|samples, _| samples <= most).map(|at| &self.buckets[at]).or(self.buckets.first())
    }

    /// The same buckets with the same times, as estimates.
    fn estimates(&self) -> Self {
        let estimated = |bucket: &Bucket| Bucket::estimated(bucket.samples, bucket.median);
        Self { buckets: self.buckets.iter().map(estimated).collect(), off_line: self.off_line }
    }
}

/// Beyond the largest bucket a batch costs as much more as it is larger.
fn beyond(samples: usize, bucket: usize) -> f64 {
    (samples as f64 / bucket as f64).max(1.0)
}

/// The class of a length: lengths up to the same power of two share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LengthClass(u32);

impl LengthClass {
    /// The class that holds a length.
    #[must_use]
    pub fn of(length: usize) -> Self {
        Self(length.max(1).next_power_of_two().trailing_zeros())
    }
}

/// Measured times of a model: of each bucket, for each class of lengths that has come.
///
/// A model whose samples all have one shape has one class.
#[derive(Debug, Clone, Default)]
pub struct Times {
    classes: BTreeMap<LengthClass, BucketTimes>,
    /// The class that ran last; what is said of the model as a whole is said of it.
    recent: Option<LengthClass>,
}

impl Times {
    /// What a warm-up measured, with samples of that length.
    #[must_use]
    pub fn warmed_up(length: usize, times: BucketTimes) -> Self {
        if times.is_empty() {
            return Self::default();
        }
        let class = LengthClass::of(length);
        Self { classes: BTreeMap::from([(class, times)]), recent: Some(class) }
    }

    /// The times of the class that ran last.
    #[must_use]
    pub fn recent(&self) -> Option<&BucketTimes> {
        self.classes.get(&self.recent?)
    }

    /// The times of a class. Where it has never run they are those of the nearest that has: too low an estimate is corrected
    /// by the first run, too high a one would refuse requests and let none happen.
    pub fn class(&mut self, class: LengthClass) -> &mut BucketTimes {
        if !self.classes.contains_key(&class) {
            let nearest = self.classes.iter().min_by_key(|(known, _)| known.0.abs_diff(class.0));
            let estimate = nearest.map(|(_, times)| times.estimates()).unwrap_or_default();
            self.classes.insert(class, estimate);
        }
        self.classes.entry(class).or_default()
    }

    /// Corrects a class by a run while serving.
    pub fn record(&mut self, class: LengthClass, samples: usize, time: Duration) {
        self.class(class).record(samples, time);
        self.recent = Some(class);
    }
}

#[cfg(test)]
mod tests;
