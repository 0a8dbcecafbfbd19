//! A target for the latency.

use super::*;

#[test]
fn latency_adds_one_step_at_a_time_and_keeps_what_is_there() {
    let policy = Policy { latency_quantile: Some(0.95), ..policy() };
    let late = |queued: f64| Reading {
        load: 3.0,
        load_now: 3.0,
        queued,
        answers: [("espresso".to_owned(), Share { answered: 100, within: 80 })].into(),
        ..Reading::default()
    };
    let mut world = World::of(1, policy.clone());
    world.read_as(late(1.0));
    world.read_as(late(1.0));
    assert_eq!((world.read_as(late(1.0)), world.wanted), (Reason::Latency, 2));
    let mut slow = World::of(2, policy);
    for _ in 0..100 {
        slow.read_as(late(0.0));
    }
    assert_eq!(slow.wanted, 2, "more replicas help nobody where nothing waits, and fewer would not either");
    assert_eq!(slow.last.map(|last| last.reason), Some(Reason::Late));
}

#[test]
fn a_latency_that_more_replicas_do_not_change_adds_none() {
    let policy = Policy { latency_quantile: Some(0.95), inflight_per_replica: Some(8.0), ..policy() };
    // Five a second, of 120 ms each, where 100 are aimed at; each is in the queue for some microseconds.
    let slow = || Reading {
        load: 0.61,
        load_now: 0.61,
        queued: 0.01,
        answers: [("espresso".to_owned(), Share { answered: 10, within: 0 })].into(),
        ..Reading::default()
    };
    let mut world = World::of(1, policy);
    for _ in 0..300 {
        world.read_as(slow());
    }
    assert_eq!(world.wanted, 1);
}

#[test]
fn answers_of_a_slow_model_are_gathered_until_they_say_something() {
    let mut world = World::of(1, Policy { latency_quantile: Some(0.95), ..policy() });
    let late = || Reading {
        load: 3.0,
        load_now: 3.0,
        queued: 1.0,
        answers: [("espresso".to_owned(), Share { answered: 1, within: 0 })].into(),
        ..Reading::default()
    };
    for _ in 0..9 {
        world.read_as(late());
    }
    assert_eq!(world.wanted, 1, "nine");
    assert_eq!((world.read_as(late()), world.wanted), (Reason::Latency, 2));
}
