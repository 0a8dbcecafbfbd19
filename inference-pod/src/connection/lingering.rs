//! A stream that is closed politely.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::{Patience, Shared};
use crate::lifecycle::{Lifecycle, Phase};

/// A stream that is closed politely: our side first, then what the client is still sending is read and thrown away for a
/// moment, so that it sees our last answer instead of a reset.
pub(super) struct Lingering<S> {
    stream: S,
    shared: Arc<Shared>,
    patience: Patience,
    lifecycle: Arc<Lifecycle>,
    closing: Option<Closing>,
}

impl<S> Lingering<S> {
    pub(super) fn new(stream: S, shared: Arc<Shared>, patience: Patience, lifecycle: Arc<Lifecycle>) -> Self {
        Self { stream, shared, patience, lifecycle, closing: None }
    }
}

/// Our side of a stream is closed.
struct Closing {
    /// When the client has paused long enough.
    paused: Pin<Box<Sleep>>,
    latest: Instant,
}

impl<S: AsyncRead + Unpin> AsyncRead for Lingering<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.shared.hears();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Lingering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buf));
        self.shared.moves();
        Poll::Ready(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bufs));
        self.shared.moves();
        Poll::Ready(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        }
        let Self { stream, shared: _, patience, lifecycle, closing } = &mut *self;
        let Closing { paused, latest } = closing.get_or_insert_with(|| Closing {
            paused: Box::pin(sleep(patience.pause)),
            latest: Instant::now() + patience.linger,
        });
        let mut waste = [0; 16 << 10];
        loop {
            if paused.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(()));
            }
            let mut buffer = ReadBuf::new(&mut waste);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut buffer)) {
                // Somebody on a slow link is still sending. The end of the process does not wait for that.
                Ok(()) if !buffer.filled().is_empty() => {
                    if lifecycle.phase() < Phase::Closing {
                        paused.as_mut().reset((Instant::now() + patience.pause).min(*latest));
                    }
                }
                // The client has closed too, or is gone.
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}
