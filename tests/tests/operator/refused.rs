//! What the API server refuses, and what the operator does.

use k8s_openapi::api::core::v1::{Pod, Service};
use ortolan_tests::cluster::wait;
use serde_json::{Value, json};

use crate::fixture::{Outcome, tell, tell_time};
use crate::models::{inference_model, small, with};
use crate::space::{Space, no, yes};

pub(crate) async fn none_or_two_sources(space: &Space) -> Outcome {
    let none = json!({"name": "tiny", "source": {}});
    let two = json!({
        "name": "tiny",
        "source": {"uri": "file:///model.onnx", "pvc": {"claimName": "models"}},
    });
    for model in [none, two] {
        let object = inference_model("unclear", &[model]);
        let file = space.cluster().kubeconfig().with_file_name("unclear.json");
        std::fs::write(&file, object.to_string())?;
        let said = space.kubectl(&["apply", "-f", &file.display().to_string()]).await;
        let said = said.err().map(|error| error.to_string()).unwrap_or_default();
        tell(&said);
        assert!(said.contains("a model has exactly one source: uri, pvc or image"), "{said}");
        assert!(said.contains("spec.models[0].source"), "{said}");
    }
    assert!(space.models().get_opt("unclear").await?.is_none());
    Ok(())
}

/// Each with what it says: the field by its path, and what to do.
pub(crate) async fn what_cannot_be_acted_on(space: &Space) -> Outcome {
    space.claim_models().await?;
    let options = json!({"image": {"mean": [0.5, 0.5, 0.5], "std": [0.5]}});
    let model = json!({"name": "tiny", "source": {"pvc": {"claimName": "models"}}, "options": options});
    let cases: [(&str, Value, &[&str]); 3] = [
        (
            "NotImplemented",
            with(small("ahead"), &json!({"availability": {"pdb": "Enabled"}, "networkPolicy": {"enabled": true}})),
            &["spec.availability.pdb", "spec.networkPolicy", "is not built yet: leave this field out"],
        ),
        (
            "InvalidOptions",
            with(inference_model("ahead", &[model]), &json!({"server": {"config": {"model_control": "poll"}}})),
            &[
                "spec.models[tiny].options.image.std",
                "expected as many numbers as mean has",
                "spec.server.config.model_control",
            ],
        ),
        (
            "InvalidOverlay",
            with(
                small("ahead"),
                &json!({"podTemplate": {"spec": {"hostNetwork": true, "hostname": 1, "nodeSelektor": {"a": "b"}}}}),
            ),
            &["spec.podTemplate"],
        ),
    ];
    for (reason, model, says) in cases {
        space.apply(&model).await?;
        let (found, time) = space.shows("ahead", no("Accepted", reason)).await?;
        tell_time(&format!("to {reason}: {}", found.message), time);
        says.iter().for_each(|part| assert!(found.message.contains(part), "{part:?} is not in: {}", found.message));
        space.shows("ahead", no("Ready", reason)).await?;
        space.shows("ahead", yes("Stalled", reason)).await?;
        assert_eq!(space.of::<Pod>("ahead").await?.len(), 0);
    }
    let overlay = json!({"podTemplate": {"spec": {"hostNetwork": true, "nodeSelektor": {"a": "b"}}}});
    space.apply(&with(small("ahead"), &overlay)).await?;
    let says = |model: &crds::resource::InferenceModel| {
        let message = crate::space::condition(model, "Accepted").map(|it| it.message.clone()).unwrap_or_default();
        let both = ["spec.podTemplate.spec.hostNetwork", "spec.podTemplate.spec.nodeSelektor"];
        if both.iter().all(|part| message.contains(part)) { Ok(()) } else { Err(message) }
    };
    space.until("ahead", "to name all that is wrong with the podTemplate", says).await?;
    space.apply_until_ready(&small("ahead")).await?;
    space.shows("ahead", yes("Accepted", "Accepted")).await?;
    Ok(())
}

/// While a changed spec cannot be acted on, what served before goes on serving, scaled as it was, and opens nothing.
pub(crate) async fn what_serves_goes_on(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply_until_ready(&small("firm")).await?;
    let (revision, pods) = (space.active_revision("firm").await?, space.pods("firm").await?);
    let refused = json!({"availability": {"pdb": "Enabled"}, "service": {"type": "NodePort"}});
    space.apply(&with(small("firm"), &refused)).await?;
    space.shows("firm", no("Accepted", "NotImplemented")).await?;
    let kind =
        async || -> Outcome<_> { Ok(space.api::<Service>().get("firm").await?.spec.and_then(|spec| spec.type_)) };
    assert_eq!(kind().await?.as_deref(), Some("ClusterIP"), "a part of the spec is acted on");
    space.delete::<Service>("firm").await?;
    let there = async || kind().await.map_err(|error| error.to_string());
    let (again, _) = wait::until("the deleted Service", crate::fixture::LIMIT, there).await?;
    assert_eq!(again.as_deref(), Some("ClusterIP"));
    assert_eq!(space.active_revision("firm").await?, revision);
    assert_eq!(space.numbers("firm").await?, crate::models::DOUBLED);
    let names = |pods: &[Pod]| pods.iter().map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&space.pods("firm").await?), names(&pods));
    Ok(())
}

/// An object that our types do not fit is refused like any other, what can be read of it is acted on, and it hides nobody else.
pub(crate) async fn what_cannot_be_read(space: &Space) -> Outcome {
    space.claim_models().await?;
    space.apply_until_ready(&small("deep")).await?;
    let nested = (0..200).fold(json!(1), |inner, _| json!({"metadata": inner}));
    let patch = json!({"spec": {"podTemplate": nested}}).to_string();
    space.kubectl(&["patch", "infm", "deep", "--type=merge", "--patch", &patch]).await?;
    let accepted = "-o=jsonpath={.status.conditions[?(@.type==\"Accepted\")].message}";
    let look = async || {
        let said = space.kubectl(&["get", "infm", "deep", accepted]).await?;
        if said.contains("spec.podTemplate: expected a field nested at most 100 deep") {
            Ok(())
        } else {
            Err(crate::fixture::Failure::new(said))
        }
    };
    wait::until("the refusal", crate::fixture::LIMIT, look).await?;
    assert_eq!(space.numbers("deep").await?, crate::models::DOUBLED);
    // A new operator begins with a list.
    crate::restart::crash(space).await?;
    space.apply_until_ready(&small("plain")).await?;
    assert_eq!(space.numbers("deep").await?, crate::models::DOUBLED);
    space.kubectl(&["patch", "infm", "deep", "--type=merge", "--patch", r#"{"spec": {"podTemplate": null}}"#]).await?;
    space.shows("deep", yes("Accepted", "Accepted")).await?;
    Ok(())
}
