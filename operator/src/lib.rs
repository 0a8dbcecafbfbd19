//! Ortolan's operator: from an `InferenceModel` to pods that serve it.
//!
//! ```text
//! observe ▸ validate ▸ build ▸ apply ▸ status
//!    │                   │       │
//!  caches of watches   rollout  server-side apply, only where something differs, only while leading
//! ```
//!
//! What the InferenceModels of a namespace share is brought about beside that, by [`shared`], once for all of them.
//!
//! Vocabulary: a *revision* is an immutable pod template, rendered once and kept in its ConfigMap; the *target* is the
//! revision that the spec asks for; a *finding* is what is wrong with one pod.
//!
//! Decisions are pure functions: `validate`, `build`, `rollout`, `diagnose` and `status` do no input or output and get the
//! time as an argument. Deliberately absent: webhooks, finalizers, reading Secrets or nodes, and a phase.

pub mod admin;
pub mod announce;
pub mod apply;
pub mod autoscalers;
pub mod build;
pub mod cache;
pub mod causes;
pub mod clock;
pub mod controller;
pub mod diagnose;
pub mod digest;
pub mod health;
pub mod info;
pub mod keda;
pub mod kept;
pub mod kinds;
pub mod leader;
pub mod logging;
pub mod memory;
pub mod metrics;
pub mod names;
pub mod observability;
pub mod observe;
pub mod operator;
pub mod owner;
pub mod process;
pub mod prometheus;
pub mod quota;
pub mod recent;
pub mod rollout;
pub mod salvage;
pub mod scaling;
mod scaling_active;
pub mod settings;
pub mod shared;
mod situation;
pub mod status;
pub mod stuck;
pub mod traces;
pub mod validate;
pub mod waiting;
