//! What a few runs at load tell: whether a model batches, and how long each bucket takes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::{
    session::{Port, Session, SessionError, Stacked},
    tensor::{ElementType, Tensor, elements},
    termination::error_chain,
    times::{BucketTimes, buckets},
};

/// Timed runs of a bucket. The shortest counts: whatever else the machine does at load adds to a run and takes nothing off. A time that
/// is too short is corrected by the first few, one that is too long keeps the bucket from running.
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
    if let Some(reason) = named_apart(ports).or_else(|| batch_dimension_lost(session, single, 1)) {
        return Batching::Off(reason);
    }
    if batch_size == 1 {
        return Batching::Off("batch_size is 1".to_owned());
    }
    let mut failure = String::new();
    // Whole numbers may be places in a table of one row, or sizes; and some models take nothing but zeros.
    let has_whole = ports.iter().any(|port| !is_float(port.element));
    for fill in [Fill::Numbers, Fill::Floats, Fill::Zeros] {
        if fill == Fill::Floats && !has_whole {
            continue;
        }
        match company_shows(session, ports, shapes, fill) {
            Ok(reason) => return reason.map_or(Batching::On(batch_size), Batching::Off),
            Err(error) => failure = error_chain(&error),
        }
    }
    Batching::Off(format!("a run on numbers failed: {failure}"))
}

/// Why the first dimensions of inputs are no batch: by their names they are several things, as queries and documents.
fn named_apart(ports: &[Port]) -> Option<String> {
    let mut named = ports.iter().filter_map(|port| Some((port, port.batch_name.as_ref()?)));
    let (first, name) = named.next()?;
    let (other, other_name) = named.find(|(_, other)| *other != name)?;
    Some(format!(
        "the first dimensions of the inputs `{}` and `{}` have different names, `{name}` and `{other_name}`",
        first.name, other.name
    ))
}

/// What samples hold in a trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fill {
    /// Floats from 0 to below 1; whole numbers and truth values of 0 and 1.
    Numbers,
    /// The same, but for whole numbers, which are 0.
    Floats,
    /// Zeros.
    Zeros,
}

/// Where inputs are put together, as queries and documents are, chance may hide that; so often it is tried.
const DRAWS: u64 = 4;

/// Whether the output of a sample is another one where a second sample is in the run: in its shape, as that of a matrix of similarities
/// between all samples, or in its values, as that of a softmax or a sum over the batch. The samples are not alike, else what is made of
/// both may look like what is made of one.
fn company_shows(
    session: &mut Session,
    ports: &[Port],
    shapes: &BTreeMap<String, Vec<usize>>,
    fill: Fill,
) -> Result<Option<String>, SessionError> {
    let began = Instant::now();
    let draws = if ports.len() > 1 && fill != Fill::Zeros { DRAWS } else { 1 };
    for draw in 0..draws {
        if draw > 0 && began.elapsed() > TIMING_BUDGET {
            break;
        }
        let run = |session: &mut Session, rows: &[u64]| on(ports, shapes, (fill, draw), rows, |it| session.run(it));
        let alone = [run(session, &[0])?, run(session, &[1])?];
        // In both orders: one that sorts its rows changes nothing of those that are sorted.
        for order in [[0, 1], [1, 0]] {
            // Each by itself went well, as the models' callers will find.
            let both = match run(session, &order.map(|row| row as u64)) {
                Ok(both) => both,
                Err(error) => return Ok(Some(format!("a run of 2 samples failed: {}", error_chain(&error)))),
            };
            if let Some(reason) = alone.iter().find_map(|alone| shape_shows(session, alone, &both)) {
                return Ok(Some(reason));
            }
            for (at, both) in both.iter().enumerate() {
                let differs = |(row, sample): (usize, &usize)| differ(&alone[*sample][at], &both.rows(row, 1));
                let Some(sample) = order.iter().enumerate().find(|it| differs(*it)).map(|(_, sample)| *sample) else {
                    continue;
                };
                // One that draws numbers is another one each time.
                let again = run(session, &[sample as u64])?;
                if !differ(&alone[sample][at], &again[at]) {
                    let name = &session.signature().outputs[at].name;
                    return Ok(Some(format!("output `{name}` of a sample depends on the other samples of the batch")));
                }
            }
        }
    }
    Ok(None)
}

fn shape_shows(session: &Session, alone: &[Tensor], both: &[Tensor]) -> Option<String> {
    let lost = batch_dimension_lost(session, alone, 1).or_else(|| batch_dimension_lost(session, both, 2));
    lost.or_else(|| {
        let changed = |(one, two): (&Tensor, &Tensor)| one.shape().get(1..) != two.shape().get(1..);
        let at = alone.iter().zip(both).position(changed)?;
        let (name, one, two) = (&session.signature().outputs[at].name, alone[at].shape(), both[at].shape());
        Some(format!(
            "output `{name}` changes more than its first dimension with the batch: 1 sample gave shape {one:?}, 2 gave {two:?}"
        ))
    })
}

/// Whether values are others altogether: kernels for several samples add in another order than those for one, and single
/// numbers may fall on the other side of a bound by that.
fn differ(alone: &Tensor, in_company: &Tensor) -> bool {
    are_others(&alone.to_f32(), &in_company.to_f32(), is_float(alone.element()))
}

fn is_float(element: ElementType) -> bool {
    matches!(element, ElementType::F16 | ElementType::BF16 | ElementType::F32 | ElementType::F64)
}

fn are_others(alone: &[f32], in_company: &[f32], is_float: bool) -> bool {
    const SHARE: f64 = 0.1;
    // Of probabilities of ten thousand classes each is about this times a hundred.
    const NOISE: f64 = 1e-6;
    let (mut size, mut off, mut others) = (0.0, 0.0, 0.0);
    for (one, other) in alone.iter().zip(in_company) {
        if one.is_finite() && other.is_finite() {
            size += f64::from(one.abs());
            off += f64::from((one - other).abs());
        }
        let same = if is_float { one.is_finite() == other.is_finite() } else { one == other };
        others += f64::from(u8::from(!same));
    }
    let count = alone.len() as f64;
    others > SHARE * count || is_float && off > SHARE * size && off > NOISE * count
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
    let mut shortest = Duration::MAX;
    for run in 0..TIMED_RUNS {
        if run > 0 && start.elapsed() > TIMING_BUDGET {
            break;
        }
        let began = Instant::now();
        run_zeros(session, ports, shapes, bucket)?;
        shortest = shortest.min(began.elapsed());
    }
    Ok(shortest)
}

fn run_zeros(
    session: &mut Session,
    ports: &[Port],
    shapes: &BTreeMap<String, Vec<usize>>,
    samples: usize,
) -> Result<Vec<Tensor>, SessionError> {
    on_zeros(ports, shapes, samples, |stacked| session.run(stacked))
}

/// Does something with inputs of these samples.
fn on<R>(
    ports: &[Port],
    shapes: &BTreeMap<String, Vec<usize>>,
    (fill, draw): (Fill, u64),
    rows: &[u64],
    act: impl FnOnce(&[Stacked<'_>]) -> R,
) -> R {
    let shape = |port: &Port, samples| shape_of(port, shapes.get(&port.name).map(Vec::as_slice), samples);
    let inputs: Vec<(&Port, Vec<Vec<u8>>)> = (0..)
        .zip(ports)
        .map(|(at, port)| {
            let count = elements(&shape(port, 1));
            let row = |row: &u64| sample(port.element, count, fill, [draw, at, *row]);
            (port, rows.iter().map(row).collect())
        })
        .collect();
    let stacked: Vec<Stacked<'_>> = inputs
        .iter()
        .map(|(port, data)| Stacked {
            element: port.element,
            shape: shape(port, rows.len()),
            parts: data.iter().map(Vec::as_slice).collect(),
        })
        .collect();
    act(&stacked)
}

/// An input of a sample, the same each time: of whole numbers each is another one in the next row.
fn sample(element: ElementType, count: usize, fill: Fill, [draw, input, row]: [u64; 3]) -> Vec<u8> {
    if fill == Fill::Zeros {
        // What is timed is the run.
        return vec![0; count * element.size_bytes()];
    }
    let mut of_row = fastrand::Rng::with_seed(draw << 32 | input << 8 | row);
    let mut of_all = fastrand::Rng::with_seed(draw << 32 | input << 8);
    let mut data = Vec::with_capacity(count * element.size_bytes());
    for _ in 0..count {
        let (unit, bit) = (of_row.f32(), of_all.u8(..2) ^ (row & 1) as u8);
        let bit = if fill == Fill::Numbers { bit } else { 0 };
        match element {
            ElementType::F16 => data.extend(half::f16::from_f32(unit).to_le_bytes()),
            ElementType::BF16 => data.extend(half::bf16::from_f32(unit).to_le_bytes()),
            ElementType::F32 => data.extend(unit.to_le_bytes()),
            ElementType::F64 => data.extend(f64::from(unit).to_le_bytes()),
            // Little-endian all of them, as the tensors are.
            whole => data.extend((0..whole.size_bytes()).map(|byte| if byte == 0 { bit } else { 0 })),
        }
    }
    data
}

/// The same with so many samples, all zeros.
fn on_zeros<R>(
    ports: &[Port],
    shapes: &BTreeMap<String, Vec<usize>>,
    samples: usize,
    act: impl FnOnce(&[Stacked<'_>]) -> R,
) -> R {
    on(ports, shapes, (Fill::Zeros, 0), &vec![0; samples], act)
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
        let differ = |alone: &[f32], in_company: &[f32]| are_others(alone, in_company, true);
        assert!(differ(&[1.0, 1.0], &[0.5, 0.5]), "a softmax over two equal samples");
        assert!(differ(&[0.0, 0.0], &[0.1, 0.0]), "nothing, and something");
        assert!(differ(&[0.000_2; 5000], &[0.000_1; 5000]), "of many classes each is little");
        assert!(!differ(&[1.0, -2.0, 3.0], &[1.01, -2.01, 3.0]), "added in another order");
        let flipped: Vec<f32> = (0..100).map(|at| if at == 7 { 0.0 } else { 1.0 }).collect();
        assert!(!differ(&[1.0; 100], &flipped), "one on the other side of a bound");
        assert!(!differ(&[0.0; 100], &[1e-7; 100]), "rounded");
        assert!(differ(&[f32::NAN, f32::NEG_INFINITY, 1.0], &[f32::NAN, f32::NEG_INFINITY, 5.0]), "the last of them");
        assert!(differ(&[f32::NAN; 4], &[1.0; 4]), "none, and some");
        assert!(!differ(&[], &[]));
        assert!(are_others(&[1.0], &[2.0], false), "places in a row");
        assert!(!are_others(&[7.0; 20], &[7.0; 20], false));
    }
}
