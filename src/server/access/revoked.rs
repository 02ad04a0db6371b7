//! The tokens that do not count any more: those in this server's file, and those that another server of
//! the fleet has named.

use std::{
    collections::HashSet,
    path::Path,
    sync::{Arc, PoisonError, RwLock},
};

use super::{names::Names, token};
use crate::error::Error;

/// How many tokens other servers may name.
const MOST: usize = 65_536;

/// The tokens that do not count any more, by their ids. Clones share them.
#[derive(Clone)]
pub(crate) struct Revoked(Arc<Inner>);

struct Inner {
    file: Option<Names<String>>,
    /// Those that other servers have named. None is ever taken back, so they outlive a time without the
    /// others.
    named: RwLock<HashSet<String>>,
}

impl Revoked {
    /// # Errors
    /// [`ErrorKind::InvalidConfig`](crate::ErrorKind::InvalidConfig) if the file cannot be read.
    pub(crate) fn new(file: Option<&Path>) -> Result<Self, Error> {
        let id = |name: &str| token::is_id(name).then(|| name.to_owned());
        let file = file.map(|file| Names::load("access.revoked", file, id));
        Ok(Self(Arc::new(Inner {
            file: file.transpose()?,
            named: RwLock::default(),
        })))
    }

    /// Whether the token with this id does not count.
    pub(super) fn hold(&self, id: Option<&str>) -> bool {
        let Some(id) = id else {
            return false;
        };
        let file = &self.0.file;
        file.as_ref()
            .is_some_and(|names| names.hold(&id.to_owned()))
            || self.is_named(id)
    }

    fn is_named(&self, id: &str) -> bool {
        let named = self.0.named.read().unwrap_or_else(PoisonError::into_inner);
        named.contains(id)
    }

    /// Another server has named this token. Returns whether it counts, which what is no id, or one too many,
    /// does not.
    pub(crate) fn name(&self, id: &str) -> bool {
        if !token::is_id(id) {
            return false;
        }
        let mut named = self.0.named.write().unwrap_or_else(PoisonError::into_inner);
        let counts = named.len() < MOST || named.contains(id);
        if counts {
            named.insert(id.to_owned());
        }
        counts
    }

    /// Returns the tokens in the file that are not `there`, at most `most`.
    pub(crate) fn missing(&self, there: &HashSet<String>, most: usize) -> Vec<String> {
        let own = self.0.file.iter().flat_map(|names| {
            let all = names.all();
            let missing = all.iter().filter(|id| !there.contains(*id));
            missing.take(most).cloned().collect::<Vec<_>>()
        });
        own.collect()
    }

    pub(super) fn renew(&self) {
        if let Some(names) = &self.0.file {
            names.file.renew();
        }
    }

    pub(super) async fn follow(&self) {
        if let Some(names) = &self.0.file {
            names.follow().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_token_that_is_in_the_file_or_was_named_does_not_count() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("revoked");
        fs::write(&file, "a\nb\n").unwrap();
        let revoked = Revoked::new(Some(&file)).unwrap();
        revoked.name("c");
        revoked.name("no id");
        let held = ["a", "b", "c", "no id", "d"].map(|id| revoked.hold(Some(id)));
        assert_eq!(held, [true, true, true, false, false]);
        assert!(!revoked.hold(None));
        let there = HashSet::from(["b".to_owned(), "d".to_owned()]);
        assert_eq!(revoked.missing(&there, 9), ["a"]);
        assert_eq!(revoked.missing(&HashSet::new(), 1).len(), 1);
        let counted = (0..=MOST).filter(|n| revoked.name(&n.to_string()));
        assert_eq!(counted.count(), MOST - 1);
        assert_eq!(revoked.0.named.read().unwrap().len(), MOST);
        assert!(revoked.name("c"), "it is known");
    }
}
