//! Queues and refusals, which say more than the load does.

use super::*;

#[test]
fn refusals_that_go_on_are_one_step_and_the_next_one_waits_for_its_pods() {
    let refused = || Reading { load: 4.0, load_now: 4.0, refused: 9, ..Reading::default() };
    let mut world = World::of(1, policy());
    world.read_as(refused());
    world.read_as(refused());
    assert_eq!(world.wanted, 1, "they may be chance");
    assert_eq!((world.read_as(refused()), world.wanted), (Reason::Refusals, 2));
    world.room = 1;
    for _ in 0..30 {
        world.read_as(refused());
    }
    assert_eq!(world.wanted, 2, "its pod is not there yet");
    world.room = 2;
    world.read_as(refused());
    world.read_as(refused());
    assert_eq!(world.wanted, 3);
}

#[test]
fn what_was_added_without_the_load_saying_so_is_kept_for_a_while() {
    let mut world = World::of(1, policy());
    world.stays(3.9, 60);
    for _ in 0..3 {
        world.read_as(Reading { load: 3.9, load_now: 3.9, refused: 2, answered: 100, ..Reading::default() });
    }
    assert_eq!(world.wanted, 2);
    world.stays(3.0, 290);
    assert_eq!(world.wanted, 2, "longer than the window");
    world.stays(3.0, 60);
    assert_eq!(world.wanted, 1);
}

#[test]
fn full_queues_ask_for_what_comes_and_not_for_what_waits() {
    let full =
        |refused| Reading { load: 48.0, load_now: 48.0, queued: 40.0, refused, answered: 100, ..Reading::default() };
    let asked = |refused| {
        let mut world = World::of(2, policy());
        world.read_as(full(refused));
        world.wanted
    };
    assert_eq!((asked(20), asked(100)), (3, 4), "8 run, and 1.2 or 2 times as many come");
    assert_eq!(asked(100_000), 6, "and clients that ask again at once ask for no more than a step");
}

#[test]
fn what_is_being_decoded_is_no_queue_that_more_replicas_shorten() {
    let policy = Policy { latency_quantile: Some(0.95), inflight_per_replica: Some(8.0), ..policy() };
    // Two photos a second: of what little there is half is being decoded, and a run is longer than what is aimed at.
    let slow = || Reading {
        load: 0.6,
        load_now: 0.6,
        queued: 0.3,
        queued_now: 0.3,
        answered: 4,
        answers: [("espresso".to_owned(), Share { answered: 4, within: 0 })].into(),
        ..Reading::default()
    };
    let mut world = World::of(1, policy.clone());
    world.is_decoding = true;
    for _ in 0..300 {
        world.read_as(slow());
    }
    assert_eq!(world.wanted, 1);
    let mut world = World::of(1, policy);
    for _ in 0..10 {
        world.read_as(slow());
    }
    assert!(world.wanted > 1, "where it is a queue");
}

/// One replica that is about to have a full queue, with a target for what waits.
fn before_a_full_queue(inflight_per_replica: Option<f64>) -> World {
    let policy = Policy { max: 40, inflight_per_replica, queue_per_replica: Some(16.0), ..policy() };
    let mut world = World::of(1, policy);
    world.stays(7.0, 60);
    world.room = 1;
    world
}

#[test]
fn a_full_queue_asks_for_what_comes_too_much_and_not_for_its_length() {
    let full = || Reading {
        load: 248.0,
        load_now: 248.0,
        queued: 240.0,
        queued_now: 240.0,
        refused: 10,
        answered: 200,
        ..Reading::default()
    };
    for inflight in [Some(8.0), None] {
        let mut world = before_a_full_queue(inflight);
        for _ in 0..15 {
            world.read_as(full());
        }
        assert_eq!(world.wanted, 2, "a twentieth too much");
        let mut world = before_a_full_queue(inflight);
        world.read_as(Reading { refused: 600, ..full() });
        assert_eq!(world.wanted, 4, "four times as much as is answered");
    }
}

#[test]
fn a_queue_that_is_being_worked_off_asks_for_no_more_than_works_it_off() {
    let mut world = before_a_full_queue(None);
    world.wanted = 2;
    world.room = 2;
    for (queued, queued_now) in [(200.0, 160.0), (120.0, 80.0), (40.0, 0.0)] {
        let load = 16.0 + queued;
        let load_now = 16.0 + queued_now;
        world.read_as(Reading { load, load_now, queued, queued_now, answered: 320, ..Reading::default() });
        assert_eq!(world.wanted, 2, "{queued}");
    }
}

#[test]
fn a_queue_without_refusals_asks_for_twice_what_is_ready_at_most() {
    let mut world = before_a_full_queue(None);
    for _ in 0..15 {
        world.read_as(Reading {
            load: 168.0,
            load_now: 168.0,
            queued: 160.0,
            queued_now: 160.0,
            answered: 200,
            ..Reading::default()
        });
    }
    assert_eq!(world.wanted, 2);
}

#[test]
fn a_single_pod_that_refuses_adds_one_step_and_says_that_it_was_in_vain() {
    // All of one client's requests go to one pod by one connection: a third of them is too much for it, however many there are.
    let hot = |refused| Reading { load: 6.0, load_now: 6.0, refused, answered: 200, ..Reading::default() };
    let mut world = World::of(4, policy());
    world.stays(13.0, 60);
    let mut reasons = Vec::new();
    for _ in 0..250 {
        reasons.push(world.read_as(hot(100)));
    }
    assert_eq!((world.wanted, reasons.last()), (5, Some(&Reason::InVain)));
    assert_eq!(reasons.iter().filter(|reason| **reason == Reason::Refusals).count(), 1);
    world.read_as(hot(0));
    assert_eq!(world.wanted, 5, "none are refused for a moment");
    for _ in 0..60 {
        world.read_as(hot(100));
    }
    assert_eq!(world.wanted, 6, "after ten minutes it is tried once more");
    for _ in 0..1700 {
        world.read_as(hot(100));
    }
    assert_eq!(world.wanted, 6, "and then not for an hour");
    for _ in 0..120 {
        world.read_as(hot(100));
    }
    assert_eq!(world.wanted, 7);
    for _ in 0..5000 {
        world.read_as(hot(100));
    }
    assert_eq!(world.wanted, 7, "nor for six hours");
    for _ in 0..400 {
        world.read_as(hot(0));
    }
    assert!(world.wanted < 4, "it goes once none are refused: {}", world.wanted);
    let mut world = World::of(4, policy());
    for _ in 0..100 {
        world.read_as(Reading { load: 13.0, load_now: 13.0, ..hot(1) });
    }
    assert_eq!(world.wanted, 4, "one of two hundred");
}

#[test]
fn a_single_pod_that_refuses_at_the_most_that_there_may_be_asks_for_no_more() {
    let hot = || Reading { load: 6.0, load_now: 6.0, refused: 100, answered: 200, ..Reading::default() };
    let mut world = World::of(4, Policy { max: 5, ..policy() });
    (0..30).for_each(|_| _ = world.read_as(hot()));
    for _ in 0..3600 {
        world.read_as(hot());
        let last = world.last.as_ref().unwrap();
        assert_eq!((last.desired, last.reason, last.is_limited), (5, Reason::InVain, false), "{:?}", world.at);
    }
}

#[test]
fn requests_that_become_heavier_are_not_judged_by_those_before() {
    let mut world = World::of(4, Policy { max: 40, ..policy() });
    let mut read = |came: u64, each: u64| {
        let answered = came.min(u64::from(world.wanted) * each);
        let load = 3.0 * f64::from(world.wanted);
        let refused = came - answered;
        world.read_as(Reading { load, load_now: load, refused, answered, ..Reading::default() });
        world.wanted
    };
    for _ in 0..4 {
        read(1000, 200);
    }
    let heavier: Vec<u32> = (0..150).map(|_| read(400, 20)).collect();
    assert!(heavier.last() >= Some(&20), "{heavier:?}");
}

#[test]
fn a_few_refusals_do_not_take_the_queue_its_say() {
    let mut world =
        World::of(10, Policy { max: 40, queue_per_replica: Some(16.0), inflight_per_replica: None, ..policy() });
    for _ in 0..60 {
        let queued = 27.0 * 10.0;
        let (load, load_now, queued_now) = (queued + 80.0, queued + 80.0, queued);
        let reading = Reading { load, load_now, queued, queued_now, ..Reading::default() };
        world.read_as(Reading { refused: 1, answered: 2000, ..reading });
    }
    assert!(world.wanted >= 17, "as without: {}", world.wanted);
}

#[test]
fn refusals_that_each_step_makes_fewer_of_add_steps_until_there_are_none() {
    for requests in [1000, 2400] {
        let mut world = World::of(4, policy());
        for _ in 0..200 {
            // The target is more than a replica can have, so the load never says it.
            let answered = requests.min(u64::from(world.wanted) * 100);
            let load = 3.0 * f64::from(world.wanted);
            world.read_as(Reading {
                load,
                load_now: load,
                refused: requests - answered,
                answered,
                ..Reading::default()
            });
        }
        assert_eq!(world.wanted, 10, "{requests}");
    }
}
