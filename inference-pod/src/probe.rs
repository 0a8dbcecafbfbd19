//! What a few runs at load tell: whether a model batches, and how long each bucket takes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;

use crate::{
    session::{Port, Session, SessionError, Stacked},
    tensor::{ElementType, Tensor, elements},
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
    ports.iter().map(|port| elements(&of(port))).sum()
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
        return Batching::Off("batch_size is 1".to_owned());
    }
    match run_zeros(session, ports, shapes, 2) {
        Err(error) => Batching::Off(format!("a run of 2 samples failed: {}", error_chain(&error))),
        Ok(pair) => {
            let lost = batch_dimension_lost(session, &pair, 2);
            let again = |session: &mut Session| run_zeros(session, ports, shapes, 1).ok();
            let reason = lost.or_else(|| company_shows(session, single, &pair, again));
            reason.map_or(Batching::On(batch_size), Batching::Off)
        }
    }
}

/// Whether the output of a sample is another one where a second sample like it is in the run: in its shape, as that of a
/// matrix of similarities between all samples, or in its numbers, as that of a softmax over the batch.
fn company_shows(
    session: &mut Session,
    single: &[Tensor],
    pair: &[Tensor],
    again: impl FnOnce(&mut Session) -> Option<Vec<Tensor>>,
) -> Option<String> {
    let name = |session: &Session, at: usize| session.signature().outputs[at].name.clone();
    let changed = |(one, two): (&Tensor, &Tensor)| one.shape().get(1..) != two.shape().get(1..);
    if let Some(at) = single.iter().zip(pair).position(changed) {
        let (name, one, two) = (name(session, at), single[at].shape(), pair[at].shape());
        return Some(format!(
            "output `{name}` changes more than its first dimension with the batch: 1 sample gave shape {one:?}, 2 gave {two:?}"
        ));
    }
    let differs = |(alone, both): (&Tensor, &Tensor)| {
        let alone = alone.to_f32();
        (0..2).any(|row| differ(&alone, &both.rows(row, 1).to_f32()))
    };
    let is_float = |tensor: &Tensor| {
        matches!(tensor.element(), ElementType::F16 | ElementType::BF16 | ElementType::F32 | ElementType::F64)
    };
    let at = single.iter().zip(pair).position(|(alone, both)| is_float(alone) && differs((alone, both)))?;
    // One that draws numbers is another one each time.
    let again = again(session)?;
    let is_random = differ(&single[at].to_f32(), &again[at].to_f32());
    let name = name(session, at);
    (!is_random).then(|| format!("output `{name}` of a sample depends on the other samples of the batch"))
}

/// Whether numbers are others altogether: kernels for several samples add in another order than those for one, and single
/// numbers may fall on the other side of a bound by that.
fn differ(alone: &[f32], in_company: &[f32]) -> bool {
    const SHARE: f64 = 0.1;
    const NOISE: f64 = 1e-3;
    let finite = alone.iter().zip(in_company).filter(|(one, other)| one.is_finite() && other.is_finite());
    let (mut size, mut off) = (0.0, 0.0);
    for (one, other) in finite {
        size += f64::from(one.abs());
        off += f64::from((one - other).abs());
    }
    off > SHARE * size && off > NOISE * alone.len() as f64
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_differ_where_they_are_others_altogether() {
        assert!(differ(&[1.0, 1.0], &[0.5, 0.5]), "a softmax over two equal samples");
        assert!(differ(&[0.0, 0.0], &[0.1, 0.0]), "nothing, and something");
        assert!(!differ(&[1.0, -2.0, 3.0], &[1.01, -2.01, 3.0]), "added in another order");
        let flipped: Vec<f32> = (0..100).map(|at| if at == 7 { 0.0 } else { 1.0 }).collect();
        assert!(!differ(&[1.0; 100], &flipped), "one on the other side of a bound");
        assert!(!differ(&[0.0; 100], &[1e-4; 100]), "rounded");
        assert!(differ(&[f32::NAN, f32::NEG_INFINITY, 1.0], &[f32::NAN, f32::NEG_INFINITY, 5.0]), "the last of them");
        assert!(!differ(&[], &[]));
    }
}
