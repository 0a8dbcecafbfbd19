//! The queue by example.

use super::*;
use crate::times::BucketTimes;

const BATCH_SIZE: usize = 8;

fn limits() -> Limits {
    Limits {
        max_wait: Duration::from_millis(100),
        samples: 50,
        bytes: 1000,
        batch_size: BATCH_SIZE,
        is_padded: false,
        batch_timeout: Duration::ZERO,
        latency_objective: None,
    }
}

/// 5 ms for one, 2.5 ms a sample at 8.
fn measured_times() -> Times {
    let mut times = BucketTimes::default();
    for (size, millis) in [(1, 5), (2, 7), (4, 12), (8, 20)] {
        times.set(size, Duration::from_millis(millis));
    }
    Times::warmed_up(4, times)
}

fn job(name: &'static str, samples: usize, deadline: Instant) -> NewJob<&'static str> {
    NewJob { samples, bytes: samples * 4, shape: Shape::from_slice(&[4]), length: 4, deadline, payload: name }
}

fn queue() -> (Queue<&'static str>, Instant) {
    (Queue::new(limits(), measured_times(), 1), Instant::now())
}

fn push(queue: &mut Queue<&'static str>, job: NewJob<&'static str>, now: Instant) -> Key {
    queue.push(vec![job], now).unwrap()[0]
}

fn names(jobs: &[Waiting<&'static str>]) -> Vec<&'static str> {
    jobs.iter().map(|job| job.payload).collect()
}

fn later(now: Instant, millis: u64) -> Instant {
    now + Duration::from_millis(millis)
}

#[test]
fn an_idle_instance_starts_a_lone_job_at_once() {
    let (mut queue, now) = queue();
    push(&mut queue, job("only", 1, later(now, 1000)), now);
    let taken = queue.take(0, now);
    assert_eq!(names(&taken.batch), ["only"]);
    assert_eq!((queue.samples(), queue.bytes()), (0, 0));
}

#[test]
fn the_earliest_deadline_goes_first_and_arrival_decides_among_equals() {
    let (mut queue, now) = queue();
    push(&mut queue, job("late", 1, later(now, 90)), now);
    push(&mut queue, job("early", 1, later(now, 30)), now);
    push(&mut queue, job("late too", 1, later(now, 90)), now);
    assert_eq!(names(&queue.take(0, now).batch), ["early", "late", "late too"]);
}

#[test]
fn who_is_in_no_hurry_is_overtaken_for_as_long_as_jobs_may_wait_and_no_longer() {
    let (mut queue, now) = queue();
    let hurried = |name, at: u64| NewJob { shape: Shape::from_slice(&[5]), ..job(name, 1, later(now, at + 60)) };
    push(&mut queue, job("calm", 1, later(now, 30_000)), now);
    push(&mut queue, hurried("first", 0), now);
    assert_eq!(names(&queue.take(0, now).batch), ["first"]);
    push(&mut queue, hurried("second", 50), later(now, 50));
    assert_eq!(names(&queue.take(0, later(now, 50)).batch), ["calm"], "it is due after 100 ms");
    assert_eq!(names(&queue.take(0, later(now, 55)).batch), ["second"]);
}

#[test]
fn who_comes_first_goes_first_however_long_the_runs_before_took() {
    let mut times = Times::default();
    for (length, millis) in [(4, 20), (400, 600)] {
        times.class(LengthClass::of(length)).set(8, Duration::from_millis(millis));
    }
    let (now, calm) = (Instant::now(), 30_000);
    let mut queue: Queue<&'static str> = Queue::new(limits(), times, 1);
    let ran = |length, millis| Run { instance: 0, samples: 8, length, time: Duration::from_millis(millis) };
    queue.finished(ran(400, 600));
    push(&mut queue, job("first", 1, later(now, calm)), now);
    queue.finished(ran(4, 20));
    let wide = NewJob { shape: Shape::from_slice(&[5]), ..job("second", 1, later(now, calm)) };
    push(&mut queue, wide, later(now, 30));
    assert_eq!(names(&queue.take(0, later(now, 30)).batch), ["first"]);
}

#[test]
fn who_would_be_late_with_the_others_is_no_company() {
    let (mut queue, now) = queue();
    push(&mut queue, job("calm", 1, later(now, 30_000)), now);
    push(&mut queue, job("hurried", 1, later(now, 101)), later(now, 95));
    assert_eq!(names(&queue.take(0, later(now, 95)).batch), ["calm"], "two of them take until 102");
    assert_eq!(names(&queue.take(0, later(now, 96)).batch), ["hurried"]);
}

#[test]
fn a_batch_is_as_large_as_those_in_a_hurry_allow() {
    let (mut queue, now) = queue();
    push(&mut queue, job("calm", 1, later(now, 30_000)), now);
    for hurried in ["b", "c", "d", "e", "f", "g", "h"] {
        push(&mut queue, job(hurried, 1, later(now, 113)), later(now, 95));
    }
    let batch = names(&queue.take(0, later(now, 100)).batch);
    assert_eq!(batch, ["calm", "b", "c", "d"], "eight of them take until 120, four until 112");
}

#[test]
fn all_that_wait_run_together_where_that_costs_each_less_than_a_bucket_that_they_fill() {
    let taken = |waiting, measured: [u64; 4], is_padded, objective: Option<u64>| {
        let mut times = BucketTimes::default();
        [1, 2, 4, 8].into_iter().zip(measured).for_each(|(size, at)| times.set(size, Duration::from_millis(at)));
        let latency_objective = objective.map(Duration::from_millis);
        let limits = Limits { is_padded, latency_objective, ..limits() };
        let mut queue = Queue::new(limits, Times::warmed_up(4, times), 1);
        let now = Instant::now();
        for _ in 0..waiting {
            push(&mut queue, job("x", 1, later(now, 30_000)), now);
        }
        queue.take(0, now).batch.len()
    };
    assert_eq!(taken(7, [5, 7, 12, 20], false, None), 7, "18 ms for 7, and 12 for 4");
    assert_eq!(taken(7, [30, 32, 35, 40], true, None), 7, "40 ms for 8 of which one is nobody's");
    assert_eq!(taken(5, [5, 7, 12, 20], true, None), 4, "20 ms for 5, and 12 for 4");
    assert_eq!(taken(7, [5, 7, 20, 60], false, None), 2, "more cost more");
    assert_eq!(taken(7, [5, 7, 12, 20], false, Some(30)), 4, "eight would take longer than half of 30 ms");
    assert_eq!(taken(3, [5, 7, 12, 20], false, Some(30)), 3);
}

#[test]
fn what_runs_again_one_by_one_counts_in_the_wait_of_others() {
    let (mut queue, now) = queue();
    queue.runs_again(0, 4, 4, now);
    assert_eq!(queue.predicted_wait(now), Duration::from_millis(20), "four runs of 5 ms");
    queue.gave_up(0);
    assert_eq!(queue.predicted_wait(now), Duration::ZERO);
}

#[test]
fn other_shapes_wait_for_a_batch_of_their_own() {
    let (mut queue, now) = queue();
    push(&mut queue, job("a", 1, later(now, 500)), now);
    let wide = NewJob { shape: Shape::from_slice(&[5]), ..job("wide", 1, later(now, 501)) };
    push(&mut queue, wide, now);
    push(&mut queue, job("b", 1, later(now, 502)), now);
    assert_eq!(names(&queue.take(0, now).batch), ["a", "b"]);
    assert_eq!(names(&queue.take(0, now).batch), ["wide"]);
}

#[test]
fn a_job_of_many_samples_is_never_split_and_never_starves() {
    let (mut queue, now) = queue();
    push(&mut queue, job("three", 3, later(now, 500)), now);
    assert_eq!(names(&queue.take(0, now).batch), ["three"]);
    push(&mut queue, job("seven", 7, later(now, 500)), now);
    push(&mut queue, job("two", 2, later(now, 501)), now);
    push(&mut queue, job("one", 1, later(now, 502)), now);
    assert_eq!(names(&queue.take(0, now).batch), ["seven", "one"]);
    assert_eq!(names(&queue.take(0, now).batch), ["two"]);
}

#[test]
fn a_job_that_cannot_make_its_deadline_costs_no_run() {
    let (mut queue, now) = queue();
    push(&mut queue, job("hopeless", 1, later(now, 4)), now);
    push(&mut queue, job("tight", 1, later(now, 6)), now);
    push(&mut queue, job("easy", 1, later(now, 500)), now);
    let taken = queue.take(0, now);
    assert_eq!(names(&taken.expired), ["hopeless"]);
    assert_eq!(names(&taken.batch), ["tight"], "a batch of two would make it late");
    assert_eq!(names(&queue.take(0, later(now, 5)).batch), ["easy"]);
}

#[test]
fn a_job_whose_caller_left_is_gone_and_its_room_is_free() {
    let (mut queue, now) = queue();
    let key = push(&mut queue, job("left", 2, later(now, 500)), now);
    push(&mut queue, job("stays", 1, later(now, 500)), now);
    assert_eq!(queue.remove(key, now).map(|job| job.payload), Some("left"));
    assert!(queue.remove(key, now).is_none());
    assert_eq!((queue.samples(), queue.bytes()), (1, 4));
    assert_eq!(names(&queue.take(0, now).batch), ["stays"]);
}

#[test]
fn the_queue_is_bounded_in_time_first() {
    let (mut queue, now) = queue();
    let mut let_in = 0;
    let refused = loop {
        match queue.push(vec![job("x", 1, later(now, 60_000))], now) {
            Ok(_) => let_in += 1,
            Err((refused, back)) => break (refused, back),
        }
    };
    assert_eq!(let_in, 33, "100 ms less a run of 20, at 2.5 ms a sample, and the one that finds exactly 80 ms ahead");
    assert_eq!(refused.1.len(), 1, "a refused job comes back");
    let Bound::Wait { predicted, limit } = refused.0.bound else { panic!("{:?}", refused.0) };
    assert_eq!((predicted, limit), (Duration::from_micros(102_500), Duration::from_millis(100)));
    let again = || queue.push(vec![job("x", 1, later(now, 60_000))], now).unwrap_err().0.retry_after;
    let retries: Vec<_> = [refused.0.retry_after].into_iter().chain(std::iter::repeat_with(again).take(8)).collect();
    let expected = [20_000, 22_500, 25_000, 27_500, 30_000, 32_500, 35_000, 37_500, 20_000];
    assert_eq!(retries, expected.map(Duration::from_micros), "a run at least, and spread over one more");
}

#[test]
fn at_least_two_runs_of_the_largest_bucket_are_let_in() {
    let slow = Limits { max_wait: Duration::from_millis(1), ..limits() };
    let now = Instant::now();
    let mut queue: Queue<()> = Queue::new(slow, measured_times(), 1);
    let new =
        || NewJob { samples: 1, bytes: 0, shape: Shape::new(), length: 1, deadline: later(now, 9_000), payload: () };
    assert_eq!(queue.longest_wait(), Duration::from_millis(40), "whatever `max_wait` says");
    let let_in = (0..100).take_while(|_| queue.push(vec![new()], now).is_ok()).count();
    assert_eq!(let_in, 17, "40 ms at 2.5 ms a sample");
}

#[test]
fn a_running_batch_counts_in_the_predicted_wait() {
    let (mut queue, now) = queue();
    assert_eq!(queue.predicted_wait(now), Duration::ZERO);
    push(&mut queue, job("runs", 8, later(now, 500)), now);
    queue.take(0, now);
    assert_eq!(queue.predicted_wait(now), Duration::from_millis(20));
    assert_eq!(queue.predicted_wait(later(now, 15)), Duration::from_millis(5));
    queue.finished(Run { instance: 0, samples: 8, length: 4, time: Duration::from_millis(20) });
    assert_eq!(queue.predicted_wait(now), Duration::ZERO);
}

#[test]
fn a_run_that_should_have_ended_is_expected_to_take_as_long_again() {
    let (mut queue, now) = queue();
    push(&mut queue, job("hangs", 8, later(now, 60_000)), now);
    queue.take(0, now);
    assert_eq!(queue.predicted_wait(later(now, 21)), Duration::from_millis(1));
    let long_after = later(now, 5020);
    assert_eq!(queue.predicted_wait(long_after), Duration::from_secs(5));
    let (refused, _) = queue.push(vec![job("next", 1, later(now, 60_000))], long_after).unwrap_err();
    assert!(refused.retry_after >= Duration::from_secs(4), "{refused:?}");
}

#[test]
fn jobs_that_fill_no_bucket_wait_no_longer_than_allowed() {
    for samples in [1, 3, 5] {
        let linear = [1, 2, 4, 8].map(|size| (size, 4 * size as u64));
        let mut times = BucketTimes::default();
        linear.iter().for_each(|(size, millis)| times.set(*size, Duration::from_millis(*millis)));
        let start = Instant::now();
        let limits = Limits { max_wait: Duration::from_millis(500), samples: 1000, bytes: 1 << 20, ..limits() };
        let mut queue: Queue<Instant> = Queue::new(limits, Times::warmed_up(4, times), 1);
        let (mut now, mut longest) = (start, Duration::ZERO);
        for _ in 0..400 {
            let new = || NewJob {
                samples,
                bytes: 4,
                shape: Shape::new(),
                length: 4,
                deadline: later(now, 9000),
                payload: now,
            };
            while queue.push(vec![new()], now).is_ok() {}
            let batch = queue.take(0, now).batch;
            let taken: usize = batch.iter().map(|job| job.samples).sum();
            let time = Duration::from_millis(4 * taken as u64);
            now += time;
            queue.finished(Run { instance: 0, samples: taken, length: 4, time });
            longest = batch.iter().map(|job| now - job.payload).chain([longest]).max().unwrap();
        }
        assert!(longest < Duration::from_millis(550), "of {samples} samples: {longest:?}");
    }
}

#[test]
fn a_slow_spell_is_over_when_it_is_over() {
    for objective in [None, Some(Duration::from_millis(50))] {
        for (slower, seconds) in [(5, 10), (3, 10), (2, 1), (12, 1)] {
            let limits = Limits { latency_objective: objective, max_wait: Duration::from_secs(9), ..limits() };
            let mut queue: Queue<&'static str> = Queue::new(limits, measured_times(), 1);
            let start = Instant::now();
            let (mut now, mut done) = (start, 0);
            let (begins, ends) = (later(start, 5000), later(start, 5000 + seconds * 1000));
            let (from, until) = (ends + Duration::from_secs(60), ends + Duration::from_secs(70));
            while now < until {
                while queue.samples() < 16 {
                    push(&mut queue, job("x", 1, later(now, 60_000)), now);
                }
                let samples = queue.take(0, now).batch.len();
                let millis = match samples {
                    1 => 5,
                    2 => 7,
                    3..=4 => 12,
                    _ => 20,
                };
                let is_slow = (begins..ends).contains(&now);
                let time = Duration::from_millis(millis) * if is_slow { slower } else { 1 };
                now += time;
                done += if now > from { samples } else { 0 };
                queue.finished(Run { instance: 0, samples, length: 4, time });
            }
            assert!(done > 3900, "{done} of 4000 in ten seconds, a minute after {seconds} s at {slower} times as slow");
        }
    }
}

#[test]
fn a_slow_spell_that_small_batches_saw_is_no_longer_for_full_ones() {
    let truth = [(1, 5.0), (2, 6.0), (4, 8.0), (8, 12.0), (16, 20.0), (32, 36.0), (64, 70.0)];
    let time_of = |samples: usize, slower: f64| {
        let at = truth.iter().position(|(size, _)| *size >= samples).unwrap();
        let line = if at == 0 || truth[at].0 == samples {
            truth[at].1
        } else {
            let ((low, from), (high, to)) = (truth[at - 1], truth[at]);
            from + (to - from) * (samples - low) as f64 / (high - low) as f64
        };
        Duration::from_secs_f64(line * slower / 1e3)
    };
    let mut times = BucketTimes::default();
    truth.iter().for_each(|(size, millis)| times.set(*size, Duration::from_secs_f64(millis / 1e3)));
    let limits = Limits { batch_size: 64, samples: 1000, bytes: 1 << 20, max_wait: Duration::from_secs(9), ..limits() };
    let mut queue: Queue<&'static str> = Queue::new(limits, Times::warmed_up(4, times), 1);
    let mut now = Instant::now();
    let mut run = |queue: &mut Queue<&'static str>, waiting: usize, slower: f64| {
        while queue.samples() < waiting {
            push(queue, job("x", 1, later(now, 60_000)), now);
        }
        let samples = queue.take(0, now).batch.len();
        let time = time_of(samples, slower);
        now += time;
        queue.finished(Run { instance: 0, samples, length: 4, time });
        (samples, time)
    };
    for (round, slower) in [(200, 1.0), (200, 5.0)] {
        for at in 0..round {
            run(&mut queue, [1, 2, 4][at % 3], slower);
        }
    }
    let (mut samples, mut time) = (0, Duration::ZERO);
    while time < Duration::from_secs(10) {
        let (ran, took) = run(&mut queue, 64, 1.0);
        (samples, time) = (samples + ran, time + took);
    }
    assert!(samples > 8_500, "{samples} of 9143 in ten seconds");
}

#[test]
fn a_queue_that_drains_more_slowly_than_its_runs_promise_lets_fewer_in() {
    let (mut queue, mut now) = queue();
    let fill = |queue: &mut Queue<&'static str>, now| {
        (0..1000).take_while(|_| queue.push(vec![job("x", 1, later(now, 60_000))], now).is_ok()).count();
        queue.samples()
    };
    let before = fill(&mut queue, now);
    for _ in 0..100 {
        fill(&mut queue, now);
        let samples = queue.take(0, now).batch.len();
        queue.finished(Run { instance: 0, samples, length: 4, time: Duration::from_millis(20) });
        now = later(now, 40);
    }
    let after = fill(&mut queue, now);
    assert!(after < before * 6 / 10, "{before} then {after}: as much as is drained in the same time");
}

#[test]
fn a_slow_queue_lets_two_runs_in_all_the_same() {
    let slow = Limits { max_wait: Duration::from_millis(1), ..limits() };
    let mut now = Instant::now();
    let mut queue: Queue<&'static str> = Queue::new(slow, measured_times(), 1);
    let mut batches = Vec::new();
    for _ in 0..100 {
        (0..1000).take_while(|_| queue.push(vec![job("x", 1, later(now, 60_000))], now).is_ok()).count();
        let samples = queue.take(0, now).batch.len();
        (0..1000).take_while(|_| queue.push(vec![job("x", 1, later(now, 60_000))], now).is_ok()).count();
        batches.push(samples);
        now = later(now, 40);
        queue.finished(Run { instance: 0, samples, length: 4, time: Duration::from_millis(20) });
    }
    let tries = batches.iter().filter(|samples| **samples != 8).count();
    assert!(tries <= 3, "what is let in fills the batches, but for a try of each other bucket: {batches:?}");
}

#[test]
fn samples_and_bytes_are_hard_bounds_where_no_times_are_known() {
    let now = Instant::now();
    let mut queue: Queue<&'static str> = Queue::new(limits(), Times::default(), 1);
    for _ in 0..50 {
        push(&mut queue, job("x", 1, later(now, 500)), now);
    }
    let (refused, _) = queue.push(vec![job("x", 1, later(now, 500))], now).unwrap_err();
    assert_eq!(refused.bound, Bound::Samples(50));
    queue.clear(now);
    let big = |bytes| NewJob { bytes, ..job("big", 1, later(now, 500)) };
    push(&mut queue, big(1000), now);
    let (refused, _) = queue.push(vec![big(1)], now).unwrap_err();
    assert_eq!(refused.bound, Bound::Bytes(1000));
}

#[test]
fn the_jobs_of_one_request_come_in_together_or_not_at_all() {
    let now = Instant::now();
    let mut queue: Queue<&'static str> = Queue::new(limits(), Times::default(), 1);
    push(&mut queue, job("x", 8, later(now, 500)), now);
    let many: Vec<_> = (0..6).map(|_| job("y", 8, later(now, 500))).collect();
    let (_, back) = queue.push(many, now).unwrap_err();
    assert_eq!((back.len(), queue.samples()), (6, 8));
}

#[test]
fn places_of_complete_requests_count_until_they_are_released() {
    let now = Instant::now();
    let mut queue: Queue<&'static str> = Queue::new(limits(), Times::default(), 1);
    for _ in 0..51 {
        queue.reserve(now).unwrap();
    }
    for _ in 0..50 {
        queue.complete(now).unwrap();
    }
    assert_eq!(queue.reserve(now).unwrap_err().bound, Bound::Samples(50));
    assert_eq!(queue.complete(now).unwrap_err().bound, Bound::Samples(50));
    queue.release(0, true, now);
    assert!(queue.reserve(now).is_ok());
    assert!(queue.complete(now).is_ok());
}

#[test]
fn what_is_being_decoded_is_counted_over_time() {
    let now = Instant::now();
    let mut queue: Queue<&'static str> = Queue::new(limits(), Times::default(), 1);
    (0..3).for_each(|_| queue.reserve(now).unwrap());
    assert_eq!(queue.decoding(), 0, "their bodies are on their way");
    queue.complete(now).unwrap();
    queue.complete(later(now, 500)).unwrap();
    assert_eq!(queue.decoding(), 2);
    queue.release(0, true, later(now, 1500));
    queue.release(0, false, later(now, 1500));
    assert_eq!(queue.decoding_over_time(later(now, 2000)), Reading { level: 1, seconds: 0.5 + 2.0 + 0.5 });
}

#[test]
fn what_came_and_left_is_counted_and_so_is_the_most_that_waited() {
    let now = Instant::now();
    let mut queue: Queue<&'static str> = Queue::new(limits(), Times::default(), 1);
    (0..2).for_each(|_| queue.reserve(now).unwrap());
    let first = push(&mut queue, job("first", 8, now), now);
    push(&mut queue, job("second", 3, now), now);
    assert_eq!(queue.passed(), Passed { asked: 2, entered: 11, left: 0 });
    queue.remove(first, now).unwrap();
    assert_eq!(queue.passed(), Passed { asked: 2, entered: 11, left: 8 });
    assert_eq!((queue.take_deepest(), queue.take_deepest()), (11, 3));
    queue.clear(now);
    assert_eq!((queue.take_deepest(), queue.take_deepest()), (3, 0), "three were there when it was asked before");
    assert_eq!(queue.passed(), Passed { asked: 2, entered: 11, left: 11 });
}

#[test]
fn a_wait_for_something_else_has_the_bound_of_waits() {
    let mut queue: Queue<&'static str> = Queue::new(limits(), measured_times(), 1);
    assert!(queue.admit_after(Duration::from_millis(80)).is_ok());
    let refused = queue.admit_after(Duration::from_millis(130)).unwrap_err();
    let (predicted, limit) = (Duration::from_millis(150), Duration::from_millis(100));
    assert_eq!(refused.bound, Bound::Before { predicted, limit }, "a run of 20 ms ends it");
    assert_eq!(refused.retry_after, predicted - limit);
}

#[test]
fn senders_who_stall_take_nobodys_place_and_have_a_bound_of_their_own() {
    let now = Instant::now();
    let mut queue: Queue<&'static str> = Queue::new(limits(), Times::default(), 1);
    for _ in 0..799 {
        queue.reserve(now).unwrap();
    }
    push(&mut queue, job("whole", 8, later(now, 500)), now);
    assert_eq!(names(&queue.take(0, now).batch), ["whole"]);
    queue.reserve(now).unwrap();
    assert_eq!(queue.reserve(now).unwrap_err().bound, Bound::Incoming(800));
    queue.release(0, false, now);
    assert!(queue.reserve(now).is_ok());
}

#[test]
fn a_slow_sender_is_no_work_until_its_request_is_complete() {
    let (mut queue, now) = queue();
    for _ in 0..40 {
        queue.reserve(now).unwrap();
    }
    assert_eq!(queue.predicted_wait(now), Duration::ZERO);
    queue.complete(now).unwrap();
    assert_eq!(queue.predicted_wait(now), Duration::from_micros(2_500));
    queue.release(0, true, now);
    assert_eq!(queue.predicted_wait(now), Duration::ZERO);
}

#[test]
fn a_request_that_comes_in_late_is_refused_before_it_is_decoded() {
    let (mut queue, now) = queue();
    queue.reserve(now).unwrap();
    while queue.push(vec![job("x", 1, later(now, 60_000))], now).is_ok() {}
    assert!(matches!(queue.complete(now).unwrap_err().bound, Bound::Wait { .. }));
}

#[test]
fn the_samples_of_a_request_count_in_its_own_wait_unless_nothing_else_waits() {
    let (mut queue, now) = queue();
    let request = |jobs: usize| (0..jobs).map(|_| job("y", 8, later(now, 60_000))).collect::<Vec<_>>();
    assert!(queue.push(request(6), now).is_ok(), "120 ms, but alone");
    queue.clear(now);
    push(&mut queue, job("x", 1, later(now, 60_000)), now);
    let (refused, _) = queue.push(request(5), now).unwrap_err();
    assert!(matches!(refused.bound, Bound::Wait { .. }), "{refused:?}");
    assert!(queue.push(request(4), now).is_ok(), "2.5 ms, a run, and 31 further samples");
}

#[test]
fn an_instance_that_was_given_up_works_nothing_off() {
    let now = Instant::now();
    let mut queue: Queue<&'static str> = Queue::new(limits(), measured_times(), 2);
    for name in ["a", "b"] {
        push(&mut queue, job(name, 8, later(now, 5000)), now);
        queue.take(usize::from(name == "b"), now);
    }
    push(&mut queue, job("c", 8, later(now, 5000)), now);
    assert_eq!(queue.predicted_wait(now), Duration::from_millis(30));
    queue.lost(1);
    assert_eq!(queue.predicted_wait(now), Duration::from_millis(40), "one run before it, and one of its own");
    queue.lost(0);
    assert_eq!(queue.predicted_wait(now), Duration::from_millis(20), "nobody is as good as one");
}

#[test]
fn hopeless_jobs_do_not_make_the_wait_of_others_shorter() {
    let (mut queue, now) = queue();
    queue.take(0, now);
    for _ in 0..3 {
        push(&mut queue, job("hopeless", 1, later(now, 1)), now);
        assert_eq!(queue.take(0, now).expired.len(), 1);
    }
    push(&mut queue, job("x", 8, later(now, 5000)), now);
    queue.take(0, now);
    assert_eq!(queue.predicted_wait(now), Duration::from_millis(20));
    assert_eq!(queue.times().recent().map(|times| times.of(1)), Some(Duration::from_millis(5)));
}

#[test]
fn an_estimate_that_lets_nothing_run_is_given_up() {
    let mut times = BucketTimes::default();
    times.set(1, Duration::from_secs(1));
    let now = Instant::now();
    let mut queue: Queue<&'static str> =
        Queue::new(Limits { batch_size: 1, ..limits() }, Times::warmed_up(4, times), 1);
    let tries = (0..100).position(|_| {
        push(&mut queue, job("x", 1, later(now, 100)), now);
        !queue.take(0, now).batch.is_empty()
    });
    assert_eq!(tries, Some(11), "0.8 to the power of 11 is under a tenth");
}

#[test]
fn bodies_on_their_way_are_bounded_in_bytes() {
    let now = Instant::now();
    let mut queue: Queue<&'static str> = Queue::new(limits(), Times::default(), 1);
    queue.reserve(now).unwrap();
    queue.hold(900, 0).unwrap();
    assert_eq!(queue.hold(101, 0).unwrap_err().bound, Bound::Bytes(1000));
    assert!(queue.push(vec![NewJob { bytes: 101, ..job("x", 1, later(now, 500)) }], now).is_err());
    queue.release(900, false, now);
    queue.hold(1000, 0).unwrap();
}

#[test]
fn a_request_that_never_has_room_is_told_so_whatever_others_hold() {
    let now = Instant::now();
    let mut queue: Queue<&'static str> = Queue::new(limits(), Times::default(), 1);
    queue.reserve(now).unwrap();
    queue.hold(600, 0).unwrap();
    let too_large = Bound::Request { bytes: 1001, limit: 1000 };
    assert_eq!(queue.hold(401, 600).unwrap_err().bound, too_large);
    assert_eq!(queue.hold(401, 0).unwrap_err().bound, Bound::Bytes(1000), "another one, for which there may be room");
    let push = queue.push(vec![NewJob { bytes: 1001, ..job("x", 1, later(now, 500)) }], now);
    assert_eq!(push.unwrap_err().0.bound, too_large);
}

fn waiting_for_company(millis: u64) -> Queue<&'static str> {
    let batch_timeout = Duration::from_millis(millis);
    Queue::new(Limits { batch_timeout, max_wait: Duration::from_secs(9), ..limits() }, measured_times(), 1)
}

/// When the first job of an empty queue comes; until then there was one each millisecond.
fn first_after_one_each_millisecond(queue: &mut Queue<&'static str>) -> Instant {
    let start = Instant::now();
    for millis in 0..20 {
        push(queue, job("x", 1, later(start, 5000)), later(start, millis));
    }
    let now = later(start, 20);
    queue.clear(now);
    push(queue, job("first", 1, later(now, 5000)), now);
    now
}

#[test]
fn a_lone_job_is_never_held_whatever_the_timeout_allows() {
    let mut queue = waiting_for_company(50);
    let start = Instant::now();
    for second in 0..20 {
        let now = later(start, second * 1000);
        push(&mut queue, job("lone", 1, later(now, 900)), now);
        let taken = queue.take(0, now);
        assert_eq!((names(&taken.batch), taken.wait_until), (vec!["lone"], None), "at second {second}");
        queue.finished(Run { instance: 0, samples: 1, length: 4, time: Duration::from_millis(5) });
    }
}

#[test]
fn an_idle_instance_waits_for_company_that_is_on_its_way_until_it_fails_to_come() {
    let mut queue = waiting_for_company(10);
    let now = first_after_one_each_millisecond(&mut queue);
    let taken = queue.take(0, now);
    assert_eq!(taken.wait_until, Some(later(now, 2)), "one comes each millisecond, and two cost less than twice one");
    assert!(taken.batch.is_empty());
    push(&mut queue, job("second", 1, later(now, 5000)), later(now, 1));
    assert_eq!(queue.take(0, later(now, 1)).wait_until, Some(later(now, 4)), "four cost still less");
    assert_eq!(names(&queue.take(0, later(now, 4)).batch), ["first", "second"], "two should have come, and a third");
}

#[test]
fn nobody_waits_for_company_that_no_objective_lets_in() {
    let objective = Some(Duration::from_millis(9));
    let limits = Limits { batch_timeout: Duration::from_millis(10), latency_objective: objective, ..limits() };
    let mut queue = Queue::new(limits, measured_times(), 1);
    let now = first_after_one_each_millisecond(&mut queue);
    let taken = queue.take(0, now);
    assert_eq!((names(&taken.batch), taken.wait_until), (vec!["first"], None), "samples run one by one");
}

#[test]
fn an_idle_instance_waits_no_longer_than_allowed() {
    let mut queue = waiting_for_company(10);
    let start = Instant::now();
    for turn in 0..20 {
        push(&mut queue, job("x", 1, later(start, 5000)), later(start, turn * 7));
    }
    let now = later(start, 140);
    queue.clear(now);
    push(&mut queue, job("first", 1, later(now, 5000)), now);
    assert_eq!(queue.take(0, now).wait_until, Some(later(now, 10)), "it is overdue in 14 ms");
    assert_eq!(names(&queue.take(0, later(now, 10)).batch), ["first"]);
}

#[test]
fn waiting_for_company_ends_where_a_deadline_would_be_missed() {
    let mut queue = waiting_for_company(500);
    let start = Instant::now();
    for turn in 0..20 {
        push(&mut queue, job("x", 1, later(start, 5000)), later(start, turn * 25));
    }
    let now = later(start, 500);
    queue.clear(now);
    push(&mut queue, job("tight", 1, later(now, 60)), now);
    assert_eq!(queue.take(0, now).wait_until, Some(later(now, 40)), "a full batch takes 20 ms");
}

#[test]
fn an_objective_steers_to_the_largest_bucket_that_keeps_it() {
    let objective = |millis| Limits { latency_objective: Some(Duration::from_millis(millis)), ..limits() };
    let taken = |millis: u64| {
        let mut queue: Queue<&'static str> = Queue::new(objective(millis), measured_times(), 1);
        let now = Instant::now();
        for _ in 0..8 {
            push(&mut queue, job("x", 1, later(now, 5000)), now);
        }
        (queue.objective_bucket(), queue.take(0, now).batch.len())
    };
    assert_eq!(taken(40), (Some(8), 8), "twice 20 ms");
    assert_eq!(taken(39), (Some(4), 4), "twice 12 ms");
    assert_eq!(taken(10), (Some(1), 1));
    assert_eq!(taken(9), (None, 1), "none keeps it; the smallest comes nearest, and nobody is refused");
}

#[test]
fn an_objective_that_keeps_batches_small_lets_as_much_in_as_they_get_done() {
    let objective = Some(Duration::from_millis(12));
    let limits = Limits { latency_objective: objective, ..limits() };
    let now = Instant::now();
    let mut queue: Queue<&'static str> = Queue::new(limits, measured_times(), 1);
    let let_in = (0..100).take_while(|_| queue.push(vec![job("x", 1, later(now, 9000))], now).is_ok()).count();
    assert_eq!(let_in, 20, "100 ms at 5 ms a sample, for each runs alone");
}

#[test]
fn padding_is_priced_in() {
    let mut times = Times::default();
    let of_length = |length: usize, millis: [u64; 4]| {
        [1, 2, 4, 8].into_iter().zip(millis).map(move |(size, millis)| (length, size, millis))
    };
    for (length, size, millis) in of_length(16, [5, 6, 8, 12]).chain(of_length(256, [50, 100, 200, 400])) {
        times.class(LengthClass::of(length)).set(size, Duration::from_millis(millis));
    }
    let now = Instant::now();
    let mut queue: Queue<&'static str> = Queue::new(limits(), times, 1);
    let text = |name, length, order: u64| NewJob { length, ..job(name, 1, later(now, 5000 + order)) };
    push(&mut queue, text("short", 12, 0), now);
    push(&mut queue, text("long", 200, 1), now);
    push(&mut queue, text("short too", 9, 2), now);
    assert_eq!(
        names(&queue.take(0, now).batch),
        ["short", "short too"],
        "padding two to 256 would cost ten times as much"
    );
    push(&mut queue, text("short again", 12, 3), now);
    assert_eq!(names(&queue.take(0, now).batch), ["long"], "a short one in a long batch costs as much as a long one");
    push(&mut queue, text("medium", 120, 4), now);
    assert_eq!(names(&queue.take(0, now).batch), ["short again"]);
}

/// Those who come later and share a run with who is next make it longer, which nobody knows before: a quarter.
#[test]
fn jobs_of_many_shapes_wait_no_longer_than_those_of_one() {
    let mut times = BucketTimes::default();
    [(1, 4), (2, 4), (4, 5), (8, 6)].into_iter().for_each(|(size, at)| times.set(size, Duration::from_millis(at)));
    let mut random = 1_u64;
    for shapes in [1, 2, 5, 20, 200] {
        let limits = Limits { samples: 1000, ..limits() };
        let mut queue: Queue<Instant> = Queue::new(limits, Times::warmed_up(4, times.clone()), 1);
        let (start, mut waits) = (Instant::now(), Vec::new());
        let (mut now, mut arrival) = (start, start);
        while now < start + Duration::from_secs(20) {
            while arrival <= now {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let shape = Shape::from_slice(&[(random >> 33) as usize % shapes]);
                let deadline = arrival + Duration::from_secs(30);
                // Twice what can be answered of one shape: others are refused.
                let _ = queue
                    .push(vec![NewJob { samples: 1, bytes: 0, shape, length: 4, deadline, payload: arrival }], arrival);
                arrival += Duration::from_micros(400);
            }
            let batch = queue.take(0, now).batch;
            let time = times.unpadded(batch.len());
            now += time;
            queue.finished(Run { instance: 0, samples: batch.len(), length: 4, time });
            waits.extend(batch.into_iter().map(|job| now - job.payload));
        }
        waits.sort_unstable();
        let late = waits[waits.len() * 99 / 100];
        assert!(late <= limits.max_wait * 5 / 4, "{shapes} shapes: {late:?} for one in a hundred");
    }
}
