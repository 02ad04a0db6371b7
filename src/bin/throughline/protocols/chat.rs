//! `chat/1`: lines of UTF-8 text, or the bytes of a terminal's stdin and stdout.

use std::io;

use futures::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
    future::{Either, select},
    io::BufReader,
};
use tokio::io::AsyncReadExt as _;

use super::{CHUNK, violation};
use crate::output::Output;

pub(crate) const PROTOCOL: &str = "chat/1";

/// The longest line that is read, without its newline.
const MAX_LINE: usize = 16 * 1024;

/// When a pipe is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Until {
    /// Both directions have ended.
    BothEnd,
    /// The peer has ended its direction. A server that ends first does not wait for stdin.
    PeerEnds,
}

/// Joins stdin and stdout to the stream.
pub(crate) async fn pipe(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    until: Until,
    output: Output,
) -> io::Result<()> {
    let upload = async {
        let mut stdin = tokio::io::stdin();
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = stdin.read(&mut buffer).await?;
            if length == 0 {
                return writer.close().await;
            }
            writer.write_all(&buffer[..length]).await?;
        }
    };
    let download = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = reader.read(&mut buffer).await?;
            if length == 0 {
                // What reads stdout sees the end, even if stdin goes on.
                return output.end_payload();
            }
            output.payload(&buffer[..length]).await?;
        }
    };
    futures::pin_mut!(upload, download);
    match (until, select(upload, download).await) {
        (_, Either::Left((sent, download))) => sent.and(download.await),
        (Until::PeerEnds, Either::Right((got, _))) => got,
        // Either side may go on to write after the other has ended.
        (Until::BothEnd, Either::Right((got, upload))) => got.and(upload.await),
    }
}

/// The lines of a peer.
pub(crate) struct Lines<R>(BufReader<R>);

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(crate) fn new(reader: R) -> Self {
        Self(BufReader::new(reader))
    }

    /// Returns the next line without its newline, or `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, throughline::Error> {
        let mut line = Vec::new();
        let length = (&mut self.0)
            .take(MAX_LINE as u64 + 1)
            .read_until(b'\n', &mut line)
            .await?;
        if length == 0 {
            return Ok(None);
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() > MAX_LINE {
            return Err(violation(format!(
                "chat: a line is longer than {MAX_LINE} bytes"
            )));
        }
        let text = String::from_utf8(line).map_err(|_| violation("chat: a line is not UTF-8"))?;
        Ok(Some(text))
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::tokio_pipe::pair, *};

    async fn lines(bytes: &[u8]) -> Result<Vec<String>, throughline::Error> {
        let ((_reader, mut writer), (reader, _writer)) = pair();
        let write = async {
            // The reader may refuse a line before the end.
            let _ = writer.write_all(bytes).await;
            let _ = writer.close().await;
        };
        let read = async {
            let (mut lines, mut read) = (Lines::new(reader), Vec::new());
            while let Some(line) = lines.next().await? {
                read.push(line);
            }
            Ok(read)
        };
        tokio::join!(write, read).1
    }

    #[tokio::test]
    async fn each_line_is_read() {
        let read = lines("a\n\nüß\nlast".as_bytes()).await;
        assert_eq!(read.unwrap(), ["a", "", "üß", "last"]);
    }

    #[tokio::test]
    async fn lines_are_bounded_at_their_edge_and_utf8() {
        let mut line = vec![b'x'; MAX_LINE];
        line.push(b'\n');
        lines(&line).await.unwrap();
        line.insert(0, b'x');
        assert!(lines(&line).await.is_err());
        assert!(lines(b"\xff\n").await.is_err());
    }
}
