//! Ortolan's operator: from an `InferenceModel` to pods that serve it.
//!
//! A skeleton: it watches and writes nothing yet. What it will be made of, and which way data flows through it, stands in
//! `docs/architecture.md`.
