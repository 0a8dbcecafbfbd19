//! What the decision does with loads that rise, fall, vanish and lie.

use std::time::Duration;

use super::{Decision, History, Policy, Reading, Reason, Share, decide, decide::Now};

const PERIOD: Duration = Duration::from_secs(2);

/// One to ten replicas that should each carry four samples; fewer after a minute.
fn policy() -> Policy {
    Policy {
        min: 1,
        max: 10,
        inflight_per_replica: Some(4.0),
        queue_per_replica: None,
        latency_quantile: None,
        tolerance: 0.1,
        least_tolerance: 0.1,
        errors: 2.5,
        stable_window: Duration::from_secs(30),
        panic_window: Duration::from_millis(500),
        panic_threshold: 2.0,
        up_stabilization: Duration::ZERO,
        up_per_step: None,
        down_stabilization: Duration::from_secs(60),
        late_stabilization: Duration::from_secs(30),
        return_stabilization: Duration::from_secs(300),
        down_per_minute: None,
        down_share: 0.25,
        load_times: 3.0,
        stale_after: Duration::from_secs(15),
    }
}

/// A model that is read every two seconds, whose pods are ready as soon as they are asked for unless it is said otherwise.
struct World {
    policy: Policy,
    history: History,
    at: Duration,
    wanted: u32,
    /// At most so many are ever ready.
    room: u32,
    silent: u32,
    /// What waits is being decoded, and nothing is in the queue.
    is_decoding: bool,
    in_rollout: bool,
    load_time: Duration,
    last: Option<Decision>,
}

impl World {
    fn of(wanted: u32, policy: Policy) -> Self {
        let history = History::begin(Duration::ZERO, wanted);
        Self {
            policy,
            history,
            at: Duration::ZERO,
            wanted,
            room: u32::MAX,
            silent: 0,
            is_decoding: false,
            in_rollout: false,
            load_time: Duration::ZERO,
            last: None,
        }
    }

    /// Reads so many samples in all pods.
    fn read(&mut self, load: f64) -> Reason {
        self.read_as(Reading { load, load_now: load, ..Reading::default() })
    }

    /// The same, half of which wait.
    fn read_waiting(&mut self, load: f64) -> Reason {
        let queued = load / 2.0;
        self.read_as(Reading { load, load_now: load, queued, queued_now: queued, ..Reading::default() })
    }

    fn read_as(&mut self, reading: Reading) -> Reason {
        self.at += PERIOD;
        let ready = self.wanted.min(self.room);
        let counted = ready.saturating_sub(self.silent);
        let in_queue = if self.is_decoding { 0.0 } else { reading.queued };
        let reading = Reading { at: self.at, span: PERIOD, ready, counted, in_queue, ..reading };
        self.history.read(reading, self.policy.stable_window);
        self.decide()
    }

    fn decide(&mut self) -> Reason {
        let now = Now { at: self.at, wanted: self.wanted, in_rollout: self.in_rollout, load_time: self.load_time };
        let decision = decide(&self.history, &self.policy, &now);
        self.history.decided(self.at, self.wanted, &decision, &self.policy);
        self.wanted = decision.desired;
        let reason = decision.reason;
        self.last = Some(decision);
        reason
    }

    /// Reads the same load for so long; the reasons, each told once in a row.
    fn stays(&mut self, load: f64, seconds: u64) -> Vec<Reason> {
        let mut reasons: Vec<Reason> = (0..seconds / 2).map(|_| self.read(load)).collect();
        reasons.dedup();
        reasons
    }
}

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
fn pods_that_are_not_there_when_the_load_has_gone_are_let_go() {
    let mut world = World::of(2, policy());
    world.load_time = Duration::from_secs(120);
    world.stays(6.0, 120);
    world.room = 2;
    world.read_as(Reading {
        load: 40.0,
        load_now: 40.0,
        queued: 32.0,
        refused: 90,
        answered: 100,
        ..Reading::default()
    });
    assert_eq!(world.wanted, 4);
    world.stays(6.0, 28);
    assert_eq!(world.wanted, 4, "a window after it");
    world.stays(6.0, 8);
    assert_eq!(world.wanted, 2, "and those that serve stay");
}

#[test]
fn a_number_that_was_tried_and_too_few_is_not_tried_again_for_an_hour() {
    // Five run in a replica at most, and six should be there: one by one their queues come and go.
    let policy = Policy { inflight_per_replica: Some(6.0), ..policy() };
    let mut world = World::of(3, policy);
    let mut changes = 0;
    for _ in 0..1700 {
        let (before, arriving) = (world.wanted, 9.8);
        let queued = if world.wanted == 2 { 5.0 } else { 0.0 };
        let load = arriving + queued;
        world.read_as(Reading { load, load_now: load, queued, queued_now: queued, ..Reading::default() });
        changes += u32::from(before != world.wanted);
    }
    assert_eq!((changes, world.wanted), (2, 3), "down, and up for good");
    world.stays(5.0, 120);
    assert!(world.wanted < 3, "less is another load");
}

#[test]
fn none_stay_none() {
    let mut world = World::of(0, policy());
    assert_eq!((world.read(0.0), world.wanted), (Reason::Off, 0));
}

#[test]
fn a_difference_within_the_tolerance_changes_nothing() {
    let mut world = World::of(2, policy());
    assert_eq!(world.stays(8.7, 300), [Reason::Steady]);
    assert_eq!(world.stays(7.3, 300), [Reason::Steady], "and so few that one would be full is no less");
    assert_eq!(world.wanted, 2);
}

#[test]
fn fewer_come_only_after_a_whole_window_and_a_few_at_a_time() {
    let mut world = World::of(8, policy());
    // Whoever leads has done so for long.
    world.at = Duration::from_secs(600);
    world.read(32.0);
    assert_eq!(world.stays(3.0, 60), [Reason::Stabilizing]);
    assert_eq!(world.wanted, 8);
    world.stays(3.0, 8);
    assert_eq!(world.wanted, 6, "a quarter of eight");
    world.stays(3.0, 12);
    assert_eq!(world.wanted, 6);
    world.stays(3.0, 4);
    assert_eq!(world.wanted, 4, "after 20 s");
    world.stays(3.0, 300);
    assert_eq!(world.wanted, 1);
}

#[test]
fn a_number_a_minute_is_kept_to() {
    let mut world = World::of(8, Policy { down_per_minute: Some(1), ..policy() });
    world.stays(3.0, 118);
    assert_eq!(world.wanted, 7);
    world.stays(3.0, 10);
    assert_eq!(world.wanted, 6);
}

#[test]
fn a_load_that_comes_back_within_the_window_takes_nothing_away() {
    let mut world = World::of(3, policy());
    for _ in 0..10 {
        world.stays(12.0, 40);
        world.stays(3.0, 40);
    }
    assert_eq!(world.wanted, 3);
}

/// Six replicas of a model that loads slowly, whose load goes for two minutes, in which five are let go, and comes back.
fn after_a_return(policy: Policy) -> World {
    let mut world = World::of(6, Policy { down_share: 1.0, ..policy });
    world.load_time = Duration::from_secs(30);
    world.stays(20.0, 120);
    world.stays(1.0, 120);
    assert_eq!(world.wanted, 1);
    world.stays(20.0, 120);
    assert!(world.wanted >= 5, "{}", world.wanted);
    world
}

/// For how long replicas stay once the load has gone; the window of the average is no part of it.
fn seconds_kept(world: &mut World) -> u64 {
    let (begin, before) = (world.at, world.wanted);
    while world.wanted == before {
        world.read(1.0);
    }
    (world.at - begin).as_secs().saturating_sub(world.policy.stable_window.as_secs())
}

#[test]
fn what_went_and_came_back_is_kept_for_longer_and_says_why() {
    let mut world = World::of(6, Policy { down_share: 1.0, ..policy() });
    world.load_time = Duration::from_secs(30);
    world.stays(20.0, 120);
    let first = seconds_kept(&mut world);
    assert!((32..=62).contains(&first), "a step down that nothing came before: {first} s");
    let mut world = after_a_return(policy());
    assert_eq!(world.stays(1.0, 280).last(), Some(&Reason::Returning));
    assert!(world.wanted >= 5);
    let mut world = after_a_return(policy());
    let kept = seconds_kept(&mut world);
    assert!((272..=302).contains(&kept), "never over the bound: {kept} s");
}

#[test]
fn what_loads_soon_is_kept_for_less_and_never_for_less_than_without() {
    let mut world = after_a_return(policy());
    world.load_time = Duration::from_secs(7);
    let kept = seconds_kept(&mut world);
    assert!((112..=142).contains(&kept), "twenty times as long as it loads: {kept} s");
    let mut world = after_a_return(policy());
    world.load_time = Duration::from_secs(1);
    let kept = seconds_kept(&mut world);
    assert!((32..=62).contains(&kept), "{kept} s");
}

#[test]
fn a_load_that_stays_is_not_expected_to_go_and_come_back_for_ever() {
    let mut world = after_a_return(policy());
    world.stays(20.0, 1200);
    let kept = seconds_kept(&mut world);
    assert!((32..=62).contains(&kept), "{kept} s");
}

#[test]
fn a_stabilization_that_is_given_is_kept_to_whatever_comes_back() {
    let given = crds::resource::ScaleDown {
        stabilization: Some("60s".parse().unwrap()),
        ..crds::resource::ScaleDown::default()
    };
    let behavior = crds::resource::Behavior { scale_down: Some(given), ..crds::resource::Behavior::default() };
    let scaling = crds::resource::Scaling { behavior: Some(behavior), ..crds::resource::Scaling::default() };
    let Policy { down_stabilization, return_stabilization, .. } = Policy::from(&scaling);
    let mut world = after_a_return(Policy { down_stabilization, return_stabilization, ..policy() });
    let kept = seconds_kept(&mut world);
    assert!((32..=62).contains(&kept), "{kept} s");
}

#[test]
fn a_load_that_swings_or_comes_back_late_is_no_return() {
    let kept_after = |low: f64, seconds: u64| {
        let mut world = World::of(6, Policy { down_share: 1.0, ..policy() });
        world.load_time = Duration::from_secs(30);
        world.stays(20.0, 120);
        world.stays(low, seconds);
        world.stays(20.0, 120);
        seconds_kept(&mut world)
    };
    assert!(kept_after(8.0, 120) <= 62, "three of six stayed");
    assert!(kept_after(1.0, 400) <= 62, "no bound would have kept them");
    assert!(kept_after(1.0, 120) > 62);
}

#[test]
fn numbers_that_are_missing_for_a_moment_are_no_return() {
    let mut world = World::of(6, policy());
    world.load_time = Duration::from_secs(30);
    world.stays(20.0, 120);
    world.in_rollout = true;
    world.stays(1.0, 120);
    world.silent = 4;
    assert_eq!((world.read(1.0), world.wanted), (Reason::Stale, 6));
    world.silent = 0;
    assert_eq!(world.history.last_return(), None);
}

#[test]
fn who_begins_anew_does_not_know_of_returns_and_lets_nothing_go_at_once() {
    let mut world = after_a_return(policy());
    let before = world.wanted;
    world.stays(1.0, 200);
    assert_eq!(world.wanted, before);
    world.history = History::begin(world.at, world.wanted);
    assert_eq!((world.stays(1.0, 58), world.wanted), (vec![Reason::Stabilizing], before));
    world.stays(1.0, 60);
    assert!(world.wanted < before);
}

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
fn a_device_that_is_not_to_be_had_winds_nothing_up() {
    let mut world = World::of(1, policy());
    world.room = 1;
    for _ in 0..300 {
        world.read_as(Reading { load: 11.0, load_now: 11.0, queued: 7.0, refused: 100, ..Reading::default() });
    }
    assert_eq!(world.wanted, 3, "what the load says and no more");
}

#[test]
fn replicas_that_wait_for_a_device_are_given_up_only_with_those_that_are_there() {
    let mut world = World::of(4, policy());
    world.room = 2;
    for _ in 0..10 {
        world.stays(15.0, 40);
        world.stays(9.0, 200);
    }
    assert_eq!(world.wanted, 4, "to ask for three of which two are there saves nothing");
    world.stays(2.0, 600);
    assert_eq!(world.wanted, 1);
}

#[test]
fn replicas_that_wait_for_a_device_are_given_up_with_the_load_where_the_fewest_are_there() {
    let mut world = World::of(3, policy());
    world.room = 1;
    world.stays(11.0, 200);
    world.stays(0.0, 600);
    assert_eq!(world.wanted, 1, "nothing asks for them any more");
}

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
fn what_a_person_asks_for_is_not_remembered_as_too_little() {
    let mut world = World::of(2, policy());
    world.stays(0.1, 200);
    assert_eq!(world.wanted, 1);
    world.policy.min = 2;
    let waiting = || Reading { load: 0.1, load_now: 0.1, queued: 0.05, ..Reading::default() };
    world.read_as(waiting());
    assert_eq!(world.wanted, 2);
    world.stays(23.0, 60);
    assert!(world.wanted >= 6, "{}", world.wanted);
    world.stays(0.6, 900);
    assert_eq!(world.wanted, 2);
}

#[test]
fn a_pod_that_is_not_ready_for_a_moment_is_none_that_comes_late() {
    for gone in [1, 5] {
        let mut world = World::of(1, Policy { down_stabilization: Duration::from_secs(600), ..policy() });
        world.stays(31.0, 780);
        assert_eq!(world.wanted, 8);
        world.stays(8.0, 120);
        assert_eq!(world.wanted, 8, "a moment ago it was higher");
        world.room = 8 - gone;
        world.read(8.0);
        assert_eq!(world.wanted, 8, "{gone} were not ready once");
    }
}

#[test]
fn what_nobody_told_of_takes_nothing_away_when_it_is_told_again() {
    let mut world = World::of(8, Policy { down_stabilization: Duration::ZERO, ..policy() });
    world.stays(30.0, 120);
    assert_eq!(world.wanted, 8);
    world.silent = 4;
    // Of those four that tell.
    world.stays(15.0, 60);
    world.silent = 0;
    world.stays(30.0, 10);
    assert_eq!(world.wanted, 8);
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

#[test]
fn latency_alone_removes_nothing() {
    let policy = Policy { latency_quantile: Some(0.95), inflight_per_replica: None, ..policy() };
    let mut world = World::of(3, policy);
    assert_eq!(world.stays(0.0, 900), [Reason::Steady]);
    assert_eq!(world.wanted, 3);
}

#[test]
fn numbers_that_are_missing_or_old_change_nothing() {
    let mut world = World::of(4, policy());
    world.stays(16.0, 60);
    world.silent = 3;
    assert_eq!(world.stays(4.0, 600), [Reason::Stale]);
    world.silent = 0;
    assert_eq!((world.stays(4.0, 50).last(), world.wanted), (Some(&Reason::Stabilizing), 4), "a window is begun anew");
    world.at += Duration::from_secs(16);
    assert_eq!((world.decide(), world.wanted), (Reason::Stale, 4));
}

#[test]
fn one_that_is_silent_counts_as_full_on_the_way_down_and_as_idle_on_the_way_up() {
    let mut world = World::of(4, policy());
    world.silent = 2;
    world.stays(0.1, 600);
    assert_eq!(world.wanted, 3, "two that may be full, and something to spare");
    let mut world = World::of(4, policy());
    world.silent = 1;
    assert!(!world.stays(15.0, 120).contains(&Reason::Load));
    assert_eq!(world.wanted, 4);
    let quick = Policy { down_stabilization: Duration::from_secs(10), ..policy() };
    let mut world = World::of(2, quick);
    world.stays(0.1, 8);
    world.silent = 1;
    world.stays(0.1, 60);
    assert_eq!(world.wanted, 2, "from the moment that it is silent");
}

#[test]
fn nothing_goes_in_a_rollout_after_a_burst_or_before_the_last_ones_have_shown_what_they_carry() {
    let mut world = World::of(4, policy());
    world.in_rollout = true;
    assert_eq!(world.stays(4.0, 600), [Reason::Rollout]);
    world.in_rollout = false;
    world.stays(4.0, 600);
    assert_eq!(world.wanted, 2, "a load of exactly one leaves nothing to spare");

    let quick = Policy { down_stabilization: PERIOD, ..policy() };
    let mut world = World::of(1, quick);
    world.read_as(Reading { load: 12.0, load_now: 12.0, refused: 9, ..Reading::default() });
    assert_eq!(world.wanted, 3);
    assert_eq!(world.stays(0.0, 28), [Reason::AfterBurst]);
    world.load_time = Duration::from_secs(20);
    world.stays(0.0, 10);
    assert!(world.wanted < 3, "they have been ready for a window");

    let mut world = World::of(1, Policy { down_stabilization: PERIOD, ..policy() });
    world.read_as(Reading { load: 12.0, load_now: 12.0, refused: 9, ..Reading::default() });
    (world.room, world.load_time) = (2, Duration::from_secs(60));
    world.stays(4.0, 16);
    world.room = 3;
    assert_eq!((world.stays(4.0, 28).last(), world.wanted), (Some(&Reason::Settling), 3), "the last one came just now");
    world.stays(4.0, 10);
    assert_eq!(world.wanted, 2, "it has been ready for a window");
}

#[test]
fn who_begins_anew_takes_nothing_before_a_window_and_adds_at_once() {
    let mut world = World::of(5, policy());
    assert_eq!(world.read(2.0), Reason::Stabilizing);
    let mut world = World::of(5, policy());
    assert_eq!((world.read_waiting(40.0), world.wanted), (Reason::Burst, 10));
}

#[test]
fn a_window_shorter_than_the_time_between_readings_keeps_nothing_for_longer() {
    for millis in [0, 500, 1000] {
        let time = Duration::from_millis(millis);
        let mut world = World::of(8, Policy { down_stabilization: time, return_stabilization: time, ..policy() });
        world.stays(32.0, 60);
        assert_eq!(world.wanted, 8);
        world.stays(0.0, 180);
        assert_eq!(world.wanted, 1, "{time:?}: {:?}", world.last);
        // Those that have not come yet go as well.
        world.room = 1;
        world.read_as(Reading { load: 30.0, load_now: 30.0, refused: 99, ..Reading::default() });
        assert!(world.wanted > 4, "{:?}", world.last);
        world.stays(0.0, 58);
        assert_eq!(world.wanted, 1, "{time:?}: {:?}", world.last);
    }
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

/// Runs four samples in a replica at most, which takes two minutes to start, a minute of it loading. Half a minute of a load for eight
/// replicas and fifty seconds of next to none, for 28 minutes; how often the number changed, and the most replicas that were ever ready.
fn on_and_off(stabilization: Option<&str>) -> (usize, u32) {
    let scale_down = crds::resource::ScaleDown {
        stabilization: stabilization.map(|given| given.parse().unwrap()),
        ..crds::resource::ScaleDown::default()
    };
    let behavior = crds::resource::Behavior { scale_down: Some(scale_down), ..crds::resource::Behavior::default() };
    let scaling = crds::resource::Scaling {
        max_replicas: Some(10),
        behavior: Some(behavior),
        ..crds::resource::Scaling::default()
    };
    let mut world = World::of(1, Policy { inflight_per_replica: Some(4.0), ..Policy::from(&scaling) });
    world.load_time = Duration::from_secs(60);
    let (mut changes, mut most_ready, mut pods) = (0, 0, vec![Duration::ZERO]);
    while world.at < Duration::from_secs(28 * 60) {
        let is_on = world.at.as_secs() % 80 < 30;
        world.room = u32::try_from(pods.iter().filter(|since| **since <= world.at).count()).unwrap();
        most_ready = most_ready.max(world.room);
        let running = if is_on { 4 * world.room } else { 2 };
        let queued = if is_on { 32 - running.min(32) } else { 0 };
        let before = world.wanted;
        world.read_as(Reading {
            load: f64::from(running + queued),
            load_now: f64::from(running + queued),
            queued: f64::from(queued),
            queued_now: f64::from(queued),
            refused: if queued > 0 { 40 } else { 0 },
            answered: u64::from(running) * 10,
            ..Reading::default()
        });
        changes += usize::from(before != world.wanted);
        pods.resize(world.wanted as usize, world.at + Duration::from_secs(120));
    }
    (changes, most_ready)
}

#[test]
fn replicas_on_their_way_are_kept_for_a_load_that_comes_back() {
    let (changes, most_ready) = on_and_off(None);
    assert!(most_ready >= 8 && changes < 12, "{changes} changes, {most_ready} ready");
    let (changes, most_ready) = on_and_off(Some("10m"));
    assert!(most_ready >= 8 && changes < 8, "{changes} changes, {most_ready} ready");
    let (_, most_ready) = on_and_off(Some("0s"));
    assert_eq!(most_ready, 1, "none at all is given");
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

#[test]
fn replicas_that_do_not_come_are_not_asked_for_where_those_that_are_there_carry_the_load() {
    let mut world = World::of(4, policy());
    world.room = 2;
    world.stays(15.0, 200);
    world.stays(7.0, 200);
    assert_eq!(world.wanted, 2, "two carry it with something to spare");
}

#[test]
fn who_begins_to_lead_takes_one_at_a_time_and_none_while_there_is_a_queue() {
    // A target that no replica reaches without a queue: eight there are, for at seven samples queue.
    let policy = Policy { inflight_per_replica: Some(8.0), down_share: 0.5, ..policy() };
    let mut world = World::of(8, policy.clone());
    let mut fewest = 8;
    for _ in 0..300 {
        let (running, capacity) = (30.0, f64::from(world.wanted) * 4.0);
        let queued = if capacity < running { 40.0 } else { 0.0 };
        let load = f64::min(running, capacity) + queued;
        world.read_as(Reading { load, load_now: load, queued, queued_now: queued, ..Reading::default() });
        fewest = fewest.min(world.wanted);
    }
    assert_eq!((world.wanted, fewest), (8, 7));

    let mut world = World::of(8, policy);
    world.stays(30.0, 60);
    world.stays(3.0, 120);
    assert!(world.wanted <= 2, "most of the load has gone: {}", world.wanted);
}

#[test]
fn what_keeps_replicas_is_told_by_its_own_reason() {
    let mut world = World::of(3, Policy { inflight_per_replica: Some(6.0), ..policy() });
    for _ in 0..600 {
        let queued = if world.wanted == 2 { 5.0 } else { 0.0 };
        let load = 9.8 + queued;
        world.read_as(Reading { load, load_now: load, queued, queued_now: queued, ..Reading::default() });
    }
    assert_eq!((world.last.as_ref().map(|last| last.reason), world.wanted), (Some(Reason::TooFew), 3));
    let mut world = World::of(2, policy());
    world.silent = 1;
    assert_eq!((world.stays(3.0, 600).last(), world.wanted), (Some(&Reason::Silent), 2));
    let mut world = World::of(8, Policy { down_per_minute: Some(1), ..policy() });
    assert_eq!((world.stays(3.0, 100).last(), world.wanted), (Some(&Reason::Pace), 7));
}
