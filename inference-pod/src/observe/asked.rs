//! Facts that somebody else is asked for who may not answer: a disk that hangs, a driver that does.
//!
//! ```text
//! thread: ask ▸ keep ▸ wait, and again        whoever wants the fact: what was kept, and how old it is
//! ```

use std::{
    fmt, io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

/// Asked for so often.
const INTERVAL: Duration = Duration::from_secs(2);

/// What was said longer ago says nothing of now.
pub const STALE: Duration = Duration::from_secs(15);

/// What was said last. A thread of its own asks, and ends soon after the last of these is dropped.
pub struct Asked<T>(Arc<Mutex<Last<T>>>);

#[derive(Debug)]
struct Last<T> {
    value: Option<T>,
    /// When that was; at first, when somebody began to ask.
    at: Instant,
}

impl<T> Clone for Asked<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Asked<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asked")
    }
}

fn lock<T>(last: &Mutex<Last<T>>) -> MutexGuard<'_, Last<T>> {
    last.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T: Clone + Send + 'static> Asked<T> {
    /// Asks now and then, on a thread. `find` is called there first: what it finds is asked; `None` where nobody is there to
    /// ask, and then the thread ends.
    ///
    /// # Errors
    /// What the system said where it could not start a thread.
    pub fn start<A: FnMut() -> T>(
        thread_name: &'static str,
        find: impl FnOnce() -> Option<A> + Send + 'static,
    ) -> io::Result<Self> {
        Self::every(INTERVAL, thread_name, find)
    }

    fn every<A: FnMut() -> T>(
        interval: Duration,
        thread_name: &'static str,
        find: impl FnOnce() -> Option<A> + Send + 'static,
    ) -> io::Result<Self> {
        let last = Arc::new(Mutex::new(Last { value: None, at: Instant::now() }));
        let kept = Arc::downgrade(&last);
        thread::Builder::new().name(thread_name.to_owned()).spawn(move || {
            let Some(mut ask) = find() else { return };
            // Nothing that others wait for is held while somebody is asked.
            while kept.strong_count() > 0 {
                let value = ask();
                let Some(last) = kept.upgrade() else { return };
                *lock(&last) = Last { value: Some(value), at: Instant::now() };
                drop(last);
                thread::sleep(interval);
            }
        })?;
        Ok(Self(last))
    }

    /// One whose answer never changes.
    #[cfg(test)]
    pub fn always(value: T) -> Self {
        Self(Arc::new(Mutex::new(Last { value: Some(value), at: Instant::now() })))
    }

    /// What was said last, where anything was, and how long ago; else for how long nothing has been said. Never waits.
    #[must_use]
    pub fn last(&self, now: Instant) -> (Option<T>, Duration) {
        let last = lock(&self.0);
        (last.value.clone(), now.saturating_duration_since(last.at))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn one_that_does_not_answer_holds_nobody_up_and_its_last_word_grows_old() {
        let (answers, answer) = mpsc::sync_channel(1);
        let ask = move || answer.recv().unwrap_or_default();
        let asked = Asked::<u64>::every(Duration::ZERO, "asked", move || Some(ask)).unwrap();
        let began = Instant::now();
        assert_eq!(asked.last(began).0, None);
        answers.send(7).unwrap();
        while asked.last(Instant::now()).0 != Some(7) {
            assert!(began.elapsed() < Duration::from_secs(10), "nothing was kept");
            thread::yield_now();
        }
        // Nobody answers any more.
        let before = Instant::now();
        let (value, age) = asked.last(before + STALE);
        assert_eq!(value, Some(7));
        assert!(age >= STALE - Duration::from_millis(1), "{age:?}");
        assert!(before.elapsed() < Duration::from_secs(1), "it waited");
    }

    #[test]
    fn where_nobody_is_there_to_ask_nothing_is_said() {
        let asked = Asked::<u64>::start("asked", || None::<fn() -> u64>).unwrap();
        assert_eq!(asked.last(Instant::now()).0, None);
    }
}
