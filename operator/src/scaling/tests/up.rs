//! Loads that rise: bursts, steps, bounds.

use super::*;

#[test]
fn a_burst_is_answered_at_the_first_reading_and_a_small_excess_when_it_lasts() {
    let mut world = World::of(1, policy());
    world.stays(3.0, 60);
    assert_eq!((world.read_waiting(16.0), world.wanted), (Reason::Burst, 2), "twice as many, as nothing was refused");
    let mut world = World::of(1, policy());
    world.stays(3.0, 60);
    let refused = Reading { load: 16.0, load_now: 16.0, queued: 8.0, refused: 50, answered: 100, ..Reading::default() };
    assert_eq!((world.read_as(refused), world.wanted), (Reason::Burst, 3), "what runs, and half as much again");
    let mut world = World::of(1, policy());
    world.stays(3.0, 60);
    assert_eq!(world.read(6.0), Reason::Steady, "one reading of one and a half times the target");
    assert!(world.stays(6.0, 30).contains(&Reason::Load));
    assert_eq!(world.wanted, 2);
}

#[test]
fn a_load_that_waits_for_nothing_is_no_burst_and_counts_by_the_average_of_a_minute() {
    let mut world = World::of(1, policy());
    world.stays(3.0, 60);
    assert_eq!((world.read(12.0), world.wanted), (Reason::Steady, 1));
    let mut world = World::of(3, policy());
    world.stays(11.0, 60);
    assert_eq!(world.stays(16.0, 24), [Reason::Steady, Reason::Brief], "the average of a minute is 13");
    assert_eq!((world.stays(16.0, 30).contains(&Reason::Load), world.wanted), (true, 4));
}

#[test]
fn a_load_that_waits_counts_by_the_stable_window() {
    let mut world = World::of(3, policy());
    world.stays(11.0, 60);
    let some_wait = || Reading { load: 16.0, load_now: 16.0, queued: 0.5, queued_now: 0.5, ..Reading::default() };
    let reasons: Vec<Reason> = (0..12).map(|_| world.read_as(some_wait())).collect();
    assert_eq!((reasons.contains(&Reason::Load), world.wanted), (true, 4), "{reasons:?}");
}

#[test]
fn a_load_that_waits_for_nothing_and_is_late_counts_by_the_stable_window() {
    let wanted_after = |within| {
        let mut world = World::of(3, Policy { latency_quantile: Some(0.95), ..policy() });
        world.stays(11.0, 60);
        let answers = || [("model".to_owned(), Share { answered: 100, within })].into();
        let reading =
            || Reading { load: 16.0, load_now: 16.0, answered: 100, answers: answers(), ..Reading::default() };
        (0..12).for_each(|_| _ = world.read_as(reading()));
        world.wanted
    };
    assert_eq!((wanted_after(100), wanted_after(50)), (3, 4));
}

#[test]
fn in_a_hurry_what_runs_all_that_comes_and_what_the_target_asks_for_when_it_lasts() {
    // Each runs twelve at once, three times the target: 36 samples run in three, and a fifth of what comes is refused.
    let refused =
        || Reading { load: 60.0, load_now: 60.0, queued: 24.0, refused: 25, answered: 100, ..Reading::default() };
    let mut world = World::of(3, Policy { max: 20, ..policy() });
    world.stays(11.0, 60);
    assert_eq!(
        (world.read_as(refused()), world.wanted),
        (Reason::Burst, 7),
        "3 · 1.25 ÷ 0.6, where the target asks for 12"
    );
    let mut world = World::of(3, Policy { max: 20, ..policy() });
    world.stays(11.0, 60);
    world.room = 3;
    (0..10).for_each(|_| _ = world.read_as(refused()));
    assert_eq!(world.wanted, 7, "the average of half a minute would ask for nine");
    (0..20).for_each(|_| _ = world.read_as(refused()));
    assert_eq!(world.wanted, 11, "45 samples by four, but for the tolerance");
}

#[test]
fn one_refusal_among_thousands_is_no_burst() {
    let refused = |refused| Reading { load: 6.0, load_now: 6.0, refused, answered: 2000, ..Reading::default() };
    let mut world = World::of(1, policy());
    world.stays(3.0, 60);
    assert_eq!((world.read_as(refused(1)), world.wanted), (Reason::Steady, 1));
    assert_eq!((world.read_as(refused(40)), world.wanted), (Reason::Burst, 2));
}

#[test]
fn what_looks_like_a_burst_is_looked_at_again_soon_and_then_in_time() {
    let mut world = World::of(1, policy());
    world.stays(3.0, 60);
    let suspicious = || Reading { load: 3.5, load_now: 12.0, queued_now: 6.0, ..Reading::default() };
    let mut soon = || {
        world.read_as(suspicious());
        world.last.as_ref().is_some_and(|last| last.soon && last.desired == 1)
    };
    assert!(soon());
    assert!(!soon(), "it was nothing");
}

#[test]
fn a_moment_with_nothing_before_it_is_no_burst_until_the_next_reading() {
    let mut world = World::of(1, policy());
    world.at += PERIOD;
    let first = Reading { load: 16.0, load_now: 16.0, queued: 8.0, queued_now: 8.0, ..Reading::default() };
    world.history.read(Reading { at: world.at, ready: 1, counted: 1, ..first }, world.policy.stable_window);
    world.decide();
    assert!(world.last.as_ref().is_some_and(|last| last.soon && last.desired == 1), "{:?}", world.last);
    assert_eq!(world.read_waiting(16.0), Reason::Burst);
}

#[test]
fn readings_that_hardly_differ_let_small_differences_count() {
    let mut world = World::of(10, Policy { max: 20, least_tolerance: 0.0, ..policy() });
    assert_eq!((world.stays(41.5, 120).contains(&Reason::Load), world.wanted), (true, 11));
    let mut world = World::of(10, Policy { max: 20, least_tolerance: 0.0, ..policy() });
    for _ in 0..60 {
        world.read(38.5);
        world.read(44.5);
    }
    assert_eq!(world.wanted, 10, "a twentieth is what chance makes of these");
}

#[test]
fn a_difference_within_the_tolerance_changes_nothing() {
    let mut world = World::of(2, policy());
    assert_eq!(world.stays(8.7, 300), [Reason::Steady]);
    assert_eq!(world.stays(7.3, 300), [Reason::Steady], "and so few that one would be full is no less");
    assert_eq!(world.wanted, 2);
}

#[test]
fn bounds_hold_whatever_the_load() {
    let mut world = World::of(1, Policy { min: 2, max: 3, ..policy() });
    assert_eq!((world.read(0.0), world.wanted), (Reason::Bounds, 2));
    world.stays(400.0, 60);
    assert_eq!(world.wanted, 3);
    assert!(world.last.as_ref().is_some_and(|last| last.is_limited), "{:?}", world.last);
    world.wanted = 9;
    assert_eq!((world.read(400.0), world.wanted), (Reason::Bounds, 3));
}

#[test]
fn steps_up_are_bounded() {
    let mut world = World::of(1, Policy { max: 100, ..policy() });
    let sizes: Vec<u32> = (0..4)
        .map(|_| {
            world.read_as(Reading { load: 400.0, load_now: 400.0, refused: 9, ..Reading::default() });
            world.wanted
        })
        .collect();
    assert_eq!(sizes, [5, 10, 20, 40]);
}

#[test]
fn what_is_not_asked_for_long_enough_stays_and_says_so() {
    let mut world = World::of(2, Policy { max: 3, up_stabilization: Duration::from_secs(60), ..policy() });
    world.stays(8.0, 60);
    let mut reasons: Vec<Reason> = (0..25).map(|_| world.read_waiting(40.0)).collect();
    let last = world.last.clone().unwrap();
    assert_eq!((last.desired, last.is_limited), (2, false), "what is not done yet is not for the bounds to limit");
    reasons.dedup();
    assert_eq!(reasons, [Reason::Rising]);
    assert_eq!((world.stays(40.0, 20).contains(&Reason::Load), world.wanted), (true, 3));
    for _ in 0..60 {
        world.read(40.0);
        assert!(world.last.as_ref().is_some_and(|last| last.is_limited), "{:?}", world.last);
    }
    let mut world = World::of(2, Policy { up_stabilization: Duration::from_secs(60), ..policy() });
    world.stays(8.0, 60);
    for _ in 0..20 {
        (0..5).for_each(|_| _ = world.read_waiting(40.0));
        world.stays(8.0, 30);
    }
    assert_eq!(world.wanted, 2, "never as long as it must be");
}

#[test]
fn no_replica_that_is_ready_means_no_decision() {
    let mut world = World::of(2, policy());
    world.room = 0;
    assert_eq!(world.stays(0.0, 600), [Reason::NoReplicaReady]);
    assert_eq!(world.wanted, 2);
}

#[test]
fn none_stay_none() {
    let mut world = World::of(0, policy());
    assert_eq!((world.read(0.0), world.wanted), (Reason::Off, 0));
}
