//! Reads files of the system and of the user, and reads them again when they change.
//!
//! A program runs for months. Meanwhile its machine joins other networks, which replaces the list of
//! name servers, and its user replaces certificates.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use tokio::task;

/// How often a file is looked at, at most.
const PAUSE: Duration = Duration::from_secs(1);

/// Reads a value from a file.
type Read<T> = Box<dyn Fn(&Path) -> io::Result<T> + Send + Sync>;

/// A value that was read from a file. It is read again when the file has changed. A value that cannot
/// be read does not replace one that could.
pub(crate) struct FromFile<T> {
    file: PathBuf,
    read: Read<T>,
    state: Mutex<State<T>>,
    /// Whoever looks at the file holds this lock, so that all others wait for the result.
    turn: tokio::sync::Mutex<()>,
}

struct State<T> {
    value: T,
    /// The file when the value was read from it. It is `None` if the value has to be read anew.
    seen: Option<Stamp>,
    looked: Option<Instant>,
}

/// The time, the length and the number of a file, which change when the file does. `None` stands
/// for a file that does not exist.
pub(crate) type Stamp = Option<(SystemTime, u64, u64)>;

impl<T: Clone + Send + 'static> FromFile<T> {
    /// Reads `file`.
    ///
    /// # Errors
    /// Fails when the file cannot be read.
    pub(crate) fn load(
        file: &Path,
        read: impl Fn(&Path) -> io::Result<T> + Send + Sync + 'static,
    ) -> io::Result<Arc<Self>> {
        let seen = stamp(file);
        let value = read(file)?;
        Ok(Self::new(file, read, value, Some(seen)))
    }

    /// Reads `file` when the value is needed. As long as it cannot be read, the value is `otherwise`.
    pub(crate) fn or(
        file: &Path,
        read: impl Fn(&Path) -> io::Result<T> + Send + Sync + 'static,
        otherwise: T,
    ) -> Arc<Self> {
        Self::new(file, read, otherwise, None)
    }

    fn new(
        file: &Path,
        read: impl Fn(&Path) -> io::Result<T> + Send + Sync + 'static,
        value: T,
        seen: Option<Stamp>,
    ) -> Arc<Self> {
        Arc::new(Self {
            file: file.to_owned(),
            read: Box::new(read),
            state: Mutex::new(State {
                value,
                seen,
                looked: None,
            }),
            turn: tokio::sync::Mutex::default(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the next use read the value again, even if the file is the same.
    pub(crate) fn renew(&self) {
        let mut state = self.state();
        (state.seen, state.looked) = (None, None);
    }

    /// Returns the value of the file as it is now, or as it was a second ago. Needs a Tokio runtime.
    pub(crate) async fn current(self: &Arc<Self>) -> T {
        let _turn = self.turn.lock().await;
        if self.is_due(Instant::now()) {
            let this = self.clone();
            // The file may be long, or on a slow disk.
            let looked = task::spawn_blocking(move || this.look()).await;
            if let Err(error) = looked {
                tracing::debug!(%error, "a file could not be looked at");
            }
        }
        self.state().value.clone()
    }

    /// Whether somebody has to look at the file. Each look is asked for once.
    fn is_due(&self, now: Instant) -> bool {
        let mut state = self.state();
        let due = state.looked.is_none_or(|looked| now >= looked + PAUSE);
        if due {
            state.looked = Some(now);
        }
        due
    }

    fn look(&self) {
        let now = stamp(&self.file);
        if self.state().seen == Some(now) {
            return;
        }
        match (self.read)(&self.file) {
            Ok(value) => {
                tracing::debug!(file = %self.file.display(), "read");
                let mut state = self.state();
                state.value = value;
                state.seen = Some(now);
            }
            Err(error) => {
                let file = self.file.display();
                tracing::debug!(%file, %error, "cannot be read, so the last value stays");
            }
        }
    }
}

/// What changes when `file` does.
pub(crate) fn stamp(file: &Path) -> Stamp {
    let metadata = fs::metadata(file).ok()?;
    Some((metadata.modified().ok()?, metadata.len(), number(&metadata)))
}

/// The number of the file in its file system. A file that replaces another one has another number,
/// also within the resolution of the clock.
#[cfg(unix)]
fn number(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn number(_: &fs::Metadata) -> u64 {
    0
}

/// Replaces a file as a whole, so that no reader sees half of it.
#[cfg(test)]
pub(crate) fn replace(file: &Path, contents: &str) {
    let new = file.with_extension("new");
    fs::write(&new, contents).unwrap();
    fs::rename(new, file).unwrap();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number_in(file: &Path) -> io::Result<u32> {
        let text = fs::read_to_string(file)?;
        text.parse().map_err(io::Error::other)
    }

    /// Lets the pause pass, and looks.
    fn look(value: &FromFile<u32>) -> u32 {
        let now = value.state().looked.unwrap_or_else(Instant::now) + PAUSE;
        assert!(value.is_due(now));
        assert!(!value.is_due(now), "two look at once");
        value.look();
        value.state().value
    }

    #[test]
    fn a_value_follows_its_file_and_survives_what_cannot_be_read() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("number");
        assert!(FromFile::load(&file, number_in).is_err());
        let value = FromFile::or(&file, number_in, 0);
        assert_eq!(look(&value), 0);
        replace(&file, "1");
        assert_eq!(look(&value), 1);
        replace(&file, "2");
        assert_eq!(look(&value), 2);
        replace(&file, "many");
        assert_eq!(look(&value), 2);
        fs::remove_file(&file).unwrap();
        assert_eq!(look(&value), 2);
        replace(&file, "3");
        assert_eq!(look(&value), 3);
    }

    #[test]
    fn a_file_that_is_the_same_is_read_again_only_on_demand() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("number");
        replace(&file, "1");
        let reads = Arc::new(Mutex::new(0));
        let counted = reads.clone();
        let read = move |file: &Path| {
            *counted.lock().unwrap() += 1;
            number_in(file)
        };
        let value = FromFile::load(&file, read).unwrap();
        look(&value);
        look(&value);
        assert_eq!(*reads.lock().unwrap(), 1);
        value.renew();
        look(&value);
        assert_eq!(*reads.lock().unwrap(), 2);
    }
}
