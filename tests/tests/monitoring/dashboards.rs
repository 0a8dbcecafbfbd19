//! The dashboards.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use crate::{Query, files, promtool};

/// A row of panels has so many columns.
const COLUMNS: u64 = 24;

/// Grafana 11.0; newer ones bring it up to their own.
const SCHEMA: u64 = 39;

struct Dashboard {
    name: String,
    json: Value,
}

impl Dashboard {
    fn panels(&self) -> &[Value] {
        self.json["panels"].as_array().unwrap()
    }

    /// Those that show something.
    fn views(&self) -> impl Iterator<Item = &Value> {
        self.panels().iter().filter(|panel| panel["type"] != "row")
    }

    fn variables(&self) -> &[Value] {
        self.json["templating"]["list"].as_array().unwrap()
    }

    /// Each expression with what Grafana would put in the place of variables.
    fn queries(&self) -> Vec<Query> {
        let of_panels = self.views().flat_map(|panel| panel["targets"].as_array().unwrap().iter());
        let of_annotations = self.json["annotations"]["list"].as_array().unwrap().iter();
        let expressions = of_panels.chain(of_annotations).map(|target| target["expr"].as_str().unwrap());
        let of_variables = self.variables().iter().filter_map(|variable| variable["query"]["query"].as_str());
        let selectors = of_variables.map(|query| {
            let values = query.strip_prefix("label_values(").unwrap().strip_suffix(')').unwrap();
            values.rsplit_once(',').unwrap().0
        });
        let query = |text: &str| Query { place: self.name.clone(), text: self.substituted(text) };
        expressions.chain(selectors).map(query).collect()
    }

    fn substituted(&self, text: &str) -> String {
        let mut text = text.replace("$__rate_interval", "5m");
        for variable in self.variables() {
            text = text.replace(&format!("${}", variable["name"].as_str().unwrap()), ".*");
        }
        // What is left is the group of a regular expression.
        assert!(!text.replace("$1", "").contains('$'), "{text} has a variable that is not defined in {}", self.name);
        text
    }
}

fn all() -> Vec<Dashboard> {
    let read = |path: std::path::PathBuf| Dashboard {
        name: path.file_name().unwrap().display().to_string(),
        json: serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap(),
    };
    files("deploy/dashboards", "json").into_iter().map(read).collect()
}

pub(crate) fn queries() -> Vec<Query> {
    all().iter().flat_map(Dashboard::queries).collect()
}

#[test]
fn each_query_of_a_dashboard_is_one() {
    promtool::takes("dashboards", &queries());
}

#[test]
fn dashboards_can_be_told_apart_and_are_for_grafana_11() {
    let mut uids = BTreeSet::new();
    for Dashboard { name, json } in all() {
        let uid = json["uid"].as_str().unwrap().to_owned();
        assert_eq!(uid, format!("ortolan-{}", name.trim_end_matches(".json")));
        assert!(uids.insert(uid));
        assert!(json["schemaVersion"].as_u64().unwrap() >= SCHEMA, "{name}");
        assert!(json["id"].is_null() && !json["title"].as_str().unwrap().is_empty(), "{name}");
        assert_eq!(json["templating"]["list"][0]["type"], "datasource", "{name}");
    }
}

#[test]
fn each_panel_has_a_place_of_its_own() {
    for dashboard in all() {
        let mut ids = BTreeSet::new();
        let mut taken = BTreeSet::new();
        for panel in dashboard.panels() {
            let title = format!("{} in {}", panel["title"], dashboard.name);
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title} has the number of another");
            let [x, y, width, height] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
            assert!(width > 0 && height > 0 && x + width <= COLUMNS, "{title} is too wide");
            for cell in (x..x + width).flat_map(|column| (y..y + height).map(move |line| (column, line))) {
                assert!(taken.insert(cell), "{title} lies on another");
            }
        }
    }
}

#[test]
fn each_panel_says_what_to_read_from_it_in_which_unit() {
    for dashboard in all() {
        for panel in dashboard.views() {
            let title = format!("{} in {}", panel["title"], dashboard.name);
            assert!(panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{title} is not explained");
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or_default();
            assert!(!unit.is_empty(), "{title} has no unit");
            let kind = panel["type"].as_str().unwrap();
            assert!(["timeseries", "stat", "table", "heatmap"].contains(&kind), "{title} is a {kind}");
        }
    }
}

#[test]
fn the_datasource_is_always_the_variable() {
    fn check(value: &Value, name: &str) {
        if let Value::Object(object) = value {
            if let Some(source) = object.get("datasource") {
                assert_eq!(source, &json!({"type": "prometheus", "uid": "${datasource}"}), "in {name}");
            }
            object.values().for_each(|value| check(value, name));
        } else if let Value::Array(values) = value {
            values.iter().for_each(|value| check(value, name));
        }
    }
    for dashboard in all() {
        check(&dashboard.json, &dashboard.name);
        for target in dashboard.views().flat_map(|panel| panel["targets"].as_array().unwrap()) {
            assert!(target.get("datasource").is_some(), "{target} in {}", dashboard.name);
        }
    }
}

/// Prometheus keeps exemplars of what is scraped, not of what is recorded.
#[test]
fn what_shows_the_latency_of_requests_shows_single_requests_too() {
    for dashboard in all() {
        let graphs = dashboard.views().filter(|panel| panel["type"] == "timeseries" || panel["type"] == "heatmap");
        for target in graphs.flat_map(|panel| panel["targets"].as_array().unwrap()) {
            let expression = target["expr"].as_str().unwrap();
            if expression.contains("(ortolan_request_latency_seconds_bucket") {
                assert_eq!(target["exemplar"], true, "{expression} in {}", dashboard.name);
            }
        }
    }
}
