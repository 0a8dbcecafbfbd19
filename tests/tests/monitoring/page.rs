//! What docs/observability.md tells people to ask and to set up.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Query, promtool, repository};

/// What stands in the page's fences of that language.
fn fenced(language: &str) -> Vec<String> {
    let page = fs::read_to_string(repository().join("docs/observability.md")).unwrap();
    let open = format!("\n```{language}\n");
    let blocks = page.split(&open).skip(1).map(|rest| rest.split_once("\n```").unwrap().0.to_owned());
    blocks.collect()
}

pub(crate) fn queries() -> Vec<Query> {
    let query = |text: String| Query { place: "docs/observability.md".to_owned(), text };
    fenced("promql").into_iter().map(query).collect()
}

#[test]
fn the_queries_of_the_page_are_queries() {
    assert!(queries().len() >= 10);
    promtool::takes("page", &queries());
}

#[test]
fn prometheus_takes_the_configs_that_are_shown_and_shipped() {
    let mut configs: Vec<PathBuf> = vec![repository().join("deploy/compose/prometheus.yaml")];
    for (number, text) in fenced("yaml").into_iter().enumerate() {
        let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("config-{number}.yaml"));
        fs::write(&file, text).unwrap();
        configs.push(file);
    }
    assert!(configs.len() >= 3);
    promtool::run(&["check", "config", "--syntax-only"], &configs).unwrap_or_else(|said| panic!("{said}"));
}
