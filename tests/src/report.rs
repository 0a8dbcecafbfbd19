//! Tells a person which step runs and how long each one took.
//!
//! On a terminal the running step shows as a spinner; elsewhere, a log for instance, every finished step is one plain line.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Where steps are told. Goes to the error output, so that a command's output stays free for its result.
#[derive(Debug, Clone, Copy)]
pub struct Report {
    spinner: bool,
    quiet: bool,
}

impl Report {
    /// Tells every step, with a spinner if a person watches.
    pub fn to_stderr() -> Self {
        Self { spinner: std::io::stderr().is_terminal(), quiet: false }
    }

    /// Tells nothing.
    pub fn silent() -> Self {
        Self { spinner: false, quiet: true }
    }

    /// Begins a step. It ends, and is told, when [`Step::done`] is called; dropped before that, it is told as failed.
    pub fn step(&self, title: impl Into<String>) -> Step {
        let title = title.into();
        let bar = if self.spinner { spinner(&title) } else { ProgressBar::hidden() };
        Step { title, bar, begun: Instant::now(), quiet: self.quiet, told: false }
    }

    /// Tells something that is no step.
    pub fn say(&self, line: &str) {
        if !self.quiet {
            write_line(line);
        }
    }
}

/// A step that runs.
#[derive(Debug)]
pub struct Step {
    title: String,
    bar: ProgressBar,
    begun: Instant,
    quiet: bool,
    told: bool,
}

impl Step {
    /// Ends the step well.
    pub fn done(mut self) {
        self.tell("done  ");
    }

    fn tell(&mut self, how: &str) {
        self.told = true;
        self.bar.finish_and_clear();
        if !self.quiet {
            write_line(&format!("  {how} {:>6}  {}", seconds(self.begun.elapsed()), self.title));
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if !self.told {
            self.tell("failed");
        }
    }
}

/// An error with all its causes, in one line so far as they are.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn spinner(title: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_message(title.to_owned());
    if let Ok(style) = ProgressStyle::with_template("  {spinner}   {elapsed:>6}  {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// A report that cannot be written is no reason to fail.
fn write_line(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
