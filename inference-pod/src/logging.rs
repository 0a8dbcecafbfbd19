//! Logs: a filter, and one JSON object or one line of text for each event, on standard error.
//!
//! Lines go through a bounded channel to a thread that writes them: nobody who has something to say waits for whoever reads
//! standard error. What does not fit is dropped and counted.

use std::{
    io::IsTerminal as _,
    sync::{Mutex, PoisonError},
};

use crds::serving::{LogFormat, LoggingConfig, log_level_fault};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Registry, filter::ParseError, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

/// Lines that may wait to be written.
const LINES: usize = 8192;

/// A log that has begun. What waits is written when the writer is dropped.
pub struct Logging {
    writer: WorkerGuard,
    level: LogLevel,
}

impl Logging {
    /// What changes its level, and the writer.
    pub fn parts(self) -> (LogLevel, WorkerGuard) {
        (self.level, self.writer)
    }
}

/// Why the log cannot have a level.
#[derive(Debug, thiserror::Error)]
pub enum LevelError {
    /// It is neither a level nor a filter.
    #[error("{0}")]
    Level(String),
    /// It is a filter that cannot be read.
    #[error("expected a level or a filter")]
    Filter(#[from] ParseError),
}

/// Changes the level of the log while it is written.
pub struct LogLevel {
    handle: reload::Handle<EnvFilter, Registry>,
    written: Mutex<String>,
    dropped: ErrorCounter,
}

impl LogLevel {
    /// The level or filter.
    #[must_use]
    pub fn get(&self) -> String {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Another level or filter.
    ///
    /// # Errors
    /// [`LevelError`] where it is none.
    pub fn set(&self, level: &str) -> Result<(), LevelError> {
        let filter = filter(level)?;
        // The log lives as long as the process.
        let _ = self.handle.reload(filter);
        level.clone_into(&mut self.written.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    /// Lines that were dropped because too many waited.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.dropped_lines() as u64
    }
}

/// Starts logging. `rust_log` (the variable `RUST_LOG`) wins over the config's level.
///
/// # Errors
/// [`LevelError`] where the level is no filter.
pub fn start(config: &LoggingConfig, rust_log: Option<&str>) -> Result<Logging, LevelError> {
    let level = rust_log.unwrap_or(&config.level);
    let (filter, handle) = reload::Layer::new(filter(level)?);
    let is_terminal = std::io::stderr().is_terminal();
    let builder = NonBlockingBuilder::default().buffered_lines_limit(LINES).lossy(true).thread_name("log");
    let (writer, guard) = builder.finish(std::io::stderr());
    let dropped = writer.error_counter();
    let lines = fmt::layer().with_writer(writer).with_ansi(is_terminal);
    let log = tracing_subscriber::registry().with(filter);
    // A second start (in tests) keeps the first.
    let _ = match config.format {
        LogFormat::Json => {
            log.with(lines.json().flatten_event(true).with_current_span(true).with_span_list(false)).try_init()
        }
        LogFormat::Plain => log.with(lines.with_target(false)).try_init(),
    };
    Ok(Logging { writer: guard, level: LogLevel { handle, written: Mutex::new(level.to_owned()), dropped } })
}

fn filter(level: &str) -> Result<EnvFilter, LevelError> {
    if let Some(fault) = log_level_fault(level) {
        return Err(LevelError::Level(fault));
    }
    // What ONNX Runtime says at info is of use to its developers; who wants it names it.
    let quiet = if level.contains("ort=") { "" } else { "ort=warn," };
    // Likewise what is said of each connection to a collector of traces.
    Ok(format!("{quiet}hyper_util=info,reqwest=info,opentelemetry=warn,{level}").parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_would_switch_the_log_off_is_none() {
        assert!(filter("info,inference_pod::queue=debug").is_ok());
        assert!(matches!(filter("warning"), Err(LevelError::Level(_))));
        assert!(matches!(filter("info,x=warning"), Err(LevelError::Filter(_))));
    }
}
