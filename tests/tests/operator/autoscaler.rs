//! Who scales in each mode, on the real control plane: HorizontalPodAutoscalers of ours and of others, and the way from one mode to the
//! next.
//!
//! There is no node, and nobody serves the metrics that an autoscaler asks for: it keeps to its bounds and says what is missing.

use std::time::Duration;

use crds::resource::InferenceModel;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Resource, ResourceExt};
use ortolan_tests::cluster::wait;
use serde_json::{Value, json};
use tokio::sync::oneshot::error::TryRecvError;

use crate::audit::Mark;
use crate::fixture::{Failure, LIMIT, Outcome, tell, tell_time};
use crate::models::{small, with};
use crate::space::{Space, Verdict, condition, no, yes};

/// The definition that KEDA brings, as far as it matters here: any object is taken.
const SCALED_OBJECTS: &str = "scaledobjects.keda.sh";

fn scaled(name: &str, mode: &str) -> Value {
    let targets = json!({"inflightPerReplica": 8, "queuePerReplica": 2000});
    with(small(name), &json!({"scaling": {"mode": mode, "minReplicas": 2, "maxReplicas": 5, "targets": targets}}))
}

/// One that somebody makes who knows nothing of `scaling`.
fn foreign(name: &str, target: &Value) -> Value {
    let cpu = json!({"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}});
    let metrics = json!([{"type": "Resource", "resource": cpu}]);
    json!({"metadata": {"name": name}, "spec": {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 9, "metrics": metrics}})
}

fn infm(name: &str) -> Value {
    json!({"apiVersion": "ortolan.dev/v1alpha1", "kind": "InferenceModel", "name": name})
}

async fn until_ours(space: &Space, name: &str) -> Outcome<(HorizontalPodAutoscaler, Duration)> {
    let autoscalers = space.api::<HorizontalPodAutoscaler>();
    let look = async || match autoscalers.get_opt(name).await {
        Ok(Some(found)) if found.metadata.deletion_timestamp.is_none() => Ok(found),
        Ok(_) => Err("it is not there".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    Ok(wait::until(&format!("the HorizontalPodAutoscaler of {name}"), LIMIT, look).await?)
}

async fn until_gone<K>(space: &Space, objects: &Api<K>, name: &str) -> Outcome<Duration>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let look = async || match objects.get_opt(name).await {
        Ok(None) => Ok(()),
        Ok(Some(_)) => Err("it is there".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    Ok(wait::until(&format!("{}/{name} to be gone", space.namespace), LIMIT, look).await?.1)
}

/// Takes its owner from an object, and waits until it has one again.
async fn takes_back_its_own<K>(objects: &Api<K>, name: &str) -> Outcome<()>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + Resource,
{
    let nobodys = json!({"metadata": {"ownerReferences": null}});
    objects.patch(name, &PatchParams::default(), &Patch::Merge(nobodys)).await?;
    let owned = async || match objects.get(name).await {
        Ok(found) if !found.owner_references().is_empty() => Ok(()),
        Ok(_) => Err("it has no owner".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    wait::until(&format!("{} to have its owner again", objects.resource_url()), LIMIT, owned).await?;
    Ok(())
}

async fn replicas(space: &Space, name: &str) -> Outcome<i32> {
    Ok(space.models().get(name).await?.spec.replicas)
}

async fn until_replicas(space: &Space, name: &str, wanted: i32) -> Outcome<Duration> {
    let look = |model: &InferenceModel| {
        if model.spec.replicas == wanted { Ok(()) } else { Err(format!("{}", model.spec.replicas)) }
    };
    Ok(space.until(name, &format!("to have {wanted} replicas"), look).await?.1)
}

/// The mode HPA has its autoscaler, which is repaired, told of, and gone with the mode.
pub(crate) async fn follows_the_mode(space: &Space) -> Outcome {
    let model = space.apply(&scaled("espresso", "HPA")).await?;
    let (ours, time) = until_ours(space, "espresso").await?;
    tell_time("from the apply to the HorizontalPodAutoscaler", time);
    assert!(ours.owner_references().iter().any(|owner| Some(&owner.uid) == model.metadata.uid.as_ref()), "{ours:?}");
    assert_eq!(serde_json::to_value(&ours.spec.scale_target_ref)?, infm("espresso"));
    // It writes the scale of the InferenceModel: nobody else does here.
    let time = until_replicas(space, "espresso", 2).await?;
    tell_time("until it has raised the replicas to minReplicas", time);
    let (found, _) = space.shows("espresso", no("ScalingActive", "MetricsStale")).await?;
    tell(&found.message);
    assert!(found.message.contains("ortolan_pod_load_samples"), "{}", found.message);
    let decision = |model: &InferenceModel| {
        let scaling = model.status.as_ref().and_then(|status| status.scaling.clone());
        scaling.filter(|scaling| scaling.desired == 2).ok_or_else(|| "there is no such decision".to_owned())
    };
    let (decision, _) = space.until("espresso", "to tell of the decision", decision).await?;
    assert!(decision.last_scale_time.is_some(), "{decision:?}");

    // 2 s: what was decided just now is written. 10 s: the autoscaler looks every 2.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mark = Mark::now(space.cluster())?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(mark.writes_in(&space.namespace)?, []);

    let autoscalers = space.api::<HorizontalPodAutoscaler>();
    let edit = json!({"spec": {"maxReplicas": 50}});
    autoscalers.patch("espresso", &PatchParams::default(), &Patch::Merge(edit)).await?;
    let repaired = async || match autoscalers.get("espresso").await {
        Ok(found) if found.spec.max_replicas == 5 => Ok(()),
        Ok(found) => Err(format!("maxReplicas is {}", found.spec.max_replicas)),
        Err(error) => Err(error.to_string()),
    };
    let ((), time) = wait::until("the edited HorizontalPodAutoscaler to be repaired", LIMIT, repaired).await?;
    tell_time("until the edited HorizontalPodAutoscaler is repaired", time);
    takes_back_its_own(&autoscalers, "espresso").await?;
    space.delete::<HorizontalPodAutoscaler>("espresso").await?;
    let (remade, _) = until_ours(space, "espresso").await?;
    assert_ne!(remade.uid(), ours.uid());

    space.apply(&scaled("espresso", "External")).await?;
    until_gone(space, &autoscalers, "espresso").await?;
    let (found, _) = space.shows("espresso", yes("ScalingActive", "ExternalOwner")).await?;
    tell(&found.message);
    assert_eq!(replicas(space, "espresso").await?, 2);
    space.apply(&small("espresso")).await?;
    space.shows("espresso", yes("ScalingActive", "Off")).await?;
    space.apply(&scaled("espresso", "HPA")).await?;
    until_ours(space, "espresso").await?;
    space.delete::<InferenceModel>("espresso").await?;
    until_gone(space, &autoscalers, "espresso").await?;
    Ok(())
}

/// Somebody else's is named in each mode that does not want it, keeps ours away, and clears when it is deleted.
pub(crate) async fn names_the_others(space: &Space) -> Outcome {
    space.apply(&scaled("espresso", "External")).await?;
    space.create_object::<HorizontalPodAutoscaler>(foreign("by-hand", &infm("espresso"))).await?;
    says(space, yes("ScalingActive", "ExternalOwner"), &["HorizontalPodAutoscaler by-hand decides"]).await?;
    for mode in ["Operator", "HPA"] {
        space.apply(&scaled("espresso", mode)).await?;
        let parts = ["HorizontalPodAutoscaler by-hand writes", &format!("mode is {mode}"), "Delete it"];
        says(space, no("ScalingActive", "ConflictingAutoscaler"), &parts).await?;
    }
    space.apply(&small("espresso")).await?;
    says(space, no("ScalingActive", "ConflictingAutoscaler"), &["by-hand", "mode is unset"]).await?;
    space.apply(&scaled("espresso", "HPA")).await?;
    says(space, no("ScalingActive", "ConflictingAutoscaler"), &["mode is HPA"]).await?;
    assert!(space.api::<HorizontalPodAutoscaler>().get_opt("espresso").await?.is_none(), "ours beside another one");
    space.delete::<HorizontalPodAutoscaler>("by-hand").await?;
    let (_, time) = until_ours(space, "espresso").await?;
    tell_time("from the deletion of the other one to ours", time);
    space.shows("espresso", no("ScalingActive", "MetricsStale")).await?;

    let [revision] = &space.of::<Deployment>("espresso").await?[..] else { panic!("not one Deployment") };
    let target = json!({"apiVersion": "apps/v1", "kind": Deployment::kind(&()), "name": revision.name_any()});
    space.create_object::<HorizontalPodAutoscaler>(foreign("too-deep", &target)).await?;
    let parts = ["too-deep writes the replicas of Deployment", "have it scale InferenceModel espresso"];
    says(space, no("ScalingActive", "ConflictingAutoscaler"), &parts).await?;
    space.apply(&scaled("espresso", "External")).await?;
    says(space, no("ScalingActive", "ConflictingAutoscaler"), &parts).await?;
    space.delete::<HorizontalPodAutoscaler>("too-deep").await?;
    space.shows("espresso", yes("ScalingActive", "ExternalOwner")).await?;
    Ok(())
}

async fn says(space: &Space, verdict: Verdict, parts: &[&str]) -> Outcome {
    let Verdict { type_, status, reason } = verdict;
    let look = |model: &InferenceModel| {
        let found = condition(model, type_).filter(|found| found.status == status && found.reason == reason);
        let found = found.filter(|found| parts.iter().all(|part| found.message.contains(part)));
        found.map(|found| found.message.clone()).ok_or_else(|| format!("it does not say {parts:?}"))
    };
    let (message, _) = space.until("espresso", &format!("to be {reason}"), look).await?;
    tell(&message);
    Ok(())
}

/// From mode to mode nobody has fewer replicas, not for a moment.
pub(crate) async fn hands_over(space: &Space) -> Outcome {
    const REPLICAS: i32 = 4;
    space.apply(&scaled("espresso", "External")).await?;
    space.kubectl(&["scale", "infm/espresso", &format!("--replicas={REPLICAS}")]).await?;
    let follows = async || match space.of::<Deployment>("espresso").await {
        Ok(found) if found.iter().filter_map(|it| it.spec.replicas).sum::<i32>() == REPLICAS => Ok(()),
        Ok(_) => Err("its Deployment has others".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    wait::until("the Deployment to follow", LIMIT, follows).await?;
    let seen = watch(space);
    for mode in ["Operator", "HPA", "External", "HPA", "Operator", "External"] {
        space.apply(&scaled("espresso", mode)).await?;
        if mode == "HPA" {
            until_ours(space, "espresso").await?;
            space.shows("espresso", no("ScalingActive", "MetricsStale")).await?;
        } else {
            until_gone(space, &space.api::<HorizontalPodAutoscaler>(), "espresso").await?;
        }
        let acted_on = |model: &InferenceModel| {
            let observed = model.status.as_ref().and_then(|status| status.observed_generation);
            if observed == model.metadata.generation { Ok(()) } else { Err("it was not looked at".to_owned()) }
        };
        space.until("espresso", &format!("to be looked at in mode {mode}"), acted_on).await?;
    }
    let (looks, fewest) = seen.end().await;
    tell(&format!("{looks} looks, never fewer than {fewest} replicas"));
    assert!(looks > 20, "{looks} looks");
    assert_eq!(fewest, REPLICAS);
    assert_eq!(replicas(space, "espresso").await?, REPLICAS);
    Ok(())
}

/// Looks all the time at the replicas that are asked for, and at those of the Deployments.
struct Watching {
    stop: tokio::sync::oneshot::Sender<()>,
    task: tokio::task::JoinHandle<(u32, i32)>,
}

fn watch(space: &Space) -> Watching {
    let (models, deployments) = (space.models(), space.api::<Deployment>());
    let (stop, mut stopped) = tokio::sync::oneshot::channel();
    let task = tokio::spawn(async move {
        let (mut looks, mut fewest) = (0, i32::MAX);
        while stopped.try_recv() == Err(TryRecvError::Empty) {
            if let (Ok(model), Ok(found)) =
                (models.get("espresso").await, deployments.list(&ListParams::default()).await)
            {
                let made = found.items.iter().filter_map(|it| it.spec.replicas).sum();
                fewest = fewest.min(model.spec.replicas).min(made);
                looks += 1;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        (looks, fewest)
    });
    Watching { stop, task }
}

impl Watching {
    async fn end(self) -> (u32, i32) {
        let _ = self.stop.send(());
        self.task.await.unwrap_or_default()
    }
}

fn scaled_objects(space: &Space) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("keda.sh", "v1alpha1", "ScaledObject");
    Api::namespaced_with(space.cluster().client(), &space.namespace, &ApiResource::from_gvk(&kind))
}

/// KEDA's kind that comes later is picked up, and its object and the autoscaler of mode HPA follow each other. KEDA itself is not here.
pub(crate) async fn picks_keda_up(space: &Space) -> Outcome {
    space.apply(&scaled("espresso", "KEDA")).await?;
    let (found, _) = space.shows("espresso", no("ScalingActive", "CrdNotInstalled")).await?;
    tell(&found.message);
    let time = until_replicas(space, "espresso", 2).await?;
    tell_time("until minReplicas stands in spec.replicas, with nobody there to write it", time);
    let names = json!({"plural": "scaledobjects", "singular": "scaledobject", "kind": "ScaledObject", "listKind": "ScaledObjectList"});
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let version = json!({
        "name": "v1alpha1", "served": true, "storage": true, "subresources": {"status": {}}, "schema": {"openAPIV3Schema": open},
    });
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": SCALED_OBJECTS},
        "spec": {"group": "keda.sh", "scope": "Namespaced", "names": names, "versions": [version]},
    });
    let file = space.cluster().kubeconfig().with_file_name("scaledobjects.yaml");
    std::fs::write(&file, definition.to_string())?;
    space.cluster().run_kubectl(&["apply", "-f", &file.display().to_string()]).await?;
    let objects = scaled_objects(space);
    let there = async || match objects.get_opt("espresso").await {
        Ok(Some(object)) => Ok(object),
        Ok(None) => Err("it is not there".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let (object, time) = wait::until("the ScaledObject", LIMIT, there).await?;
    tell_time("from the definition to the ScaledObject, without a restart", time);
    assert_eq!(object.data["spec"]["scaleTargetRef"], infm("espresso"));
    let query = object.data["spec"]["triggers"][0]["metadata"]["query"].as_str().unwrap_or_default();
    assert!(query.contains(&format!("namespace=\"{}\"", space.namespace)), "{query}");
    let (found, _) = space
        .until("espresso", "to say that KEDA does nothing", |model| {
            let found =
                condition(model, "ScalingActive").filter(|found| found.message.contains("look whether KEDA runs"));
            found.map(|found| found.message.clone()).ok_or_else(|| "it does not".to_owned())
        })
        .await?;
    tell(&found);

    takes_back_its_own(&objects, "espresso").await?;
    // A person has it paused at none: KEDA writes that, and nobody undoes it or loses that it is paused.
    let pause = |number: Value| json!({"metadata": {"annotations": {"autoscaling.keda.sh/paused-replicas": number}}});
    objects.patch("espresso", &PatchParams::default(), &Patch::Merge(pause(json!("0")))).await?;
    for number in [1, 0] {
        space.kubectl(&["scale", "infm/espresso", &format!("--replicas={number}")]).await?;
        // 3 s: it would be raised, or the object deleted, at once.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(replicas(space, "espresso").await?, number);
        let given: i32 = space.of::<Deployment>("espresso").await?.iter().filter_map(|it| it.spec.replicas).sum();
        assert_eq!(given, number, "replicas of its Deployment");
        assert!(objects.get("espresso").await?.annotations().contains_key("autoscaling.keda.sh/paused-replicas"));
    }
    objects.patch("espresso", &PatchParams::default(), &Patch::Merge(pause(Value::Null))).await?;
    until_gone(space, &objects, "espresso").await?;
    space.kubectl(&["scale", "infm/espresso", "--replicas=2"]).await?;
    wait::until("the ScaledObject again", LIMIT, there).await?;

    // As KEDA does: who deletes it waits until KEDA has let go of it.
    let hold = json!({"metadata": {"finalizers": ["finalizer.keda.sh/held"]}});
    objects.patch("espresso", &PatchParams::default(), &Patch::Merge(hold)).await?;
    space.apply(&scaled("espresso", "HPA")).await?;
    let (found, _) = space
        .until("espresso", "to wait for the ScaledObject to go", |model| {
            let found = condition(model, "ScalingActive").filter(|found| found.message.contains("comes when"));
            found.map(|found| found.message.clone()).ok_or_else(|| "it does not".to_owned())
        })
        .await?;
    tell(&found);
    assert!(found.contains("ScaledObject espresso"), "{found}");
    // 2 s: what was decided just now is written.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(space.api::<HorizontalPodAutoscaler>().get_opt("espresso").await?.is_none(), "both are there");
    let let_go = json!({"metadata": {"finalizers": null}});
    objects.patch("espresso", &PatchParams::default(), &Patch::Merge(let_go)).await?;
    until_ours(space, "espresso").await?;
    assert!(objects.get_opt("espresso").await?.is_none());

    space.apply(&scaled("espresso", "KEDA")).await?;
    until_gone(space, &space.api::<HorizontalPodAutoscaler>(), "espresso").await?;
    wait::until("the ScaledObject", LIMIT, there).await?;
    // It would never end if the object were made again while it goes on.
    let operator = space.stage.operator().await;
    let operator = operator.as_ref().ok_or_else(|| Failure::new("no operator"))?;
    let logged = operator.log()?.len();
    space.cluster().run_kubectl(&["delete", "crd", SCALED_OBJECTS, "--timeout=60s"]).await?;
    space.shows("espresso", no("ScalingActive", "CrdNotInstalled")).await?;
    let log = operator.log()?;
    let failed = |line: &&str| line.contains("a reconcile failed") && line.contains("namespace=\"keda\"");
    let failures: Vec<&str> = log[logged..].lines().filter(failed).collect();
    assert!(failures.is_empty(), "{failures:#?}");
    Ok(())
}
