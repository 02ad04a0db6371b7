//! How the keys of the peers that are here come and go.

use std::time::Instant;

use super::{Key, Own, State, UNKNOWN};

/// How many keys wait to be deleted. Further ones are left to their age.
const MOST_GONE: usize = 65_536;

impl State {
    /// The peer of `key` has said something here.
    pub(super) fn is_here(&mut self, key: Key) {
        let before = self.own.get(&key);
        self.gone -= usize::from(before.is_some_and(|own| own.gone.is_some()));
        let revision = before.map_or(0, |own| own.revision);
        self.own.insert(
            key,
            Own {
                gone: None,
                revision,
            },
        );
        self.outbox.note(key);
    }

    /// The peer of `key` goes. Returns whether it was here.
    pub(super) fn has_gone(&mut self, key: &Key, now: Instant) -> bool {
        let Some(own) = self.own.get_mut(key).filter(|own| own.gone.is_none()) else {
            return false;
        };
        own.gone = Some(now);
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
