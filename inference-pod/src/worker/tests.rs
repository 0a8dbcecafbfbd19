//! What becomes of jobs when a run fails, panics or hangs. The runner is one that does so on purpose.

use std::{
    collections::VecDeque,
    sync::{
        Condvar,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{instance::Canceller, *};
use crate::{
    observe::{Bounds, Observer},
    queue::{Limits, Run},
    session::Stacked,
    times::{BucketTimes, Times},
};

/// A sample with this number makes a run fail.
const POISON: f32 = 666.0;

/// A sample with this number makes a run panic.
const BOMB: f32 = 13.0;

/// A sample with this number makes a run last until it is cancelled.
const TAR: f32 = 404.0;

/// The same, but only where nothing else is in the run.
const PITCH: f32 = 405.0;

/// What all runners of a test share.
#[derive(Default)]
struct Fate {
    opened: AtomicUsize,
    runs: AtomicUsize,
    /// Rows of the largest run.
    rows: AtomicUsize,
    /// So many of the next ones cannot prepare their runs.
    unsettled: AtomicUsize,
    /// Nor can a broken one, ever.
    broken_never_settle: bool,
    /// How the next tries to open go; further ones succeed.
    opening_fails: Mutex<VecDeque<bool>>,
    /// Its number, and those that were cancelled, which other models may share.
    number: u8,
    cancelled: Arc<Mutex<Vec<u8>>>,
    cancel: Arc<Condvar>,
    /// What hangs does so until this one is cancelled.
    tied_to: u8,
    /// Every run takes at least so long.
    takes: Duration,
    /// Runs of more rows fail; of any number where 0.
    most_rows: usize,
    /// Trials last until they are cancelled.
    trials_hang: bool,
    /// So does opening another.
    opening_hangs: bool,
}

impl Fate {
    fn hang(&self) -> SessionError {
        let cancelled = self.cancelled.lock().unwrap();
        drop(self.cancel.wait_while(cancelled, |cancelled| !cancelled.contains(&self.tied_to)).unwrap());
        failure("cancelled")
    }
}

/// Doubles numbers.
struct Doubler {
    fate: Arc<Fate>,
    is_broken: bool,
}

fn failure(message: &str) -> SessionError {
    SessionError::Provider { wanted: "test", reason: message.to_owned() }
}

impl Runner for Doubler {
    fn run(&mut self, inputs: &[Stacked<'_>]) -> Result<Vec<Tensor>, SessionError> {
        self.fate.runs.fetch_add(1, Ordering::SeqCst);
        self.fate.rows.fetch_max(inputs[0].shape[0], Ordering::SeqCst);
        let bytes: Vec<u8> = inputs[0].parts.concat();
        let numbers: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|number| f32::from_le_bytes(*number)).collect();
        if numbers.contains(&BOMB) {
            panic!("as asked for");
        }
        if numbers.contains(&TAR) || numbers == [PITCH] {
            return Err(self.fate.hang());
        }
        std::thread::sleep(self.fate.takes);
        let is_too_large = self.fate.most_rows > 0 && numbers.len() > self.fate.most_rows;
        if self.is_broken || is_too_large || numbers.contains(&POISON) {
            return Err(failure("as asked for"));
        }
        let doubled: Vec<f32> = numbers.iter().map(|number| number * 2.0).collect();
        Ok(vec![Tensor::from_f32(inputs[0].shape.clone(), &doubled).unwrap()])
    }

    fn trial(&mut self) -> Result<(), SessionError> {
        if self.fate.trials_hang {
            return Err(self.fate.hang());
        }
        if self.is_broken { Err(failure("broken")) } else { Ok(()) }
    }

    fn settle(&mut self) -> Result<(), SessionError> {
        let counted = self.fate.unsettled.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        let never = self.is_broken && self.fate.broken_never_settle;
        if counted.is_ok() || never { Err(failure("it asks for too much")) } else { Ok(()) }
    }

    fn canceller(&self) -> Canceller {
        let fate = Arc::clone(&self.fate);
        Box::new(move || {
            fate.cancelled.lock().unwrap().push(fate.number);
            fate.cancel.notify_all();
        })
    }
}

struct World {
    shared: Arc<Shared>,
    fate: Arc<Fate>,
    observer: Observer,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

/// A model of `instances`, the first of them broken where asked.
fn world(instances: usize, first_is_broken: bool, opening_fails: &[bool], run_timeout: Duration) -> World {
    let fate = Fate { opening_fails: Mutex::new(opening_fails.iter().copied().collect()), ..Fate::default() };
    world_with(fate, instances, first_is_broken, run_timeout, Vec::new())
}

fn world_with(
    fate: Fate,
    instances: usize,
    first_is_broken: bool,
    run_timeout: Duration,
    padded_to: Vec<usize>,
) -> World {
    let fate = Arc::new(fate);
    let new = |is_broken| -> Box<dyn Runner> { Box::new(Doubler { fate: Arc::clone(&fate), is_broken }) };
    let runners = (0..instances).map(|index| new(first_is_broken && index == 0)).collect();
    let limits = Limits {
        max_wait: Duration::from_secs(60),
        samples: 1000,
        bytes: 1 << 20,
        batch_size: 8,
        is_padded: !padded_to.is_empty(),
        batch_timeout: Duration::ZERO,
        latency_objective: None,
        run_timeout,
    };
    let mut times = BucketTimes::default();
    [1, 2, 4, 8].into_iter().for_each(|size| times.set(size, Duration::from_millis(1)));
    let observer = Observer::quiet("0");
    let bounds = Bounds { batch_size: 8, max_wait: Duration::from_secs(1), latency_objective: None };
    let of_model = observer.model("m", &bounds);
    let open = {
        let fate = Arc::clone(&fate);
        move |_| -> Result<Box<dyn Runner>, SessionError> {
            fate.opened.fetch_add(1, Ordering::SeqCst);
            if fate.opening_hangs {
                return Err(fate.hang());
            }
            match fate.opening_fails.lock().unwrap().pop_front() {
                Some(true) => Err(failure("no memory")),
                _ => Ok(Box::new(Doubler { fate: Arc::clone(&fate), is_broken: false })),
            }
        }
    };
    of_model.loaded(Duration::ZERO, Duration::ZERO, instances, "cpu", "");
    let (name, open) = ("m".to_owned(), Box::new(open));
    let terms = Terms { name, run_timeout, opening_timeout: LONG, padded_to, observer: of_model, open };
    let queue = Queue::new(limits, Times::warmed_up(1, times), instances);
    World { shared: Shared::start(terms, queue, runners).unwrap(), fate, observer }
}

fn due(began: Instant, deadline: Instant) -> Due {
    Due { deadline, span: None, progress: Arc::new(Progress::new(began)) }
}

impl World {
    /// Brings jobs of one number each, together.
    fn push(&self, numbers: &[f32]) -> Vec<Ticket> {
        let now = Instant::now();
        let job = |number: &f32| (1, vec![Tensor::from_f32(vec![1, 1], &[*number]).unwrap()]);
        let reservation = self.shared.reserve(now).unwrap();
        let deadline = now + Duration::from_secs(60);
        self.shared.push(reservation, numbers.iter().map(job).collect(), &due(now, deadline), now).unwrap()
    }

    fn answers(&self, numbers: &[f32]) -> Vec<Result<f32, JobError>> {
        let runtime = runtime::Builder::new_current_thread().build().unwrap();
        let mut tickets = self.push(numbers);
        let answers = tickets.iter_mut().map(|ticket| runtime.block_on(ticket.answer()));
        answers.map(|answer| answer.map(|output| output.outputs[0].to_f32()[0])).collect()
    }

    /// What hangs for as long as another's number is not cancelled comes back.
    fn comes_back(&self) {
        self.fate.cancelled.lock().unwrap().push(self.fate.tied_to);
        self.fate.cancel.notify_all();
    }

    fn says(&self, line: &str) -> bool {
        self.shared.tell(Instant::now());
        self.observer.metrics.prometheus_text().lines().any(|seen| seen == line)
    }
}

const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_bad_job_fails_alone_and_its_session_stays() {
    let world = world(1, false, &[], LONG);
    let answers = world.answers(&[1.0, 2.0, POISON, 4.0]);
    assert_eq!((&answers[0], &answers[1], &answers[3]), (&Ok(2.0), &Ok(4.0), &Ok(8.0)));
    assert!(matches!(&answers[2], Err(JobError::Failed(_))), "{answers:?}");
    assert_eq!(world.answers(&[5.0]), [Ok(10.0)]);
    assert_eq!(world.fate.opened.load(Ordering::SeqCst), 0);
    assert!(world.says("ortolan_instances{model=\"m\",state=\"running\"} 1"));
}

#[test]
fn bad_jobs_are_found_in_few_runs_and_no_other_is_harmed() {
    let rounds = [vec![0], vec![5], vec![7], vec![0, 1], vec![2, 6], (0..8).collect(), (1..8).collect()];
    for bad in rounds {
        let world = world(1, false, &[], LONG);
        let number = |at: usize| if bad.contains(&at) { POISON } else { at as f32 };
        let answers = world.answers(&(0..8).map(number).collect::<Vec<_>>());
        for (at, answer) in answers.iter().enumerate() {
            let is_right = if bad.contains(&at) { answer.is_err() } else { *answer == Ok(at as f32 * 2.0) };
            assert!(is_right, "{at} of {answers:?}");
        }
        let runs = world.fate.runs.load(Ordering::SeqCst);
        // All together, and two parts for each of three halvings; with many bad ones no more than so many in vain.
        let most = if bad.len() == 1 { 7 } else { 15 };
        assert!(runs <= most, "{runs} runs where {bad:?} of 8 are bad");
    }
}

#[test]
fn a_size_that_fails_where_its_jobs_do_not_is_taken_less() {
    for stalled_runs in [0, 3] {
        // Long beside what a busy machine adds to a run, or the smaller ones look no better.
        let fate = Fate { most_rows: 4, takes: Duration::from_millis(20), ..Fate::default() };
        let world = world_with(fate, 1, false, LONG, Vec::new());
        let stalled = Run { instance: 0, samples: 4, length: 1, time: Duration::from_secs(1) };
        (0..stalled_runs).for_each(|_| world.shared.meeting.with(|queue| queue.learns(stalled)));
        let runs_of_a_round = || {
            let before = world.fate.runs.load(Ordering::SeqCst);
            assert_eq!(world.answers(&[3.0; 8]), vec![Ok(6.0); 8]);
            world.fate.runs.load(Ordering::SeqCst) - before
        };
        let rounds: Vec<usize> = std::iter::repeat_with(runs_of_a_round).take(40).collect();
        assert_eq!(rounds[0], 3, "all together, and then each half");
        let in_halves = rounds[20..].iter().filter(|runs| **runs == 3).count();
        assert!(in_halves < 4, "smaller ones, after {stalled_runs} stalled ones of four: {rounds:?}");
    }
}

#[test]
fn a_panic_answers_its_jobs_and_the_session_is_opened_anew() {
    let world = world(1, false, &[], LONG);
    assert!(world.answers(&[1.0, BOMB]).iter().all(|answer| matches!(answer, Err(JobError::Failed(_)))));
    assert_eq!(world.answers(&[3.0]), [Ok(6.0)]);
    assert_eq!(world.fate.opened.load(Ordering::SeqCst), 1);
    assert!(world.shared.healthy());
}

#[test]
fn a_session_that_fails_on_its_warm_up_input_is_opened_anew_as_often_as_it_takes() {
    let world = world(1, true, &[true, true], LONG);
    assert!(matches!(world.answers(&[1.0])[0], Err(JobError::Failed(_))));
    assert_eq!(world.answers(&[3.0]), [Ok(6.0)], "it waited in the queue meanwhile");
    assert_eq!(world.fate.opened.load(Ordering::SeqCst), 3);
    assert!(world.says("ortolan_instances{model=\"m\",state=\"broken\"} 0"));
}

#[test]
fn an_instance_that_cannot_be_opened_is_given_up_and_the_others_are_kept() {
    let world = world(2, true, &[true; 5], LONG);
    // Until the broken one has got a job: the other takes some before.
    while world.fate.opened.load(Ordering::SeqCst) < 5 || world.shared.healthy() {
        let answers = world.answers(&[1.0]);
        assert!(matches!(answers[0], Ok(_) | Err(JobError::Failed(_))), "{answers:?}");
    }
    assert!(world.shared.works() && !world.shared.healthy());
    assert_eq!(world.answers(&[3.0]), [Ok(6.0)]);
    assert!(world.says("ortolan_instances{model=\"m\",state=\"lost\"} 1"));
    assert!(world.says("ortolan_instances{model=\"m\",state=\"running\"} 1"));
}

#[test]
fn where_no_instance_is_left_who_waits_is_told() {
    let world = world(1, true, &[true; 5], LONG);
    assert!(matches!(world.answers(&[1.0])[0], Err(JobError::Failed(_))));
    assert_eq!(world.answers(&[2.0]), [Err(JobError::NoInstance)]);
    assert!(!world.shared.works());
    assert!(world.says("ortolan_queue_depth{model=\"m\"} 0"));
}

/// Watches the runs until the server stops.
fn watch(world: &World) -> JoinHandle<()> {
    let watched = Arc::clone(&world.shared);
    std::thread::spawn(move || {
        while !watched.meeting.is_over() {
            watched.watch(Instant::now());
            std::thread::sleep(Duration::from_millis(5));
        }
    })
}

#[test]
fn a_session_that_hangs_on_its_warm_up_input_is_ended_and_opened_anew() {
    let fate = Fate { trials_hang: true, ..Fate::default() };
    let world = world_with(fate, 1, true, Duration::from_millis(50), Vec::new());
    let watch = watch(&world);
    assert!(matches!(world.answers(&[1.0])[0], Err(JobError::Failed(_))));
    assert_eq!(world.answers(&[3.0]), [Ok(6.0)]);
    assert_eq!(world.fate.opened.load(Ordering::SeqCst), 1);
    assert!(world.shared.healthy());
    world.shared.stop();
    watch.join().unwrap();
}

#[test]
fn what_is_cancelled_because_the_server_stops_is_no_crash() {
    for (numbers, trials_hang) in [(&[TAR][..], false), (&[TAR, 1.0, 2.0], false), (&[POISON], true)] {
        let world = world_with(Fate { trials_hang, ..Fate::default() }, 1, true, LONG, Vec::new());
        let tickets = world.push(numbers);
        while !world.shared.instances[0].is_running() || world.shared.with_queue(|queue| queue.samples() > 0) {
            std::thread::yield_now();
        }
        world.shared.stop();
        assert!(world.says("ortolan_instance_crashes_total{model=\"m\"} 0"));
        assert_eq!(world.fate.opened.load(Ordering::SeqCst), 0);
        assert_eq!(world.fate.runs.load(Ordering::SeqCst), 1, "nor does another run begin");
        drop(tickets);
    }
}

#[test]
fn models_are_stopped_together_and_none_waits_for_another() {
    let first = world_with(Fate { tied_to: 1, ..Fate::default() }, 1, false, LONG, Vec::new());
    let (cancelled, cancel) = (Arc::clone(&first.fate.cancelled), Arc::clone(&first.fate.cancel));
    let fate = Fate { number: 1, tied_to: 1, cancelled, cancel, ..Fate::default() };
    let second = world_with(fate, 1, false, LONG, Vec::new());
    let tickets = [&first, &second].map(|world| world.push(&[TAR]));
    while [&first, &second].iter().any(|world| !world.shared.instances[0].is_running()) {
        std::thread::yield_now();
    }
    stop(&[&first.shared, &second.shared]);
    assert_eq!(first.fate.cancelled.lock().unwrap()[..2], [0, 1], "the first ends after the second");
    drop(tickets);
}

#[test]
fn a_run_that_takes_too_long_is_ended_and_the_next_one_goes_well() {
    let world = world(1, false, &[], Duration::from_millis(50));
    let watch = watch(&world);
    assert_eq!(world.answers(&[TAR]), [Err(JobError::TooLong(Duration::from_millis(50)))]);
    assert_eq!(world.answers(&[3.0]), [Ok(6.0)]);
    assert!(world.shared.healthy());
    world.shared.stop();
    watch.join().unwrap();
}

#[test]
fn batches_whose_runs_are_ended_become_smaller() {
    let world = world(1, false, &[], Duration::from_millis(50));
    let watch = watch(&world);
    for _ in 0..2 {
        let answers = world.answers(&[TAR, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(answers, vec![Err(JobError::TooLong(Duration::from_millis(50))); 8]);
        world.fate.cancelled.lock().unwrap().clear();
    }
    world.fate.rows.store(0, Ordering::SeqCst);
    assert!(world.answers(&[1.0; 8]).iter().all(Result::is_ok));
    assert_eq!(world.fate.rows.load(Ordering::SeqCst), 4);
    world.shared.stop();
    watch.join().unwrap();
}

#[test]
fn samples_of_a_run_that_is_given_up_run_no_more_and_are_not_taken_off_twice() {
    let world = world_with(Fate { tied_to: 1, ..Fate::default() }, 1, false, LONG, Vec::new());
    let tickets = world.push(&[TAR]);
    while !world.says("ortolan_inflight_samples{model=\"m\"} 1") {
        std::thread::yield_now();
    }
    let now = Instant::now();
    world.shared.watch(now + 2 * LONG);
    assert!(world.shared.healthy(), "it is terminated just now, for nobody has looked before");
    world.shared.watch(now + 3 * LONG);
    assert!(!world.shared.healthy());
    world.comes_back();
    while world.shared.instances[0].is_running() {
        std::thread::yield_now();
    }
    assert!(world.says("ortolan_inflight_samples{model=\"m\"} 0"));
    drop(tickets);
}

#[test]
fn where_a_job_hangs_that_runs_by_itself_those_after_it_are_told_too() {
    let world = world_with(Fate { tied_to: 1, ..Fate::default() }, 1, false, LONG, Vec::new());
    let mut tickets = world.push(&[POISON, PITCH, 3.0, 4.0]);
    // Together, the first two, the first by itself, and the second.
    while world.fate.runs.load(Ordering::SeqCst) < 4 {
        std::thread::yield_now();
    }
    let now = Instant::now();
    world.shared.watch(now + 2 * LONG);
    world.shared.watch(now + 3 * LONG);
    let runtime = runtime::Builder::new_current_thread().build().unwrap();
    let failed: Vec<_> = tickets.iter_mut().map(|ticket| runtime.block_on(ticket.answer()).unwrap_err()).collect();
    assert!(matches!(failed[0], JobError::Failed(_)), "{failed:?}");
    assert_eq!(failed[1..], [(); 3].map(|()| JobError::TooLong(LONG)));
    world.comes_back();
}

#[test]
fn an_instance_whose_session_does_not_come_to_be_opened_is_given_up() {
    let world = world_with(Fate { tied_to: 1, opening_hangs: true, ..Fate::default() }, 1, true, LONG, Vec::new());
    assert!(matches!(world.answers(&[1.0])[0], Err(JobError::Failed(_))));
    while world.fate.opened.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    let mut tickets = world.push(&[2.0]);
    world.shared.watch(Instant::now());
    assert!(world.shared.healthy());
    world.shared.watch(Instant::now() + 2 * LONG);
    let runtime = runtime::Builder::new_current_thread().build().unwrap();
    assert_eq!(runtime.block_on(tickets[0].answer()).unwrap_err(), JobError::NoInstance);
    assert!(!world.shared.works());
    for (state, count) in [("running", 0), ("broken", 0), ("lost", 1)] {
        assert!(world.says(&format!("ortolan_instances{{model=\"m\",state=\"{state}\"}} {count}")), "{state}");
    }
    world.comes_back();
}

#[test]
fn a_batch_is_padded_and_nobody_sees_it() {
    let world = world_with(Fate::default(), 1, false, LONG, vec![1, 2, 4, 8]);
    let tar = world.push(&[TAR]);
    while world.fate.runs.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    // While the instance is busy, two jobs of more than one sample come, which make no whole bucket.
    let now = Instant::now();
    let jobs: Vec<_> = [vec![1.0, 2.0, 3.0], vec![4.0, 5.0]]
        .iter()
        .map(|numbers| (numbers.len(), vec![Tensor::from_f32(vec![numbers.len(), 1], numbers).unwrap()]))
        .collect();
    let due = due(now, now + LONG);
    let mut tickets = world.shared.push(world.shared.reserve(now).unwrap(), jobs, &due, now).unwrap();
    world.shared.instances[0].cancel();
    drop(tar);
    let runtime = runtime::Builder::new_current_thread().build().unwrap();
    let answers: Vec<_> = tickets.iter_mut().map(|ticket| runtime.block_on(ticket.answer()).unwrap()).collect();
    assert_eq!(answers[0].outputs[0].shape(), [3, 1]);
    assert_eq!(answers[0].outputs[0].to_f32(), [2.0, 4.0, 6.0]);
    assert_eq!(answers[1].outputs[0].to_f32(), [8.0, 10.0]);
    let rows = world.fate.rows.load(Ordering::SeqCst);
    assert!(rows == 4 || rows == 8, "3 and 2 samples, together or apart, became {rows}");
}

#[test]
fn a_session_that_cannot_prepare_its_runs_makes_way_before_anything_runs() {
    let world = world_with(Fate { unsettled: AtomicUsize::new(2), ..Fate::default() }, 1, false, LONG, Vec::new());
    assert_eq!(world.fate.opened.load(Ordering::SeqCst), 2);
    assert_eq!(world.answers(&[3.0]), [Ok(6.0)]);
    assert!(world.says("ortolan_instances{model=\"m\",state=\"running\"} 1"));
    assert!(world.shared.healthy());
}

#[test]
fn where_no_session_can_prepare_its_runs_the_instance_is_given_up() {
    let world = world_with(Fate { unsettled: AtomicUsize::new(usize::MAX), ..Fate::default() }, 1, false, LONG, vec![]);
    assert!(!world.shared.works() && !world.shared.healthy());
}

#[test]
fn one_instance_that_is_given_up_before_it_has_run_keeps_nobody_waiting() {
    let opening_fails = Mutex::new(VecDeque::from([true; 6]));
    let fate = Fate { broken_never_settle: true, opening_fails, ..Fate::default() };
    let world = world_with(fate, 2, true, LONG, Vec::new());
    assert!(world.shared.works() && !world.shared.healthy());
    assert_eq!(world.answers(&[3.0]), [Ok(6.0)]);
}

#[test]
fn a_job_that_comes_after_the_end_is_not_let_in() {
    let world = world(1, false, &[], LONG);
    world.shared.stop();
    let now = Instant::now();
    let reservation = world.shared.reserve(now).unwrap();
    let job = (1, vec![Tensor::from_f32(vec![1, 1], &[1.0]).unwrap()]);
    let refused = world.shared.push(reservation, vec![job], &due(now, now + LONG), now).err();
    assert_eq!(refused, Some(PushError::Stopped));
}

#[test]
fn a_caller_who_leaves_before_the_run_costs_none() {
    let world = world(1, false, &[], LONG);
    let tar = world.push(&[TAR]);
    // The instance is busy from now on.
    while world.fate.runs.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    drop(world.push(&[5.0, 6.0]));
    assert_eq!(world.shared.with_queue(Queue::samples), 0);
    world.shared.instances[0].cancel();
    drop(tar);
    assert_eq!(world.answers(&[7.0]), [Ok(14.0)]);
    assert_eq!(world.fate.runs.load(Ordering::SeqCst), 2);
}
