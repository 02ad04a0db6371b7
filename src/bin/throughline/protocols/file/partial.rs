//! Files that are not complete yet. They keep what has arrived, so that a later transfer of the same file
//! goes on from there.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use data_encoding::HEXLOWER;

use super::names;

/// How many further names are tried if a name is taken.
const MAX_COPIES: u32 = 1000;
/// How long a part is kept that nobody goes on with.
const MAX_AGE: Duration = Duration::from_secs(7 * 86_400);
/// How many parts a directory has. For a further one, the oldest goes.
const MAX_PARTS: usize = 256;
/// How often a lock is tried, and the pause between two tries.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(25);
/// A part of fewer bytes is not worth a file that stays.
const WORTH_KEEPING: u64 = 64 * 1024;

/// A file that is not complete yet. Dropping this value removes it, unless enough has arrived.
#[derive(Debug)]
pub(crate) struct Partial {
    path: PathBuf,
    file: File,
    /// Whether a later transfer finds it again.
    named: bool,
    published: bool,
}

impl Partial {
    /// Opens the part of the file with this `id` in `directory`, or makes a new one. While another
    /// transfer has it, the new one has a name of its own, and is not found again.
    pub(crate) fn open(directory: &Path, id: Option<&[u8; 32]>) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        if let Some(id) = id {
            let path = directory.join(format!(".{}.part", HEXLOWER.encode(&id[..16])));
            if !path.exists() {
                make_room(directory, MAX_PARTS - 1)?;
            }
            // Whoever can write here may have put a link or a pipe in this place.
            if let Ok(file) = open_plain(&path)
                && is_locked(&file)
            {
                return Ok(Self {
                    path,
                    file,
                    named: true,
                    published: false,
                });
            }
        }
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(io::Error::other)?;
        let path = directory.join(format!(".{}.part", HEXLOWER.encode(&nonce)));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)?;
        // The lock keeps [`make_room`] away. A file system without locks has nobody who looks.
        let _ = file.try_lock();
        Ok(Self {
            path,
            file,
            named: false,
            published: false,
        })
    }

    /// Returns how many bytes have arrived.
    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Returns a second handle to the file, which shares its position.
    pub(crate) fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Throws away what has arrived.
    pub(crate) fn clear(&self) -> io::Result<()> {
        self.file.set_len(0)
    }

    /// Gives the file the name `name` in `directory`, or `name (2)` and so on if the name is taken.
    pub(crate) fn publish(mut self, directory: &Path, name: &str) -> io::Result<PathBuf> {
        fs::create_dir_all(directory)?;
        for copy in 1..=MAX_COPIES {
            let path = directory.join(names::numbered(name, copy));
            // The name is taken first, so the rename replaces only our own empty file.
            match File::create_new(&path) {
                Ok(_) => {
                    let renamed = fs::rename(&self.path, &path);
                    if renamed.is_err() {
                        let _ = fs::remove_file(&path);
                    }
                    self.published = renamed.is_ok();
                    return renamed.map(|()| path);
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        let kept = self.named && self.len().is_ok_and(|length| length >= WORTH_KEEPING);
        if !self.published && !kept {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Opens a file that is no link, or makes it.
fn open_plain(path: &Path) -> io::Result<File> {
    open_with(File::options().create(true).truncate(false), path)
}

/// Opens a file that is there and is no link.
fn open_there(path: &Path) -> io::Result<File> {
    open_with(&mut File::options(), path)
}

fn open_with(options: &mut fs::OpenOptions, path: &Path) -> io::Result<File> {
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    options.read(true).write(true);
    // It may have come a moment ago.
    #[cfg(target_os = "linux")]
    std::os::unix::fs::OpenOptionsExt::custom_flags(options, libc::O_NOFOLLOW);
    let file = options.open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Locks a part. A transfer that was just given up may still be writing its last bytes, so this waits a
/// little.
fn is_locked(file: &File) -> bool {
    (0..TRIES).any(|_| {
        let locked = file.try_lock().is_ok();
        if !locked {
            std::thread::sleep(PAUSE);
        }
        locked
    })
}

/// Removes the parts in `directory` that nobody has gone on with for a week. Returns how many are left,
/// and how many were removed.
pub(crate) fn sweep(directory: &Path) -> io::Result<(usize, usize)> {
    sweep_at(directory, SystemTime::now())
}

fn sweep_at(directory: &Path, now: SystemTime) -> io::Result<(usize, usize)> {
    let (mut left, mut removed) = (0, 0);
    for (modified, path) in parts(directory)? {
        let age = now.duration_since(modified).unwrap_or_default();
        // A part that another transfer has is not old.
        match age > MAX_AGE && fs::remove_file(path).is_ok() {
            true => removed += 1,
            false => left += 1,
        }
    }
    Ok((left, removed))
}

/// Removes the oldest parts that no transfer has, until `most` are left.
fn make_room(directory: &Path, most: usize) -> io::Result<()> {
    let mut parts = parts(directory)?;
    let surplus = parts.len().saturating_sub(most);
    parts.sort();
    let mut removed = 0;
    for (_, path) in parts {
        if removed == surplus {
            break;
        }
        // The file stays locked until it is removed. One that another transfer has removed made room for
        // that one.
        if let Ok(file) = open_there(&path)
            && file.try_lock().is_ok()
        {
            match fs::remove_file(path) {
                Ok(()) => removed += 1,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Returns the parts in `directory`, and when each has changed.
fn parts(directory: &Path) -> io::Result<Vec<(SystemTime, PathBuf)>> {
    let entries = fs::read_dir(directory)?.flatten();
    let parts = entries.filter_map(|entry| {
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        is_part(entry.file_name().to_str()?).then_some(())?;
        Some((metadata.modified().ok()?, entry.path()))
    });
    Ok(parts.collect())
}

/// Whether a file is one that [`Partial::open`] has made.
fn is_part(name: &str) -> bool {
    let id = name
        .strip_prefix('.')
        .and_then(|name| name.strip_suffix(".part"));
    id.is_some_and(|id| {
        [16, 32].contains(&id.len()) && id.bytes().all(|b| b"0123456789abcdef".contains(&b))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn only_what_is_worth_it_stays_and_is_found_again() {
        let home = tempfile::tempdir().unwrap();
        let open = || Partial::open(home.path(), Some(&[7; 32])).unwrap();
        let small = open();
        small.handle().unwrap().write_all(b"x").unwrap();
        drop(small);
        assert_eq!(names(home.path()), [""; 0]);
        let part = open();
        part.handle()
            .unwrap()
            .write_all(&[1; WORTH_KEEPING as usize])
            .unwrap();
        // A second transfer of the same file has a part of its own.
        let other = open();
        assert_eq!(other.len().unwrap(), 0);
        assert_eq!(names(home.path()).len(), 2);
        drop((part, other));
        assert_eq!(names(home.path()).len(), 1);
        let again = open();
        assert_eq!(again.len().unwrap(), WORTH_KEEPING);
        assert_eq!(
            again.publish(home.path(), "a").unwrap(),
            home.path().join("a")
        );
        assert_eq!(names(home.path()), ["a"]);
    }

    #[test]
    fn the_oldest_part_that_nobody_has_makes_room() {
        let home = tempfile::tempdir().unwrap();
        let stored = |id: u8, age: u64| {
            let part = Partial::open(home.path(), Some(&[id; 32])).unwrap();
            let mut file = part.handle().unwrap();
            file.write_all(&[1; WORTH_KEEPING as usize]).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(100 - age))
                .unwrap();
            part
        };
        let oldest = stored(1, 3);
        let (older, newer) = (stored(2, 2), stored(3, 1));
        let kept = [oldest.path.clone(), newer.path.clone()];
        drop((older, newer));
        make_room(home.path(), 2).unwrap();
        let mut left: Vec<_> = names(home.path());
        left.sort();
        let mut kept = kept.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
        kept.sort();
        assert_eq!(left, kept, "a part in use stays");
        make_room(home.path(), 0).unwrap();
        assert_eq!(names(home.path()).len(), 1);
    }

    #[test]
    fn transfers_that_make_room_at_the_same_time_do_not_hinder_each_other() {
        for _ in 0..50 {
            let home = tempfile::tempdir().unwrap();
            for number in 0..8 {
                fs::write(home.path().join(format!(".{number:032x}.part")), "x").unwrap();
            }
            std::thread::scope(|scope| {
                let made = [(); 4].map(|()| scope.spawn(|| make_room(home.path(), 4)));
                for made in made {
                    made.join().unwrap().unwrap();
                }
            });
            assert!(names(home.path()).len() <= 4);
        }
    }

    #[test]
    fn parts_that_nobody_goes_on_with_are_removed() {
        let home = tempfile::tempdir().unwrap();
        let part = Partial::open(home.path(), Some(&[7; 32])).unwrap();
        part.handle()
            .unwrap()
            .write_all(&[1; WORTH_KEEPING as usize])
            .unwrap();
        drop(part);
        for other in [".bashrc", ".x.part", ".0123.part", "0123456789abcdef.part"] {
            fs::write(home.path().join(other), "x").unwrap();
        }
        let now = SystemTime::now();
        assert_eq!(sweep_at(home.path(), now).unwrap(), (1, 0));
        assert_eq!(sweep_at(home.path(), now + MAX_AGE * 2).unwrap(), (0, 1));
        assert_eq!(names(home.path()).len(), 4);
    }
}
