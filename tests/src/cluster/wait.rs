//! Waits for a state to be reached, never for a time to pass.

use std::pin::pin;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt as _};

/// 100 ms: soon enough for a person.
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);

/// 1 s: what comes late should be seen soon then.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A look that is costly is repeated seldom.
const PAUSE_PER_LOOK: u32 = 4;

/// The longer it takes, the less a moment more matters, and dozens that wait at once would keep the API busy.
const PAUSE_PER_WAIT: f64 = 0.1;

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
    let mut last = "nothing".to_owned();
    // The limit holds for a look that never ends too, as one at a frozen API.
    let looks = async {
        loop {
            let looked = Instant::now();
            match look().await {
                Ok(found) => return found,
                Err(seen) => last = seen.to_string(),
            }
            let pause = (looked.elapsed() * PAUSE_PER_LOOK).max(begun.elapsed().mul_f64(PAUSE_PER_WAIT));
            tokio::time::sleep(pause.clamp(SHORTEST_PAUSE, LONGEST_PAUSE)).await;
        }
    };
    match tokio::time::timeout(limit, looks).await {
        Ok(found) => Ok((found, begun.elapsed())),
        Err(_) => Err(WaitError { what: what.to_owned(), limit, last }),
    }
}

/// The same over states as they come, so that none is missed that lasts for a moment.
///
/// # Errors
/// [`WaitError`] after `limit`, and where no more states come.
pub async fn until_seen<T, State, Seen: std::fmt::Display>(
    what: &str,
    limit: Duration,
    states: impl Stream<Item = State>,
    mut look: impl FnMut(State) -> Result<T, Seen>,
) -> Result<(T, Duration), WaitError> {
    let begun = Instant::now();
    let mut last = "nothing".to_owned();
    let looks = async {
        let mut states = pin!(states);
        while let Some(state) = states.next().await {
            match look(state) {
                Ok(found) => return Some(found),
                Err(seen) => last = seen.to_string(),
            }
        }
        None
    };
    match tokio::time::timeout(limit, looks).await {
        Ok(Some(found)) => Ok((found, begun.elapsed())),
        Ok(None) | Err(_) => Err(WaitError { what: what.to_owned(), limit, last }),
    }
}
