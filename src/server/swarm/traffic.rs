//! How many bytes each connection has carried.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use futures::{AsyncRead, AsyncWrite, ready};
use libp2p::{
    Multiaddr,
    core::{
        StreamMuxer,
        muxing::{StreamMuxerBox, StreamMuxerEvent, SubstreamBox},
    },
};

/// The connections whose bytes are counted, by their remote address. Clones share one map.
#[derive(Clone, Default)]
pub(super) struct Traffic(Arc<Mutex<HashMap<Multiaddr, Arc<Carried>>>>);

/// The bytes of one connection, without what its encryption and its muxer add.
#[derive(Debug, Default)]
pub(super) struct Carried {
    received: AtomicU64,
    sent: AtomicU64,
}

impl Carried {
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Traffic {
    fn lock(&self) -> MutexGuard<'_, HashMap<Multiaddr, Arc<Carried>>> {
        // A map is consistent after every call.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts what `muxer` carries, which leads to `remote`.
    pub(super) fn count(&self, muxer: StreamMuxerBox, remote: &Multiaddr) -> Counted {
        let carried = Arc::<Carried>::default();
        self.lock().insert(remote.clone(), carried.clone());
        Counted {
            muxer,
            carried,
            remote: remote.clone(),
            traffic: self.clone(),
        }
    }

    /// Returns what the connection to `remote` has carried, now and later.
    pub(super) fn of(&self, remote: &Multiaddr) -> Option<Arc<Carried>> {
        self.lock().get(remote).cloned()
    }
}

/// A muxer whose streams are counted.
pub(super) struct Counted {
    muxer: StreamMuxerBox,
    carried: Arc<Carried>,
    remote: Multiaddr,
    traffic: Traffic,
}

impl Counted {
    fn counted(&self, stream: SubstreamBox) -> CountedStream {
        CountedStream {
            stream,
            carried: self.carried.clone(),
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut connections = self.traffic.lock();
        let is_ours = |carried: &Arc<Carried>| Arc::ptr_eq(carried, &self.carried);
        // A newer connection from the same address may have replaced this one.
        if connections.get(&self.remote).is_some_and(is_ours) {
            connections.remove(&self.remote);
        }
    }
}

impl StreamMuxer for Counted {
    type Substream = CountedStream;
    type Error = io::Error;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.muxer).poll_inbound(cx))?;
        Poll::Ready(Ok(self.counted(stream)))
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let stream = ready!(Pin::new(&mut self.muxer).poll_outbound(cx))?;
        Poll::Ready(Ok(self.counted(stream)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Pin::new(&mut self.muxer).poll_close(cx)
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Pin::new(&mut self.muxer).poll(cx)
    }
}

/// A stream whose bytes are counted.
pub(super) struct CountedStream {
    stream: SubstreamBox,
    carried: Arc<Carried>,
}

impl AsyncRead for CountedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let received = &self.carried.received;
        received.fetch_add(read as u64, Ordering::Relaxed);
        Poll::Ready(Ok(read))
    }
}

impl AsyncWrite for CountedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, buffer))?;
        self.carried
            .sent
            .fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let stream = Pin::new(&mut self.stream);
        let written = ready!(stream.poll_write_vectored(cx, buffers))?;
        self.carried
            .sent
            .fetch_add(written as u64, Ordering::Relaxed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}
