//! Where jobs meet instances: the lock and the wake-up around the [`Queue`], the worker thread of each instance, and the
//! way back of each answer.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use crate::{
    metrics::ModelMetrics,
    queue::{Key, NewJob, Queue, Refused, Taken, Waiting},
    session::{RunCanceller, Session, Stacked},
    tensor::Tensor,
    termination::error_chain,
};

/// A terminated run that has not come back by then is given up, and its instance with it.
const TERMINATION_GRACE: Duration = Duration::from_secs(5);

/// The end of the process waits no longer for a worker thread.
const STOP_PATIENCE: Duration = Duration::from_secs(2);

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
    /// Every instance of the model hangs in a run.
    #[error("no instance of the model works any more")]
    NoInstance,
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
    /// Samples that shared the run.
    pub batch_samples: usize,
}

/// A request's samples and their way back.
#[derive(Debug)]
pub struct Job {
    /// One tensor for each input of the model; the rows are the samples.
    pub inputs: Vec<Tensor>,
    /// Where the answer goes. Nobody may be listening any more.
    pub reply: Reply,
}

type Answer = Result<JobOutput, JobError>;
type Reply = oneshot::Sender<Answer>;

/// The queue of one model with all that its instances share.
pub struct Shared {
    queue: Mutex<Queue<Job>>,
    wake: Condvar,
    stopped: AtomicBool,
    instances: Vec<Instance>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    metrics: ModelMetrics,
    run_timeout: Duration,
}

/// One session's run, as the others see it.
struct Instance {
    canceller: RunCanceller,
    run: Mutex<Option<Run>>,
    lost: AtomicBool,
}

struct Run {
    began: Instant,
    terminated: bool,
    replies: Vec<Reply>,
}

/// The worker thread does not poison a lock by panicking inside; were it to, the data is still whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    /// [`Refused`] where the bytes of all requests together are over their bound.
    pub fn hold(&mut self, bytes: usize) -> Result<(), Refused> {
        if let Some(shared) = &self.shared {
            lock(&shared.queue).hold(bytes)?;
            self.held += bytes;
        }
        Ok(())
    }

    /// The request has come in whole: from now on it counts in what others would have to wait for.
    pub fn complete(&mut self) {
        if let Some(shared) = self.shared.as_ref().filter(|_| !self.complete) {
            lock(&shared.queue).complete();
            self.complete = true;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            lock(&shared.queue).release(self.held, self.complete);
        }
    }
}

/// A job on its way. Dropping it takes the job out of the queue: nothing outlives its caller.
pub struct Ticket {
    shared: Arc<Shared>,
    key: Key,
    answer: oneshot::Receiver<Answer>,
}

impl Ticket {
    /// Waits for the answer.
    ///
    /// # Errors
    /// [`JobError`], also where the worker is gone.
    pub async fn answer(&mut self) -> Answer {
        (&mut self.answer).await.unwrap_or(Err(JobError::Stopped))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        if let Some(job) = queue.remove(self.key) {
            self.shared.metrics.dequeued(job.samples, queue.samples());
        }
    }
}

impl Shared {
    /// Starts one worker thread for each session.
    ///
    /// # Errors
    /// What the system said where it could not start a thread.
    pub fn start(
        name: &str,
        queue: Queue<Job>,
        sessions: Vec<Session>,
        run_timeout: Duration,
        metrics: ModelMetrics,
    ) -> std::io::Result<Arc<Self>> {
        let instances = sessions
            .iter()
            .map(|session| Instance {
                canceller: session.canceller(),
                run: Mutex::new(None),
                lost: AtomicBool::new(false),
            })
            .collect();
        let shared = Arc::new(Self {
            queue: Mutex::new(queue),
            wake: Condvar::new(),
            stopped: AtomicBool::new(false),
            instances,
            threads: Mutex::new(Vec::new()),
            metrics,
            run_timeout,
        });
        for (index, session) in sessions.into_iter().enumerate() {
            let work_for = Arc::clone(&shared);
            let builder = std::thread::Builder::new().name(format!("{name}/{index}"));
            let thread = builder.spawn(move || work(&work_for, index, session))?;
            lock(&shared.threads).push(thread);
        }
        Ok(shared)
    }

    /// Holds a place for a request before its body is read.
    ///
    /// # Errors
    /// [`Refused`] where the queue is full.
    pub fn reserve(self: &Arc<Self>, now: Instant) -> Result<Reservation, Refused> {
        lock(&self.queue).reserve(now)?;
        Ok(Reservation { shared: Some(Arc::clone(self)), held: 0, complete: false })
    }

    /// Lets the jobs of one request in, all or none, for the place that was held.
    ///
    /// # Errors
    /// [`Refused`] where the queue is full by now.
    pub fn push(
        self: &Arc<Self>,
        mut reservation: Reservation,
        jobs: Vec<(usize, Vec<Tensor>)>,
        deadline: Instant,
        now: Instant,
    ) -> Result<Vec<Ticket>, Refused> {
        let (jobs, answers): (Vec<_>, Vec<_>) = jobs.into_iter().map(|job| self.new_job(job, deadline)).unzip();
        let samples = jobs.iter().map(|job| job.samples).sum();
        // The place is given back here, in one step with the push.
        reservation.shared = None;
        let keys = {
            let mut queue = lock(&self.queue);
            // Under the same lock as the push, so that nobody slips in between.
            queue.release(reservation.held, reservation.complete);
            let keys = queue.push(jobs, now).map_err(|(refused, _)| refused)?;
            self.metrics.enqueued(samples, queue.samples());
            keys
        };
        if keys.len() == 1 {
            self.wake.notify_one();
        } else {
            self.wake.notify_all();
        }
        let tickets = keys.into_iter().zip(answers);
        Ok(tickets.map(|(key, answer)| Ticket { shared: Arc::clone(self), key, answer }).collect())
    }

    fn new_job(
        &self,
        (samples, inputs): (usize, Vec<Tensor>),
        deadline: Instant,
    ) -> (NewJob<Job>, oneshot::Receiver<Answer>) {
        let (reply, answer) = oneshot::channel();
        let bytes = inputs.iter().map(|tensor| tensor.data().len()).sum();
        // The first dimension is the batch; what must be equal comes after it.
        let rest = |tensor: &Tensor| tensor.shape().get(1..).unwrap_or_default().to_vec();
        let shapes = inputs.iter().map(rest).collect();
        (NewJob { samples, bytes, shapes, deadline, payload: Job { inputs, reply } }, answer)
    }

    /// Blocks until there is something to do; `None` where the server stops.
    fn next(&self, instance: usize) -> Option<Taken<Job>> {
        let mut queue = lock(&self.queue);
        loop {
            if self.stopped.load(Ordering::Acquire) {
                return None;
            }
            let before = queue.samples();
            let taken = queue.take(instance, Instant::now());
            if before > queue.samples() {
                self.metrics.dequeued(before - queue.samples(), queue.samples());
                return Some(taken);
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends runs that take too long, and gives an instance up whose run does not come back. To be called now and then.
    pub fn watch_runs(&self, now: Instant) {
        for instance in &self.instances {
            let mut slot = lock(&instance.run);
            let Some(run) = slot.as_mut() else { continue };
            let running = now.saturating_duration_since(run.began);
            if running > self.run_timeout && !run.terminated {
                run.terminated = true;
                instance.canceller.cancel();
                tracing::warn!(seconds = running.as_secs_f64(), "ending a run that takes too long");
            }
            if running > self.run_timeout + TERMINATION_GRACE && !instance.lost.swap(true, Ordering::AcqRel) {
                self.metrics.instance_lost();
                tracing::error!("a terminated run did not come back; its instance is given up");
                for reply in run.replies.drain(..) {
                    let _ = reply.send(Err(JobError::TooLong(self.run_timeout)));
                }
            }
        }
    }

    /// Whether every instance still works.
    #[must_use]
    pub fn healthy(&self) -> bool {
        !self.instances.iter().any(|instance| instance.lost.load(Ordering::Acquire))
    }

    /// Whether any instance still works.
    #[must_use]
    pub fn works(&self) -> bool {
        self.instances.iter().any(|instance| !instance.lost.load(Ordering::Acquire))
    }

    /// Looks into the queue.
    pub fn with_queue<R>(&self, look: impl FnOnce(&Queue<Job>) -> R) -> R {
        look(&lock(&self.queue))
    }

    /// Ends the worker threads: answers what still waits, ends what runs, and waits a moment for the threads to be gone,
    /// for ONNX Runtime must not be torn down under a run.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
        for job in lock(&self.queue).clear() {
            let _ = job.payload.reply.send(Err(JobError::Stopped));
        }
        self.wake.notify_all();
        let end = Instant::now() + STOP_PATIENCE;
        for instance in &self.instances {
            while lock(&instance.run).is_some() && Instant::now() < end {
                instance.canceller.cancel();
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        for thread in lock(&self.threads).drain(..) {
            while !thread.is_finished() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// The life of an instance: take, run, answer, again.
fn work(shared: &Shared, index: usize, mut session: Session) {
    while let Some(Taken { batch, expired }) = shared.next(index) {
        for job in expired {
            let _ = job.payload.reply.send(Err(JobError::Expired));
        }
        if !batch.is_empty() {
            run(shared, index, &mut session, batch);
        }
        if shared.instances[index].lost.load(Ordering::Acquire) {
            // Its callers were answered, and probes say that it is gone; a restart is under way.
            return;
        }
    }
}

/// What a job needs on its way back.
struct Way {
    samples: usize,
    queue_time: Duration,
}

fn run(shared: &Shared, index: usize, session: &mut Session, batch: Vec<Waiting<Job>>) {
    let began = Instant::now();
    let samples = batch.iter().map(|job| job.samples).sum();
    let mut ways = Vec::with_capacity(batch.len());
    let mut replies = Vec::with_capacity(batch.len());
    let mut inputs = Vec::with_capacity(batch.len());
    for job in batch {
        let queue_time = began.saturating_duration_since(job.entered);
        shared.metrics.waited(queue_time);
        ways.push(Way { samples: job.samples, queue_time });
        replies.push(job.payload.reply);
        inputs.push(job.payload.inputs);
    }
    *lock(&shared.instances[index].run) = Some(Run { began, terminated: false, replies });
    shared.metrics.run_began(samples);
    let result = run_session(session, &inputs);
    let run_time = began.elapsed();
    shared.metrics.run_ended(samples, run_time);
    lock(&shared.queue).finished(index, samples, run_time);
    let Some(run) = lock(&shared.instances[index].run).take() else { return };
    let result = if run.terminated { Err(JobError::TooLong(shared.run_timeout)) } else { result };
    answer(run.replies, &ways, samples, run_time, result);
}

/// A panic of the runtime's bindings answers these callers and nobody else.
fn run_session(session: &mut Session, inputs: &[Vec<Tensor>]) -> Result<Vec<Tensor>, JobError> {
    match catch_unwind(AssertUnwindSafe(|| session.run(&stack(inputs)))) {
        Ok(result) => result.map_err(|error| JobError::Failed(error_chain(&error))),
        Err(_) => Err(JobError::Failed("the worker panicked".to_owned())),
    }
}

/// Lays the jobs' rows behind one another, input by input.
///
/// # Shapes
/// Jobs of `[n1, …rest]` and `[n2, …rest]` become `[n1 + n2, …rest]`; a lone job keeps its shape.
fn stack(jobs: &[Vec<Tensor>]) -> Vec<Stacked<'_>> {
    let Some(first) = jobs.first() else { return Vec::new() };
    let one = |input: usize| {
        let head = &first[input];
        let mut shape = head.shape().to_vec();
        if let Some(rows) = shape.first_mut() {
            *rows = jobs.iter().map(|job| job[input].shape().first().copied().unwrap_or(1)).sum();
        }
        let pieces = jobs.iter().flat_map(|job| job[input].data().pieces());
        Stacked { element: head.element(), shape, parts: pieces.map(|piece| &piece[..]).collect() }
    };
    (0..first.len()).map(one).collect()
}

/// Gives each job its own rows; where there is but one job, everything is its own.
fn answer(
    replies: Vec<Reply>,
    ways: &[Way],
    batch_samples: usize,
    run_time: Duration,
    result: Result<Vec<Tensor>, JobError>,
) {
    let alone = replies.len() == 1;
    let result = result.and_then(|outputs| {
        let broken = outputs.iter().find(|output| !alone && output.shape().first() != Some(&batch_samples));
        match broken {
            Some(output) => Err(JobError::Failed(format!(
                "the model answered {batch_samples} samples with an output of shape {:?}",
                output.shape()
            ))),
            None => Ok(outputs),
        }
    });
    let mut row = 0;
    for (reply, way) in replies.into_iter().zip(ways) {
        let own = |outputs: &Vec<Tensor>| {
            let rows = |output: &Tensor| if alone { output.clone() } else { output.rows(row, way.samples) };
            outputs.iter().map(rows).collect()
        };
        let job = result.as_ref().map(|outputs| JobOutput {
            outputs: own(outputs),
            queue_time: way.queue_time,
            run_time,
            batch_samples,
        });
        row += way.samples;
        let _ = reply.send(job.map_err(Clone::clone));
    }
}
