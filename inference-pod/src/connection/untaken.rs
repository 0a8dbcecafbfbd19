//! Answers that their clients do not take: large ones are handed out in pieces, so that it is known how much of them waits.
//!
//! A client that asks for little and is answered with much could fill the memory by not reading. One that takes nothing for a while is
//! left; and sooner where all that waits is too much.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use axum::body::{Body, Bytes};
use hyper::{
    Response,
    body::{Body as _, Frame, SizeHint},
};

use super::Shared;

/// A smaller answer is in the buffers of the connection at once.
const LARGE_BYTES: u64 = 256 << 10;

/// An answer is handed out in pieces of this size.
const PIECE_BYTES: usize = 128 << 10;

/// More than this that waits, of all connections, is too much.
const MOST_BYTES: usize = 256 << 20;

/// Bytes of large answers that wait to be taken.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// Whether more waits than there should.
pub(super) fn are_too_many() -> bool {
    WAITING.load(Ordering::Relaxed) > MOST_BYTES
}

/// The body of a large answer.
pub(super) struct Untaken {
    body: Body,
    /// What of the last piece of the body is not handed out yet.
    rest: Bytes,
    /// Of [`WAITING`].
    waiting: usize,
    shared: Arc<Shared>,
}

impl Untaken {
    /// The same answer, counted until its client has taken it, where it is large.
    pub(super) fn watch(response: Response<Body>, shared: &Arc<Shared>) -> Response<Body> {
        let least = response.body().size_hint().lower();
        if least < LARGE_BYTES {
            return response;
        }
        response.map(|body| {
            let waiting = usize::try_from(least).unwrap_or(usize::MAX);
            WAITING.fetch_add(waiting, Ordering::Relaxed);
            shared.untaken.fetch_add(1, Ordering::AcqRel);
            shared.news.notify_one();
            Body::new(Self { body, rest: Bytes::new(), waiting, shared: Arc::clone(shared) })
        })
    }
}

impl hyper::body::Body for Untaken {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // Somebody asks for more: what there was has been taken.
        self.shared.moves();
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                end => return Poll::Ready(end),
            }
        }
        let length = self.rest.len().min(PIECE_BYTES);
        let piece = self.rest.split_to(length);
        let told = length.min(self.waiting);
        self.waiting -= told;
        WAITING.fetch_sub(told, Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, of_body) = (self.rest.len() as u64, self.body.size_hint());
        let mut hint = SizeHint::new();
        hint.set_lower(of_body.lower() + rest);
        if let Some(upper) = of_body.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

impl Drop for Untaken {
    fn drop(&mut self) {
        WAITING.fetch_sub(self.waiting, Ordering::Relaxed);
        self.shared.untaken.fetch_sub(1, Ordering::AcqRel);
    }
}
