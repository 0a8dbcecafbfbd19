//! Runs a command to its end and keeps what it said.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::{fmt, io};

/// Why a command did not do what it was run for.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It never ran.
    #[error("`{line}` could not be started")]
    Start {
        /// The command line.
        line: CommandLine,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// It ran and ended with a failure.
    #[error("`{line}` ended with {status}: {said}")]
    Failed {
        /// The command line.
        line: CommandLine,
        /// Exit status or signal.
        status: std::process::ExitStatus,
        /// What it wrote on its error output, or else on its output.
        said: String,
    },
}

/// A command as a person would type it, for messages alone: nothing is quoted.
#[derive(Debug, Clone)]
pub struct CommandLine(String);

impl fmt::Display for CommandLine {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl From<&Command> for CommandLine {
    fn from(command: &Command) -> Self {
        let program = PathBuf::from(command.get_program());
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let arguments = command.get_args().map(|argument| argument.to_string_lossy().into_owned());
        Self(std::iter::once(name).chain(arguments).collect::<Vec<_>>().join(" "))
    }
}

/// Runs `command` to its end and returns what it wrote on its output.
pub(crate) fn output(command: &mut Command) -> Result<String, RunError> {
    let line = CommandLine::from(&*command);
    match command.output() {
        Ok(Output { status, stdout, .. }) if status.success() => Ok(String::from_utf8_lossy(&stdout).into_owned()),
        Ok(Output { status, stdout, stderr }) => {
            let said = if stderr.is_empty() { stdout } else { stderr };
            Err(RunError::Failed { line, status, said: String::from_utf8_lossy(&said).trim().to_owned() })
        }
        Err(source) => Err(RunError::Start { line, source }),
    }
}
