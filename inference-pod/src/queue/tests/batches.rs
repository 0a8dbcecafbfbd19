//! Which jobs share a run, and in which order.

use super::*;

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
fn no_batch_is_chosen_whose_run_would_be_ended() {
    let now = Instant::now();
    let mut queue: Queue<&'static str> =
        Queue::new(Limits { run_timeout: Duration::from_millis(15), ..limits() }, measured_times(), 1);
    for _ in 0..16 {
        push(&mut queue, job("x", 1, later(now, 5000)), now);
    }
    assert_eq!(queue.take(0, now).batch.len(), 4, "12 ms; 20 for eight");
    // None of three takes less; what runs by itself may.
    (0..3).for_each(|_| queue.finished(Run { instance: 0, samples: 4, length: 4, time: Duration::from_millis(16) }));
    assert_eq!(queue.take(0, now).batch.len(), 2);
    let mut slow: Queue<&'static str> =
        Queue::new(Limits { run_timeout: Duration::from_millis(4), ..limits() }, measured_times(), 1);
    (0..2).for_each(|_| _ = push(&mut slow, job("x", 1, later(now, 5000)), now));
    assert_eq!(slow.take(0, now).batch.len(), 1, "where all take too long, one is the least");
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
