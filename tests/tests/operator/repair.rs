//! What is deleted or changed from outside comes back.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use crds::resource::InferenceModel;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Resource, ResourceExt};
use ortolan_tests::cluster::wait;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::fixture::{LIMIT, Outcome, tell, tell_time};
use crate::models::{DOUBLED, small, with};
use crate::space::{MODEL_LABEL, REVISION_LABEL, Space, as_wanted};

pub(crate) async fn remakes_the_deleted(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply_until_ready(&small("whole")).await?;
    let before = space.children("whole").await?;
    tell(&format!("children: {:?}", before.keys()));
    assert_eq!(before.len(), 4);
    let revision = space.active_revision("whole").await?;
    let pods = lives(space).await?;

    delete::<ConfigMap>(space, &revision).await?;
    restored(space, "a deleted ConfigMap", &before).await?;
    delete::<Service>(space, "whole").await?;
    restored(space, "a deleted Service", &before).await?;
    delete::<Service>(space, "whole-pods").await?;
    restored(space, "a deleted headless Service", &before).await?;
    assert_eq!(lives(space).await?, pods, "repairing the ConfigMap and the Services restarts no pod");
    assert_eq!(space.of::<ReplicaSet>("whole").await?.len(), 1);

    delete::<Deployment>(space, &revision).await?;
    restored(space, "a deleted Deployment", &before).await?;
    space.ready("whole").await?;
    assert_eq!(space.numbers("whole").await?, DOUBLED);

    // All at once: what a revision was born with is rendered again from the spec.
    delete::<ConfigMap>(space, &revision).await?;
    delete::<Deployment>(space, &revision).await?;
    delete::<Service>(space, "whole").await?;
    delete::<Service>(space, "whole-pods").await?;
    restored(space, "all children at once", &before).await?;
    space.ready("whole").await?;
    Ok(())
}

/// Deletes a child, and says so. How long it takes to come back is counted from here.
async fn delete<K>(space: &Space, name: &str) -> Outcome
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
{
    space.api::<K>().delete(name, &DeleteParams::background()).await?;
    Ok(())
}

/// Waits until the children are as they were. The times that a revision remembers of itself may be lost with its ConfigMap.
async fn restored(space: &Space, what: &str, before: &BTreeMap<String, Value>) -> Outcome {
    let begun = Instant::now();
    let look = async || {
        let now = space.children("whole").await.map_err(|error| error.to_string())?;
        let (now, before) = (without_memory(now), without_memory(before.clone()));
        if now == before { Ok(()) } else { Err(difference(&before, &now)) }
    };
    wait::until(&format!("{what} to be restored"), LIMIT, look).await?;
    tell_time(&format!("to restore {what}"), begun.elapsed());
    Ok(())
}

/// Without the times that a ConfigMap and a Deployment remember of their revision, and the digests that cover them: each
/// remembers for the other, so they are lost only where both are gone at once.
fn without_memory(mut children: BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    const MEMORY: [&str; 4] =
        ["ortolan.dev/applied", "ortolan.dev/began", "ortolan.dev/completed", "ortolan.dev/target-since"];
    for annotations in children.values_mut().filter_map(|child| child["metadata"]["annotations"].as_object_mut()) {
        annotations.retain(|key, _| !MEMORY.contains(&key.as_str()));
    }
    children
}

fn difference(before: &BTreeMap<String, Value>, now: &BTreeMap<String, Value>) -> String {
    let differs = before.iter().filter(|(name, child)| now.get(*name) != Some(child));
    let mut lines: Vec<String> =
        differs.map(|(name, child)| format!("{name}: {child}\n  is {:?}", now.get(name))).collect();
    lines.extend(now.keys().filter(|name| !before.contains_key(*name)).map(|name| format!("{name} is too much")));
    lines.join("\n")
}

/// Every pod with its containers' restarts.
async fn lives(space: &Space) -> Outcome<BTreeMap<String, i32>> {
    let pods = space.of::<Pod>("whole").await?;
    let life = |pod: &Pod| {
        let status = pod.status.clone().unwrap_or_default();
        let restarts = status.container_statuses.iter().flatten().map(|container| container.restart_count).sum();
        (pod.uid().unwrap_or_default(), restarts)
    };
    Ok(pods.iter().map(life).collect())
}

pub(crate) async fn undoes_edits_of_services(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply_until_ready(&small("whole")).await?;
    let ports = |http: i32| {
        json!([
            {"name": "http", "port": http, "protocol": "TCP", "targetPort": "http"},
            {"name": "grpc", "port": 8081, "protocol": "TCP", "targetPort": "grpc"},
        ])
    };
    let edits = [
        ("the selector of a Service", json!({"spec": {"selector": {MODEL_LABEL: "another"}}})),
        ("the selector of a Service, with a further label", json!({"spec": {"selector": {"further": "label"}}})),
        ("the port of a Service", json!({"spec": {"ports": ports(81)}})),
        (
            "the target port of a Service",
            json!({"spec": {"ports": [{"name": "http", "port": 80, "targetPort": 9999}]}}),
        ),
        ("the type of a Service", json!({"spec": {"type": "NodePort"}})),
        ("the labels of a Service", json!({"metadata": {"labels": {MODEL_LABEL: null}}})),
        ("the owner of a Service", json!({"metadata": {"ownerReferences": null}})),
        ("the annotation of a Service", json!({"metadata": {"annotations": {"ortolan.dev/applied": "mine"}}})),
    ];
    let before = as_wanted(&space.api::<Service>().get("whole").await?)?;
    let mut failures = Vec::new();
    for (what, edit) in edits {
        failures.extend(undone::<Service>(space, &before, what, Patch::Merge(edit)).await.err());
    }
    failures.iter().for_each(|failure| tell(&failure.to_string()));
    assert!(failures.is_empty(), "{} edits are not undone", failures.len());
    assert_eq!(space.numbers("whole").await?, DOUBLED);

    // To undo the edit of a port all owners of fields were forgotten. What is wanted no more goes all the same.
    let annotated = json!({"service": {"annotations": {"example.com/name": "whole"}}});
    space.apply(&with(small("whole"), &annotated)).await?;
    until_annotated(space, Some("whole")).await?;
    let before = as_wanted(&space.api::<Service>().get("whole").await?)?;
    undone::<Service>(space, &before, "the port once more", Patch::Merge(json!({"spec": {"ports": ports(82)}})))
        .await?;
    space.apply(&small("whole")).await?;
    until_annotated(space, None).await
}

async fn until_annotated(space: &Space, wanted: Option<&str>) -> Outcome {
    let services = space.api::<Service>();
    let look = async || {
        let service = services.get("whole").await.map_err(|error| error.to_string())?;
        let found = service.annotations().get("example.com/name").map(String::as_str);
        if found == wanted {
            Ok(())
        } else {
            Err(format!("it is {found:?}, managed by {:?}", service.managed_fields()))
        }
    };
    wait::until(&format!("the annotation of the Service to be {wanted:?}"), LIMIT, look).await?;
    Ok(())
}

pub(crate) async fn undoes_edits_of_deployments(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply_until_ready(&small("whole")).await?;
    let revision = space.active_revision("whole").await?;
    let of_server = |field: Value| {
        let mut server = json!({"name": "server"});
        server
            .as_object_mut()
            .into_iter()
            .for_each(|server| server.extend(field.as_object().cloned().unwrap_or_default()));
        json!({"spec": {"template": {"spec": {"containers": [server]}}}})
    };
    let edits = [
        ("the labels of a Deployment", json!({"metadata": {"labels": {MODEL_LABEL: null, REVISION_LABEL: "x"}}})),
        ("the owner of a Deployment", json!({"metadata": {"ownerReferences": null}})),
        ("the annotations of a Deployment", json!({"metadata": {"annotations": {"ortolan.dev/config": null}}})),
        ("the replicas of a Deployment", json!({"spec": {"replicas": 0}})),
        ("more replicas of a Deployment", json!({"spec": {"replicas": 3}})),
        ("the history limit of a Deployment", json!({"spec": {"revisionHistoryLimit": 7}})),
        ("the image of a Deployment", of_server(json!({"image": "localhost/another:1"}))),
        ("a variable of a Deployment", of_server(json!({"env": [{"name": "ORT_DISABLE_TELEMETRY", "value": "0"}]}))),
        ("a probe of a Deployment", of_server(json!({"readinessProbe": {"periodSeconds": 30}}))),
        (
            "the grace period of a Deployment",
            json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 300}}}}),
        ),
    ];
    let before = as_wanted(&space.api::<Deployment>().get(&revision).await?)?;
    let mut failures = Vec::new();
    for (what, edit) in edits {
        failures.extend(undone::<Deployment>(space, &before, what, Patch::Strategic(edit)).await.err());
    }
    failures.iter().for_each(|failure| tell(&failure.to_string()));
    assert!(failures.is_empty(), "{} edits are not undone", failures.len());
    space.ready("whole").await?;
    Ok(())
}

pub(crate) async fn undoes_edits_of_config_maps(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply_until_ready(&small("whole")).await?;
    let revision = space.active_revision("whole").await?;
    let edits = [
        ("the labels of a ConfigMap", json!({"metadata": {"labels": {MODEL_LABEL: "another", REVISION_LABEL: null}}})),
        ("the owner of a ConfigMap", json!({"metadata": {"ownerReferences": null}})),
        ("the annotation of a ConfigMap", json!({"metadata": {"annotations": {"ortolan.dev/applied": null}}})),
    ];
    let pods = lives(space).await?;
    let before = space.children("whole").await?;
    for (what, edit) in edits {
        let edited = edit_from_outside::<ConfigMap>(space, &revision, &Patch::Merge(edit)).await?;
        assert_ne!(before[&format!("ConfigMap {revision}")], edited, "{what}: the edit changes nothing");
        restored(space, what, &before).await?;
    }
    assert_eq!(lives(space).await?, pods, "no pod is restarted");
    assert_eq!(space.active_revision("whole").await?, revision);
    Ok(())
}

/// `kubectl delete --cascade=orphan`, as those do it who move to another cluster or another tool, and the same name once more, with
/// another spec: what was left serves on, makes way by a rollout, and is gone with its new owner.
pub(crate) async fn takes_over_what_is_left(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply_until_ready(&small("heir")).await?;
    let left = space.active_revision("heir").await?;
    let pods = space.of::<Pod>("heir").await?;
    let uids = |pods: &[Pod]| pods.iter().map(Pod::uid).collect::<Vec<_>>();
    space.kubectl(&["delete", "infm/heir", "--cascade=orphan"]).await?;
    // 2 s: what follows a deletion is done.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(uids(&space.of::<Pod>("heir").await?), uids(&pods), "they were to be kept");

    let (model, time) = space.apply_until_ready(&small("heir")).await?;
    tell_time("from the apply of the same to Ready", time);
    assert_eq!(
        (space.active_revision("heir").await?, uids(&space.of::<Pod>("heir").await?)),
        (left.clone(), uids(&pods))
    );
    let owners =
        |object: &Deployment| object.owner_references().iter().map(|it| Some(it.uid.clone())).collect::<Vec<_>>();
    assert_eq!(owners(&space.api::<Deployment>().get(&left).await?), [model.uid()]);

    space.kubectl(&["delete", "infm/heir", "--cascade=orphan"]).await?;
    space
        .apply_until_ready(&with(
            small("heir"),
            &json!({"server": {"logLevel": "debug"}, "rollout": {"historyLimit": 0}}),
        ))
        .await?;
    let gone = async || match space.of::<Pod>("heir").await {
        Ok(now) if now.len() == 1 && uids(&now) != uids(&pods) => Ok(()),
        Ok(now) => Err(format!("there are {:?}", now.iter().map(Pod::name_any).collect::<Vec<_>>())),
        Err(error) => Err(error.to_string()),
    };
    let ((), time) = wait::until("the pods of the revision that was left to go", LIMIT, gone).await?;
    tell_time("until the revision that was left has made way", time);
    assert_eq!(space.numbers("heir").await?, DOUBLED);
    space.delete::<InferenceModel>("heir").await?;
    let look = async || {
        let left = space.children("heir").await.map_err(|error| error.to_string())?;
        if left.is_empty() { Ok(()) } else { Err(format!("{:?} are there", left.keys())) }
    };
    wait::until("all children to be gone with their new owner", LIMIT, look).await?;
    Ok(())
}

/// Edits a child, and waits until it is as before.
async fn undone<K>(space: &Space, before: &Value, what: &str, edit: Patch<Value>) -> Outcome
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
{
    let api = space.api::<K>();
    let name = before["metadata"]["name"].as_str().unwrap_or_default();
    let edited = edit_from_outside::<K>(space, name, &edit).await?;
    assert_ne!(*before, edited, "{what}: the edit changes nothing");
    let begun = Instant::now();
    let look = async || {
        let now = api.get(name).await.map_err(|error| error.to_string())?;
        let now = as_wanted(&now).map_err(|error| error.to_string())?;
        if now == *before { Ok(()) } else { Err(format!("{now}\n  and was {before}")) }
    };
    // 15 s: many edits are tried, and one that is not undone within that time is not undone.
    wait::until(&format!("{what} to be restored"), Duration::from_secs(15), look).await?;
    tell_time(&format!("to restore {what}"), begun.elapsed());
    Ok(())
}

/// Edits a child as `kubectl edit` does. Returns what became of it.
async fn edit_from_outside<K>(space: &Space, name: &str, edit: &Patch<Value>) -> Outcome<Value>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + Serialize + DeserializeOwned,
{
    let params = PatchParams { field_manager: Some("kubectl-edit".to_owned()), ..PatchParams::default() };
    as_wanted(&space.api::<K>().patch(name, &params, edit).await?)
}
