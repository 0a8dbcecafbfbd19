//! Rules, dashboards and the page about them: promtool takes them, each alert fires and ends, and all that is named is there.
//!
//! promtool is Prometheus' own, so a query is what Prometheus takes for one. No server runs.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod autoscaling;
mod dashboards;
mod names;
mod page;
mod promtool;
mod rules;

use std::fs;
use std::path::{Path, PathBuf};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The files of a folder of the repository with that extension, sorted.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(repository().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = entries.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    files.sort();
    assert!(!files.is_empty(), "{folder} has no {extension}");
    files
}

/// A query, and where it stands.
#[derive(Clone)]
struct Query {
    place: String,
    text: String,
}
