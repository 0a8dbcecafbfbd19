//! Runs promtool.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use ortolan_tests::programs::{self, Profile, Purpose};
use ortolan_tests::report::Report;
use serde_json::json;

use crate::Query;

/// Runs promtool on these files. Returns what it said where it found fault.
pub(crate) fn run(arguments: &[&str], files: &[PathBuf]) -> Result<(), String> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    let program = PROGRAM.get_or_init(|| {
        let programs = programs::ensure(Profile::newest(), &[Purpose::Rules], Report::to_stderr()).unwrap();
        programs.path("promtool").unwrap().to_owned()
    });
    let output = Command::new(program).args(arguments).args(files).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said).into_owned()) }
}

/// That Prometheus takes each of them for a query. Its words about one that it does not take name the number of it.
pub(crate) fn takes(name: &str, queries: &[Query]) {
    assert!(!queries.is_empty());
    let rule = |(number, query): (usize, &Query)| json!({"record": format!("query_{number}"), "expr": query.text});
    let rules: Vec<_> = queries.iter().enumerate().map(rule).collect();
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.yaml"));
    // What is JSON is YAML too.
    fs::write(&file, json!({"groups": [{"name": name, "rules": rules}]}).to_string()).unwrap();
    let told = |(number, query): (usize, &Query)| format!("query_{number} is {}: {}\n", query.place, query.text);
    let legend: String = queries.iter().enumerate().map(told).collect();
    run(&["check", "rules", "--lint=none"], &[file]).unwrap_or_else(|said| panic!("{said}\n{legend}"));
}
