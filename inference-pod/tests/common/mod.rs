//! A real server process over real models, and a client that sees every byte and every reset.

#![allow(dead_code, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may panic")]

use std::{
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde_json::Value;

pub mod site;

/// No state that a test waits for takes longer.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

#[expect(clippy::disallowed_methods, reason = "tests find the cache as the tools do")]
fn cache() -> PathBuf {
    std::env::var("ORTOLAN_CACHE").map_or_else(|_| repository().join(".cache"), PathBuf::from)
}

/// A model's folder.
pub fn model(name: &str) -> PathBuf {
    let folder = cache().join("models").join(name);
    assert!(folder.join("model.onnx").exists(), "{} is missing: run `make models` first", folder.display());
    folder
}

pub fn library() -> PathBuf {
    let library = cache().join("onnxruntime/lib/libonnxruntime.so");
    assert!(library.exists(), "{} is missing: run `make models` first", library.display());
    library
}

/// A program that is built from its Go module, such as `otelcol`, a collector of OpenTelemetry.
pub fn built(name: &str) -> PathBuf {
    let folders = fs::read_dir(cache().join("programs")).into_iter().flatten().map_while(Result::ok);
    let found = folders.map(|folder| folder.path().join(name)).filter(|path| path.exists()).max();
    let build = "cargo run -p ortolan-tests --bin cluster -- programs";
    found.unwrap_or_else(|| panic!("{name} is missing: run `{build}` first"))
}

pub fn photo(name: &str) -> Vec<u8> {
    fs::read(repository().join("deploy/samples/photos").join(name)).unwrap()
}

/// The program with the surroundings of a test: no settings of the machine it runs on.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inference-pod"));
    command.env_clear().env("ORT_DYLIB_PATH", library()).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// A server that the tests of a file share: started by the first that wants it, ended by the last that lets go, for
/// what a static holds is never dropped.
pub struct SharedServer {
    running: Mutex<Weak<Server>>,
    start: fn() -> Server,
}

impl SharedServer {
    pub const fn new(start: fn() -> Server) -> Self {
        Self { running: Mutex::new(Weak::new()), start }
    }

    pub fn get(&self) -> Arc<Server> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        running.upgrade().unwrap_or_else(|| {
            let server = Arc::new((self.start)());
            *running = Arc::downgrade(&server);
            server
        })
    }
}

/// A server process. Ended when dropped.
pub struct Server {
    child: Child,
    folder: tempfile::TempDir,
    pub address: SocketAddr,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    log: Option<JoinHandle<String>>,
    so_far: Arc<Mutex<String>>,
}

/// What a server is started with.
#[derive(Default)]
pub struct Setup<'a> {
    /// More of `server:`, behind a comma.
    pub server: &'a str,
    /// More sections of the config, with their line ends.
    pub sections: &'a str,
    /// YAML list items.
    pub models: &'a str,
    /// Variables of its environment.
    pub environment: &'a [(&'a str, &'a str)],
}

impl Server {
    /// Starts a server with these models (YAML list items) and waits until it is ready.
    pub fn start(models: &str) -> Self {
        Self::start_with("", models)
    }

    /// The same with more of `server:`.
    pub fn start_with(server: &str, models: &str) -> Self {
        Self::start_as(&Setup { server, models, ..Setup::default() })
    }

    /// The same with all that can be said.
    pub fn start_as(setup: &Setup<'_>) -> Self {
        let server = Self::start_unready_as(setup);
        let began = Instant::now();
        while get(server.admin, "/ready").status != 200 {
            assert!(began.elapsed() < PATIENCE, "not ready after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
        server
    }

    /// The same, without waiting for its models.
    pub fn start_unready(server: &str, models: &str) -> Self {
        Self::start_unready_as(&Setup { server, models, ..Setup::default() })
    }

    fn start_unready_as(setup: &Setup<'_>) -> Self {
        let Setup { server, sections, models, environment } = setup;
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.yaml");
        let text = format!(
            "server: {{host: 127.0.0.1, port: 0, grpc_port: 0, metrics_port: 0, {server}}}\nlogging: {{format: json, level: debug}}\n{sections}models:\n{models}"
        );
        fs::write(&config, text).unwrap();
        let mut command = program();
        command.envs(environment.iter().copied());
        let mut child = command.arg("serve").arg("--config").arg(&config).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, receiver) = mpsc::sync_channel(1);
        let stderr = child.stderr.take().unwrap();
        let so_far = Arc::<Mutex<String>>::default();
        let kept = Arc::clone(&so_far);
        let log = std::thread::spawn(move || collect_log(stderr, &sender, &kept));
        let Ok([port, grpc_port, admin_port]) = receiver.recv_timeout(PATIENCE) else {
            let _ = child.kill();
            panic!("the server did not start:\n{}", log.join().unwrap());
        };
        let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let (address, grpc, admin) = (local(port), local(grpc_port), local(admin_port));
        Self { child, folder, address, grpc, admin, log: Some(log), so_far }
    }

    /// What it has written on standard error so far.
    pub fn log(&self) -> String {
        self.so_far.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nobody reads its standard error while this is held.
    pub fn hold_log(&self) -> std::sync::MutexGuard<'_, String> {
        self.so_far.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines of events of that name that it has written so far.
    pub fn events(&self, name: &str) -> Vec<Value> {
        let lines = self.log();
        let events = lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["event"] == name).collect()
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal by its name, without the SIG.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for the end of the process; its status and its log.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return (status, self.log.take().unwrap().join().unwrap());
            }
            assert!(began.elapsed() < PATIENCE, "the process has not ended after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A field of /proc/PID/status in KiB.
    pub fn memory_kib(&self, field: &str) -> u64 {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub fn connect(&self) -> Connection {
        Connection::open(self.address)
    }

    pub fn get(&self, path: &str) -> Response {
        get(self.address, path)
    }

    pub fn post(&self, path: &str, content_type: &str, body: &[u8]) -> Response {
        self.connect().post(path, content_type, body)
    }

    pub fn post_json(&self, path: &str, body: &Value) -> Response {
        self.post(path, "application/json", body.to_string().as_bytes())
    }

    /// The value of one series.
    pub fn metric(&self, series: &str) -> f64 {
        let text = get(self.admin, "/metrics").text();
        let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no series {series} in\n{text}")).parse().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking()
            && let Some(log) = self.log.take()
        {
            // The log is what tells why a test failed.
            let _ = writeln!(io::stderr(), "log of the server:\n{}", log.join().unwrap_or_default());
        }
        let _ = &self.folder;
    }
}

fn collect_log(stderr: impl Read, ports: &mpsc::SyncSender<[u16; 3]>, so_far: &Mutex<String>) -> String {
    let mut log = String::new();
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        if let Ok(event) = serde_json::from_str::<Value>(&line)
            && let [Some(port), Some(grpc), Some(admin)] =
                ["port", "grpc_port", "metrics_port"].map(|name| event[name].as_u64())
        {
            let _ = ports.try_send([port, grpc, admin].map(|port| port as u16));
        }
        log.push_str(&line);
        log.push('\n');
        so_far.lock().unwrap_or_else(PoisonError::into_inner).push_str(&(line + "\n"));
    }
    log
}

/// An HTTP answer.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The connection it came on takes no further request: the server says so on one that is old.
    pub fn closes(&self) -> bool {
        self.header("connection") == Some("close")
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The sentence of an error; checks the form that every error has.
    pub fn error(&self) -> String {
        assert_eq!(self.header("content-type"), Some("application/json"), "{self:?}");
        let json = self.json();
        assert_eq!(json.as_object().unwrap().len(), 1, "{json}");
        json["error"].as_str().unwrap().to_owned()
    }
}

/// A kept connection.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(address: SocketAddr) -> Self {
        Self::try_open(address).unwrap()
    }

    pub fn try_open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    pub fn post(&mut self, path: &str, content_type: &str, body: &[u8]) -> Response {
        self.try_post(path, content_type, body).unwrap()
    }

    pub fn try_post(&mut self, path: &str, content_type: &str, body: &[u8]) -> io::Result<Response> {
        self.write(&request("POST", path, &[("content-type", content_type)], body))?;
        self.read()
    }

    /// Reads one answer.
    pub fn read(&mut self) -> io::Result<Response> {
        let status_line = self.line()?;
        let status = status_line.split(' ').nth(1).and_then(|text| text.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status line: {status_line:?}")))?;
        let mut headers = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(": ").unwrap();
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        let length = headers.iter().find(|(name, _)| name == "content-length").map_or("0", |(_, value)| value);
        let mut body = vec![0; length.parse().unwrap()];
        self.stream.read_exact(&mut body)?;
        Ok(Response { status, headers, body })
    }

    /// Reads one byte.
    pub fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.stream.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        Ok(line.trim_end().to_owned())
    }
}

/// The bytes of a request.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nhost: test\r\n").into_bytes();
    for (name, value) in headers {
        bytes.extend(format!("{name}: {value}\r\n").bytes());
    }
    if !body.is_empty() || method == "POST" {
        bytes.extend(format!("content-length: {}\r\n", body.len()).bytes());
    }
    bytes.extend(b"\r\n");
    bytes.extend(body);
    bytes
}

pub fn get(address: SocketAddr, path: &str) -> Response {
    let mut connection = Connection::open(address);
    connection.write(&request("GET", path, &[], &[])).unwrap();
    connection.read().unwrap()
}

/// A form with files.
pub fn form(files: &[(&str, &[u8])]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (name, bytes) in files {
        let head = "--edge\r\ncontent-disposition: form-data; name=\"";
        body.extend(format!("{head}{name}\"; filename=\"photo\"\r\ncontent-type: image/png\r\n\r\n").bytes());
        body.extend(*bytes);
        body.extend(b"\r\n");
    }
    body.extend(b"--edge--\r\n");
    ("multipart/form-data; boundary=edge".to_owned(), body)
}

/// A YAML list item for a model of the cache.
pub fn item(name: &str, folder: &str, more: &str) -> String {
    format!("  - {{name: {name}, path: '{}', {more}}}\n", model(folder).display())
}

/// Its tests ask what the answer is and not when it comes, and on a machine full of other tests it comes late.
pub fn classifier() -> String {
    item("espresso", "efficientnet-lite0", "task: image-classification, max_queue_ms: 60000, request_timeout_ms: 60000")
}

/// The models `tiny` and `mini`, a MiniLM that was warmed up with 16 tokens.
pub fn tiny_and_mini() -> Server {
    let shapes = "{input_ids: [16], attention_mask: [16], token_type_ids: [16]}";
    let mini = item("mini", "minilm", &format!("options: {{warmup: {{shapes: {shapes}}}}}"));
    Server::start(&(item("tiny", "tiny", "") + &mini))
}

/// Waits until the requests of 24 callers, which all wait for the model `slow`, are in its queue; then has them `leave`, and
/// checks that most of them cost no run.
pub fn leaving_costs_no_run(server: &Server, leave: impl FnOnce()) {
    eventually("all are in", || server.metric("ortolan_samples_enqueued_total{model=\"slow\"}") == 24.0);
    leave();
    eventually("the queue is empty", || server.metric("ortolan_queue_depth{model=\"slow\"}") == 0.0);
    let outcome = |outcome| server.metric(&format!("ortolan_requests_total{{model=\"slow\",outcome=\"{outcome}\"}}"));
    eventually("all are counted", || outcome("cancelled") + outcome("ok") == 24.0);
    let runs = server.metric("ortolan_batch_size_count{model=\"slow\"}");
    assert!(runs < 20.0, "{runs} runs for 24 callers that left");
}

/// Waits for a state, and prints how long it took.
pub fn eventually(what: &str, mut state: impl FnMut() -> bool) {
    let began = Instant::now();
    while !state() {
        assert!(began.elapsed() < PATIENCE, "{what}: not after {PATIENCE:?}");
        // Many tests wait at once, and a look costs the server something.
        std::thread::sleep((began.elapsed() / 10).clamp(Duration::from_millis(10), Duration::from_millis(250)));
    }
    let _ = writeln!(io::stderr(), "{what}: after {:?}", began.elapsed());
}
