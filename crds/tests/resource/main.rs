//! The resource `InferenceModel`: its generated definition, its CEL rules, and what the types make of an object.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod definition;
mod object;
mod operations;
mod reference;
mod refusals;
mod rules;
