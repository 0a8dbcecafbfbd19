//! What monitoring tools are given, on a cluster that has their kinds, gets them, or loses them.
//!
//! Nothing runs here: the models are suspended, so that what is seen is what the operator does.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crds::resource::InferenceModel;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use ortolan_tests::cluster::wait;
use ortolan_tests::programs::{self, Profile, Purpose};
use ortolan_tests::report::Report;
use serde_json::{Value, json};

use crate::audit::Mark;
use crate::fixture::{Failure, LIMIT, Outcome, repository, tell, tell_time};
use crate::models::{small, with};
use crate::space::{Space, as_wanted, condition, no, yes};

/// Name of what the models of a namespace share.
const SHARED: &str = "ortolan-models";

/// The two kinds with the file and the name of their definitions.
const KINDS: [(&str, &str, &str); 2] = [
    ("ServiceMonitor", "servicemonitors.yaml", "servicemonitors.monitoring.coreos.com"),
    ("PrometheusRule", "prometheusrules.yaml", "prometheusrules.monitoring.coreos.com"),
];

/// As long as somebody waits who has just installed the Prometheus Operator.
const SOON: Duration = Duration::from_secs(20);

fn api(space: &Space, kind: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("monitoring.coreos.com", "v1", kind);
    Api::namespaced_with(space.cluster().client(), &space.namespace, &ApiResource::from_gvk(&kind))
}

/// An InferenceModel without pods.
fn idle(name: &str, monitoring: &Value) -> Value {
    with(small(name), &json!({"suspend": true, "monitoring": monitoring}))
}

/// Installs the definitions, as the Prometheus Operator brings them.
async fn install(space: &Space) -> Outcome {
    let files = programs::ensure(Profile::newest(), &[Purpose::PrometheusOperator], Report::to_stderr())?;
    for (_, file, name) in KINDS {
        let path = files.path(file)?.display().to_string();
        // Applied by the server: what kubectl would note of them is longer than an annotation may be.
        space.cluster().run_kubectl(&["apply", "--server-side", "-f", &path]).await?;
        let listed = async || space.cluster().run_kubectl(&["get", name, "--all-namespaces"]).await;
        wait::until(&format!("{name} to be served"), LIMIT, listed).await?;
    }
    Ok(())
}

async fn uninstall(space: &Space) -> Outcome {
    for (_, _, name) in KINDS {
        let delete = ["delete", "crd", name, "--ignore-not-found", "--timeout=60s"];
        space.cluster().run_kubectl(&delete).await?;
    }
    Ok(())
}

/// Waits until an object is there, and as `look` wants it.
async fn until<T>(
    space: &Space,
    kind: &str,
    what: &str,
    limit: Duration,
    look: impl Fn(&DynamicObject) -> Result<T, String>,
) -> Outcome<(T, Duration)> {
    let objects = api(space, kind);
    let look = async || match objects.get(SHARED).await {
        Ok(object) => look(&object),
        Err(error) => Err(error.to_string()),
    };
    Ok(wait::until(&format!("the {kind} of {} {what}", space.namespace), limit, look).await?)
}

async fn until_there(space: &Space, kind: &str) -> Outcome<(DynamicObject, Duration)> {
    until(space, kind, "to be there", SOON, |object| Ok(object.clone())).await
}

async fn until_gone(space: &Space, kind: &str) -> Outcome<Duration> {
    let objects = api(space, kind);
    let look = async || match objects.get_opt(SHARED).await {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err("it is there".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    Ok(wait::until(&format!("the {kind} of {} to be gone", space.namespace), SOON, look).await?.1)
}

async fn until_owned_by(space: &Space, kind: &str, names: &[&str]) -> Outcome<Duration> {
    let look = |object: &DynamicObject| {
        let owners = owners(object);
        if owners == names { Ok(()) } else { Err(format!("it is owned by {owners:?}")) }
    };
    Ok(until(space, kind, &format!("to be owned by {names:?}"), SOON, look).await?.1)
}

fn owners(object: &DynamicObject) -> Vec<&str> {
    let mut names: Vec<&str> = object.owner_references().iter().map(|owner| owner.name.as_str()).collect();
    names.sort_unstable();
    names
}

pub(crate) async fn says_what_is_missing(space: &Space) -> Outcome {
    uninstall(space).await?;
    space.apply(&idle("auto", &json!({}))).await?;
    space.apply(&idle("strict", &json!({"serviceMonitor": "Enabled"}))).await?;
    space.apply(&idle("without", &json!({"serviceMonitor": "Disabled", "rules": "Disabled"}))).await?;
    // The definitions go one after the other.
    let names_all = |model: &InferenceModel| {
        let found = condition(model, "MonitoringReady").filter(|found| found.reason == "CrdNotInstalled");
        let message = found.map(|found| found.message.as_str()).unwrap_or_default();
        let is_named = KINDS.iter().all(|(_, _, definition)| message.contains(definition));
        if is_named { Ok(message.to_owned()) } else { Err("it does not".to_owned()) }
    };
    let (message, _) = space.until("auto", "to name the missing definitions", names_all).await?;
    tell(&message);
    space.shows("auto", yes("MonitoringReady", "CrdNotInstalled")).await?;
    let (found, _) = space.shows("strict", no("MonitoringReady", "CrdNotInstalled")).await?;
    tell(&found.message);
    assert!(found.message.contains("Install the Prometheus Operator"), "{}", found.message);
    space.shows("without", yes("MonitoringReady", "Configured")).await?;
    // Suspended comes first in the order of conditions: it, and nothing of monitoring, is why this one is not ready.
    space.shows("auto", no("Ready", "Suspended")).await?;
    let operator = space.stage.operator().await;
    let operator = operator.as_ref().ok_or_else(|| Failure::new("no operator"))?;
    // That of KEDA too.
    assert_eq!(operator.number("ortolan_operator_missing_crds")?, 3.0);
    Ok(())
}

pub(crate) async fn is_picked_up_and_shared(space: &Space) -> Outcome {
    uninstall(space).await?;
    space.apply(&idle("first", &json!({}))).await?;
    space.apply(&idle("second", &json!({"dashboard": true}))).await?;
    space.shows("first", yes("MonitoringReady", "CrdNotInstalled")).await?;
    install(space).await?;
    let begun = Instant::now();
    let (monitor, _) = until_there(space, "ServiceMonitor").await?;
    let (rule, _) = until_there(space, "PrometheusRule").await?;
    tell_time("from the definitions to the objects, without a restart", begun.elapsed());
    for kind in ["ServiceMonitor", "PrometheusRule"] {
        until_owned_by(space, kind, &["first", "second"]).await?;
    }
    assert_eq!(monitor.data["spec"]["podTargetLabels"], json!(["ortolan.dev/inference-model", "ortolan.dev/revision"]));
    let expression = rule.data["spec"]["groups"][0]["rules"][0]["expr"].as_str().unwrap_or_default();
    assert!(expression.contains("namespace=\"share\""), "{expression}");
    for name in ["first", "second"] {
        let (_, time) = space.shows(name, yes("MonitoringReady", "Configured")).await?;
        tell_time(&format!("until {name} says so"), time);
    }
    selects_the_pods_services_alone(space, &monitor).await?;
    let dashboard = space.api::<ConfigMap>().get("second-dashboard").await?;
    assert_eq!(dashboard.labels().get("grafana_dashboard").map(String::as_str), Some("1"));
    assert!(space.api::<ConfigMap>().get_opt("first-dashboard").await?.is_none());

    space.delete::<InferenceModel>("first").await?;
    for kind in ["ServiceMonitor", "PrometheusRule"] {
        let time = until_owned_by(space, kind, &["second"]).await?;
        tell_time(&format!("until the {kind} is the other one's alone"), time);
    }
    assert_eq!(api(space, "ServiceMonitor").get(SHARED).await?.uid(), monitor.uid(), "it was not made anew");
    space.delete::<InferenceModel>("second").await?;
    for kind in ["ServiceMonitor", "PrometheusRule"] {
        let time = until_gone(space, kind).await?;
        tell_time(&format!("from the end of the last model to that of the {kind}"), time);
    }
    Ok(())
}

/// What its selector selects, as Prometheus would ask for it.
async fn selects_the_pods_services_alone(space: &Space, monitor: &DynamicObject) -> Outcome {
    let labels = monitor.data["spec"]["selector"]["matchLabels"].as_object().cloned().unwrap_or_default();
    let selector: Vec<String> =
        labels.iter().map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    let services = space.api::<Service>().list(&ListParams::default().labels(&selector.join(","))).await?;
    let names: Vec<String> = services.items.iter().map(ResourceExt::name_any).collect();
    assert_eq!(names, ["first-pods", "second-pods"]);
    let port = monitor.data["spec"]["endpoints"][0]["port"].as_str().unwrap_or_default().to_owned();
    for service in services.items {
        let ports = service.spec.and_then(|spec| spec.ports).unwrap_or_default();
        assert!(ports.iter().any(|it| it.name.as_ref() == Some(&port) && it.port == 9090), "{ports:?}");
    }
    Ok(())
}

pub(crate) async fn is_repaired(space: &Space) -> Outcome {
    install(space).await?;
    space.apply(&idle("whole", &json!({"dashboard": true}))).await?;
    for (kind, edits) in [
        (
            "ServiceMonitor",
            vec![
                json!({"spec": {"endpoints": [{"port": "http"}]}}),
                json!({"spec": {"selector": {"matchLabels": {"further": "label"}}}}),
                json!({"spec": {"podTargetLabels": null}}),
                json!({"metadata": {"labels": {"ortolan.dev/shared": null}}}),
                json!({"metadata": {"ownerReferences": null}}),
                json!({"metadata": {"annotations": null}}),
            ],
        ),
        ("PrometheusRule", vec![json!({"spec": {"groups": []}}), json!({"metadata": {"labels": null}})]),
    ] {
        let (before, _) = until_there(space, kind).await?;
        let before = as_wanted(&before)?;
        let objects = api(space, kind);
        let restored = |object: &DynamicObject| {
            let now = as_wanted(object).map_err(|error| error.to_string())?;
            if now == before { Ok(()) } else { Err(format!("{now}\n  and was {before}")) }
        };
        for edit in edits {
            let params = PatchParams { field_manager: Some("kubectl-edit".to_owned()), ..PatchParams::default() };
            let edited = objects.patch(SHARED, &params, &Patch::Merge(&edit)).await?;
            assert_ne!(as_wanted(&edited)?, before, "{edit} changes nothing");
            let ((), time) = until(space, kind, &format!("to be as before {edit}"), SOON, restored).await?;
            tell_time(&format!("to restore a {kind} after {edit}"), time);
        }
        objects.delete(SHARED, &DeleteParams::background()).await?;
        let ((), time) = until(space, kind, "to come back", SOON, restored).await?;
        tell_time(&format!("to restore a deleted {kind}"), time);
    }
    let dashboards = space.api::<ConfigMap>();
    let before = dashboards.get("whole-dashboard").await?.data;
    dashboards.patch("whole-dashboard", &PatchParams::default(), &Patch::Merge(json!({"data": null}))).await?;
    let look = async || match dashboards.get("whole-dashboard").await {
        Ok(dashboard) if dashboard.data == before => Ok(()),
        Ok(_) => Err("it is not".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    wait::until("the dashboard to be as before", SOON, look).await?;
    Ok(())
}

pub(crate) async fn is_switched(space: &Space) -> Outcome {
    install(space).await?;
    space.apply(&idle("one", &json!({"rules": "Disabled", "dashboard": true}))).await?;
    space.apply(&idle("two", &json!({"serviceMonitor": "Disabled", "rules": "Disabled"}))).await?;
    until_owned_by(space, "ServiceMonitor", &["one"]).await?;
    let scraped = ListParams::default().labels("ortolan.dev/service-monitor=ortolan-models");
    let services = space.api::<Service>().list(&scraped).await?;
    assert_eq!(services.items.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["one-pods"]);
    space.shows("two", yes("MonitoringReady", "Configured")).await?;
    assert!(api(space, "PrometheusRule").get_opt(SHARED).await?.is_none());

    space.apply(&idle("one", &json!({"serviceMonitor": "Disabled", "rules": "Enabled"}))).await?;
    let time = until_gone(space, "ServiceMonitor").await?;
    tell_time("from Disabled to the end of the ServiceMonitor", time);
    until_owned_by(space, "PrometheusRule", &["one"]).await?;
    space.shows("one", yes("MonitoringReady", "Configured")).await?;
    let dashboards = space.api::<ConfigMap>();
    let look = async || match dashboards.get_opt("one-dashboard").await {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err("it is there".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    wait::until("the dashboard that is wanted no more to be gone", SOON, look).await?;
    Ok(())
}

pub(crate) async fn leaves_the_foreign_alone(space: &Space) -> Outcome {
    install(space).await?;
    let monitors = api(space, "ServiceMonitor");
    let theirs = json!({
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "ServiceMonitor",
        "metadata": {"name": SHARED},
        "spec": {"selector": {"matchLabels": {"app": "theirs"}}, "endpoints": []},
    });
    let before = monitors.create(&PostParams::default(), &serde_json::from_value(theirs)?).await?;
    space.apply(&idle("polite", &json!({}))).await?;
    space.apply(&idle("strict", &json!({"serviceMonitor": "Enabled"}))).await?;
    let (found, _) = space.shows("strict", no("Accepted", "NameConflict")).await?;
    tell(&found.message);
    assert!(found.message.contains("ServiceMonitor ortolan-models was not made by Ortolan"), "{}", found.message);
    space.shows("polite", yes("MonitoringReady", "NameConflict")).await?;
    space.shows("polite", yes("Accepted", "Accepted")).await?;
    until_there(space, "PrometheusRule").await?;
    assert_eq!(monitors.get(SHARED).await?.resource_version(), before.resource_version());
    monitors.delete(SHARED, &DeleteParams::background()).await?;
    // It is tried again after a pause that grows.
    space.shows("strict", yes("Accepted", "Accepted")).await?;
    until_owned_by(space, "ServiceMonitor", &["polite", "strict"]).await?;
    Ok(())
}

pub(crate) async fn tells_what_prometheus_refuses(space: &Space) -> Outcome {
    install(space).await?;
    space.apply(&idle("auto", &json!({}))).await?;
    space.apply(&idle("strict", &json!({"serviceMonitor": "Enabled"}))).await?;
    space.shows("strict", yes("MonitoringReady", "Configured")).await?;
    let (monitor, _) = until_there(space, "ServiceMonitor").await?;
    let bind = async |bindings: Value| {
        let patch = json!({"status": {"bindings": bindings}});
        let params = PatchParams { field_manager: Some("PrometheusOperator".to_owned()), ..PatchParams::default() };
        api(space, "ServiceMonitor").patch_status(SHARED, &params, &Patch::Merge(patch)).await
    };
    let binding = |status: &str| {
        json!([{
            "group": "monitoring.coreos.com", "resource": "prometheuses", "namespace": "watch", "name": "main",
            "conditions": [{
                "type": "Accepted", "status": status, "reason": "InvalidConfiguration", "message": "it is not to its taste",
                "observedGeneration": monitor.metadata.generation, "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        }])
    };
    bind(binding("False")).await?;
    let (found, time) = space.shows("strict", no("MonitoringReady", "NotSelected")).await?;
    tell_time(&format!("until it is told: {}", found.message), time);
    assert!(found.message.contains("prometheuses watch/main does not take it"), "{}", found.message);
    space.shows("auto", yes("MonitoringReady", "NotSelected")).await?;
    bind(binding("True")).await?;
    space.shows("strict", yes("MonitoringReady", "Configured")).await?;
    bind(json!([])).await?;
    space.shows("strict", no("MonitoringReady", "NotSelected")).await?;
    Ok(())
}

pub(crate) async fn writes_little_for_many(space: &Space) -> Outcome {
    const MODELS: usize = 60;
    install(space).await?;
    let mark = Mark::now(space.cluster())?;
    for number in 0..MODELS {
        space.apply(&idle(&format!("m{number:02}"), &json!({}))).await?;
    }
    for name in ["m00", "m59"] {
        space.shows(name, yes("MonitoringReady", "Configured")).await?;
    }
    for kind in ["ServiceMonitor", "PrometheusRule"] {
        let enough = |object: &DynamicObject| {
            let count = object.owner_references().len();
            if count == 16 { Ok(()) } else { Err(format!("{count} owners")) }
        };
        until(space, kind, "to have owners enough", SOON, enough).await?;
    }
    // 1 s: what was decided just now is written.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let writes = mark.writes_in(&space.namespace)?;
    for resource in ["servicemonitors", "prometheusrules"] {
        let count = writes.iter().filter(|write| write.resource == resource).count();
        tell(&format!("{MODELS} models: {count} writes of {resource}"));
        assert!((1..=16).contains(&count), "{count} writes of {resource}");
    }
    Ok(())
}

pub(crate) async fn rests(space: &Space) -> Outcome {
    install(space).await?;
    space.apply(&idle("one", &json!({"dashboard": true}))).await?;
    space.apply(&idle("two", &json!({"serviceMonitor": "Enabled", "rules": "Enabled"}))).await?;
    for name in ["one", "two"] {
        space.shows(name, yes("MonitoringReady", "Configured")).await?;
    }
    until_owned_by(space, "ServiceMonitor", &["one", "two"]).await?;
    until_owned_by(space, "PrometheusRule", &["one", "two"]).await?;
    // 2 s: what was decided just now is written.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mark = Mark::now(space.cluster())?;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(mark.writes_in(&space.namespace)?, []);
    let leases = mark.all()?.iter().filter(|write| write.resource == "leases").count();
    assert!(leases > 5, "the audit log shows no renewals: {leases}");
    tell(&format!("in 30 s: no write, and {leases} of the Lease"));
    Ok(())
}

pub(crate) async fn tells_of_itself(space: &Space) -> Outcome {
    install(space).await?;
    space.apply(&idle("one", &json!({}))).await?;
    space.shows("one", yes("MonitoringReady", "Configured")).await?;
    let operator = space.stage.operator().await;
    let operator = operator.as_ref().ok_or_else(|| Failure::new("no operator"))?;
    // What the tests before left behind may keep it busy for a while.
    let look = async || match operator.ask("/health/detailed") {
        Ok(answer) if (answer.status, answer.json()["status"].as_str()) == (200, Some("ok")) => Ok(answer),
        Ok(answer) => Err(format!("{} {}", answer.status, answer.text())),
        Err(error) => Err(error.to_string()),
    };
    let (answer, _) = wait::until("the operator to be well", LIMIT, look).await?;
    tell(&answer.text());
    let health = answer.json();
    assert_eq!(health["missing_crds"], json!(["scaledobjects.keda.sh"]));
    for check in ["caches", "leader", "memory", "queue", "reconciles", "watches"] {
        assert_eq!(health["checks"][check]["status"], "ok", "{check}");
    }
    assert!(operator.number("ortolan_operator_queue_delay_seconds_count")? > 0.0);
    assert!(operator.number("ortolan_operator_reconcile_step_seconds_count")? > 0.0);
    let not_ready =
        "ortolan_operator_model_not_ready{namespace=\"detailed\",inference_model=\"one\",reason=\"Suspended\"} 1";
    let look = async || match operator.ask("/metrics").map(|answer| answer.text()) {
        Ok(metrics) if metrics.contains(not_ready) => Ok(metrics),
        Ok(_) => Err("there is no such series".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let (metrics, _) = wait::until(not_ready, SOON, look).await?;
    assert!(!metrics.contains("# EOF"), "a scraper that does not ask for OpenMetrics gets the older form");
    let [older, openmetrics] = operator.metrics()?;
    let programs = programs::ensure(Profile::newest(), &[Purpose::Rules], Report::to_stderr())?;
    let mut promtool = Command::new(programs.path("promtool")?);
    told("promtool", promtool.args(["check", "metrics"]), &older)?;
    let mut parser = Command::new("python3");
    told("the parser of OpenMetrics", parser.arg(repository().join("tests/openmetrics/check.py")), &openmetrics)
}

/// Gives metrics to a program that reads them, and tells what it says of them.
fn told(whom: &str, reader: &mut Command, metrics: &str) -> Outcome {
    let mut child = reader.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    // Its end is closed when it is dropped.
    child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(metrics.as_bytes()))?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    tell(&format!("{whom} says: {}", said.trim()));
    if output.status.success() { Ok(()) } else { Err(Failure::new(format!("{whom} finds fault: {said}"))) }
}

pub(crate) async fn lets_go(space: &Space) -> Outcome {
    install(space).await?;
    space.apply(&idle("one", &json!({}))).await?;
    space.shows("one", yes("MonitoringReady", "Configured")).await?;
    until_there(space, "ServiceMonitor").await?;
    let operator = space.stage.operator().await;
    let operator = operator.as_ref().ok_or_else(|| Failure::new("no operator"))?;
    let logged = operator.log()?.len();
    let begun = Instant::now();
    // It would never end if the objects were made again while it goes on.
    uninstall(space).await?;
    tell_time("to remove the definitions", begun.elapsed());
    space.shows("one", yes("MonitoringReady", "CrdNotInstalled")).await?;
    // 10 s: twice the time after which it looks for definitions again.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let log = operator.log()?;
    // Other namespaces are being removed meanwhile, which is a failure of its own.
    let concerns = |line: &&str| line.contains("namespace=\"gone\"") || line.contains("a watch is begun again");
    let warnings = log[logged..].lines().filter(|line| line.contains(" WARN ")).filter(concerns).collect::<Vec<_>>();
    assert!(warnings.is_empty(), "{warnings:#?}");
    let model = space.models().get("one").await?;
    assert!(condition(&model, "Accepted").is_some_and(|accepted| accepted.status == "True"));

    install(space).await?;
    until_there(space, "ServiceMonitor").await?;
    space.shows("one", yes("MonitoringReady", "Configured")).await?;
    Ok(())
}
