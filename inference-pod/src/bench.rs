//! `bench`: how fast the bare session is, bucket by bucket. No server, no queue: the number that servers are divided by.
//!
//! The loop is the fastest that is honest: it reuses its inputs, asks ONNX Runtime for all outputs, and drops them.
//! `--through session` adds what a worker does for each batch: laying the samples out, and slicing the outputs.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    sync::Barrier,
    time::{Duration, Instant},
};

use crds::serving::{CudaOptions, ExecutionProvider, ModelConfig, ModelOptions};
use serde::Serialize;

use crate::{
    cli::{Bench, Through},
    files::{FilesError, ModelFiles},
    queue::Limits,
    session::{Port, Runtime, Session, SessionError, SessionFactory, SessionSettings, Stacked, make_huge},
    simulate::{Simulation, simulate},
    surroundings,
    tensor::{ElementType, elements},
    times::{BucketTimes, Times},
};

/// Latencies that are kept for the percentiles: of the latest runs, so that a fast model's do not fill the memory which is
/// measured.
const KEPT_LATENCIES: usize = 1 << 16;

/// Runs before the clock starts; the first of a size allocates.
const WARM_UP_RUNS: usize = 3;

/// Fewest runs of a bucket, however slow.
const FEWEST_RUNS: usize = 3;

/// Random numbers are the same in every run of the program.
const SEED: u64 = 42;

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Its files.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// Its graph.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// A shape that fits no input.
    #[error("--shape {name}={given:?} does not fit {expected}")]
    Shape {
        /// The input.
        name: String,
        /// The sizes given.
        given: Vec<usize>,
        /// What would fit.
        expected: String,
    },
    /// The arrivals.
    #[error("cannot read arrivals from {}", path.display())]
    Arrivals {
        /// Their file.
        path: PathBuf,
        /// What the system said, or which line is no number of seconds.
        source: io::Error,
    },
    /// The memory of the process cannot be read.
    #[error("cannot read /proc/self/smaps_rollup")]
    Memory(#[source] io::Error),
    /// A measuring thread panicked.
    #[error("a measuring thread panicked")]
    Panicked,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The model's file.
    pub model: PathBuf,
    /// Threads inside one operator.
    pub threads: usize,
    /// Sessions that ran at the same time.
    pub instances: usize,
    /// Execution provider in use.
    pub provider: &'static str,
    /// Version of ONNX Runtime.
    pub onnxruntime: String,
    /// Each bucket, in the order asked for.
    pub buckets: Vec<Bucket>,
    /// The bucket with the most samples per second.
    pub best: Best,
    /// Memory of the process.
    pub memory: MemoryUse,
    /// What the scheduler makes of the arrivals, where some were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub simulated: Option<Simulated>,
}

/// One batch size.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bucket {
    /// Samples of a run.
    pub samples: usize,
    /// Runs that were timed, of all instances.
    pub runs: usize,
    /// Mean time of a run.
    pub mean_ms: f64,
    /// Median time of a run.
    pub p50_ms: f64,
    /// 99 of 100 runs took no longer.
    pub p99_ms: f64,
    /// Samples per second of all instances together.
    pub samples_per_second: f64,
}

/// The bucket with the most samples per second.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Best {
    /// Samples of a run.
    pub samples: usize,
    /// Samples per second.
    pub samples_per_second: f64,
}

/// What the scheduler makes of given arrivals when runs take what was measured and nothing else takes time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Simulated {
    /// Requests that were answered.
    pub answered: usize,
    /// Requests that were not let in.
    pub refused: usize,
    /// Requests that could not make their deadline.
    pub expired: usize,
    /// Runs.
    pub runs: usize,
    /// Median latency of those that were answered.
    pub p50_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
}

/// Memory of the process: proportional set size, and the resident one beside it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MemoryUse {
    /// With the library loaded, before the model.
    pub before_bytes: u64,
    /// With all instances opened.
    pub loaded_bytes: u64,
    /// After all runs.
    pub after_bytes: u64,
    /// The resident set at the same three points.
    pub resident_bytes: [u64; 3],
}

/// Measures a model.
///
/// # Errors
/// [`BenchError`] where the model cannot be loaded, or a bucket not be run.
pub fn bench(args: &Bench) -> Result<Report, BenchError> {
    let runtime = Runtime::load(surroundings::variable("ORT_DYLIB_PATH").map(PathBuf::from))?;
    let files = ModelFiles::find(&args.model)?;
    let shapes = files.options(&ModelOptions::default())?.warmup.shapes;
    let settings = SessionSettings {
        threads: args.threads as usize,
        spinning: false,
        providers: args.execution_providers.clone(),
        cuda: CudaOptions { graphs: Some(!args.plain), ..CudaOptions::default() },
    };
    let factory = SessionFactory::new(&runtime, &files.model, settings);
    let before = Footprint::now()?;
    let mut sessions = (0..args.instances).map(|_| factory.open()).collect::<Result<Vec<_>, _>>()?;
    if !args.plain {
        make_huge(0);
    }
    let loaded = Footprint::now()?;
    let ports = sessions.first().map(|session| session.signature().inputs.clone()).unwrap_or_default();
    let provider = sessions.first().map_or("none", |session| session.provider().as_str());
    let shapes = sample_shapes(&ports, shapes, &args.shape)?;
    let sizes = fixed_batch(&ports).map_or_else(|| args.batch_sizes.clone(), |size| vec![size]);
    let mut buckets = Vec::with_capacity(sizes.len());
    for size in sizes {
        buckets.push(bucket(&mut sessions, &ports, &shapes, size, args)?);
    }
    let after = Footprint::now()?;
    let times = match args.times.as_slice() {
        [] => buckets.iter().map(|bucket| (bucket.samples, bucket.p50_ms)).collect(),
        given => given.to_vec(),
    };
    let simulated =
        args.arrivals.as_deref().map(|file| simulated(file, &times, sessions.len(), provider)).transpose()?;
    Ok(Report {
        simulated,
        model: files.model,
        threads: args.threads as usize,
        instances: sessions.len(),
        provider,
        onnxruntime: runtime.version().to_owned(),
        best: best(&buckets),
        buckets,
        memory: MemoryUse {
            before_bytes: before.proportional,
            loaded_bytes: loaded.proportional,
            after_bytes: after.proportional,
            resident_bytes: [before, loaded, after].map(|footprint| footprint.resident),
        },
    })
}

impl Report {
    /// As a table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "model      {}\nthreads    {}, instances {}, provider {}, onnxruntime {}\n\n",
            self.model.display(),
            self.threads,
            self.instances,
            self.provider,
            self.onnxruntime
        );
        let _ = writeln!(text, "samples     runs    mean ms     p50 ms     p99 ms  ms/sample  samples/s");
        for bucket in &self.buckets {
            let _ = writeln!(
                text,
                "{:>7} {:>8} {:>10.4} {:>10.4} {:>10.4} {:>10.4} {:>10.1}",
                bucket.samples,
                bucket.runs,
                bucket.mean_ms,
                bucket.p50_ms,
                bucket.p99_ms,
                bucket.mean_ms / bucket.samples as f64,
                bucket.samples_per_second
            );
        }
        let _ =
            writeln!(text, "best    {} samples: {:.1} samples/s\n", self.best.samples, self.best.samples_per_second);
        if let Some(Simulated { answered, refused, expired, runs, p50_ms, p99_ms }) = &self.simulated {
            let _ = writeln!(text, "simulated  {answered} answered, {refused} refused, {expired} expired, {runs} runs");
            let _ = writeln!(text, "           p50 {p50_ms:.3} ms, p99 {p99_ms:.3} ms\n");
        }
        let memory = &self.memory;
        let proportional = [memory.before_bytes, memory.loaded_bytes, memory.after_bytes];
        let _ = writeln!(text, "MiB            before     loaded      after");
        for (name, bytes) in [("PSS", proportional), ("RSS", memory.resident_bytes)] {
            let [before, loaded, after] = bytes.map(|bytes| bytes as f64 / f64::from(1 << 20));
            let _ = writeln!(text, "{name:<10} {before:>10.1} {loaded:>10.1} {after:>10.1}");
        }
        text
    }
}

fn best(buckets: &[Bucket]) -> Best {
    let best = buckets.iter().max_by(|a, b| a.samples_per_second.total_cmp(&b.samples_per_second));
    best.map_or(Best { samples: 0, samples_per_second: 0.0 }, |bucket| Best {
        samples: bucket.samples,
        samples_per_second: bucket.samples_per_second,
    })
}

/// Plays arrivals through the scheduler, with the bounds that are shipped and the milliseconds of each bucket.
fn simulated(file: &Path, buckets: &[(usize, f64)], instances: usize, provider: &str) -> Result<Simulated, BenchError> {
    let failed = |source| BenchError::Arrivals { path: file.to_owned(), source };
    let text = fs::read_to_string(file).map_err(failed)?;
    let mut arrivals = text.lines().map(arrival).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    arrivals.sort_unstable();
    let mut times = BucketTimes::default();
    buckets.iter().for_each(|(samples, millis)| times.set(*samples, Duration::from_secs_f64(millis / 1e3)));
    let shipped = ModelConfig::named("bench", "");
    let fared = simulate(&Simulation {
        arrivals,
        times: Times::warmed_up(1, times),
        length: 1,
        limits: Limits {
            max_wait: Duration::from_millis(shipped.max_queue_ms),
            samples: shipped.queue_size as usize,
            bytes: usize::MAX,
            batch_size: buckets.iter().map(|(samples, _)| *samples).max().unwrap_or(1),
            is_padded: provider == ExecutionProvider::Cuda.as_str(),
            batch_timeout: Duration::ZERO,
            latency_objective: None,
            run_timeout: Duration::MAX,
        },
        instances,
        request_timeout: Duration::from_millis(shipped.request_timeout_ms),
    });
    let millis = |share: f64| fared.quantile(share).as_secs_f64() * 1e3;
    Ok(Simulated {
        answered: fared.latencies.len(),
        refused: fared.refused,
        expired: fared.expired,
        runs: fared.runs,
        p50_ms: millis(0.5),
        p99_ms: millis(0.99),
    })
}

/// A year.
const LONGEST_OFFSET: Duration = Duration::from_secs(366 * 24 * 3600);

fn arrival(line: &str) -> io::Result<Duration> {
    let seconds = line.trim().parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let seconds = seconds.filter(|offset| *offset <= LONGEST_OFFSET);
    let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("expected seconds in each line, got `{line}`"));
    seconds.ok_or_else(wrong)
}

/// The batch that a model fixes, or 1 where an input has no dimension to batch.
fn fixed_batch(ports: &[Port]) -> Option<usize> {
    let first = |port: &Port| port.dims.first().copied();
    ports.iter().map(first).find(|size| *size != Some(None)).map(|size| size.flatten().unwrap_or(1))
}

/// The shape of one sample of each input, without the batch dimension: from the command line, else from model.yaml, else
/// open dimensions are 1.
fn sample_shapes(
    ports: &[Port],
    options: BTreeMap<String, Vec<usize>>,
    given: &[(String, Vec<usize>)],
) -> Result<BTreeMap<String, Vec<usize>>, BenchError> {
    let mut shapes = options;
    for (name, sizes) in given {
        let misfit = |expected: String| BenchError::Shape { name: name.clone(), given: sizes.clone(), expected };
        let names = || ports.iter().map(|port| port.name.as_str()).collect::<Vec<_>>().join(", ");
        let port = ports.iter().find(|port| port.name == *name);
        let rank = port.ok_or_else(|| misfit(format!("any input of {}", names())))?.dims.len();
        let sample = match sizes.len() {
            // The batch dimension may be written too; buckets fill it.
            written if written == rank => sizes.get(1..).unwrap_or_default(),
            written if written + 1 == rank => sizes,
            _ => return Err(misfit(format!("{rank} dimensions"))),
        };
        shapes.insert(name.clone(), sample.to_vec());
    }
    Ok(shapes)
}

fn bucket(
    sessions: &mut [Session],
    ports: &[Port],
    shapes: &BTreeMap<String, Vec<usize>>,
    samples: usize,
    args: &Bench,
) -> Result<Bucket, BenchError> {
    let inputs: Vec<Input> =
        ports.iter().map(|port| Input::random(port, shapes.get(&port.name).map(Vec::as_slice), samples)).collect();
    let budget = Duration::from_secs_f64(args.seconds);
    let start = Barrier::new(sessions.len());
    let measure = |session: &mut Session| {
        // Before the barrier: a session that fails here must not leave the others waiting.
        let warm = warm_up(session, &inputs, args.plain);
        start.wait();
        warm.and_then(|()| time(session, &inputs, args.through, budget))
    };
    let measured: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = sessions.iter_mut().map(|session| scope.spawn(|| measure(session))).collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| BenchError::Panicked)).collect()
    });
    let timings = measured.into_iter().map(|timing| Ok(timing??)).collect::<Result<Vec<_>, BenchError>>()?;
    Ok(summary(samples, timings))
}

/// What one session's loop measured.
struct Timing {
    runs: usize,
    elapsed: Duration,
    latencies: Vec<Duration>,
}

fn warm_up(session: &mut Session, inputs: &[Input], plain: bool) -> Result<(), SessionError> {
    let stacked = stacked(inputs);
    if !plain {
        session.settle(&stacked)?;
    }
    (0..WARM_UP_RUNS).try_for_each(|_| session.run(&stacked).map(drop))
}

fn time(session: &mut Session, inputs: &[Input], through: Through, budget: Duration) -> Result<Timing, SessionError> {
    let stacked = stacked(inputs);
    match through {
        Through::Bare => {
            let mut repeat = session.repeat(&stacked)?;
            time_runs(budget, || repeat.run())
        }
        Through::Session => time_runs(budget, || session.run(&stacked).map(drop)),
    }
}

fn time_runs(budget: Duration, mut run: impl FnMut() -> Result<(), SessionError>) -> Result<Timing, SessionError> {
    let mut latencies = Vec::with_capacity(KEPT_LATENCIES);
    let (mut runs, began) = (0, Instant::now());
    let mut last = began;
    while runs < FEWEST_RUNS || last - began < budget {
        run()?;
        // One look at the clock a run: the end of one is the beginning of the next.
        let now = Instant::now();
        if latencies.len() < KEPT_LATENCIES {
            latencies.push(now - last);
        } else {
            latencies[runs % KEPT_LATENCIES] = now - last;
        }
        last = now;
        runs += 1;
    }
    Ok(Timing { runs, elapsed: last - began, latencies })
}

fn summary(samples: usize, timings: Vec<Timing>) -> Bucket {
    let runs: usize = timings.iter().map(|timing| timing.runs).sum();
    let busy: Duration = timings.iter().map(|timing| timing.elapsed).sum();
    let per_second = |timing: &Timing| (timing.runs * samples) as f64 / timing.elapsed.as_secs_f64();
    let samples_per_second = timings.iter().map(per_second).sum();
    let mut latencies: Vec<Duration> = timings.into_iter().flat_map(|timing| timing.latencies).collect();
    latencies.sort_unstable();
    let quantile = |share: f64| {
        let at = (share * latencies.len() as f64) as usize;
        latencies.get(at).or(latencies.last()).map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    };
    Bucket {
        samples,
        runs,
        mean_ms: busy.as_secs_f64() * 1e3 / runs as f64,
        p50_ms: quantile(0.5),
        p99_ms: quantile(0.99),
        samples_per_second,
    }
}

/// One input of a batch.
struct Input {
    element: ElementType,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Input {
    /// Random but valid: masks are ones, types of tokens zeros, other whole numbers 1 to 100 (which every vocabulary has),
    /// fractions 0 to 1.
    fn random(port: &Port, sample: Option<&[usize]>, samples: usize) -> Self {
        let shape = batch_shape(port, sample, samples);
        let mut random = fastrand::Rng::with_seed(SEED);
        let name = port.name.to_lowercase();
        let whole = |random: &mut fastrand::Rng| match () {
            () if port.element == ElementType::Bool || name.contains("mask") => 1,
            () if name.contains("type") || name.contains("segment") => 0,
            () => random.u8(1..=100),
        };
        let mut bytes = Vec::with_capacity(elements(&shape) * port.element.size_bytes());
        for _ in 0..elements(&shape) {
            match port.element {
                ElementType::F64 => bytes.extend(random.f64().to_le_bytes()),
                ElementType::F32 => bytes.extend(random.f32().to_le_bytes()),
                ElementType::F16 => bytes.extend(half::f16::from_f32(random.f32()).to_le_bytes()),
                ElementType::BF16 => bytes.extend(half::bf16::from_f32(random.f32()).to_le_bytes()),
                // Little-endian: the low byte, then zeros.
                element => bytes.extend(&u64::from(whole(&mut random)).to_le_bytes()[..element.size_bytes()]),
            }
        }
        Self { element: port.element, shape, bytes }
    }
}

fn batch_shape(port: &Port, sample: Option<&[usize]>, samples: usize) -> Vec<usize> {
    let given = |at: usize| sample.and_then(|sizes| sizes.get(at)).copied().unwrap_or(1);
    let size =
        |(at, size): (usize, &Option<usize>)| size.unwrap_or_else(|| if at == 0 { samples } else { given(at - 1) });
    port.dims.iter().enumerate().map(size).collect()
}

/// As a worker stacks jobs: each row is a part of its own.
fn stacked(inputs: &[Input]) -> Vec<Stacked<'_>> {
    let mut stacked = Vec::with_capacity(inputs.len());
    for input in inputs {
        let rows = input.shape.first().copied().unwrap_or(1).max(1);
        let parts = input.bytes.chunks((input.bytes.len() / rows).max(1)).collect();
        stacked.push(Stacked { element: input.element, shape: input.shape.clone(), parts });
    }
    stacked
}

/// Memory of this process in bytes.
struct Footprint {
    proportional: u64,
    resident: u64,
}

impl Footprint {
    fn now() -> Result<Self, BenchError> {
        let text = fs::read_to_string("/proc/self/smaps_rollup").map_err(BenchError::Memory)?;
        Ok(Self { proportional: rollup_bytes(&text, "Pss:"), resident: rollup_bytes(&text, "Rss:") })
    }
}

/// A line of smaps_rollup, `Pss:   123 kB`, in bytes; 0 where it is missing.
fn rollup_bytes(text: &str, field: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(name: &str, element: ElementType, dims: &[Option<usize>]) -> Port {
        Port { name: name.to_owned(), element, dims: dims.to_vec(), batch_name: None }
    }

    #[test]
    fn a_shape_may_be_given_with_and_without_its_batch_dimension() {
        let ports = [port("ids", ElementType::I64, &[None, None])];
        let shapes = |sizes: &[usize]| sample_shapes(&ports, BTreeMap::new(), &[("ids".to_owned(), sizes.to_vec())]);
        assert_eq!(shapes(&[1, 16]).unwrap()["ids"], [16]);
        assert_eq!(shapes(&[16]).unwrap()["ids"], [16]);
        let error = shapes(&[1, 2, 3]).unwrap_err().to_string();
        assert_eq!(error, "--shape ids=[1, 2, 3] does not fit 2 dimensions");
        let unknown = sample_shapes(&ports, BTreeMap::new(), &[("id".to_owned(), vec![1])]).unwrap_err();
        assert_eq!(unknown.to_string(), "--shape id=[1] does not fit any input of ids");
    }

    #[test]
    fn inputs_are_valid_by_their_names_and_fill_their_shapes() {
        let dims = [None, None];
        let bytes = |name: &str, element| Input::random(&port(name, element, &dims), Some(&[5]), 3).bytes;
        let whole = |name: &str| -> Vec<i64> {
            bytes(name, ElementType::I64).as_chunks::<8>().0.iter().map(|chunk| i64::from_le_bytes(*chunk)).collect()
        };
        assert_eq!(whole("attention_mask"), [1; 15]);
        assert_eq!(whole("token_type_ids"), [0; 15]);
        assert!(whole("input_ids").iter().all(|id| (1..=100).contains(id)));
        assert_eq!(bytes("flags", ElementType::Bool), [1; 15]);
        assert_eq!(bytes("x", ElementType::F16).len(), 30);
        assert!(whole("input_ids").windows(2).any(|pair| pair[0] != pair[1]));
    }

    #[test]
    fn arrivals_are_played_with_the_times_that_are_given() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("arrivals");
        fs::write(&file, "0.0\n0.001\n0.002\n").unwrap();
        let simulated = simulated(&file, &[(1, 10.0), (2, 12.0)], 1, "cpu").unwrap();
        assert_eq!((simulated.answered, simulated.runs), (3, 2), "one alone, then two together");
        assert!((simulated.p99_ms - 21.0).abs() < 1e-6, "{simulated:?}");
        fs::write(&file, "soon\n").unwrap();
        let error = super::simulated(&file, &[(1, 10.0)], 1, "cpu").unwrap_err();
        assert!(
            crate::termination::error_chain(&error).contains("expected seconds in each line, got `soon`"),
            "{error}"
        );
    }

    #[test]
    fn a_model_with_a_fixed_batch_has_one_bucket() {
        let open = port("a", ElementType::F32, &[None, Some(4)]);
        let fixed = port("b", ElementType::F32, &[Some(7), Some(4)]);
        let scalar = port("c", ElementType::F32, &[]);
        assert_eq!(fixed_batch(std::slice::from_ref(&open)), None);
        assert_eq!(fixed_batch(&[open.clone(), fixed]), Some(7));
        assert_eq!(fixed_batch(&[open, scalar]), Some(1));
    }

    #[test]
    fn percentiles_and_rates_are_those_of_all_instances() {
        let timing = |millis: &[u64]| Timing {
            runs: millis.len(),
            elapsed: Duration::from_millis(millis.iter().sum()),
            latencies: millis.iter().map(|millis| Duration::from_millis(*millis)).collect(),
        };
        let bucket = summary(2, vec![timing(&[1, 2, 3, 4]), timing(&[5, 5])]);
        assert_eq!((bucket.runs, bucket.samples), (6, 2));
        assert!((bucket.p50_ms - 4.0).abs() < 1e-9 && (bucket.p99_ms - 5.0).abs() < 1e-9);
        assert!((bucket.samples_per_second - (800.0 + 400.0)).abs() < 1e-6);
    }

    #[test]
    fn memory_is_read_by_its_field() {
        let text = "00400000-7fff rollup\nRss:   10 kB\nPss:    7 kB\nPss_Anon:  3 kB\n";
        assert_eq!(
            (rollup_bytes(text, "Pss:"), rollup_bytes(text, "Rss:"), rollup_bytes(text, "Swap:")),
            (7168, 10240, 0)
        );
    }
}
