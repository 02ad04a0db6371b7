//! Datagrams on a substream, for paths that carry nothing but streams. Each frame is a datagram.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};

use crate::{
    core::datagram::{self, Decoder},
    datagrams::{Carrier, Ended},
};

/// A substream of [`datagram::PROTOCOL`].
#[derive(Debug)]
pub(super) struct Framed<S> {
    substream: S,
    decoder: Decoder,
    /// The frame that is being sent.
    frame: Vec<u8>,
    /// How much of it was written.
    written: usize,
}

impl<S> Framed<S> {
    pub(super) fn new(substream: S) -> Self {
        Self {
            substream,
            decoder: Decoder::default(),
            frame: Vec::new(),
            written: 0,
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Carrier for Framed<S> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        if self.frame.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let mut substream = Pin::new(&mut self.substream);
        while let Some(rest) = self
            .frame
            .get(self.written..)
            .filter(|rest| !rest.is_empty())
        {
            match ready!(substream.as_mut().poll_write(cx, rest)) {
                Ok(written) if written > 0 => self.written += written,
                _ => return Poll::Ready(Err(Ended)),
            }
        }
        let flushed = ready!(substream.poll_flush(cx));
        self.frame.clear();
        self.written = 0;
        Poll::Ready(flushed.map_err(|_| Ended))
    }

    fn send(&mut self, datagram: Vec<u8>) {
        datagram::encode(&datagram, &mut self.frame);
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<u8>, Ended>> {
        loop {
            match self.decoder.next() {
                Ok(Some(datagram)) => return Poll::Ready(Ok(datagram)),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "a lane of datagrams ends");
                    return Poll::Ready(Err(Ended));
                }
            }
            match ready!(Pin::new(&mut self.substream).poll_read(cx, self.decoder.room())) {
                Ok(read) if read > 0 => self.decoder.received(read),
                _ => return Poll::Ready(Err(Ended)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, task::Waker};

    use super::*;
    use crate::core::datagram::MAX_LEN;

    /// A substream that has `incoming` bytes, and takes as many bytes as there is `room` for.
    #[derive(Default)]
    struct Wire {
        incoming: Vec<u8>,
        room: usize,
        taken: Vec<u8>,
    }

    impl AsyncRead for Wire {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            into: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let read = into.len().min(self.incoming.len());
            into[..read].copy_from_slice(&self.incoming[..read]);
            self.incoming.drain(..read);
            match read {
                0 => Poll::Pending,
                read => Poll::Ready(Ok(read)),
            }
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let taken = bytes.len().min(self.room);
            self.room -= taken;
            self.taken.extend(&bytes[..taken]);
            match taken {
                0 => Poll::Pending,
                taken => Poll::Ready(Ok(taken)),
            }
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// The frame that is on its way stays whole. The queue in front of it drops the oldest.
    #[test]
    fn a_substream_that_is_full_keeps_datagrams_waiting() {
        let mut cx = Context::from_waker(Waker::noop());
        let mut framed = Framed::new(Wire {
            room: 3,
            ..Wire::default()
        });
        assert_eq!(framed.poll_ready(&mut cx), Poll::Ready(Ok(())));
        framed.send(b"first".to_vec());
        assert_eq!(framed.poll_ready(&mut cx), Poll::Pending);
        framed.substream.room = 100;
        assert_eq!(framed.poll_ready(&mut cx), Poll::Ready(Ok(())));
        framed.send(b"next".to_vec());
        assert_eq!(framed.poll_ready(&mut cx), Poll::Ready(Ok(())));
        assert_eq!(framed.substream.taken, b"\0\x05first\0\x04next");
    }

    #[test]
    fn a_frame_that_is_too_long_ends_the_lane() {
        let mut wire = Wire::default();
        datagram::encode(b"x", &mut wire.incoming);
        wire.incoming.extend((MAX_LEN as u16 + 1).to_be_bytes());
        let mut framed = Framed::new(wire);
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(framed.poll_next(&mut cx), Poll::Ready(Ok(b"x".to_vec())));
        assert_eq!(framed.poll_next(&mut cx), Poll::Ready(Err(Ended)));
    }
}
