//! What is told of a GPU. No machine of these tests need have one: `tests/programs/nvml` stands in for the library of its driver.

use std::path::Path;
use std::process::Command;

use ortolan_tests::programs;
use serde_json::{Value, json};

use crate::clients::{Clients, Question, of, serving};
use crate::fixture::{Failure, Outcome, repository};
use crate::models::with;
use crate::space::Space;

/// Where the volume has the library.
const FOLDER: &str = "driver";

/// Claims a volume with the model `slow` and the library.
pub(crate) async fn claim(space: &Space) -> Outcome {
    let folder = space.cluster().kubeconfig().with_file_name(format!("models-{}", space.namespace));
    for part in ["slow", FOLDER] {
        std::fs::create_dir_all(folder.join(part))?;
    }
    std::fs::copy(programs::cache_folder().join("models/slow/model.onnx"), folder.join("slow/model.onnx"))?;
    compile(&folder.join(FOLDER).join("libnvidia-ml.so.1"))?;
    space.claim(&folder).await
}

fn compile(library: &Path) -> Outcome {
    let source = repository().join("tests/programs/nvml/nvml.c");
    let compiled = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([library, &source]).status()?;
    if compiled.success() { Ok(()) } else { Err(Failure::new(format!("cc: {compiled}"))) }
}

/// The same InferenceModel, of the model `slow`, in pods that see the GPU.
pub(crate) fn seen_by(inference_model: Value) -> Value {
    let path = json!({"name": "LD_LIBRARY_PATH", "value": format!("/volumes/slow/{FOLDER}")});
    with(inference_model, &json!({"server": {"env": [path]}}))
}

pub(crate) async fn is_idle(space: &Space) -> Outcome {
    claim(space).await?;
    let short = json!({"batching": {"batchSize": 1, "maxQueueTime": "50ms"}});
    space.apply_until_ready(&seen_by(serving("narrow", "slow", &short, &json!({})))).await?;
    let address = space.address("narrow").await?;
    let many = Clients::start(address, 12, &Question::of("slow", [1, 2, 3]));
    space.stage.fires("OrtolanGpuIdleWhileRefusing", &of(space)).await?;
    many.stop("a dozen clients of a model on a GPU with little to do")?;
    let one = Clients::start(address, 1, &Question::of("slow", [1, 2, 3]));
    space.stage.ends("OrtolanGpuIdleWhileRefusing", &of(space)).await?;
    one.stop("a client alone")
}
