//! `fetch`: a real process against a web server that misbehaves as told.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

mod archives;
#[path = "../common/mod.rs"]
mod common;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Barrier},
};

use common::{
    eventually, model,
    site::{Answer, Site},
};
use rustls::{ServerConfig, ServerConnection, StreamOwned, pki_types::PrivateKeyDer};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A model that is large enough to be cut, and nowhere the same.
fn large() -> Vec<u8> {
    (0..3_000_000_u32)
        .flat_map(|number| (number.wrapping_mul(2_654_435_761) >> 8).to_le_bytes())
        .take(8 << 20)
        .collect()
}

/// A model's folder, a termination message, and the program between them.
struct Bench {
    folder: tempfile::TempDir,
}

/// How a fetch ended.
struct Ended {
    output: Output,
    message: Option<Value>,
}

impl Bench {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    fn to(&self) -> PathBuf {
        self.folder.path().join("espresso")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.to().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.file(name)).unwrap()
    }

    /// Names of what is in the model's folder, hidden files included, but for the two that fetch leaves there always.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.to()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| ![".fetch.done", ".fetch.lock"].contains(&name.as_str()));
        names.sort();
        names
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_inference-pod"));
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.args(["fetch", "--model", "espresso", "--to"]).arg(self.to());
        command.arg("--termination-message").arg(self.folder.path().join("message")).args(flags);
        command
    }

    fn fetch(&self, flags: &[&str]) -> Ended {
        self.ended(self.command(flags).output().unwrap())
    }

    fn fetch_file(&self, url: &str, bytes: &[u8]) -> Ended {
        self.fetch(&["--uri", url, "--sha256", &sha256(bytes)])
    }

    fn start(&self, flags: &[&str]) -> Child {
        self.command(flags).spawn().unwrap()
    }

    fn ended(&self, output: Output) -> Ended {
        let message = fs::read(self.folder.path().join("message")).ok();
        Ended { output, message: message.map(|text| serde_json::from_slice(&text).unwrap()) }
    }
}

impl Ended {
    /// It went well; what it reported.
    fn report(self) -> Value {
        assert!(self.output.status.success(), "{}", self.log());
        assert_eq!(self.message, None);
        serde_json::from_slice(&self.output.stdout).unwrap()
    }

    /// It failed with that reason; its sentence.
    fn failure(self, reason: &str) -> String {
        assert_eq!(self.output.status.code(), Some(1), "{}", self.log());
        let message = self.message.as_ref().unwrap();
        assert_eq!((&message["model"], &message["reason"]), (&"espresso".into(), &reason.into()), "{message}");
        let said = message["message"].as_str().unwrap().to_owned();
        assert!(self.log().contains(&said), "{said} is not in the log: {}", self.log());
        said
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }
}

fn contains(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "expected {part:?} in {said}");
    }
}

#[test]
fn one_file_becomes_a_model_that_can_be_served() {
    let file = fs::read(model("tiny").join("model.onnx")).unwrap();
    let (site, bench) = (Site::of(&file), Bench::new());
    let report = bench.fetch_file(&site.url("/v7/whatever.onnx?token=secret"), &file).report();
    assert_eq!(bench.names(), ["model.onnx"]);
    assert_eq!((&report["model"], &report["bytes"]), (&"espresso".into(), &file.len().into()));
    assert_eq!(report["files"][0]["sha256"], sha256(&file));
    let asked = &site.seen()[0];
    assert_eq!((asked.header("range"), asked.header("accept-encoding")), (None, Some("identity")));
    let check = common::program().arg("check").arg(bench.to()).output().unwrap();
    assert!(check.status.success(), "{check:?}");
}

#[test]
fn a_folders_files_come_to_their_places() {
    let site = Site::new(|asked, _| match asked.path.as_str() {
        "/espresso/1/model.onnx" => Answer::new(200, b"graph"),
        "/espresso/my%20labels.txt" => Answer::new(200, b"cup\n"),
        _ => Answer::new(404, b""),
    });
    let bench = Bench::new();
    let (graph, labels) = (sha256(b"graph"), sha256(b"cup\n"));
    let files = [&format!("1/model.onnx={graph}"), &format!("my labels.txt={labels}")];
    let flags = ["--uri", &site.url("/espresso/"), "--file", files[0], "--file", files[1]];
    let report = bench.fetch(&flags).report();
    assert_eq!((bench.read("1/model.onnx"), bench.read("my labels.txt")), (b"graph".to_vec(), b"cup\n".to_vec()));
    assert_eq!(report["files"].as_array().unwrap().len(), 2);
    assert_eq!(report["bytes"], 9);
}

#[test]
fn several_files_come_at_the_same_time() {
    // Neither is answered before the other has been asked for.
    let both = Arc::new(Barrier::new(2));
    let site = Site::new(move |_, _| {
        both.wait();
        Answer::new(200, b"x")
    });
    let bench = Bench::new();
    let files = ["model.onnx", "labels.txt"].map(|name| format!("{name}={}", sha256(b"x")));
    bench.fetch(&["--uri", &site.url("/"), "--file", &files[0], "--file", &files[1]]).report();
    assert_eq!(bench.names(), ["labels.txt", "model.onnx"]);
}

#[test]
fn what_is_there_already_is_not_fetched_again() {
    let (site, bench) = (Site::of(b"graph"), Bench::new());
    assert_eq!(bench.fetch_file(&site.url("/model.onnx"), b"graph").report()["files"][0]["fetched"], true);
    assert_eq!(bench.fetch_file(&site.url("/model.onnx"), b"graph").report()["files"][0]["fetched"], false);
    assert_eq!(site.seen().len(), 1);
    fs::write(bench.file("model.onnx"), "something else").unwrap();
    bench.fetch_file(&site.url("/model.onnx"), b"graph").report();
    assert_eq!((site.seen().len(), bench.read("model.onnx")), (2, b"graph".to_vec()));
}

#[test]
fn another_file_than_asked_for_is_not_kept() {
    let (site, bench) = (Site::of(b"graph of last week"), Bench::new());
    let said = bench.fetch_file(&site.url("/model.onnx"), b"graph").failure("ChecksumMismatch");
    let (got, expected) = (sha256(b"graph of last week"), sha256(b"graph"));
    contains(
        &said,
        &[&site.url("/model.onnx"), "18 bytes", &got, &format!("expected {expected}"), "correct the sha256"],
    );
    assert!(bench.names().is_empty(), "{:?}", bench.names());
    assert_eq!(site.seen().len(), 1, "the same file would come again");
}

#[test]
fn an_answer_that_stays_is_not_asked_for_again() {
    for (status, reason, parts) in [
        (404, "FetchFailed", ["404 Not Found (after 1 try)", "correct the address"]),
        (410, "FetchFailed", ["410 Gone", "correct the address"]),
        (401, "CredentialsDenied", ["401 Unauthorized", "give credentials"]),
        (403, "CredentialsDenied", ["403 Forbidden", "give credentials"]),
    ] {
        let (site, bench) = (Site::new(move |_, _| Answer::new(status, b"")), Bench::new());
        let url = site.url("/model.onnx?token=secret").replace("http://", "http://user:secret@");
        let ended = bench.fetch_file(&url, b"graph");
        assert!(!ended.log().contains("secret"), "{}", ended.log());
        let said = ended.failure(reason);
        contains(&said, &[&format!("{} answered", site.url("/model.onnx"))]);
        contains(&said, &parts);
        assert_eq!(site.seen().len(), 1);
        assert_eq!(site.seen()[0].header("authorization"), Some("Basic dXNlcjpzZWNyZXQ="));
    }
}

#[test]
fn an_answer_that_may_pass_is_asked_for_again() {
    let site = Site::new(|_, before| match before {
        0 => Answer::new(500, b""),
        1 => Answer::new(429, b"").with("retry-after", "1"),
        _ => Answer::new(200, b"graph"),
    });
    let bench = Bench::new();
    let ended = bench.fetch_file(&site.url("/model.onnx"), b"graph");
    contains(&ended.log(), &["500 Internal Server Error", "429 Too Many Requests", "\"pause_seconds\":1.0"]);
    ended.report();
    assert_eq!(site.seen().len(), 3);
}

#[test]
fn trying_ends_and_says_how_often_it_was_tried() {
    let (site, bench) = (Site::new(|_, _| Answer::new(503, b"")), Bench::new());
    let flags = ["--uri", &site.url("/model.onnx"), "--sha256", &sha256(b"graph"), "--retries", "1"];
    let said = bench.fetch(&flags).failure("FetchFailed");
    contains(&said, &["given up after 2 tries", "503 Service Unavailable", "network policy"]);
    assert_eq!(site.seen().len(), 2);

    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{nobody}/model.onnx");
    let said = bench.fetch(&["--uri", &url, "--sha256", &sha256(b"x"), "--retries", "0"]).failure("FetchFailed");
    contains(&said, &[&url, "given up after 1 try:", "Connection refused"]);
}

/// A server may give a part of the part that it is asked for: RFC 9110, section 15.3.7.
#[test]
fn parts_that_are_smaller_than_asked_for_are_gone_on_from() {
    const PIECE: usize = 2_000_000;
    let file = large();
    let served = file.clone();
    let site = Site::new(move |asked, before| match asked.header("range") {
        None => Answer::file(asked, &served, "\"v1\"").cut_at(1_000_000),
        Some(range) => {
            assert!(before < 20, "it does not end");
            let start: usize = range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
            let end = served.len().min(start + PIECE);
            let range = format!("bytes {start}-{}/{}", end - 1, served.len());
            Answer::new(206, &served[start..end]).with("content-range", &range).with("etag", "\"v1\"")
        }
    });
    let bench = Bench::new();
    bench.fetch_file(&site.url("/model.onnx"), &file).report();
    assert!(bench.read("model.onnx") == file);
    assert_eq!(site.seen().len(), 1 + (file.len() - 1_000_000).div_ceil(PIECE));
    assert_eq!(site.sent(), file.len() as u64, "no byte was sent twice");
}

#[test]
fn a_broken_connection_is_gone_on_with_where_it_broke() {
    let file = large();
    let served = file.clone();
    let site = Site::new(move |asked, before| {
        let answer = Answer::file(asked, &served, "\"v1\"");
        if before == 0 { answer.cut_at(5_000_000) } else { answer }
    });
    let bench = Bench::new();
    bench.fetch_file(&site.url("/model.onnx"), &file).report();
    assert!(bench.read("model.onnx") == file);
    assert_eq!(bench.names(), ["model.onnx"]);
    let seen = site.seen();
    assert_eq!(seen.len(), 2);
    assert_eq!((seen[1].header("range"), seen[1].header("if-range")), (Some("bytes=5000000-"), Some("\"v1\"")));
    assert_eq!(site.sent(), file.len() as u64, "no byte was sent twice");
}

#[test]
fn a_server_that_cannot_go_on_starts_over() {
    let file = large();
    let served = file.clone();
    let site = Site::new(move |_, before| {
        let answer = Answer::new(200, &served).with("last-modified", "Sat, 21 Nov 2026 12:00:00 GMT");
        if before == 0 { answer.cut_at(5_000_000) } else { answer }
    });
    let bench = Bench::new();
    bench.fetch_file(&site.url("/model.onnx"), &file).report();
    assert!(bench.read("model.onnx") == file);
    assert_eq!(site.seen()[1].header("if-range"), Some("Sat, 21 Nov 2026 12:00:00 GMT"));
}

#[test]
fn pieces_that_do_not_fit_are_fetched_again_in_one() {
    let file = large();
    let served = file.clone();
    // Of the first answer the bytes are wrong, and nothing tells: no validator, and ranges are served all the same.
    let site = Site::new(move |asked, before| match before {
        0 => Answer::new(200, &vec![7; served.len()]).cut_at(5_000_000),
        _ => Answer::file(asked, &served, "\"v1\""),
    });
    let bench = Bench::new();
    let ended = bench.fetch_file(&site.url("/model.onnx"), &file);
    contains(&ended.log(), &["starting over"]);
    ended.report();
    assert!(bench.read("model.onnx") == file);
    let ranges: Vec<_> = site.seen().iter().map(|asked| asked.header("range").is_some()).collect();
    assert_eq!(ranges, [false, true, false]);
}

/// Gives half of the file to the first who asks, and leaves them waiting; all of it to the others.
fn silent_halfway(file: &[u8]) -> Site {
    let file = file.to_owned();
    Site::new(move |asked, before| {
        let answer = Answer::file(asked, &file, "\"v1\"");
        if before == 0 { answer.cut_at(5_000_000).then_silent() } else { answer }
    })
}

#[test]
fn an_ended_process_is_gone_on_with_by_the_next() {
    for signal in ["KILL", "TERM"] {
        let file = large();
        let site = silent_halfway(&file);
        let bench = Bench::new();
        let (url, digest) = (site.url("/model.onnx"), sha256(&file));
        let flags = ["--uri", &url, "--sha256", &digest, "--stall-timeout-seconds", "600"];
        let child = bench.start(&flags);
        let partial = bench.file("model.onnx.partial");
        eventually("half of it is there", || fs::metadata(&partial).is_ok_and(|file| file.len() == 5_000_000));
        assert!(!bench.file("model.onnx").exists());
        let killed = Command::new("kill").args([&format!("-{signal}"), &child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        let output = child.wait_with_output().unwrap();
        assert!(!output.status.success());
        assert_eq!(fs::metadata(&partial).unwrap().len(), 5_000_000, "what came is kept");
        if signal == "TERM" {
            contains(&bench.ended(output).failure("FetchFailed"), &["the next fetch goes on"]);
            fs::remove_file(bench.folder.path().join("message")).unwrap();
        }
        bench.fetch(&flags).report();
        assert!(bench.read("model.onnx") == file);
        assert_eq!(site.seen()[1].header("range"), Some("bytes=5000000-"));
        assert_eq!(site.sent(), file.len() as u64);
    }
}

#[test]
fn silence_ends_a_try() {
    let site = Site::new(|_, before| match before {
        0 => Answer::new(200, b"graph").cut_at(2).then_silent(),
        _ => Answer::new(200, b"").announcing(None).cut_at(0).then_silent(),
    });
    let bench = Bench::new();
    let (url, digest) = (site.url("/model.onnx"), sha256(b"graph"));
    let flags = ["--uri", &url, "--sha256", &digest, "--stall-timeout-seconds", "1", "--retries", "1"];
    let said = bench.fetch(&flags).failure("FetchFailed");
    contains(&said, &["given up after 2 tries", "no byte came for 1s"]);
}

#[test]
fn a_server_that_does_not_answer_is_told_from_one_that_cannot_be_reached() {
    // The kernel takes connections, and nobody says a word on them.
    let mute = TcpListener::bind("127.0.0.1:0").unwrap();
    let fails = |scheme: &str| {
        let url = format!("{scheme}://{}/model.onnx", mute.local_addr().unwrap());
        let flags = ["--uri", &url, "--sha256", &sha256(b"x"), "--retries", "0"];
        let times = ["--connect-timeout-seconds", "2", "--stall-timeout-seconds", "1"];
        Bench::new().fetch(&[flags.as_slice(), &times].concat()).failure("FetchFailed")
    };
    contains(&fails("http"), &["given up after 1 try", "no answer came within 3s"]);
    contains(&fails("https"), &["given up after 1 try", "no connection stood within 2s"]);
}

#[test]
fn a_server_that_drips_is_asked_again() {
    let file = large();
    let served = file.clone();
    let site = Site::new(move |asked, before| {
        let answer = Answer::file(asked, &served, "\"v1\"");
        if before == 0 { answer.dripping() } else { answer }
    });
    let bench = Bench::new();
    let (url, digest) = (site.url("/model.onnx"), sha256(&file));
    let ended = bench.fetch(&["--uri", &url, "--sha256", &digest, "--stall-timeout-seconds", "1"]);
    contains(&ended.log(), &["bytes came in 4.", "and a server that works sends 65536 at least"]);
    ended.report();
    assert!(bench.read("model.onnx") == file);
    assert!(site.seen()[1].header("range").is_some());
}

#[test]
fn what_does_not_fit_on_the_disk_is_told_before_a_byte_is_read() {
    let site = Site::new(|_, _| Answer::new(200, b"").announcing(Some(1 << 60)).then_silent());
    let bench = Bench::new();
    let said = bench.fetch_file(&site.url("/model.onnx"), b"graph").failure("OutOfDisk");
    contains(&said, &["model.onnx", "bytes free", "1152921504606846976 more are needed", "give the volume more room"]);
    assert_eq!((site.seen().len(), site.sent()), (1, 0));
}

/// A disk of its own needs a mount, which needs root; it goes with its namespace, that is with the process.
#[test]
fn a_disk_that_fills_up_says_so() {
    let works = Command::new("unshare").args(["--mount", "true"]).output().is_ok_and(|output| output.status.success());
    if !works {
        let _ = writeln!(std::io::stderr(), "left out: a disk that fills up needs root, for a mount of its own");
        return;
    }
    let file = large();
    let served = file.clone();
    // Without a length nothing can be known before.
    let site = Site::new(move |_, _| Answer::new(200, &served).announcing(None));
    let bench = Bench::new();
    fs::create_dir(bench.to()).unwrap();
    let fetch = bench.command(&["--uri", &site.url("/model.onnx"), "--sha256", &sha256(&file)]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", "mount -t tmpfs -o size=1m none \"$0\" && exec \"$@\""]).arg(bench.to());
    let output = command.arg(fetch.get_program()).args(fetch.get_args()).output().unwrap();
    let said = bench.ended(output).failure("OutOfDisk");
    contains(&said, &["no room for", "give the volume more room"]);
}

#[test]
fn a_page_for_people_and_an_empty_file_are_told_from_a_model() {
    let (site, bench) = (Site::of(b"<!DOCTYPE html><title>Log in</title>"), Bench::new());
    let said = bench.fetch_file(&site.url("/model.onnx"), b"graph").failure("InvalidModel");
    contains(&said, &[&site.url("/model.onnx"), "is an HTML page", "give the one that downloads it"]);
    let (site, bench) = (Site::of(b""), Bench::new());
    let said = bench.fetch_file(&site.url("/model.onnx"), b"").failure("InvalidModel");
    contains(&said, &["is empty"]);
    assert!(bench.names().is_empty(), "{:?}", bench.names());
}

#[test]
fn redirects_are_followed_within_bounds() {
    let site = Site::new(|asked, _| match asked.path.as_str() {
        "/model.onnx?token=secret" => Answer::new(302, b"").with("location", "/elsewhere"),
        "/elsewhere" => Answer::new(200, b"graph"),
        "/ftp.onnx" => Answer::new(302, b"").with("location", "ftp://host/model.onnx"),
        _ => Answer::new(302, b"").with("location", "/round.onnx"),
    });
    let bench = Bench::new();
    bench.fetch_file(&site.url("/model.onnx?token=secret"), b"graph").report();
    assert_eq!(site.seen()[1].header("referer"), None, "it would tell the token");
    let fails = |path: &str| Bench::new().fetch_file(&site.url(path), b"graph").failure("FetchFailed");
    contains(&fails("/round.onnx"), &["redirects where fetch does not go", "more than 10 times"]);
    contains(&fails("/ftp.onnx"), &["redirects where fetch does not go", "to ftp://"]);
}

#[test]
fn a_proxy_of_the_environment_is_used() {
    let (proxy, bench) = (Site::of(b"graph"), Bench::new());
    let mut command = bench.command(&["--uri", "http://nowhere.invalid/model.onnx", "--sha256", &sha256(b"graph")]);
    bench.ended(command.env("HTTP_PROXY", proxy.url("")).output().unwrap()).report();
    assert_eq!(proxy.seen()[0].path, "http://nowhere.invalid/model.onnx");
}

/// A server of HTTPS with a certificate that nobody knows. It gives the file, or sends to another address, and ends
/// with the process.
fn private_site(elsewhere: Option<String>) -> (String, String) {
    let known = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(known.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![known.cert.der().clone()], key)
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://localhost:{}/model.onnx", listener.local_addr().unwrap().port());
    let answer = match elsewhere {
        Some(url) => format!("HTTP/1.1 302 x\r\nlocation: {url}\r\ncontent-length: 0\r\n\r\n"),
        None => "HTTP/1.1 200 x\r\ncontent-length: 5\r\n\r\ngraph".to_owned(),
    };
    let config = Arc::new(config);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), stream);
            let mut request = [0; 4096];
            if stream.read(&mut request).is_ok() {
                let _ = stream.write_all(answer.as_bytes());
                // Until the client leaves.
                let _ = stream.read(&mut request);
            }
        }
    });
    (url, known.cert.pem())
}

#[test]
fn a_certificate_has_to_be_trusted() {
    let (url, certificate) = private_site(None);
    let bench = Bench::new();
    let said = bench.fetch_file(&url, b"graph").failure("FetchFailed");
    contains(&said, &[&url, "a certificate that is not trusted", "SSL_CERT_FILE", "UnknownIssuer"]);
    fs::remove_file(bench.folder.path().join("message")).unwrap();
    let roots = bench.folder.path().join("roots.pem");
    fs::write(&roots, certificate).unwrap();
    let mut command = bench.command(&["--uri", &url, "--sha256", &sha256(b"graph")]);
    bench.ended(command.env("SSL_CERT_FILE", &roots).output().unwrap()).report();
    assert_eq!(bench.read("model.onnx"), b"graph");
}

#[test]
fn what_was_asked_for_in_private_is_not_fetched_in_public() {
    let site = Site::of(b"graph");
    let (url, certificate) = private_site(Some(site.url("/model.onnx")));
    let bench = Bench::new();
    let roots = bench.folder.path().join("roots.pem");
    fs::write(&roots, certificate).unwrap();
    let mut command = bench.command(&["--uri", &url, "--sha256", &sha256(b"graph")]);
    let said = bench.ended(command.env("SSL_CERT_FILE", &roots).output().unwrap()).failure("FetchFailed");
    contains(&said, &["redirects where fetch does not go", "to http://"]);
    assert!(site.seen().is_empty());
}

#[test]
fn files_of_this_machine_are_copied_and_checked() {
    let source = tempfile::tempdir().unwrap();
    fs::create_dir(source.path().join("1")).unwrap();
    fs::write(source.path().join("1/model.onnx"), "graph").unwrap();
    fs::write(source.path().join("labels.txt"), "cup\n").unwrap();
    let url = |path: &str| format!("file://{}{path}", source.path().display());
    let file = url("/1/model.onnx");

    let bench = Bench::new();
    bench.fetch(&["--uri", &file]).report();
    assert_eq!((bench.names(), bench.read("model.onnx")), (vec!["model.onnx".to_owned()], b"graph".to_vec()));
    let bench = Bench::new();
    bench.fetch(&["--uri", &url("")]).report();
    assert_eq!((bench.read("1/model.onnx"), bench.read("labels.txt")), (b"graph".to_vec(), b"cup\n".to_vec()));
    let bench = Bench::new();
    bench.fetch(&["--uri", &url("/"), "--file", &format!("1/model.onnx={}", sha256(b"graph"))]).report();
    assert_eq!(bench.names(), ["1"]);

    contains(&Bench::new().fetch_file(&file, b"other").failure("ChecksumMismatch"), &["5 bytes", "1/model.onnx"]);
    let gone = Bench::new().fetch(&["--uri", &url("/gone.onnx")]).failure("FetchFailed");
    contains(&gone, &["gone.onnx: correct the address, or mount the volume", "No such file"]);
    let pipe = source.path().join("pipe.onnx");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    contains(&Bench::new().fetch(&["--uri", &url("/pipe.onnx")]).failure("FetchFailed"), &["no regular file"]);
    fs::remove_dir_all(source.path().join("1")).unwrap();
    contains(&Bench::new().fetch(&["--uri", &url("")]).failure("InvalidModel"), &["has neither model.onnx nor"]);
}

#[test]
fn wrong_flags_are_told_all_at_once_and_before_anything_else() {
    let bench = Bench::new();
    let flags = ["--uri", "s3://bucket/m.onnx", "--sha256", "12", "--file", "../model.onnx=34"];
    let said = bench.fetch(&flags).failure("InvalidOptions");
    contains(&said, &["s3:// is not built yet", "--sha256: expected", "`../model.onnx` leads out", "one of them"]);
    assert!(!bench.to().exists(), "nothing was begun");
    let zip = bench.fetch(&["--uri", "http://host/m.zip", "--sha256", &sha256(b"")]).failure("InvalidOptions");
    contains(&zip, &["expected a .onnx file, a .tar, .tar.gz or .tgz archive", "m.zip"]);
    let labels = format!("labels.txt={}", sha256(b""));
    let said = bench.fetch(&["--uri", "http://host/", "--file", &labels]).failure("InvalidModel");
    contains(&said, &["--file names no model.onnx"]);
}

#[test]
fn a_folder_that_may_not_be_written_is_named() {
    let bench = Bench::new();
    fs::write(bench.to(), "a file where the folder should be").unwrap();
    let said = bench.fetch(&["--uri", "file:///m.onnx"]).failure("FetchFailed");
    contains(&said, &[&format!("cannot write {}", Path::new(&bench.to()).display())]);
}
