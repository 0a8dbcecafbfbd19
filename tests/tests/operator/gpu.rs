//! Devices, of which there is one. Nothing of it is real but its count, so the servers run on the cpu.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use ortolan_tests::images;
use serde_json::{Value, json};

use crate::fixture::{Outcome, tell, tell_time};
use crate::models::{DOUBLED, NO_DIGEST, from_web, small, with};
use crate::space::{Space, no, yes};

/// An InferenceModel whose pods have one of these devices each.
fn on_device(name: &str, resource: &str) -> Value {
    let patch = json!({
        "accelerator": {"count": 1, "resourceName": resource},
        "server": {"image": images::POD.reference(), "executionProviders": ["cpu"]},
        // The pods of a change have no device. 3 s: long enough to be seen waiting for one.
        "rollout": {"surgeTimeout": "3s"},
    });
    with(small(name), &patch)
}

/// The device of each test has a name of its own, so that they do not wait for each other.
async fn one_device(space: &Space, resource: &str) -> Outcome {
    space.claim_models().await?;
    Ok(space.cluster().set_extended_resource(resource, 1).await?)
}

pub(crate) async fn a_change_ends_by_itself(space: &Space) -> Outcome {
    one_device(space, "nvidia.com/gpu").await?;
    let (_, time) = space.apply_until_ready(&on_device("only", "nvidia.com/gpu")).await?;
    tell_time("from the apply of a model on a GPU to Ready", time);
    let pod = space.pods("only").await?.remove(0);
    has_its_device(&pod);
    let first = space.active_revision("only").await?;

    let changed = with(on_device("only", "nvidia.com/gpu"), &json!({"server": {"logLevel": "debug"}}));
    space.apply(&changed).await?;
    let (waiting, _) = space.shows("only", no("RolledOut", "WaitingForCapacity")).await?;
    tell(&waiting.message);
    let (complete, time) = space.shows("only", yes("RolledOut", "Complete")).await?;
    tell_time(&format!("to: {}", complete.message), time);
    assert!(complete.message.contains("old pods went first, since there was no room for both"), "{}", complete.message);
    assert_ne!(space.active_revision("only").await?, first);
    space.ready("only").await?;
    assert_eq!(space.numbers("only").await?, DOUBLED);
    Ok(())
}

fn has_its_device(pod: &Pod) {
    let spec = pod.spec.clone().unwrap_or_default();
    let limits = spec.containers[0].resources.clone().unwrap_or_default().limits.unwrap_or_default();
    assert_eq!(limits["nvidia.com/gpu"].0, "1");
    let tolerated: Vec<_> = spec.tolerations.iter().flatten().filter_map(|it| it.key.as_deref()).collect();
    assert!(tolerated.contains(&"nvidia.com/gpu"), "{tolerated:?}");
}

pub(crate) async fn a_broken_change_is_taken_back(space: &Space) -> Outcome {
    const DEVICE: &str = "nvidia.com/mig-1g.5gb";
    one_device(space, DEVICE).await?;
    space.apply_until_ready(&on_device("only", DEVICE)).await?;
    let good = space.active_revision("only").await?;
    let mut broken = from_web("tiny", "tiny")?;
    broken["files"][0]["sha256"] = NO_DIGEST.into();
    let rollout = json!({"models": [broken], "rollout": {"progressDeadline": "45s"}});
    space.apply(&with(on_device("only", DEVICE), &rollout)).await?;
    let (_, time) = space.shows("only", no("RolledOut", "TerminatingFirst")).await?;
    tell_time("from a broken change to TerminatingFirst", time);
    let (rolled_back, time) = space.shows("only", no("RolledOut", "RolledBack")).await?;
    tell_time(&format!("more to: {}", rolled_back.message), time);
    assert!(rolled_back.message.contains(&good) && rolled_back.message.contains("sha256"), "{}", rolled_back.message);
    let (_, time) = space.shows("only", yes("Available", "MinimumReplicas")).await?;
    tell_time("more until the old revision serves again", time);
    space.shows("only", yes("Stalled", "RolledBack")).await?;
    assert_eq!(space.active_revision("only").await?, good);
    assert_eq!(space.numbers("only").await?, DOUBLED);

    // Back to what serves: nothing starts again.
    let pods = space.pods("only").await?.iter().map(ResourceExt::name_any).collect::<Vec<_>>();
    space.apply_until_ready(&on_device("only", DEVICE)).await?;
    assert_eq!(space.pods("only").await?.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), pods);
    Ok(())
}

pub(crate) async fn the_second_waits_for_the_first(space: &Space) -> Outcome {
    const DEVICE: &str = "nvidia.com/gpu.shared";
    one_device(space, DEVICE).await?;
    space.apply_until_ready(&on_device("first", DEVICE)).await?;
    space.apply(&on_device("second", DEVICE)).await?;
    let (_, time) = space
        .until_a_pod("second", "to wait for a node", |pod| {
            let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.filter_map(|it| it.reason.as_deref()).find(|reason| *reason == "Unschedulable").map(drop)
        })
        .await?;
    let (found, more) = space.shows("second", no("Scheduled", "InsufficientGpu")).await?;
    tell_time(&format!("from a pod that shows it ({:.1} s after apply) to InsufficientGpu", time.as_secs_f64()), more);
    tell(&found.message);
    let pod = space.pods("second").await?[0].name_any();
    for part in [pod.as_str(), "0/1 nodes are available", &format!("Insufficient {DEVICE}"), "Free a device"] {
        assert!(found.message.contains(part), "{part:?} is not in: {}", found.message);
    }
    space.shows("second", no("Ready", "InsufficientGpu")).await?;
    space.kubectl(&["delete", "infm", "first"]).await?;
    let (_, time) = space.ready("second").await?;
    tell_time("from the deletion of the first to the second's Ready", time);
    assert_eq!(space.numbers("second").await?, DOUBLED);
    Ok(())
}
