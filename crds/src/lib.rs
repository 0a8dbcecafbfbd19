//! The contract between Ortolan's parts: what people and the operator write, and what the pod reads.
//!
//! ```text
//! InferenceModel ──▸ resource::InferenceModel ──▸ operator ──▸ a file of settings
//!
//! files, environment ──▸ serving::layers ──▸ serving::check ──▸ serving::ServingConfig ──▸ inference-pod
//!
//! inference-pod ──▸ load::Load ──▸ whoever scales
//! ```
//!
//! Vocabulary: a *layer* is one source of settings (a file, the environment), a *fault* is one thing that is wrong with
//! the settings, with its path. This crate does no input or output: whoever calls it brings the text.
//!
//! Feature `resource` (off by default) adds the Kubernetes resource; without it the crate knows nothing of Kubernetes.

pub mod exposition;
pub mod load;
#[cfg(feature = "resource")]
pub mod resource;
pub mod serving;
