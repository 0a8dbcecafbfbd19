//! What is left of a request's body when it was answered before the body was read: by a refusal, for example.
//!
//! HTTP/1 has no way to stop a sender. Left unread, the bytes make the connection useless, and a client that was not told so
//! tries to use it again and fails. So a small rest is read and thrown away, and before a large one the client is told that
//! the connection ends. HTTP/2 can stop a sender (RFC 9113, section 8.1), but some clients lose an answer that comes with that, so
//! a small rest is read there too.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http_body_util::BodyExt as _;
use hyper::{
    Request, Version,
    body::{Body, Bytes, Frame, Incoming, SizeHint},
    header::EXPECT,
};

/// A rest up to here is read: about as much as a connection's buffers hold anyway.
const SMALL_REST_BYTES: u64 = 1 << 20;

/// On HTTP/2, where a client that loses the answer to a large tensor asks again at once: as much as the rate of refusals reckons with.
const SMALL_REST_BYTES_HTTP2: u64 = 16 << 20;

/// A sender who takes longer for a small rest is not waited for.
const PATIENCE: Duration = Duration::from_secs(1);

type Place = Arc<Mutex<Option<Incoming>>>;

/// The place where a request's body comes back to, if it was not read to its end.
pub struct Leftover {
    place: Place,
    /// The client asked whether to send its body before it did; were it read now, it would be told to.
    asks_first: bool,
    is_http2: bool,
}

impl Leftover {
    /// The request with a body that comes back, and the place where it does.
    pub fn watch(request: Request<Incoming>) -> (Request<Watched>, Self) {
        let place = Place::default();
        let asks_first = request.headers().contains_key(EXPECT);
        let is_http2 = request.version() == Version::HTTP_2;
        let watched = request.map(|body| Watched { body: Some(body), place: Arc::clone(&place) });
        (watched, Self { place, asks_first, is_http2 })
    }

    /// Whether the body was read to its end.
    pub fn is_none(&self) -> bool {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Reads what is left, where it is little, also where its length is not announced. Whether the connection can go on.
    pub async fn read(self) -> bool {
        let body = self.place.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(mut body) = body else { return true };
        let most = if self.is_http2 { SMALL_REST_BYTES_HTTP2 } else { SMALL_REST_BYTES };
        if self.asks_first || body.size_hint().lower() > most {
            return false;
        }
        let rest = async {
            let mut came = 0;
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else { return false };
                came += frame.data_ref().map_or(0, |data| data.len() as u64);
                if came > most {
                    return false;
                }
            }
            true
        };
        tokio::time::timeout(PATIENCE, rest).await.unwrap_or(false)
    }
}

/// A request's body that comes back to its [`Leftover`] unless it was read to its end.
pub struct Watched {
    /// None once it has come back, or was read to its end.
    body: Option<Incoming>,
    place: Place,
}

impl Body for Watched {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => {
                let polled = Pin::new(body).poll_frame(cx);
                if matches!(polled, Poll::Ready(None)) {
                    // One without an announced length does not say by itself that it is at its end.
                    self.body = None;
                }
                polled
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(body);
        }
    }
}
