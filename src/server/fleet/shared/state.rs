//! How the keys of the peers that are here come and go.

use std::time::Instant;

use super::{Key, Own, State, UNKNOWN};

/// How many keys wait to be deleted. Further ones are left to their age.
const MOST_GONE: usize = 65_536;

impl State {
    /// The peer of `key` has said something here.
    pub(super) fn is_here(&mut self, key: Key) {
        let own = self.own.entry(key).or_insert(Own {
            gone: None,
            revision: 0,
            is_ours: false,
        });
        self.gone -= usize::from(own.gone.take().is_some());
        self.outbox.note(key);
    }

    /// The peer of `key` goes. Returns whether it was here.
    pub(super) fn has_gone(&mut self, key: &Key, now: Instant) -> bool {
        let Some(own) = self.own.get_mut(key).filter(|own| own.gone.is_none()) else {
            return false;
        };
        own.gone = Some(now);
        if own.revision > 0 && !own.is_ours {
            // What another server has written is not this server's to delete. The store names the writer.
            own.revision = UNKNOWN;
        }
        self.gone += 1;
        self.outbox.note(*key);
        if self.gone > MOST_GONE {
            self.disown(key);
        }
        true
    }

    /// Puts members before peers in what waits, because they count for the shortest time.
    pub(super) fn sort(&mut self) {
        self.outbox.prefer(|key| matches!(key, Key::Member(..)));
    }

    /// It is not known what the store has for `key`.
    pub(super) fn doubt(&mut self, key: &Key) {
        if let Some(own) = self.own.get_mut(key) {
            own.revision = UNKNOWN;
        }
    }

    /// The key is not this server's any more.
    pub(super) fn disown(&mut self, key: &Key) {
        if let Some(own) = self.own.remove(key) {
            self.gone -= usize::from(own.gone.is_some());
        }
    }
}
