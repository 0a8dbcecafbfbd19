//! From a checked spec and a plan to the objects that should be there. Plain data to plain data.
//!
//! ```text
//! spec ▸ Revision {hash, config, template}   rendered once, at birth, and stored in the revision's ConfigMap
//!                    │
//! plan ▸ ConfigMap, Deployment for each revision ▸ Services ▸ dashboard ▸ Objects ◂ who scales
//! ```
//!
//! What a revision was born with is used for ever: another operator that would render its pods differently restarts none.

pub mod autoscaler;
pub mod config;
pub mod monitoring;
mod objects;
pub mod overlay;
pub mod promql;
pub mod revision;
mod unit;

pub use autoscaler::Scaler;
pub use objects::{Objects, build, build_of_refused, shared_owner};
pub use revision::{Revision, Revisions};
pub use unit::{Images, ServingUnit};
