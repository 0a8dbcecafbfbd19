//! Operators that end, that are replaced, and that are two.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::ResourceExt;
use kube::api::DeleteParams;
use ortolan_tests::cluster::wait;
use serde_json::{Value, json};

use crate::audit::{Mark, tokens};
use crate::fixture::{Failure, LIMIT, Outcome, tell, tell_time};
use crate::models::{DOUBLED, small, with};
use crate::operator::{Launch, Operator};
use crate::space::{Space, condition, yes};

/// Kills the operator and starts it again, as its Deployment would: under the same name.
pub(crate) async fn crash(space: &Space) -> Outcome {
    let mut operator = space.stage.operator().await;
    let killed = operator.take().ok_or_else(|| Failure::new("no operator runs"))?;
    killed.kill()?;
    *operator = Some(Operator::start(space.stage, &Launch::usual()).await?);
    Ok(())
}

pub(crate) async fn killed_in_a_rollout(space: &Space) -> Outcome {
    space.claim_models().await?;
    let before = |name: &str| with(small(name), &json!({"replicas": 2}));
    let after = |name: &str| with(before(name), &json!({"server": {"logLevel": "debug"}}));
    for name in ["twin", "victim"] {
        space.apply(&before(name)).await?;
    }
    for name in ["twin", "victim"] {
        space.ready(name).await?;
    }
    space.apply_until_ready(&after("twin")).await?;

    let old = space.active_revision("victim").await?;
    space.apply(&after("victim")).await?;
    // Three moments: there is a second Deployment; a new pod is ready; the first old pod is gone.
    let deployments = async || match space.of::<Deployment>("victim").await?.len() {
        2 => Ok(()),
        count => Err(Failure::new(format!("{count} Deployments"))),
    };
    wait::until("the new revision to begin", LIMIT, deployments).await?;
    crash(space).await?;
    for ready in [1, 2] {
        let look = async || {
            let pods = space.pods("victim").await?;
            let new = pods.iter().filter(|pod| !pod.name_any().starts_with(&old) && is_ready(pod)).count();
            if new >= ready { Ok(()) } else { Err(Failure::new(format!("{new} new pods are ready"))) }
        };
        wait::until(&format!("new pod {ready} to be ready"), LIMIT, look).await?;
        crash(space).await?;
    }
    let (_, time) = space.ready("victim").await?;
    tell_time("from the last of three crashes in a rollout to Ready", time);
    until_pods(space, "victim", 2).await?;
    // What two that were not disturbed in the same way may differ in is their name, and times.
    assert_eq!(end_state(space, "victim").await?, end_state(space, "twin").await?);
    assert_eq!(space.numbers("victim").await?, DOUBLED);
    Ok(())
}

/// Waits until no other pods are left, those that are ending included.
async fn until_pods(space: &Space, name: &str, count: usize) -> Outcome {
    let look = async || match space.of::<Pod>(name).await?.len() {
        left if left == count => Ok(()),
        left => Err(Failure::new(format!("{left} pods"))),
    };
    wait::until(&format!("{count} pods of {name} to be left"), LIMIT, look).await?;
    Ok(())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// The children without times, and the conditions, under one name.
async fn end_state(space: &Space, name: &str) -> Outcome<(BTreeMap<String, Value>, Vec<String>)> {
    let mut children = BTreeMap::new();
    for (key, mut child) in space.children(name).await? {
        let annotations = child["metadata"]["annotations"].as_object_mut();
        for (_, value) in annotations.into_iter().flatten() {
            let text = value.as_str().unwrap_or_default();
            if text.len() == 16 || text.starts_with("20") {
                *value = "a digest or a time".into();
            }
        }
        child["metadata"]["ownerReferences"] = Value::Null;
        children.insert(key.replace(name, "NAME"), serde_json::from_str(&child.to_string().replace(name, "NAME"))?);
    }
    let status = space.models().get(name).await?.status.unwrap_or_default();
    let lines = status.conditions.iter().map(|it| format!("{}={} {}: {}", it.type_, it.status, it.reason, it.message));
    Ok((children, lines.map(|line| line.replace(name, "NAME")).collect()))
}

pub(crate) async fn upgraded(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply(&with(small("old"), &json!({"replicas": 2}))).await?;
    space.apply_until_ready(&small("twice")).await?;
    space.apply_until_ready(&with(small("twice"), &json!({"server": {"logLevel": "debug"}}))).await?;
    space.ready("old").await?;
    until_pods(space, "twice", 1).await?;
    let (lives, specs) = (lives(space).await?, specs(space).await?);

    let mark = Mark::now(space.cluster())?;
    let upgraded = Launch::upgraded();
    space.stage.operate(&upgraded).await?;
    // 5 s: it looks at each of them in the first.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(mark.writes_in(&space.namespace)?, [], "an upgrade has nothing to write");
    assert_eq!(self::specs(space).await?, specs);

    // What it repairs, it repairs to what the former made.
    let revision = space.active_revision("old").await?;
    space.api::<ConfigMap>().delete(&revision, &DeleteParams::default()).await?;
    let remade = async || space.api::<ConfigMap>().get(&revision).await.map(drop);
    wait::until("the ConfigMap to be restored", LIMIT, remade).await?;
    space.kubectl(&["scale", "infm", "old", "--replicas=3"]).await?;
    space
        .until("old", "to have 3 pods", |model| {
            let ready = model.status.as_ref().map_or(0, |status| status.ready_replicas);
            if ready == 3 { Ok(()) } else { Err(ready.to_string()) }
        })
        .await?;
    let now = self::lives(space).await?;
    let restarted: Vec<_> = lives.iter().filter(|(pod, life)| now.get(*pod) != Some(life)).collect();
    tell(&format!("{} of {} model pods restarted by an upgrade", restarted.len(), lives.len()));
    assert!(restarted.is_empty(), "{restarted:?}");
    assert_eq!(images(space, "old").await?, [&*Launch::usual().pod_image; 3]);
    assert_eq!(self::specs(space).await?.len(), specs.len(), "no other revision");

    space.apply_until_ready(&small("new")).await?;
    assert_eq!(images(space, "new").await?, [upgraded.pod_image]);
    space.stage.operate(&Launch::usual()).await
}

/// Every pod of a model, with its containers' restarts.
async fn lives(space: &Space) -> Outcome<BTreeMap<String, (Option<String>, i32)>> {
    let mut lives = BTreeMap::new();
    for name in ["old", "twice"] {
        for pod in space.of::<Pod>(name).await? {
            let status = pod.status.clone().unwrap_or_default();
            let restarts = status.container_statuses.iter().flatten().map(|container| container.restart_count).sum();
            lives.insert(pod.name_any(), (pod.uid(), restarts));
        }
    }
    Ok(lives)
}

/// What each Deployment and ReplicaSet wants, but for the number of pods.
async fn specs(space: &Space) -> Outcome<BTreeMap<String, Value>> {
    let mut specs = BTreeMap::new();
    for name in ["old", "twice"] {
        for deployment in space.of::<Deployment>(name).await? {
            let template = serde_json::to_value(&deployment.spec.template)?;
            specs.insert(format!("Deployment {}", deployment.name_any()), template);
        }
        for set in space.of::<ReplicaSet>(name).await? {
            specs.insert(format!("ReplicaSet {}", set.name_any()), Value::Null);
        }
    }
    Ok(specs)
}

async fn images(space: &Space, name: &str) -> Outcome<Vec<String>> {
    let pods = space.pods(name).await?;
    Ok(pods.iter().filter_map(|pod| pod.spec.as_ref()?.containers[0].image.clone()).collect())
}

/// One leads and one stands by; the first is ended in order, and killed.
pub(crate) async fn two_at_once(space: &Space) -> Outcome {
    space.claim_models().await?;
    let mut held = space.stage.operator().await;
    let first = held.take().ok_or_else(|| Failure::new("no operator runs"))?;
    let second = Operator::start(space.stage, &Launch { identity: "operator-1", ..Launch::usual() }).await?;
    tell_time("until a standby has read all there is", second.until_it_is_ready().await?);
    assert_eq!((first.number("ortolan_operator_leader")?, second.number("ortolan_operator_leader")?), (1.0, 0.0));

    let mark = Mark::now(space.cluster())?;
    space.apply_until_ready(&small("shared")).await?;
    space.kubectl(&["scale", "infm", "shared", "--replicas=2"]).await?;
    space
        .until("shared", "to have 2 pods", |model| {
            let ready = model.status.as_ref().map_or(0, |status| status.ready_replicas);
            if ready == 2 { Ok(()) } else { Err(ready.to_string()) }
        })
        .await?;
    let writes = mark.writes()?;
    tell(&format!("{} writes with {} token", writes.len(), tokens(&writes).len()));
    assert_eq!(tokens(&writes).len(), 1, "{writes:?}");
    assert_eq!(tokens(&mark.all()?).len(), 1, "a standby does not write to the Lease either");
    let writes = "ortolan_operator_writes_total";
    assert!(first.number(writes)? > 0.0 && second.number(writes)? == 0.0, "as they count it themselves");
    assert_eq!(first.holder().await?, "operator-0");

    // In order: the other one begins at once, and what was asked of nobody is done.
    let (status, ended) = first.terminate()?;
    let begun = Instant::now();
    assert!(status.success(), "{status}");
    let leads = second.until_it_leads().await?;
    tell_time(
        &format!("from the end of an operator by SIGTERM ({:.2} s) to the next one's lead", ended.as_secs_f64()),
        leads,
    );
    space.kubectl(&["scale", "infm", "shared", "--replicas=1"]).await?;
    space
        .until("shared", "to have 1 pod", |model| {
            let replicas = model.status.as_ref().map_or(0, |status| status.replicas);
            if replicas == 1 { Ok(()) } else { Err(replicas.to_string()) }
        })
        .await?;
    assert!(begun.elapsed() < LIMIT);

    // By a crash: the Lease has to run out.
    let third = Operator::start(space.stage, &Launch::usual()).await?;
    third.until_it_is_ready().await?;
    let begun = Instant::now();
    second.kill()?;
    third.until_it_leads().await?;
    tell_time("from a killed operator to the next one's lead", begun.elapsed());
    assert_eq!(third.holder().await?, "operator-0");
    space.shows("shared", yes("RolledOut", "Complete")).await?;
    let model = space.models().get("shared").await?;
    assert!(condition(&model, "Ready").is_some_and(|ready| ready.status == "True"));
    *held = Some(third);
    Ok(())
}
