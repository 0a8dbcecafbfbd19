//! The rule files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

use crate::{Query, autoscaling, files, promtool};

/// Where the runbooks are.
const RUNBOOKS: &str = "https://github.com/ortolan-dev/ortolan/blob/main/docs/observability.md#";

#[derive(Deserialize)]
struct RuleFile {
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    rules: Vec<Rule>,
}

/// A rule that records, or one that alerts.
#[derive(Deserialize)]
pub(crate) struct Rule {
    pub(crate) record: Option<String>,
    pub(crate) alert: Option<String>,
    expr: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// What of a file of tests is looked at here; promtool reads it all.
#[derive(Deserialize)]
struct TestFile {
    tests: Vec<TestGroup>,
}

#[derive(Deserialize)]
struct TestGroup {
    #[serde(default)]
    alert_rule_test: Vec<AlertTest>,
    #[serde(default)]
    promql_expr_test: Vec<QueryTest>,
}

#[derive(Deserialize)]
struct AlertTest {
    alertname: String,
    exp_alerts: Vec<serde_json::Value>,
}

#[derive(Deserialize)]
struct QueryTest {
    expr: String,
}

/// The rules for Prometheus; those for prometheus-adapter lie beside them.
fn rule_files() -> Vec<PathBuf> {
    files("deploy/rules", "yaml").into_iter().filter(|path| !path.ends_with(autoscaling::ADAPTER)).collect()
}

pub(crate) fn all() -> Vec<Rule> {
    let read = |path| serde_saphyr::from_str::<RuleFile>(&fs::read_to_string(path).unwrap()).unwrap();
    let groups = rule_files().into_iter().flat_map(|path| read(path).groups);
    groups.flat_map(|group| group.rules).collect()
}

pub(crate) fn queries() -> Vec<Query> {
    let query = |rule: Rule| Query { place: rule.alert.or(rule.record).unwrap(), text: rule.expr };
    all().into_iter().map(query).collect()
}

#[test]
fn promtool_takes_the_rules() {
    promtool::run(&["check", "rules", "--lint=all", "--lint-fatal"], &rule_files()).unwrap();
}

#[test]
fn rules_do_what_their_tests_say() {
    promtool::run(&["test", "rules"], &files("deploy/rules/tests", "yaml")).unwrap_or_else(|said| panic!("{said}"));
}

#[test]
fn each_alert_is_seen_to_fire_and_to_end_and_each_recorded_series_has_a_value() {
    let read = |path| serde_saphyr::from_str::<TestFile>(&fs::read_to_string(path).unwrap()).unwrap();
    let groups = files("deploy/rules/tests", "yaml").into_iter().flat_map(|path| read(path).tests);
    let mut ended = BTreeSet::new();
    let mut asked = Vec::new();
    for group in groups {
        asked.extend(group.promql_expr_test.into_iter().map(|test| test.expr));
        let mut fired = BTreeSet::new();
        for test in group.alert_rule_test {
            if !test.exp_alerts.is_empty() {
                fired.insert(test.alertname);
            } else if fired.contains(&test.alertname) {
                ended.insert(test.alertname);
            }
        }
    }
    for rule in all() {
        if let Some(alert) = rule.alert {
            assert!(ended.contains(&alert), "no test sees {alert} fire and then end");
        } else if let Some(record) = rule.record {
            assert!(asked.iter().any(|query| query.contains(&record)), "no test has a value of {record}");
        }
    }
}

#[test]
fn each_alert_says_what_it_means_and_where_its_runbook_is() {
    let page = fs::read_to_string(crate::repository().join("docs/observability.md")).unwrap();
    let runbooks: BTreeSet<_> = page.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    let mut alerts = BTreeSet::new();
    for rule in all() {
        let Some(alert) = rule.alert else { continue };
        let severity = rule.labels.get("severity").map(String::as_str);
        assert!(matches!(severity, Some("warning" | "critical")), "{alert} has the severity {severity:?}");
        for annotation in ["summary", "description"] {
            assert!(
                rule.annotations.get(annotation).is_some_and(|text| !text.is_empty()),
                "{alert} has no {annotation}"
            );
        }
        let anchor = format!("{RUNBOOKS}{}", alert.to_lowercase());
        assert_eq!(rule.annotations.get("runbook_url"), Some(&anchor), "of {alert}");
        assert!(runbooks.contains(alert.as_str()), "docs/observability.md has no runbook for {alert}");
        alerts.insert(alert);
    }
    let stale: Vec<_> =
        runbooks.into_iter().filter(|name| name.starts_with("Ortolan") && !alerts.contains(*name)).collect();
    assert!(stale.is_empty(), "runbooks of alerts that are no more: {stale:?}");
}
