//! Alerts about instances, pods, and what they run on.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::DeleteParams;
use ortolan_tests::programs;
use serde_json::json;

use crate::clients::{Clients, Question, ask_once, of, serve, serving, until_scraped};
use crate::fixture::{Failure, Outcome};
use crate::models::small;
use crate::space::Space;

/// The file of a model is replaced by a text, and its pod by another, which cannot load that.
pub(crate) async fn cannot_load(space: &Space) -> Outcome {
    let models = programs::cache_folder().join("models");
    let folder = space.cluster().kubeconfig().with_file_name(format!("models-{}", space.namespace));
    std::fs::create_dir_all(folder.join("tiny"))?;
    let file = folder.join("tiny/model.onnx");
    std::fs::copy(models.join("tiny/model.onnx"), &file)?;
    space.claim(&folder).await?;
    space.apply_until_ready(&small("spoilt")).await?;
    until_scraped(space).await?;

    std::fs::copy(models.join("not-a-model/model.onnx"), &file)?;
    replace_pods(space, "spoilt").await?;
    let alerts = ["OrtolanNoPodAnswers", "OrtolanModelNotReady", "OrtolanModelDown"];
    for alert in alerts {
        space.stage.fires(alert, &of(space)).await?;
    }
    std::fs::copy(models.join("tiny/model.onnx"), &file)?;
    // It would be started again by itself, after a pause that has become long.
    replace_pods(space, "spoilt").await?;
    for alert in alerts {
        space.stage.ends(alert, &of(space)).await?;
    }
    Ok(())
}

async fn replace_pods(space: &Space, name: &str) -> Outcome {
    for pod in space.pods(name).await? {
        space.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default().grace_period(1)).await?;
    }
    Ok(())
}

/// A run that takes longer than a minute and cannot be ended from outside: the server gives its instance up, and Kubernetes restarts
/// the pod.
pub(crate) async fn are_lost(space: &Space) -> Outcome {
    // Little of a processor, so that the product takes long enough on any machine.
    let spec = json!({"resources": {"limits": {"cpu": "300m"}}});
    let model = serving("stuck", "obedient", &json!({"batching": {"batchSize": 1}}), &spec);
    let address = serve(space, &model).await?;
    until_scraped(space).await?;
    let product = ask_once(address, &Question::of("obedient", [1, 10_000, 0]), Duration::from_secs(60));
    for alert in ["OrtolanNoInstanceRuns", "OrtolanInstanceLost"] {
        space.stage.fires(alert, &of(space)).await?;
    }
    for alert in ["OrtolanNoInstanceRuns", "OrtolanInstanceLost"] {
        space.stage.ends(alert, &of(space)).await?;
    }
    product.join().map_err(|_| Failure::new("a client panicked"))
}

pub(crate) async fn crash(space: &Space) -> Outcome {
    let address =
        serve(space, &serving("worn", "worn-out", &json!({"batching": {"batchSize": 1}}), &json!({}))).await?;
    let clients = Clients::start(address, 4, &Question::of("worn-out", [1, 2, 3]));
    space.stage.fires("OrtolanInstanceCrashing", &of(space)).await?;
    clients.stop("clients of a model that breaks now and then")?;
    space.stage.ends("OrtolanInstanceCrashing", &of(space)).await
}

/// Asked to run on CUDA, else on the CPU, in an image that has no CUDA.
pub(crate) async fn fall_back(space: &Space) -> Outcome {
    let spec = json!({"server": {"executionProviders": ["cuda", "cpu"]}});
    serve(space, &serving("hopeful", "tiny", &json!({}), &spec)).await?;
    space.stage.fires("OrtolanProviderFallback", &of(space)).await?;
    space.apply_until_ready(&serving("hopeful", "tiny", &json!({}), &json!({}))).await?;
    space.stage.ends("OrtolanProviderFallback", &of(space)).await
}
