//! Files that hold a secret. Only the owner can read them, they appear whole or not at all, and
//! they are never long.
//!
//! Every file of this kind is made by [`publish`] and read by [`read`].

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
};

/// The reasons why a file is not used as a secret.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Others can read or write the file. This is its mode.
    Accessible(u32),
    /// Others can replace the file, because they can write to its directory. This is the mode of
    /// the directory.
    #[cfg(feature = "server")]
    Replaceable(u32),
    /// The file is too long to be a secret.
    TooLong,
    Io(io::Error),
}

impl Fault {
    /// Says what is wrong with the file or directory at `path`, and what to do.
    pub(crate) fn describe(&self, path: &Path) -> String {
        let name = path.display();
        match self {
            Self::Accessible(mode) => format!(
                "{name} is accessible to others (mode {mode:03o}); run `chmod 600 {name}` if \
                 nobody can have copied it, else delete it to get a new one"
            ),
            #[cfg(feature = "server")]
            Self::Replaceable(mode) => format!(
                "others can write to the directory {name} (mode {mode:03o}) and replace the \
                 secrets in it; run `chmod go-w {name}`"
            ),
            Self::TooLong => format!("{name} is too long"),
            Self::Io(error) => format!("{name}: {error}"),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Reads the secret at `path`, which has at most `most` bytes. Returns `None` if there is no file.
pub(crate) fn read(path: &Path, most: u64) -> Result<Option<Vec<u8>>, Fault> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    // This checks the open file and not the path, so nobody can swap the file in between.
    if let Some(mode) = mode(&file.metadata()?).filter(|mode| mode & 0o077 != 0) {
        return Err(Fault::Accessible(mode));
    }
    read_most(file, most).map(Some)
}

/// Reads a file of the operator's, who decides who else may read it.
#[cfg(feature = "server")]
pub(crate) fn read_shared(path: &Path, most: u64) -> Result<Vec<u8>, Fault> {
    read_most(File::open(path)?, most)
}

fn read_most(file: File, most: u64) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    file.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    match u64::try_from(bytes.len()) {
        Ok(length) if length <= most => Ok(bytes),
        _ => Err(Fault::TooLong),
    }
}

/// Checks that nobody else can replace the files in `directory`, if it exists.
#[cfg(feature = "server")]
pub(crate) fn check_directory(directory: &Path) -> Result<(), Fault> {
    let metadata = match fs::metadata(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    match mode(&metadata).filter(|mode| mode & 0o022 != 0) {
        Some(mode) => Err(Fault::Replaceable(mode)),
        None => Ok(()),
    }
}

#[cfg(unix)]
fn mode(metadata: &fs::Metadata) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt as _;
    Some(metadata.permissions().mode() & 0o777)
}

#[cfg(not(unix))]
fn mode(_: &fs::Metadata) -> Option<u32> {
    None
}

/// Makes `path` appear with all of `bytes` in it, readable by its owner only.
///
/// # Errors
/// Fails with `AlreadyExists` when `path` exists.
pub(crate) fn publish(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // This makes a hard link, because renaming would replace a file that was made meanwhile.
    let temporary = write_beside(path, bytes)?;
    let linked = fs::hard_link(&temporary, path);
    linked.and(fs::remove_file(&temporary))
}

/// Puts `bytes` in place of the file at `path`, readable by its owner only. A reader finds the old file
/// or the new one.
#[cfg(feature = "server")]
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = write_beside(path, bytes)?;
    fs::rename(&temporary, path).inspect_err(|_| {
        // The error of the renaming says more than one of this would.
        let _ = fs::remove_file(&temporary);
    })
}

/// Writes a temporary file with `bytes` into the directory of `path`.
fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_private_directory(directory)?;
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    // The random name keeps two programs, or two threads of one, from sharing a temporary file.
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).map_err(io::Error::other)?;
    let mut temporary_name = std::ffi::OsString::from(".");
    temporary_name.push(name);
    temporary_name.push(format!(".{:016x}", u64::from_ne_bytes(nonce)));
    let temporary = directory.join(temporary_name);
    match write_private(&temporary, bytes) {
        Ok(()) => Ok(temporary),
        Err(error) => {
            // The file may not be there.
            let _ = fs::remove_file(&temporary);
            Err(error)
        }
    }
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

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_file_that_others_can_access_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("secret");
        assert!(read(&path, 9).unwrap().is_none());
        publish(&path, b"secret").unwrap();
        assert_eq!(read(&path, 9).unwrap().unwrap(), b"secret");
        for open in [0o640, 0o604, 0o620, 0o601] {
            set_mode(&path, open);
            let fault = read(&path, 9).unwrap_err();
            assert!(matches!(fault, Fault::Accessible(mode) if mode == open));
            assert!(fault.describe(&path).contains("chmod 600"));
        }
        set_mode(&path, 0o400);
        assert!(read(&path, 9).unwrap().is_some());
    }

    #[test]
    fn a_file_that_is_too_long_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("secret");
        publish(&path, &[b'a'; 10]).unwrap();
        assert!(matches!(read(&path, 9), Err(Fault::TooLong)));
        assert_eq!(read(&path, 10).unwrap().unwrap().len(), 10);
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let home = tempfile::tempdir().unwrap();
        // The link is the last step. The temporary file must go when it fails.
        let taken = home.path().join("taken");
        fs::create_dir(&taken).unwrap();
        assert!(publish(&taken, b"key").is_err());
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1);
    }

    #[cfg(feature = "server")]
    #[test]
    fn a_file_is_replaced_whole_and_stays_private() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("new folder").join("secret");
        for text in [b"old".as_slice(), b"new"] {
            replace(&path, text).unwrap();
            assert_eq!(read(&path, 9).unwrap().unwrap(), text);
        }
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        set_mode(&path, 0o644);
        assert_eq!(read_shared(&path, 9).unwrap(), b"new");
        assert!(matches!(read_shared(&path, 2), Err(Fault::TooLong)));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(replace(&path, b"key").is_err());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[cfg(feature = "server")]
    #[test]
    fn a_directory_that_others_write_to_is_refused() {
        let home = tempfile::tempdir().unwrap();
        check_directory(&home.path().join("none yet")).unwrap();
        for (mode, fine) in [
            (0o700, true),
            (0o755, true),
            (0o775, false),
            (0o1777, false),
        ] {
            set_mode(home.path(), mode);
            assert_eq!(check_directory(home.path()).is_ok(), fine, "{mode:o}");
        }
    }
}
