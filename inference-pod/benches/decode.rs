//! Time from an image file to a model's input: decoded, resized, cropped and normalised for a classifier of 224 by 224.
//!
//! `cargo bench -p inference-pod --bench decode -- [--json] [--times N] FILE…` prints the median for each file in
//! milliseconds, and that of reading it as base64 out of a JSON body. tests/bench/pictures.py sets it against Pillow.

#![allow(clippy::print_stdout, clippy::expect_used, reason = "a benchmark for people at a terminal")]

use std::{
    fs,
    hint::black_box,
    path::PathBuf,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Parser;
use crds::serving::ImageOptions;
use inference_pod::{decode::ImageInput, http::images::Images, session::Port, tensor::ElementType};
use serde_json::{Value, json};

#[derive(Parser)]
struct Arguments {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// How often each file is decoded.
    #[arg(long, default_value_t = 100)]
    times: usize,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
    /// Image files.
    files: Vec<PathBuf>,
}

fn main() {
    let arguments = Arguments::parse();
    let input = classifier();
    for path in arguments.files {
        let file = fs::read(&path).expect("the file can be read");
        let body = serde_json::to_vec(&json!({"image": STANDARD.encode(&file)})).expect("text can be written");
        let decode = median(arguments.times, || {
            black_box(input.decode(&file).expect("the file is an image"));
        });
        let read = median(arguments.times, || {
            black_box(Images::from_json(&body, 1024).expect("the body is right"));
        });
        print(arguments.json, &json!({"file": path, "decode_ms": milliseconds(decode), "json_ms": milliseconds(read)}));
    }
}

/// Takes what EfficientNet-Lite0 takes.
fn classifier() -> ImageInput {
    let dims = vec![None, Some(3), Some(224), Some(224)];
    let port = Port { name: "input".to_owned(), element: ElementType::F32, dims, batch_name: None };
    ImageInput::new(&port, &ImageOptions::default(), 50_000_000).expect("the options fit")
}

fn median(times: usize, mut work: impl FnMut()) -> Duration {
    work();
    let mut measured: Vec<Duration> = (0..times.max(1))
        .map(|_| {
            let began = Instant::now();
            work();
            began.elapsed()
        })
        .collect();
    measured.sort_unstable();
    measured[measured.len() / 2]
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn print(as_json: bool, line: &Value) {
    if as_json {
        println!("{line}");
    } else {
        println!("{}: {:.3} ms, base64 in JSON {:.3} ms", line["file"], line["decode_ms"], line["json_ms"]);
    }
}
