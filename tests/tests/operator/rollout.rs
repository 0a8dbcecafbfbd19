//! A changed spec takes over.

use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use ortolan_tests::cluster::wait;
use serde_json::{Value, json};

use crate::fixture::{Failure, LIMIT, Outcome, tell, tell_time};
use crate::models::{DOUBLED, NO_DIGEST, UNCHANGED, from_web, inference_model, small, with};
use crate::space::{Space, no, yes};
use crate::traffic::Traffic;

const CLIENTS: usize = 32;

/// How often pods are ended or replaced under their clients, at least twice; the long suite does so more often.
fn repeats() -> usize {
    std::env::var("ORTOLAN_POD_ENDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2).max(2)
}

/// A model under the name `tiny` that answers to the same question, with time for clients to turn away from a pod that ends.
fn served(folder: &str) -> Outcome<Value> {
    // 3 s of drain: a busy node takes its time to tell its rules that a pod ends.
    let server = json!({"config": {"drain_delay_ms": 3000, "drain_timeout_ms": 5000, "threads": 1}});
    Ok(with(inference_model("busy", &[from_web("tiny", folder)?]), &json!({"server": server})))
}

pub(crate) async fn disturbs_no_client(space: &Space) -> Outcome {
    space.apply_until_ready(&served("tiny")?).await?;
    let first = space.active_revision("busy").await?;
    assert_eq!(space.numbers("busy").await?, DOUBLED);
    let traffic = Traffic::start(space.address("busy").await?, CLIENTS);

    for (folder, answer) in [("batch-mixing", UNCHANGED), ("tiny", DOUBLED)].into_iter().cycle().take(repeats()) {
        let (_, time) = space.apply_until_ready(&served(folder)?).await?;
        tell_time(&format!("from the apply of a changed model ({folder}) to Ready, under load"), time);
        let revision = space.active_revision("busy").await?;
        assert_eq!(revision == first, folder == "tiny", "{revision} after {first}");
        // All of them: those of the old revision drain first.
        let ((), time) =
            wait::until("only the new pod to be left", LIMIT, async || match space.of::<Pod>("busy").await {
                Ok(pods) if pods.len() == 1 => Ok(()),
                Ok(pods) => Err(format!("{} pods", pods.len())),
                Err(error) => Err(error.to_string()),
            })
            .await?;
        tell_time("until the old pod was gone", time);
        assert_eq!(space.numbers("busy").await?, answer);
    }
    let seen = traffic.stop()?;
    tell(&format!("{:?} over {} connections, {} failures", seen.answers, seen.connections, seen.failures.len()));
    assert_eq!(seen.failures, Vec::<String>::new());
    assert_eq!(seen.answers.len(), 2, "both models have answered");
    let deployments = space.of::<Deployment>("busy").await?;
    assert_eq!(deployments.len(), 2, "the revision that came back is the one that was there");
    Ok(())
}

/// Of two pods behind the Service now one ends and now the other, as when a node is drained.
pub(crate) async fn loses_nothing_when_a_pod_ends(space: &Space) -> Outcome {
    space.apply_until_ready(&with(served("tiny")?, &json!({"replicas": 2}))).await?;
    let traffic = Traffic::start(space.address("busy").await?, CLIENTS);
    let mut longest = Duration::ZERO;
    for _ in 0..repeats() {
        let mut pods = space.pods("busy").await?;
        pods.sort_by_key(|pod| pod.metadata.creation_timestamp.clone());
        let ending = pods[0].name_any();
        space.kubectl(&["delete", "pod", &ending, "--wait=false"]).await?;
        let look = async || {
            let pods = space.of::<Pod>("busy").await.map_err(|error| error.to_string())?;
            let names: Vec<_> = pods.iter().map(ResourceExt::name_any).collect();
            let ready = pods.iter().filter(|pod| is_ready(pod)).count();
            let replaced = names.len() == 2 && ready == 2 && !names.contains(&ending);
            if replaced { Ok(()) } else { Err(format!("{ready} ready of {names:?}")) }
        };
        let ((), time) = wait::until("the pod to be gone and another to be ready", LIMIT, look).await?;
        longest = longest.max(time);
    }
    let seen = traffic.stop()?;
    tell_time(&format!("until another pod was in its place, the longest of {}", repeats()), longest);
    tell(&format!("{:?} over {} connections, {} failures", seen.answers, seen.connections, seen.failures.len()));
    assert_eq!(seen.failures, Vec::<String>::new());
    assert!(seen.connections > u64::try_from(CLIENTS)?, "clients have changed to another pod");
    Ok(())
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

pub(crate) async fn restarts_on_demand(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply_until_ready(&small("again")).await?;
    let before = (space.active_revision("again").await?, space.pods("again").await?[0].name_any());
    space.kubectl(&["annotate", "infm", "again", "ortolan.dev/restart=once"]).await?;
    let changed = |model: &crds::resource::InferenceModel| {
        let active = model.status.as_ref().and_then(|status| status.active_revision.clone());
        if active.as_ref() == Some(&before.0) { Err("the old revision".to_owned()) } else { Ok(()) }
    };
    space.until("again", "to have another revision", changed).await?;
    space.shows("again", yes("RolledOut", "Complete")).await?;
    assert_ne!(space.pods("again").await?[0].name_any(), before.1);
    Ok(())
}

/// With Recreate there are never two revisions at once.
pub(crate) async fn recreates(space: &Space) -> Outcome {
    space.claim_models().await?;
    let spec = with(small("turn"), &json!({"replicas": 2, "rollout": {"strategy": "Recreate"}}));
    space.apply_until_ready(&spec).await?;
    space.apply(&with(spec, &json!({"server": {"logLevel": "debug"}}))).await?;
    let mut most = 0;
    let look = async || {
        let pods = space.of::<Pod>("turn").await.map_err(|error| error.to_string())?;
        let alive = pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
        let revisions: std::collections::BTreeSet<_> =
            alive.filter_map(|pod| pod.labels().get(crate::space::REVISION_LABEL)).collect();
        most = most.max(revisions.len());
        let model = space.models().get("turn").await.map_err(|error| error.to_string())?;
        let done = crate::space::condition(&model, "Ready")
            .is_some_and(|ready| ready.status == "True" && ready.observed_generation == model.metadata.generation);
        if done { Ok(()) } else { Err(format!("{revisions:?}")) }
    };
    let ((), time) = wait::until("the pods to be made anew", LIMIT, look).await?;
    tell_time("from a change to Ready with Recreate, two pods", time);
    assert_eq!(most, 1, "two revisions at once");
    Ok(())
}

/// A change that never gets ready ends by itself, and the old revision serves all the time.
pub(crate) async fn rolls_back(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply_until_ready(&small("steady")).await?;
    let (good, pod) = (space.active_revision("steady").await?, space.pods("steady").await?[0].name_any());
    let mut model = from_web("tiny", "tiny")?;
    model["files"][0]["sha256"] = NO_DIGEST.into();
    let broken = with(inference_model("steady", &[model]), &json!({"rollout": {"progressDeadline": "30s"}}));
    space.apply(&broken).await?;
    let (rolled_back, time) = space.shows("steady", no("RolledOut", "RolledBack")).await?;
    tell_time("from a broken change with a deadline of 30 s to RolledBack", time);
    assert!(rolled_back.message.contains("sha256") && rolled_back.message.contains(&good), "{}", rolled_back.message);
    assert!(time > Duration::from_secs(29), "{time:?}: before the deadline");
    space.shows("steady", yes("Stalled", "RolledBack")).await?;
    space.shows("steady", yes("Available", "MinimumReplicas")).await?;
    assert_eq!(space.active_revision("steady").await?, good);
    let only_the_old_one = async || {
        let left: Vec<_> = space.pods("steady").await?.iter().map(ResourceExt::name_any).collect();
        if left == [pod.as_str()] { Ok(()) } else { Err(Failure::new(format!("{left:?}"))) }
    };
    wait::until("the broken revision's pod to go", LIMIT, only_the_old_one).await?;
    assert_eq!(space.numbers("steady").await?, DOUBLED);

    space.apply_until_ready(&small("steady")).await?;
    assert_eq!(space.active_revision("steady").await?, good);
    Ok(())
}
