//! The predicted wait, and its bound.

use super::*;

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
fn what_runs_again_counts_in_the_wait_of_others() {
    let (mut queue, now) = queue();
    queue.runs_again(0, 4, 4, now);
    assert_eq!(queue.predicted_wait(now), Duration::from_millis(20), "four runs of 5 ms");
    queue.gave_up(0);
    assert_eq!(queue.predicted_wait(now), Duration::ZERO);
    let mut times = BucketTimes::default();
    [(1, 5), (8, 8)].into_iter().for_each(|(size, millis)| times.set(size, Duration::from_millis(millis)));
    let mut gains: Queue<&'static str> = Queue::new(limits(), Times::warmed_up(4, times), 1);
    gains.runs_again(0, 8, 4, now);
    assert_eq!(gains.predicted_wait(now), Duration::from_millis(16), "two batches of 8 ms");
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
fn a_wait_for_something_else_has_the_bound_of_waits() {
    let mut queue: Queue<&'static str> = Queue::new(limits(), measured_times(), 1);
    assert!(queue.admit_after(Duration::from_millis(80)).is_ok());
    let refused = queue.admit_after(Duration::from_millis(130)).unwrap_err();
    let (predicted, limit) = (Duration::from_millis(150), Duration::from_millis(100));
    assert_eq!(refused.bound, Bound::Before { predicted, limit }, "a run of 20 ms ends it");
    assert_eq!(refused.retry_after, predicted - limit);
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
    queue.clear(now);
    queue.reserve(now).unwrap();
    queue.complete(now).unwrap();
    assert!(queue.push(request(5), now).is_ok(), "one that is decoded does not wait here yet");
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
fn an_objective_that_keeps_batches_small_lets_as_much_in_as_they_get_done() {
    let objective = Some(Duration::from_millis(12));
    let limits = Limits { latency_objective: objective, ..limits() };
    let now = Instant::now();
    let mut queue: Queue<&'static str> = Queue::new(limits, measured_times(), 1);
    let let_in = (0..100).take_while(|_| queue.push(vec![job("x", 1, later(now, 9000))], now).is_ok()).count();
    assert_eq!(let_in, 20, "100 ms at 5 ms a sample, for each runs alone");
}

/// Nothing is refused here, so what is due first has hardly any time left, always. Deadlines and rates are those of a run of eight,
/// whose time differs by a tenth either way.
#[test]
fn where_most_deadlines_cannot_be_kept_most_batches_are_full() {
    let mut random = 1_u64;
    let mut uniform = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((random >> 33) + 1) as f64 / (1_u64 << 31) as f64
    };
    for millis in [[5, 7, 12, 20], [10, 17, 30, 56], [4, 4, 5, 6]] {
        let mut times = BucketTimes::default();
        [1, 2, 4, 8].into_iter().zip(millis).for_each(|(size, at)| times.set(size, Duration::from_millis(at)));
        let run = times.of(8).as_secs_f64();
        for (runs, load, least) in
            [(15.0, 3.0, 0.85), (5.0, 3.0, 0.85), (3.0, 3.0, 0.85), (5.0, 1.3, 0.8), (3.0, 1.1, 0.7), (5.0, 0.7, 0.99)]
        {
            let limits = Limits { max_wait: Duration::from_secs(600), samples: 100_000, bytes: 1 << 30, ..limits() };
            let mut queue: Queue<Instant> = Queue::new(limits, Times::warmed_up(4, times.clone()), 1);
            let start = Instant::now();
            let (mut now, mut arrival, mut came, mut answered) = (start, start, 0, 0);
            while came < 10_000 {
                while arrival <= now {
                    let deadline = arrival + Duration::from_secs_f64(run * runs);
                    let shape = Shape::new();
                    let new = NewJob { samples: 1, bytes: 0, shape, length: 4, deadline, payload: deadline };
                    queue.push(vec![new], arrival).unwrap();
                    came += 1;
                    arrival += Duration::from_secs_f64(-uniform().ln() * run / 8.0 / load);
                }
                let batch = queue.take(0, now).batch;
                if batch.is_empty() {
                    now = arrival;
                    continue;
                }
                let time = times.unpadded(batch.len()).mul_f64(0.9 + 0.2 * uniform());
                now += time;
                queue.finished(Run { instance: 0, samples: batch.len(), length: 4, time });
                answered += batch.iter().filter(|job| now <= job.payload).count();
            }
            let possible = f64::min(f64::from(came), (now - start).as_secs_f64() / run * 8.0);
            let share = answered as f64 / possible;
            assert!(share > least, "{millis:?} ms, due after {runs} runs, {load} times the most: {share:.2}");
        }
    }
}

#[test]
fn who_is_in_a_hurry_is_answered_where_the_others_can_wait() {
    let (mut queue, now) = queue();
    for _ in 0..16 {
        push(&mut queue, job("calm", 1, later(now, 90)), now);
    }
    push(&mut queue, job("hurried", 1, later(now, 15)), now);
    let taken = queue.take(0, now);
    assert_eq!(names(&taken.batch), ["hurried", "calm", "calm", "calm"], "12 ms for four, 20 for eight");
    assert!(taken.expired.is_empty());
}

#[test]
fn who_is_in_a_hurry_gives_way_where_others_would_be_late() {
    let (mut queue, now) = queue();
    for _ in 0..10 {
        push(&mut queue, job("due", 1, later(now, 25)), now);
    }
    push(&mut queue, job("hurried", 1, later(now, 15)), now);
    let taken = queue.take(0, now);
    assert_eq!((names(&taken.expired), names(&taken.batch)), (vec!["hurried"], vec!["due"; 8]));
}

#[test]
fn one_that_waited_too_long_says_nothing_of_what_a_run_takes() {
    let (mut queue, now) = queue();
    let needed = queue.times.class(LengthClass::of(4)).needed(1);
    (0..5).for_each(|_| _ = push(&mut queue, job("waits", 1, later(now, 30)), now));
    assert_eq!(queue.take(0, later(now, 28)).expired.len(), 5);
    assert_eq!(queue.times.class(LengthClass::of(4)).needed(1), needed);
    push(&mut queue, job("hopeless", 1, later(now, 4)), now);
    assert_eq!(queue.take(0, now).expired.len(), 1);
    assert!(queue.times.class(LengthClass::of(4)).needed(1) < needed, "its time was too short from the beginning");
}
