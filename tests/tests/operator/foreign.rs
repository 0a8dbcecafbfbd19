//! Objects of somebody else under names that the operator would use.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::{Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::fixture::{Outcome, PROBE, tell, tell_time};
use crate::models::{DOUBLED, small};
use crate::space::{Space, no, yes};

pub(crate) async fn is_left_alone(space: &Space) -> Outcome {
    space.claim_models().await?;
    // The hash of a revision does not depend on the name of its InferenceModel.
    space.apply_until_ready(&small("scout")).await?;
    let revision = space.active_revision("scout").await?;
    let hash = revision.trim_start_matches("scout-");
    let labels = json!({"app": "foreign"});
    let ports = json!([{"port": 80}]);
    let service = json!({"metadata": {"name": "taken-a"}, "spec": {"selector": labels, "ports": ports}});
    let config_map = json!({"metadata": {"name": format!("taken-b-{hash}")}, "data": {"foreign": "yes"}});
    let deployment = json!({
        "metadata": {"name": format!("taken-c-{hash}")},
        "spec": {
            "replicas": 0,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "foreign", "image": PROBE}]}},
        },
    });
    let (one, two, three) = tokio::join!(
        conflicts::<Service>(space, "taken-a", service),
        conflicts::<ConfigMap>(space, "taken-b", config_map),
        conflicts::<Deployment>(space, "taken-c", deployment),
    );
    one.and(two).and(three)
}

async fn conflicts<K>(space: &Space, name: &str, foreign: Value) -> Outcome
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + Debug + Serialize + DeserializeOwned,
{
    let before = space.create_object::<K>(foreign).await?;
    let (kind, theirs) = (K::kind(&()), before.name_any());
    space.apply(&small(name)).await?;
    let (found, time) = space.shows(name, no("Accepted", "NameConflict")).await?;
    tell_time(&format!("to NameConflict of a {kind}"), time);
    tell(&found.message);
    for part in [kind.as_ref(), &theirs, "left alone", "Remove or rename it"] {
        assert!(found.message.contains(part), "{part:?} is not in: {}", found.message);
    }
    space.shows(name, no("Ready", "NameConflict")).await?;
    // 6 s: a refusal is tried again every 5.
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    let after = space.api::<K>().get(&theirs).await?;
    if kind == "Deployment" {
        // Its controller writes its status.
        assert_eq!((before.uid(), before.meta().generation), (after.uid(), after.meta().generation));
        assert_eq!((before.labels(), before.owner_references()), (after.labels(), after.owner_references()));
    } else {
        assert_eq!((before.uid(), before.resource_version()), (after.uid(), after.resource_version()));
    }
    // No pod runs with what somebody else wrote.
    if kind == "ConfigMap" {
        assert_eq!(space.of::<Pod>(name).await?.len(), 0, "pods mount a ConfigMap of somebody else");
    }
    space.delete::<K>(&theirs).await?;
    let (_, time) = space.ready(name).await?;
    tell_time(&format!("from the removal of the foreign {kind} to Ready"), time);
    space.shows(name, yes("Accepted", "Accepted")).await?;
    assert_eq!(space.numbers(name).await?, DOUBLED);
    Ok(())
}

/// The test that all namespaces of these tests do enforce `restricted`, and that models are served under it, fetched ones too.
pub(crate) async fn restricted_is_enforced(space: &Space) -> Outcome {
    let careless = json!({"metadata": {"name": "careless"}, "spec": {"containers": [{"name": "any", "image": PROBE}]}});
    let refused = space.create_object::<Pod>(careless).await.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(refused.contains("violates PodSecurity \"restricted"), "{refused}");
    let fetched = crate::models::inference_model("careful", &[crate::models::from_web("tiny", "tiny")?]);
    let (_, time) = space.apply_until_ready(&fetched).await?;
    tell_time("from the apply of a fetched model to Ready under `restricted`", time);
    assert_eq!(space.numbers("careful").await?, DOUBLED);
    Ok(())
}
