//! Logs: a filter, and one JSON object or one line of text for each event, on standard error.

use std::io::IsTerminal as _;

use crds::serving::{LogFormat, LoggingConfig};
use tracing_subscriber::{EnvFilter, filter::ParseError, fmt};

/// Starts logging. `rust_log` (the variable `RUST_LOG`) wins over the config's level.
///
/// # Errors
/// [`ParseError`] where the level is no filter.
pub fn start(config: &LoggingConfig, rust_log: Option<&str>) -> Result<(), ParseError> {
    let level = rust_log.unwrap_or(&config.level);
    // What ONNX Runtime says at info is of use to its developers; who wants it names it.
    let quiet = if level.contains("ort=") { "" } else { "ort=warn," };
    let filter: EnvFilter = format!("{quiet}{level}").parse()?;
    let is_terminal = std::io::stderr().is_terminal();
    let base = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(is_terminal);
    // A second start (in tests) keeps the first.
    let _ = match config.format {
        LogFormat::Json => base.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
        LogFormat::Plain => base.with_target(false).try_init(),
    };
    Ok(())
}
