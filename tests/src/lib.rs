//! Ortolan's end-to-end tests, and the cluster that they run on.
//!
//! [`cluster`] starts a real Kubernetes on one Linux machine, without a registry and without Docker; the command `cluster` is the
//! same by hand. [`images`] builds our images from their Dockerfiles, [`probe`] that of a small client and server. [`requirements`]
//! says what the machine lacks, [`programs`] builds what runs, [`compiled`] finds what cargo built, [`report`] tells how far it is.
//!
//! [`autoscaling`] needs no cluster: it simulates one, with the operator's own decision.

#![allow(clippy::disallowed_methods, reason = "a harness is told by its environment what to use")]

pub mod autoscaling;
pub mod cluster;
pub mod compiled;
pub mod images;
pub mod probe;
pub mod programs;
pub mod report;
pub mod requirements;
mod run;
