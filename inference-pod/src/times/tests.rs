//! Times of batches: what is learnt, tried and forgotten.

use super::*;

fn times(measured: &[(usize, u64)]) -> BucketTimes {
    let mut times = BucketTimes::default();
    measured.iter().for_each(|(size, millis)| times.set(*size, Duration::from_millis(*millis)));
    times
}

const ENDLESS: Duration = Duration::MAX;

#[test]
fn buckets_are_powers_of_two_and_the_batch_size() {
    assert_eq!(buckets(1), [1]);
    assert_eq!(buckets(8), [1, 2, 4, 8]);
    assert_eq!(buckets(12), [1, 2, 4, 8, 12]);
    assert_eq!(buckets(0), [1]);
}

#[test]
fn the_cheapest_filled_bucket_wins_and_of_equal_ones_the_larger() {
    let gains = times(&[(1, 5), (2, 7), (4, 11), (8, 21)]);
    assert_eq!([1, 2, 3, 4, 7, 8, 9].map(|n| gains.best_filled_by(n, ENDLESS)), [1, 2, 2, 4, 4, 8, 8].map(Some));
    let loses = times(&[(1, 6), (2, 11), (4, 23), (8, 50)]);
    assert_eq!(loses.best_filled_by(100, ENDLESS), Some(2));
    let equal = times(&[(1, 5), (2, 10), (4, 20)]);
    assert_eq!(equal.best_filled_by(100, ENDLESS), Some(4));
}

#[test]
fn a_bucket_that_takes_longer_than_allowed_is_not_chosen() {
    let gains = times(&[(1, 5), (2, 7), (4, 11)]);
    assert_eq!(gains.best_filled_by(8, Duration::from_millis(8)), Some(2));
    assert_eq!(gains.best_filled_by(8, Duration::from_millis(4)), None);
    assert_eq!(gains.largest_within(Duration::from_millis(8)), Some(2));
    assert_eq!(gains.largest_within(Duration::from_millis(4)), None);
}

#[test]
fn a_few_stalled_runs_do_not_move_the_estimate_and_a_slower_machine_does() {
    let mut seen = times(&[(1, 10)]);
    for _ in 0..4 {
        seen.record(1, Duration::from_secs(60));
        seen.record(1, Duration::from_millis(11));
    }
    assert!(seen.of(1) < Duration::from_millis(12), "{:?}", seen.of(1));
    (0..WINDOW).for_each(|_| seen.record(1, Duration::from_millis(30)));
    assert_eq!(seen.of(1), Duration::from_millis(30));
    seen.record(3, Duration::from_secs(60));
    assert_eq!(seen.iter().count(), 1, "a size that is no bucket becomes none");
    assert_eq!(seen.of(1), Duration::from_millis(30));
}

#[test]
fn where_no_batch_is_a_bucket_those_that_come_are_learnt_from() {
    let measured = times(&[(1, 4), (2, 6), (4, 10), (8, 18)]);
    let mut known = Times::warmed_up(16, measured.clone());
    let long = LengthClass::of(500);
    known.record(long, 3, Duration::from_millis(400));
    let guessed = [1, 2, 3, 4, 8].map(|size| known.class(long).of(size).as_millis());
    assert_eq!(guessed, [200, 300, 500, 500, 900], "fifty times what the line from 6 to 10 says of 3");

    let mut near = measured.clone();
    (0..WINDOW).for_each(|_| near.record(3, Duration::from_millis(9)));
    assert_eq!(near.of(4), measured.of(4), "what was measured of a bucket itself is truer");
    let mut slower = measured;
    (0..WINDOW).for_each(|_| slower.record(3, Duration::from_millis(40)));
    assert!(slower.of(3) >= Duration::from_millis(40), "{:?}", slower.of(3));
}

#[test]
fn what_is_learnt_from_batches_between_buckets_stays_near_what_they_took() {
    for (measured, samples, millis) in [(2, 9, 20), (4, 3, 10), (1, 5, 100), (50, 33, 70)] {
        let scaled = |size: usize| (size, 8 * size as u64 * measured);
        let mut wrong = times(&[1, 2, 4, 8, 16, 32, 64].map(scaled));
        (0..1000).for_each(|_| wrong.record(samples, Duration::from_millis(millis)));
        let (learnt, full) = (wrong.of(samples), samples.next_power_of_two() as f64 / samples as f64);
        let most = Duration::from_millis(millis).mul_f64(full * 1.001);
        assert!((Duration::from_millis(millis)..=most).contains(&learnt), "{samples} in {millis} ms: {learnt:?}");
    }
}

/// Of so many choices those that are not of one sample, which then took so many milliseconds: which choice it was, and of how many.
fn tries(times: &mut BucketTimes, choices: usize, millis: u64) -> Vec<(usize, usize)> {
    let mut tries = Vec::new();
    for at in 0..choices {
        if let Some(Chosen { samples, .. }) = times.choose(8, ENDLESS, |_, _| true).filter(|chosen| chosen.samples != 1)
        {
            times.record(samples, Duration::from_millis(millis));
            tries.push((at, samples));
        }
    }
    tries
}

#[test]
fn a_bucket_that_was_passed_over_for_long_is_tried_again_unless_it_seems_much_too_dear() {
    let mut dear = times(&[(1, 5), (2, 30), (4, 1000)]);
    let expected = [300, 3301].map(|at| (at, 2));
    assert_eq!(
        tries(&mut dear, 4000, 30),
        expected,
        "6 times as long, first by a time of the warm-up; never 50 times as dear"
    );
}

#[test]
fn one_run_corrects_a_time_that_was_too_long() {
    let mut stalled = times(&[(1, 5), (2, 70), (8, 1300)]);
    (0..WINDOW).for_each(|_| stalled.record(2, Duration::from_millis(70)));
    assert_eq!(tries(&mut stalled, 7002, 6), [(7000, 2), (7001, 2)], "14 times as long, and then the best");
}

#[test]
fn where_all_becomes_slower_what_does_not_run_does_too() {
    let measured = [(1, 5), (2, 7), (4, 12), (8, 20)];
    let mut spell = times(&measured);
    let of_all = |times: &BucketTimes| measured.map(|(size, _)| times.of(size).as_millis());
    (0..WINDOW).for_each(|_| spell.record(8, Duration::from_millis(20)));
    (0..WINDOW).for_each(|_| spell.record(8, Duration::from_millis(60)));
    assert_eq!(of_all(&spell), [15, 21, 36, 60]);
    (0..WINDOW).for_each(|_| spell.record(1, Duration::from_millis(15)));
    (0..WINDOW).for_each(|_| spell.record(1, Duration::from_millis(5)));
    assert_eq!(of_all(&spell), [5, 7, 12, 20], "8 has not run for long");
}

#[test]
fn a_bucket_that_an_objective_does_not_allow_is_tried_if_it_is_the_next() {
    let mut stale = times(&[(1, 5), (2, 7), (4, 12), (8, 20)]);
    let chosen: Vec<_> = (0..120).filter_map(|_| stale.choose(2, ENDLESS, |_, _| true)).map(|it| it.samples).collect();
    assert_eq!((chosen.iter().filter(|size| **size == 4).count(), chosen.contains(&8)), (1, false));
}

#[test]
fn between_buckets_a_batch_takes_what_the_line_says() {
    let known = times(&[(1, 5), (4, 11), (8, 19)]);
    assert_eq!([1, 2, 3, 4, 6, 8, 16].map(|size| known.unpadded(size).as_millis()), [5, 7, 9, 11, 15, 19, 38]);
    assert_eq!(BucketTimes::default().unpadded(3), Duration::ZERO);
}

#[test]
fn doubts_lower_what_a_batch_needs_until_a_run_and_nothing_else() {
    let mut stuck = times(&[(1, 200), (2, 300)]);
    let before = stuck.of(1);
    (0..5).for_each(|_| stuck.doubt(1));
    assert!(stuck.needed(1) < Duration::from_millis(66), "{:?}", stuck.needed(1));
    assert_eq!(stuck.of(1), before, "what others wait for is as before");
    assert_eq!(stuck.needed(2), Duration::from_millis(300));
    stuck.doubt(2);
    stuck.record(1, Duration::from_millis(200));
    assert_eq!([1, 2].map(|size| stuck.needed(size)), [200, 240].map(Duration::from_millis), "2 did not run");
    stuck.record(2, Duration::from_millis(300));
    assert_eq!(stuck.needed(2), Duration::from_millis(300));
    BucketTimes::default().doubt(1);
    assert_eq!(BucketTimes::default().needed(1), Duration::ZERO);
}

#[test]
fn a_batch_needs_the_time_of_a_slow_run_but_not_of_a_stalled_one() {
    let mut seen = times(&[(1, 10)]);
    (1..WINDOW).for_each(|at| seen.record(1, Duration::from_millis(if at % 5 == 0 { 14 } else { 10 })));
    assert_eq!((seen.of(1), seen.needed(1)), (Duration::from_millis(10), Duration::from_millis(14)));
    (0..3).for_each(|_| seen.record(1, Duration::from_secs(60)));
    assert_eq!(seen.needed(1), Duration::from_millis(20), "no more than twice the median");
    let mut wrong = times(&[(1, 500), (2, 12)]);
    assert_eq!(wrong.needed(1), Duration::from_millis(12), "two take no longer than that");
    wrong.doubt(1);
    assert_eq!(wrong.of(1), Duration::from_millis(500));
}

#[test]
fn a_model_that_could_not_be_timed_learns_from_its_first_run() {
    let mut unknown = BucketTimes::default();
    unknown.record(1, Duration::from_millis(7));
    assert_eq!(unknown.of(1), Duration::from_millis(7));
    let mut unknown = Times::default();
    assert!(unknown.recent().is_none());
    unknown.record(LengthClass::of(16), 2, Duration::from_millis(7));
    assert_eq!(unknown.recent().map(|times| times.of(2)), Some(Duration::from_millis(7)));
}

#[test]
fn a_batch_beyond_the_largest_bucket_costs_in_proportion() {
    let known = times(&[(1, 5), (4, 12)]);
    assert_eq!(known.of(3), Duration::from_millis(12));
    assert_eq!(known.of(8), Duration::from_millis(24));
    assert_eq!(BucketTimes::default().of(8), Duration::ZERO);
}

#[test]
fn waiting_leads_to_the_next_bucket_that_is_cheaper_for_each() {
    let gains = times(&[(1, 5), (2, 7), (4, 11), (8, 40)]);
    assert_eq!(gains.cheaper_above(1, 8), Some(2));
    assert_eq!(gains.cheaper_above(4, 8), None, "8 costs more for each");
    assert_eq!(gains.cheaper_above(2, 3), None, "4 is more than allowed");
    assert_eq!(times(&[(1, 5), (2, 10), (4, 12)]).cheaper_above(1, 4), Some(4));
}

#[test]
fn a_length_that_never_ran_is_estimated_and_then_measured() {
    let mut known = Times::warmed_up(16, times(&[(1, 4), (2, 6)]));
    assert_eq!(known.class(LengthClass::of(60)).of(2), Duration::from_millis(6), "as the nearest");
    known.record(LengthClass::of(60), 2, Duration::from_millis(9));
    assert_eq!(known.class(LengthClass::of(64)).of(2), Duration::from_millis(9), "the first run replaces a guess");
    assert_eq!(known.class(LengthClass::of(64)).of(1), Duration::from_millis(6), "and corrects the others");
    known.record(LengthClass::of(60), 1, Duration::from_millis(20));
    assert_eq!(known.class(LengthClass::of(64)).of(2), Duration::from_millis(9), "but not what was measured");
    assert_eq!(known.class(LengthClass::of(16)).of(2), Duration::from_millis(6));
    assert_eq!(known.recent().map(|times| times.of(2)), Some(Duration::from_millis(9)));
}

#[test]
fn lengths_up_to_a_power_of_two_share_a_class() {
    assert_eq!(LengthClass::of(9), LengthClass::of(16));
    assert!(LengthClass::of(8) < LengthClass::of(9));
    assert_eq!(LengthClass::of(0), LengthClass::of(1));
}
