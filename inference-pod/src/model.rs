//! A model: loaded, probed, warmed up, with its queue and its instances.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use crds::{
    load::ModelLoad,
    serving::{ExecutionProvider, ModelConfig, ModelOptions, Task},
};

use crate::{
    classify::{Classes, are_probabilities},
    decode::{ImageInput, ImageInputError},
    files::{FilesError, ModelFiles},
    observe::{Bounds, ModelObserver, Observer, health::ModelFacts, metrics::ModelMetrics},
    probe::{self, Batching, Probed},
    queue::{Limits, Queue, Refused},
    session::{Port, Runtime, Session, SessionError, SessionFactory, SessionSettings, Signature},
    tensor::Tensor,
    times::{BucketTimes, Times},
    worker::{Due, JobError, PushError, Reservation, Runner, Shared, Terms, Warmed},
};

/// Classes in an answer where nobody says otherwise.
const DEFAULT_TOP_K: u32 = 5;

/// Opening a session anew takes no more than so many times what loading the model took, and a long run: else it hangs.
const SLOWER_OPENING: u32 = 10;

/// Why a model cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Its files.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Its graph.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// Its input takes no pictures.
    #[error(transparent)]
    ImageInput(#[from] ImageInputError),
    /// Its outputs are no scores of classes.
    #[error("task image-classification takes a model whose output is [samples, classes]; {0}")]
    NoScores(String),
    /// The labels do not fit the output.
    #[error("expected {classes} labels, one for each class of the model, got {labels}")]
    Labels {
        /// Classes of the model.
        classes: usize,
        /// Labels given.
        labels: usize,
    },
    /// Images need a batch dimension, or a fixed one of 1.
    #[error("task image-classification takes a model with a batch dimension, or a fixed one of 1; {0}")]
    FixedBatch(String),
    /// No thread for an instance.
    #[error("cannot start a worker thread")]
    Thread(#[from] std::io::Error),
}

impl LoadError {
    /// The condition reason that the operator shows for it.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Files(FilesError::Options(_) | FilesError::LabelsElsewhere { .. })
            | Self::ImageInput(ImageInputError::Option { .. }) => "InvalidOptions",
            Self::Session(SessionError::Provider { .. } | SessionError::Further { .. }) => "ProviderUnavailable",
            Self::Session(SessionError::Library { .. }) | Self::Thread(_) => "ServerFailed",
            Self::Files(_)
            | Self::Session(_)
            | Self::ImageInput(_)
            | Self::NoScores(_)
            | Self::Labels { .. }
            | Self::FixedBatch(_) => "InvalidModel",
        }
    }
}

/// Why a request's inputs do not fit a model. Says which, what was expected and what came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidInput(pub String);

/// Why a prediction was not made. Knows nothing of HTTP.
#[derive(Debug, thiserror::Error)]
pub enum PredictError {
    /// The inputs do not fit the model.
    #[error(transparent)]
    Invalid(#[from] InvalidInput),
    /// More samples than the queue can ever hold.
    #[error("request has {samples} samples; expected at most {limit}")]
    TooManySamples {
        /// Samples of the request.
        samples: usize,
        /// The queue's bound.
        limit: usize,
    },
    /// The queue is full.
    #[error("queue is full")]
    Refused(Refused),
    /// The job failed.
    #[error(transparent)]
    Job(#[from] JobError),
}

impl From<PushError> for PredictError {
    fn from(error: PushError) -> Self {
        match error {
            PushError::Refused(refused) => Self::Refused(refused),
            PushError::Stopped => Self::Job(JobError::Stopped),
        }
    }
}

/// What a request's samples became.
#[derive(Debug)]
pub struct Predicted {
    /// The outputs in the model's order, the rows of all samples together.
    pub outputs: Vec<Tensor>,
    /// Longest wait of its samples.
    pub queue_time: Duration,
    /// Longest run of its samples.
    pub run_time: Duration,
}

/// What the whole process gives to its models.
#[derive(Clone)]
pub struct Surroundings<'a> {
    /// The loaded library.
    pub runtime: &'a Runtime,
    /// Threads inside one operator, for each instance.
    pub threads: usize,
    /// Whether those may spin.
    pub spinning: bool,
    /// Largest image.
    pub max_pixels: u64,
    /// What is told of it.
    pub observer: &'a Observer,
}

/// A model ready to serve.
pub struct Model {
    /// Name in URLs and metrics.
    pub name: String,
    /// The graph's file.
    pub file: PathBuf,
    /// Size of that file.
    pub bytes: u64,
    /// What it is for.
    pub task: Task,
    /// What goes in and comes out.
    pub signature: Signature,
    /// The provider really in use.
    pub provider: ExecutionProvider,
    /// Whether jobs share runs.
    pub batching: Batching,
    /// How pictures become samples, for a model that takes them.
    pub image: Option<ImageInput>,
    /// How scores become predictions, for a classifier.
    pub classes: Option<Classes>,
    /// Instances.
    pub instances: usize,
    /// Most samples of its queue, and so of a request.
    pub queue_size: usize,
    /// Most bytes of samples that may wait; a body that is longer has no room, ever.
    pub queue_bytes: u64,
    /// Time from file to session.
    pub load_time: Duration,
    /// Time of probe and warm-up.
    pub warmup_time: Duration,
    /// What is told of it.
    pub observer: ModelObserver,
    /// The provider that it was to use.
    wanted_provider: ExecutionProvider,
    request_timeout: Duration,
    bounds: Bounds,
    shared: Arc<Shared>,
}

/// Opens and warms up sessions of a model.
struct Opener {
    factory: SessionFactory,
    shapes: Arc<BTreeMap<String, Vec<usize>>>,
    times: BucketTimes,
    /// Whether the model ran on its warm-up input.
    runs_on_zeros: bool,
}

impl Opener {
    fn open(&self) -> Result<Box<dyn Runner>, SessionError> {
        let mut session = self.factory.open()?;
        // What is shared has been warmed up by whom it is shared with.
        if !session.shares_its_graph() {
            probe::warm_up(&mut session, &self.shapes, &self.times)?;
        }
        Ok(self.warmed(session))
    }

    fn warmed(&self, session: Session) -> Box<dyn Runner> {
        let buckets = self.times.iter().map(|(bucket, _)| bucket).collect();
        let shapes = Arc::clone(&self.shapes);
        let runs_on_zeros = self.runs_on_zeros;
        Box::new(Warmed { session, shapes, buckets, runs_on_zeros, opened: Instant::now(), failed_in_a_row: 0 })
    }
}

impl Model {
    /// Loads, probes and warms up.
    ///
    /// # Errors
    /// [`LoadError`] where the model cannot be served. A failing probe is no error: it turns batching off.
    pub fn load(config: &ModelConfig, around: &Surroundings<'_>) -> Result<Self, LoadError> {
        let files = ModelFiles::find(&config.path)?;
        let options = files.options(&config.options)?;
        let settings = SessionSettings {
            threads: around.threads,
            spinning: around.spinning,
            providers: config.execution_providers.clone(),
            cuda: options.cuda.clone(),
        };
        let began = Instant::now();
        let mut factory = SessionFactory::new(around.runtime, &files.model, settings);
        let mut session = factory.open()?;
        let load_time = began.elapsed();
        let image = image_input(config.task, &session, &options, around.max_pixels)?;

        let began = Instant::now();
        let shapes = warmup_shapes(&session, image.as_ref(), &options);
        let probed = probe::probe(&mut session, &shapes, config.batch_size as usize);
        if image.is_some() {
            check_image_batch(&session, &probed.batching)?;
        }
        let classes = match config.task {
            Task::ImageClassification => {
                Some(classes(&session, || files.labels(&options, &config.options), &options, &probed)?)
            }
            _ => None,
        };
        let (signature, provider) = (session.signature().clone(), session.provider());
        // What is told of the model is told of all its instances.
        factory.keep_to(provider);
        let (shapes, runs_on_zeros) = (Arc::new(shapes), probed.outputs.is_some());
        let open = Opener { factory, shapes, times: probed.times.clone(), runs_on_zeros };
        let mut runners = vec![open.warmed(session)];
        for _ in 1..config.instances {
            runners.push(open.open()?);
        }
        // On a GPU each new shape costs time and memory.
        let pads = provider == ExecutionProvider::Cuda && matches!(probed.batching, Batching::On(_));
        let padded_to = if pads { probed.times.iter().map(|(bucket, _)| bucket).collect() } else { Vec::new() };

        let instances = runners.len();
        let wanted_provider = config.execution_providers.first().copied().unwrap_or(ExecutionProvider::Cpu);
        let limits = Limits {
            max_wait: Duration::from_millis(config.max_queue_ms),
            samples: config.queue_size as usize,
            bytes: usize::try_from(config.queue_bytes).unwrap_or(usize::MAX),
            batch_size: probed.batching.batch_size(),
            is_padded: pads,
            batch_timeout: Duration::from_millis(config.batch_timeout_ms),
            latency_objective: config.latency_objective_ms.map(Duration::from_millis),
            run_timeout: Duration::from_millis(config.run_timeout_ms),
        };
        let bounds = Bounds {
            batch_size: limits.batch_size,
            max_wait: limits.max_wait,
            latency_objective: limits.latency_objective,
        };
        let observer = around.observer.model(&config.name, &bounds);
        observer.metrics().provider_in_use(provider.as_str(), provider != wanted_provider);
        let times = Times::warmed_up(probe::sample_length(&signature.inputs, &open.shapes), probed.times);
        let queue = Queue::new(limits, times, instances);
        if queue.has_objective() {
            observer.metrics().objective_feasible(queue.objective_bucket().is_some());
        }
        let terms = Terms {
            name: config.name.clone(),
            run_timeout: limits.run_timeout,
            // The file is read anew, by a machine that may be busier.
            opening_timeout: limits.run_timeout + SLOWER_OPENING * (load_time + began.elapsed()),
            padded_to,
            observer: observer.clone(),
            open: Box::new(move |broke| {
                // What broke may be what was shared.
                open.factory.part(broke);
                open.open()
            }),
        };
        let shared = Shared::start(terms, queue, runners)?;
        let warmup_time = began.elapsed();
        observer.loaded(load_time, warmup_time, instances, provider.as_str(), &format!("{:?}", probed.batching));
        Ok(Self {
            name: config.name.clone(),
            bytes: files.bytes()?,
            file: files.model,
            task: config.task,
            signature,
            provider,
            batching: probed.batching,
            image,
            classes,
            instances,
            load_time,
            warmup_time,
            observer,
            wanted_provider,
            request_timeout: Duration::from_millis(config.request_timeout_ms),
            queue_size: config.queue_size as usize,
            queue_bytes: config.queue_bytes,
            bounds,
            shared,
        })
    }

    /// A request that has no answer by then is of no more use.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        self.request_timeout
    }

    /// Measured time of each bucket, for samples like those that ran last.
    #[must_use]
    pub fn bucket_times(&self) -> Vec<(usize, Duration)> {
        self.shared.with_queue(|queue| queue.times().recent().map(|times| times.iter().collect()).unwrap_or_default())
    }

    /// The latency that the choice of batches is to keep.
    #[must_use]
    pub fn latency_objective(&self) -> Option<Duration> {
        self.bounds.latency_objective
    }

    /// Its numbers.
    #[must_use]
    pub fn metrics(&self) -> &ModelMetrics {
        self.observer.metrics()
    }

    /// Whether a word in a message is the model's own, not its client's.
    #[must_use]
    pub fn knows(&self, word: &str) -> bool {
        let mut ports = self.signature.inputs.iter().chain(&self.signature.outputs);
        self.name == word || ports.any(|port| port.name == word || port.element.datatype() == word)
    }

    /// What `/health/detailed` is made of.
    #[must_use]
    pub fn facts(&self, now: Instant) -> ModelFacts {
        let (available, busy) = self.shared.working();
        let (queued, predicted_wait, longest_wait, bucket) = self.shared.with_queue(|queue| {
            (queue.samples(), queue.predicted_wait(now), queue.longest_wait(), queue.objective_bucket())
        });
        ModelFacts {
            name: self.name.clone(),
            instances: self.instances,
            available,
            busy,
            queued,
            predicted_wait,
            longest_wait,
            seen: self.observer.seen(now),
            latency_objective: self.bounds.latency_objective,
            objective_feasible: bucket.is_some(),
            memory_bytes: self.observer.memory_bytes(),
            provider: self.provider.as_str(),
            wanted_provider: self.wanted_provider.as_str(),
        }
    }

    /// What `/load` says of it; with how many requests were answered `within` that latency, where one is named.
    #[must_use]
    pub fn load_at(&self, now: Instant, within: Option<Duration>) -> ModelLoad {
        let (decoding, waiting) = self.shared.decoding_and_waiting(now);
        let running = self.shared.running(now);
        let answered = self.observer.answered(within);
        ModelLoad {
            name: self.name.clone(),
            decoding: decoding.level as u64,
            queued: waiting.level as u64,
            inflight: running.level as u64,
            decoding_request_seconds: decoding.seconds,
            queued_sample_seconds: waiting.seconds,
            inflight_sample_seconds: running.seconds,
            refused_total: self.observer.refused_total(),
            answered_total: answered.total,
            within_total: answered.within,
            expired_total: answered.expired,
            instances: self.shared.working().0 as u64,
            load_seconds: (self.load_time + self.warmup_time).as_secs_f64(),
        }
    }

    /// Its queue and instances.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Holds a place in the queue before the body of a request is read.
    ///
    /// # Errors
    /// [`PredictError::Refused`] where the queue is full.
    pub fn reserve(&self, now: Instant) -> Result<Reservation, PredictError> {
        // Asked first, for that it came is counted there.
        let reservation = self.shared.reserve(now).map_err(PredictError::Refused);
        if self.shared.works() { reservation } else { Err(JobError::NoInstance.into()) }
    }

    /// Runs a request's inputs and waits for the outputs. `groups` are run as if each were a request of its own: one for
    /// each picture, a single one for a request of tensors; a group has one tensor for each input of the model.
    ///
    /// A group larger than a batch is cut into several jobs; all come in together or not at all. Dropping the future takes
    /// what still waits out of the queue.
    ///
    /// # Errors
    /// [`PredictError`].
    pub async fn predict(
        &self,
        reservation: Reservation,
        groups: Vec<Vec<Tensor>>,
        due: &Due,
    ) -> Result<Predicted, PredictError> {
        let mut jobs = Vec::with_capacity(groups.len());
        let mut total = 0_usize;
        for inputs in groups {
            let samples = self.check(&inputs)?;
            total = total.saturating_add(samples);
            self.check_count(total)?;
            self.cut(inputs, samples, &mut jobs);
        }
        let mut tickets = self.shared.push(reservation, jobs, due, Instant::now())?;
        let mut parts = Vec::with_capacity(tickets.len());
        for ticket in &mut tickets {
            parts.push(ticket.answer().await?);
        }
        let queue_time = parts.iter().map(|part| part.queue_time).max().unwrap_or_default();
        let run_time = parts.iter().map(|part| part.run_time).max().unwrap_or_default();
        let outputs = joined(parts.into_iter().map(|part| part.outputs).collect())?;
        Ok(Predicted { outputs, queue_time, run_time })
    }

    /// Whether a request may have that many samples: no more than the queue can ever hold.
    fn check_count(&self, samples: usize) -> Result<(), PredictError> {
        let limit = self.queue_size;
        if samples > limit { Err(PredictError::TooManySamples { samples, limit }) } else { Ok(()) }
    }

    /// Whether inputs fit the model; how many samples they are.
    ///
    /// # Errors
    /// [`InvalidInput`] with the input, what was expected and what came.
    pub fn check(&self, inputs: &[Tensor]) -> Result<usize, InvalidInput> {
        let ports = &self.signature.inputs;
        if inputs.len() != ports.len() {
            return Err(InvalidInput(format!("expected {} inputs, got {}", ports.len(), inputs.len())));
        }
        let mut samples = None;
        for (port, tensor) in ports.iter().zip(inputs) {
            check_port(port, tensor)?;
            let rows = tensor.shape().first().copied().unwrap_or(1);
            if matches!(self.batching, Batching::Off(_)) {
                // What comes together runs together, whatever the sizes say: of nothing there may be an answer, too.
                continue;
            }
            if tensor.shape().contains(&0) {
                return Err(InvalidInput(format!(
                    "input `{}`: expected at least one sample and no size of 0, got shape {:?}",
                    port.name,
                    tensor.shape()
                )));
            }
            if *samples.get_or_insert(rows) != rows {
                let first = samples.unwrap_or_default();
                let name = &port.name;
                return Err(InvalidInput(format!(
                    "input `{name}`: expected {first} samples as in the first input, got {rows}"
                )));
            }
        }
        Ok(samples.unwrap_or(1))
    }

    fn cut(&self, inputs: Vec<Tensor>, samples: usize, jobs: &mut Vec<(usize, Vec<Tensor>)>) {
        let size = self.batching.batch_size();
        if samples <= size {
            jobs.push((samples, inputs));
            return;
        }
        for start in (0..samples).step_by(size) {
            let count = size.min(samples - start);
            jobs.push((count, inputs.iter().map(|tensor| tensor.rows(start, count)).collect()));
        }
    }
}

fn check_port(port: &Port, tensor: &Tensor) -> Result<(), InvalidInput> {
    if port.element != tensor.element() {
        return Err(InvalidInput(format!(
            "input `{}`: expected datatype {}, got {}",
            port.name,
            port.element.datatype(),
            tensor.element().datatype()
        )));
    }
    let fits = port.dims.len() == tensor.shape().len()
        && port.dims.iter().zip(tensor.shape()).all(|(want, got)| want.is_none_or(|want| want == *got));
    if fits {
        return Ok(());
    }
    let expected = shown(&port.dims);
    Err(InvalidInput(format!("input `{}`: expected shape [{expected}], got {:?}", port.name, tensor.shape())))
}

fn image_input(
    task: Task,
    session: &Session,
    options: &ModelOptions,
    max_pixels: u64,
) -> Result<Option<ImageInput>, LoadError> {
    if task != Task::ImageClassification {
        return Ok(None);
    }
    let [input] = session.signature().inputs.as_slice() else {
        let count = session.signature().inputs.len();
        return Err(ImageInputError::Shape(format!("one of {count}")).into());
    };
    Ok(Some(ImageInput::new(input, &options.image, max_pixels)?))
}

/// The options' shapes; for pictures, what their decoding makes.
fn warmup_shapes(
    session: &Session,
    image: Option<&ImageInput>,
    options: &ModelOptions,
) -> BTreeMap<String, Vec<usize>> {
    let mut shapes = options.warmup.shapes.clone();
    if let (Some(image), [input]) = (image, session.signature().inputs.as_slice()) {
        shapes.insert(input.name.clone(), image.sample_shape());
    }
    shapes
}

fn check_image_batch(session: &Session, batching: &Batching) -> Result<(), LoadError> {
    let first = session.signature().inputs.first().and_then(|port| port.dims.first().copied());
    match (batching, first) {
        (Batching::Off(reason), Some(Some(size))) if size != 1 => Err(LoadError::FixedBatch(reason.clone())),
        _ => Ok(()),
    }
}

fn classes(
    session: &Session,
    labels: impl FnOnce() -> Result<Vec<String>, FilesError>,
    options: &ModelOptions,
    probed: &Probed,
) -> Result<Classes, LoadError> {
    let Some(port) = session.signature().outputs.first() else {
        return Err(LoadError::NoScores("it has no output".to_owned()));
    };
    // A run on zeros shows the output as it is; where it failed, what the graph declares must do.
    let scores = probed.outputs.as_ref().and_then(|outputs| outputs.first());
    let shape: Vec<Option<usize>> = match scores {
        Some(scores) => scores.shape().iter().copied().map(Some).collect(),
        None => port.dims.clone(),
    };
    let count = class_count(&shape)?;
    let labels = labels()?;
    if let Some(classes) = count.filter(|count| !labels.is_empty() && labels.len() != *count) {
        return Err(LoadError::Labels { classes, labels: labels.len() });
    }
    let are_logits = || scores.is_none_or(|scores| !are_probabilities(&scores.to_f32()));
    let softmax = options.softmax.unwrap_or_else(are_logits);
    Ok(Classes { labels, top_k: options.top_k.unwrap_or(DEFAULT_TOP_K) as usize, softmax })
}

/// The classes of one sample's scores, none where their number is open.
///
/// # Errors
/// [`LoadError::NoScores`] where the shape is not `[1, classes]`, with or without further dimensions of 1: what has more
/// (`[1, 84, 8400]` of a detector) tells something else.
fn class_count(shape: &[Option<usize>]) -> Result<Option<usize>, LoadError> {
    let may_be_one = |size: &Option<usize>| size.is_none_or(|size| size == 1);
    match shape {
        [samples, classes, further @ ..] if may_be_one(samples) && further.iter().all(may_be_one) => Ok(*classes),
        _ => Err(LoadError::NoScores(format!("one sample gave shape [{}]", shown(shape)))),
    }
}

/// Sizes as people write them; -1 for one that is open.
fn shown(shape: &[Option<usize>]) -> String {
    let sizes: Vec<String> =
        shape.iter().map(|size| size.map_or_else(|| "-1".to_owned(), |size| size.to_string())).collect();
    sizes.join(", ")
}

/// Puts the rows of several jobs behind one another; the outputs of one job stay as they are.
fn joined(mut parts: Vec<Vec<Tensor>>) -> Result<Vec<Tensor>, JobError> {
    if parts.len() == 1 {
        return Ok(parts.remove(0));
    }
    let outputs = parts.first().map_or(0, Vec::len);
    (0..outputs).map(|output| joined_output(&parts, output)).collect()
}

fn joined_output(parts: &[Vec<Tensor>], output: usize) -> Result<Tensor, JobError> {
    let failed = |message: String| JobError::Failed(message);
    let first = &parts[0][output];
    let mut shape = first.shape().to_vec();
    let mut data = Vec::with_capacity(parts.len());
    for part in parts {
        if part[output].shape().get(1..) != first.shape().get(1..) {
            return Err(failed(format!(
                "the model answered parts of the request with shapes {:?} and {:?}",
                first.shape(),
                part[output].shape()
            )));
        }
        data.extend_from_slice(part[output].data().pieces());
    }
    if let Some(rows) = shape.first_mut() {
        *rows = parts.iter().map(|part| part[output].shape()[0]).sum();
    }
    Tensor::new(first.element(), shape, data).map_err(|error| failed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_have_one_dimension_of_classes_and_no_other() {
        let count = |shape: &[usize]| {
            let shape: Vec<_> = shape.iter().copied().map(Some).collect();
            class_count(&shape).map_err(|error| error.to_string())
        };
        assert_eq!(count(&[1, 1000]), Ok(Some(1000)));
        assert_eq!(count(&[1, 1000, 1, 1]), Ok(Some(1000)));
        let detector = count(&[1, 84, 8400]).unwrap_err();
        assert!(detector.ends_with("one sample gave shape [1, 84, 8400]"), "{detector}");
        for shape in [[2, 10].as_slice(), &[1, 10, 1, 7], &[10], &[]] {
            count(shape).unwrap_err();
        }
        assert_eq!(class_count(&[None, Some(10), None]).unwrap(), Some(10), "what is declared and not known");
        class_count(&[None, None, Some(7)]).unwrap_err();
    }
}
