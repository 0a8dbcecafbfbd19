//! What the dashboards ask, as Grafana would ask it.

use serde_json::Value;

use crate::fixture::{Failure, Outcome, repository};

/// What somebody wants to know, and where it stands.
#[derive(Debug, Clone)]
pub(crate) struct Query {
    pub(crate) place: String,
    pub(crate) text: String,
}

/// What was chosen at the top of a dashboard.
pub(crate) struct Chosen<'a> {
    pub(crate) namespace: &'a str,
    pub(crate) inference_model: &'a str,
    /// Four times as long as between two scrapes.
    pub(crate) rate_interval: &'a str,
}

/// All queries of the dashboards' panels, variables and marks.
pub(crate) fn all(chosen: &Chosen<'_>) -> Outcome<Vec<Query>> {
    let mut queries = Vec::new();
    for dashboard in ["model", "models", "operator"] {
        let text = std::fs::read_to_string(repository().join(format!("deploy/dashboards/{dashboard}.json")))?;
        let json: Value = serde_json::from_str(&text)?;
        for (title, text) in written(&json) {
            let text = substituted(&text, dashboard, chosen)?;
            queries.push(Query { place: format!("{dashboard}.json, {title}"), text });
        }
    }
    Ok(queries)
}

/// Each query with the title of what shows it.
fn written(dashboard: &Value) -> Vec<(String, String)> {
    let items = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut queries = Vec::new();
    for panel in items(&dashboard["panels"]) {
        queries.extend(items(&panel["targets"]).iter().map(|target| (text(&panel["title"]), text(&target["expr"]))));
    }
    for mark in items(&dashboard["annotations"]["list"]) {
        queries.push((text(&mark["name"]), text(&mark["expr"])));
    }
    for variable in items(&dashboard["templating"]["list"]) {
        // label_values(SERIES, LABEL)
        let values = text(&variable["query"]["query"]);
        let series = values.strip_prefix("label_values(").and_then(|rest| Some(rest.rsplit_once(',')?.0.to_owned()));
        queries.extend(series.map(|series| (text(&variable["name"]), series)));
    }
    queries
}

fn substituted(query: &str, dashboard: &str, chosen: &Chosen<'_>) -> Outcome<String> {
    // The operator's is about the namespace that it runs in; nothing is chosen there.
    let namespace = if dashboard == "operator" { ".*" } else { chosen.namespace };
    let text = query
        .replace("$__rate_interval", chosen.rate_interval)
        .replace("$namespace", namespace)
        .replace("$inference_model", chosen.inference_model)
        .replace("$model", ".*");
    // What may be left is the group of a regular expression.
    if text.replace("$1", "").contains('$') {
        return Err(Failure::new(format!("{dashboard}.json has a variable that is not known: {text}")));
    }
    Ok(text)
}
