//! The log: one JSON object or one line of text for each event, on standard error, by a level that can be changed meanwhile.

use std::{
    fmt as text,
    io::IsTerminal as _,
    sync::{Arc, Mutex, PoisonError},
};

use crds::serving::log_level_fault;
use tracing::{Event, Subscriber};
use tracing_subscriber::{
    EnvFilter, Registry,
    filter::ParseError,
    fmt::{
        self, FmtContext,
        format::{FormatEvent, FormatFields, Writer},
    },
    layer::SubscriberExt as _,
    registry::LookupSpan,
    reload,
    util::SubscriberInitExt as _,
};

use crate::traces;

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
        let lines = lines.json().flatten_event(true).with_current_span(true).with_span_list(false);
        log.with(lines.map_event_format(|form| Traced { form, is_json })).try_init()
    } else {
        log.with(lines.map_event_format(|form| Traced { form, is_json })).try_init()
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

/// Puts the id of the trace that a line belongs to, where there is one, behind its fields.
pub(crate) struct Traced<F> {
    pub(crate) form: F,
    pub(crate) is_json: bool,
}

impl<S, N, F> FormatEvent<S, N> for Traced<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> text::Result {
        let Some(trace) = traces::current() else { return self.form.format_event(context, writer, event) };
        let mut line = String::new();
        self.form.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end();
        match line.strip_suffix('}') {
            Some(fields) if self.is_json => writeln!(writer, r#"{fields},"trace_id":"{trace}"}}"#),
            _ => writeln!(writer, "{line} trace_id={trace}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use opentelemetry::{
        Context,
        trace::{SpanContext, TraceContextExt as _, TraceFlags, TraceState},
    };

    use super::*;

    #[test]
    fn a_line_of_text_ends_with_the_trace_that_is_sent() {
        let (reader, writer) = io::pipe().unwrap();
        let lines =
            fmt::layer().with_writer(Mutex::new(writer)).map_event_format(|form| Traced { form, is_json: false });
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            for flags in [TraceFlags::SAMPLED, TraceFlags::NOT_SAMPLED] {
                let span = SpanContext::new(7.into(), 8.into(), flags, false, TraceState::NONE);
                let _here = Context::new().with_remote_span_context(span).attach();
                tracing::info!("spilt");
            }
        });
        let text = io::read_to_string(reader).unwrap();
        let ends: Vec<&str> = text.lines().map(|line| line.split_once("spilt").unwrap().1).collect();
        assert_eq!(ends, [" trace_id=00000000000000000000000000000007", ""]);
    }

    #[test]
    fn a_filter_that_would_switch_the_log_off_is_none() {
        assert!(filter("info,ortolan_operator::scaling=debug").is_ok());
        assert!(matches!(filter("warning"), Err(LevelError::Level(_))));
        assert!(matches!(filter("info,x=warning"), Err(LevelError::Filter(_))));
    }
}
