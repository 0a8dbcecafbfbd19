//! Mode Operator of `spec.scaling`: the leader reads what the pods tell, decides, and writes `/scale`.
//!
//! ```text
//! pods' :9090/load ▸ reader ▸ Reading ▸ History ▸ decide ▸ Decision ▸ scaler ▸ /scale
//! ```
//!
//! [`decide`] is a pure function of a history and the time, and knows nothing of Kubernetes: the simulator drives the same one.

pub mod decide;
pub mod history;
mod load;
pub mod outcome;
pub mod policy;
pub mod reader;
pub mod reason;
pub mod scaler;
pub mod spec;

#[cfg(test)]
mod tests;

pub use decide::{Decision, decide};
pub use history::{History, Reading, Share};
pub use outcome::{Outcome, Outcomes, State};
pub use policy::Policy;
pub use reason::Reason;
