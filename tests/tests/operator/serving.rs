//! From `kubectl apply` to predictions, and to nothing left.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Service};
use kube::ResourceExt;
use ortolan_tests::cluster::wait;
use serde_json::{Value, json};

use crate::fixture::{LIMIT, Outcome, repository, tell, tell_time};
use crate::models::{self, DOUBLED, UNCHANGED, from_web, inference_model, on_volume, small, with};
use crate::space::{Space, condition, no, yes};
use crate::web;

/// ImageNet's number of what `coffee.png` shows.
const ESPRESSO: u64 = 967;

pub(crate) async fn classifies_a_photo(space: &Space) -> Outcome {
    let sample = repository().join("deploy/samples/espresso.yaml").display().to_string();
    space.kubectl(&["apply", "-f", &sample]).await?;
    let (model, time) = space.ready("espresso").await?;
    tell_time("from the apply of a photo classifier to Ready", time);

    let url = format!("http://espresso.{}.svc", space.namespace);
    assert_eq!(model.status.as_ref().and_then(|status| status.url.clone()), Some(url.clone()));
    let ask = ["exec", "customer", "--", "/program", "post", &format!("{url}/predict/espresso"), "/photos/coffee.png"];
    let predict = async || space.cluster().run_kubectl(&ask).await;
    let (answer, more) = wait::until("a prediction through the Service", LIMIT, predict).await?;
    tell_time("from there to the first prediction, `kubectl exec` included", more);
    let answer: Value = serde_json::from_str(&answer)?;
    let top = &answer["predictions"][0];
    assert_eq!((top["class_id"].as_u64(), top["label"].as_str()), (Some(ESPRESSO), Some("espresso")), "{answer}");
    tells_what_serves(space).await
}

async fn tells_what_serves(space: &Space) -> Outcome {
    // What pods tell of themselves is asked for once they are ready, so it comes a moment later.
    let (told, _) = space
        .until("espresso", "to tell what serves", |model| {
            let told = model.status.iter().flat_map(|status| &status.models).next();
            told.filter(|told| told.provider.is_some()).cloned().ok_or_else(|| format!("{told:?}"))
        })
        .await?;
    assert_eq!(told.provider.as_deref(), Some("cpu"));
    assert_eq!(told.digest, Some(models::digest("efficientnet-lite0")?));
    assert!(told.bytes.is_some_and(|bytes| bytes > 18_000_000) && told.load_seconds > Some(0.0), "{told:?}");
    let table = space.kubectl(&["get", "infm"]).await?;
    tell(&table);
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["NAME", "READY", "REPLICAS", "REVISION", "URL", "REASON", "AGE"]);
    let (revision, url) =
        (space.active_revision("espresso").await?, format!("http://espresso.{}.svc", space.namespace));
    assert_eq!(rows[1][..6], ["espresso", "True", "1", &revision, &url, "AllServes"]);
    Ok(())
}

pub(crate) async fn serves_several_models(space: &Space) -> Outcome {
    space.claim_models().await?;
    // Two are fetched, and two are on the same claim.
    let models = [
        from_web("mixing", "batch-mixing")?,
        from_web("doubling", "tiny")?,
        on_volume("tiny", "tiny"),
        on_volume("shelved", "batch-mixing"),
    ];
    let (model, time) = space.apply_until_ready(&inference_model("several", &models)).await?;
    tell_time("from the apply of four models to Ready", time);
    assert_eq!(space.pods("several").await?.len(), 1);
    let states: Vec<_> = model.status.iter().flat_map(|status| &status.models).map(|it| it.name.as_str()).collect();
    assert_eq!(states, ["mixing", "doubling", "tiny", "shelved"]);
    assert_eq!(space.numbers("several").await?, DOUBLED);
    for (name, numbers) in [("mixing", UNCHANGED), ("doubling", DOUBLED), ("shelved", UNCHANGED)] {
        let address = space.address("several").await?;
        let answer = web::post(address, &format!("/v2/models/{name}/infer"), &models::question())?;
        assert_eq!((answer.status, models::numbers(&answer.json())), (200, numbers.to_vec()), "{}", answer.text());
    }
    Ok(())
}

pub(crate) async fn is_scaled(space: &Space) -> Outcome {
    space.claim_models().await?;
    let (before, _) = space.apply_until_ready(&small("wide")).await?;
    let revision = space.active_revision("wide").await?;
    let first = space.pods("wide").await?[0].name_any();
    for replicas in [2_usize, 1] {
        space.kubectl(&["scale", "infm", "wide", &format!("--replicas={replicas}")]).await?;
        let look = |model: &crds::resource::InferenceModel| {
            let status = model.status.clone().unwrap_or_default();
            let wanted = i32::try_from(replicas).unwrap_or_default();
            let reached = status.ready_replicas == wanted && status.replicas == wanted;
            if reached { Ok(()) } else { Err(format!("{} of {}", status.ready_replicas, status.replicas)) }
        };
        let ((), time) = space.until("wide", &format!("to have {replicas} pods"), look).await?;
        tell_time(&format!("from `kubectl scale` to {replicas} pods"), time);
        assert_eq!(space.pods("wide").await?.len(), replicas);
    }
    assert_eq!(space.active_revision("wide").await?, revision, "another number of pods is no other revision");
    let scale = space.models().get_scale("wide").await?;
    let selector = scale.status.and_then(|status| status.selector);
    assert_eq!(selector, before.status.and_then(|status| status.selector));
    assert_eq!(selector.as_deref(), Some("ortolan.dev/inference-model=wide"));
    let left = space.pods("wide").await?[0].name_any();
    tell(&format!("{} stays", if left == first { "the older pod" } else { "the newer pod" }));
    Ok(())
}

pub(crate) async fn leaves_nothing_behind(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply_until_ready(&small("brief")).await?;
    // A second revision, so that there is history too.
    let changed = with(small("brief"), &json!({"server": {"env": [{"name": "COLOUR", "value": "blue"}]}}));
    space.apply_until_ready(&changed).await?;
    assert_eq!(space.of::<Deployment>("brief").await?.len(), 2);
    let begun = std::time::Instant::now();
    space.kubectl(&["delete", "infm", "brief"]).await?;
    wait::until("all children to be gone", LIMIT, async || {
        let left = [
            names(&space.of::<Deployment>("brief").await?),
            names(&space.of::<ReplicaSet>("brief").await?),
            names(&space.of::<ConfigMap>("brief").await?),
            names(&space.of::<Service>("brief").await?),
            names(&space.of::<Pod>("brief").await?),
        ]
        .concat();
        if left.is_empty() { Ok(()) } else { Err(crate::fixture::Failure::new(format!("left: {left:?}"))) }
    })
    .await?;
    tell_time("from the deletion to the end of the last child", begun.elapsed());
    Ok(())
}

/// As a script does that deletes and applies in one go.
pub(crate) async fn comes_back_after_deletion(space: &Space) -> Outcome {
    space.claim_models().await?;
    let (before, _) = space.apply_until_ready(&small("phoenix")).await?;
    space.kubectl(&["delete", "infm", "phoenix", "--wait=false"]).await?;
    let (after, time) = space.apply_until_ready(&small("phoenix")).await?;
    tell_time("from an apply right after the deletion to Ready", time);
    assert_ne!(before.uid(), after.uid());
    let (deployments, services) = (space.of::<Deployment>("phoenix").await?, space.of::<Service>("phoenix").await?);
    let owners = deployments.iter().flat_map(ResourceExt::owner_references);
    let mut owners = owners.chain(services.iter().flat_map(ResourceExt::owner_references));
    assert!(!deployments.is_empty() && !services.is_empty());
    assert!(owners.all(|owner| Some(&owner.uid) == after.uid().as_ref()));
    let answers = async || space.numbers("phoenix").await;
    let (numbers, time) = wait::until("phoenix to answer", LIMIT, answers).await?;
    tell_time("from there to an answer", time);
    assert_eq!(numbers, DOUBLED);
    Ok(())
}

pub(crate) async fn is_suspended(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply_until_ready(&small("sleeper")).await?;
    let revision = space.active_revision("sleeper").await?;
    space.apply(&with(small("sleeper"), &json!({"suspend": true}))).await?;
    let (_, time) = space.shows("sleeper", no("Available", "Suspended")).await?;
    tell_time("from the suspension to its condition", time);
    wait::until("no pod to be left", LIMIT, async || match space.of::<Pod>("sleeper").await {
        Ok(pods) if pods.is_empty() => Ok(()),
        Ok(pods) => Err(format!("{:?}", names(&pods))),
        Err(error) => Err(error.to_string()),
    })
    .await?;
    let (model, _) = space
        .until("sleeper", "to count no pod", |model| {
            let status = model.status.clone().unwrap_or_default();
            if status.replicas == 0 { Ok(model.clone()) } else { Err(status.replicas.to_string()) }
        })
        .await?;
    let reason = |type_: &str| condition(&model, type_).map(|it| it.reason.clone()).unwrap_or_default();
    assert_eq!(reason("Ready"), "Suspended");
    assert_eq!((reason("Stalled"), reason("Reconciling")), ("Settled".to_owned(), "Settled".to_owned()));
    assert!(space.children("sleeper").await?.len() >= 4, "the children stay");
    let (_, time) = space.apply_until_ready(&small("sleeper")).await?;
    tell_time("from the end of the suspension to Ready", time);
    assert_eq!(space.active_revision("sleeper").await?, revision);
    Ok(())
}

pub(crate) async fn tells_in_events(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply_until_ready(&small("storied")).await?;
    space.shows("storied", yes("RolledOut", "Complete")).await?;
    let described = async || match space.kubectl(&["describe", "infm", "storied"]).await {
        Ok(text) if text.contains("Events:") && text.contains("AllServes") => Ok(text),
        Ok(text) => Err(text),
        Err(error) => Err(error.to_string()),
    };
    let (text, _) = wait::until("the Events to be shown", LIMIT, described).await?;
    let events = text.split("Events:").nth(1).unwrap_or_default();
    tell(events);
    assert!(events.contains("Normal") && events.contains("all of the spec serves"), "{events}");
    Ok(())
}

fn names<K: ResourceExt>(objects: &[K]) -> Vec<String> {
    objects.iter().map(ResourceExt::name_any).collect()
}
