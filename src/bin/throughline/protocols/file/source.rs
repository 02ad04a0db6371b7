//! What is sent: files, and all files of directories. Everything is looked at before there is a
//! connection, because nobody wants to learn an hour later that a file cannot be read.

use std::{
    fs::{self, File, FileType},
    io::{self, Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};
use throughline::{Error, ErrorKind};

use super::names::{self, MAX_FOLDERS};
use crate::output::io_error;

/// How many bytes of each end of a file go into its fingerprint.
const END: u64 = 64 * 1024;
/// The most files that one command sends.
const MAX_FILES: usize = 100_000;

/// One file that is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// The folders below the receiver's directory.
    pub(crate) folders: Vec<String>,
    pub(crate) name: String,
    pub(crate) size: u64,
}

/// A file of a directory that is not sent, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Skipped {
    pub(crate) path: PathBuf,
    pub(crate) why: String,
}

/// Finds what to send. A path that was named must be sent as it is. In a directory, what cannot be
/// received is skipped. A single file gets the name `rename`.
pub(crate) fn find(
    paths: &[PathBuf],
    rename: Option<&str>,
) -> Result<(Vec<Source>, Vec<Skipped>), Error> {
    let (mut found, mut skipped) = (Vec::new(), Vec::new());
    for path in paths {
        let failed = |error| io_error(format_args!("--send {}", path.display()), error);
        let metadata = fs::metadata(path).map_err(failed)?;
        let name = match rename {
            Some(name) => name.to_owned(),
            None => named(path).map_err(failed)?,
        };
        if let Some(why) = names::fault(&name) {
            let way = "--as NAME sends it under another one";
            let message = format!("--send {}: the name: {why}; {way}", path.display());
            return Err(Error::new(ErrorKind::InvalidConfig, message));
        }
        if metadata.is_dir() {
            walk(path, vec![name], &mut found, &mut skipped).map_err(failed)?;
        } else {
            let size = readable(path, metadata.file_type()).map_err(failed)?;
            let (path, folders) = (path.clone(), Vec::new());
            found.push(Source {
                path,
                folders,
                name,
                size,
            });
        }
    }
    if found.is_empty() || found.len() > MAX_FILES {
        let message = format!(
            "--send: there are {} files, and 1 to {MAX_FILES} are sent",
            found.len()
        );
        return Err(Error::new(ErrorKind::InvalidConfig, message));
    }
    Ok((found, skipped))
}

/// Returns the last component of a path, also of `..` and `.`.
fn named(path: &Path) -> io::Result<String> {
    let whole;
    let name = match path.file_name() {
        Some(name) => name,
        None => {
            whole = fs::canonicalize(path)?;
            whole
                .file_name()
                .ok_or_else(|| io::Error::other("this has no name"))?
        }
    };
    let name = name.to_str();
    name.map(str::to_owned).ok_or_else(|| {
        io::Error::other("its name is not UTF-8; --as NAME sends it under another one")
    })
}

/// Adds all files below `directory`. Links are not followed, so that there is no circle.
fn walk(
    directory: &Path,
    folders: Vec<String>,
    found: &mut Vec<Source>,
    skipped: &mut Vec<Skipped>,
) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let mut skip = |why: String| {
            let path = path.clone();
            skipped.push(Skipped { path, why });
        };
        let name = match named(&path) {
            Ok(name) => name,
            Err(error) => {
                skip(error.to_string());
                continue;
            }
        };
        if let Some(why) = names::fault(&name) {
            skip(format!("the name: {why}"));
            continue;
        }
        let kind = entry.file_type()?;
        if kind.is_dir() {
            let mut below = folders.clone();
            below.push(name);
            match below.len() > MAX_FOLDERS {
                true => skip(format!("it is more than {MAX_FOLDERS} folders deep")),
                false => walk(&path, below, found, skipped)?,
            }
        } else if kind.is_symlink() {
            skip(String::from("it is a link"));
        } else {
            match readable(&path, kind) {
                Ok(size) => {
                    let folders = folders.clone();
                    found.push(Source {
                        path,
                        folders,
                        name,
                        size,
                    });
                }
                Err(error) => skip(error.to_string()),
            }
        }
        if found.len() > MAX_FILES {
            break;
        }
    }
    Ok(())
}

/// Opens a file to see that it can be read, and returns its size. What has none is told apart.
fn readable(path: &Path, kind: FileType) -> io::Result<u64> {
    if let Some(what) = special(kind) {
        let way = "`throughline pipe` carries what a program writes";
        return Err(io::Error::other(format!(
            "this is {what} and no file: {way}"
        )));
    }
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    // The kernel makes the content of such a file as it is read, and says no size before.
    if size == 0 && file.read(&mut [0])? > 0 {
        let way = "copy it, and send the copy";
        return Err(io::Error::other(format!(
            "the system gives it no size, as those of /proc: {way}"
        )));
    }
    Ok(size)
}

#[cfg(unix)]
fn special(kind: FileType) -> Option<&'static str> {
    use std::os::unix::fs::FileTypeExt as _;
    if kind.is_fifo() {
        Some("a FIFO")
    } else if kind.is_socket() {
        Some("a socket")
    } else if kind.is_char_device() || kind.is_block_device() {
        Some("a device")
    } else {
        None
    }
}

#[cfg(not(unix))]
fn special(_: FileType) -> Option<&'static str> {
    None
}

/// Returns what tells a file from others of its name: its size and both of its ends. Whoever knows it
/// has the file, so it also proves that a part may be gone on with.
pub(crate) fn fingerprint(file: &mut File) -> io::Result<[u8; 32]> {
    let size = file.metadata()?.len();
    let mut hash = Sha256::new();
    hash.update(size.to_be_bytes());
    let mut end = Vec::new();
    for from in [0, size.saturating_sub(END)] {
        file.seek(SeekFrom::Start(from))?;
        end.clear();
        io::Read::by_ref(file).take(END).read_to_end(&mut end)?;
        hash.update(&end);
    }
    file.rewind()?;
    Ok(hash.finalize().into())
}

/// Hashes the first `length` bytes of a file. The result is `None` if there are fewer.
pub(crate) fn hashed(file: &mut File, length: u64) -> io::Result<Option<Sha256>> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut left = length;
    file.rewind()?;
    while left > 0 {
        let most = usize::try_from(left).map_or(buffer.len(), |n| n.min(buffer.len()));
        match file.read(&mut buffer[..most])? {
            0 => return Ok(None),
            read => {
                hash.update(&buffer[..read]);
                left -= read as u64;
            }
        }
    }
    Ok(Some(hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(paths: &[PathBuf]) -> String {
        find(paths, None).unwrap_err().message().to_owned()
    }

    #[test]
    fn directories_are_sent_with_all_that_can_be_received() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path().join("photos");
        fs::create_dir_all(root.join("b/c")).unwrap();
        for (name, text) in [("a", "1"), ("b/c/d", "22"), (".hidden", "3")] {
            fs::write(root.join(name), text).unwrap();
        }
        #[cfg(unix)]
        std::os::unix::fs::symlink("/", root.join("link")).unwrap();
        let (found, skipped) = find(std::slice::from_ref(&root), None).unwrap();
        let told: Vec<_> = found
            .iter()
            .map(|f| (f.folders.join("/"), f.name.as_str(), f.size))
            .collect();
        let expected = [
            ("photos".to_owned(), "a", 1),
            ("photos/b/c".to_owned(), "d", 2),
        ];
        assert_eq!(told, expected);
        let skipped: Vec<_> = skipped.iter().map(|s| named(&s.path).unwrap()).collect();
        assert_eq!(skipped.first().map(String::as_str), Some(".hidden"));
    }

    #[test]
    fn what_cannot_be_sent_is_named_before_a_connection() {
        let home = tempfile::tempdir().unwrap();
        assert!(message(&[home.path().join("none")]).contains("none"));
        let hidden = home.path().join(".env");
        fs::write(&hidden, "x").unwrap();
        let told = message(std::slice::from_ref(&hidden));
        assert!(
            told.contains("a dot") && told.contains("--as NAME"),
            "{told}"
        );
        let (found, _) = find(&[hidden], Some("env")).unwrap();
        assert_eq!(found[0].name, "env");
        let empty = home.path().join("empty");
        fs::create_dir(&empty).unwrap();
        assert!(message(&[empty]).contains("there are 0 files"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_has_no_size_is_told_apart() {
        assert!(message(&["/proc/version".into()]).contains("no size"));
        assert!(message(&["/dev/null".into()]).contains("a device"));
    }

    #[test]
    fn a_fingerprint_changes_with_size_and_ends() {
        let home = tempfile::tempdir().unwrap();
        let of = |bytes: &[u8]| {
            let path = home.path().join("f");
            fs::write(&path, bytes).unwrap();
            fingerprint(&mut File::open(path).unwrap()).unwrap()
        };
        let bytes = vec![7; 300_000];
        let (mut head, mut tail) = (bytes.clone(), bytes.clone());
        head[0] = 8;
        tail[299_999] = 8;
        let all = [of(&bytes), of(&bytes[1..]), of(&head), of(&tail)];
        for (at, one) in all.iter().enumerate() {
            assert!(all[..at].iter().all(|other| other != one), "{at}");
        }
        assert_eq!(of(&bytes), all[0]);
    }
}
