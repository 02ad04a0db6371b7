//! The receiving end.

use std::{
    fs::File,
    io::{self, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use data_encoding::HEXLOWER;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use sha2::{Digest as _, Sha256};
use throughline::Error;
use tokio::io::AsyncWriteExt as _;

use super::{
    CHANGED, CHUNK, Header, Offer, Refusal, Reply, Start, Transferred,
    active::{Active, Key},
    blocking, hex,
    names::{self, MAX_FOLDERS},
    partial::Partial,
    read_json_in_time, source, unless_stalled, write_json,
};

/// Where files are stored, and the size of the largest one.
#[derive(Debug, Clone)]
pub(crate) struct Inbox {
    pub(crate) directory: PathBuf,
    pub(crate) max_size: u64,
    pub(crate) active: Active,
}

/// Receives a file. It appears under a name of its own only when it is complete and its hash is right.
/// What has arrived of it stays for a later transfer of `file/2`. When `lost` ends, others need the place.
pub(crate) async fn receive(
    mut reader: impl AsyncRead + Unpin,
    mut writer: impl AsyncWrite + Unpin,
    inbox: &Inbox,
    resumes: bool,
    lost: impl Future<Output = ()>,
    mut progress: impl FnMut(&Header, u64),
) -> Result<(PathBuf, Transferred), Error> {
    let mut transfer = Transfer {
        reader: &mut reader,
        writer: &mut writer,
        inbox,
        resumes,
    };
    let result = tokio::select! {
        biased;
        () = lost => Err(busy()),
        result = transfer.store(&mut progress) => result,
    };
    let reply = match &result {
        Ok((_, transferred)) => Reply {
            ok: true,
            sha256: Some(transferred.sha256.clone()),
            ..Reply::default()
        },
        Err(refusal) => refusal.into(),
    };
    answer(writer, &reply).await;
    result.map_err(Into::into)
}

/// Refuses a file because others have all places, and returns the error that says so.
pub(crate) async fn turn_away(writer: impl AsyncWrite + Unpin) -> Error {
    let refusal = busy();
    answer(writer, &(&refusal).into()).await;
    refusal.into()
}

/// Answers a sender. It may be gone, and the result for the file matters more.
async fn answer(mut writer: impl AsyncWrite + Unpin, reply: &Reply) {
    let answered = async {
        write_json(&mut writer, reply).await?;
        unless_stalled(writer.close()).await
    };
    if let Err(error) = answered.await {
        tracing::debug!(%error, "file reply");
    }
}

fn busy() -> Refusal {
    refuse(
        "busy",
        "the receiver takes as many files as it can: try again later",
    )
}

fn refuse(code: &'static str, message: impl Into<String>) -> Refusal {
    let message = message.into();
    Refusal { code, message }
}

fn cut(error: io::Error) -> Refusal {
    refuse("cancelled", error.to_string())
}

/// The reason is only logged, so that the sender learns nothing about local folders.
fn disk(error: io::Error) -> Refusal {
    tracing::warn!(%error, "cannot store a file");
    refuse("disk", error.kind().to_string())
}

struct Transfer<'a, R, W> {
    reader: &'a mut R,
    writer: &'a mut W,
    inbox: &'a Inbox,
    resumes: bool,
}

/// What the receiver has of a file.
enum Stored {
    /// A file of the same name that is complete.
    Whole(PathBuf, File, u64),
    Part(Partial, u64),
}

impl<R: AsyncRead + Unpin, W: AsyncWrite + Unpin> Transfer<'_, R, W> {
    async fn store(
        &mut self,
        progress: &mut impl FnMut(&Header, u64),
    ) -> Result<(PathBuf, Transferred), Refusal> {
        let header: Header = read_json_in_time(self.reader, "file header")
            .await
            .map_err(|error| refuse("bad_header", error.message()))?;
        let id = checked(&header, self.inbox.max_size, self.resumes)?;
        let root = self.inbox.directory.clone();
        let directory = header
            .folders
            .iter()
            .fold(root, |path, name| path.join(name));
        let (root, folders) = (self.inbox.directory.clone(), header.folders.clone());
        if blocking(move || Ok(leads_elsewhere(root, &folders)))
            .await
            .map_err(disk)?
        {
            return Err(refuse("bad_name", "a folder of this name is a link here"));
        }
        let Some(id) = id else {
            return self.fill(&header, directory, None, progress).await;
        };
        // The name counts as well: two files of the same bytes may be on their way.
        let mut key = Sha256::new_with_prefix(id);
        key.update(directory.join(&header.name).to_string_lossy().as_bytes());
        let key = key.finalize().into();
        let mut place = self.inbox.active.enter(key).await;
        tokio::select! {
            stored = self.fill(&header, directory, Some((id, key)), progress) => stored,
            () = place.cancelled() => Err(refuse("cancelled", "the same file is sent again")),
        }
    }

    /// Takes the bytes of a file that goes into `directory`. It has an id and a key if it may be here
    /// already.
    async fn fill(
        &mut self,
        header: &Header,
        directory: PathBuf,
        known: Option<([u8; 32], Key)>,
        progress: &mut impl FnMut(&Header, u64),
    ) -> Result<(PathBuf, Transferred), Refusal> {
        // The directory itself takes a part, because it is on the file system of its folders.
        let root = self.inbox.directory.clone();
        let (whole, size) = (directory.join(&header.name), header.size);
        let parts = root.clone();
        let stored = blocking(move || stored(&root, &whole, size, known)).await;
        let stored = stored.map_err(disk)?;
        let (partial, mut received, mut hash) = match stored {
            Stored::Whole(path, file, have) => match self.resume(have, file).await? {
                // The sender wants to begin anew, because the file that is here is another one.
                (0, hash) => (Partial::open(&parts, None).map_err(disk)?, 0, hash),
                (_, hash) => return self.is_there(path, hash, have).await,
            },
            Stored::Part(partial, have) if self.resumes => {
                let file = partial.handle().map_err(disk)?;
                match self.resume(have, file).await {
                    Ok((from, hash)) => (partial, from, hash),
                    Err(refusal) => {
                        if refusal.code == CHANGED {
                            partial.clear().map_err(disk)?;
                        }
                        return Err(refusal);
                    }
                }
            }
            Stored::Part(partial, _) => (partial, 0, Sha256::new()),
        };
        let resumed = received;
        progress(header, received);
        let mut file = partial.handle().map_err(disk)?;
        file.set_len(received).map_err(disk)?;
        file.seek(SeekFrom::Start(received)).map_err(disk)?;
        let mut file = tokio::fs::File::from_std(file);
        let mut buffer = vec![0; CHUNK];
        while received < header.size {
            let most = usize::try_from(header.size - received).map_or(CHUNK, |n| n.min(CHUNK));
            let read = unless_stalled(self.reader.read(&mut buffer[..most])).await;
            let length = match read {
                Ok(0) => Err(cut(io::Error::other(format!(
                    "the file ended after {received} of {} bytes",
                    header.size
                )))),
                read => read.map_err(cut),
            };
            let length = match length {
                Ok(length) => length,
                Err(refusal) => {
                    // What has arrived is on its way to the file, and stays.
                    file.flush().await.map_err(disk)?;
                    return Err(refusal);
                }
            };
            hash.update(&buffer[..length]);
            file.write_all(&buffer[..length]).await.map_err(disk)?;
            received += length as u64;
            progress(header, received);
        }
        file.flush().await.map_err(disk)?;
        let ours = self.checked(hash).await;
        if ours.is_err() {
            partial.clear().map_err(disk)?;
        }
        let sha256 = ours?;
        file.sync_all().await.map_err(disk)?;
        drop(file);
        let name = header.name.clone();
        let path = blocking(move || partial.publish(&directory, &name)).await;
        let transferred = Transferred {
            bytes: received,
            resumed,
            sha256,
        };
        Ok((path.map_err(disk)?, transferred))
    }

    /// Agrees with the sender on where to go on, and returns the hash of what is before.
    async fn resume(&mut self, have: u64, mut file: File) -> Result<(u64, Sha256), Refusal> {
        let offer = Offer::Have { have };
        write_json(self.writer, &offer).await.map_err(cut)?;
        let hashed = blocking(move || source::hashed(&mut file, have));
        // The sender hashes the same bytes meanwhile, so both take about as long.
        let start = read_json_in_time::<Start>(self.reader, "file start");
        let (hashed, start) = futures::join!(hashed, start);
        let start = start.map_err(|error| refuse("bad_header", error.message()))?;
        let hash = hashed.map_err(disk)?.unwrap_or_default();
        match start.from {
            0 => Ok((0, Sha256::new())),
            from if from != have => Err(refuse("bad_header", "this is not where the part ends")),
            from if start.sha256 == Some(hex(hash.clone())) => Ok((from, hash)),
            _ => Err(refuse(
                CHANGED,
                "the bytes that are here are of another file",
            )),
        }
    }

    /// The file was here before, and the sender has proved that it is the same.
    async fn is_there(
        &mut self,
        path: PathBuf,
        hash: Sha256,
        have: u64,
    ) -> Result<(PathBuf, Transferred), Refusal> {
        let sha256 = self.checked(hash).await?;
        let transferred = Transferred {
            bytes: have,
            resumed: have,
            sha256,
        };
        Ok((path, transferred))
    }

    /// Compares the hash of what is here with the one that the sender ends with.
    async fn checked(&mut self, hash: Sha256) -> Result<String, Refusal> {
        let mut theirs = [0; 32];
        unless_stalled(self.reader.read_exact(&mut theirs))
            .await
            .map_err(cut)?;
        let ours = hash.finalize();
        if ours[..] != theirs {
            let message = "the bytes that arrived have another SHA-256";
            return Err(refuse("hash_mismatch", message));
        }
        Ok(HEXLOWER.encode(&ours))
    }
}

/// Checks a header, and returns its id.
fn checked(header: &Header, max_size: u64, resumes: bool) -> Result<Option<[u8; 32]>, Refusal> {
    let mut parts = std::iter::once(&header.name).chain(&header.folders);
    if let Some(why) = parts.find_map(|name| names::fault(name)) {
        return Err(refuse(
            "bad_name",
            format!("the name: {why}; rename the file"),
        ));
    }
    if header.folders.len() > MAX_FOLDERS || !resumes && !header.folders.is_empty() {
        return Err(refuse(
            "bad_name",
            format!("there are more than {MAX_FOLDERS} folders"),
        ));
    }
    if header.size > max_size {
        let size = header.size;
        let message = format!("{size} bytes are more than the limit of {max_size}");
        return Err(refuse("too_large", message));
    }
    if !resumes {
        return Ok(None);
    }
    let id = header
        .id
        .as_deref()
        .and_then(|id| HEXLOWER.decode(id.as_bytes()).ok());
    let id = id.and_then(|id| <[u8; 32]>::try_from(id).ok());
    id.map(Some)
        .ok_or_else(|| refuse("bad_header", "the id is not 64 hex digits"))
}

/// Finds what is here of the file with this `id` already. Whoever does not have the file does not learn
/// whether it is here.
fn stored(
    root: &Path,
    whole: &Path,
    size: u64,
    known: Option<([u8; 32], Key)>,
) -> io::Result<Stored> {
    if let Some((id, _)) = &known
        && let Some(file) = same(whole, size, id)
    {
        return Ok(Stored::Whole(whole.to_owned(), file, size));
    }
    let partial = Partial::open(root, known.as_ref().map(|(_, key)| key))?;
    let mut have = partial.len()?;
    if have > size {
        partial.clear()?;
        have = 0;
    }
    Ok(Stored::Part(partial, have))
}

/// Whether one of the folders is a link, so that a file in it would be outside of the directory.
fn leads_elsewhere(mut path: PathBuf, folders: &[String]) -> bool {
    folders.iter().any(|folder| {
        path.push(folder);
        std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_symlink())
    })
}

fn same(path: &Path, size: u64, id: &[u8; 32]) -> Option<File> {
    // A link would let a sender compare files outside of the directory.
    let metadata = std::fs::symlink_metadata(path).ok()?;
    if !metadata.is_file() || metadata.len() != size || size == 0 {
        return None;
    }
    let mut file = File::open(path).ok()?;
    let known = source::fingerprint(&mut file).ok()?;
    (known == *id).then_some(file)
}
