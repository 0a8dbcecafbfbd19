//! An instance: a session with the thread that runs it, and what is done when one of them fails.
//!
//! ```text
//! take ▸ run ▸ answer      and again
//!   the run fails          its jobs run again in halves, and in halves of the half that fails, so that one bad job harms no
//!                          other; if all of them fail, the session is tried on its warm-up input, and if that fails too it is
//!                          opened anew
//!   the run panics         its jobs are answered, and the session is opened anew
//!   opening fails          tried again and again, ever more slowly; after some time the instance is given up
//!   opening hangs          the instance is given up
//!   the run hangs          it is terminated; if that does not help, the instance is given up
//! ```

use std::{
    collections::VecDeque,
    iter,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use super::{
    Job, JobError, Reply, Shared, Warmed,
    answer::{Run, Way, address, check_rows, stack},
    parts::Parts,
};
use crate::{
    integral::{Integral, Reading},
    observe::{Links, Memory, events::Batch, progress, span::Span},
    queue::{self, Taken, Waiting},
    session::{SessionError, Stacked},
    tensor::Tensor,
    termination::error_chain,
    threads,
};

/// A terminated run that has not come back by then is given up, and its instance with it.
const TERMINATION_GRACE: Duration = Duration::from_secs(5);

/// Waits between tries to open a session anew: doubled each time, from the first to the last.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// An instance that could not be opened anew so often is given up, and health says so. It has been tried for 3 s by then.
const TRIES: u32 = 5;

/// A session under suspicion is tried on its warm-up input no more often than this, so that a client that sends nothing
/// but bad input does not double the load.
const BETWEEN_TRIALS: Duration = Duration::from_secs(1);

/// A session that there is no warm-up input for is opened anew after so many failures without a success, but no more often.
const SUSPECT_AFTER: u32 = 20;
const BETWEEN_SUSPICIONS: Duration = Duration::from_secs(60);

/// Memory is asked for no more often.
const BETWEEN_WEIGHINGS: Duration = Duration::from_secs(1);

/// Ends a run from another thread.
pub type Canceller = Box<dyn Fn() + Send + Sync>;

/// What runs a batch. A session; in tests, one that fails on purpose.
pub trait Runner: Send {
    /// Runs the model on stacked inputs.
    ///
    /// # Errors
    /// What ONNX Runtime said.
    fn run(&mut self, inputs: &[Stacked<'_>]) -> Result<Vec<Tensor>, SessionError>;

    /// Runs the model on what it was warmed up with.
    ///
    /// # Errors
    /// What ONNX Runtime said.
    fn trial(&mut self) -> Result<(), SessionError>;

    /// Prepares for the runs that are to come, on the thread that will make them. What fails here is not tried again by
    /// one that is opened afterwards.
    ///
    /// # Errors
    /// What ONNX Runtime said; another has to be opened in its place.
    fn settle(&mut self) -> Result<(), SessionError> {
        Ok(())
    }

    /// Whether there is something that is better done between two runs than in one.
    fn is_to_tend(&self) -> bool {
        false
    }

    /// Does it.
    fn tend(&mut self) {}

    /// What ends its current run from another thread.
    fn canceller(&self) -> Canceller;

    /// The memory that it takes, where that is known.
    fn memory(&self) -> Option<Memory> {
        None
    }
}

/// One session's run, as other threads see it.
pub(super) struct Instance {
    canceller: Mutex<Canceller>,
    runs: Mutex<Runs>,
    lost: AtomicBool,
    index: usize,
}

/// What runs, and how much has run.
#[derive(Default)]
struct Runs {
    current: Option<Running>,
    /// Who waits for runs that follow the current one, for the jobs of a batch that failed.
    aside: VecDeque<Reply>,
    /// Since when a session is being opened.
    opening: Option<Instant>,
    /// None once the instance is given up: those who waited for them were answered.
    samples: Integral,
}

struct Running {
    began: Instant,
    terminated: Option<Instant>,
    replies: Vec<Reply>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Instance {
    pub(super) fn new(index: usize, canceller: Canceller) -> Self {
        Self { canceller: Mutex::new(canceller), runs: Mutex::default(), lost: AtomicBool::new(false), index }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.lost.load(Ordering::Acquire)
    }

    pub(super) fn is_running(&self) -> bool {
        lock(&self.runs).current.is_some()
    }

    /// Samples that run here, with their integral over time up to now.
    pub(super) fn samples_over_time(&self, now: Instant) -> Reading {
        lock(&self.runs).samples.read(now)
    }

    pub(super) fn cancel(&self) {
        lock(&self.canceller)();
    }

    /// Ends a run that takes too long, and gives the instance up if the run does not come back, or the opening of a session.
    pub(super) fn watch(&self, shared: &Shared, now: Instant) {
        if self.end_long_run(shared, now) || self.end_long_opening(shared, now) {
            shared.meeting.with(|queue| queue.lost(self.index));
        }
    }

    /// Whether the instance is given up just now.
    fn end_long_run(&self, shared: &Shared, now: Instant) -> bool {
        let mut runs = lock(&self.runs);
        let Runs { current: Some(running), aside, samples, .. } = &mut *runs else { return false };
        let time = now.saturating_duration_since(running.began);
        if time > shared.run_timeout && running.terminated.is_none() {
            running.terminated = Some(now);
            self.cancel();
            tracing::warn!(seconds = time.as_secs_f64(), "ending a run that takes too long");
        }
        // From then: where the whole process stood still, it has not been told yet.
        let overdue = running.terminated.map_or(Duration::ZERO, |terminated| now.saturating_duration_since(terminated));
        let is_given_up = overdue > TERMINATION_GRACE && !self.lost.swap(true, Ordering::AcqRel);
        if is_given_up {
            shared.observer.instance_lost(self.index);
            samples.set(0, now);
            for reply in running.replies.drain(..).chain(aside.drain(..)) {
                let _ = reply.send(Err(JobError::TooLong(shared.run_timeout)));
            }
        }
        is_given_up
    }

    /// Whether the instance is given up just now.
    fn end_long_opening(&self, shared: &Shared, now: Instant) -> bool {
        // Held until it is decided: the opening may end just now.
        let runs = lock(&self.runs);
        let since = runs.opening.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        let is_given_up = since > shared.opening_timeout && !self.lost.swap(true, Ordering::AcqRel);
        if is_given_up {
            tracing::error!(
                seconds = shared.opening_timeout.as_secs_f64(),
                "opening a session does not come to an end"
            );
            shared.observer.broken_instance_lost(self.index);
        }
        is_given_up
    }

    /// Opens a session where others can see how long that takes. `None` where it was too long.
    fn opening<R>(&self, open: impl FnOnce() -> R) -> Option<R> {
        lock(&self.runs).opening = Some(Instant::now());
        let opened = open();
        let mut runs = lock(&self.runs);
        runs.opening = None;
        (!self.is_lost()).then_some(opened)
    }

    /// Does what nobody waits for, but what may hang like a run, where others can see and end it.
    fn watched<R>(&self, act: impl FnOnce() -> R) -> R {
        self.begin(0, Vec::new());
        let result = act();
        self.end(Instant::now());
        result
    }

    fn begin(&self, samples: usize, replies: Vec<Reply>) -> Instant {
        let began = Instant::now();
        let mut runs = lock(&self.runs);
        runs.current = Some(Running { began, terminated: None, replies });
        runs.samples.set(samples, began);
        began
    }

    /// These wait for runs to come, before all others who do.
    fn put_aside(&self, replies: Vec<Reply>) {
        let mut runs = lock(&self.runs);
        replies.into_iter().rev().for_each(|reply| runs.aside.push_front(reply));
    }

    /// The next so many of those who were put aside; none where they were answered, for the instance is given up.
    fn next_aside(&self, count: usize) -> Option<Vec<Reply>> {
        let mut runs = lock(&self.runs);
        (runs.aside.len() >= count).then(|| runs.aside.drain(..count).collect())
    }

    /// The run is over: who waits for it, and whether it was ended from outside.
    fn end(&self, now: Instant) -> (Vec<Reply>, bool) {
        let mut runs = lock(&self.runs);
        runs.samples.set(0, now);
        runs.current.take().map_or((Vec::new(), false), |running| (running.replies, running.terminated.is_some()))
    }
}

/// How a run ended, for the instance.
enum Ended {
    Well,
    /// Its session failed; whether through its own fault is not known.
    Badly,
    /// Its session panicked.
    Panicked,
}

/// The life of an instance's thread. Ends with the server, or with the instance. Tells when it is about to take jobs.
pub(super) fn work(shared: &Shared, index: usize, mut runner: Box<dyn Runner>, settled: mpsc::SyncSender<()>) {
    threads::start_after_others();
    match settled_or_another(shared, runner) {
        Ok(settled) => {
            *lock(&shared.instances[index].canceller) = settled.canceller();
            runner = settled;
        }
        Err(cause) => match open_anew(shared, index, &cause) {
            Some(opened) => runner = opened,
            None => return,
        },
    }
    // Nobody listens any more where the server stops already.
    let _ = settled.send(());
    // Kept as long as the thread lives, it would have whoever waits for all of them wait for those that are given up.
    drop(settled);
    let (mut tried, mut weighed) = (None, None);
    weigh(shared, index, &*runner, &mut weighed);
    while let Some(Taken { batch, expired, .. }) = shared.next(index) {
        shared.deliver(expired.into_iter().map(|job| (job.payload.reply, Err(JobError::Expired))).collect());
        let ended = if batch.is_empty() { Ended::Well } else { run(shared, index, &mut *runner, batch) };
        let instance = &shared.instances[index];
        // Lost: its callers were answered, and probes say that it is gone; a restart is under way. Over: what was cancelled for that says
        // nothing of the session.
        let is_over = || instance.is_lost() || shared.meeting.is_over();
        let broken = match ended {
            _ if is_over() => None,
            Ended::Well if runner.is_to_tend() => {
                let tended = instance.watched(|| catch_unwind(AssertUnwindSafe(|| runner.tend())));
                tended.err().map(|_| "it panicked between two runs".to_owned())
            }
            Ended::Well => None,
            Ended::Badly => instance.watched(|| what_is_broken(&mut *runner, &mut tried)),
            Ended::Panicked => Some("a run panicked".to_owned()),
        };
        if is_over() {
            return;
        }
        weigh(shared, index, &*runner, &mut weighed);
        if let Some(cause) = broken {
            // The broken one goes first: two of a large model may not fit.
            drop(runner);
            match open_anew(shared, index, &cause) {
                Some(opened) => runner = opened,
                None => return,
            }
        }
    }
}

/// Tells how much memory an instance takes, now and then.
fn weigh(shared: &Shared, index: usize, runner: &dyn Runner, weighed: &mut Option<Instant>) {
    if weighed.is_some_and(|weighed| weighed.elapsed() < BETWEEN_WEIGHINGS) {
        return;
    }
    *weighed = Some(Instant::now());
    if let Some(memory) = runner.memory() {
        shared.observer.weighed(index, memory);
    }
}

fn run(shared: &Shared, index: usize, runner: &mut dyn Runner, batch: Vec<Waiting<Job>>) -> Ended {
    let began = Instant::now();
    let (mut ways, mut replies, mut inputs) = (Vec::new(), Vec::new(), Vec::new());
    for job in batch {
        let (queue_time, length) = (began.saturating_duration_since(job.entered), job.length());
        let Job { inputs: own, reply, span, progress } = job.payload;
        progress.waited(queue_time);
        ways.push(Way { samples: job.samples, length, queue_time, span, progress });
        replies.push(reply);
        inputs.push(own);
    }
    let jobs: Vec<&[Tensor]> = inputs.iter().map(Vec::as_slice).collect();
    let waits = ways.iter().map(|way| way.queue_time);
    let Ran { result, replies, run, ended } = run_together(shared, index, runner, &jobs, (&ways, waits), replies);
    let whole = run_of(index, &ways, run);
    match &result {
        // What was ended takes so long at least: where that is for its size, smaller batches are taken from then on.
        Ok(_) | Err(JobError::TooLong(_)) => shared.ran(whole),
        // Not where it was cancelled, for the server stops: then no run is to begin.
        Err(_) if jobs.len() > 1 && matches!(ended, Ended::Badly) && !shared.meeting.is_over() => {
            shared.meeting.with(|queue| queue.runs_again(index, jobs.len(), whole.length, Instant::now()));
            let (ended, went_well) = run_apart(shared, index, runner, &jobs, replies, ways);
            if went_well == jobs.len() {
                // It was the size that failed, for want of memory for example: that is what a batch of it takes.
                shared.ran(queue::Run { time: began.elapsed(), ..whole });
            } else {
                shared.meeting.with(|queue| queue.gave_up(index));
            }
            return ended;
        }
        Err(_) => shared.meeting.with(|queue| queue.gave_up(index)),
    }
    shared.deliver(address(replies, &ways, run, &result));
    ended
}

/// Runs the jobs of a failed batch again in parts: a bad one fails alone. Well, if any of them went well; and how many did.
fn run_apart(
    shared: &Shared,
    index: usize,
    runner: &mut dyn Runner,
    jobs: &[&[Tensor]],
    replies: Vec<Reply>,
    ways: Vec<Way>,
) -> (Ended, usize) {
    let (mut all, mut went_well) = (Ended::Badly, 0);
    let instance = &shared.instances[index];
    instance.put_aside(replies);
    let mut left: VecDeque<(&[Tensor], Way)> = jobs.iter().copied().zip(ways).collect();
    let mut parts = Parts::of_failed(jobs.len());
    while let Some(size) = parts.next() {
        let Some(replies) = instance.next_aside(size) else { break };
        // A caller who has left needs no run.
        let taken = left.drain(..size).zip(replies).filter(|(_, reply)| !reply.is_closed());
        let (part, replies): (Vec<_>, Vec<_>) = taken.unzip();
        if matches!(all, Ended::Panicked) {
            replies.into_iter().for_each(|reply| _ = reply.send(Err(panicked())));
            continue;
        }
        if part.is_empty() {
            continue;
        }
        let (jobs, ways): (Vec<_>, Vec<_>) = part.into_iter().unzip();
        let told = (&ways[..], iter::empty());
        let Ran { result, replies, run, ended } = run_together(shared, index, runner, &jobs, told, replies);
        if jobs.len() > 1 && matches!(ended, Ended::Badly) {
            parts.failed(jobs.len());
            instance.put_aside(replies);
            jobs.into_iter().zip(ways).rev().for_each(|job| left.push_front(job));
            continue;
        }
        if result.is_ok() {
            went_well += jobs.len();
            // What is known of smaller ones may be old, or of a disturbed run, and be why the size was taken that failed.
            shared.meeting.with(|queue| queue.learns(run_of(index, &ways, run)));
        }
        all = match (ended, &result) {
            (Ended::Panicked, _) => Ended::Panicked,
            (_, Ok(_)) => Ended::Well,
            (_, Err(_)) => all,
        };
        shared.deliver(address(replies, &ways, run, &result));
    }
    (all, went_well)
}

/// What came of a run.
struct Ran {
    result: Result<Vec<Tensor>, JobError>,
    /// Who waits for it; nobody where they were answered meanwhile.
    replies: Vec<Reply>,
    run: Run,
    ended: Ended,
}

/// One run, where others can see and end it; with the waits before it that are not told yet.
fn run_together(
    shared: &Shared,
    index: usize,
    runner: &mut dyn Runner,
    jobs: &[&[Tensor]],
    (ways, waits): (&[Way], impl Iterator<Item = Duration> + Clone),
    replies: Vec<Reply>,
) -> Ran {
    let (instance, samples) = (&shared.instances[index], samples_of(ways));
    let began = instance.begin(samples, replies);
    ways.iter().for_each(|way| way.progress.run_began(samples, began));
    shared.observer.metrics().run_began(samples, waits);
    let padding = shared.padding(samples);
    let (result, ended) = run_caught(runner, jobs, padding);
    let ended_at = Instant::now();
    let (replies, terminated) = instance.end(ended_at);
    let time = ended_at.saturating_duration_since(began);
    shared.observer.metrics().run_ended(samples, time);
    // It was told to end, and it did.
    let told = || (Err(JobError::TooLong(shared.run_timeout)), Ended::Well);
    let (result, ended) = if terminated && !matches!(ended, Ended::Panicked) { told() } else { (result, ended) };
    let span = tell_of_batch(shared, index, ways, time, result.is_ok());
    ways.iter().for_each(|way| way.progress.run_ended(progress::Run { time, samples, span }));
    Ran { result, replies, run: Run { time, padding }, ended }
}

/// Tells of a run where anybody wants to know. Its span, where any of its jobs is traced.
fn tell_of_batch(shared: &Shared, index: usize, ways: &[Way], run: Duration, ok: bool) -> Option<Span> {
    let links: Links = ways.iter().filter_map(|way| way.span).collect();
    if !shared.observer.wants_batch(&links) {
        return None;
    }
    let span = (!links.is_empty()).then(Span::root);
    let (samples, jobs) = (samples_of(ways), ways.len());
    shared.observer.batch_ran(Batch { instance: index, samples, jobs, run, ok, span, links });
    span
}

fn run_of(instance: usize, ways: &[Way], run: Run) -> queue::Run {
    let length = ways.iter().map(|way| way.length).max().unwrap_or(1);
    queue::Run { instance, samples: samples_of(ways) + run.padding, length, time: run.time }
}

fn samples_of(ways: &[Way]) -> usize {
    ways.iter().map(|way| way.samples).sum()
}

fn panicked() -> JobError {
    JobError::Failed("the worker panicked".to_owned())
}

/// Runs jobs together, with so many rows that are nobody's. A panic of the runtime's bindings answers these callers and nobody
/// else.
fn run_caught(runner: &mut dyn Runner, jobs: &[&[Tensor]], padding: usize) -> (Result<Vec<Tensor>, JobError>, Ended) {
    let rows = |job: &&[Tensor]| job.first().and_then(|tensor| tensor.shape().first().copied()).unwrap_or(1);
    let result = match catch_unwind(AssertUnwindSafe(|| runner.run(&stack(jobs, padding)))) {
        Ok(Ok(outputs)) if jobs.len() > 1 || padding > 0 => {
            check_rows(outputs, jobs.iter().map(rows).sum::<usize>() + padding)
        }
        Ok(result) => result.map_err(|error| JobError::Failed(error_chain(&error))),
        Err(_) => return (Err(panicked()), Ended::Panicked),
    };
    let ended = if result.is_ok() { Ended::Well } else { Ended::Badly };
    (result, ended)
}

/// What a session that failed says on its warm-up input; nothing where that goes well, for then the input was to blame.
fn what_is_broken(runner: &mut dyn Runner, tried: &mut Option<Instant>) -> Option<String> {
    if tried.is_some_and(|tried| tried.elapsed() < BETWEEN_TRIALS) {
        return None;
    }
    *tried = Some(Instant::now());
    match catch_unwind(AssertUnwindSafe(|| runner.trial())) {
        Ok(Ok(())) => None,
        Ok(Err(error @ SessionError::Suspect(_))) => Some(error_chain(&error)),
        Ok(Err(error)) => Some(format!("it fails on its own warm-up input: {}", error_chain(&error))),
        Err(_) => Some("it panics on its own warm-up input".to_owned()),
    }
}

/// Prepares a session, or others that ask for less in its place; else says why not.
fn settled_or_another(shared: &Shared, mut runner: Box<dyn Runner>) -> Result<Box<dyn Runner>, String> {
    for _ in 0..TRIES {
        let cause = match catch_unwind(AssertUnwindSafe(|| runner.settle())) {
            Ok(Ok(())) => return Ok(runner),
            Ok(Err(error)) => error_chain(&error),
            Err(_) => "it panicked".to_owned(),
        };
        tracing::warn!(cause, "a session cannot prepare its runs; another is opened, which prepares less");
        // Two of a large model may not fit.
        drop(runner);
        runner = opened(shared, Instant::now())?;
    }
    Err("no session can prepare its runs".to_owned())
}

fn opened(shared: &Shared, broke: Instant) -> Result<Box<dyn Runner>, String> {
    match catch_unwind(AssertUnwindSafe(|| (shared.open)(broke))) {
        Ok(opened) => opened.map_err(|error| error_chain(&error)),
        Err(_) => Err("opening a session panicked".to_owned()),
    }
}

/// Opens a session in place of a broken one. `None` where that does not succeed, or the server stops.
fn open_anew(shared: &Shared, index: usize, cause: &str) -> Option<Box<dyn Runner>> {
    shared.observer.instance_broke(index, cause);
    let (mut wait, mut broke) = (FIRST_WAIT, Instant::now());
    for attempt in 1..=TRIES {
        shared.meeting.with(|queue| queue.away(index, Instant::now() + wait));
        tracing::warn!(attempt, wait_ms = wait.as_millis(), "opening a session in place of a broken one");
        if !shared.pause(wait) {
            return None;
        }
        let instance = &shared.instances[index];
        let open = || opened(shared, broke).and_then(|runner| settled_or_another(shared, runner));
        match instance.opening(open)? {
            Ok(runner) => {
                *lock(&shared.instances[index].canceller) = runner.canceller();
                shared.meeting.with(|queue| queue.gave_up(index));
                shared.observer.instance_mended(index);
                return Some(runner);
            }
            Err(error) => tracing::error!(error, "cannot open a session"),
        }
        broke = Instant::now();
        wait = (wait * 2).min(LONGEST_WAIT);
    }
    shared.instances[index].lost.store(true, Ordering::Release);
    shared.meeting.with(|queue| queue.lost(index));
    shared.observer.broken_instance_lost(index);
    shared.nobody_left();
    None
}

impl Runner for Warmed {
    fn run(&mut self, inputs: &[Stacked<'_>]) -> Result<Vec<Tensor>, SessionError> {
        let ran = self.session.run(inputs);
        self.failed_in_a_row = if ran.is_ok() { 0 } else { self.failed_in_a_row + 1 };
        ran
    }

    fn trial(&mut self) -> Result<(), SessionError> {
        if self.runs_on_zeros {
            return crate::probe::trial(&mut self.session, &self.shapes);
        }
        // Nothing is known that it should take. A client who sends nothing but bad input must not hold the model down.
        let is_suspect = self.failed_in_a_row >= SUSPECT_AFTER && self.opened.elapsed() >= BETWEEN_SUSPICIONS;
        if is_suspect { Err(SessionError::Suspect(self.failed_in_a_row)) } else { Ok(()) }
    }

    fn settle(&mut self) -> Result<(), SessionError> {
        crate::probe::settle(&mut self.session, &self.shapes, &self.buckets)
    }

    fn is_to_tend(&self) -> bool {
        self.session.is_to_tend()
    }

    fn tend(&mut self) {
        self.session.tend();
    }

    fn canceller(&self) -> Canceller {
        let canceller = self.session.canceller();
        Box::new(move || canceller.cancel())
    }

    fn memory(&self) -> Option<Memory> {
        self.session.memory()
    }
}
