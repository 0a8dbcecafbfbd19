//! Where jobs meet instances: the lock and the wake-up around the [`Queue`], the worker thread of each instance, and the
//! way back of each answer.

mod answer;
mod instance;
mod meeting;
mod parts;
#[cfg(test)]
mod tests;

/// What the meeting is built of; its test builds it of something else.
mod sync {
    pub(super) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
}

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::{runtime, sync::oneshot};

pub use self::instance::Runner;
use self::{
    answer::Addressed,
    instance::{Instance, work},
    meeting::{Found, Meeting},
};
use crate::{
    integral::Reading,
    observe::{ModelObserver, Standing, progress::Progress, span::Span},
    queue::{Key, NewJob, Queue, Refused, Run, Shape, Taken},
    session::{Session, SessionError},
    tensor::{Tensor, elements},
};

/// The end of the process waits no longer for the worker threads of all models together.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

/// A thread that pauses looks this often whether the server stops.
const PAUSE_STEP: Duration = Duration::from_millis(20);

/// Why a job has no outputs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobError {
    /// It could not make its deadline any more.
    #[error("the deadline passed before the model could run")]
    Expired,
    /// ONNX Runtime failed, or the model answered something else than it promised.
    #[error("inference failed: {0}")]
    Failed(String),
    /// The run took longer than allowed and was ended.
    #[error("inference was ended after {0:?}, the longest that a run may take")]
    TooLong(Duration),
    /// The server stops.
    #[error("the server is stopping")]
    Stopped,
    /// Every instance of the model hangs in a run, or could not be opened anew.
    #[error("no instance of the model works any more")]
    NoInstance,
}

/// What the jobs of a request have from it.
#[derive(Debug, Clone)]
pub struct Due {
    /// An answer is of no more use afterwards.
    pub deadline: Instant,
    /// The request's span, where it is traced.
    pub span: Option<Span>,
    /// How far the request has come.
    pub progress: Arc<Progress>,
}

/// Why jobs were not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushError {
    /// The queue is full.
    Refused(Refused),
    /// The server stops.
    Stopped,
}

/// What a job brings back.
#[derive(Debug)]
pub struct JobOutput {
    /// The job's own rows of each output, in the model's order.
    pub outputs: Vec<Tensor>,
    /// From the queue's entrance to the start of the run.
    pub queue_time: Duration,
    /// Time of the run.
    pub run_time: Duration,
}

/// A request's samples and their way back.
#[derive(Debug)]
pub struct Job {
    /// One tensor for each input of the model; the rows are the samples.
    pub inputs: Vec<Tensor>,
    /// Where the answer goes. Nobody may be listening any more.
    pub reply: Reply,
    /// The span of its request, where it is traced.
    pub span: Option<Span>,
    /// How far its request has come.
    pub progress: Arc<Progress>,
}

type Answer = Result<JobOutput, JobError>;
type Reply = oneshot::Sender<Answer>;

/// A session that has run once.
pub struct Warmed {
    /// The session.
    pub session: Session,
    /// The shapes that it was warmed up with, by input.
    pub shapes: Arc<BTreeMap<String, Vec<usize>>>,
    /// The sizes of batches that it was warmed up with.
    pub buckets: Arc<[usize]>,
    /// Whether the model ran on its warm-up input at load; where not, a session that fails on it may work.
    pub runs_on_zeros: bool,
    /// When it was opened.
    pub opened: Instant,
    /// Runs that have failed since one that did not.
    pub failed_in_a_row: u32,
}

/// Opens what runs in an instance, in place of one that broke by then; called again where that breaks too.
pub type Open = dyn Fn(Instant) -> Result<Box<dyn Runner>, SessionError> + Send + Sync;

/// How the instances of a model work.
pub struct Terms {
    /// The model's name; its threads carry it.
    pub name: String,
    /// A run that takes longer is terminated.
    pub run_timeout: Duration,
    /// An instance whose session takes longer to be opened anew is given up.
    pub opening_timeout: Duration,
    /// Batches get one of these sizes, by rows that are nobody's; empty: they stay as they are.
    pub padded_to: Vec<usize>,
    /// What is told of the model.
    pub observer: ModelObserver,
    /// Opens a session in place of a broken one.
    pub open: Box<Open>,
}

/// The queue of one model with all that its instances share.
pub struct Shared {
    meeting: Meeting<Queue<Job>>,
    instances: Vec<Instance>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    observer: ModelObserver,
    run_timeout: Duration,
    opening_timeout: Duration,
    padded_to: Vec<usize>,
    open: Box<Open>,
    /// The loop on which those who wait for answers live.
    callers: Option<runtime::Handle>,
}

/// A place held for a request whose body is still to be read. Dropping it gives the place back.
pub struct Reservation {
    /// None once it is spent.
    shared: Option<Arc<Shared>>,
    held: usize,
    complete: bool,
}

impl Reservation {
    /// Holds room for bytes of the request's body before they are read.
    ///
    /// # Errors
    /// [`Refused`] where the bytes of all requests together, or of this one, are over their bound.
    pub fn hold(&mut self, bytes: usize) -> Result<(), Refused> {
        if let Some(shared) = &self.shared {
            shared.meeting.with(|queue| queue.hold(bytes, self.held))?;
            self.held += bytes;
        }
        Ok(())
    }

    /// The request has come in whole: from now on it counts in what others would have to wait for.
    ///
    /// # Errors
    /// [`Refused`] where it would have to wait too long by now.
    pub fn complete(&mut self) -> Result<(), Refused> {
        if let Some(shared) = self.shared.as_ref().filter(|_| !self.complete) {
            shared.meeting.with(|queue| queue.complete(Instant::now()))?;
            self.complete = true;
        }
        Ok(())
    }

    /// Judges the wait of a request that has to wait so long for something else before it comes into the queue.
    ///
    /// # Errors
    /// [`Refused`] where that is too long.
    pub fn admit_after(&self, wait: Duration) -> Result<(), Refused> {
        match &self.shared {
            Some(shared) if !wait.is_zero() => shared.meeting.with(|queue| queue.admit_after(wait)),
            _ => Ok(()),
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.meeting.with(|queue| queue.release(self.held, self.complete, Instant::now()));
        }
    }
}

/// A job on its way. Dropping it takes the job out of the queue: nothing outlives its caller.
pub struct Ticket {
    shared: Arc<Shared>,
    key: Key,
    answer: oneshot::Receiver<Answer>,
    is_answered: bool,
}

impl Ticket {
    /// Waits for the answer.
    ///
    /// # Errors
    /// [`JobError`], also where the worker is gone.
    pub async fn answer(&mut self) -> Answer {
        let answer = (&mut self.answer).await.unwrap_or(Err(JobError::Stopped));
        self.is_answered = true;
        answer
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.is_answered {
            return;
        }
        let removed = self.shared.meeting.with(|queue| queue.remove(self.key, Instant::now()));
        // Not under the lock: what it holds may take long to be given back.
        drop(removed);
    }
}

impl Shared {
    /// Starts one worker thread for each runner, and waits until they are prepared for what is to come.
    ///
    /// # Errors
    /// What the system said where it could not start a thread.
    pub fn start(terms: Terms, queue: Queue<Job>, runners: Vec<Box<dyn Runner>>) -> std::io::Result<Arc<Self>> {
        let Terms { name, run_timeout, opening_timeout, padded_to, observer, open } = terms;
        let shared = Arc::new(Self {
            meeting: Meeting::new(queue),
            instances: (0..).zip(&runners).map(|(index, runner)| Instance::new(index, runner.canceller())).collect(),
            threads: Mutex::default(),
            observer,
            run_timeout,
            opening_timeout,
            padded_to,
            open,
            callers: runtime::Handle::try_current().ok(),
        });
        let count = runners.len();
        let (settled, settles) = mpsc::sync_channel(count);
        for (index, runner) in runners.into_iter().enumerate() {
            let (work_for, settled) = (Arc::clone(&shared), settled.clone());
            let builder = std::thread::Builder::new().name(format!("{name}/{index}"));
            let thread = builder.spawn(move || work(&work_for, index, runner, settled))?;
            shared.threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread);
        }
        drop(settled);
        // Fewer where an instance was given up: then health says so.
        settles.iter().take(count).for_each(drop);
        Ok(shared)
    }

    /// Holds a place for a request before its body is read.
    ///
    /// # Errors
    /// [`Refused`] where the queue is full.
    pub fn reserve(self: &Arc<Self>, now: Instant) -> Result<Reservation, Refused> {
        self.meeting.with(|queue| queue.reserve(now))?;
        Ok(Reservation { shared: Some(Arc::clone(self)), held: 0, complete: false })
    }

    /// Lets the jobs of one request in, all or none, for the place that was held. Each job has its samples and its inputs.
    ///
    /// # Errors
    /// [`PushError`] where the queue is full by now, or closed.
    pub fn push(
        self: &Arc<Self>,
        mut reservation: Reservation,
        jobs: Vec<(usize, Vec<Tensor>)>,
        due: &Due,
        now: Instant,
    ) -> Result<Vec<Ticket>, PushError> {
        let (jobs, answers): (Vec<_>, Vec<_>) = jobs.into_iter().map(|job| new_job(job, due)).unzip();
        // The place is given back here, in one step with the push.
        reservation.shared = None;
        let pushed = self.meeting.bring(|queue| {
            // Under the same lock as the push, so that nobody slips in between.
            queue.release(reservation.held, reservation.complete, now);
            let keys = queue.push(jobs, now).map_err(|(refused, _)| PushError::Refused(refused))?;
            due.progress.entered(keys.len(), now);
            Ok(keys)
        });
        let keys = pushed.unwrap_or(Err(PushError::Stopped))?;
        let tickets = keys.into_iter().zip(answers);
        let ticket = |(key, answer)| Ticket { shared: Arc::clone(self), key, answer, is_answered: false };
        Ok(tickets.map(ticket).collect())
    }

    /// Blocks until there is something to do; `None` where the server stops.
    fn next(&self, instance: usize) -> Option<Taken<Job>> {
        self.meeting.next(|queue| {
            let before = queue.samples();
            let taken = queue.take(instance, Instant::now());
            if before > queue.samples() {
                return Found::Work(taken, queue.jobs() > 0);
            }
            taken.wait_until.map_or(Found::Nothing, Found::NothingUntil)
        })
    }

    /// Rows that a batch of so many samples lacks to one of the sizes that batches get.
    fn padding(&self, samples: usize) -> usize {
        self.padded_to.iter().find(|size| **size >= samples).map_or(0, |size| size - samples)
    }

    /// An instance has finished a run.
    fn ran(&self, run: Run) {
        self.meeting.with(|queue| {
            queue.finished(run);
            if queue.has_objective() {
                self.observer.metrics().objective_feasible(queue.objective_bucket().is_some());
            }
        });
    }

    /// Gives answers to those who wait for them. Those of a batch go to their loop together: it is woken once, not once for
    /// each of them.
    fn deliver(&self, answers: Vec<Addressed>) {
        let deliver = move |answers: Vec<Addressed>| {
            for (reply, answer) in answers {
                // Nobody may be listening any more.
                let _ = reply.send(answer);
            }
        };
        match &self.callers {
            Some(callers) if answers.len() > 1 => {
                callers.spawn(async move { deliver(answers) });
            }
            _ => deliver(answers),
        }
    }

    /// Waits, unless the server stops.
    fn pause(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        while !self.meeting.is_over() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(PAUSE_STEP));
        }
        false
    }

    /// Where no instance works any more, who waits is told now.
    fn nobody_left(&self) {
        if self.works() {
            return;
        }
        for job in self.meeting.with(|queue| queue.clear(Instant::now())) {
            let _ = job.payload.reply.send(Err(JobError::NoInstance));
        }
    }

    /// Ends runs that take too long, and gives an instance up whose run does not come back; tells how deep the queue was meanwhile. To
    /// be called now and then.
    pub fn watch(&self, now: Instant) {
        self.instances.iter().for_each(|instance| instance.watch(self, now));
        self.nobody_left();
        self.observer.metrics().was_deep(self.meeting.with(Queue::take_deepest), now);
    }

    /// Tells what there is at the moment, and what has come since it began.
    pub fn tell(&self, now: Instant) {
        let (standing, deepest) = self.meeting.with(|queue| {
            let oldest = queue.oldest().map(|since| now.saturating_duration_since(since));
            let standing = Standing {
                passed: queue.passed(),
                waiting: queue.samples(),
                decoding: queue.decoding(),
                oldest: oldest.unwrap_or_default(),
                running: 0,
            };
            (standing, queue.take_deepest())
        });
        self.observer.metrics().was_deep(deepest, now);
        self.observer.metrics().stands(Standing { running: self.running(now).level, ..standing }, now);
    }

    /// Instances that still work, and those of them that run.
    #[must_use]
    pub fn working(&self) -> (usize, usize) {
        let working = || self.instances.iter().filter(|instance| !instance.is_lost());
        (working().count(), working().filter(|instance| instance.is_running()).count())
    }

    /// Whether every instance still works.
    #[must_use]
    pub fn healthy(&self) -> bool {
        !self.instances.iter().any(Instance::is_lost)
    }

    /// Whether any instance still works.
    #[must_use]
    pub fn works(&self) -> bool {
        self.instances.iter().any(|instance| !instance.is_lost())
    }

    /// Requests that are being decoded, and samples that wait, each with their integral over time up to now.
    #[must_use]
    pub fn decoding_and_waiting(&self, now: Instant) -> (Reading, Reading) {
        self.meeting.with(|queue| (queue.decoding_over_time(now), queue.samples_over_time(now)))
    }

    /// Samples that run on all instances together, with their integral over time up to now.
    #[must_use]
    pub fn running(&self, now: Instant) -> Reading {
        let readings = self.instances.iter().map(|instance| instance.samples_over_time(now));
        readings.fold(Reading::default(), |sum, one| Reading {
            level: sum.level + one.level,
            seconds: sum.seconds + one.seconds,
        })
    }

    /// Looks into the queue.
    pub fn with_queue<R>(&self, look: impl FnOnce(&Queue<Job>) -> R) -> R {
        self.meeting.with(|queue| look(queue))
    }

    /// Ends the worker threads of one model; see [`stop`].
    pub fn stop(&self) {
        stop(&[self]);
    }

    /// Lets nothing in any more, and answers what still waits.
    fn close(&self) {
        for job in self.meeting.end(|queue| queue.clear(Instant::now())) {
            let _ = job.payload.reply.send(Err(JobError::Stopped));
        }
    }

    /// Ends what runs. Whether all threads are gone.
    fn has_ended(&self) -> bool {
        self.instances.iter().filter(|instance| instance.is_running()).for_each(Instance::cancel);
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).iter().all(JoinHandle::is_finished)
    }
}

/// Ends the worker threads of models: answers what still waits, ends what runs, and waits a moment for the threads to be gone,
/// for ONNX Runtime must not be torn down under a run. A model that hangs takes none of the others' time.
pub fn stop(models: &[&Shared]) {
    models.iter().for_each(|model| model.close());
    let end = Instant::now() + STOP_PATIENCE;
    // Each of them is asked, for those that run are ended by it.
    while models.iter().filter(|model| !model.has_ended()).count() > 0 && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn new_job((samples, inputs): (usize, Vec<Tensor>), due: &Due) -> (NewJob<Job>, oneshot::Receiver<Answer>) {
    let (reply, answer) = oneshot::channel();
    let bytes = inputs.iter().map(|tensor| tensor.data().len()).sum();
    // The first dimension is the batch; what must be equal comes after it.
    let mut shape = Shape::new();
    let mut length = 0;
    for tensor in &inputs {
        let rest = tensor.shape().get(1..).unwrap_or_default();
        // Each with its number of dimensions, for [2] and [3] are not [2, 3].
        shape.push(rest.len());
        shape.extend_from_slice(rest);
        // All of it where the model does not batch: then it is one sample, whatever its first dimension is.
        length += elements(tensor.shape()) / samples.max(1);
    }
    let payload = Job { inputs, reply, span: due.span, progress: Arc::clone(&due.progress) };
    (NewJob { samples, bytes, shape, length, deadline: due.deadline, payload }, answer)
}
