//! The time of day, asked for in one place: whatever decides takes it as an argument.

use std::time::SystemTime;

use jiff::Timestamp;

/// The time, as events carry it.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub fn now() -> SystemTime {
    SystemTime::now()
}

/// The time, as it is written.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "the one place")]
pub fn timestamp() -> Timestamp {
    Timestamp::now()
}
