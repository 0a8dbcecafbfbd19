//! Stands in for the admin ports of pods that are only played: answers `/load` and `/info` under every address that is routed here, as
//! a server with one model would, and counts who asked how often. `/stats` tells.
//!
//! Plain threads: as many connections are open as pods are played, and each sleeps most of the time.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Samples that each pod has at any time.
const LOAD: u64 = 3;

/// Small: there are thousands of threads.
const STACK_BYTES: usize = 64 << 10;

struct Asked {
    times: u64,
    last: Instant,
    longest_gap: Duration,
}

struct StandIn {
    began: Instant,
    asked: Mutex<BTreeMap<IpAddr, Asked>>,
}

fn main() -> ExitCode {
    let listen = std::env::args().nth(1).unwrap_or_else(|| "0.0.0.0:9090".to_owned());
    match serve(&listen) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "cannot listen on {listen}: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(listen: &str) -> io::Result<()> {
    let listener = TcpListener::bind(listen)?;
    let stand_in = Arc::new(StandIn { began: Instant::now(), asked: Mutex::default() });
    for stream in listener.incoming() {
        let (stream, stand_in) = (stream?, Arc::clone(&stand_in));
        // Whoever hangs up is done.
        let talk = move || drop(stand_in.talk(stream));
        thread::Builder::new().stack_size(STACK_BYTES).spawn(talk)?;
    }
    Ok(())
}

impl StandIn {
    fn talk(&self, stream: TcpStream) -> io::Result<()> {
        let pod = stream.local_addr()?.ip();
        stream.set_nodelay(true)?;
        let (mut reader, mut writer) = (BufReader::with_capacity(1024, stream.try_clone()?), stream);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            // The rest of the head; there is no body.
            while line.trim_end() != "" {
                line.clear();
                reader.read_line(&mut line)?;
            }
            let body = self.answer(pod, &path).to_string();
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
            writer.write_all((head + &body).as_bytes())?;
        }
    }

    fn answer(&self, pod: IpAddr, path: &str) -> Value {
        match path.split('?').next().unwrap_or_default() {
            "/load" => {
                self.count(pod);
                self.load()
            }
            "/stats" => self.stats(),
            _ => json!({"models": []}),
        }
    }

    fn load(&self) -> Value {
        let uptime = self.began.elapsed().as_secs_f64();
        let model = json!({
            "name": "tiny",
            "queued": 0,
            "inflight": LOAD,
            "inflight_sample_seconds": LOAD as f64 * uptime,
            "instances": 1,
            "load_seconds": 0.1,
        });
        json!({"started": "2026-01-01T00:00:00Z", "uptime_seconds": uptime, "models": [model]})
    }

    fn count(&self, pod: IpAddr) {
        let now = Instant::now();
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let pod = asked.entry(pod).or_insert(Asked { times: 0, last: now, longest_gap: Duration::ZERO });
        pod.longest_gap = pod.longest_gap.max(now.duration_since(pod.last));
        pod.times += 1;
        pod.last = now;
    }

    /// Since the last time that somebody asked for them.
    fn stats(&self) -> Value {
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let mut gaps: Vec<f64> = asked.values().map(|pod| pod.longest_gap.as_secs_f64()).collect();
        gaps.sort_by(f64::total_cmp);
        let quantile = |percent: usize| gaps.get((gaps.len() * percent / 100).min(gaps.len().saturating_sub(1)));
        let stats = json!({
            "pods": asked.len(),
            "asked": asked.values().map(|pod| pod.times).sum::<u64>(),
            "longest_gap_p50": quantile(50),
            "longest_gap_p99": quantile(99),
            "longest_gap": gaps.last(),
        });
        asked.clear();
        stats
    }
}
