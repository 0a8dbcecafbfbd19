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
fn a_load_that_waits_for_nothing_is_no_burst_and_counts_when_it_lasts() {
    let mut world = World::of(1, policy());
    world.stays(3.0, 60);
    assert_eq!((world.read(12.0), world.wanted), (Reason::Steady, 1));
    assert_eq!((world.stays(12.0, 30).contains(&Reason::Load), world.wanted), (true, 3));
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
