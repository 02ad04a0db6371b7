//! A WebSocket as a stream of bytes.
//!
//! Memory does not depend on the lengths that a peer announces, because data is decoded in the
//! reader's own buffer. The stream keeps one message that the network has not taken yet, and the
//! answer to the newest ping.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite};

use super::frame::{self, Control, Decoder, MAX_SENT_LEN, Opcode, Role, Signal, Violation};
use crate::native::behaviours::forwarded::Noted;

/// A reader with less room than this is served from a buffer on the stack, so that it does not take
/// the head of a frame byte by byte from the kernel. Negotiations read in this way. Noise reads
/// with 8 KiB.
const SMALL_READ: usize = 1024;

/// The capacity of the write buffer that is kept between two messages.
const IDLE_CAPACITY: usize = 4 * 1024;

/// The status code of a connection that has done its work (RFC 6455 section 7.4.1).
const NORMAL: u16 = 1000;

/// The status code that stands for the absence of one. It is never sent (RFC 6455 section 7.4.1).
const NO_CODE: u16 = 1005;

/// A connection after the opening handshake.
#[derive(Debug)]
pub(crate) struct WebSocketStream<S> {
    inner: S,
    role: Role,
    decoder: Decoder,
    /// Data that a small reader had no room for. The bytes before `taken` have been read.
    rest: Vec<u8>,
    taken: usize,
    /// Frames for the network. It has taken the bytes before `sent`.
    out: Vec<u8>,
    sent: usize,
    /// The ping that is to be answered. RFC 6455 section 5.5.3: of several pings, only the newest
    /// needs an answer.
    pong: Option<Control>,
    /// A writer waits for `inner`. `inner` remembers only one waiting writer, so a reader must not
    /// write.
    writer_waits: bool,
    close_sent: bool,
    /// The network takes nothing more. What the peer sent before is still to be read.
    deaf: bool,
    /// Whether the reader knows of the end.
    end_told: bool,
    /// How reading ended.
    end: Option<Result<(), Violation>>,
    #[expect(dead_code, reason = "it lasts as long as the stream by being there")]
    kept: Option<Noted>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocketStream<S> {
    /// Makes the stream over `inner`. `bytes` are those that the peer sent after its part of the
    /// handshake.
    ///
    /// # Errors
    /// Fails when these bytes break the protocol.
    pub(crate) fn new(inner: S, role: Role, bytes: Vec<u8>) -> io::Result<Self> {
        let mut stream = Self {
            inner,
            role,
            decoder: Decoder::new(role),
            rest: bytes,
            taken: 0,
            out: Vec::new(),
            sent: 0,
            pong: None,
            writer_waits: false,
            close_sent: false,
            deaf: false,
            end_told: false,
            end: None,
            kept: None,
        };
        let mut bytes = std::mem::take(&mut stream.rest);
        let data = stream.receive(&mut bytes)?;
        bytes.truncate(data);
        stream.rest = bytes;
        Ok(stream)
    }

    /// Drops `kept` with the stream.
    pub(crate) fn keep(self, kept: Option<Noted>) -> Self {
        Self { kept, ..self }
    }

    /// Decodes `bytes` in place: moves data to the front, and returns the length of the data.
    fn receive(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let (mut pong, mut close) = (None, None);
        let decoded = self.decoder.decode(bytes, |signal| match signal {
            Signal::Ping(payload) => pong = Some(payload),
            Signal::Close(code) => close = Some(code),
        });
        self.pong = pong.or(self.pong);
        match decoded {
            Ok(_) if close.is_none() => {}
            Ok(_) => {
                self.end = Some(Ok(()));
                // RFC 6455 section 5.5.1: an endpoint "typically echos the status code".
                self.say_close(close.unwrap_or(NO_CODE));
            }
            Err(violation) => {
                self.end = Some(Err(violation));
                self.say_close(violation.code());
            }
        }
        decoded.map_err(invalid)
    }

    fn say(&mut self, opcode: Opcode, payload: &[u8]) {
        // RFC 6455 section 10.3: whoever chooses the payload must not be able to predict the key.
        let mask = (self.role == Role::Client).then(rand::random);
        frame::encode(opcode, payload, mask, &mut self.out);
    }

    fn say_close(&mut self, code: u16) {
        if !std::mem::replace(&mut self.close_sent, true) {
            // RFC 6455 section 5.5.1: nothing follows a close, not even a pong.
            self.pong = None;
            let code = code.to_be_bytes();
            let payload = if code == NO_CODE.to_be_bytes() {
                &[][..]
            } else {
                &code
            };
            self.say(Opcode::Close, payload);
        }
    }

    /// Writes the bytes that wait to `inner`.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            while self.sent < self.out.len() {
                let unsent = &self.out[self.sent..];
                match ready!(Pin::new(&mut self.inner).poll_write(cx, unsent))? {
                    0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                    sent => self.sent += sent,
                }
            }
            self.sent = 0;
            self.out.clear();
            self.out.shrink_to(IDLE_CAPACITY);
            match self.pong.take() {
                Some(pong) if !self.close_sent => self.say(Opcode::Pong, pong.payload()),
                _ => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Drains as [`poll_drain`](Self::poll_drain) does, for a caller that writes. The end of the connection is
    /// no failure here, because it shows when everything has been read.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let drained = match self.poll_drain(cx) {
            Poll::Ready(Err(error)) if is_gone(error.kind()) => {
                (self.deaf, self.sent) = (true, 0);
                self.out.clear();
                Poll::Ready(Ok(()))
            }
            drained => drained,
        };
        self.writer_waits = drained.is_pending();
        drained
    }

    /// Sends pongs and the answer to a close, for a caller that only reads. A failure shows when it
    /// reads.
    fn answer(&mut self, cx: &mut Context<'_>) {
        let has_words = self.pong.is_some() || !self.out.is_empty();
        if has_words && !self.writer_waits && self.poll_drain(cx).is_ready() {
            let _ = Pin::new(&mut self.inner).poll_flush(cx);
        }
    }

    /// Takes data that has been decoded, without asking the network.
    fn take_rest(&mut self, out: &mut [u8]) -> usize {
        let rest = &self.rest[self.taken..];
        let count = rest.len().min(out.len());
        out[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        if self.taken == self.rest.len() {
            (self.rest, self.taken) = (Vec::new(), 0);
        }
        count
    }

    /// Reads from the network into `out`, and decodes the bytes there. Returns `None` at the end.
    fn poll_receive(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<Option<usize>>> {
        let read = ready!(Pin::new(&mut self.inner).poll_read(cx, out))?;
        if read > 0 {
            return Poll::Ready(self.receive(&mut out[..read]).map(Some));
        }
        if !self.decoder.is_between_frames() {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        // A peer that hangs up without a close frame sends nothing more either.
        self.end = Some(Ok(()));
        Poll::Ready(Ok(None))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for WebSocketStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if out.is_empty() {
            return Poll::Ready(Ok(0));
        }
        loop {
            this.answer(cx);
            let count = this.take_rest(out);
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
            if let Some(end) = this.end {
                this.end_told = true;
                return Poll::Ready(end.map(|()| 0).map_err(invalid));
            }
            let received = if out.len() < SMALL_READ {
                let mut bytes = [0; SMALL_READ];
                let received = ready!(this.poll_receive(cx, &mut bytes));
                if let Ok(Some(data)) = received {
                    this.rest.extend_from_slice(&bytes[..data]);
                }
                received.map(|_| 0)
            } else {
                ready!(this.poll_receive(cx, out)).map(Option::unwrap_or_default)
            };
            match received {
                Ok(0) => {}
                received => {
                    this.answer(cx);
                    return Poll::Ready(received);
                }
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for WebSocketStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // Whoever has closed reads nothing more. An error would end the connection before the last words of the
        // peer are read, which may have come with its close frame.
        if (this.end.is_some() || this.deaf) && !this.end_told {
            return Poll::Ready(Ok(data.len()));
        }
        if this.close_sent || this.deaf {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(this.poll_send(cx))?;
        let data = &data[..data.len().min(MAX_SENT_LEN)];
        if !data.is_empty() {
            this.say(Opcode::Binary, data);
            // The network usually takes the message at once. The rest waits for the next write or a
            // flush.
            if let Poll::Ready(Err(error)) = this.poll_send(cx) {
                return Poll::Ready(Err(error));
            }
            this.writer_waits = false;
        }
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(cx))?;
        if this.deaf {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut this.inner).poll_flush(cx)
    }

    /// Sends a close frame and ends this direction. The caller that goes on reading reads the
    /// answer.
    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.say_close(NORMAL);
        ready!(this.poll_send(cx))?;
        if this.deaf {
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut this.inner).poll_flush(cx))?;
        Pin::new(&mut this.inner).poll_close(cx)
    }
}

/// Whether the peer has hung up.
fn is_gone(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset)
}

fn invalid(violation: Violation) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, violation)
}

#[cfg(test)]
mod tests {
    use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _, future};
    use libp2p::tcp::tokio::TcpStream;
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    async fn tcp() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        let dial = socket.connect(listener.local_addr().unwrap());
        let (client, (server, _)) = future::try_join(dial, listener.accept()).await.unwrap();
        (TcpStream(client), TcpStream(server))
    }

    async fn pair() -> (WebSocketStream<TcpStream>, WebSocketStream<TcpStream>) {
        let (client, server) = tcp().await;
        (
            WebSocketStream::new(client, Role::Client, vec![]).unwrap(),
            WebSocketStream::new(server, Role::Server, vec![]).unwrap(),
        )
    }

    /// A client whose bytes the test writes, and a server stream.
    async fn raw() -> (TcpStream, WebSocketStream<TcpStream>) {
        let (client, server) = tcp().await;
        (
            client,
            WebSocketStream::new(server, Role::Server, vec![]).unwrap(),
        )
    }

    fn frame(opcode: Opcode, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        frame::encode(opcode, payload, Some([1, 2, 3, 4]), &mut out);
        out
    }

    #[tokio::test]
    async fn bytes_move_both_ways_and_end() {
        let (mut client, mut server) = pair().await;
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n >> 3) as u8).collect();
        let talk = async |stream: &mut WebSocketStream<TcpStream>| {
            let (mut read, mut write) = stream.split();
            let mut back = Vec::new();
            let send = async {
                write.write_all(&bytes).await.unwrap();
                write.close().await.unwrap();
            };
            future::join(send, read.read_to_end(&mut back).map(Result::unwrap)).await;
            back
        };
        let (one, other) = future::join(talk(&mut client), talk(&mut server)).await;
        assert!(one == bytes && other == bytes);
        for stream in [&client, &server] {
            assert!(stream.rest.is_empty() && stream.out.capacity() <= IDLE_CAPACITY);
        }
    }

    /// Negotiations read a length byte by byte.
    #[tokio::test]
    async fn small_reads_get_everything() {
        let (mut client, mut server) = pair().await;
        client.write_all(b"ab").await.unwrap();
        client.write_all(b"cdefg").await.unwrap();
        let mut byte = [0];
        for expected in b"abcdefg" {
            server.read_exact(&mut byte).await.unwrap();
            assert_eq!(&byte, [*expected].as_slice());
        }
    }

    #[tokio::test]
    async fn bytes_behind_the_handshake_are_read() {
        let (_client, server) = tcp().await;
        let mut bytes = frame(Opcode::Binary, b"early");
        bytes.truncate(bytes.len() - 1);
        let mut server = WebSocketStream::new(server, Role::Server, bytes).unwrap();
        let mut early = [0; 4];
        server.read_exact(&mut early).await.unwrap();
        assert_eq!(&early, b"earl");
        let (_client, server) = tcp().await;
        assert!(WebSocketStream::new(server, Role::Server, vec![0x81]).is_err());
    }

    /// However many pings come while the peer reads nothing, only one answer waits.
    #[tokio::test]
    async fn pings_are_answered_and_do_not_queue() {
        let (mut client, mut server) = raw().await;
        let mut pings = frame(Opcode::Ping, b"first");
        pings.extend(frame(Opcode::Binary, b"data"));
        client.write_all(&pings).await.unwrap();
        let mut data = [0; 4];
        server.read_exact(&mut data).await.unwrap();
        let mut pong = [0; 7];
        client.read_exact(&mut pong).await.unwrap();
        assert_eq!(&pong, b"\x8a\x05first");

        // The client reads nothing, so the server's send buffer is full.
        let full = vec![0; MAX_SENT_LEN];
        while server.write(&full).now_or_never().is_some() {}
        let mut flood = frame(Opcode::Ping, &[7; 125]).repeat(10_000);
        flood.extend(frame(Opcode::Binary, b"last"));
        let flood = async {
            client.write_all(&flood).await.unwrap();
        };
        let read = async { server.read_exact(&mut data).await.unwrap() };
        future::join(flood, read).await;
        assert_eq!(&data, b"last");
        assert!(
            server.out.len() <= MAX_SENT_LEN + 200,
            "{}",
            server.out.len()
        );
    }

    #[tokio::test]
    async fn a_close_is_answered_and_ends_reading() {
        let (mut client, mut server) = raw().await;
        let mut bytes = frame(Opcode::Binary, b"last");
        bytes.extend(frame(Opcode::Close, &3000_u16.to_be_bytes()));
        client.write_all(&bytes).await.unwrap();
        let mut read = Vec::new();
        server.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"last");
        let mut close = [0; 4];
        client.read_exact(&mut close).await.unwrap();
        assert_eq!(&close, b"\x88\x02\x0b\xb8");
        assert!(server.write(b"more").await.is_err());
    }

    /// A page that is closed says goodbye, and its close frame may come in the same segment.
    #[tokio::test]
    async fn a_close_does_not_fail_a_writer_before_everything_is_read() {
        let (mut client, mut server) = raw().await;
        let mut bytes = frame(Opcode::Binary, b"last words");
        bytes.extend(frame(Opcode::Close, &1001_u16.to_be_bytes()));
        client.write_all(&bytes).await.unwrap();
        let mut word = [0; 4];
        server.read_exact(&mut word).await.unwrap();
        server
            .write_all(b"an answer that nobody reads")
            .await
            .unwrap();
        server.flush().await.unwrap();
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b" words");
        assert!(server.write(b"more").await.is_err());
    }

    #[tokio::test]
    async fn a_breach_is_answered_and_reported_on_every_read() {
        let (mut client, mut server) = raw().await;
        client
            .write_all(b"\x82\xff\x00\x00\x00\x00\x0f\xa0\x00\x00")
            .await
            .unwrap();
        let mut byte = [0];
        for _ in 0..2 {
            let error = server.read(&mut byte).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let mut close = [0; 4];
        client.read_exact(&mut close).await.unwrap();
        assert_eq!(&close, b"\x88\x02\x03\xf1");
    }

    #[tokio::test]
    async fn an_incomplete_frame_is_an_error() {
        for (bytes, is_clean) in [
            (&frame(Opcode::Binary, b"whole")[..], true),
            (b"\x82", false),
        ] {
            let (mut client, mut server) = raw().await;
            client.write_all(bytes).await.unwrap();
            client.close().await.unwrap();
            let end = server.read_to_end(&mut Vec::new()).await;
            assert_eq!(end.is_ok(), is_clean);
        }
    }
}
