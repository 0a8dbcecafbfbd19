//! How tests end, and how they tell what they see.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ortolan_tests::report::chain;

/// The longest that any state is waited for.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// How a test ends: any error fails it.
pub(crate) type Outcome<T = ()> = Result<T, Failure>;

/// Why a test failed, with all causes.
#[derive(Debug, Clone)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(chain(&error))
    }
}

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Prints a line that shows whether or not the test fails.
pub(crate) fn tell(line: &str) {
    let _ = writeln!(std::io::stderr(), "  {line}");
}

/// Prints how long something took.
pub(crate) fn tell_time(what: &str, time: Duration) {
    tell(&format!("{:>6.2} s  {what}", time.as_secs_f64()));
}
