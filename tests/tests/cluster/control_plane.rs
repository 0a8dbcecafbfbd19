//! The control plane without a node.

use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use ortolan_tests::cluster::{Cluster, ClusterError, Options, Part};
use serde_json::json;

use crate::fixture::{Fixture, Outcome, ready_pod};

pub(crate) async fn stores_and_returns(fixture: &Fixture) -> Outcome {
    let maps: Api<ConfigMap> = Api::namespaced(fixture.control_plane().await?.client(), "default");
    let map = serde_json::from_value(json!({"metadata": {"name": "colours"}, "data": {"sky": "blue"}}))?;
    maps.create(&PostParams::default(), &map).await?;
    let change = Patch::Merge(json!({"data": {"sky": "grey"}}));
    maps.patch("colours", &PatchParams::default(), &change).await?;
    assert_eq!(maps.get("colours").await?.data.unwrap_or_default()["sky"], "grey");
    maps.delete("colours", &DeleteParams::default()).await?;
    assert!(maps.get_opt("colours").await?.is_none());
    Ok(())
}

pub(crate) async fn kwok_plays_nodes(fixture: &Fixture) -> Outcome {
    let cluster = fixture.control_plane().await?;
    cluster.add_kwok_nodes(20).await?;
    let nodes: Api<Node> = Api::all(cluster.client());
    assert_eq!(nodes.list(&Default::default()).await?.items.len(), 20);
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "default");
    let pod = serde_json::from_value(json!({
        "metadata": {"name": "played"},
        "spec": {"containers": [{"name": "any", "image": "none.example/any:1"}]},
    }))?;
    pods.create(&PostParams::default(), &pod).await?;
    let node = ready_pod(&pods, "played").await?.spec.unwrap_or_default().node_name.unwrap_or_default();
    assert!(node.starts_with("kwok-"), "the pod is on {node}");
    pods.delete("played", &DeleteParams::default()).await?;

    cluster.restart(Part::Kwok)?;
    assert!(cluster.is_running(Part::Kwok)?);
    let said = |refused: Result<(), ClusterError>| refused.map_err(|error| error.to_string());
    assert_eq!(said(cluster.start(Part::Kwok)), Err("kwok runs already; end it first, or restart it".to_owned()));
    let of_no_node = "cannot start a part of a node: this cluster has no node of ours";
    assert_eq!(said(cluster.start(Part::Kubelet)), Err(of_no_node.to_owned()));
    Ok(())
}

/// In a cluster of its own, so that no other test waits in vain.
pub(crate) async fn names_a_dead_part(_: &Fixture) -> Outcome {
    let cluster = Cluster::up(&Options::named("test-broken").control_plane_alone()).await?;
    cluster.kill(Part::Scheduler)?;
    assert!(!cluster.is_running(Part::Scheduler)?);
    let error = cluster.freeze(Part::Scheduler).expect_err("a dead part cannot be frozen").to_string();
    assert!(error.contains("kube-scheduler has ended") && error.contains("kube-scheduler.log"), "{error}");
    cluster.start(Part::Scheduler)?;
    assert!(cluster.is_running(Part::Scheduler)?);
    cluster.down()?;
    Ok(())
}
