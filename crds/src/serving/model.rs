//! Settings of one model: `models[]`.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ModelOptions;

/// One model to serve.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Name in URLs and metrics. No slash and no control characters.
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[^/\x00-\x1f\x7f]+$"))]
    pub name: String,
    /// A `.onnx` file, or a folder with `model.onnx` and, where there are any, `labels.txt` and `model.yaml`.
    pub path: PathBuf,
    /// What the model is for; says which requests it takes and how they are answered.
    #[serde(default)]
    pub task: Task,
    /// Largest batch, in samples. 1 turns batching off.
    #[serde(default = "default_batch_size")]
    #[schemars(range(min = 1, max = 1024))]
    pub batch_size: u32,
    /// Upper bound of an idle instance's wait for company; 0 never waits. It waits only where a larger batch costs less for
    /// each sample, and where samples came so often lately that they will fill it in time: a lone request never waits.
    #[serde(default)]
    #[schemars(range(max = 1000))]
    pub batch_timeout_ms: u64,
    /// Requests whose predicted wait, with their own run, is longer are refused with 429. A wait of two runs of the largest
    /// batch is always let in.
    #[serde(default = "default_max_queue_ms")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub max_queue_ms: u64,
    /// Most samples that wait, whatever their predicted wait.
    #[serde(default = "default_queue_size")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub queue_size: u32,
    /// Most bytes of bodies and samples that wait; a request that needs more than all of it gets 413.
    #[serde(default = "default_queue_bytes")]
    #[schemars(range(min = 1, max = 1_099_511_627_776_u64))]
    pub queue_bytes: u64,
    /// A request that has no answer by then gets 504.
    #[serde(default = "default_request_timeout_ms")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub request_timeout_ms: u64,
    /// A run that takes longer is terminated.
    #[serde(default = "default_run_timeout_ms")]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub run_timeout_ms: u64,
    /// Sessions of this model, each with a worker thread of its own.
    #[serde(default = "default_instances")]
    #[schemars(range(min = 1, max = 64))]
    pub instances: u32,
    /// Latency to keep: batches stay so small that a request which waits for one run and then runs is answered within it.
    /// Where even the smallest batch takes too long nobody is refused for that; /info and a metric say it.
    #[serde(default)]
    #[schemars(range(min = 1, max = 3_600_000))]
    pub latency_objective_ms: Option<u64>,
    /// Where the model runs, best first. Empty means the CPU. A list that ends in `cpu` may fall back to it, and says so;
    /// one without `cpu` refuses to start where its providers are missing.
    #[serde(default)]
    pub execution_providers: Vec<ExecutionProvider>,
    /// Overrides the folder's `model.yaml` key by key.
    #[serde(default)]
    pub options: ModelOptions,
}

impl ModelConfig {
    /// A model of that name and path, with everything else as it is shipped.
    #[must_use]
    pub fn named(name: &str, path: impl Into<PathBuf>) -> Self {
        Self {
            name: name.to_owned(),
            path: path.into(),
            task: Task::default(),
            batch_size: default_batch_size(),
            batch_timeout_ms: 0,
            max_queue_ms: default_max_queue_ms(),
            queue_size: default_queue_size(),
            queue_bytes: default_queue_bytes(),
            request_timeout_ms: default_request_timeout_ms(),
            run_timeout_ms: default_run_timeout_ms(),
            instances: default_instances(),
            latency_objective_ms: None,
            execution_providers: Vec::new(),
            options: ModelOptions::default(),
        }
    }
}

fn default_batch_size() -> u32 {
    8
}

fn default_max_queue_ms() -> u64 {
    500
}

fn default_queue_size() -> u32 {
    1024
}

fn default_queue_bytes() -> u64 {
    256 << 20
}

fn default_request_timeout_ms() -> u64 {
    30_000
}

fn default_run_timeout_ms() -> u64 {
    60_000
}

fn default_instances() -> u32 {
    1
}

/// What a model is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Tensors in, tensors out.
    #[default]
    Tensor,
    /// A picture in, classes with a confidence out.
    ImageClassification,
    /// Text in, a vector out. Not built yet.
    TextEmbedding,
    /// A picture and texts in, a score for each text out. Not built yet.
    ImageTextSimilarity,
}

impl Task {
    /// The name that configs, logs and `/info` use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tensor => "tensor",
            Self::ImageClassification => "image-classification",
            Self::TextEmbedding => "text-embedding",
            Self::ImageTextSimilarity => "image-text-similarity",
        }
    }
}

/// Hardware back end of ONNX Runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExecutionProvider {
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl ExecutionProvider {
    /// The name that configs, logs and `/info` use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
        }
    }
}
