//! What goes wrong shows with its pod, its cause and a remedy, and clears after the fix.

use std::time::Instant;

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, ResourceQuota};
use kube::ResourceExt;
use ortolan_tests::cluster::wait;
use serde_json::{Value, json};

use crate::fixture::{LIMIT, Outcome, PROBE, tell, tell_time};
use crate::models::{NO_DIGEST, from_web, inference_model, small, with};
use crate::space::{Space, Verdict, condition, no, yes};

/// A failure and how it should show.
struct Failing {
    /// The InferenceModel, named `broken`.
    model: Value,
    /// Whether the pod shows it.
    pod_shows: fn(&Pod) -> bool,
    /// The condition that shows it then.
    verdict: Verdict,
    /// The container that its sentence names; none where it is the pod as a whole.
    container: Option<&'static str>,
    /// What its sentence says, cause and remedy.
    says: Vec<String>,
}

const LOADED: Verdict = yes("ModelLoaded", "Loaded");

impl Failing {
    /// Shows it, has it fixed, and sees it cleared.
    async fn shows_and_clears(self, space: &Space, fix: impl AsyncFnOnce(&Space) -> Outcome) -> Outcome {
        let Self { model, pod_shows, verdict, container, says } = self;
        let begun = Instant::now();
        space.apply(&model).await?;
        let shown = |pod: &Pod| pod_shows(pod).then(|| pod.name_any());
        let (pod, _) = space.until_a_pod("broken", "to show the failure", shown).await?;
        let (found, time) = space.shows("broken", verdict).await?;
        tell_time(
            &format!("from a pod that shows it to {} (apply: {:.1} s)", verdict.reason, begun.elapsed().as_secs_f64()),
            time,
        );
        tell(&format!("{}: {}", verdict.reason, found.message));
        let place = container.map_or_else(|| pod.clone(), |container| format!("{pod}, container {container}"));
        for part in says.iter().chain([&place]) {
            assert!(found.message.contains(part), "{part:?} is not in: {}", found.message);
        }
        is_summed_up(space, verdict).await?;
        fix(space).await?;
        let (model, _) = space.ready("broken").await?;
        assert!(condition(&model, verdict.type_).is_some_and(|it| it.status == "True"), "{verdict:?} does not clear");
        assert!(model.status.iter().flat_map(|status| &status.models).all(|model| model.last_error.is_none()));
        Ok(())
    }
}

/// `Ready`, `kubectl get` and, if it is about models, the model say the same.
async fn is_summed_up(space: &Space, verdict: Verdict) -> Outcome {
    space.shows("broken", no("Ready", verdict.reason)).await?;
    // A pod that goes on failing may fail in another way in between: the node does not always say that memory was the cause.
    let look = async || {
        let table = space.kubectl(&["get", "infm", "broken"]).await?;
        if table.contains(verdict.reason) { Ok(()) } else { Err(crate::fixture::Failure::new(table)) }
    };
    wait::until(&format!("kubectl to show {}", verdict.reason), LIMIT, look).await?;
    if verdict.type_ == "ModelLoaded" {
        let status = space.models().get("broken").await?.status.unwrap_or_default();
        let reasons: Vec<_> =
            status.models.iter().filter_map(|model| Some(model.last_error.as_ref()?.reason.as_str())).collect();
        assert_eq!(reasons, [verdict.reason]);
    }
    Ok(())
}

fn statuses(pod: &Pod) -> impl Iterator<Item = &ContainerStatus> {
    let status = pod.status.iter();
    status.flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses).flatten())
}

/// Whether a container waits, ends or has ended for this reason.
fn has_reason(pod: &Pod, reasons: &[&str]) -> bool {
    let is_of = |state: &ContainerState| {
        let waiting = state.waiting.as_ref().and_then(|waiting| waiting.reason.as_deref());
        let ended = state.terminated.as_ref().and_then(|ended| ended.reason.as_deref());
        waiting.into_iter().chain(ended).any(|reason| reasons.contains(&reason))
    };
    statuses(pod).flat_map(|status| status.state.iter().chain(&status.last_state)).any(is_of)
}

fn has_ended(pod: &Pod) -> bool {
    has_reason(pod, &["Error"])
}

fn fetched(change: impl FnOnce(&mut Value)) -> Outcome<Value> {
    let mut model = from_web("tiny", "tiny")?;
    change(&mut model);
    Ok(inference_model("broken", &[model]))
}

async fn fix_source(space: &Space) -> Outcome {
    space.apply(&fetched(|_| {})?).await?;
    Ok(())
}

pub(crate) async fn wrong_checksum(space: &Space) -> Outcome {
    let failing = Failing {
        model: fetched(|model| model["files"][0]["sha256"] = NO_DIGEST.into())?,
        pod_shows: has_ended,
        verdict: no("ModelLoaded", "ChecksumMismatch"),
        container: Some("fetch-tiny"),
        says: vec![NO_DIGEST.to_owned(), crate::models::digest("tiny")?, "Correct the sha256".to_owned()],
    };
    failing.shows_and_clears(space, fix_source).await
}

pub(crate) async fn missing_file(space: &Space) -> Outcome {
    let failing = Failing {
        model: fetched(|model| model["source"]["uri"] = "http://models.models.svc/nowhere".into())?,
        pod_shows: has_ended,
        verdict: no("ModelLoaded", "FetchFailed"),
        container: Some("fetch-tiny"),
        says: ["http://models.models.svc/nowhere/model.onnx", "404", "Check the source"].map(str::to_owned).into(),
    };
    failing.shows_and_clears(space, fix_source).await
}

pub(crate) async fn no_onnx_file(space: &Space) -> Outcome {
    space.claim_models().await?;
    let failing = Failing {
        model: inference_model("broken", &[crate::models::on_volume("tiny", "not-a-model")]),
        pod_shows: has_ended,
        verdict: no("ModelLoaded", "InvalidModel"),
        container: Some("server"),
        says: ["model.onnx", "Give an ONNX model"].map(str::to_owned).into(),
    };
    failing.shows_and_clears(space, async |space| space.apply(&small("broken")).await.map(drop)).await
}

pub(crate) async fn missing_image(space: &Space) -> Outcome {
    space.claim_models().await?;
    let failing = Failing {
        model: with(small("broken"), &json!({"server": {"image": "localhost/nowhere:7"}})),
        pod_shows: |pod| has_reason(pod, &["ErrImagePull", "ImagePullBackOff"]),
        verdict: no("ModelLoaded", "ImagePullFailed"),
        container: Some("server"),
        says: ["localhost/nowhere:7", "Check the image's name and tag"].map(str::to_owned).into(),
    };
    failing.shows_and_clears(space, async |space| space.apply(&small("broken")).await.map(drop)).await
}

pub(crate) async fn crash(space: &Space) -> Outcome {
    space.claim_models().await?;
    let failing = Failing {
        // A program that knows no such flags. The user is given since the image names none, which `restricted` asks for.
        model: with(
            small("broken"),
            &json!({"server": {"image": PROBE}, "podTemplate": {"spec": {"securityContext": {"runAsUser": 1000}}}}),
        ),
        pod_shows: has_ended,
        verdict: no("ModelLoaded", "CrashLooping"),
        container: Some("server"),
        says: ["exit code 1", "kubectl logs"].map(str::to_owned).into(),
    };
    failing.shows_and_clears(space, async |space| space.apply(&small("broken")).await.map(drop)).await
}

pub(crate) async fn too_little_memory(space: &Space) -> Outcome {
    space.claim_models().await?;
    let large = inference_model("broken", &[crate::models::on_volume("large", "efficientnet-lite0")]);
    let failing = Failing {
        // The server alone would do with that, this model does not.
        model: with(large.clone(), &json!({"resources": {"limits": {"memory": "16Mi"}}})),
        pod_shows: |pod| has_reason(pod, &["OOMKilled"]),
        verdict: no("ModelLoaded", "OutOfMemory"),
        container: Some("server"),
        says: ["16Mi", "Raise spec.resources.limits.memory"].map(str::to_owned).into(),
    };
    let fixed = with(large, &json!({"resources": {"limits": {"memory": "512Mi"}}}));
    failing.shows_and_clears(space, async |space| space.apply(&fixed).await.map(drop)).await
}

pub(crate) async fn missing_claim(space: &Space) -> Outcome {
    let failing = Failing {
        model: small("broken"),
        pod_shows: |pod| {
            let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            let mut messages = conditions.filter_map(|it| it.message.as_deref());
            messages.any(|message| message.contains("persistentvolumeclaim"))
        },
        verdict: no("Accepted", "PvcNotFound"),
        container: None,
        says: ["\"models\"", "Create the PersistentVolumeClaim"].map(str::to_owned).into(),
    };
    // The spec was right all along.
    failing.shows_and_clears(space, Space::claim_models).await
}

pub(crate) async fn missing_secret(space: &Space) -> Outcome {
    space.claim_models().await?;
    let server = json!({"name": "server", "envFrom": [{"secretRef": {"name": "keys"}}]});
    let failing = Failing {
        model: with(small("broken"), &json!({"podTemplate": {"spec": {"containers": [server]}}})),
        pod_shows: |pod| has_reason(pod, &["CreateContainerConfigError"]),
        verdict: no("Accepted", "SecretNotFound"),
        container: Some("server"),
        says: ["keys", "Create the Secret"].map(str::to_owned).into(),
    };
    failing
        .shows_and_clears(space, async |space| {
            space.create_object::<k8s_openapi::api::core::v1::Secret>(json!({"metadata": {"name": "keys"}})).await?;
            Ok(())
        })
        .await
}

/// The quota counts pods, whose refusal the operator learns from their Deployment, and children, which it is refused itself.
pub(crate) async fn exceeded_quota(space: &Space) -> Outcome {
    space.claim_models().await?;
    let quotas = space.api::<ResourceQuota>();
    let quota = json!({"metadata": {"name": "tight"}, "spec": {"hard": {"count/deployments.apps": "0", "pods": "0"}}});
    space.create_object::<ResourceQuota>(quota).await?;
    let counted = async || match quotas.get("tight").await {
        Ok(quota) if quota.status.as_ref().is_some_and(|status| status.hard.is_some()) => Ok(()),
        Ok(_) => Err("it does not count".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    wait::until("the quota to count", LIMIT, counted).await?;
    space.apply(&small("broken")).await?;
    for (what, free) in [("Deployment", "count/deployments.apps"), ("pod", "pods")] {
        let says = |model: &crds::resource::InferenceModel| {
            let found = condition(model, "Accepted").filter(|it| it.status == "False" && it.reason == "QuotaExceeded");
            let found = found.map(|it| it.message.clone()).unwrap_or_default();
            if found.contains(what) && found.contains("tight") { Ok(found) } else { Err(format!("it says {found:?}")) }
        };
        let (message, time) =
            space.until("broken", &format!("to say that the quota has no room for a {what}"), says).await?;
        tell_time(&format!("to QuotaExceeded: {message}"), time);
        assert!(message.contains("Raise the namespace's ResourceQuota"), "{message}");
        space.shows("broken", no("Ready", "QuotaExceeded")).await?;
        space.shows("broken", yes("Stalled", "QuotaExceeded")).await?;
        let patch = kube::api::Patch::Merge(json!({"spec": {"hard": {free: "9"}}}));
        quotas.patch("tight", &Default::default(), &patch).await?;
    }
    let (_, time) = space.ready("broken").await?;
    tell_time("from the raised quota to Ready", time);
    space.shows("broken", LOADED).await?;
    Ok(())
}

/// A quota for the pods that serve and no more is how many namespaces with devices are: a new one can only come when an old one goes.
pub(crate) async fn quota_without_room_for_two(space: &Space) -> Outcome {
    space.claim_models().await?;
    let quota = json!({"metadata": {"name": "tight"}, "spec": {"hard": {"pods": "1"}}});
    space.create_object::<ResourceQuota>(quota).await?;
    let model = with(small("lone"), &json!({"rollout": {"surgeTimeout": "3s"}}));
    space.apply_until_ready(&model).await?;
    let before = space.active_revision("lone").await?;
    let changed = with(model, &json!({"server": {"env": [{"name": "COLOUR", "value": "blue"}]}}));
    space.apply(&changed).await?;
    // It goes on by itself, so nobody is called.
    let (waits, _) = space.shows("lone", no("RolledOut", "WaitingForCapacity")).await?;
    assert!(waits.message.contains("exceeded quota"), "{}", waits.message);
    space.shows("lone", no("Stalled", "Settled")).await?;
    let (_, time) = space.ready("lone").await?;
    tell_time("from waiting for room in a quota to Ready", time);
    assert_ne!(space.active_revision("lone").await?, before);
    let (found, _) = space.shows("lone", yes("RolledOut", "Complete")).await?;
    assert!(found.message.contains("old pods went first"), "{}", found.message);
    Ok(())
}
