//! Waits for a state to be reached, never for a time to pass.

use std::time::{Duration, Instant};

/// 100 ms: soon enough for a person, and no load.
const PAUSE: Duration = Duration::from_millis(100);

/// What was waited for did not come.
#[derive(Debug, thiserror::Error)]
#[error("waited {} s for {what}; last seen: {last}", limit.as_secs())]
pub struct WaitError {
    what: String,
    limit: Duration,
    last: String,
}

/// Looks again and again until `look` finds what it wants, at most for `limit`. Returns it, and how long it took.
///
/// `look` says what it saw instead when it is not content; the last of these words are the error's.
///
/// # Errors
/// [`WaitError`] after `limit`.
pub async fn until<T, Seen: std::fmt::Display>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<T, Seen>,
) -> Result<(T, Duration), WaitError> {
    let begun = Instant::now();
    loop {
        match look().await {
            Ok(found) => return Ok((found, begun.elapsed())),
            Err(seen) if begun.elapsed() > limit => {
                return Err(WaitError { what: what.to_owned(), limit, last: seen.to_string() });
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}
