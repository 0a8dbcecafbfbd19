//! The termination message: why the process ended, for the operator, which reads it from the pod's status.

use std::{fs, path::Path};

use serde::Serialize;

use crate::logging;

/// Kubelet shows no more than this.
const LONGEST_BYTES: usize = 4096;

/// An error with everything that caused it, for people.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Why the process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Termination {
    /// The model that is to blame; none where it is the process itself.
    pub model: Option<String>,
    /// A condition reason, for example `InvalidModel`.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Termination {
    /// Writes the message where somebody can have asked for it: into an existing file, or beside others.
    pub fn write(&self, path: &Path) {
        let asked_for =
            path.exists() || path.parent().is_some_and(|folder| folder.is_dir() && folder != Path::new("/dev"));
        if !asked_for {
            return;
        }
        if let Err(error) = fs::write(path, self.to_json()) {
            tracing::warn!(%error, path = %path.display(), "cannot write the termination message");
        }
    }

    /// The message as JSON, cut so that it stays whole under kubelet's limit.
    fn to_json(&self) -> String {
        let mut short = Self { message: logging::clean(&self.message).into_owned(), ..self.clone() };
        loop {
            let json = serde_json::to_string(&short).unwrap_or_default();
            if json.len() <= LONGEST_BYTES || short.message.is_empty() {
                return json;
            }
            let keep = short.message.len() - (json.len() - LONGEST_BYTES).min(short.message.len());
            let end = short.message.floor_char_boundary(keep);
            short.message.truncate(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_cut_and_stays_json() {
        let message = "\"ü".repeat(5_000);
        let json = Termination { model: Some("espresso".to_owned()), reason: "InvalidModel", message }.to_json();
        assert!(json.len() <= LONGEST_BYTES, "{}", json.len());
        let read: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(read["reason"], "InvalidModel");
        assert_eq!(read["model"], "espresso");
    }

    #[test]
    fn nobody_who_did_not_ask_gets_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let message = Termination { model: None, reason: "InvalidConfig", message: String::new() };
        message.write(&folder.path().join("missing/log"));
        assert!(!folder.path().join("missing").exists());
        message.write(&folder.path().join("log"));
        assert!(folder.path().join("log").exists());
    }
}
