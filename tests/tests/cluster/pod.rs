//! Our server's image in a pod, written by hand as users would.

use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, PostParams};
use ortolan_tests::cluster::{Cluster, wait};
use ortolan_tests::images;
use ortolan_tests::programs;
use serde_json::{Value, json};

use crate::fixture::{Failure, Fixture, LIMIT, Outcome, PROBE, ready_pod, tell};

/// Where the manifest expects the node to have its models.
const MODELS_ON_NODE: &str = "/var/lib/ortolan/models";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The manifest that users apply, with the models of this machine's cache.
fn manifest(cluster: &Cluster) -> Result<PathBuf, Failure> {
    let text = std::fs::read_to_string(repository().join("deploy/manifests/espresso.yaml"))?;
    assert!(text.contains(MODELS_ON_NODE), "the manifest names another folder");
    let models = programs::cache_folder().join("models");
    assert!(models.join("efficientnet-lite0/model.onnx").exists(), "run `make models` first");
    let file = cluster.kubeconfig().with_file_name("espresso.yaml");
    std::fs::write(&file, text.replace(MODELS_ON_NODE, &models.canonicalize()?.display().to_string()))?;
    Ok(file)
}

/// A pod that can send the photos of the repository.
async fn create_client(cluster: &Cluster) -> Outcome {
    let photos = repository().join("deploy/samples/photos").canonicalize()?;
    let pod = json!({
        "metadata": {"name": "customer"},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{
                "name": "probe", "image": PROBE, "imagePullPolicy": "IfNotPresent", "args": ["serve", "nobody asks"],
                "volumeMounts": [{"name": "photos", "mountPath": "/photos", "readOnly": true}],
            }],
            "volumes": [{"name": "photos", "hostPath": {"path": photos, "type": "Directory"}}],
        },
    });
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "default");
    pods.create(&PostParams::default(), &serde_json::from_value(pod)?).await?;
    ready_pod(&pods, "customer").await?;
    Ok(())
}

pub(crate) async fn serves_a_photo_by_name(fixture: &Fixture) -> Outcome {
    let cluster = fixture.node().await?;
    let image = images::build_with_compiled(&images::POD, &|step| tell(step))?;
    tell(&format!("{} has {} MB", image.reference, image.bytes / 1_000_000));
    assert_eq!(cluster.import_image(&image.archive).await?, [image.reference]);
    let file = manifest(cluster)?.display().to_string();
    cluster.run_kubectl(&["apply", "-f", &file]).await?;
    create_client(cluster).await?;
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "default");
    ready_pod(&pods, "espresso").await?;

    let url = "http://espresso.default.svc/predict/espresso";
    let (answer, time) = wait::until("a prediction through the Service", LIMIT, async || {
        cluster.run_kubectl(&["exec", "customer", "--", "/program", "post", url, "/photos/coffee.png"]).await
    })
    .await?;
    tell(&format!("{url} answered after {:.1} s: {answer}", time.as_secs_f64()));
    let answer: Value = serde_json::from_str(&answer)?;
    let top = &answer["predictions"][0];
    assert_eq!((top["class_id"].as_u64(), top["label"].as_str()), (Some(967), Some("espresso")), "{answer}");
    assert!(top["confidence"].as_f64().is_some_and(|confidence| confidence > 0.8), "{answer}");

    // The pod ends by itself, well within its grace period, and with success.
    cluster.run_kubectl(&["delete", "pod", "espresso", "--wait=false"]).await?;
    let (_, time) = wait::until("the pod to be gone", LIMIT, async || match pods.get_opt("espresso").await {
        Ok(None) => Ok(()),
        Ok(Some(pod)) => Err(format!("{:?}", pod.status)),
        Err(error) => Err(error.to_string()),
    })
    .await?;
    tell(&format!("the pod was gone {:.1} s after its deletion", time.as_secs_f64()));
    cluster.run_kubectl(&["delete", "-f", &file, "--ignore-not-found"]).await?;
    cluster.run_kubectl(&["delete", "pod", "customer", "--grace-period=0", "--force"]).await?;
    Ok(())
}
