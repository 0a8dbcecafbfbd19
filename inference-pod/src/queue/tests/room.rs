//! Samples, bytes and places.

use super::*;

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
