//! Bad input gets the right status and a sentence that says what was expected, and the server keeps serving.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod common;

use std::{io::Cursor, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use common::{Connection, Response, Server, SharedServer, form, item, photo, request};
use image::ImageFormat;
use serde_json::json;

const PATH: &str = "/predict/espresso";

static SHARED: SharedServer = SharedServer::new(|| Server::start_with("max_body_bytes: 2000000", &one_at_a_time()));

/// A classifier without batches, for those take long to be measured.
fn one_at_a_time() -> String {
    let options = "task: image-classification, batch_size: 1, max_queue_ms: 60000, request_timeout_ms: 60000";
    item("espresso", "efficientnet-lite0", options)
}

/// The server, which must still serve when the test is over.
struct Unharmed(Arc<Server>);

impl std::ops::Deref for Unharmed {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.0
    }
}

impl Drop for Unharmed {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let answer = self.0.post(PATH, "image/png", &photo("coffee.png"));
            assert_eq!(answer.json()["predictions"][0]["class_id"], 967, "the server does not serve any more");
        }
    }
}

fn server() -> Unharmed {
    Unharmed(SHARED.get())
}

#[track_caller]
fn assert_error(answer: &Response, status: u16, parts: &[&str]) {
    assert_eq!(answer.status, status, "{}", answer.text());
    let error = answer.error();
    for part in parts {
        assert!(error.contains(part), "expected {part:?} in {error:?}");
    }
}

#[test]
fn an_unknown_model_is_404_in_the_words_that_clients_look_for() {
    let server = server();
    for path in ["/predict/latte", "/v2/models/latte/infer"] {
        let answer = server.post(path, "image/png", b"x");
        assert_error(&answer, 404, &[]);
        assert_eq!(answer.error(), "Request for unknown model: 'latte' is not found");
    }
    let long = server.post(&format!("/predict/{}", "x".repeat(3000)), "image/png", b"x");
    assert!(long.error().len() < 300, "{}", long.error());
}

#[test]
fn a_name_that_is_no_text_is_400_in_the_form_of_every_error() {
    assert_error(&server().post("/predict/%FF", "image/png", b"x"), 400, &["path: "]);
}

#[test]
fn a_list_is_taken_for_no_object() {
    let server = server();
    let json = "application/json";
    assert_error(&server.post(PATH, json, br#"["aGk="]"#), 400, &["expected {\"image\": base64}", "an object"]);
    let input = r#"{"name": "input", "shape": [1, 4], "datatype": "FP32", "data": [1, 2, 3, 4]}"#;
    for wrong in [
        format!("[null, {{}}, [{input}]]"),
        r#"{"inputs": [["input", [1, 4], "FP32", {}, [1, 2, 3, 4]]]}"#.to_owned(),
        format!(r#"{{"parameters": [], "inputs": [{input}]}}"#),
        format!(r#"{{"inputs": [{input}], "outputs": [["output", {{}}]]}}"#),
    ] {
        let answer = server.post("/v2/models/espresso/infer", json, wrong.as_bytes());
        assert_error(&answer, 400, &["expected {\"inputs\"", "an object"]);
    }
}

#[test]
fn more_images_than_the_queue_holds_are_413_before_any_is_decoded() {
    let answer = server().post_json(PATH, &json!({"images": vec!["aGk="; 3000]}));
    assert_error(&answer, 413, &["request has 3000 samples; expected at most 1024"]);
}

/// Small files that become 500 samples of 600 kB, more than the queue ever holds.
#[test]
fn images_that_become_more_bytes_than_the_queue_holds_are_413() {
    let mut small = Cursor::new(Vec::new());
    image::RgbImage::new(8, 8).write_to(&mut small, ImageFormat::Jpeg).unwrap();
    let small = STANDARD.encode(small.into_inner());
    let answer = server().post_json(PATH, &json!({"images": vec![small; 500]}));
    assert_error(&answer, 413, &["request takes ", "of the queue; expected at most 268435456"]);
}

#[test]
fn a_compressed_body_is_415() {
    // Held: the server ends with the last that lets go of it.
    let server = server();
    let mut connection = server.connect();
    let head = [("content-type", "application/json"), ("content-encoding", "gzip")];
    connection.write(&request("POST", PATH, &head, b"x")).unwrap();
    let answer = connection.read().unwrap();
    assert_error(&answer, 415, &["not compressed", "gzip"]);
    assert_eq!(answer.header("accept-encoding"), Some("identity"));
}

#[test]
fn an_unknown_path_is_404() {
    assert_error(&server().get("/predicts/espresso"), 404, &["nothing at /predicts/espresso"]);
}

#[test]
fn a_wrong_verb_is_405_and_names_the_right_one() {
    let server = server();
    let answer = server.get(PATH);
    assert_error(&answer, 405, &["expected POST, got GET"]);
    assert_eq!(answer.header("allow"), Some("POST"));
    let answer = server.post("/health", "application/json", b"{}");
    assert_error(&answer, 405, &["expected GET, HEAD, got POST"]);
    assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    let answer = Connection::open(server.admin).post("/observability", "application/json", b"{}");
    assert_error(&answer, 405, &["expected GET, HEAD, PATCH, got POST"]);
    assert_eq!(answer.header("allow"), Some("GET, HEAD, PATCH"));
}

#[test]
fn another_number_of_hosts_than_one_is_400() {
    let server = server();
    let asked = |head: &str| {
        let mut connection = server.connect();
        connection.write(format!("GET /v2 {head}\r\n\r\n").as_bytes()).unwrap();
        connection.read().unwrap()
    };
    assert_error(&asked("HTTP/1.1"), 400, &["expected one header Host, got 0"]);
    assert_error(&asked("HTTP/1.1\r\nhost: a\r\nhost: b"), 400, &["expected one header Host, got 2"]);
    for wrong in ["a b", "a/b", "user@a", "a\\b", "a?", "é"] {
        assert_error(
            &asked(&format!("HTTP/1.1\r\nhost: {wrong}")),
            400,
            &["header Host: expected a host and its port"],
        );
    }
    for host in ["a", "", "a_b.example:80", "[::1]:8080", "%41"] {
        assert_eq!(asked(&format!("HTTP/1.1\r\nhost: {host}")).status, 200, "{host}");
    }
    assert_eq!(asked("HTTP/1.0").status, 200);
}

#[test]
fn a_wrong_content_type_is_415_and_names_the_right_ones() {
    let server = server();
    let known = ["application/json", "multipart/form-data", "image/png"];
    assert_error(&server.post(PATH, "text/html", b"hello"), 415, &["got text/html", known[0], known[1], known[2]]);
    assert_error(&server.post(PATH, "image/gif", b"GIF89a"), 415, &["got image/gif"]);
}

#[test]
fn broken_json_is_400_and_says_where() {
    let server = server();
    assert_error(
        &server.post(PATH, "application/json", b"{\"image\": "),
        400,
        &["expected {\"image\": base64}", "line 1"],
    );
    assert_error(&server.post(PATH, "application/json", b""), 400, &["expected {\"image\": base64}"]);
    assert_error(&server.post_json(PATH, &json!({"picture": "x"})), 400, &["got neither"]);
    assert_error(&server.post_json(PATH, &json!({"image": 5})), 400, &["expected a string"]);
    assert_error(&server.post_json(PATH, &json!({"images": []})), 400, &["at least one image"]);
}

#[test]
fn base64_that_is_none_is_400_and_named() {
    let server = server();
    assert_error(&server.post_json(PATH, &json!({"image": "@@@@"})), 400, &["image: expected base64", "@@@@"]);
    let good = STANDARD.encode(photo("cat.png"));
    assert_error(&server.post_json(PATH, &json!({"images": [good, "?"]})), 400, &["images[1]: expected base64"]);
}

#[test]
fn an_image_that_is_none_is_400_by_every_form_of_body() {
    let server = server();
    let expected = "expected a PNG, JPEG or WebP image, got 12 bytes that begin with hello, world";
    assert_error(&server.post(PATH, "image/png", b"hello, world"), 400, &["body: ", expected]);
    let encoded = STANDARD.encode(b"hello, world");
    assert_error(&server.post_json(PATH, &json!({"image": encoded})), 400, &["image: ", expected]);
    let (content_type, body) = form(&[("image", b"hello, world")]);
    assert_error(&server.post(PATH, &content_type, &body), 400, &["part 0: ", expected]);
    assert_error(&server.post(PATH, "image/png", b""), 400, &["got 0 bytes"]);
    assert_error(&server.post(PATH, "application/octet-stream", b"GIF89a......"), 415, &["got image/gif"]);
}

#[test]
fn a_form_without_an_image_is_400() {
    let server = server();
    let text = b"--edge\r\ncontent-disposition: form-data; name=\"note\"\r\n\r\nhi\r\n--edge--\r\n";
    let content_type = "multipart/form-data; boundary=edge";
    assert_error(&server.post(PATH, content_type, text), 400, &["expected a part `image`", "got parts note"]);
    assert_error(&server.post(PATH, content_type, b"--edge\r\nbroken"), 400, &["multipart form is broken"]);
    assert_error(&server.post(PATH, "multipart/form-data", text), 400, &["no boundary"]);
}

#[test]
fn a_truncated_jpeg_is_400() {
    let server = server();
    let picture = image::load_from_memory(&photo("coffee.png")).unwrap().to_rgb8();
    let mut jpeg = Cursor::new(Vec::new());
    picture.write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
    let jpeg = jpeg.into_inner();
    for share in [30, 60, 99] {
        let cut = &jpeg[..jpeg.len() * share / 100];
        assert_error(&server.post(PATH, "image/jpeg", cut), 400, &["JPEG image is damaged", "truncated"]);
    }
    // The end is there, half of what stands before it is not.
    let holed = [&jpeg[..jpeg.len() / 2], &jpeg[jpeg.len() - 2..]].concat();
    assert_error(&server.post(PATH, "image/jpeg", &holed), 400, &["JPEG image is damaged", "Corrupt JPEG data"]);
}

/// The header of a JPEG of 65,000 by 65,000 pixels.
#[test]
fn a_jpeg_bomb_is_413() {
    let mut jpeg = Cursor::new(Vec::new());
    image::RgbImage::new(8, 8).write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
    let mut bomb = jpeg.into_inner();
    let frame = bomb.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    bomb[frame + 5..frame + 9].copy_from_slice(&[0xFD, 0xE8, 0xFD, 0xE8]);
    assert_error(&server().post(PATH, "image/jpeg", &bomb), 413, &["65000x65000", "at most 50000000"]);
}

/// 20,000 by 20,000 pixels in a file of some ten thousand bytes.
fn bomb() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, 20_000, 20_000);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::One);
    encoder.write_header().unwrap().write_image_data(&vec![0; 2_500 * 20_000]).unwrap();
    bytes
}

/// A form with that many files of no bytes, and as many other parts.
fn form_of_nothing(files: usize, others: usize) -> Vec<u8> {
    let part = |name| format!("--edge\r\ncontent-disposition: form-data; name={name}\r\n\r\n\r\n");
    [part("image").repeat(files), part("x").repeat(others), "--edge--\r\n".to_owned()].concat().into_bytes()
}

#[test]
fn a_form_of_more_parts_than_allowed_is_413() {
    let server = server();
    let content_type = "multipart/form-data; boundary=edge";
    assert_error(&server.post(PATH, content_type, &form_of_nothing(1025, 0)), 413, &["form has more than 1024 files"]);
    // What comes after the first too many is not looked at, broken as it is.
    let cut = [&form_of_nothing(1025, 0)[..], b"--edge\r\nbroken"].concat();
    assert_error(&server.post(PATH, content_type, &cut), 413, &["form has more than 1024 files"]);
    let others = form_of_nothing(1, 1025);
    assert_error(&server.post(PATH, content_type, &others), 413, &["form has more than 1024 parts that are no files"]);
    assert_error(&server.post(PATH, content_type, &form_of_nothing(2, 1024)), 400, &["part 0: ", "got 0 bytes"]);
}

#[test]
fn bombs_are_413_and_cost_no_memory() {
    // One of its own: what others ask at the same time would count.
    let server = Unharmed(Arc::new(Server::start(&one_at_a_time())));
    let bomb = bomb();
    assert!(bomb.len() < 2_000_000, "{}", bomb.len());
    assert_eq!(server.post(PATH, "image/png", &photo("coffee.png")).status, 200);
    let before = server.memory_kib("VmHWM:");
    for _ in 0..20 {
        assert_error(&server.post(PATH, "image/png", &bomb), 413, &["20000x20000", "at most 50000000"]);
    }
    let list = format!(r#"{{"images": [""{}]}}"#, r#","""#.repeat(600_000));
    assert_error(&server.post(PATH, "application/json", list.as_bytes()), 413, &["request has 600001 samples"]);
    let grown = server.memory_kib("VmHWM:") - before;
    assert!(
        grown < 32 << 10,
        "the peak grew by {grown} KiB; a decoded PNG takes 400 MB, a list of 600,001 texts 60 MB"
    );
}

#[test]
fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let server = server();
    let head =
        "POST /predict/espresso HTTP/1.1\r\nhost: t\r\ncontent-type: image/png\r\ncontent-length: 9000000000\r\n\r\n";
    let mut connection = server.connect();
    connection.write(head.as_bytes()).unwrap();
    // Not one byte of the body was sent, and here is the answer.
    assert_error(&connection.read().unwrap(), 413, &["body is 9000000000 bytes; expected at most 2000000"]);
}

#[test]
fn a_client_that_waits_to_be_asked_is_told_at_once() {
    let server = server();
    let head = "POST /predict/espresso HTTP/1.1\r\nhost: t\r\ncontent-type: image/png\r\nexpect: 100-continue\r\n";
    let mut connection = server.connect();
    connection.write(format!("{head}content-length: 3000000\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(connection.read().unwrap().status, 413, "and not 100");
}

#[test]
fn a_body_that_hides_its_length_is_refused_at_the_limit() {
    let server = server();
    let mut connection = server.connect();
    let head =
        "POST /predict/espresso HTTP/1.1\r\nhost: t\r\ncontent-type: image/png\r\ntransfer-encoding: chunked\r\n\r\n";
    connection.write(head.as_bytes()).unwrap();
    let chunk = [b"10000\r\n".as_slice(), &[0; 0x10000], b"\r\n"].concat();
    // The server may have answered and hung up before all is written; what counts is the answer.
    for _ in 0..40 {
        if connection.write(&chunk).is_err() {
            break;
        }
    }
    assert_error(&connection.read().unwrap(), 413, &["expected at most 2000000 bytes"]);
}

#[test]
fn a_refused_client_that_goes_on_sending_still_sees_its_answer() {
    let server = server();
    let body = vec![0; 20_000_000];
    let mut connection = server.connect();
    let all = request("POST", "/predict/espresso", &[("content-type", "image/png")], &body);
    // Nobody resets the connection while we are still writing.
    connection.write(&all).unwrap();
    assert_eq!(connection.read().unwrap().status, 413);
}
