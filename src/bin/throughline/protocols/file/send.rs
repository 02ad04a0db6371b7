//! The sending end.

use std::{fs::File, io, time::Duration};

use data_encoding::HEXLOWER;
use futures::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
    future::{Either, select},
};
use sha2::{Digest as _, Sha256};
use throughline::{Error, ErrorKind};
use tokio::io::AsyncReadExt as _;

use super::{
    CHANGED, CHUNK, Header, Offer, Reply, Source, Start, Transferred, blocking, hex, printable,
    read_json, read_json_in_time, source, unless_stalled, violation, write_json,
};
use crate::output::io_error;

/// The form of the protocol that the receiver speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// `file/1`.
    Whole,
    /// `file/2`.
    Resumed,
}

/// Sends a file, from its beginning if it is to be `fresh`, and else from where the receiver's part ends.
/// Calls `progress` with the number of bytes that the receiver has or is being sent.
///
/// # Errors
/// [`is_changed`] tells whether the receiver had other bytes, so that another try begins anew.
pub(crate) async fn send(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    source: &Source,
    version: Version,
    fresh: bool,
    mut progress: impl FnMut(u64),
) -> Result<Transferred, Error> {
    let path = source.path.display();
    let failed = |error| io_error(format_args!("--send {path}"), error);
    let opened = source.path.clone();
    let opened = blocking(move || {
        let mut file = File::open(opened)?;
        let id = source::fingerprint(&mut file)?;
        Ok((file, id))
    });
    let (mut file, id) = opened.await.map_err(failed)?;
    let resumes = version == Version::Resumed;
    let header = Header {
        name: source.name.clone(),
        size: source.size,
        folders: if resumes {
            source.folders.clone()
        } else {
            Vec::new()
        },
        id: resumes.then(|| HEXLOWER.encode(&id)),
    };
    write_json(&mut writer, &header).await?;
    let (mut hash, mut sent) = (Sha256::new(), 0);
    if resumes {
        let have = match read_json_in_time(&mut reader, "file").await? {
            Offer::Have { .. } if fresh => 0,
            Offer::Have { have } if have <= source.size => have,
            Offer::Have { .. } => return Err(violation("file: the receiver has too many bytes")),
            Offer::Refused(reply) => {
                accepted(reply)?;
                return Err(violation("file: a success before the file"));
            }
        };
        progress(have);
        let hashed;
        (file, hashed) = blocking(move || {
            let hashed = source::hashed(&mut file, have)?;
            Ok((file, hashed))
        })
        .await
        .map_err(failed)?;
        hash = hashed.ok_or_else(|| failed(io::Error::other("the file became shorter")))?;
        sent = have;
        let sha256 = (have > 0).then(|| hex(hash.clone()));
        write_json(&mut writer, &Start { from: have, sha256 }).await?;
    }
    let resumed = sent;
    let mut file = tokio::fs::File::from_std(file);
    let write = async {
        let mut buffer = vec![0; CHUNK];
        while sent < header.size {
            let most = usize::try_from(header.size - sent).map_or(CHUNK, |n| n.min(CHUNK));
            let length = file.read(&mut buffer[..most]).await.map_err(failed)?;
            if length == 0 {
                return Err(failed(io::Error::other("the file became shorter")));
            }
            hash.update(&buffer[..length]);
            unless_stalled(writer.write_all(&buffer[..length])).await?;
            sent += length as u64;
            progress(sent);
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
            match tokio::time::timeout(Duration::from_secs(1), reply).await {
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
    let _ = tokio::time::timeout(Duration::from_secs(1), end).await;
    Ok(Transferred {
        bytes: header.size,
        resumed,
        sha256,
    })
}

fn accepted(reply: Reply) -> Result<(), Error> {
    if reply.ok {
        return Ok(());
    }
    let said = |text: Option<String>| printable(&text.unwrap_or_default());
    let (code, message) = (said(reply.code), said(reply.message));
    // What the receiver does not want is refused, and what it cannot do has failed.
    let kind = match code.as_str() {
        "too_large" | "busy" => ErrorKind::LimitExceeded,
        "bad_name" => ErrorKind::AccessDenied,
        "disk" => ErrorKind::Io,
        _ => ErrorKind::StreamReset,
    };
    Err(Error::new(
        kind,
        format!("the receiver refused the file ({code}): {message}"),
    ))
}

/// Whether the receiver has forgotten what it had, because it was of another file.
pub(crate) fn is_changed(error: &Error) -> bool {
    let refused = format!("the receiver refused the file ({CHANGED})");
    error.kind() == ErrorKind::StreamReset && error.message().starts_with(&refused)
}
