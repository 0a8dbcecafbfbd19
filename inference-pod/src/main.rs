//! Ortolan's server. See the library for what it is made of.

use std::{io::Write as _, path::PathBuf};

use anyhow::Context as _;
use clap::Parser as _;
use crds::serving::LoggingConfig;
use inference_pod::{bench, check, cli, fetch, logging, observe::events::redact::Redactor, serve, surroundings};

fn main() {
    surroundings::switch_telemetry_off();
    let result = match cli::Cli::parse().command {
        cli::Command::Serve(args) => serve(&args.config).inspect_err(|error| {
            if let Some(error) = error.downcast_ref::<serve::ServeError>() {
                error.termination().write(&args.termination_message);
            }
        }),
        cli::Command::Fetch(args) => fetch(&args),
        cli::Command::Check(args) => check::check(&args)
            .with_context(|| format!("{} cannot be served", args.path.display()))
            .and_then(|text| Ok(std::io::stdout().write_all(text.as_bytes())?)),
        cli::Command::Bench(args) => measure(&args),
    };
    if let Err(error) = &result {
        // Standard error may be closed; then there is nobody left to tell.
        let _ = writeln!(std::io::stderr(), "error: {}", logging::clean(&format!("{error:#}")));
    }
    leave(i32::from(result.is_err()))
}

/// Ends the process without what the C library does at an ordinary exit: ONNX Runtime may be at work still, on a model that is
/// loaded or a run that hangs, and must not be taken apart under it.
#[expect(unsafe_code, reason = "there is no safe binding to it")]
fn leave(code: i32) -> ! {
    let _ = std::io::stdout().flush();
    // What is recorded for the compiler is written at an ordinary exit.
    if cfg!(recorded) {
        std::process::exit(code);
    }
    // SAFETY: takes a number and does not come back.
    unsafe { libc::_exit(code) }
}

fn measure(args: &cli::Bench) -> anyhow::Result<()> {
    let report = bench::bench(args).with_context(|| format!("{} cannot be measured", args.model.display()))?;
    let text = if args.json { serde_json::to_string(&report)? + "\n" } else { report.table() };
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn fetch(args: &cli::Fetch) -> anyhow::Result<()> {
    let rust_log = surroundings::variable("RUST_LOG");
    let _logging = logging::start(&LoggingConfig::default(), rust_log.as_deref(), Redactor::of_lines(&[])?)
        .context("RUST_LOG is no filter")?;
    let report =
        fetch::fetch(args).inspect_err(|error| error.termination(&args.model).write(&args.termination_message))?;
    Ok(writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?)
}

fn serve(files: &[PathBuf]) -> anyhow::Result<()> {
    surroundings::keep_few_heaps();
    let config = serve::read_config(files)?;
    let rust_log = surroundings::variable("RUST_LOG");
    // The patterns were tried when the config was read.
    let redactor = Redactor::of_lines(&config.observability.events.redact)?;
    let logging = logging::start(&config.logging, rust_log.as_deref(), redactor).map_err(serve::ServeError::from)?;
    let (level, _writer) = logging.parts();
    Ok(serve::serve(config, Some(level))?)
}
