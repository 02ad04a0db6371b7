//! The application protocols that the program, its demo peer and the demo page speak.
//!
//! Each protocol runs on a stream of its own. The *opener* is the peer that opened the stream.
//!
//! | name | content |
//! | --- | --- |
//! | `echo/1` | Every byte comes back. The opener half-closes, and the other side does so after the last byte. A reset comes back with its code. |
//! | `chat/1` | UTF-8 lines that end with a newline, in both directions, at most 16 KiB each. The stdin and stdout of a terminal speak it. |
//! | `file/1` | One file from the opener. See [`file`]. |
//! | `forward/1`, `forward-listen/1` | TCP connections, where the other side allows them. See [`tunnel`]. |
//! | `pipe/1` | The bytes of stdin, in both directions, until both have ended. |
//! | `bench/1` | As many bytes as fit into a time, in either direction. See [`bench`]. |
//!
//! Every datagram comes back. See [`ticks`].

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod file;
pub(crate) mod ticks;
pub(crate) mod tunnel;

use std::{io, time::Duration};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use serde::{Serialize, de::DeserializeOwned};
use throughline::{Error, ErrorKind};

pub(crate) const ECHO: &str = "echo/1";
/// All protocols. They are configured, so that stock libp2p peers may open streams for them, too.
pub(crate) const ALL: [&str; 4] = [ECHO, chat::PROTOCOL, file::PROTOCOL, bench::PROTOCOL];

/// How many bytes are moved at a time.
pub(crate) const CHUNK: usize = 64 * 1024;
/// How long a stream may stand still in the middle of a transfer. It is longer than a connection may
/// be without a path (`resume_timeout_ms`).
pub(crate) const STALL: Duration = Duration::from_secs(180);
/// How many characters of a peer's reason are shown.
const MAX_PRINTED: usize = 200;
/// The longest JSON object of a protocol.
const MAX_JSON: usize = 4096;

/// Sends every byte back until the input ends.
pub(crate) async fn echo(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
) -> io::Result<u64> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0;
    loop {
        let length = reader.read(&mut buffer).await?;
        if length == 0 {
            writer.close().await?;
            return Ok(total);
        }
        writer.write_all(&buffer[..length]).await?;
        total += length as u64;
    }
}

/// Sends `message` as JSON after its length, which is four bytes in network order.
pub(crate) async fn write_json(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &impl Serialize,
) -> io::Result<()> {
    let json = serde_json::to_vec(message).map_err(io::Error::other)?;
    let length = u32::try_from(json.len())
        .ok()
        .filter(|length| *length as usize <= MAX_JSON)
        .ok_or_else(|| io::Error::other("the message is too long"))?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(&json);
    writer.write_all(&bytes).await
}

/// Reads a message of [`write_json`].
pub(crate) async fn read_json<T: DeserializeOwned>(
    reader: &mut (impl AsyncRead + Unpin),
    what: &str,
) -> Result<T, Error> {
    let mut length = [0; 4];
    reader.read_exact(&mut length).await?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MAX_JSON {
        return Err(violation(format!("{what}: {length} bytes are too many")));
    }
    // Memory grows with the bytes that arrive, and not by an announced length.
    let mut json = Vec::new();
    reader.take(length as u64).read_to_end(&mut json).await?;
    if json.len() < length {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    serde_json::from_slice(&json).map_err(|error| violation(format!("{what}: {error}")))
}

/// Reads a message of [`write_json`] that must come within [`STALL`].
pub(crate) async fn read_json_in_time<T: DeserializeOwned>(
    reader: &mut (impl AsyncRead + Unpin),
    what: &str,
) -> Result<T, Error> {
    let read = async { read_json(reader, what).await.map_err(io::Error::from) };
    Ok(unless_stalled(read).await?)
}

/// Returns the part of a peer's `text` that a person may read: printable characters, 200 at most.
pub(crate) fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(MAX_PRINTED)
        .collect()
}

/// Makes the error for a peer that broke a protocol.
pub(crate) fn violation(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::ProtocolViolation, message)
}

/// Waits for `future`, for [`STALL`] at most.
pub(crate) async fn unless_stalled<T>(
    future: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    match tokio::time::timeout(STALL, future).await {
        Ok(result) => result,
        Err(_) => {
            Err(Error::new(ErrorKind::Timeout, "the other side has stopped: try again").into())
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use tokio_pipe::pair;

    use super::*;

    /// Two ends of a stream in memory.
    pub(crate) mod tokio_pipe {
        use std::{
            io,
            pin::Pin,
            task::{Context, Poll},
        };

        use futures::{
            AsyncRead, AsyncReadExt as _, AsyncWrite,
            io::{ReadHalf, WriteHalf},
        };
        use tokio::io::{AsyncRead as _, AsyncWrite as _, DuplexStream, ReadBuf};

        pub(crate) struct End(DuplexStream);

        pub(crate) type Halves = (ReadHalf<End>, WriteHalf<End>);

        pub(crate) fn pair() -> (Halves, Halves) {
            let (a, b) = tokio::io::duplex(4096);
            (End(a).split(), End(b).split())
        }

        impl AsyncRead for End {
            fn poll_read(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &mut [u8],
            ) -> Poll<io::Result<usize>> {
                let mut buf = ReadBuf::new(buf);
                Pin::new(&mut self.0)
                    .poll_read(cx, &mut buf)
                    .map_ok(|()| buf.filled().len())
            }
        }

        impl AsyncWrite for End {
            fn poll_write(
                mut self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                buf: &[u8],
            ) -> Poll<io::Result<usize>> {
                Pin::new(&mut self.0).poll_write(cx, buf)
            }

            fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.0).poll_flush(cx)
            }

            fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                Pin::new(&mut self.0).poll_shutdown(cx)
            }
        }
    }

    #[tokio::test]
    async fn every_byte_is_echoed_then_the_end() {
        let ((mut reader, mut writer), (echo_reader, echo_writer)) = pair();
        let sent: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
        let copy = sent.clone();
        let write = async move {
            writer.write_all(&copy).await.unwrap();
            writer.close().await.unwrap();
        };
        let mut received = Vec::new();
        let (echoed, (), _) = tokio::join!(
            echo(echo_reader, echo_writer),
            write,
            reader.read_to_end(&mut received)
        );
        assert_eq!(echoed.unwrap(), 200_000);
        assert_eq!(received, sent);
    }

    #[tokio::test]
    async fn a_message_of_the_wrong_length_or_form_is_named() {
        for bytes in [&[0xff; 4][..], b"\0\0\0\x02[]", b"\0\0\0\x02{"] {
            let ((mut reader, _w), (_r, mut writer)) = pair();
            writer.write_all(bytes).await.unwrap();
            writer.close().await.unwrap();
            let error = read_json::<file::Header>(&mut reader, "file header")
                .await
                .unwrap_err();
            assert!(
                error.message().starts_with("file header") || error.kind() == ErrorKind::Io,
                "{error}"
            );
        }
    }
}
