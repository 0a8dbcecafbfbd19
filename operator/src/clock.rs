//! The time of day, asked for in one place: whatever decides takes it as an argument.

use std::time::Duration;

use k8s_openapi::jiff::Timestamp;

/// The time.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// That much later, or the last moment that there is: annotations may tell of any.
#[must_use]
pub fn later(time: Timestamp, by: Duration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}
