//! `file/1`: one file, checked by its hash.
//!
//! The opener sends, in this order:
//! 1. a header as JSON after its length (four bytes, network order, at most 4096):
//!    `{"name":"a.bin","size":123}`
//! 2. the bytes, as many as `size` says
//! 3. their SHA-256, 32 bytes
//!
//! Then it half-closes. The other side answers, again as JSON after its length, with
//! `{"ok":true,"sha256":"<hex>"}` or `{"ok":false,"code":"..","message":".."}`, and half-closes. A
//! refusal may come at any time, and the sender then stops.

use std::{
    io,
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;
use futures::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
    future::{Either, select},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use throughline::{Error, ErrorKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{CHUNK, read_json, unless_stalled, violation, write_json};
use crate::output::io_error;

pub(crate) const PROTOCOL: &str = "file/1";

/// The longest name of a file in bytes. Most file systems take this length.
const MAX_NAME: usize = 255;
/// How many further names are tried if a name is taken.
const MAX_COPIES: u32 = 1000;

/// The first message of the sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) size: u64,
}

/// The answer of the receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Reply {
    ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// A file that arrived completely, as either end sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transferred {
    pub(crate) bytes: u64,
    pub(crate) sha256: String,
}

/// Why a file is not received: the code and the message of the protocol.
#[derive(Debug)]
pub(crate) struct Refusal {
    code: &'static str,
    message: String,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let kind = match refusal.code {
            "too_large" => ErrorKind::LimitExceeded,
            "disk" => ErrorKind::Io,
            "cancelled" => ErrorKind::StreamReset,
            _ => ErrorKind::ProtocolViolation,
        };
        Self::new(kind, format!("{}: {}", refusal.code, refusal.message))
    }
}

/// Sends the file at `path` under its own name. Calls `progress` with the number of bytes sent and
/// the size.
pub(crate) async fn send(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    path: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<Transferred, Error> {
    let failed = |error| io_error(format_args!("--send {}", path.display()), error);
    let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
    let metadata = file.metadata().await.map_err(failed)?;
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .filter(|_| metadata.is_file())
        .ok_or_else(|| failed(io::Error::other("this is not a file with a name in UTF-8")))?;
    let header = Header {
        name: name.to_owned(),
        size: metadata.len(),
    };
    let write = async {
        write_json(&mut writer, &header).await?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; CHUNK];
        let mut sent = 0;
        while sent < header.size {
            let most = usize::try_from(header.size - sent).map_or(CHUNK, |n| n.min(CHUNK));
            let length = file.read(&mut buffer[..most]).await.map_err(failed)?;
            if length == 0 {
                return Err(failed(io::Error::other("the file became shorter")));
            }
            hash.update(&buffer[..length]);
            unless_stalled(writer.write_all(&buffer[..length])).await?;
            sent += length as u64;
            progress(sent, header.size);
        }
        let hash = hash.finalize();
        writer.write_all(&hash).await?;
        unless_stalled(writer.close()).await?;
        Ok(HEXLOWER.encode(&hash))
    };
    let mut reply = Box::pin(read_json::<Reply>(&mut reader, "file reply"));
    futures::pin_mut!(write);
    let sha256 = match select(write, &mut reply).await {
        Either::Left((Ok(sha256), reply)) => {
            accepted(unless_stalled(async { reply.await.map_err(Into::into) }).await?)?;
            sha256
        }
        // Writing fails once the receiver has refused. The receiver's reason says more than the
        // failure.
        Either::Left((Err(error), reply)) => {
            match tokio::time::timeout(std::time::Duration::from_secs(1), reply).await {
                Ok(Ok(reply)) => accepted(reply)?,
                _ => return Err(error),
            }
            return Err(error);
        }
        // An answer before the end can only be a refusal.
        Either::Right((reply, _)) => {
            accepted(reply?)?;
            return Err(violation(
                "file reply: a success before the end of the file",
            ));
        }
    };
    drop(reply);
    // The receiver's close fails if this side stops reading before the end of the stream.
    let mut end = [0];
    let end = reader.read(&mut end);
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), end).await;
    Ok(Transferred {
        bytes: header.size,
        sha256,
    })
}

fn accepted(reply: Reply) -> Result<(), Error> {
    if reply.ok {
        return Ok(());
    }
    // A person reads this text, so only printable characters stay.
    let clean = |text: Option<String>| -> String {
        let text = text.unwrap_or_default();
        text.chars().filter(|c| !c.is_control()).take(200).collect()
    };
    let (code, message) = (clean(reply.code), clean(reply.message));
    let kind = match code.as_str() {
        "too_large" => ErrorKind::LimitExceeded,
        _ => ErrorKind::StreamReset,
    };
    Err(Error::new(
        kind,
        format!("the receiver refused the file ({code}): {message}"),
    ))
}

/// Receives a file into `directory`. The file appears there under a name of its own only when it is
/// complete and its hash is right.
pub(crate) async fn receive(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    directory: &Path,
    max_size: u64,
    mut progress: impl FnMut(&Header, u64),
) -> Result<(PathBuf, Transferred), Error> {
    let result = store(&mut reader, directory, max_size, &mut progress).await;
    let reply = match &result {
        Ok((_, transferred)) => Reply {
            ok: true,
            sha256: Some(transferred.sha256.clone()),
            code: None,
            message: None,
        },
        Err(refusal) => Reply {
            ok: false,
            sha256: None,
            code: Some(refusal.code.to_owned()),
            message: Some(refusal.message.clone()),
        },
    };
    // The sender may be gone. The result for the file matters more.
    let answered = async {
        write_json(&mut writer, &reply).await?;
        unless_stalled(writer.close()).await
    }
    .await;
    if let Err(error) = answered {
        tracing::debug!(%error, "file reply");
    }
    result.map_err(Into::into)
}

async fn store(
    reader: &mut (impl AsyncRead + Unpin),
    directory: &Path,
    max_size: u64,
    progress: &mut impl FnMut(&Header, u64),
) -> Result<(PathBuf, Transferred), Refusal> {
    let refuse = |code, message: String| Refusal { code, message };
    let cut = |error: io::Error| refuse("cancelled", error.to_string());
    // The reason is only logged, so that the sender learns nothing about local folders.
    let disk = |error: io::Error| {
        tracing::warn!(%error, "cannot store a file");
        refuse("disk", error.kind().to_string())
    };
    let header: Header = read_json(reader, "file header")
        .await
        .map_err(|error| refuse("bad_header", error.message().to_owned()))?;
    if !is_safe_name(&header.name) {
        let message = "the name is not a plain file name of 1 to 255 bytes";
        return Err(refuse("bad_name", message.to_owned()));
    }
    if header.size > max_size {
        let message = format!(
            "{} bytes are more than the limit of {max_size}",
            header.size
        );
        return Err(refuse("too_large", message));
    }
    let (mut file, temporary) = Temporary::create(directory).await.map_err(disk)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    while received < header.size {
        let most = usize::try_from(header.size - received).map_or(CHUNK, |n| n.min(CHUNK));
        let length = unless_stalled(reader.read(&mut buffer[..most]))
            .await
            .map_err(cut)?;
        if length == 0 {
            let message = format!("the file ended after {received} of {} bytes", header.size);
            return Err(refuse("cancelled", message));
        }
        hash.update(&buffer[..length]);
        file.write_all(&buffer[..length]).await.map_err(disk)?;
        received += length as u64;
        progress(&header, received);
    }
    let mut theirs = [0; 32];
    unless_stalled(reader.read_exact(&mut theirs))
        .await
        .map_err(cut)?;
    let ours = hash.finalize();
    if ours[..] != theirs {
        let message = "the bytes that arrived have another SHA-256";
        return Err(refuse("hash_mismatch", message.to_owned()));
    }
    file.sync_all().await.map_err(disk)?;
    drop(file);
    let path = temporary.publish(directory, &header.name).map_err(disk)?;
    let transferred = Transferred {
        bytes: received,
        sha256: HEXLOWER.encode(&ours),
    };
    Ok((path, transferred))
}

/// Whether `name` names a visible file in one directory on every system, and looks the same as it
/// is.
fn is_safe_name(name: &str) -> bool {
    // Direction marks make `gpj.exe` look like `exe.jpg`.
    let is_mark = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    !name.is_empty()
        && name.len() <= MAX_NAME
        && !name.starts_with('.')
        && !name.contains(['/', '\\', ':'])
        && !name.chars().any(|c| c.is_control() || is_mark(c))
}

/// A file that is not complete yet. Dropping this value removes the file.
struct Temporary(PathBuf);

impl Temporary {
    async fn create(directory: &Path) -> io::Result<(tokio::fs::File, Self)> {
        tokio::fs::create_dir_all(directory).await?;
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(io::Error::other)?;
        let path = directory.join(format!(".{}.part", HEXLOWER.encode(&nonce)));
        let file = tokio::fs::File::create_new(&path).await?;
        Ok((file, Self(path)))
    }

    /// Gives the file the name `name`, or `name (2)` and so on if the name is taken.
    fn publish(self, directory: &Path, name: &str) -> io::Result<PathBuf> {
        let (stem, extension) = match name.rsplit_once('.') {
            Some((stem, extension)) => (stem, format!(".{extension}")),
            None => (name, String::new()),
        };
        for copy in 1..=MAX_COPIES {
            let path = directory.join(match copy {
                1 => name.to_owned(),
                _ => format!("{stem} ({copy}){extension}"),
            });
            // The name is taken first, so the rename replaces only our own empty file.
            match std::fs::File::create_new(&path) {
                Ok(_) => {
                    let renamed = std::fs::rename(&self.0, &path);
                    if renamed.is_err() {
                        let _ = std::fs::remove_file(&path);
                    }
                    return renamed.map(|()| path);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After publishing, there is no such file.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{super::tests::tokio_pipe::pair, *};

    fn files(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    async fn transfer(
        source: &Path,
        directory: &Path,
        max_size: u64,
    ) -> (
        Result<Transferred, Error>,
        Result<(PathBuf, Transferred), Error>,
    ) {
        let ((reader, writer), (their_reader, their_writer)) = pair();
        tokio::join!(
            send(reader, writer, source, |_, _| {}),
            receive(their_reader, their_writer, directory, max_size, |_, _| {}),
        )
    }

    #[tokio::test]
    async fn files_arrive_whole_and_replace_none() {
        let home = tempfile::tempdir().unwrap();
        let (source, inbox) = (home.path().join("a.bin"), home.path().join("inbox"));
        for size in [0, 1, CHUNK, 300_001] {
            let bytes: Vec<u8> = (0..size).map(|n| (n * 7) as u8).collect();
            std::fs::write(&source, &bytes).unwrap();
            let (sent, received) = transfer(&source, &inbox, u64::MAX).await;
            let (path, received) = received.unwrap();
            assert_eq!(sent.unwrap(), received);
            assert_eq!(received.sha256, HEXLOWER.encode(&Sha256::digest(&bytes)));
            assert_eq!(std::fs::read(path).unwrap(), bytes);
        }
        assert_eq!(
            files(&inbox),
            ["a (2).bin", "a (3).bin", "a (4).bin", "a.bin"]
        );
    }

    #[tokio::test]
    async fn too_large_is_refused_at_its_edge_and_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let (source, inbox) = (home.path().join("a"), home.path().join("inbox"));
        std::fs::create_dir(&inbox).unwrap();
        std::fs::write(&source, vec![1; 100_000]).unwrap();
        let (sent, received) = transfer(&source, &inbox, 99_999).await;
        assert_eq!(received.unwrap_err().kind(), ErrorKind::LimitExceeded);
        let error = sent.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
        assert!(error.message().contains("99999"), "{error}");
        assert!(files(&inbox).is_empty());
        transfer(&source, &inbox, 100_000).await.1.unwrap();
    }

    async fn raw(bytes: &[u8], inbox: &Path) -> (Error, Reply) {
        let ((mut reader, mut writer), (their_reader, their_writer)) = pair();
        let write = async {
            // A refusal may end the reading before all bytes are written.
            let _ = writer.write_all(bytes).await;
            let _ = writer.close().await;
            read_json::<Reply>(&mut reader, "reply").await.unwrap()
        };
        let (reply, received) = tokio::join!(
            write,
            receive(their_reader, their_writer, inbox, 1000, |_, _| {})
        );
        (received.unwrap_err(), reply)
    }

    #[tokio::test]
    async fn what_breaks_the_protocol_is_refused_by_name_and_leaves_nothing() {
        let home = tempfile::tempdir().unwrap();
        let inbox = home.path();
        let header = |json: &str| {
            let mut bytes = (json.len() as u32).to_be_bytes().to_vec();
            bytes.extend_from_slice(json.as_bytes());
            bytes
        };
        let mut wrong_hash = header(r#"{"name":"a","size":1}"#);
        wrong_hash.extend_from_slice(&[0; 33]);
        for (bytes, code) in [
            (header(r#"{"name":"../a","size":1}"#), "bad_name"),
            (header(r#"{"name":"a","size":-1}"#), "bad_header"),
            (header("[]"), "bad_header"),
            (b"\xff\xff\xff\xff".to_vec(), "bad_header"),
            (header(r#"{"name":"a","size":1001}"#), "too_large"),
            (header(r#"{"name":"a","size":1}"#), "cancelled"),
            (wrong_hash, "hash_mismatch"),
        ] {
            let (error, reply) = raw(&bytes, inbox).await;
            assert!(!reply.ok);
            assert_eq!(reply.code.as_deref(), Some(code), "{error}");
            assert!(files(inbox).is_empty(), "{code}");
        }
    }

    #[tokio::test]
    async fn a_missing_file_is_named() {
        let ((reader, writer), _other) = pair();
        let error = send(reader, writer, Path::new("/no/such"), |_, _| {})
            .await
            .unwrap_err();
        assert!(error.message().contains("/no/such"), "{error}");
    }

    #[test]
    fn names_that_deceive_or_lead_elsewhere() {
        for good in ["a", "a.txt", "ü b (1).tar.gz", &"x".repeat(255)] {
            assert!(is_safe_name(good), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            ".bashrc",
            "a/b",
            "a\\b",
            "c:d",
            "a\nb",
            "a\0",
            "\u{202e}gpj.exe",
            &"x".repeat(256),
        ] {
            assert!(!is_safe_name(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn a_safe_name_is_one_component(name in "\\PC{0,40}") {
            if is_safe_name(&name) {
                let path = Path::new("/inbox").join(&name);
                prop_assert_eq!(path.parent(), Some(Path::new("/inbox")));
            }
        }
    }
}
