//! A web server that answers as a test says: whole, cut, silent, or not as it should.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

/// Between two bytes of an answer that drips.
const DRIP_PAUSE: Duration = Duration::from_millis(50);

/// A request.
#[derive(Debug, Clone)]
pub struct Asked {
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    announced: Option<u64>,
    stays: bool,
    drips: bool,
}

impl Answer {
    pub fn new(status: u16, body: &[u8]) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.to_owned(),
            announced: Some(body.len() as u64),
            stays: false,
            drips: false,
        }
    }

    /// The file, or the part of it that was asked for.
    pub fn file(asked: &Asked, file: &[u8], etag: &str) -> Self {
        let start = asked.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-'));
        let same = asked.header("if-range").is_none_or(|tag| tag == etag);
        let answer = match start.filter(|_| same) {
            None => Self::new(200, file),
            Some(start) => {
                let start: usize = start.parse().unwrap();
                let range = format!("bytes {start}-{}/{}", file.len() - 1, file.len());
                Self::new(206, &file[start..]).with("content-range", &range)
            }
        };
        answer.with("etag", etag)
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Announces the whole body and sends less of it.
    pub fn cut_at(mut self, bytes: usize) -> Self {
        self.body.truncate(bytes);
        self
    }

    pub fn announcing(mut self, bytes: Option<u64>) -> Self {
        self.announced = bytes;
        self
    }

    /// Sends a byte now and then.
    pub fn dripping(mut self) -> Self {
        self.drips = true;
        self
    }

    /// Says nothing more, and leaves it to the client to close.
    pub fn then_silent(mut self) -> Self {
        self.stays = true;
        self
    }
}

type Reply = dyn Fn(&Asked, usize) -> Answer + Send + Sync;

/// A server on a free port. It answers one request for each connection, and ends when dropped.
pub struct Site {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Asked>>>,
    sent: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Site {
    /// Answers by a function of the request and of how many came before it.
    pub fn new(reply: impl Fn(&Asked, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, sent, over) = (Arc::default(), Arc::default(), Arc::new(AtomicBool::new(false)));
        let reply: Arc<Reply> = Arc::new(reply);
        let accepting = {
            let (seen, sent, over) = (Arc::clone(&seen), Arc::clone(&sent), Arc::clone(&over));
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let (reply, seen, sent) = (Arc::clone(&reply), Arc::clone(&seen), Arc::clone(&sent));
                    std::thread::spawn(move || converse(stream, &*reply, &seen, &sent));
                }
            })
        };
        Self { address, seen, sent, over, accepting: Some(accepting) }
    }

    /// Serves one file to whoever asks, whatever the path.
    pub fn of(file: &[u8]) -> Self {
        let file = file.to_owned();
        Self::new(move |asked, _| Answer::file(asked, &file, "\"v1\""))
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn seen(&self) -> Vec<Asked> {
        self.seen.lock().unwrap().clone()
    }

    /// Bytes of bodies that were sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
        let _ = self.accepting.take().map(JoinHandle::join);
    }
}

/// A client that leaves ends this with an error that nobody needs.
fn converse(stream: TcpStream, reply: &Reply, seen: &Mutex<Vec<Asked>>, sent: &AtomicU64) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let asked = read(&mut reader)?;
    let before = {
        let mut seen = seen.lock().unwrap();
        seen.push(asked.clone());
        seen.len() - 1
    };
    let answer = reply(&asked, before);
    write(stream, &answer, sent)?;
    if answer.stays {
        let _ = reader.read(&mut [0]);
    }
    Some(())
}

fn read(reader: &mut impl BufRead) -> Option<Asked> {
    let mut lines = reader.lines().map_while(Result::ok);
    let path = lines.next()?.split(' ').nth(1)?.to_owned();
    let mut headers = Vec::new();
    for line in lines {
        let Some((name, value)) = line.split_once(": ") else { break };
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    Some(Asked { path, headers })
}

fn write(mut stream: TcpStream, answer: &Answer, sent: &AtomicU64) -> Option<()> {
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if let Some(bytes) = answer.announced {
        head.push_str(&format!("content-length: {bytes}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    for part in answer.body.chunks(if answer.drips { 1 } else { 1 << 16 }) {
        if answer.drips {
            std::thread::sleep(DRIP_PAUSE);
        }
        stream.write_all(part).ok()?;
        sent.fetch_add(part.len() as u64, Ordering::Relaxed);
    }
    stream.flush().ok()
}
