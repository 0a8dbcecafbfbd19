//! What a few runs at load tell: whether a model batches, and how long each bucket takes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    session::{Port, Session, SessionError, Stacked},
    tensor::{Tensor, elements},
    termination::error_chain,
    times::{BucketTimes, buckets},
};

/// Timed runs of a bucket; the median counts.
const TIMED_RUNS: usize = 3;

/// A bucket is not timed for longer than this, so that a slow model is not slow to start.
const TIMING_BUDGET: Duration = Duration::from_millis(300);

/// Whether jobs share runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Batching {
    /// They do, up to that many samples.
    On(usize),
    /// They do not, and why.
    Off(String),
}

impl Batching {
    /// Largest batch in samples.
    #[must_use]
    pub fn batch_size(&self) -> usize {
        match self {
            Self::On(size) => *size,
            Self::Off(_) => 1,
        }
    }
}

/// What was found out about a model.
#[derive(Debug)]
pub struct Probed {
    /// Whether jobs share runs.
    pub batching: Batching,
    /// Outputs of a run of one sample of zeros; none where it failed.
    pub outputs: Option<Vec<Tensor>>,
    /// Measured time of each bucket.
    pub times: BucketTimes,
}

/// Runs the model on zeros. A run that fails turns batching off and says why; it never makes a model unloadable.
pub fn probe(session: &mut Session, shapes: &BTreeMap<String, Vec<usize>>, batch_size: usize) -> Probed {
    let ports = session.signature().inputs.clone();
    let single = run_zeros(session, &ports, shapes, 1);
    let batching = match &single {
        Err(error) => Batching::Off(format!(
            "a run on zeros failed: {}; if it is for their shape, set options.warmup.shapes",
            error_chain(error)
        )),
        Ok(outputs) => batching(session, &ports, shapes, outputs, batch_size),
    };
    let mut times = BucketTimes::default();
    if single.is_ok() {
        for bucket in buckets(batching.batch_size()) {
            match time_bucket(session, &ports, shapes, bucket) {
                Ok(time) => times.set(bucket, time),
                Err(error) => {
                    // Larger buckets would fail too, for want of memory for example.
                    let smaller = times.iter().map(|(size, _)| size).max().unwrap_or(1);
                    let reason = format!("a run of {bucket} samples failed: {}", error_chain(&error));
                    let batching = if smaller > 1 { Batching::On(smaller) } else { Batching::Off(reason.clone()) };
                    tracing::warn!(largest = smaller, reason, "batches stay smaller than asked for");
                    return Probed { batching, outputs: single.ok(), times };
                }
            }
        }
    }
    Probed { batching, outputs: single.ok(), times }
}

/// Warms a further instance of a probed model up.
///
/// # Errors
/// [`SessionError`] where a bucket fails that worked for the first instance.
pub fn warm_up(
    session: &mut Session,
    shapes: &BTreeMap<String, Vec<usize>>,
    times: &BucketTimes,
) -> Result<(), SessionError> {
    let ports = session.signature().inputs.clone();
    times.iter().try_for_each(|(bucket, _)| run_zeros(session, &ports, shapes, bucket).map(drop))
}

/// Prepares a session for batches of these sizes, on the thread that will run them.
///
/// # Errors
/// [`SessionError`] where that fails; another has to be opened in its place.
pub fn settle(
    session: &mut Session,
    shapes: &BTreeMap<String, Vec<usize>>,
    buckets: &[usize],
) -> Result<(), SessionError> {
    let ports = session.signature().inputs.clone();
    buckets.iter().try_for_each(|bucket| on_zeros(&ports, shapes, *bucket, |stacked| session.settle(stacked)))
}

/// Runs the model once on zeros, to see whether its session works.
///
/// # Errors
/// [`SessionError`] where it does not.
pub fn trial(session: &mut Session, shapes: &BTreeMap<String, Vec<usize>>) -> Result<(), SessionError> {
    let ports = session.signature().inputs.clone();
    run_zeros(session, &ports, shapes, 1).map(drop)
}

/// Elements of all inputs of one sample of the warm-up; what the measured times belong to.
#[must_use]
pub fn sample_length(ports: &[Port], shapes: &BTreeMap<String, Vec<usize>>) -> usize {
    let of = |port: &Port| shape_of(port, shapes.get(&port.name).map(Vec::as_slice), 1);
    ports.iter().map(|port| elements(of(port).get(1..).unwrap_or_default())).sum()
}

fn batching(
    session: &mut Session,
    ports: &[Port],
    shapes: &BTreeMap<String, Vec<usize>>,
    single: &[Tensor],
    batch_size: usize,
) -> Batching {
    if let Some(port) = ports.iter().find(|port| port.dims.first() != Some(&None)) {
        return Batching::Off(match port.dims.first() {
            Some(Some(size)) => format!("input `{}` has a fixed first dimension of {size}", port.name),
            _ => format!("input `{}` has no batch dimension", port.name),
        });
    }
    if let Some(reason) = batch_dimension_lost(session, single, 1) {
        return Batching::Off(reason);
    }
    if batch_size == 1 {
        return Batching::On(1);
    }
    match run_zeros(session, ports, shapes, 2) {
        Err(error) => Batching::Off(format!("a run of 2 samples failed: {}", error_chain(&error))),
        Ok(pair) => match batch_dimension_lost(session, &pair, 2) {
            Some(reason) => Batching::Off(reason),
            None => Batching::On(batch_size),
        },
    }
}

fn batch_dimension_lost(session: &Session, outputs: &[Tensor], samples: usize) -> Option<String> {
    let ports = &session.signature().outputs;
    let (output, port) = outputs.iter().zip(ports).find(|(output, _)| output.shape().first() != Some(&samples))?;
    let (name, shape) = (&port.name, output.shape());
    Some(format!("output `{name}` does not keep the batch dimension: {samples} sample(s) gave shape {shape:?}"))
}

fn time_bucket(
    session: &mut Session,
    ports: &[Port],
    shapes: &BTreeMap<String, Vec<usize>>,
    bucket: usize,
) -> Result<Duration, SessionError> {
    // The first run of a size allocates and, on a GPU, picks algorithms; it says nothing of the later ones.
    run_zeros(session, ports, shapes, bucket)?;
    let start = Instant::now();
    let mut seen = Vec::with_capacity(TIMED_RUNS);
    while seen.len() < TIMED_RUNS && (seen.is_empty() || start.elapsed() < TIMING_BUDGET) {
        let began = Instant::now();
        run_zeros(session, ports, shapes, bucket)?;
        seen.push(began.elapsed());
    }
    seen.sort();
    Ok(seen[seen.len() / 2])
}

fn run_zeros(
    session: &mut Session,
    ports: &[Port],
    shapes: &BTreeMap<String, Vec<usize>>,
    samples: usize,
) -> Result<Vec<Tensor>, SessionError> {
    on_zeros(ports, shapes, samples, |stacked| session.run(stacked))
}

/// Does something with inputs of so many samples, all zeros.
fn on_zeros<R>(
    ports: &[Port],
    shapes: &BTreeMap<String, Vec<usize>>,
    samples: usize,
    act: impl FnOnce(&[Stacked<'_>]) -> R,
) -> R {
    let shape = |port: &Port| shape_of(port, shapes.get(&port.name).map(Vec::as_slice), samples);
    let inputs: Vec<(&Port, Vec<usize>, Bytes)> = ports
        .iter()
        .map(|port| {
            let shape = shape(port);
            let bytes = elements(&shape) * port.element.size_bytes();
            (port, shape, Bytes::from(vec![0; bytes]))
        })
        .collect();
    let stacked: Vec<Stacked<'_>> = inputs
        .iter()
        .map(|(port, shape, data)| Stacked { element: port.element, shape: shape.clone(), parts: vec![&data[..]] })
        .collect();
    act(&stacked)
}

/// The shape of `samples` samples: open dimensions from the options, else 1.
fn shape_of(port: &Port, options: Option<&[usize]>, samples: usize) -> Vec<usize> {
    let of = |(at, size): (usize, &Option<usize>)| match (at, size) {
        (_, Some(size)) => *size,
        (0, None) => samples,
        (at, None) => options.and_then(|shape| shape.get(at - 1)).copied().unwrap_or(1),
    };
    port.dims.iter().enumerate().map(of).collect()
}
