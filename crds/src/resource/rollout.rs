//! How a changed spec takes over: `spec.rollout`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Duration, rules};

/// How the pods of a new revision replace those of the old one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(extend("x-kubernetes-validations" = rules::of_rollout()))]
pub struct Rollout {
    /// Which pods go first.
    pub strategy: RolloutStrategy,
    /// With Auto: how long an additional pod may stay unschedulable before an old one makes room for it.
    pub surge_timeout: Duration,
    /// A revision that is not ready by then gives way to the one before it.
    pub progress_deadline: Duration,
    /// Old revisions that are kept.
    #[schemars(range(max = 20))]
    pub history_limit: u32,
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            strategy: RolloutStrategy::Auto,
            surge_timeout: Duration::seconds(60),
            progress_deadline: Duration::minutes(10),
            history_limit: 5,
        }
    }
}

/// Which pods go first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RolloutStrategy {
    /// As Surge; if there is no room for an additional pod, as InPlace.
    #[default]
    Auto,
    /// One more, then one less: never fewer pods than wanted.
    Surge,
    /// One less, and when it is gone one more: never more devices than wanted.
    InPlace,
    /// All old ones down, then the new ones up: never two revisions at once.
    Recreate,
}
