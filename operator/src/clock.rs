//! The time of day, asked for in one place: whatever decides takes it as an argument.

use k8s_openapi::jiff::Timestamp;

/// The time.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub fn now() -> Timestamp {
    Timestamp::now()
}
