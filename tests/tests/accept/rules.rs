//! Our rules at a quicker pace, and whether each alert was tried.
//!
//! An alert that waits a quarter of an hour for a cause to last would make a test of hours. So each range that a rule looks back over, and
//! each time that an alert waits, is divided by the pace: the causes are real, and are seen as if time went faster. Thresholds stay.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::fixture::{Failure, Outcome, repository, tell};
use crate::prometheus::{NAMESPACE, PACE_LABEL};
use crate::space::Space;

/// A quarter of an hour becomes a minute.
const PACE: u64 = 15;

/// An alert that counts how often something is tried again, and the pace of what it looks back over: the pauses between two tries, up
/// to 50 s, do not shrink with the rule.
const SLOWER: (&str, u64) = ("OrtolanOperatorWatchesRestart", 2);

/// The groups of a file of `deploy/rules`.
pub(crate) fn read(file: &str) -> Outcome<Value> {
    let text = std::fs::read_to_string(repository().join(format!("deploy/rules/{file}.yaml")))?;
    Ok(serde_saphyr::from_str(&text)?)
}

/// A PrometheusRule of the content of a file.
pub(crate) fn object(name: &str, pace: Option<&str>, spec: &Value) -> Value {
    let labels: BTreeMap<&str, &str> = pace.into_iter().map(|pace| (PACE_LABEL, pace)).collect();
    let metadata = json!({"name": name, "namespace": NAMESPACE, "labels": labels});
    json!({"apiVersion": "monitoring.coreos.com/v1", "kind": "PrometheusRule", "metadata": metadata, "spec": spec})
}

fn rules(file: &mut Value) -> impl Iterator<Item = &mut Value> {
    let groups = file["groups"].as_array_mut().into_iter().flatten();
    groups.filter_map(|group| group["rules"].as_array_mut()).flatten()
}

/// The content of a file with all times shorter.
pub(crate) fn at_pace(mut file: Value) -> Outcome<Value> {
    for rule in rules(&mut file) {
        let pace = if rule["alert"] == SLOWER.0 { SLOWER.1 } else { PACE };
        let expression = rule["expr"].as_str().unwrap_or_default();
        rule["expr"] = expression_at(expression, pace)?.into();
        for wait in ["for", "keep_firing_for"] {
            if let Some(time) = rule[wait].as_str() {
                rule[wait] = shorter(time, PACE)?.into();
            }
        }
    }
    Ok(file)
}

/// An expression with its ranges and offsets divided.
fn expression_at(expression: &str, pace: u64) -> Outcome<String> {
    let (mut written, mut rest) = (String::new(), expression);
    while let Some(at) = rest.find(['[', 'o']) {
        let begin = if rest[at..].starts_with('[') {
            at + 1
        } else if rest[at..].starts_with("offset ") {
            at + "offset ".len()
        } else {
            written.push_str(&rest[..=at]);
            rest = &rest[at + 1..];
            continue;
        };
        let length = rest[begin..].find(|found: char| !found.is_ascii_alphanumeric()).unwrap_or(rest.len() - begin);
        written.push_str(&rest[..begin]);
        written.push_str(&shorter(&rest[begin..begin + length], pace)?);
        rest = &rest[begin + length..];
    }
    Ok(written + rest)
}

/// `5m` divided, in milliseconds.
fn shorter(time: &str, pace: u64) -> Outcome<String> {
    let unknown = || Failure::new(format!("{time:?} is no time of seconds, minutes or hours"));
    let (number, unit) = time.split_at_checked(time.len().saturating_sub(1)).ok_or_else(unknown)?;
    let unit = match unit {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(unknown()),
    };
    Ok(format!("{}ms", number.parse::<u64>().map_err(|_| unknown())? * unit / pace))
}

/// The names of all alerts.
fn alerts() -> Outcome<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for file in ["models", "operator"] {
        let mut file = read(file)?;
        names.extend(rules(&mut file).filter_map(|rule| rule["alert"].as_str().map(str::to_owned)));
    }
    Ok(names)
}

pub(crate) async fn all_were_tried(space: &Space) -> Outcome {
    let seen = space.stage.seen.lock().map_err(|_| Failure::new("a test panicked"))?.clone();
    let mut missing = alerts()?;
    tell(&format!("{} of {} alerts have fired by their cause and ended after it", seen.len(), missing.len()));
    missing.retain(|alert| !seen.contains(alert));
    assert!(missing.is_empty(), "these have not fired and ended: {missing:?}");
    Ok(())
}

/// Needs no cluster.
pub(crate) fn times_are_divided() -> Outcome {
    let rule = "min_over_time(model:rate5m[5m] offset 10m) > on (job) avg_over_time(model:rate5m[1h]) * 3600";
    let quicker =
        "min_over_time(model:rate5m[20000ms] offset 40000ms) > on (job) avg_over_time(model:rate5m[240000ms]) * 3600";
    assert_eq!(expression_at(rule, PACE)?, quicker);
    let slower = json!({"alert": SLOWER.0, "expr": "x[15m]", "for": "15m"});
    let quicker = json!({"alert": SLOWER.0, "expr": "x[450000ms]", "for": "60000ms"});
    assert_eq!(at_pace(json!({"groups": [{"rules": [slower]}]}))?, json!({"groups": [{"rules": [quicker]}]}));
    Ok(())
}
