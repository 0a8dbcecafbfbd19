//! How a model's inputs are made and its outputs are read: a folder's `model.yaml`, or `models[].options`.

use std::{collections::BTreeMap, path::PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How a model's inputs are made and its outputs are read. Everything left out is found from the model itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelOptions {
    /// From picture to tensor.
    pub image: ImageOptions,
    /// Turns scores into probabilities. Null: yes, unless a run at load shows that they are probabilities already.
    pub softmax: Option<bool>,
    /// Names of the classes. Null: the folder's `labels.txt`, else the class numbers.
    pub labels: Option<Labels>,
    /// Classes in an answer, most likely first. Null: 5.
    #[schemars(range(min = 1, max = 100_000))]
    pub top_k: Option<u32>,
    /// From text to tokens; read by the text tasks.
    pub text: Option<TextOptions>,
    /// What is run before the model counts as ready.
    pub warmup: WarmupOptions,
    /// How the GPU is used, where one is.
    pub cuda: CudaOptions,
    /// Which of the folder's versions are served. Not built yet.
    pub versions: Option<VersionOptions>,
}

/// From picture to tensor: resize, crop, scale to 0..1, subtract `mean`, divide by `std`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImageOptions {
    /// A number: the shorter side gets this many pixels, the other follows. A pair [width, height]: stretched to it.
    /// Null: the shorter side becomes 8/7 of the crop.
    pub resize: Option<Resize>,
    /// Side of the square that is cut out of the centre. Null: what the model takes.
    #[schemars(range(min = 1, max = 16_384))]
    pub crop: Option<u32>,
    /// Order of the tensor's dimensions. Null: found from the model's input.
    pub layout: Option<Layout>,
    /// Order of the colours. Null: rgb, or gray where the model takes one channel.
    pub channels: Option<Channels>,
    /// Mean of each channel on the scale 0..1, in the model's channel order. Null: that of ImageNet.
    #[schemars(length(min = 1, max = 3))]
    pub mean: Option<Vec<f32>>,
    /// Standard deviation of each channel on the scale 0..1, in the model's channel order. Null: that of ImageNet.
    #[schemars(length(min = 1, max = 3), inner(range(min = 0.000_001)))]
    pub std: Option<Vec<f32>>,
}

/// How a picture gets to its size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Resize {
    /// Pixels of the shorter side; the aspect stays.
    ShorterSide(#[schemars(range(min = 1, max = 16_384))] u32),
    /// Width and height; the aspect does not stay.
    Stretch(#[schemars(inner(range(min = 1, max = 16_384)))] [u32; 2]),
}

/// Order of an image tensor's dimensions after the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Channel, row, column.
    Nchw,
    /// Row, column, channel.
    Nhwc,
}

/// Order of the colours in an image tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Channels {
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
    /// One channel of brightness.
    Gray,
}

/// Names of the classes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Labels {
    /// A text file with one label a line, beside the model.
    File(PathBuf),
    /// The labels themselves, in class order.
    List(Vec<String>),
}

/// From text to tokens; read by the text tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TextOptions {
    /// Longest text in tokens.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_length: Option<u32>,
    /// How token vectors become one.
    #[schemars(length(max = 64))]
    pub pooling: Option<String>,
    /// Whether the vector is brought to length 1.
    pub normalize: Option<bool>,
}

/// What is run before the model counts as ready.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WarmupOptions {
    /// By input name, the shape of one sample where the model leaves dimensions open, without the batch dimension.
    /// An open dimension that is not named here is warmed up with 1.
    #[schemars(extend(
        "maxProperties" = 64,
        "additionalProperties" = {
            "type": "array",
            "maxItems": 16,
            "items": {"type": "integer", "minimum": 1, "maximum": 1_000_000},
        }
    ))]
    pub shapes: BTreeMap<String, Vec<usize>>,
}

/// How the GPU is used, where one is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CudaOptions {
    /// Whether inputs and outputs are bound to memory of the GPU and runs are captured as CUDA graphs: one for each size of
    /// batch of the warm-up, and for other shapes once they have come often. Where the model does not allow it, it runs
    /// without. Null: yes.
    pub graphs: Option<bool>,
    /// Most memory of the GPU that ONNX Runtime takes for weights and intermediate results, for each instance. Null: all
    /// there is.
    #[schemars(range(min = 1_048_576, max = 1_125_899_906_842_624_u64))]
    pub memory_limit_bytes: Option<u64>,
}

/// Which of the folder's versions are served. Not built yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct VersionOptions {
    /// Which versions are served.
    #[schemars(length(max = 256))]
    pub policy: Option<String>,
}
