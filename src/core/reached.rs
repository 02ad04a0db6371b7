//! At which addresses peers say that they reach a server.

use std::{collections::HashMap, net::IpAddr};

use super::{
    quota::network,
    scope::{Scope, scope},
};

/// How many networks have to name the same address. One peer could name any.
const ENOUGH: usize = 3;
/// The most addresses that are counted.
const MOST: usize = 16;

/// Which address was named from where.
#[derive(Debug, Default)]
pub(crate) struct Reached {
    named: HashMap<IpAddr, Vec<IpAddr>>,
    /// Whether the operator was told. Once is enough.
    told: bool,
}

impl Reached {
    /// A peer from `from` has come to this server at `at`. Returns `at` if that is worth a line in the
    /// log: everybody could reach it there, enough peers say so, and `announced` does not have it.
    pub(crate) fn note(
        &mut self,
        at: IpAddr,
        from: IpAddr,
        announced: impl Fn(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        let at = at.to_canonical();
        if self.told || scope(at) != Scope::Global || announced(at) {
            return None;
        }
        if self.named.len() >= MOST && !self.named.contains_key(&at) {
            self.named.clear();
        }
        let from = network(from);
        let networks = self.named.entry(at).or_default();
        if !networks.contains(&from) {
            networks.push(from);
        }
        self.told = networks.len() >= ENOUGH;
        self.told.then(|| {
            self.named.clear();
            at
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn three_networks_have_to_agree_and_the_operator_hears_it_once() {
        let mut reached = Reached::default();
        let (at, lie) = (ip("203.0.113.1"), ip("203.0.113.2"));
        let mut note = |at, from: &str| reached.note(at, ip(from), |_| false);
        for _ in 0..9 {
            assert_eq!(note(lie, "192.0.2.1"), None, "one peer says so");
        }
        assert_eq!(note(at, "192.0.2.2"), None);
        assert_eq!(note(at, "2001:db8::1"), None);
        assert_eq!(note(at, "2001:db8::2"), None, "the same /64");
        for from in ["192.0.2.3", "198.51.100.1", "2001:db8:1::1"] {
            assert_eq!(note(ip("10.0.0.1"), from), None, "private");
        }
        assert_eq!(note(lie, "192.0.2.1"), None);
        assert_eq!(
            note(at, "192.0.2.4"),
            Some(at),
            "others in between count nothing away"
        );
        for from in ["192.0.2.5", "198.51.100.2", "2001:db8:2::1"] {
            assert_eq!(note(at, from), None, "it was told");
        }
    }

    #[test]
    fn what_is_announced_is_no_news_and_memory_is_bounded() {
        let mut reached = Reached::default();
        let at = ip("203.0.113.1");
        for last in 0..9u8 {
            let from = [192, 0, 2, last].into();
            assert_eq!(reached.note(at, from, |ip| ip == at), None);
        }
        for last in 0..99u8 {
            let made_up = [203, 0, 113, last].into();
            reached.note(made_up, ip("192.0.2.1"), |_| false);
            assert!(reached.named.len() <= MOST);
        }
    }
}
