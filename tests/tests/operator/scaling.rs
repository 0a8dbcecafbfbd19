//! Mode Operator: replicas that follow the load, on real pods with a fifth of a processor each.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crds::resource::{InferenceModel, ScalingMode};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use ortolan_tests::cluster::{Part, wait};
use serde_json::{Value, json};

use crate::fixture::{Failure, LIMIT, Outcome, tell, tell_time};
use crate::load::{Load, Seen};
use crate::models::{inference_model, on_volume, with};
use crate::operator::{Launch, Operator};
use crate::space::{Space, condition, yes};
use crate::web;

/// What a replica should carry.
const TARGET: usize = 4;

/// Those of three replicas, and not at the edge of four.
const CLIENTS: usize = 3 * TARGET - 1;

/// How often the load rises and falls; the long suite does so more often.
fn tries() -> usize {
    std::env::var("ORTOLAN_SCALE_TRIES").ok().and_then(|text| text.parse().ok()).unwrap_or(1).max(1)
}

/// A model that takes tens of milliseconds of a whole processor for each request, beside which the server's own work is little,
/// whose pods have a fifth of one, and which is scaled between one and four. Fewer come a few seconds after the load has fallen.
/// Nobody is refused, however slow the machine: refusals would ask for replicas too.
fn scaled(name: &str) -> Value {
    let model = with_fields(on_volume("tiny", "slow"), &json!({"batching": {"batchSize": 1, "maxQueueTime": "9s"}}));
    let spec = json!({
        "resources": {"requests": {"cpu": "100m"}, "limits": {"cpu": "200m"}},
        // Clients open another connection now and then, so they find pods that have come.
        "server": {"config": {"max_connection_age_ms": 2000, "drain_delay_ms": 3000, "drain_timeout_ms": 5000}},
        "scaling": {
            "minReplicas": 1,
            "maxReplicas": 4,
            "targets": {"inflightPerReplica": TARGET},
            "behavior": {"scaleDown": {"stabilization": "10s", "maxPerMinute": 10}},
        },
    });
    with(inference_model(name, &[model]), &spec)
}

fn with_fields(mut object: Value, fields: &Value) -> Value {
    for (key, value) in fields.as_object().into_iter().flatten() {
        object[key] = value.clone();
    }
    object
}

/// The number that is asked for.
async fn wanted(space: &Space, name: &str) -> Outcome<i32> {
    Ok(space.models().get(name).await?.spec.replicas)
}

/// Waits until this number is asked for; every number that was seen on the way, the first one included.
async fn until_wanted(space: &Space, name: &str, replicas: i32) -> Outcome<(Vec<i32>, Duration)> {
    let mut seen = Vec::new();
    let what = format!("to ask for {replicas} replicas");
    let ((), time) = space
        .until(name, &what, |model| {
            if seen.last() != Some(&model.spec.replicas) {
                seen.push(model.spec.replicas);
            }
            if model.spec.replicas == replicas { Ok(()) } else { Err(format!("{seen:?}")) }
        })
        .await?;
    Ok((seen, time))
}

/// Waits until more than this number is asked for.
async fn until_more(space: &Space, name: &str, than: i32) -> Outcome<(i32, Duration)> {
    space
        .until(name, &format!("to ask for more than {than} replicas"), |model| {
            if model.spec.replicas > than { Ok(model.spec.replicas) } else { Err("it does not".to_owned()) }
        })
        .await
}

/// Waits until so many pods are ready and no others are left.
async fn until_pods(space: &Space, name: &str, count: usize) -> Outcome<Vec<Pod>> {
    let look = async || {
        let pods = space.of::<Pod>(name).await?;
        let ready = pods.iter().filter(|pod| is_ready(pod)).count();
        if (pods.len(), ready) == (count, count) {
            Ok(pods)
        } else {
            Err(Failure::new(format!("{ready} ready of {}", pods.len())))
        }
    };
    Ok(wait::until(&format!("{count} pods of {name} to be ready"), LIMIT, look).await?.0)
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn address(pod: &Pod) -> Outcome<(IpAddr, u16)> {
    let ip = pod.status.iter().find_map(|status| status.pod_ip.as_deref()).unwrap_or_default();
    Ok((ip.parse()?, 9090))
}

/// Requests that a pod has answered.
fn answered(pod: &Pod) -> Outcome<u64> {
    let load = web::get(address(pod)?, "/load")?.json();
    Ok(load["models"][0]["answered_total"].as_u64().unwrap_or_default())
}

/// Clients of both protocols at the Service, which all keep their connections.
async fn clients(space: &Space, name: &str, count: usize) -> Outcome<Load> {
    let (ip, port) = space.address(name).await?;
    Ok(Load::start(ip, port, count))
}

/// Waits until each of the pods has answered more than it had.
async fn until_all_answer(pods: &[Pod]) -> Outcome<Duration> {
    let before = pods.iter().map(answered).collect::<Outcome<Vec<_>>>()?;
    let look = async || {
        let now = pods.iter().map(answered).collect::<Outcome<Vec<_>>>()?;
        let all = now.iter().zip(&before).all(|(now, before)| now > before);
        if all { Ok(()) } else { Err(Failure::new(format!("{before:?}, then {now:?}"))) }
    };
    Ok(wait::until("every pod to answer clients that keep their connections", LIMIT, look).await?.1)
}

pub(crate) async fn follows_the_load(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply_until_ready(&scaled("wave")).await?;
    space.shows("wave", yes("ScalingActive", "Active")).await?;
    let mut reactions = Vec::new();
    for _ in 0..tries() {
        reactions.push(rises_and_falls(space).await?);
    }
    reactions.sort();
    let (median, longest) = (reactions[reactions.len() / 2], reactions[reactions.len() - 1]);
    let p95 = reactions[(reactions.len() * 95).div_ceil(100) - 1];
    tell(&format!(
        "from the first request to /scale, {} tries: median {median:.2?}, p95 {p95:.2?}, longest {longest:.2?}",
        reactions.len()
    ));
    let events = space.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"]).await?;
    assert!(events.contains("Scaled"), "{events}");
    Ok(())
}

/// How long it took from the first request until more replicas were asked for.
async fn rises_and_falls(space: &Space) -> Outcome<Duration> {
    let load = clients(space, "wave", CLIENTS).await?;
    let (_, reaction) = until_more(space, "wave", 1).await?;
    tell_time("from the first request to more replicas being asked for", reaction);
    let (risen, _) = until_wanted(space, "wave", 3).await?;
    assert!(risen.is_sorted(), "{risen:?}");
    let pods = until_pods(space, "wave", 3).await?;
    tell_time("until every new pod answered", until_all_answer(&pods).await?);
    let calm = load.seen();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let seen = load.stop().await?;
    let since = seen.since(&calm);
    tell(&format!("with three replicas: {since}; of all: {seen}"));
    assert!(since.answered > 0 && seen.failures.is_empty(), "{:?}", seen.failures);
    let (fallen, time) = until_wanted(space, "wave", 1).await?;
    tell_time("from the end of the load to one replica", time);
    // A number that was seen twice would have come back.
    assert!(fallen.is_sorted_by(|a, b| a >= b), "{fallen:?}");
    until_pods(space, "wave", 1).await?;
    let model = space.models().get("wave").await?;
    let scaling = model.status.unwrap_or_default().scaling.unwrap_or_default();
    assert!(scaling.reason.contains("fewer replicas carry the load"), "{scaling:?}");
    Ok(reaction)
}

/// Drops what comes from outside of the node to the admin ports of these pods, and of no others: the operator's questions for their
/// load, and not the kubelet's for their health.
fn silence(space: &Space, pods: &[Pod]) -> Outcome {
    nft(space, "add table ip silent; delete table ip silent")?;
    nft(space, "add table ip silent; add chain ip silent passing { type filter hook forward priority 0; }")?;
    for pod in pods {
        nft(space, &format!("add rule ip silent passing ip daddr {} tcp dport 9090 drop", address(pod)?.0))?;
    }
    Ok(())
}

fn nft(space: &Space, commands: &str) -> Outcome {
    let mut nft = Command::new("nft");
    nft.arg(commands).stderr(Stdio::piped());
    let output = space.cluster().spawn_inside(nft)?.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("nft {commands}: {}", String::from_utf8_lossy(&output.stderr))))
}

pub(crate) async fn holds_without_numbers(space: &Space) -> Outcome {
    space.claim_models().await?;
    let fast = json!({"scaling": {"staleAfter": "3s", "minReplicas": 2}});
    space.apply(&with(scaled("mute"), &fast)).await?;
    let pods = until_pods(space, "mute", 2).await?;
    silence(space, &pods[..1])?;
    // What it told before counts for 3 s more.
    tokio::time::sleep(Duration::from_secs(6)).await;
    // From now on one would do, but one of the two may be full.
    space.apply(&with(scaled("mute"), &json!({"scaling": {"staleAfter": "3s"}}))).await?;
    let held = Instant::now();
    while held.elapsed() < Duration::from_secs(20) {
        assert_eq!(wanted(space, "mute").await?, 2, "nothing is taken away for want of numbers");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (model, _) = space.ready("mute").await?;
    assert_eq!(condition(&model, "ScalingActive").map(|it| it.reason.as_str()), Some("Active"), "half of them tell");
    silence(space, &pods)?;
    let unknown = crate::space::Verdict { type_: "ScalingActive", status: "Unknown", reason: "MetricsStale" };
    let (told, time) = space.shows("mute", unknown).await?;
    tell_time("from the last answer to MetricsStale", time);
    assert!(told.message.contains("9090"), "{}", told.message);
    assert_eq!(wanted(space, "mute").await?, 2);
    silence(space, &[])?;
    let (_, time) = space.shows("mute", yes("ScalingActive", "Active")).await?;
    tell_time("from the first answer to Active", time);
    let (seen, time) = until_wanted(space, "mute", 1).await?;
    tell_time("from there to one replica", time);
    assert_eq!(seen, [2, 1]);
    Ok(())
}

/// Of a device of which there is one.
pub(crate) async fn waits_for_a_device(space: &Space) -> Outcome {
    const DEVICE: &str = "example.com/accelerator";
    space.cluster().set_extended_resource(DEVICE, 1).await?;
    space.claim_models().await?;
    let device = json!({"accelerator": {"count": 1, "resourceName": DEVICE}});
    space.apply_until_ready(&with(scaled("scarce"), &device)).await?;
    let load = clients(space, "scarce", CLIENTS).await?;
    until_wanted(space, "scarce", 3).await?;
    let mut most = 0;
    let held = Instant::now();
    while held.elapsed() < Duration::from_secs(15) {
        most = most.max(wanted(space, "scarce").await?);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let seen = load.stop().await?;
    tell(&format!("with one device: at most {most} replicas asked for; {seen}"));
    assert_eq!(most, 3, "what the load asks for and no more, however long the pods wait");
    let (fallen, _) = until_wanted(space, "scarce", 1).await?;
    assert!(fallen.is_sorted_by(|a, b| a >= b), "{fallen:?}");
    Ok(())
}

pub(crate) async fn survives_its_leader(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply_until_ready(&scaled("orphan")).await?;
    let load = clients(space, "orphan", CLIENTS).await?;
    until_more(space, "orphan", 1).await?;
    let mut operator = space.stage.operator().await;
    let killed = operator.take().ok_or_else(|| Failure::new("no operator runs"))?;
    killed.kill()?;
    *operator = Some(Operator::start(space.stage, &Launch::usual()).await?);
    if let Some(operator) = operator.as_ref() {
        operator.until_it_leads().await?;
    }
    drop(operator);
    let (risen, _) = until_wanted(space, "orphan", 3).await?;
    assert!(risen.is_sorted(), "{risen:?}");
    until_pods(space, "orphan", 3).await?;
    let held = Instant::now();
    while held.elapsed() < Duration::from_secs(12) {
        assert_eq!(wanted(space, "orphan").await?, 3, "the load is what it was");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let seen = load.stop().await?;
    tell(&format!("across the end of a leader: {seen}"));
    assert_eq!(seen.failures, BTreeSet::<String>::new());
    let (fallen, _) = until_wanted(space, "orphan", 1).await?;
    assert!(fallen.is_sorted_by(|a, b| a >= b), "{fallen:?}");
    Ok(())
}

/// One that somebody's finalizer keeps: no number would be acted on.
pub(crate) async fn lets_go_of_what_ends(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply_until_ready(&scaled("held")).await?;
    // One that knows nothing of earlier tests' models, which are let go of a while after they have gone.
    let mut operator = space.stage.operator().await;
    operator.take().ok_or_else(|| Failure::new("no operator runs"))?.terminate()?;
    let begun = Operator::start(space.stage, &Launch::usual()).await?;
    begun.until_it_leads().await?;
    *operator = Some(begun);
    drop(operator);
    let scaled_models = async || {
        let operator = space.stage.operator().await;
        operator.as_ref().ok_or_else(|| Failure::new("no operator runs"))?.number("ortolan_operator_scaled_models")
    };
    let all = Api::<InferenceModel>::all(space.cluster().client()).list(&ListParams::default()).await?;
    let by_us = |model: &&InferenceModel| model.spec.scaling.effective_mode() == Some(ScalingMode::Operator);
    let before = all.iter().filter(by_us).count() as f64;
    let are_scaled = async |count: f64| match scaled_models().await {
        Ok(now) if now == count => Ok(()),
        now => Err(format!("{now:?} of {count} are scaled")),
    };
    wait::until("those that are there to be scaled", LIMIT, async || are_scaled(before).await).await?;
    let models = space.models();
    let finalizers = |given: Value| Patch::Merge(json!({"metadata": {"finalizers": given}}));
    models.patch("held", &PatchParams::default(), &finalizers(json!(["ortolan.dev/test"]))).await?;
    models.delete("held", &DeleteParams::default()).await?;
    let let_go = wait::until("it to be scaled no more", LIMIT, async || are_scaled(before - 1.0).await).await;
    models.patch("held", &PatchParams::default(), &finalizers(Value::Null)).await?;
    Ok(let_go.map(|_| ())?)
}

/// The API server is away for a minute while the load lasts, and comes back.
pub(crate) async fn survives_the_api_server(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply_until_ready(&scaled("island")).await?;
    let load = clients(space, "island", CLIENTS).await?;
    until_wanted(space, "island", 3).await?;
    until_pods(space, "island", 3).await?;
    space.cluster().freeze(Part::ApiServer)?;
    tokio::time::sleep(Duration::from_secs(60)).await;
    space.cluster().thaw(Part::ApiServer)?;
    let held = Instant::now();
    while held.elapsed() < Duration::from_secs(15) {
        if let Ok(wanted) = wanted(space, "island").await {
            assert_eq!(wanted, 3, "the load is what it was");
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let seen: Seen = load.stop().await?;
    tell(&format!("with the API server away for a minute: {seen}"));
    seen.failures.iter().for_each(|failure| tell(failure));
    let (fallen, time) = until_wanted(space, "island", 1).await?;
    tell_time("from the end of the load to one replica", time);
    assert!(fallen.is_sorted_by(|a, b| a >= b), "{fallen:?}");
    Ok(())
}
