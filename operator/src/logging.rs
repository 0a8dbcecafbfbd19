//! The log: one JSON object or one line of text for each event, on standard error, by a level that can be changed meanwhile.

use std::{
    io::IsTerminal as _,
    sync::{Arc, Mutex, PoisonError},
};

use crds::serving::log_level_fault;
use tracing_subscriber::{
    EnvFilter, Registry, filter::ParseError, fmt, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

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
#[derive(Debug)]
pub struct LogLevel {
    handle: reload::Handle<EnvFilter, Registry>,
    written: Mutex<String>,
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
}

/// Starts logging.
///
/// # Errors
/// [`LevelError`] where the level is no filter.
pub fn start(level: &str, is_json: bool) -> Result<Arc<LogLevel>, LevelError> {
    let (filter, level) = changeable(level)?;
    let log = tracing_subscriber::registry().with(filter);
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    // A second start (in tests) keeps the first.
    let _ = if is_json {
        log.with(lines.json().flatten_event(true).with_current_span(true).with_span_list(false)).try_init()
    } else {
        log.with(lines).try_init()
    };
    Ok(level)
}

/// A filter, and what changes it.
///
/// # Errors
/// [`LevelError`] where the level is no filter.
pub fn changeable(level: &str) -> Result<(reload::Layer<EnvFilter, Registry>, Arc<LogLevel>), LevelError> {
    let (layer, handle) = reload::Layer::new(filter(level)?);
    Ok((layer, Arc::new(LogLevel { handle, written: Mutex::new(level.to_owned()) })))
}

/// What a level lets through.
///
/// # Errors
/// [`LevelError`] where it is none.
pub fn filter(level: &str) -> Result<EnvFilter, LevelError> {
    if let Some(fault) = log_level_fault(level) {
        return Err(LevelError::Level(fault));
    }
    // What is said of each connection is of use to its developers; who wants it names it.
    Ok(format!("hyper_util=info,reqwest=info,opentelemetry=warn,{level}").parse()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_that_would_switch_the_log_off_is_none() {
        assert!(filter("info,ortolan_operator::scaling=debug").is_ok());
        assert!(matches!(filter("warning"), Err(LevelError::Level(_))));
        assert!(matches!(filter("info,x=warning"), Err(LevelError::Filter(_))));
    }
}
