//! Files of names: the peers that a list admits, and the tokens that are revoked.

use std::{
    collections::HashSet,
    fs,
    hash::Hash,
    io::{self, Read as _},
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    error::{Error, ErrorKind},
    native::environment::FromFile,
};

/// The longest file of names. It has room for a million peer ids.
const MAX_FILE: u64 = 64 * 1024 * 1024;

/// The names in a file, one a line. Lines that begin with `#` are comments.
pub(super) struct Names<T> {
    pub(super) file: Arc<FromFile<Arc<HashSet<T>>>>,
    /// The names as of the last look at the file.
    now: RwLock<Arc<HashSet<T>>>,
}

impl<T: Eq + Hash + Send + Sync + 'static> Names<T> {
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] if the file cannot be read. A line that is no name is left out,
    /// and the log says so.
    pub(super) fn load(
        field: &'static str,
        path: &Path,
        name: impl Fn(&str) -> Option<T> + Send + Sync + 'static,
    ) -> Result<Self, Error> {
        let had_names = AtomicBool::new(false);
        let read = move |path: &Path| {
            let names = read_names(field, path, &name)?;
            // Half of a file would bar whoever stands in the other half. A comment tells a list of
            // nobody from a file that is only begun.
            let is_cut = names.ends_in_half || names.all.is_empty() && !names.has_comment;
            if is_cut && had_names.load(Ordering::Relaxed) {
                return Err(io::Error::other("it is not written to its end"));
            }
            had_names.store(!names.all.is_empty(), Ordering::Relaxed);
            Ok(Arc::new(names.all))
        };
        let invalid = |error| {
            let message = format!("{field}: {}: {error}", path.display());
            Error::new(ErrorKind::InvalidConfig, message)
        };
        let now = RwLock::new(read(path).map_err(invalid)?);
        let file = FromFile::load(path, read).map_err(invalid)?;
        Ok(Self { file, now })
    }

    pub(super) fn hold(&self, name: &T) -> bool {
        let now = self.now.read().unwrap_or_else(PoisonError::into_inner);
        now.contains(name)
    }

    /// Returns all names.
    pub(super) fn all(&self) -> Arc<HashSet<T>> {
        self.now
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) async fn follow(&self) {
        let current = self.file.current().await;
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = current;
    }
}

/// What a file of names says.
struct Listed<T> {
    all: HashSet<T>,
    has_comment: bool,
    /// Whether its last line is no name and has no end.
    ends_in_half: bool,
}

fn read_names<T: Eq + Hash>(
    field: &str,
    path: &Path,
    name: impl Fn(&str) -> Option<T>,
) -> io::Result<Listed<T>> {
    let mut text = String::new();
    let read = fs::File::open(path)?
        .take(MAX_FILE + 1)
        .read_to_string(&mut text)?;
    if read as u64 > MAX_FILE {
        return Err(io::Error::other(format!(
            "it is longer than {MAX_FILE} bytes"
        )));
    }
    let mut names = HashSet::new();
    let (mut has_comment, mut ends_in_half) = (false, false);
    // The last line may be half of one, if it has no end.
    let whole = text.lines().count() - usize::from(!text.is_empty() && !text.ends_with('\n'));
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        has_comment |= line.starts_with('#');
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match name(line) {
            Some(name) => _ = names.insert(name),
            None if number >= whole => ends_in_half = true,
            None => tracing::warn!(line = number + 1, "{field}: this line is left out"),
        }
    }
    Ok(Listed {
        all: names,
        has_comment,
        ends_in_half,
    })
}
