//! Yamux, whose memory grows with what has arrived.

use std::{
    io::{self, IoSlice},
    iter,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite, future::Ready};
use libp2p::{
    core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo},
    yamux::{self, Muxer},
};

use crate::core::yamux::{Next, Splitter};

/// libp2p's yamux over a [`Pieces`].
#[derive(Clone, Debug, Default)]
pub(crate) struct Yamux(yamux::Config);

impl UpgradeInfo for Yamux {
    type Info = &'static str;
    type InfoIter = iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        self.0.protocol_info()
    }
}

impl<C> InboundConnectionUpgrade<C> for Yamux
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = Muxer<Pieces<C>>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Output>>;

    fn upgrade_inbound(self, io: C, info: Self::Info) -> Self::Future {
        self.0.upgrade_inbound(Pieces::new(io), info)
    }
}

impl<C> OutboundConnectionUpgrade<C> for Yamux
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    type Output = Muxer<Pieces<C>>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Output>>;

    fn upgrade_outbound(self, io: C, info: Self::Info) -> Self::Future {
        self.0.upgrade_outbound(Pieces::new(io), info)
    }
}

/// A connection whose peer's frames come in pieces: see [`core::yamux`](crate::core::yamux).
#[derive(Debug)]
pub(crate) struct Pieces<C> {
    inner: C,
    splitter: Splitter,
}

impl<C> Pieces<C> {
    fn new(inner: C) -> Self {
        Self {
            inner,
            splitter: Splitter::default(),
        }
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Pieces<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let Self { inner, splitter } = self.get_mut();
        loop {
            match splitter.next() {
                Next::Given => return Poll::Ready(Ok(splitter.give(out))),
                Next::Data(most) => {
                    let most = most.min(out.len());
                    let read = ready!(Pin::new(inner).poll_read(cx, &mut out[..most]))?;
                    splitter.pass(read);
                    return Poll::Ready(Ok(read));
                }
                Next::Header => {
                    let room = splitter.room();
                    match ready!(Pin::new(&mut *inner).poll_read(cx, room))? {
                        0 if splitter.is_between_frames() => return Poll::Ready(Ok(0)),
                        0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                        read => splitter.fill(read),
                    }
                }
            }
        }
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Pieces<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, data)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_close(cx)
    }
}
