//! One file over HTTP: asked for again where that may help, gone on with from where it broke off.

use std::{
    error::Error as _,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use reqwest::{
    Client, RequestBuilder, Response, StatusCode, Url,
    header::{
        ACCEPT_ENCODING, CONTENT_RANGE, ETAG, HeaderMap, HeaderName, IF_RANGE, LAST_MODIFIED, RANGE, RETRY_AFTER,
    },
    redirect,
};
use tokio::time::timeout;

use super::{
    blocking,
    error::FetchError,
    item::{Come, Item},
    partial::{Note, Partial},
    plan::Limits,
    space::Space,
    tries::{Made, Tries},
};
use crate::termination::error_chain;

/// As many as browsers follow at least.
const MOST_REDIRECTS: usize = 10;

/// A server that sends less than this in [`DRIP_STALLS`] times the longest wait for a byte might as well be silent: even a
/// small model would take days.
const DRIP_BYTES: u64 = 64 << 10;

/// See [`DRIP_BYTES`]. Several, so that a network that hangs for a while is none.
const DRIP_STALLS: u32 = 4;

/// How often a file under way is spoken of.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Why a try failed that is worth another.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// An answer that may be another one soon.
    #[error("the server answered {0}")]
    Status(StatusCode),
    /// Silence before there was a connection, TLS included.
    #[error("no connection stood within {0:?} (--connect-timeout-seconds)")]
    NotConnected(Duration),
    /// A connection, and then silence.
    #[error("no answer came within {0:?} (--connect-timeout-seconds and --stall-timeout-seconds together)")]
    NoAnswer(Duration),
    /// Silence in the middle of a file.
    #[error("no byte came for {0:?} (--stall-timeout-seconds)")]
    Stalled(Duration),
    /// Next to silence.
    #[error("only {bytes} bytes came in {time:?}, and a server that works sends {DRIP_BYTES} at least")]
    Dripping {
        /// What came.
        bytes: u64,
        /// In which time.
        time: Duration,
    },
    /// No connection, or one that broke.
    #[error(transparent)]
    Connection(reqwest::Error),
    /// Other bytes than those asked for.
    #[error("the server sent another part of the file than it was asked for")]
    WrongPart,
}

/// Why a try ended without the whole file.
enum Failure {
    Final(FetchError),
    Passing { cause: Broken, wish: Option<Duration> },
}

impl From<FetchError> for Failure {
    fn from(error: FetchError) -> Self {
        Self::Final(error)
    }
}

impl From<Broken> for Failure {
    fn from(cause: Broken) -> Self {
        Self::Passing { cause, wish: None }
    }
}

/// Why a redirect is not followed.
#[derive(Debug, thiserror::Error)]
enum NotFollowed {
    /// What was asked for in private is not fetched in public; other schemes are none of HTTP.
    #[error("to {0}://")]
    Scheme(String),
    #[error("more than {MOST_REDIRECTS} times")]
    TooOften,
}

/// Brings files over HTTP.
#[derive(Debug)]
pub struct Downloader {
    client: Client,
    limits: Limits,
    space: Arc<Space>,
    model: String,
}

impl Downloader {
    /// A client with these limits. Proxies come from the environment, certificates from the system.
    ///
    /// # Errors
    /// [`FetchError::Client`], for example where the system has no certificates.
    pub fn new(model: &str, limits: Limits, space: Arc<Space>) -> Result<Self, FetchError> {
        // Fails where a provider was chosen already, and that is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .user_agent(concat!("inference-pod/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(limits.connect_timeout)
            // An address can hold a token, which is nobody's business down the road.
            .referer(false)
            .redirect(redirect::Policy::custom(follow))
            .build()
            .map_err(FetchError::Client)?;
        Ok(Self { client, limits, space, model: model.to_owned() })
    }

    /// Brings a file beside its place.
    ///
    /// # Errors
    /// [`FetchError`]; what came so far is kept, unless it is wrong.
    pub async fn bring(&self, item: &Item, url: &Url) -> Result<Come, FetchError> {
        let mut partial = self.open(item).await?;
        let pieced = self.complete(item, url, &mut partial).await?;
        // A file may have changed between its pieces, and one without a length may have been cut unseen.
        let mut may_be_an_accident = pieced || partial.note().total.is_none();
        while let Err(error) = item.check(&partial) {
            partial.discard();
            if !may_be_an_accident {
                return Err(error);
            }
            tracing::warn!(model = self.model, url = %item.from, error = error_chain(&error), "starting over");
            partial = self.open(item).await?;
            self.complete(item, url, &mut partial).await?;
            may_be_an_accident = false;
        }
        self.written(item, 0, blocking(move || partial.finish()).await)
    }

    async fn open(&self, item: &Item) -> Result<Partial, FetchError> {
        let (beside, sha256) = (item.beside.clone(), item.sha256);
        self.written(item, 0, blocking(move || Partial::open(&beside, sha256)).await)
    }

    fn written<T>(&self, item: &Item, needed: u64, result: io::Result<T>) -> Result<T, FetchError> {
        result.map_err(|source| FetchError::writing(&item.target, source, &self.space, needed))
    }

    /// Tries until the whole file is there; whether it came in pieces.
    async fn complete(&self, item: &Item, url: &Url, partial: &mut Partial) -> Result<bool, FetchError> {
        let mut tries = Tries::new(self.limits.retries);
        let mut pieced = partial.bytes() > 0;
        while !partial.is_whole() {
            tries.begin();
            let before = partial.bytes();
            let (cause, wish) = match self.try_once(item, url, partial, tries.made()).await {
                // A server may give less than was asked for, and the rest when it is asked once more (RFC 9110, section 15.3.7).
                Ok(()) if partial.is_short() && partial.bytes() > before => {
                    pieced = true;
                    continue;
                }
                Ok(()) => break,
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Passing { cause, wish }) => (cause, wish),
            };
            let Some(pause) = tries.failed(partial.bytes(), wish, fastrand::f64()) else {
                return Err(FetchError::GivenUp { url: item.from.to_string(), tries: tries.made(), source: cause });
            };
            tracing::warn!(
                model = self.model,
                url = %item.from,
                bytes = partial.bytes(),
                tries = tries.made().0,
                pause_seconds = pause.as_secs_f64(),
                error = error_chain(&cause),
                "a try failed, there will be another"
            );
            tokio::time::sleep(pause).await;
            pieced |= partial.bytes() > 0;
        }
        Ok(pieced)
    }

    async fn try_once(&self, item: &Item, url: &Url, partial: &mut Partial, made: Made) -> Result<(), Failure> {
        let broken = |error| self.broken(item, error);
        let (connect, stall) = (self.limits.connect_timeout, self.limits.stall_timeout);
        let asked = timeout(connect + stall, self.request(url, partial).send()).await;
        let mut response = asked.map_err(|_| Broken::NoAnswer(connect + stall))?.map_err(broken)?;
        self.accept(item, &response, partial, made)?;
        let mut share = self
            .space
            .reserve(response.content_length().unwrap_or(0))
            .map_err(|room| FetchError::OutOfDisk { file: item.target.display().to_string(), room })?;
        let mut progress = Progress::new(&self.model, item, partial);
        let mut drip = Drip::new(stall * DRIP_STALLS);
        while let Some(chunk) =
            timeout(stall, response.chunk()).await.map_err(|_| Broken::Stalled(stall))?.map_err(broken)?
        {
            let length = chunk.len() as u64;
            // In place and not on another thread: this process has nothing else to do, and each file has a worker.
            self.written(item, share.left().max(length), partial.append(&chunk))?;
            share.used(length);
            progress.moved(partial.bytes());
            drip.came(length)?;
        }
        Ok(())
    }

    fn request(&self, url: &Url, partial: &Partial) -> RequestBuilder {
        // Compressed on the way, a file could not be gone on with from its middle.
        let request = self.client.get(url.clone()).header(ACCEPT_ENCODING, "identity");
        if partial.bytes() == 0 {
            return request;
        }
        let request = request.header(RANGE, format!("bytes={}-", partial.bytes()));
        // Without a validator the digest still tells whether the pieces belong together.
        match &partial.note().validator {
            Some(validator) => request.header(IF_RANGE, validator),
            None => request,
        }
    }

    /// Judges an answer by its head, and makes the file stand where the body goes on.
    fn accept(&self, item: &Item, response: &Response, partial: &mut Partial, made: Made) -> Result<(), Failure> {
        let url = || item.from.to_string();
        let status = response.status();
        let total = response.content_length();
        match status {
            StatusCode::OK => {
                let note = Note { sha256: item.sha256, validator: validator(response.headers()), total };
                self.written(item, 0, partial.begin(note))?;
                Ok(())
            }
            StatusCode::PARTIAL_CONTENT if continues(response.headers(), partial) => Ok(()),
            StatusCode::PARTIAL_CONTENT | StatusCode::RANGE_NOT_SATISFIABLE if partial.bytes() > 0 => {
                let note = Note { sha256: item.sha256, ..Note::default() };
                self.written(item, 0, partial.begin(note))?;
                Err(Broken::WrongPart.into())
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(FetchError::Denied { url: url(), status }.into()),
            _ if may_pass(status) => {
                Err(Failure::Passing { cause: Broken::Status(status), wish: retry_after(response.headers()) })
            }
            _ => Err(FetchError::Status { url: url(), status, tries: made }.into()),
        }
    }

    fn broken(&self, item: &Item, error: reqwest::Error) -> Failure {
        let url = item.from.to_string();
        if error.is_redirect() {
            return FetchError::Redirect { url, source: error.without_url() }.into();
        }
        if let Some(source) = untrusted(&error) {
            return FetchError::Certificate { url, source }.into();
        }
        if error.is_timeout() && error.is_connect() {
            return Broken::NotConnected(self.limits.connect_timeout).into();
        }
        Broken::Connection(error.without_url()).into()
    }
}

/// Whether another answer is likely before long.
fn may_pass(status: StatusCode) -> bool {
    let soon = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_EARLY, StatusCode::TOO_MANY_REQUESTS];
    soon.contains(&status) || status.is_server_error()
}

/// The server's word for this version of the file. A weak one speaks of its meaning, not of its bytes.
fn validator(headers: &HeaderMap) -> Option<String> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    text(ETAG).filter(|tag| !tag.starts_with("W/")).or_else(|| text(LAST_MODIFIED))
}

/// Whether a part (`bytes 4-7/8`) goes on where the file stands, and is of a file of the same length.
fn continues(headers: &HeaderMap, partial: &Partial) -> bool {
    let range = headers.get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some((part, total)) = range.strip_prefix("bytes ").and_then(|range| range.split_once('/')) else {
        return false;
    };
    let start = part.split_once('-').and_then(|(start, _)| start.parse().ok());
    let same_length = partial.note().total.is_none_or(|known| total == "*" || total.parse() == Ok(known));
    partial.bytes() > 0 && start == Some(partial.bytes()) && same_length
}

/// Only in seconds; a date is left to our own pauses.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok().map(Duration::from_secs)
}

fn follow(attempt: redirect::Attempt<'_>) -> redirect::Action {
    let scheme = attempt.url().scheme();
    let protected = attempt.previous().iter().any(|url| url.scheme() == "https");
    if scheme != "https" && (protected || scheme != "http") {
        let refusal = NotFollowed::Scheme(scheme.to_owned());
        return attempt.error(refusal);
    }
    if attempt.previous().len() > MOST_REDIRECTS { attempt.error(NotFollowed::TooOften) } else { attempt.follow() }
}

/// What is wrong with the server's certificate, if that is the cause. An I/O error hides what it wraps from
/// `source`, so it is asked for it.
fn untrusted(error: &reqwest::Error) -> Option<rustls::Error> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(fault @ rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return Some(fault.clone());
        }
        cause = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    None
}

/// Tells a server that drips from one that sends.
struct Drip {
    bound: Duration,
    since: Instant,
    bytes: u64,
}

impl Drip {
    fn new(bound: Duration) -> Self {
        Self { bound, since: Instant::now(), bytes: 0 }
    }

    /// So many bytes came. Whoever sends enough within the bound has another as long.
    fn came(&mut self, bytes: u64) -> Result<(), Broken> {
        self.bytes += bytes;
        if self.bytes >= DRIP_BYTES {
            *self = Self::new(self.bound);
        }
        let time = self.since.elapsed();
        if time > self.bound { Err(Broken::Dripping { bytes: self.bytes, time }) } else { Ok(()) }
    }
}

/// Speaks of a file under way now and then.
struct Progress<'a> {
    model: &'a str,
    item: &'a Item,
    total: Option<u64>,
    began: Instant,
    began_at: u64,
    spoken: Instant,
}

impl<'a> Progress<'a> {
    fn new(model: &'a str, item: &'a Item, partial: &Partial) -> Self {
        let (now, bytes, total) = (Instant::now(), partial.bytes(), partial.note().total);
        tracing::info!(model, url = %item.from, bytes, total, "fetching");
        Self { model, item, total, began: now, began_at: bytes, spoken: now }
    }

    fn moved(&mut self, bytes: u64) {
        if self.spoken.elapsed() < PROGRESS_INTERVAL {
            return;
        }
        self.spoken = Instant::now();
        let megabytes = (bytes - self.began_at) as f64 / 1e6;
        let mb_per_s = megabytes / self.began.elapsed().as_secs_f64();
        tracing::info!(model = self.model, url = %self.item.from, bytes, total = self.total, mb_per_s, "fetching");
    }
}
