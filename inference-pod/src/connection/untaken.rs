//! Answers that their clients do not take: a client that asks for little and is answered with much could fill the memory by not reading.
//! As long as any byte of a large answer is held anywhere, in the buffers of the protocol too, its connection knows.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
};

use axum::body::{Body, Bytes};
use hyper::{
    Response,
    body::{Body as _, Frame, SizeHint},
};

use super::Shared;

/// What a connection of HTTP/1, which has one answer at a time, may hold of one that nobody watches.
const LARGE_BYTES: u64 = 256 << 10;
/// The same on HTTP/2, for each of many.
const LARGE_BYTES_HTTP2: u64 = 16 << 10;

/// One of the answers that are held; until all that has it is gone.
struct Held(Arc<Shared>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.untaken.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Bytes of a large answer.
struct Piece {
    data: Bytes,
    _held: Arc<Held>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

/// The body of a large answer.
pub(super) struct Untaken {
    body: Body,
    held: Arc<Held>,
}

impl Untaken {
    /// The same answer, known to its connection until its client has taken it, where it is large.
    pub(super) fn watch(response: Response<Body>, shared: &Arc<Shared>) -> Response<Body> {
        let is_http2 = shared.is_http2.load(Ordering::Relaxed);
        let large = if is_http2 { LARGE_BYTES_HTTP2 } else { LARGE_BYTES };
        if response.body().size_hint().lower() < large {
            return response;
        }
        shared.untaken.fetch_add(1, Ordering::AcqRel);
        shared.news.notify_one();
        let held = Arc::new(Held(Arc::clone(shared)));
        response.map(|body| Body::new(Self { body, held }))
    }
}

impl hyper::body::Body for Untaken {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.body).poll_frame(cx));
        let with_it = |data| Bytes::from_owner(Piece { data, _held: Arc::clone(&self.held) });
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(with_it))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
