//! Parts that die or stand still.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use ortolan_tests::cluster::{Cluster, NODE, Part, wait};

use crate::fixture::{Fixture, LIMIT, Outcome, ready_pod, tell};
use crate::node::{create_server, delete_pod};

/// Waits until the node's condition Ready has this status.
async fn node_is(cluster: &Cluster, wanted: &str) -> Outcome {
    let nodes: Api<Node> = Api::all(cluster.client());
    let ((), time) = wait::until(&format!("Ready={wanted}"), LIMIT, async || {
        let status = nodes.get(NODE).await.map_err(|error| error.to_string())?.status.unwrap_or_default();
        let ready = status.conditions.into_iter().flatten().find(|condition| condition.type_ == "Ready");
        match ready.map(|condition| condition.status) {
            Some(seen) if seen == wanted => Ok(()),
            seen => Err(format!("{seen:?}")),
        }
    })
    .await?;
    tell(&format!("the node has Ready={wanted} after {:.1} s", time.as_secs_f64()));
    Ok(())
}

pub(crate) async fn killed_kubelet(fixture: &Fixture) -> Outcome {
    let cluster = fixture.node().await?;
    cluster.kill(Part::Kubelet)?;
    node_is(cluster, "Unknown").await?;
    cluster.start(Part::Kubelet)?;
    node_is(cluster, "True").await?;
    create_server(cluster, "afterwards", "still here").await?;
    delete_pod(cluster, "afterwards").await
}

pub(crate) async fn killed_containerd(fixture: &Fixture) -> Outcome {
    let cluster = fixture.node().await?;
    create_server(cluster, "survivor", "still here").await?;
    cluster.restart(Part::Containerd)?;
    create_server(cluster, "newcomer", "new here").await?;
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "default");
    let survivor = ready_pod(&pods, "survivor").await?.status.unwrap_or_default();
    let restarts = survivor.container_statuses.into_iter().flatten().map(|container| container.restart_count);
    assert_eq!(restarts.sum::<i32>(), 0, "the container was started again");
    delete_pod(cluster, "newcomer").await?;
    delete_pod(cluster, "survivor").await
}

pub(crate) async fn frozen_api(fixture: &Fixture) -> Outcome {
    let cluster = fixture.node().await?;
    let nodes: Api<Node> = Api::all(cluster.client());
    cluster.freeze(Part::ApiServer)?;
    let frozen = cluster.is_frozen(Part::ApiServer);
    let answer = tokio::time::timeout(Duration::from_secs(1), nodes.get(NODE)).await;
    // Thawed before anything is asserted: the tests that follow need it.
    cluster.thaw(Part::ApiServer)?;
    assert!(frozen?);
    assert!(answer.is_err(), "a frozen API answered: {answer:?}");
    wait::until("the API to answer", LIMIT, async || nodes.get(NODE).await).await?;
    node_is(cluster, "True").await
}
