//! An idle instance that waits for company.

use super::*;

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
