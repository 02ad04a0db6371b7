//! The identity file. It is made once, readable by its owner alone, and never half written.

use std::{io, path::Path};

use super::secret::{self, Fault};
use crate::{
    error::{Error, ErrorKind},
    identity::Identity,
};

/// The longest identity file that is read. A key takes 92 characters, so a longer file holds
/// something else.
const MAX_FILE_LEN: u64 = 1024;

impl Identity {
    /// Reads the identity at `path`, or makes a new one there if the file does not exist.
    ///
    /// The file holds the text that [`to_secret`](Self::to_secret) gives, with mode 0600.
    /// Directories that are made on the way get mode 0700. The file appears whole or not at all,
    /// also when the disk is full. When two programs start at once, both end up with the same
    /// identity. This function blocks on the file system. It exists on native targets only.
    ///
    /// # Errors
    /// Fails with [`ErrorKind::InvalidIdentity`] when the file is malformed or others can read or
    /// write it, and with [`ErrorKind::Io`] when it cannot be read or made. Both errors say what to
    /// do. An existing file is never overwritten.
    pub fn load_or_create(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        match load(path)? {
            Some(identity) => Ok(identity),
            None => create(path),
        }
    }
}

fn load(path: &Path) -> Result<Option<Identity>, Error> {
    let bytes = match secret::read(path, MAX_FILE_LEN) {
        Ok(None) => return Ok(None),
        Ok(Some(bytes)) => bytes,
        Err(Fault::Io(error)) => return Err(io_error(path, error)),
        Err(Fault::TooLong) => Vec::new(),
        Err(fault) => {
            let message = fault.describe(path);
            return Err(Error::new(ErrorKind::InvalidIdentity, message));
        }
    };
    // Bytes that are not text become an empty text, which is not an identity either.
    let secret = String::from_utf8(bytes).unwrap_or_default();
    let identity = Identity::from_secret(&secret).map_err(|error| {
        Error::new(
            ErrorKind::InvalidIdentity,
            format!(
                "{} holds no identity ({}); restore it from a backup, or delete it to get a new \
                 identity",
                path.display(),
                error.message()
            ),
        )
    })?;
    Ok(Some(identity))
}

fn create(path: &Path) -> Result<Identity, Error> {
    let identity = Identity::generate();
    let line = identity.to_secret()? + "\n";
    match secret::publish(path, line.as_bytes()) {
        Ok(()) => Ok(identity),
        // Another program was faster, so its identity is used.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            load(path)?.ok_or_else(|| io_error(path, io::ErrorKind::NotFound.into()))
        }
        Err(error) => Err(io_error(path, error)),
    }
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
    use std::{fs, os::unix::fs::PermissionsExt, sync::Barrier};

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
        assert_eq!(names, ["identity"], "no temporary file remains");
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
            secret::publish(&path, bytes).unwrap();
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
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }
}
