//! `chat/1`: lines of UTF-8 text, or whatever a terminal's pipes carry.

use std::io;

use futures::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
    io::BufReader,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{CHUNK, violation};

pub(crate) const PROTOCOL: &str = "chat/1";

/// Longest line that is read, its newline not counted.
const MAX_LINE: usize = 16 * 1024;

/// Joins stdin and stdout to the stream until both directions have ended.
pub(crate) async fn pipe(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
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
        let mut stdout = tokio::io::stdout();
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = reader.read(&mut buffer).await?;
            if length == 0 {
                return stdout.flush().await;
            }
            stdout.write_all(&buffer[..length]).await?;
            stdout.flush().await?;
        }
    };
    // Either side may have something to say after the end of the other.
    futures::future::try_join(upload, download).await?;
    Ok(())
}

/// Calls `on_line` with each line of the peer, and sends what it gives back as a line.
pub(crate) async fn answer_lines(
    reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    mut on_line: impl FnMut(&str) -> Option<String>,
) -> Result<(), throughline::Error> {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let length = (&mut reader)
            .take(MAX_LINE as u64 + 1)
            .read_until(b'\n', &mut line)
            .await?;
        if length == 0 {
            writer.close().await?;
            return Ok(());
        }
        if line.last() == Some(&b'\n') {
            line.pop();
        } else if line.len() > MAX_LINE {
            return Err(violation(format!("chat: a line above {MAX_LINE} bytes")));
        }
        let text = std::str::from_utf8(&line).map_err(|_| violation("chat: not UTF-8"))?;
        if let Some(mut answer) = on_line(text) {
            answer.push('\n');
            writer.write_all(answer.as_bytes()).await?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::tokio_pipe::pair, *};

    async fn answers(bytes: &[u8]) -> (Result<(), throughline::Error>, String) {
        let ((mut reader, mut writer), (r, w)) = pair();
        let write = async {
            // The reader may refuse before the end.
            let _ = writer.write_all(bytes).await;
            let _ = writer.close().await;
        };
        let mut text = String::new();
        let serve = answer_lines(r, w, |line| (line != "quiet").then(|| format!("<{line}>")));
        let ((), result, _) = tokio::join!(write, serve, reader.read_to_string(&mut text));
        (result, text)
    }

    #[tokio::test]
    async fn each_line_is_answered() {
        let (result, text) = answers("a\nquiet\n\nüß\nlast".as_bytes()).await;
        result.unwrap();
        assert_eq!(text, "<a>\n<>\n<üß>\n<last>\n");
    }

    #[tokio::test]
    async fn lines_are_bounded_at_their_edge_and_utf8() {
        let mut line = vec![b'x'; MAX_LINE];
        line.push(b'\n');
        answers(&line).await.0.unwrap();
        line.insert(0, b'x');
        assert!(answers(&line).await.0.is_err());
        assert!(answers(b"\xff\n").await.0.is_err());
    }
}
