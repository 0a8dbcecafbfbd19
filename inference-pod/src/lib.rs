//! Ortolan's server: predictions over HTTP and gRPC, batched, run by ONNX Runtime. It needs no Kubernetes.
//!
//! ```text
//! prediction   http ▸ decode ▸ queue ▸ take ▸ stack ▸ session ▸ split ▸ reply ▸ classify ▸ http
//! imports      main ▸ serve ▸ {grpc ▸} http ▸ model ▸ {queue, session} ▸ tensor
//! fetch        a process of its own, before: flags ▸ plan ▸ download ▸ check ▸ place
//! ```
//!
//! Vocabulary: a *model* is a loaded ONNX graph with its task; a *sample* is one input; a *job* is a request's samples
//! and their way back; an *instance* is one session with its worker thread; a *bucket* is a batch size that was warmed
//! up and timed. A batch is closed at the moment an instance becomes free, never before, so it is as large as it can be
//! without anyone having waited for it.
//!
//! Deliberately absent: text generation, ensembles, sequence batching, a response cache.

pub mod bench;
pub mod check;
pub mod classify;
pub mod cli;
pub mod clock;
pub mod connection;
pub mod decode;
pub mod fetch;
pub mod files;
pub mod grpc;
pub mod http;
pub mod infer;
pub mod integral;
pub mod jpeg;
pub mod leftover;
pub mod lifecycle;
pub mod logging;
pub mod model;
pub mod observe;
pub mod picture;
pub mod probe;
pub mod queue;
pub mod registry;
pub mod serve;
pub mod session;
pub mod simulate;
pub mod surroundings;
pub mod tensor;
pub mod termination;
pub mod threads;
pub mod times;
pub mod worker;
