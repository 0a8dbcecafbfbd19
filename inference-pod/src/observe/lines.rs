//! Lines of the log that did not reach standard error.

use std::{
    io::{self, Write},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tracing_appender::non_blocking::ErrorCounter;

/// A loss is told for so long.
const LATELY: Duration = Duration::from_secs(60);

/// Those of this process, which has one log.
pub static LOST: LostLines = LostLines::new();

/// What became of lines that nobody can read.
#[derive(Debug)]
pub struct LostLines {
    full: OnceLock<ErrorCounter>,
    failed: AtomicU64,
    /// How many were lost when somebody looked last, and when there were more than before.
    seen: Mutex<(u64, Option<Instant>)>,
}

impl LostLines {
    const fn new() -> Self {
        Self { full: OnceLock::new(), failed: AtomicU64::new(0), seen: Mutex::new((0, None)) }
    }

    /// Counts those too that the log's channel has no room for.
    pub fn count(&self, full: ErrorCounter) {
        // A second log (in tests) is not written.
        let _ = self.full.set(full);
    }

    /// Too many waited.
    #[must_use]
    pub fn full(&self) -> u64 {
        self.full.get().map_or(0, |full| full.dropped_lines() as u64)
    }

    /// They could not be written.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// All of them.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.full() + self.failed()
    }

    /// Whether any was lost in the last minute, as far as this is asked now and then.
    #[must_use]
    pub fn any_lately(&self, now: Instant) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let total = self.total();
        if total > seen.0 {
            *seen = (total, Some(now));
        }
        seen.1.is_some_and(|last| now.saturating_duration_since(last) < LATELY)
    }
}

/// Writes lines, and counts those that it cannot write.
#[derive(Debug)]
pub struct Counted<W>(pub W, pub &'static LostLines);

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    /// A line.
    fn write_all(&mut self, line: &[u8]) -> io::Result<()> {
        self.0.write_all(line).inspect_err(|_| _ = self.1.failed.fetch_add(1, Ordering::Relaxed))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Has no room.
    struct Full;

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_and_told_for_a_minute() {
        static LOST: LostLines = LostLines::new();
        let now = Instant::now();
        assert!(!LOST.any_lately(now));
        Counted(Full, &LOST).write_all(b"a line\n").unwrap_err();
        Counted(Vec::new(), &LOST).write_all(b"a line\n").unwrap();
        assert_eq!((LOST.failed(), LOST.full(), LOST.total()), (1, 0, 1));
        assert!(LOST.any_lately(now) && LOST.any_lately(now + LATELY / 2));
        assert!(!LOST.any_lately(now + LATELY));
    }
}
