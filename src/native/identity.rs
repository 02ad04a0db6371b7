//! The identity file: made once, readable by its owner alone, never half written.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::Path,
};

use crate::{
    error::{Error, ErrorKind},
    identity::Identity,
};

/// Longest identity file that is read: a key takes 92 characters, so whatever is longer is
/// something else.
const MAX_FILE_LEN: u64 = 1024;

impl Identity {
    /// Reads the identity at `path`, or makes a new one there if the file does not exist.
    ///
    /// The file holds what [`to_secret`](Self::to_secret) gives, with mode 0600; directories made on
    /// the way get mode 0700. It appears whole or not at all, also when the disk is full, and when
    /// two programs start at once both end up with the same identity. Blocks on the file system.
    /// Native only.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidIdentity`] when the file is malformed or others can read or write it,
    /// [`ErrorKind::Io`] when it cannot be read or made; both say what to do. An existing file is
    /// never overwritten.
    pub fn load_or_create(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        match File::open(path) {
            Ok(file) => load(path, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(path),
            Err(error) => Err(io_error(path, error)),
        }
    }
}

fn load(path: &Path, file: File) -> Result<Identity, Error> {
    // On the open file and not on the path: nobody can swap it in between.
    check_mode(path, &file)?;
    let mut secret = String::new();
    match file.take(MAX_FILE_LEN).read_to_string(&mut secret) {
        Err(error) if error.kind() != io::ErrorKind::InvalidData => Err(io_error(path, error)),
        // Bytes that are not text leave `secret` empty, which is no identity either.
        _ => Identity::from_secret(&secret).map_err(|error| {
            Error::new(
                ErrorKind::InvalidIdentity,
                format!(
                    "{} holds no identity ({}); restore it from a backup, or delete it to get a \
                     new identity",
                    path.display(),
                    error.message()
                ),
            )
        }),
    }
}

fn create(path: &Path) -> Result<Identity, Error> {
    let identity = Identity::generate();
    let line = identity.to_secret()? + "\n";
    match publish(path, line.as_bytes()) {
        Ok(()) => Ok(identity),
        // Another program was faster: its identity is the one.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let file = File::open(path).map_err(|error| io_error(path, error))?;
            load(path, file)
        }
        Err(error) => Err(io_error(path, error)),
    }
}

/// Makes `path` appear with all of `bytes` in it and for its owner only, or fails with
/// `AlreadyExists`.
pub(crate) fn publish(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_private_directory(directory)?;
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    // Two programs, or two threads of one, never share a temporary file.
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(format!(".{:016x}", u64::from_ne_bytes(nonce)));
    let temporary = directory.join(temporary_name);
    let written = write_private(&temporary, bytes)
        // A hard link, because renaming would replace a file made meanwhile.
        .and_then(|()| fs::hard_link(&temporary, path));
    let removed = fs::remove_file(&temporary);
    written.and(removed)
}

fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(0o600);
    }
    let mut file = options.open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

fn create_private_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::DirBuilderExt;
        builder.mode(0o700);
    }
    builder.create(path)
}

#[cfg(unix)]
fn check_mode(path: &Path, file: &File) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    let metadata = file.metadata().map_err(|error| io_error(path, error))?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let path = path.display();
    Err(Error::new(
        ErrorKind::InvalidIdentity,
        format!(
            "{path} is accessible to others (mode {mode:03o}); if nobody can have copied it run \
             `chmod 600 {path}`, else delete it to get a new identity"
        ),
    ))
}

#[cfg(not(unix))]
fn check_mode(_: &Path, _: &File) -> Result<(), Error> {
    Ok(())
}

fn io_error(path: &Path, error: io::Error) -> Error {
    Error::new(
        ErrorKind::Io,
        format!("cannot use the identity file {}: {error}", path.display()),
    )
    .with_source(error)
}

#[cfg(all(test, unix))]
mod tests {
    use std::{os::unix::fs::PermissionsExt, sync::Barrier};

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn created_once_with_owner_only_permissions() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("new/throughline/identity");
        let first = Identity::load_or_create(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        let second = Identity::load_or_create(&path).unwrap();
        assert_eq!(first.peer_id(), second.peer_id());
        let names: Vec<_> = fs::read_dir(path.parent().unwrap())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(names, ["identity"], "no temporary file stays");
    }

    #[test]
    fn readable_by_others_is_refused_with_advice() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("identity");
        Identity::load_or_create(&path).unwrap();
        for open in [0o640, 0o604, 0o620] {
            fs::set_permissions(&path, fs::Permissions::from_mode(open)).unwrap();
            let error = Identity::load_or_create(&path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidIdentity);
            assert!(error.to_string().contains("chmod 600"), "{error}");
        }
    }

    #[test]
    fn malformed_is_refused_and_kept() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("identity");
        for bytes in [&b""[..], b"not a key", &[0xff; 68], &[b'A'; 5000]] {
            write_private(&path, bytes).unwrap();
            let error = Identity::load_or_create(&path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidIdentity, "{error}");
            assert_eq!(
                fs::read(&path).unwrap(),
                bytes,
                "the file is not overwritten"
            );
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn programs_starting_at_once_share_one_identity() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("identity");
        let barrier = Barrier::new(16);
        let peers: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..16)
                .map(|_| {
                    scope.spawn(|| {
                        barrier.wait();
                        Identity::load_or_create(&path).unwrap().peer_id()
                    })
                })
                .collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert!(peers.iter().all(|peer| *peer == peers[0]));
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let home = tempfile::tempdir().unwrap();
        let blocked = home.path().join("file");
        fs::write(&blocked, b"").unwrap();
        let error = Identity::load_or_create(blocked.join("identity")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io, "{error}");
        // The link is the last step; what was written for it goes when it fails.
        let taken = home.path().join("taken");
        fs::create_dir(&taken).unwrap();
        assert!(publish(&taken, b"key").is_err());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);
    }
}
