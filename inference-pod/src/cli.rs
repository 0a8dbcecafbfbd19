//! Command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use crds::serving::Task;

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
    /// Load a model and print what it takes and gives; exit 1 with a reason where it cannot be served.
    Check(Check),
}

/// Flags of `serve`.
#[derive(Debug, clap::Args)]
pub struct Serve {
    /// Config file; several are laid over one another, later ones win. Environment variables named
    /// ORTOLAN__SERVER__… and ORTOLAN__LOGGING__… win over files.
    #[arg(long, required = true, value_name = "FILE")]
    pub config: Vec<PathBuf>,
    /// File that gets the reason as JSON when the server cannot start; written only where it exists or its folder does.
    #[arg(long, value_name = "FILE", default_value = "/dev/termination-log", env = "TERMINATION_MESSAGE_PATH")]
    pub termination_message: PathBuf,
}

/// Flags of `check`.
#[derive(Debug, clap::Args)]
pub struct Check {
    /// A .onnx file, or a folder with model.onnx, labels.txt and model.yaml.
    #[arg(value_name = "FILE|DIR")]
    pub path: PathBuf,
    /// Task to check it for; found from its inputs where left out.
    #[arg(long, value_parser = task)]
    pub task: Option<Task>,
    /// Largest batch to try.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch_size: u32,
}

fn task(name: &str) -> Result<Task, String> {
    match name {
        "tensor" => Ok(Task::Tensor),
        "image-classification" => Ok(Task::ImageClassification),
        other => Err(format!("expected tensor or image-classification, got {other}")),
    }
}
