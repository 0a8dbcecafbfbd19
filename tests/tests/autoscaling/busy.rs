//! A classifier of photos whose pods have a fifth of a processor each, and clients that keep more samples in it than one pod should
//! carry.

use std::time::{Duration, Instant};

use kube::ResourceExt;
use ortolan_tests::cluster::wait;
use serde_json::{Value, json};

use crate::fixture::{Failure, LIMIT, Outcome, repository, tell, tell_time};
use crate::load::{Load, Question};
use crate::models::{inference_model, on_volume, with};
use crate::space::Space;
use crate::watch::Watch;
use crate::web;

/// The InferenceModel of every test here.
pub(crate) const NAME: &str = "busy";

/// How many samples are under way under load. Some of them are always between a client and its pod, where nobody counts them.
pub(crate) const CLIENTS: usize = 12;

/// Replicas that [`CLIENTS`] samples ask for at [`PER_REPLICA`], and as few as nine of them.
pub(crate) const BUSY: usize = 3;

const PER_REPLICA: u32 = 4;

/// The InferenceModel, scaled in this mode.
pub(crate) fn model(mode: &str) -> Value {
    let mut classifier = on_volume("photos", "efficientnet-lite0");
    classifier["task"] = "image-classification".into();
    // Nobody is refused: the load is that of the clients, all of whom wait.
    classifier["batching"] = json!({"batchSize": 2, "maxQueueTime": "30s"});
    with(
        inference_model(NAME, &[classifier]),
        &json!({
            "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"cpu": "200m", "memory": "512Mi"}},
            // 3 s of age: clients that keep their connections soon find the new pods. 3 s of drain: a busy node takes its time to tell its
            // rules that a pod ends.
            "server": {"config": {"max_connection_age_ms": 3000, "drain_delay_ms": 3000, "drain_timeout_ms": 10_000}},
            "scaling": {
                "mode": mode,
                "minReplicas": 1,
                "maxReplicas": BUSY + 1,
                "targets": {"inflightPerReplica": PER_REPLICA},
                // The usual 5 minutes would be waited for.
                "behavior": {"scaleDown": {"stabilization": "10s", "maxPerMinute": 10}},
            },
        }),
    )
}

/// Clients with a photo.
pub(crate) async fn load(space: &Space) -> Outcome<Load> {
    let photo = std::fs::read(repository().join("deploy/samples/photos/camera.png"))?;
    let question = Question {
        address: space.address(NAME).await?,
        path: "/predict/photos",
        content_type: "image/png",
        body: photo,
    };
    Ok(Load::start(&question, CLIENTS))
}

/// Waits until there are so many pods, all ready and none on its way.
pub(crate) async fn until_ready(space: &Space, replicas: usize) -> Outcome<Duration> {
    let wanted = i32::try_from(replicas).unwrap_or_default();
    let look = |model: &crds::resource::InferenceModel| {
        let status = model.status.clone().unwrap_or_default();
        let reached = model.spec.replicas == wanted && status.replicas == wanted && status.ready_replicas == wanted;
        let seen = || format!("{} wanted, {} of {} ready", model.spec.replicas, status.ready_replicas, status.replicas);
        if reached { Ok(()) } else { Err(seen()) }
    };
    Ok(space.until(NAME, &format!("to have {replicas} ready pods"), look).await?.1)
}

/// Waits until every pod has answered a client.
pub(crate) async fn until_all_take_part(space: &Space) -> Outcome {
    let look = async || {
        let mut idle = Vec::new();
        for pod in space.pods(NAME).await? {
            let address = pod.status.iter().find_map(|status| status.pod_ip.clone()).unwrap_or_default();
            let metrics = web::get((address.as_str(), 9090), "/metrics")?.text();
            if !metrics.lines().any(|line| line.contains("outcome=\"ok\"") && !line.ends_with(" 0")) {
                idle.push(pod.name_any());
            }
        }
        if idle.is_empty() { Ok(()) } else { Err(Failure::new(format!("{idle:?} have answered nothing"))) }
    };
    let ((), time) = wait::until("every pod to answer clients", LIMIT, look).await?;
    tell_time("until every pod had answered clients", time);
    Ok(())
}

/// From one pod to [`BUSY`] under load, and back when it ends, with whatever is `between` at the top.
pub(crate) async fn rises_and_falls(space: &Space, watch: &Watch, between: impl AsyncFnOnce() -> Outcome) -> Outcome {
    let begun = Instant::now();
    let load = load(space).await?;
    let time = until_ready(space, BUSY).await?;
    tell_time(&format!("from the first of {CLIENTS} clients to {BUSY} ready pods"), time);
    until_all_take_part(space).await?;
    between().await?;
    let (answers, failures) = load.stop()?;
    let time = until_ready(space, 1).await?;
    tell_time("from the end of the load to one pod", time);
    tell(&format!("{answers} answers, {} failures", failures.len()));
    assert_eq!(failures, Vec::<String>::new());
    let moments = watch.since(begun)?;
    assert!(crate::watch::is_one_hill(&moments), "replicas come and go: {moments:?}");
    Ok(())
}
