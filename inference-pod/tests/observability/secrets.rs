//! Nothing that clients or the environment keep secret is told by anything that tells.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    path::Path,
    sync::{Arc, Mutex},
};

use proptest::prelude::*;
use serde_json::json;

use crate::{
    body,
    common::{self, Connection, Server, Setup, eventually, get, item, request},
};

/// A collector that takes spans, keeps their bytes, and says that something is wrong with it.
struct Sink {
    endpoint: String,
    kept: Arc<Mutex<Vec<u8>>>,
}

impl Sink {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let kept = Arc::<Mutex<Vec<u8>>>::default();
        let writer = Arc::clone(&kept);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let mut reader = BufReader::new(stream);
                let mut length = 0;
                loop {
                    let mut line = String::new();
                    if reader.read_line(&mut line).unwrap_or(0) <= 2 {
                        break;
                    }
                    if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                }
                // Not the headers: those are for the collector.
                let mut body = vec![0; length];
                if reader.read_exact(&mut body).is_ok() {
                    writer.lock().unwrap().extend(body);
                }
                let answer = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = reader.get_mut().write_all(answer);
            }
        });
        Self { endpoint, kept }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.kept.lock().unwrap()).into_owned()
    }
}

/// The forms that secrets have; each knows what marks it. E-mail addresses and pins are what the config's patterns match.
const SHAPES: [fn(&str) -> String; 20] = [
    |mark| format!("Bearer {mark}"),
    |mark| format!("api_key={mark}"),
    |mark| format!("https://bob:{mark}@host/x"),
    |mark| format!("eyJhbGciOiJIUzI1NiJ9.{mark}.{mark}"),
    |mark| format!("{mark}@example.com"),
    |mark| format!("pin-{mark}"),
    |mark| format!("Authorization: Token {mark}"),
    |mark| format!("Cookie: a=b; session={mark}"),
    |mark| format!(r#"{{"password":"two {mark}"}}"#),
    |mark| format!(r#"{{"tokens":["a]","{mark}"]}}"#),
    |mark| format!(r#"{{"secret":{{"value":"{mark}"}}}}"#),
    |mark| format!("https://bob:p@{mark}@host/x"),
    |mark| format!("https://bob:pa/{mark}@host/x"),
    |mark| format!("https://{mark}@host/x"),
    |mark| format!("https://host/x?X-Amz-Signature={mark}"),
    |mark| format!("AccountKey={mark}"),
    |mark| format!("passphrase={mark}"),
    |mark| format!("api_key%3D{mark}"),
    |mark| format!("hf_{mark}0123456789"),
    |mark| format!("-----BEGIN PRIVATE KEY-----{mark}"),
];
const PATTERNS: &str = r"['[\w.+-]+@[\w-]+\.[a-z]+', '\bpin-\w+']";

/// A secret wherever a client, a config or the surroundings may have one.
#[derive(Debug, Clone)]
struct Planted {
    mark: String,
    /// Of [`SHAPES`]: in bodies, request ids, correlation ids, baggage and the config.
    shapes: [usize; 5],
    /// Which requests are sent.
    seed: u64,
}

fn planted() -> impl Strategy<Value = Planted> {
    ("Zq[a-zA-Z0-9]{10}", proptest::array::uniform5(0..SHAPES.len()), any::<u64>())
        .prop_map(|(mark, shapes, seed)| Planted { mark, shapes, seed })
}

impl Planted {
    fn secret(&self, place: usize) -> String {
        SHAPES[self.shapes[place]](&self.mark)
    }

    /// Requests that go well and such that do not: path, content type, and body.
    fn requests(&self) -> Vec<(String, String, String)> {
        let (mark, secret) = (self.mark.as_str(), self.secret(0));
        let quoted = secret.as_str();
        let bodies = [
            json!({"inputs": [{"name": quoted, "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})
                .to_string(),
            json!({"inputs": [{"name": "input", "datatype": quoted, "shape": [1, 4], "data": [1, 2, 3, 4]}]})
                .to_string(),
            json!({"inputs": [{"name": "input", "datatype": "FP32", "shape": quoted, "data": [1, 2, 3, 4]}]})
                .to_string(),
            json!({"inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 4], "data": [mark]}]}).to_string(),
            json!({"inputs": [], "outputs": [{"name": mark}]}).to_string(),
            json!({mark: 1}).to_string(),
            json!({"image": quoted}).to_string(),
            format!("{{\"{mark}"),
            quoted.to_owned(),
        ];
        let form = format!("multipart/form-data; boundary={mark}");
        let types = ["application/json", "image/png", "text/plain", mark, &form];
        let unknown = format!("/v2/models/{mark}/infer");
        let paths = ["/v2/models/tiny/infer", "/predict/tiny", "/predict/espresso", &unknown];
        let mut chance = fastrand::Rng::with_seed(self.seed);
        let some = |chance: &mut fastrand::Rng| {
            let path = paths[chance.usize(..paths.len())].to_owned();
            // Most as JSON, so that bodies are looked into.
            let kind = types[chance.usize(..types.len()) * chance.usize(..2)].to_owned();
            (path, kind, bodies[chance.usize(..bodies.len())].clone())
        };
        let mut all: Vec<_> = (0..60).map(|_| some(&mut chance)).collect();
        let json = || "application/json".to_owned();
        // One that goes well, and one whose run fails: its token is in no vocabulary.
        all.push((paths[0].to_owned(), json(), body().to_string()));
        let tokens =
            |name: &str, token: i64| json!({"name": name, "datatype": "INT64", "shape": [1, 1], "data": [token]});
        let inputs = json!([tokens("input_ids", 1 << 40), tokens("attention_mask", 1), tokens("token_type_ids", 0)]);
        all.push(("/v2/models/mini/infer".to_owned(), json(), json!({"inputs": inputs, "id": quoted}).to_string()));
        all
    }

    fn send(&self, server: &Server) {
        let (id, correlation, kept) = (self.secret(1), self.secret(2), self.secret(3));
        let (bearer, baggage) = (format!("Bearer {}", self.mark), format!("tenant={}", kept.replace(' ', "%20")));
        for (path, kind, body) in self.requests() {
            let path = format!("{path}?token={}", self.mark);
            let headers = [
                ("content-type", kind.as_str()),
                ("authorization", bearer.as_str()),
                ("cookie", self.mark.as_str()),
                ("x-request-id", id.as_str()),
                ("x-correlation-id", correlation.as_str()),
                ("baggage", baggage.as_str()),
                ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ];
            let mut connection = server.connect();
            connection.write(&request("POST", &path, &headers, body.as_bytes())).unwrap();
            let status = connection.read().unwrap().status;
            assert!((200..=500).contains(&status), "{status} for {path} {kind} {body}");
        }
    }

    /// What a server says that is given this config and ends with an error: on standard error, and to the operator.
    fn refused(&self, folder: &Path) -> String {
        let (config, said) = (folder.join("config.yaml"), folder.join("said"));
        let secret = self.secret(4);
        let text = format!(
            "logging: {{level: 'x=y=z {secret}'}}\nobservability: {{events: {{redact: {PATTERNS}}}}}\nmodels:\n- {{name: m, path: '/{secret}'}}\n"
        );
        fs::write(&config, text).unwrap();
        let mut command = common::program();
        command.arg("serve").arg("--config").arg(&config).arg("--termination-message").arg(&said);
        let output = command.output().unwrap();
        assert!(!output.status.success());
        let message = fs::read_to_string(&said).unwrap();
        format!("{}\n{message}", String::from_utf8_lossy(&output.stderr))
    }
}

/// Each case starts a server, so they are few.
fn cases() -> ProptestConfig {
    ProptestConfig { cases: 2, max_shrink_iters: 0, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn nothing_secret_is_in_any_sink(planted in planted()) {
        let mark = planted.mark.as_str();
        let folder = tempfile::tempdir().unwrap();
        let (file, sink) = (folder.path().join("audit.jsonl"), Sink::start());
        let tracing = format!("{{endpoint: 'http://bob:{mark}@{}', sample: 1.0, baggage: [tenant]}}", sink.endpoint);
        let events = format!("{{log: [{{events: '*'}}], audit: {{file: '{}'}}, redact: {PATTERNS}}}", file.display());
        let sections = format!("observability: {{tracing: {tracing}, events: {events}}}\n");
        let shapes = "{input_ids: [16], attention_mask: [16], token_type_ids: [16]}";
        let models = item("tiny", "tiny", "")
            + &item("mini", "minilm", &format!("options: {{warmup: {{shapes: {shapes}}}}}"))
            + &item("espresso", "efficientnet-lite0", "task: image-classification");
        let collector = format!("authorization=Bearer {mark}");
        let environment = [
            ("AWS_SECRET_ACCESS_KEY", mark),
            ("ORTOLAN_TOKEN", mark),
            ("OTEL_EXPORTER_OTLP_HEADERS", collector.as_str()),
        ];
        let setup = Setup { sections: &sections, models: &models, environment: &environment, server: "" };
        let server = Server::start_as(&setup);
        planted.send(&server);
        eventually("all is written", || {
            let written = fs::read_to_string(&file).unwrap_or_default();
            written.contains("request.failed") && !server.events("request.failed").is_empty() && !sink.text().is_empty()
        });
        let mut sinks = vec![("refused", planted.refused(folder.path()))];
        for path in ["/metrics", "/health/detailed", "/info", "/observability"] {
            sinks.push((path, get(server.admin, path).text()));
        }
        let mut scrape = Connection::open(server.admin);
        scrape.write(&request("GET", "/metrics", &[("accept", "application/openmetrics-text")], &[])).unwrap();
        let text = scrape.read().unwrap().text();
        prop_assert!(text.contains("# {trace_id="), "no exemplar in\n{}", text);
        sinks.push(("OpenMetrics", text));
        let others = server.post_json("/v2/models/tiny/infer", &json!({"inputs": []}));
        prop_assert_eq!(others.status, 400);
        sinks.push(("an answer to somebody else", others.text()));
        server.signal("INT");
        let (_, log) = server.wait();
        sinks.push(("log", log));
        sinks.push(("audit", fs::read_to_string(&file).unwrap()));
        sinks.push(("trace", sink.text()));
        for (sink, text) in sinks {
            let found = text.lines().find(|line| line.contains(mark));
            prop_assert!(found.is_none(), "{}: {}", sink, found.unwrap_or_default());
        }
    }
}
