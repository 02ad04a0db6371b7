//! Amounts by account, without a clock and without IO.

use std::{collections::HashMap, ops::AddAssign};

/// What an account took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    pub(crate) bytes: u64,
    pub(crate) circuits: u64,
    pub(crate) reservations: u64,
    pub(crate) allocations: u64,
    pub(crate) seconds: u64,
}

impl AddAssign for Amounts {
    fn add_assign(&mut self, more: Self) {
        for (sum, more) in [
            (&mut self.bytes, more.bytes),
            (&mut self.circuits, more.circuits),
            (&mut self.reservations, more.reservations),
            (&mut self.allocations, more.allocations),
            (&mut self.seconds, more.seconds),
        ] {
            *sum = sum.saturating_add(more);
        }
    }
}

/// Whom an amount is put down to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Account {
    /// The name of the token by which the peer was admitted. It is empty without a token.
    pub(crate) token: String,
    /// The peer id, or the user of the TURN server.
    pub(crate) peer: String,
}

/// The peer that stands for all those for which there was no room.
pub(crate) const OTHERS: &str = "*";

impl Account {
    /// The account of a peer without a token.
    #[cfg(test)]
    pub(crate) fn of(peer: impl ToString) -> Self {
        Self {
            token: String::new(),
            peer: peer.to_string(),
        }
    }

    /// The account of all further peers of the same token.
    pub(super) fn others(&self) -> Self {
        Self {
            token: self.token.clone(),
            peer: OTHERS.into(),
        }
    }
}

/// The amounts that are not written yet.
#[derive(Debug, Default)]
pub(super) struct Book(HashMap<Account, Amounts>);

/// The most accounts in the book. Further peers share the account of [`OTHERS`]. Together they take
/// about 10 MiB.
const MOST: usize = 1 << 16;

impl Book {
    pub(super) fn add(&mut self, account: &Account, amounts: Amounts) {
        if amounts == Amounts::default() {
            return;
        }
        let is_full = self.0.len() >= MOST;
        match self.0.get_mut(account) {
            Some(sum) => *sum += amounts,
            None if is_full => {
                let others = Account {
                    token: OTHERS.into(),
                    peer: OTHERS.into(),
                };
                *self.0.entry(others).or_default() += amounts;
            }
            None => _ = self.0.insert(account.clone(), amounts),
        }
    }

    /// Takes all amounts out of the book.
    pub(super) fn take(&mut self) -> Vec<(Account, Amounts)> {
        std::mem::take(&mut self.0).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(bytes: u64) -> Amounts {
        Amounts {
            bytes,
            ..Amounts::default()
        }
    }

    #[test]
    fn amounts_of_one_account_are_summed_up() {
        let mut book = Book::default();
        let (a, b) = (Account::of("a"), Account::of("b"));
        book.add(&a, bytes(1));
        book.add(&b, bytes(u64::MAX));
        book.add(&b, bytes(2));
        book.add(&Account::of("c"), bytes(0));
        book.add(&a, bytes(2));
        let rows: HashMap<_, _> = book.take().into_iter().collect();
        assert_eq!(rows[&a], bytes(3));
        assert_eq!(rows[&b], bytes(u64::MAX));
        assert!(book.take().is_empty());
    }

    #[test]
    fn a_full_book_loses_nothing() {
        let mut book = Book::default();
        let count = MOST as u64 + 100;
        for peer in 0..count {
            book.add(&Account::of(peer), bytes(1));
        }
        let rows = book.take();
        assert_eq!(rows.len(), MOST + 1);
        let sum: u64 = rows.iter().map(|(_, amounts)| amounts.bytes).sum();
        assert_eq!(sum, count);
    }
}
