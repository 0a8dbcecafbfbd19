//! Every order in which threads can run, tried on the place where those who bring work meet those who do it: the file is
//! built here against a model of locks, wake-ups and threads.

#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(dead_code, reason = "the file is built for more than these tests use")]

#[path = "../src/worker/meeting.rs"]
mod meeting;

mod sync {
    pub(super) use std::sync::PoisonError;

    pub(super) use loom::sync::{Condvar, Mutex, MutexGuard};
}

use std::collections::VecDeque;

use loom::{sync::Arc, thread};
use meeting::{Found, Meeting};

/// Every order in which no thread is interrupted more than twice where it could have gone on; almost every mistake needs
/// fewer, and all orders would take minutes.
fn every_order(check: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(check);
}

type Jobs = Meeting<VecDeque<u32>>;

fn take(queue: &mut VecDeque<u32>) -> Found<u32> {
    queue.pop_front().map_or(Found::Nothing, |job| Found::Work(job, !queue.is_empty()))
}

/// Works until the meeting is over; says what it did.
fn worker(meeting: &Arc<Jobs>) -> thread::JoinHandle<Vec<u32>> {
    let meeting = Arc::clone(meeting);
    thread::spawn(move || std::iter::from_fn(|| meeting.next(take)).collect())
}

/// Does one job and leaves. Where it is not woken for it, it waits for ever, and the model says so.
fn worker_of_one(meeting: &Arc<Jobs>) -> thread::JoinHandle<u32> {
    let meeting = Arc::clone(meeting);
    thread::spawn(move || meeting.next(take).unwrap())
}

/// Brings a job; whether it was let in.
fn bringer(meeting: &Arc<Jobs>, job: u32) -> thread::JoinHandle<bool> {
    let meeting = Arc::clone(meeting);
    thread::spawn(move || meeting.bring(|queue| queue.push_back(job)).is_some())
}

/// What two workers did that do one job each; both must have been woken.
fn done_by(workers: [thread::JoinHandle<u32>; 2]) -> [u32; 2] {
    let mut done = workers.map(|thread| thread.join().unwrap());
    done.sort_unstable();
    done
}

#[test]
fn every_job_wakes_somebody_and_is_done_once() {
    every_order(|| {
        let meeting = Arc::new(Jobs::new(VecDeque::new()));
        let workers = [worker_of_one(&meeting), worker_of_one(&meeting)];
        let bringer = bringer(&meeting, 1);
        assert!(meeting.bring(|queue| queue.push_back(2)).is_some());
        assert!(bringer.join().unwrap());
        assert_eq!(done_by(workers), [1, 2]);
    });
}

#[test]
fn whoever_leaves_some_of_it_wakes_another() {
    every_order(|| {
        let meeting = Arc::new(Jobs::new(VecDeque::new()));
        let workers = [worker_of_one(&meeting), worker_of_one(&meeting)];
        meeting.bring(|queue| queue.extend([1, 2])).unwrap();
        assert_eq!(done_by(workers), [1, 2]);
    });
}

#[test]
fn a_job_that_comes_while_the_meeting_ends_is_refused_cleared_or_done_and_never_left() {
    every_order(|| {
        let meeting = Arc::new(Jobs::new(VecDeque::new()));
        let worker = worker(&meeting);
        let bringer = bringer(&meeting, 7);
        let cleared = meeting.end(std::mem::take);
        let let_in = bringer.join().unwrap();
        let done = worker.join().unwrap();
        assert_eq!(done.len() + cleared.len(), usize::from(let_in));
        assert!(meeting.with(|queue| queue.is_empty()), "nothing is left behind");
    });
}

#[test]
fn a_caller_who_leaves_and_a_worker_never_both_have_the_job() {
    every_order(|| {
        let meeting = Arc::new(Jobs::new(VecDeque::from([5])));
        let worker = worker(&meeting);
        let leaver = {
            let meeting = Arc::clone(&meeting);
            thread::spawn(move || meeting.with(VecDeque::pop_front).is_some())
        };
        let left = leaver.join().unwrap();
        let cleared = meeting.end(std::mem::take);
        assert_eq!(usize::from(left) + cleared.len() + worker.join().unwrap().len(), 1);
    });
}
