//! Real photos, a real model, every form of body.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use base64::{Engine, engine::general_purpose::STANDARD};
use common::{Server, SharedServer, classifier, form, item, photo};
use image::{DynamicImage, ImageFormat, imageops::FilterType};
use serde_json::{Value, json};

static SHARED: SharedServer = SharedServer::new(|| {
    let fixed = item("fixed", "fixed-batch", "task: image-classification");
    Server::start(&(classifier() + &fixed))
});

fn top(answer: &Value) -> (u64, f64) {
    let top = &answer["predictions"][0];
    let both = top["class_id"].as_u64().zip(top["confidence"].as_f64());
    both.unwrap_or_else(|| panic!("expected predictions, got {answer}"))
}

fn assert_espresso(answer: &Value) {
    let (class, confidence) = top(answer);
    assert_eq!(class, 967, "{answer}");
    assert!(confidence > 0.8, "{answer}");
    assert_eq!(answer["predictions"][0]["label"], "espresso");
    assert_eq!(answer["predictions"].as_array().unwrap().len(), 5);
    assert!(answer["inference_time_ms"].as_f64().unwrap() > 0.0, "{answer}");
}

/// By way of a file, and of a type that is not generic: only so it is the library's own, optimised code that encodes.
fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    picture.save_with_format(file.path(), format).unwrap();
    std::fs::read(file.path()).unwrap()
}

fn as_format(png: &[u8], format: ImageFormat) -> Vec<u8> {
    encoded(&image::load_from_memory(png).unwrap().to_rgb8().into(), format)
}

#[test]
fn the_coffee_photo_is_espresso_by_every_form_of_body() {
    let server = SHARED.get();
    let coffee = photo("coffee.png");
    let json = server.post_json("/predict/espresso", &json!({"image": STANDARD.encode(&coffee)}));
    assert_eq!(json.status, 200, "{}", json.text());
    assert_espresso(&json.json());
    for content_type in ["image/png", "application/octet-stream"] {
        assert_espresso(&server.post("/predict/espresso", content_type, &coffee).json());
    }
    let (content_type, body) = form(&[("image", &coffee)]);
    assert_espresso(&server.post("/predict/espresso", &content_type, &body).json());
    // What curl says unless told otherwise.
    let untold = "application/x-www-form-urlencoded";
    assert_espresso(&server.post("/predict/espresso", untold, &coffee).json());
    let object = json!({"image": STANDARD.encode(&coffee)}).to_string();
    assert_espresso(&server.post("/predict/espresso", untold, object.as_bytes()).json());
}

#[test]
fn jpeg_and_webp_give_the_same_class() {
    let server = SHARED.get();
    for (format, content_type) in [(ImageFormat::Jpeg, "image/jpeg"), (ImageFormat::WebP, "image/webp")] {
        let body = as_format(&photo("coffee.png"), format);
        assert_espresso(&server.post("/predict/espresso", content_type, &body).json());
    }
}

/// A large JPEG is decoded at a smaller scale: another one for each of these sizes.
#[test]
fn a_jpeg_of_any_size_gives_the_same_class() {
    let server = SHARED.get();
    for (name, classes) in [("coffee.png", &[967][..]), ("camera.png", &[872]), ("cat.png", &[281, 282, 285])] {
        let original = image::load_from_memory(&photo(name)).unwrap();
        for side in [300, 520, 1100, 2100] {
            let sized = original.resize_to_fill(side * 4 / 3, side, FilterType::Triangle).to_rgb8();
            let jpeg = encoded(&sized.into(), ImageFormat::Jpeg);
            let answer = server.post("/predict/espresso", "image/jpeg", &jpeg).json();
            assert!(classes.contains(&top(&answer).0), "{name} {side}: {answer}");
        }
    }
}

#[test]
fn the_camera_is_a_tripod_and_the_cat_is_a_cat() {
    let server = SHARED.get();
    let camera = server.post("/predict/espresso", "image/png", &photo("camera.png")).json();
    assert_eq!(top(&camera).0, 872, "{camera}");
    let cat = server.post("/predict/espresso", "image/png", &photo("cat.png")).json();
    assert!([281, 282, 285].contains(&top(&cat).0), "{cat}");
}

#[test]
fn several_images_are_answered_in_their_order() {
    let server = SHARED.get();
    let photos = ["coffee.png", "camera.png", "coffee.png"].map(|name| STANDARD.encode(photo(name)));
    let answer = server.post_json("/predict/espresso", &json!({"images": photos})).json();
    let classes: Vec<u64> = answer["results"].as_array().unwrap().iter().map(|result| top(result).0).collect();
    assert_eq!(classes, [967, 872, 967]);
    assert!(answer["inference_time_ms"].as_f64().unwrap() > 0.0);

    let (content_type, body) = form(&[("image", &photo("camera.png")), ("image", &photo("coffee.png"))]);
    let answer = server.post("/predict/espresso", &content_type, &body).json();
    let classes: Vec<u64> = answer["results"].as_array().unwrap().iter().map(|result| top(result).0).collect();
    assert_eq!(classes, [872, 967]);
}

#[test]
fn more_images_than_a_batch_holds_are_answered_too() {
    let server = SHARED.get();
    let coffee = STANDARD.encode(photo("coffee.png"));
    let answer = server.post_json("/predict/espresso", &json!({"images": vec![coffee; 19]}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let answer = answer.json();
    assert_eq!(answer["results"].as_array().unwrap().len(), 19);
    assert!(answer["results"].as_array().unwrap().iter().all(|result| top(result).0 == 967));
}

#[test]
fn a_model_with_a_fixed_batch_of_one_gives_the_same_answer_and_says_why_it_does_not_batch() {
    let server = SHARED.get();
    let coffee = STANDARD.encode(photo("coffee.png"));
    let answer = server.post_json("/predict/fixed", &json!({"images": [coffee, coffee]})).json();
    assert_eq!(top(&answer["results"][1]).0, 967, "{answer}");
    let info = server.get("/info").json();
    let fixed = info["models"].as_array().unwrap().iter().find(|model| model["name"] == "fixed").unwrap();
    assert_eq!(fixed["batching"]["enabled"], false);
    assert_eq!(fixed["batching"]["reason"], "input `input` has a fixed first dimension of 1");
}

#[test]
fn the_smallest_picture_is_classified() {
    let server = SHARED.get();
    let answer =
        server.post("/predict/espresso", "image/png", &encoded(&DynamicImage::new_rgb8(1, 1), ImageFormat::Png));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.json()["predictions"].as_array().unwrap().len(), 5);
}

#[test]
fn every_answer_says_where_the_time_went_and_carries_the_clients_id() {
    let server = SHARED.get();
    let coffee = photo("coffee.png");
    let head = [("content-type", "image/png"), ("x-request-id", "my-id-7")];
    let mut connection = server.connect();
    connection.write(&common::request("POST", "/predict/espresso", &head, &coffee)).unwrap();
    let answer = connection.read().unwrap();
    assert_eq!(answer.header("x-request-id"), Some("my-id-7"));
    let timing = answer.header("server-timing").unwrap();
    for part in ["decode;dur=", "queue;dur=", "inference;dur="] {
        assert!(timing.contains(part), "{timing}");
    }
    let made = server.get("/health");
    assert_eq!(made.header("x-request-id").unwrap().len(), 36);
}

#[test]
fn info_describes_the_model() {
    let server = SHARED.get();
    let info = server.get("/info").json();
    assert!(info["onnxruntime"].as_str().unwrap().starts_with("1.31"), "{info}");
    let model = info["models"].as_array().unwrap().iter().find(|model| model["name"] == "espresso").unwrap();
    assert_eq!(model["inputs"], json!([{"name": "input", "datatype": "FP32", "shape": [-1, 3, 224, 224]}]));
    let file = common::model("efficientnet-lite0").join("model.onnx");
    assert_eq!(model["bytes"], std::fs::metadata(file).unwrap().len());
    assert_eq!(model["provider"], "cpu");
    assert_eq!(model["labels"], 1000);
    let buckets: Vec<_> =
        model["batching"]["buckets"].as_array().unwrap().iter().map(|bucket| bucket["samples"].clone()).collect();
    assert_eq!(buckets, [1, 2, 4, 8]);
}
