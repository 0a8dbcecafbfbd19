//! Command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use crds::serving::{ExecutionProvider, Task};

/// Serves ONNX models over HTTP, batched, with or without Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "inference-pod", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the models of a config.
    Serve(Serve),
    /// Bring a model's files into a folder that `serve` can read, checked; prints what was fetched as JSON.
    Fetch(Fetch),
    /// Load a model and print what it takes and gives; exit 1 with a reason where it cannot be served.
    Check(Check),
    /// Measure a model without a server: the bare session in a loop, for each batch size, and its memory.
    Bench(Bench),
}

/// Flags of `serve`.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// Config file; several are laid over one another, later ones win. Environment variables named
    /// ORTOLAN__SERVER__…, ORTOLAN__LOGGING__… and ORTOLAN__OBSERVABILITY__… win over files.
    #[arg(long, required = true, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// File that gets the reason as JSON when the server cannot start; written only where it exists or its folder does.
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log", env = "TERMINATION_MESSAGE_PATH")]
    pub termination_message: PathBuf,
}

/// Flags of `fetch`.
#[derive(Debug, clap::Args)]
pub struct Fetch {
    /// Name of the model, for the termination message and the log.
    #[arg(long, value_name = "NAME")]
    pub model: String,
    /// Where the model is (http://, https://, file://): a .onnx file, an archive (.tar, .tar.gz, .tgz), or a folder.
    #[arg(long)]
    pub uri: String,
    /// SHA-256 of the file that --uri names; required for http:// and https:// without --file.
    #[arg(long, value_name = "HEX")]
    pub sha256: Option<String>,
    /// A file of the folder that --uri names, and its SHA-256; once for each file.
    #[arg(long, value_name = "PATH=SHA256")]
    pub file: Vec<String>,
    /// Folder that becomes the model's; a single file becomes its model.onnx.
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
    /// Longest wait for a connection.
    #[arg(long, value_name = "SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub connect_timeout_seconds: u64,
    /// Longest wait for the next byte.
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub stall_timeout_seconds: u64,
    /// Failed tries in a row, without progress, before the last one; for what may pass: no connection, one that broke,
    /// silence, and the answers 408, 425, 429 and 5xx.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub retries: u32,
    /// Most bytes that an archive may unpack to.
    #[arg(long, value_name = "BYTES", default_value_t = 100 << 30)]
    pub max_unpacked_bytes: u64,
    /// File that gets the reason as JSON when the model cannot be fetched; written only where it exists or its folder
    /// does.
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log", env = "TERMINATION_MESSAGE_PATH")]
    pub termination_message: PathBuf,
}

/// Flags of `check`.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// A .onnx file, or a folder with model.onnx, labels.txt and model.yaml.
    #[arg(value_name = "FILE|DIR")]
    pub path: PathBuf,
    /// Task to check it for. Left out: image-classification, and tensor where the model's shapes are those of something
    /// else.
    #[arg(long, value_parser = task)]
    pub task: Option<Task>,
    /// Largest batch to try.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch_size: u32,
}

/// Flags of `bench`.
#[derive(Debug, clap::Args)]
pub struct Bench {
    /// A .onnx file, or a folder with model.onnx and model.yaml.
    #[arg(value_name = "FILE|DIR")]
    pub model: PathBuf,
    /// Shape of an input where the model leaves dimensions open, with or without the batch dimension; once for each
    /// input. Else that of model.yaml's warmup.shapes, else 1.
    #[arg(long, value_name = "NAME=SIZE,…", value_parser = shape)]
    pub shape: Vec<(String, Vec<usize>)>,
    /// Batch sizes, in samples; a model that fixes its batch is measured with that.
    #[arg(long, value_name = "SIZE,…", value_delimiter = ',', default_value = "1,2,4,8,16", value_parser = size)]
    pub batch_sizes: Vec<usize>,
    /// Time for each batch size.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    pub seconds: f64,
    /// Threads inside one operator, for each instance.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub threads: u32,
    /// Sessions that run at the same time, each on a thread of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub instances: u32,
    /// Execution providers, best first, as in the config.
    #[arg(long, value_name = "PROVIDER,…", value_delimiter = ',', default_value = "cpu", value_parser = provider)]
    pub execution_providers: Vec<ExecutionProvider>,
    /// What is measured: the bare loop, or with the laying out of samples and slicing of outputs that a server adds.
    #[arg(long, value_enum, default_value_t = Through::Bare)]
    pub through: Through,
    /// Run as most programs do: weights stay in small pages, and on a GPU nothing is bound to its memory beforehand and no run
    /// is captured.
    #[arg(long)]
    pub plain: bool,
    /// Play these arrivals, seconds from the start, one a line, through the scheduler with the measured times: what a
    /// server that costs nothing would make of them, with the bounds that are shipped.
    #[arg(long, value_name = "FILE")]
    pub arrivals: Option<PathBuf>,
    /// With --arrivals: milliseconds of a batch of so many samples, as a server has measured them (see its /info), instead
    /// of those measured here.
    #[arg(long, value_name = "SAMPLES=MS,…", value_delimiter = ',', requires = "arrivals", value_parser = batch_time)]
    pub times: Vec<(usize, f64)>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// What `bench` measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Through {
    /// Runs over inputs that stay as they are; outputs are dropped.
    Bare,
    /// Samples are laid out before each run, and its outputs become tensors.
    Session,
}

fn shape(text: &str) -> Result<(String, Vec<usize>), String> {
    let (name, sizes) = text.split_once('=').ok_or("expected NAME=SIZE,…, for example input_ids=1,16")?;
    Ok((name.to_owned(), sizes.split(',').map(size).collect::<Result<_, _>>()?))
}

fn batch_time(text: &str) -> Result<(usize, f64), String> {
    let wrong = || format!("expected SAMPLES=MS, for example 8=12.5, got `{text}`");
    let (samples, millis) = text.split_once('=').ok_or_else(wrong)?;
    let millis = millis.parse().ok().filter(|millis: &f64| (1e-6..1e9).contains(millis)).ok_or_else(wrong)?;
    Ok((size(samples)?, millis))
}

fn size(text: &str) -> Result<usize, String> {
    text.trim()
        .parse()
        .ok()
        .filter(|size| *size > 0)
        .ok_or_else(|| format!("expected a size of 1 or more, got `{text}`"))
}

fn seconds(text: &str) -> Result<f64, String> {
    let limits = 0.0..=3600.0;
    text.parse()
        .ok()
        .filter(|seconds| limits.contains(seconds))
        .ok_or_else(|| format!("expected 0 to 3600, got `{text}`"))
}

fn provider(name: &str) -> Result<ExecutionProvider, String> {
    let known = [ExecutionProvider::Cpu, ExecutionProvider::Cuda];
    known
        .into_iter()
        .find(|provider| provider.as_str() == name)
        .ok_or_else(|| format!("expected cpu or cuda, got {name}"))
}

fn task(name: &str) -> Result<Task, String> {
    match name {
        "tensor" => Ok(Task::Tensor),
        "image-classification" => Ok(Task::ImageClassification),
        other => Err(format!("expected tensor or image-classification, got {other}")),
    }
}
