//! Whether everything that can be asked has an answer while a model is under load.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

use kube::api::{Patch, PatchParams};
use ortolan_tests::cluster::wait;
use serde_json::{Value, json};

use crate::clients::{Clients, Question, serving};
use crate::fixture::{Failure, Outcome, repository, tell, tell_time};
use crate::gpu;
use crate::models::{small, with};
use crate::panels::{self, Chosen, Query};
use crate::prometheus::{ALERT_LIMIT, Prometheus};
use crate::space::Space;

/// What has no data here, by a part of its text, and why.
const WITHOUT: [(&str, &str); 1] = [
    // Looked at where that happens.
    ("changes(ortolan_operator_leader", "the leader does not change"),
];

/// What has data only while an alert fires. So it is asked where alerts fire soon, in whatever namespace.
const OF_ALERTS: &str = "ALERTS{";

const NAME: &str = "espresso";

pub(crate) async fn is_there(space: &Space) -> Outcome {
    // With an objective, and so little patience that some are refused.
    let busy = json!({"batching": {"batchSize": 4, "maxQueueTime": "10ms"}, "latencyObjective": "500ms"});
    gpu::claim(space).await?;
    space.apply_until_ready(&gpu::seen_by(serving(NAME, "slow", &busy, &json!({})))).await?;
    let address = space.address(NAME).await?;
    space.apply(&with(small("asleep"), &json!({"suspend": true}))).await?;
    let clients = Clients::start(address, 24, &Question::of("slow", [1, 2, 3]).every(Duration::from_millis(50)));

    let mut wanted = of_rules(space).await?;
    let chosen = Chosen { namespace: &space.namespace, inference_model: NAME, rate_interval: "2m" };
    wanted.extend(panels::all(&chosen)?);
    wanted.extend(of_page()?);
    let (without, wanted): (Vec<Query>, Vec<Query>) =
        wanted.into_iter().partition(|query| WITHOUT.iter().any(|(part, _)| query.text.contains(part)));
    for query in without {
        let reason = WITHOUT.iter().find(|(part, _)| query.text.contains(part)).map_or("", |(_, reason)| reason);
        tell(&format!("not asked, for {reason}: {}: {}", query.place, query.text));
    }
    let (of_alerts, usual): (Vec<Query>, Vec<Query>) =
        wanted.into_iter().partition(|query| query.text.contains(OF_ALERTS));
    let of_alerts = of_alerts.into_iter().map(of_any_namespace).collect();
    tokio::try_join!(
        all_have_data(space, &space.stage.main, usual),
        all_have_data(space, &space.stage.fast, of_alerts),
    )?;
    clients.stop("the clients of the model under load")
}

/// Alerts do not fire in this namespace but in others.
fn of_any_namespace(query: Query) -> Query {
    let chosen = ["namespace=~\"data\"", "ortolan_dev_inference_model=~\"espresso\""];
    let text = chosen.iter().fold(query.text, |text, chosen| {
        let (label, _) = chosen.split_once('=').unwrap_or_default();
        text.replace(chosen, &format!("{label}=~\".*\""))
    });
    Query { text, ..query }
}

/// Waits until each has had data.
async fn all_have_data(space: &Space, prometheus: &Prometheus, queries: Vec<Query>) -> Outcome {
    let count = queries.len();
    let left = RefCell::new(queries);
    let look = async || {
        touch(space).await.map_err(|error| error.to_string())?;
        let mut failure = None;
        left.borrow_mut().retain(|query| match prometheus.has_data(&query.text) {
            Ok(has_data) => !has_data,
            Err(error) => {
                failure = Some(format!("{}: {}: {error}", query.place, query.text));
                true
            }
        });
        let left = left.borrow();
        let first = left.iter().map(|query| format!("\n    {}: {}", query.place, query.text)).collect::<String>();
        match failure {
            Some(failure) => Err(failure),
            None if left.is_empty() => Ok(()),
            None => Err(format!("{} of {count} have none:{first}", left.len())),
        }
    };
    let ((), time) = wait::until("each query to have data", ALERT_LIMIT, look).await?;
    tell_time(&format!("until all of {count} queries have had data"), time);
    Ok(())
}

/// Gives the operator something to look at.
async fn touch(space: &Space) -> Outcome {
    let now = format!("{:?}", std::time::SystemTime::now());
    let patch = json!({"metadata": {"annotations": {"example.com/looked-at": now}}});
    space.models().patch("asleep", &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// The rules that Prometheus has taken for this namespace and for the operator: what records is asked, and what alerts is looked at by
/// Prometheus without an error.
async fn of_rules(space: &Space) -> Outcome<Vec<Query>> {
    let wanted = rules_of_this_repository()?;
    let look = async || {
        let rules = loaded(space).map_err(|error| error.to_string())?;
        let missing: Vec<_> = wanted.keys().filter(|name| !rules.iter().any(|rule| rule["name"] == **name)).collect();
        if !missing.is_empty() {
            return Err(format!("it lacks {missing:?}"));
        }
        match rules.iter().find(|rule| rule["health"] != "ok") {
            Some(rule) => Err(format!("{}: {} {}", rule["name"], rule["health"], rule["lastError"])),
            None => Ok(rules),
        }
    };
    let (rules, time) = wait::until("Prometheus to look at all rules", ALERT_LIMIT, look).await?;
    tell_time(&format!("until Prometheus has looked at {} rules of {}", rules.len(), wanted.len()), time);
    let records = rules.iter().filter(|rule| rule["type"] == "recording");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Ok(records
        .map(|rule| Query { place: format!("rule {}", text(&rule["name"])), text: text(&rule["query"]) })
        .collect())
}

/// What `main` has of our operator's PrometheusRule for this namespace, and of the rules about our operator.
fn loaded(space: &Space) -> Outcome<Vec<Value>> {
    let groups = space.stage.main.ask("/api/v1/rules")?["groups"].take();
    let files = [format!("{}-ortolan-models-", space.namespace), "monitoring-ortolan-operator-".to_owned()];
    let groups = groups.as_array().cloned().unwrap_or_default().into_iter();
    let ours = groups.filter(|group| {
        let file = group["file"].as_str().unwrap_or_default();
        files.iter().any(|name| file.contains(name))
    });
    Ok(ours.flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect())
}

/// The names of all rules.
fn rules_of_this_repository() -> Outcome<BTreeMap<String, Value>> {
    let mut rules = BTreeMap::new();
    for file in ["models", "operator"] {
        let file = crate::rules::read(file)?;
        let groups = file["groups"].as_array().cloned().unwrap_or_default().into_iter();
        for rule in groups.flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()) {
            let name = rule["record"].as_str().or(rule["alert"].as_str()).unwrap_or_default().to_owned();
            rules.insert(name, rule);
        }
    }
    if rules.is_empty() { Err(Failure::new("there are no rules")) } else { Ok(rules) }
}

/// The ten questions of docs/observability.md, which are about a model of this name.
fn of_page() -> Outcome<Vec<Query>> {
    let page = std::fs::read_to_string(repository().join("docs/observability.md"))?;
    let blocks = page.split("\n```promql\n").skip(1).filter_map(|rest| Some(rest.split_once("\n```")?.0.to_owned()));
    Ok(blocks.map(|text| Query { place: "docs/observability.md".to_owned(), text }).collect())
}
