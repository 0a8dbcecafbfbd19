//! `demo`: a local Kubernetes, Ortolan installed by Helm, a model applied, and photos classified from inside the cluster.
//!
//! ```text
//! images ▸ cluster ▸ import ▸ helm ▸ model server and client ▸ kubectl apply ▸ Ready ▸ predictions
//! ```
//! Each step may find its work done by an earlier run. The cluster stays up, whether the demo ends well or not.

#![allow(clippy::disallowed_methods, reason = "a harness is told by its environment what to use")]

use std::cell::RefCell;
use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use ortolan_tests::cluster::{Cluster, Options, Part, clusters_folder, wait};
use ortolan_tests::images::{self, BuiltImage, ImageSpec};
use ortolan_tests::probe;
use ortolan_tests::programs;
use ortolan_tests::report::{self, Report};
use serde_json::Value;

/// How long the model may take: far more than it does, on a machine that does other things besides.
const LIMIT: Duration = Duration::from_secs(300);

const NAME: &str = "espresso";
const URL: &str = "http://espresso.default.svc/predict/espresso";

/// ImageNet's number of what `coffee.png` shows.
const ESPRESSO: u64 = 967;

/// Ortolan on a local Kubernetes: everything from the images to a prediction.
#[derive(Parser)]
struct Arguments {
    /// Name of the cluster; one that runs already is used.
    #[arg(long, default_value = "demo")]
    name: String,
}

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

#[tokio::main]
async fn main() -> ExitCode {
    match demo(&Arguments::parse().name, Report::to_stderr()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            Report::to_stderr().say(&format!("error: {}", report::chain(&*error)));
            ExitCode::FAILURE
        }
    }
}

async fn demo(name: &str, report: Report) -> Outcome {
    Cluster::must_be_ours("show the demo")?;
    let pod = build(&images::POD, report)?;
    let operator = build(&images::OPERATOR, report)?;
    let probe = probe::archive(report)?;
    let cluster = cluster_of(name, report).await?;
    let step = report.step("bring the images to the node");
    for archive in [&pod.archive, &operator.archive, &probe] {
        cluster.import_image(archive).await?;
    }
    step.done();
    let told = serve(&cluster, &operator, report).await;
    // Said in either case: somebody whose demo failed wants to look.
    hint(&cluster, name)?;
    told
}

async fn serve(cluster: &Cluster, operator: &BuiltImage, report: Report) -> Outcome {
    install(cluster, operator, report).await?;
    start_models_and_customer(cluster, report).await?;
    remove_earlier(cluster, report).await?;
    let begun = Instant::now();
    let sample = repository().join("deploy/samples/espresso.yaml").display().to_string();
    report.say("  kubectl apply -f deploy/samples/espresso.yaml");
    cluster.run_kubectl(&["apply", "-f", &sample]).await?;
    ready(cluster, begun, report).await?;
    let ready_after = begun.elapsed();
    let first = classify(cluster, "coffee").await?;
    let predicted_after = begun.elapsed();
    say(format_args!(
        "\nready {:.1} s after apply, first prediction {:.1} s after apply\n",
        ready_after.as_secs_f64(),
        predicted_after.as_secs_f64()
    ))?;
    say(format_args!("from a pod, through {URL}:\n{first}"))?;
    for photo in ["camera", "cat"] {
        say(classify(cluster, photo).await?)?;
    }
    say(format_args!("\n$ kubectl get infm\n{}", cluster.run_kubectl(&["get", "infm"]).await?))?;
    Ok(())
}

/// An image, with its steps told while it is built.
fn build(spec: &ImageSpec, report: Report) -> Outcome<BuiltImage> {
    let image = images::build(spec, &|step| report.say(&format!("  {step}")))?;
    report.say(&format!("  {} has {:.1} MB", image.reference, image.bytes as f64 / 1e6));
    Ok(image)
}

/// The cluster of that name, started if it does not run. It goes on whatever happens to the demo.
async fn cluster_of(name: &str, report: Report) -> Outcome<Cluster> {
    if let Ok(cluster) = Cluster::open(&clusters_folder(), name, report).await
        && answers(&cluster).await
    {
        report.say(&format!("  the cluster `{name}` runs already"));
        return Ok(cluster);
    }
    let mut options = Options::named(name);
    options.report = report;
    tokio::select! {
        started = Cluster::up(&options) => started?.leave_running(),
        interrupted = tokio::signal::ctrl_c() => {
            interrupted?;
            Cluster::remove(&clusters_folder(), name)?;
            return Err("interrupted; what was started is removed".into());
        }
    }
    Ok(Cluster::open(&clusters_folder(), name, report).await?)
}

/// Whether a cluster that was started once can still be used: its API answers, and its node runs.
async fn answers(cluster: &Cluster) -> bool {
    let parts = [Part::Kubelet, Part::Containerd];
    let ready = ["wait", "node", "--all", "--for=condition=Ready", "--timeout=5s", "--request-timeout=5s"];
    parts.iter().all(|part| cluster.is_running(*part).unwrap_or(false)) && cluster.run_kubectl(&ready).await.is_ok()
}

async fn install(cluster: &Cluster, operator: &BuiltImage, report: Report) -> Outcome {
    let step = report.step("helm install ortolan charts/ortolan -n ortolan-system --create-namespace");
    let chart = repository().join("charts/ortolan").display().to_string();
    // The tag says nothing of what was built; with this, an operator that was built anew replaces the one that runs.
    let built = operator.archive.file_stem().unwrap_or_default().to_string_lossy();
    let annotation = format!("podAnnotations.built-from={built}");
    let install = ["upgrade", "--install", "ortolan", &chart, "--namespace", "ortolan-system", "--create-namespace"];
    let rest = ["--set-string", &annotation, "--wait", "--timeout", "2m"];
    cluster.run_helm(&[&install[..], &rest].concat()).await?;
    step.done();
    Ok(())
}

/// A web server with the models of the cache, and a client with the photos of the repository.
async fn start_models_and_customer(cluster: &Cluster, report: Report) -> Outcome {
    let step = report.step("a web server of models and a client, in pods");
    let models = programs::cache_folder().join("models");
    if !models.join("efficientnet-lite0/model.onnx").exists() {
        return Err("there are no models: run `make models`".into());
    }
    apply(cluster, "models.yaml", "/var/lib/ortolan/models", &models).await?;
    apply(cluster, "customer.yaml", "/var/lib/ortolan/photos", &repository().join("deploy/samples/photos")).await?;
    cluster.run_kubectl(&["rollout", "status", "deployment/models", "-n", "models", "--timeout=60s"]).await?;
    cluster.run_kubectl(&["wait", "pod/customer", "--for=condition=Ready", "--timeout=60s"]).await?;
    step.done();
    Ok(())
}

/// Applies a manifest with a folder of this machine in place of the one that it names.
async fn apply(cluster: &Cluster, manifest: &str, named: &str, folder: &Path) -> Outcome {
    let text = fs::read_to_string(repository().join("deploy/manifests").join(manifest))?;
    let file = cluster.kubeconfig().with_file_name(manifest);
    fs::write(&file, text.replace(named, &folder.canonicalize()?.display().to_string()))?;
    cluster.run_kubectl(&["apply", "-f", &file.display().to_string()]).await?;
    Ok(())
}

/// Removes the model of an earlier run with all its children, so that the times are those of one that is new to the cluster.
async fn remove_earlier(cluster: &Cluster, report: Report) -> Outcome {
    let label = format!("ortolan.dev/inference-model={NAME}");
    let children = ["get", "deployments,services,configmaps,pods", "-o", "name", "-l", &label];
    cluster.run_kubectl(&["delete", "infm", NAME, "--ignore-not-found"]).await?;
    if cluster.run_kubectl(&children).await?.is_empty() {
        return Ok(());
    }
    let step = report.step("remove the model of an earlier run");
    wait::until("the earlier model to be gone", LIMIT, async || match cluster.run_kubectl(&children).await {
        Ok(none) if none.is_empty() => Ok(()),
        Ok(some) => Err(some),
        Err(error) => Err(error.to_string()),
    })
    .await?;
    step.done();
    Ok(())
}

/// Waits until the model is ready, and tells each change on the way with its time.
async fn ready(cluster: &Cluster, begun: Instant, report: Report) -> Outcome {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("ortolan.dev", "v1alpha1", "InferenceModel"));
    let models: Api<DynamicObject> = Api::namespaced_with(cluster.client(), "default", &kind);
    let told = RefCell::new(String::new());
    wait::until("the model to be ready", LIMIT, async || {
        let state = match models.get(NAME).await {
            Ok(model) => state(&model),
            Err(error) => State { is_ready: false, words: error.to_string() },
        };
        if *told.borrow() != state.words {
            report.say(&format!("  {:>6.1} s  {}", begun.elapsed().as_secs_f64(), state.words));
            told.replace(state.words.clone());
        }
        if state.is_ready { Ok(()) } else { Err(state.words) }
    })
    .await?;
    Ok(())
}

struct State {
    is_ready: bool,
    words: String,
}

/// What the condition `Ready` says, if it is about the spec as it is now.
fn state(model: &DynamicObject) -> State {
    let conditions = model.data["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().find(|condition| condition["type"] == "Ready");
    let Some(ready) = ready else { return State { is_ready: false, words: "no status yet".to_owned() } };
    let text = |key: &str| ready[key].as_str().unwrap_or_default().to_owned();
    let is_current = ready["observedGeneration"].as_i64() >= model.metadata.generation;
    let words = format!("Ready={} {}: {}", text("status"), text("reason"), text("message"));
    State { is_ready: is_current && ready["status"] == "True", words }
}

/// Has a photo classified by the client pod. Returns a line for people.
async fn classify(cluster: &Cluster, photo: &str) -> Outcome<String> {
    let file = format!("/photos/{photo}.png");
    let ask = ["exec", "customer", "--", "/program", "post", URL, &file];
    // Ready pods reach the Service's addresses a moment later.
    let (answer, _) = wait::until("a prediction", LIMIT, async || cluster.run_kubectl(&ask).await).await?;
    let answer: Value = serde_json::from_str(&answer)?;
    let top = &answer["predictions"][0];
    if photo == "coffee" && top["class_id"] != ESPRESSO {
        return Err(format!("the photo of a coffee was taken for something else: {answer}").into());
    }
    let (label, confidence) = (top["label"].as_str().unwrap_or("?"), top["confidence"].as_f64().unwrap_or(0.0));
    Ok(format!("  {photo}.png: {} {label} {confidence:.3}", top["class_id"]))
}

fn hint(cluster: &Cluster, name: &str) -> Outcome {
    let kubectl = cluster.kubectl()?;
    let lines = [
        "The cluster stays up. Try next:".to_owned(),
        format!("  export KUBECONFIG={}", cluster.kubeconfig().display()),
        format!("  alias kubectl={}", Path::new(kubectl.get_program()).display()),
        "  kubectl describe infm espresso".to_owned(),
        "  kubectl get infm,deployments,pods,services".to_owned(),
        "  kubectl scale infm espresso --replicas=2".to_owned(),
        "  kubectl apply -f deploy/samples/two-models.yaml".to_owned(),
        format!("  kubectl exec customer -- /program post {URL} /photos/cat.png"),
        "  kubectl -n ortolan-system logs deployment/ortolan-operator".to_owned(),
        format!("  make cluster-down NAME={name}"),
    ];
    say(lines.join("\n"))
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A reader that has gone away is an error here, not a panic.
fn say(line: impl Display) -> Outcome {
    writeln!(io::stdout(), "{line}")?;
    Ok(())
}
