//! `check`: load a model as `serve` would, and say what it takes and gives.

use std::{fmt::Write as _, path::PathBuf};

use crds::serving::{ModelConfig, Task};

use crate::{
    cli::Check,
    decode::ImageInputError,
    model::{LoadError, Model, Surroundings},
    observe::Observer,
    probe::Batching,
    session::{Port, Runtime},
    surroundings,
};

/// Loads the model and describes it.
///
/// # Errors
/// [`LoadError`] where it cannot be served.
pub fn check(args: &Check) -> Result<String, LoadError> {
    let runtime = Runtime::load(surroundings::variable("ORT_DYLIB_PATH").map(PathBuf::from))?;
    let observer = Observer::quiet(runtime.version());
    let around = Surroundings {
        runtime: &runtime,
        threads: surroundings::threads(&crds::serving::ServerConfig::default()),
        spinning: false,
        max_pixels: crds::serving::ServerConfig::default().max_pixels,
        observer: &observer,
    };
    let load = |task| Model::load(&config(args, task), &around);
    let (model, why_tensor) = match args.task {
        Some(task) => (load(task)?, None),
        // What can be read as a classifier of images most likely is one.
        None => match load(Task::ImageClassification) {
            Ok(model) => (model, None),
            // Labels beside it change nothing: detectors have them too.
            Err(error) if is_another_kind(&error) => (load(Task::Tensor)?, Some(error)),
            // As a classifier `serve` would refuse it, so it is not called fine as something else.
            Err(error) => return Err(error),
        },
    };
    let text = describe(&model, why_tensor.as_ref());
    model.shared().stop();
    Ok(text)
}

/// Whether the model's shapes say that it classifies no images; all other errors are mistakes in what stands beside it.
fn is_another_kind(error: &LoadError) -> bool {
    matches!(
        error,
        LoadError::ImageInput(ImageInputError::Shape(_)) | LoadError::NoScores(_) | LoadError::FixedBatch(_)
    )
}

fn config(args: &Check, task: Task) -> ModelConfig {
    ModelConfig { task, batch_size: args.batch_size, ..ModelConfig::named("model", &args.path) }
}

fn describe(model: &Model, why_tensor: Option<&LoadError>) -> String {
    let mut text = format!("file      {}\ntask      {}\n", model.file.display(), model.task.as_str());
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<10}{value}");
    };
    if let Some(error) = why_tensor {
        line("", &format!("not image-classification: {error}"));
    }
    model.signature.inputs.iter().for_each(|port| line("input", &shown(port)));
    model.signature.outputs.iter().for_each(|port| line("output", &shown(port)));
    if let Some(classes) = &model.classes {
        line("labels", &classes.labels.len().to_string());
        line("softmax", if classes.softmax { "yes" } else { "no" });
    }
    line("provider", model.provider.as_str());
    match &model.batching {
        Batching::On(size) => line("batching", &format!("up to {size} samples")),
        Batching::Off(reason) => line("batching", &format!("off: {reason}")),
    }
    for (samples, time) in model.bucket_times() {
        let millis = time.as_secs_f64() * 1e3;
        line("bucket", &format!("{samples:>4} samples {millis:>9.3} ms {:>9.3} ms a sample", millis / samples as f64));
    }
    line("load", &format!("{:.3} s", model.load_time.as_secs_f64()));
    line("warm-up", &format!("{:.3} s", model.warmup_time.as_secs_f64()));
    text
}

fn shown(port: &Port) -> String {
    let dims: Vec<String> =
        port.dims.iter().map(|size| size.map_or_else(|| "-1".to_owned(), |size| size.to_string())).collect();
    format!("{} {} [{}]", port.name, port.element.datatype(), dims.join(", "))
}
