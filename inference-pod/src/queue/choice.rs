//! Which jobs share the next run, and whether company is worth a wait.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use super::{Key, Limits, Queue, Waiting, as_u32};
use crate::times::{BucketTimes, LengthClass};

/// What a free instance is to do about the first job.
pub(super) enum Choice {
    /// Run these together; about so long.
    Run(Vec<Key>, Duration),
    /// Wait for company, no longer than until then.
    Wait(Instant),
    /// The first job cannot make its deadline in any bucket.
    TooLate,
}

/// A batch that could run: jobs of so many samples at most, none outside of a range of lengths.
struct Offer {
    keys: Vec<Key>,
    /// Time that it has to have.
    time: Duration,
    /// Time that it will take, for those that it is really of.
    expected: Duration,
    /// What its jobs would cost in batches of their own lengths, as many as wait: what the run saves.
    worth: Duration,
}

impl Offer {
    /// What is saved for the time it takes. A short job in a long batch saves little and costs much: padding is priced in.
    fn yields(&self) -> f64 {
        self.worth.as_secs_f64() / self.time.as_secs_f64()
    }
}

/// A job that could share the run of the first.
struct Candidate {
    key: Key,
    samples: usize,
    class: LengthClass,
    entered: Instant,
    deadline: Instant,
    /// What it would cost in a batch of those of its own length.
    cost: Duration,
}

/// A job may come just after a run has begun: it waits for that one, and then runs.
const RUNS_UNTIL_ANSWER: u32 = 2;

/// The largest bucket that keeps a latency objective.
pub(super) fn objective_bucket(times: &BucketTimes, objective: Duration) -> Option<usize> {
    times.largest_within(objective / RUNS_UNTIL_ANSWER)
}

/// The most samples that a batch may have for its run not to be ended; where no bucket keeps the objective the smallest comes nearest to
/// it.
pub(super) fn allowed(times: &BucketTimes, limits: &Limits) -> usize {
    let keep = |objective| objective_bucket(times, objective).unwrap_or(1);
    limits.latency_objective.map_or(usize::MAX, keep).min(times.most_within(limits.run_timeout))
}

impl<T> Queue<T> {
    pub(super) fn choose(&mut self, first: Key, now: Instant) -> Choice {
        let Some(job) = self.waiting.get(&first) else { return Choice::TooLate };
        let (least, class) = (job.samples, LengthClass::of(job.length));
        let (entered, deadline) = (job.entered, job.deadline);
        let Some(left) = deadline.checked_duration_since(now) else { return Choice::TooLate };
        let needed = self.times.class(class).needed(least);
        if needed > left {
            // Whoever had time enough when it came has waited too long, which says nothing of what a run takes.
            if needed > deadline.saturating_duration_since(entered) {
                self.times.class(class).doubt(least);
            }
            return Choice::TooLate;
        }
        if self.has_to_give_way(first, now) {
            return Choice::TooLate;
        }
        let soonest = now + self.times.class(class).of(least);
        let mut candidates = self.candidates(first, soonest);
        // Where others wait too, the instance has something to do.
        let company = (candidates.len() == self.waiting.len()).then(|| self.company_by(&candidates, class, now));
        if let Some(until) = company.flatten() {
            let earliest = candidates.iter().map(|candidate| candidate.deadline).fold(deadline, Instant::min);
            let latest = earliest - self.times.class(class).of(self.limits.batch_size).min(left);
            if latest > now {
                return Choice::Wait(until.min(latest));
            }
        }
        let Offer { keys, expected, .. } = self.best_offer(&mut candidates, least, class, (now, left));
        Choice::Run(keys, expected)
    }

    /// Whether the first is in such a hurry that only a small batch would be in time for it, while others fill one that is cheaper for each
    /// and will not all be in time if they wait for the small one. Where more comes than can be answered, what is due first always has
    /// hardly any time left: one small batch after the other would answer few of those who could have been.
    fn has_to_give_way(&mut self, first: Key, now: Instant) -> bool {
        let Some(head) = self.waiting.get(&first) else { return false };
        let (least, left) = (head.samples, head.deadline.saturating_duration_since(now));
        let times = self.times.class(LengthClass::of(head.length));
        let most = self.limits.batch_size.min(allowed(times, &self.limits));
        let small = times.best_filled_by(most, left).unwrap_or(least).max(least);
        let larger: SmallVec<[(usize, Duration); 8]> = times
            .cheaper(small, most)
            .map(|size| (size, times.needed(size)))
            .filter(|(_, time)| *time > left)
            .collect();
        let after_small = now + times.of(small);
        larger.into_iter().rev().any(|(size, time)| self.are_harmed(first, small, after_small, (size, now + time)))
    }

    /// Whether those who would be in time for a batch of `size`, which has to have run by then, fill it, and do not all make their
    /// deadlines after a `small` one with the first.
    fn are_harmed(&self, first: Key, small: usize, after_small: Instant, (size, by): (usize, Instant)) -> bool {
        let Some(head) = self.waiting.get(&first) else { return false };
        let instances = as_u32(self.working().count().max(1));
        let (mut with_first, mut together) = (small.saturating_sub(head.samples), 0);
        let (mut begins, mut is_one_late) = (after_small, false);
        for (_, job) in self.waiting.iter().filter(|(key, _)| **key != first) {
            let shares = job.shape == head.shape && LengthClass::of(job.length) <= LengthClass::of(head.length);
            let is_in_time = job.deadline >= by;
            together += if shares && is_in_time { job.samples } else { 0 };
            if shares && job.samples <= with_first {
                with_first -= job.samples;
                continue;
            }
            begins += job.cost / instances;
            is_one_late |= is_in_time && begins > job.deadline;
            if is_one_late && together >= size {
                return true;
            }
        }
        false
    }

    /// The jobs that could share a run with the first, in order, it among them; no more than it takes to fill a batch with
    /// those that are no longer than the first. Who wants an answer before `soonest`, when the first could have one, is none of them.
    fn candidates(&self, first: Key, soonest: Instant) -> Vec<Candidate> {
        let Some(head) = self.waiting.get(&first) else { return Vec::new() };
        let mut found = Vec::new();
        let mut room = self.limits.batch_size;
        let fits = |key: &Key, job: &Waiting<T>| job.shape == head.shape && (job.deadline >= soonest || *key == first);
        for (key, job) in self.waiting.iter().filter(|(key, job)| fits(key, job)) {
            let class = LengthClass::of(job.length);
            found.push(Candidate {
                key: *key,
                samples: job.samples,
                class,
                entered: job.entered,
                deadline: job.deadline,
                cost: Duration::ZERO,
            });
            if job.samples <= room && job.length <= head.length {
                room -= job.samples;
            }
            if room == 0 {
                break;
            }
        }
        found
    }

    /// Of all ways to fill a bucket, with shorter and longer samples or without, the one that gets most done in its time.
    /// The first has to be answered within `left` of `now`.
    fn best_offer(
        &mut self,
        candidates: &mut [Candidate],
        least: usize,
        class: LengthClass,
        (now, left): (Instant, Duration),
    ) -> Offer {
        let classes = self.price(candidates);
        let mut best: Option<Offer> = None;
        for shortest in classes.iter().filter(|shortest| **shortest <= class) {
            for longest in classes.iter().filter(|longest| **longest >= class) {
                let fit = |candidate: &&Candidate| (*shortest..=*longest).contains(&candidate.class);
                let fitting: Vec<&Candidate> = candidates.iter().filter(fit).collect();
                let offer = self.offer(fitting, least, *longest, (now, left));
                let is_better = |best: &Offer| offer.yields().total_cmp(&best.yields()).is_gt();
                if offer.time <= left && best.as_ref().is_none_or(is_better) {
                    best = Some(offer);
                }
            }
        }
        best.unwrap_or_else(|| {
            let first = candidates.iter().take(1).map(|candidate| candidate.key).collect();
            let time = self.times.class(class).of(least);
            Offer { keys: first, time, expected: time, worth: Duration::ZERO }
        })
    }

    /// Says of each candidate what it would cost among its own length; the classes that there are, shortest first.
    fn price(&mut self, candidates: &mut [Candidate]) -> Vec<LengthClass> {
        let mut waiting: BTreeMap<LengthClass, usize> = BTreeMap::new();
        for candidate in &*candidates {
            *waiting.entry(candidate.class).or_default() += candidate.samples;
        }
        // Those of one length have nothing to be compared with.
        if waiting.len() > 1 {
            for candidate in candidates {
                let times = self.times.class(candidate.class);
                let together =
                    times.best_filled_by(waiting[&candidate.class], Duration::MAX).unwrap_or(candidate.samples);
                candidate.cost = times.of(together) * as_u32(candidate.samples) / as_u32(together);
            }
        }
        waiting.into_keys().collect()
    }

    fn offer(
        &mut self,
        mut fitting: Vec<&Candidate>,
        least: usize,
        longest: LengthClass,
        (now, left): (Instant, Duration),
    ) -> Offer {
        let samples = self.size(&fitting, longest, (now, left)).unwrap_or(least).max(least);
        let time = self.time_of(longest, samples);
        if time <= left {
            fitting.retain(|candidate| candidate.deadline >= now + time);
        }
        let Filled { keys, samples, worth } = fill(&fitting, samples);
        Offer { keys, time, expected: self.time_of(longest, samples), worth }
    }

    /// How many samples are to run together: a bucket that is filled, or all that wait where that costs each of them less and leaves nobody
    /// over. `None` where not even the smallest is in time.
    fn size(
        &mut self,
        fitting: &[&Candidate],
        longest: LengthClass,
        (now, left): (Instant, Duration),
    ) -> Option<usize> {
        let Limits { batch_size: most, max_wait, run_timeout, .. } = self.limits;
        // Another one that is free takes what is left over at once.
        let idle = self.working().filter(|busy| busy.is_none()).count();
        // Who is in more of a hurry than the first and would be late with so many is no company.
        let filled = |time| -> usize {
            let in_time = fitting.iter().filter(|candidate| candidate.deadline >= now + time);
            in_time.map(|candidate| candidate.samples).sum()
        };
        let all = filled(Duration::ZERO);
        let together = self.time_of(longest, all);
        let times = self.times.class(longest);
        if times.is_empty() {
            return Some(all.min(most));
        }
        let allowed = allowed(times, &self.limits);
        let fits = |size, time| size <= most && time <= left.min(run_timeout) && size <= filled(time);
        let bucket = times.choose(allowed, max_wait, fits)?;
        let may_be_all = idle <= 1
            && (bucket.samples + 1..=most.min(allowed)).contains(&all)
            && together <= left
            && filled(together) == all;
        let is_cheaper = of_each(together, all) < of_each(times.of(bucket.samples), bucket.samples);
        Some(if may_be_all && is_cheaper && !bucket.is_try { all } else { bucket.samples })
    }

    /// What a batch of so many samples takes, with the rows that are added to it.
    fn time_of(&mut self, class: LengthClass, samples: usize) -> Duration {
        let times = self.times.class(class);
        if self.limits.is_padded { times.of(samples) } else { times.unpadded(samples) }
    }

    /// Until when an idle instance has reason to wait: the next bucket is cheaper for each sample, and as often as samples
    /// came lately they will fill it before the oldest has waited longer than allowed. No longer than until they are overdue.
    fn company_by(&mut self, candidates: &[Candidate], class: LengthClass, now: Instant) -> Option<Instant> {
        if self.limits.batch_timeout.is_zero() {
            return None;
        }
        let waiting = candidates.iter().map(|candidate| candidate.samples).sum();
        let oldest = candidates.iter().map(|candidate| candidate.entered).min()?;
        let times = self.times.class(class);
        let next = times.cheaper_above(waiting, self.limits.batch_size.min(allowed(times, &self.limits)))?;
        let full = now + self.arrivals.time_for(next - waiting, now)?;
        let latest = oldest + self.limits.batch_timeout;
        let until = latest.min(self.arrivals.overdue(next - waiting)?);
        (full <= latest && now < until).then_some(until)
    }
}

fn of_each(time: Duration, samples: usize) -> f64 {
    time.as_secs_f64() / samples as f64
}

/// Jobs that run together.
struct Filled {
    keys: Vec<Key>,
    samples: usize,
    /// What they cost by themselves.
    worth: Duration,
}

/// In order, each job that still fits into so many samples; the first always fits.
fn fill(fitting: &[&Candidate], samples: usize) -> Filled {
    let mut filled = Filled { keys: Vec::with_capacity(samples.min(fitting.len())), samples: 0, worth: Duration::ZERO };
    for candidate in fitting {
        if candidate.samples <= samples - filled.samples {
            filled.samples += candidate.samples;
            filled.keys.push(candidate.key);
            filled.worth += candidate.cost;
        }
        if filled.samples == samples {
            break;
        }
    }
    filled
}
