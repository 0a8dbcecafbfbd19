//! One model: `spec.models[]`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{AsWritten, Duration, rules};
use crate::serving::{ModelOptions, Task};

/// One model to serve, and where it comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::of_model()))]
pub struct Model {
    /// Name in URLs and metrics; a DNS label.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Where the model comes from: exactly one of uri, pvc and image.
    pub source: Source,
    /// Version of the model at its source: a branch, tag or commit where the source knows such. Not built yet: refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub revision: Option<String>,
    /// SHA-256 of the file that uri names: 64 lower-case hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub sha256: Option<String>,
    /// The files to fetch where uri names a folder; one of them is model.onnx.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["path"]))]
    pub files: Vec<ModelFile>,
    /// Credentials of the source: a Secret of the same namespace, whose keys become the environment of the fetch
    /// container (AWS_*, AZURE_*, HF_TOKEN). Not built yet: refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
    /// What the model is for; says which requests it takes and how they are answered.
    #[serde(default)]
    pub task: Task,
    /// How requests become batches, and how many may wait.
    #[serde(default)]
    pub batching: Batching,
    /// A request that has no answer by then gets 504.
    #[serde(default = "default_request_timeout")]
    pub request_timeout: Duration,
    /// Latency to keep: batches stay so small that a request which waits for one run and then runs is answered within it.
    /// Where none does, nobody is refused for that; the pod's /info and its metric latency_objective_feasible say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_objective: Option<Duration>,
    /// Sessions of this model in each pod, each with a worker thread of its own.
    #[serde(default = "default_instances")]
    #[schemars(range(min = 1, max = 64))]
    pub instances: u32,
    /// How inputs are made and outputs are read. Keys as in a model.yaml; they override that of the model's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<AsWritten<ModelOptions>>,
}

fn default_request_timeout() -> Duration {
    Duration::seconds(30)
}

fn default_instances() -> u32 {
    1
}

/// Where a model comes from: exactly one of these.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// An address: http://, https:// or file://; s3://, gs://, az://, hf:// and oci:// are not built yet and refused. With files
    /// it names a folder, otherwise one .onnx file or an archive.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub uri: Option<String>,
    /// A folder or file on a volume that is there already.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pvc: Option<PvcSource>,
    /// An OCI image, mounted as a volume by the node; nothing is fetched by the pod. Needs Kubernetes' feature ImageVolume, which is off
    /// by default in 1.33 and 1.34.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSource>,
}

/// A place on a persistent volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::of_path()))]
pub struct PvcSource {
    /// Name of the PersistentVolumeClaim, in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub claim_name: String,
    /// Place on the volume, relative to its root; left out: the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub path: Option<String>,
}

/// A place in an OCI image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::of_path()))]
pub struct ImageSource {
    /// The image, best by digest.
    #[schemars(length(min = 1, max = 512))]
    pub reference: String,
    /// When the node pulls it. Left out: Always for the tag latest, else IfNotPresent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull_policy: Option<PullPolicy>,
    /// Place in the image, relative to its root; left out: the root.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub path: Option<String>,
}

/// When a node pulls an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// Each time a pod starts.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Not at all.
    Never,
}

impl PullPolicy {
    /// The name that a pod uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

/// One file of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = rules::of_file()))]
pub struct ModelFile {
    /// Place of the file, relative to uri; the same in the model's folder.
    #[schemars(length(min = 1, max = 256))]
    pub path: String,
    /// SHA-256 of the file: 64 lower-case hexadecimal digits.
    #[schemars(length(min = 1, max = 128))]
    pub sha256: String,
}

/// A Secret of the same namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How requests become batches, and how many may wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = rules::of_batching()))]
pub struct Batching {
    /// Largest batch, in samples. 1 turns batching off.
    #[schemars(range(min = 1, max = 1024))]
    pub batch_size: u32,
    /// Upper bound of an idle instance's wait for company; 0s never waits. A lone request never waits.
    pub batch_timeout: Duration,
    /// Requests whose predicted wait, with their own run, is longer are refused with 429. A wait of two runs of the largest
    /// batch is always let in.
    pub max_queue_time: Duration,
    /// Most samples that wait, whatever their predicted wait.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub queue_size: u32,
}

impl Default for Batching {
    fn default() -> Self {
        Self {
            batch_size: 8,
            batch_timeout: Duration::seconds(0),
            max_queue_time: Duration::milliseconds(500),
            queue_size: 1024,
        }
    }
}
