//! Tracks which of our addresses others can dial, by the results of AutoNAT servers: which address
//! is tested when, by which server, and how long a result counts.
//!
//! A result is not valid for ever, because mappings end and firewalls change. So each address is
//! tested again and again: soon while the result may change something, and rarely where a test has
//! never succeeded.

use std::{net::IpAddr, time::Duration};

use multiaddr::{Multiaddr, PeerId, Protocol};

use super::{autonat::Outcome, scope::is_global};

/// The most addresses that are kept. There are a few for each interface and family.
const MAX_ADDRESSES: usize = 16;
/// The most tests under way at a time, one for each server, because our servers run only one test
/// per peer at a time. Each test may cost 100 kB and ten seconds.
const MAX_TESTS: usize = 4;
/// After how many retry pauses a confirmed address is tested again. With the default retry pause of
/// 30 s, this is 10 minutes. A test costs up to 100 kB.
const REFRESH: u32 = 20;
/// After how many retry pauses a confirmation no longer counts. By default this is 20 minutes.
const EXPIRY: u32 = 2 * REFRESH;
/// The longest pause between two tests of an address that fails, in retry pauses. By default this
/// is an hour. Most peers are behind NATs that let nobody in, and stay there.
const LONGEST: u32 = 120;

/// A change that others have to learn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Confirmed(Multiaddr),
    Lost(Multiaddr),
}

/// A test to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Test {
    pub(crate) address: Multiaddr,
    pub(crate) server: PeerId,
}

/// One of our addresses.
struct TestedAddress {
    address: Multiaddr,
    /// When the address is tested next.
    due: Duration,
    /// The nonce of the test under way, and the server that makes it.
    test: Option<(u64, PeerId)>,
    /// The number of tests since the last one that reached us.
    failures: u32,
    /// The server that has reached us at the address, and until when this counts.
    confirmed: Option<(PeerId, Duration)>,
}

/// The reachability of all our addresses.
pub(crate) struct Reachability {
    retry: Duration,
    candidates: Vec<TestedAddress>,
}

impl Reachability {
    /// `retry` is the pause before the first test, and after the first test that fails. The pause
    /// before the first test keeps short-lived peers from causing tests.
    pub(crate) fn new(retry: Duration) -> Self {
        Self {
            retry,
            candidates: Vec::new(),
        }
    }

    /// Adds `address`, at which somebody sees us or which the router says leads to us.
    pub(crate) fn add(&mut self, now: Duration, address: &Multiaddr) {
        if self.candidates.iter().any(|c| c.address == *address) {
            return;
        }
        if self.candidates.len() >= MAX_ADDRESSES {
            let idle = |(_, c): &(usize, &TestedAddress)| c.confirmed.is_none() && c.test.is_none();
            let all = self.candidates.iter().enumerate();
            let Some((worst, _)) = all.filter(idle).max_by_key(|(_, c)| c.failures) else {
                return;
            };
            self.candidates.remove(worst);
        }
        self.candidates.push(TestedAddress {
            address: address.clone(),
            due: now + self.retry,
            test: None,
            failures: 0,
            confirmed: None,
        });
    }

    /// Removes `address`, because it is no longer ours or the network has changed. An address that
    /// has failed is kept, so that it does not count as new when somebody mentions it again.
    pub(crate) fn forget(&mut self, address: &Multiaddr) {
        self.candidates
            .retain(|c| c.address != *address || (c.confirmed.is_none() && c.failures > 0));
    }

    /// Returns the next test, if one is due and one of `servers` fits it. `nonce` identifies the
    /// test from then on.
    pub(crate) fn test(
        &mut self,
        now: Duration,
        servers: &[(PeerId, Multiaddr)],
        nonce: u64,
    ) -> Option<Test> {
        let under_way = self.candidates.iter().filter_map(|c| c.test);
        let busy: Vec<_> = under_way.map(|(_, server)| server).collect();
        if busy.len() >= MAX_TESTS {
            return None;
        }
        let due = self.candidates.iter_mut();
        let due = due.filter(|c| c.test.is_none() && c.due <= now);
        let (candidate, server) = due
            .filter_map(|c| Some((c.server(servers)?, c)))
            .filter(|(server, _)| !busy.contains(server))
            .map(|(server, c)| (c, server))
            .min_by_key(|(c, _)| c.due)?;
        candidate.test = Some((nonce, server));
        Some(Test {
            address: candidate.address.clone(),
            server,
        })
    }

    /// Takes the result of a test by `server`. The result is ignored if the address was forgotten
    /// meanwhile.
    pub(crate) fn tested(
        &mut self,
        now: Duration,
        nonce: u64,
        server: PeerId,
        outcome: Outcome,
    ) -> Option<Change> {
        let retry = self.retry;
        let all = &mut self.candidates;
        let candidate = all.iter_mut().find(|c| c.test == Some((nonce, server)))?;
        candidate.test = None;
        let address = candidate.address.clone();
        if outcome == Outcome::Reached {
            candidate.failures = 0;
            candidate.due = now + retry * REFRESH;
            let before = candidate.confirmed.replace((server, now + retry * EXPIRY));
            return before.is_none().then_some(Change::Confirmed(address));
        }
        let longer = 1u32.checked_shl(candidate.failures).unwrap_or(LONGEST);
        candidate.due = now + retry * longer.min(LONGEST);
        candidate.failures = candidate.failures.saturating_add(1);
        let lost = outcome == Outcome::Unreached && candidate.confirmed.take().is_some();
        lost.then_some(Change::Lost(address))
    }

    /// Returns the change for an address whose confirmation has expired, if there is one.
    pub(crate) fn expired(&mut self, now: Duration) -> Option<Change> {
        let old = |c: &&mut TestedAddress| c.confirmed.is_some_and(|(_, until)| until <= now);
        let candidate = self.candidates.iter_mut().find(old)?;
        candidate.confirmed = None;
        candidate.failures = candidate.failures.max(1);
        Some(Change::Lost(candidate.address.clone()))
    }

    /// Returns when something becomes due next. Tests that are due already wait for a server, not
    /// for time.
    pub(crate) fn wake(&self, now: Duration) -> Option<Duration> {
        let idle = self.candidates.iter().filter(|c| c.test.is_none());
        let tests = idle.map(|c| c.due).filter(|due| *due > now);
        let ends = self.candidates.iter().filter_map(|c| c.confirmed);
        tests.chain(ends.map(|(_, until)| until)).min()
    }
}

impl TestedAddress {
    /// Returns the server that tests this address next: the server that has reached us there
    /// before, or else each server in turn. A server in a private network may be in our own
    /// network, and may reach us where others cannot. A server on the internet cannot use a private
    /// address.
    fn server(&self, servers: &[(PeerId, Multiaddr)]) -> Option<PeerId> {
        let public = is_public(&self.address);
        let fitting = servers.iter().filter(|(_, at)| is_public(at) == public);
        let fitting: Vec<_> = fitting.map(|(peer, _)| *peer).collect();
        let proven = self.confirmed.map(|(peer, _)| peer);
        if let Some(proven) = proven.filter(|p| self.failures == 0 && fitting.contains(p)) {
            return Some(proven);
        }
        let turn = (self.failures as usize).checked_rem(fitting.len())?;
        fitting.get(turn).copied()
    }
}

/// Whether `address` is on the internet. A name counts as such.
fn is_public(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => is_global(IpAddr::V4(ip)),
        Some(Protocol::Ip6(ip)) => is_global(IpAddr::V6(ip)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Duration = Duration::from_secs(30);
    const ZERO: Duration = Duration::ZERO;

    fn address(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn ours() -> Multiaddr {
        address("/ip4/203.0.113.1/udp/9/quic-v1")
    }

    fn servers(count: usize) -> Vec<(PeerId, Multiaddr)> {
        let at = |n| address(&format!("/ip4/198.51.100.{n}/udp/9/quic-v1"));
        (0..count).map(|n| (PeerId::random(), at(n))).collect()
    }

    /// Makes a state in which the first of `servers` has just reached our address.
    fn confirmed(servers: &[(PeerId, Multiaddr)]) -> Reachability {
        let mut known = Reachability::new(RETRY);
        known.add(ZERO, &ours());
        assert_eq!(known.test(ZERO, servers, 1), None);
        let test = known.test(RETRY, servers, 1).unwrap();
        let change = known.tested(RETRY, 1, test.server, Outcome::Reached);
        assert_eq!(change, Some(Change::Confirmed(ours())));
        known
    }

    #[test]
    fn an_address_that_was_forgotten_before_its_test_is_not_tested() {
        let mut known = Reachability::new(RETRY);
        known.add(ZERO, &ours());
        known.forget(&ours());
        assert_eq!(known.test(RETRY, &servers(1), 1), None);
    }

    #[test]
    fn a_confirmed_address_is_tested_again_by_the_same_server_and_lost_when_that_fails() {
        let servers = servers(3);
        let mut known = confirmed(&servers);
        let due = RETRY + RETRY * REFRESH;
        assert_eq!(known.wake(RETRY), Some(due));
        assert_eq!(
            known.test(due - Duration::from_millis(1), &servers, 2),
            None
        );
        let mut others_first = servers.clone();
        others_first.rotate_left(1);
        let test = known.test(due, &others_first, 2).unwrap();
        assert_eq!(test.server, servers[0].0);
        assert_eq!(known.tested(due, 2, test.server, Outcome::Reached), None);
        let due = due + RETRY * REFRESH;
        let test = known.test(due, &servers, 3).unwrap();
        let lost = known.tested(due, 3, test.server, Outcome::Unreached);
        assert_eq!(lost, Some(Change::Lost(ours())));
        // The next test follows soon, by another server.
        assert_eq!(known.wake(due), Some(due + RETRY));
        let test = known.test(due + RETRY, &servers, 4).unwrap();
        assert_eq!(test.server, servers[1].0);
        let back = known.tested(due + RETRY, 4, test.server, Outcome::Reached);
        assert_eq!(back, Some(Change::Confirmed(ours())));
    }

    #[test]
    fn a_test_without_a_result_changes_nothing_until_the_confirmation_expires() {
        let servers = servers(1);
        let mut known = confirmed(&servers);
        let due = RETRY + RETRY * REFRESH;
        let end = RETRY + RETRY * EXPIRY;
        let test = known.test(due, &servers, 2).unwrap();
        assert_eq!(known.tested(due, 2, test.server, Outcome::Unknown), None);
        assert_eq!(known.expired(end - Duration::from_millis(1)), None);
        assert_eq!(known.expired(end), Some(Change::Lost(ours())));
        assert_eq!(known.expired(end), None);
    }

    #[test]
    fn a_confirmation_expires_without_a_server() {
        let mut known = confirmed(&servers(1));
        let end = RETRY + RETRY * EXPIRY;
        assert_eq!(known.test(end, &[], 2), None);
        assert_eq!(known.wake(RETRY + RETRY * REFRESH), Some(end));
        assert_eq!(known.expired(end), Some(Change::Lost(ours())));
    }

    #[test]
    fn pauses_grow_to_the_longest() {
        let servers = servers(1);
        let mut known = Reachability::new(RETRY);
        known.add(ZERO, &ours());
        let mut now = RETRY;
        let mut pauses = Vec::new();
        for nonce in 0..40 {
            let test = known.test(now, &servers, nonce).unwrap();
            known.tested(now, nonce, test.server, Outcome::Unreached);
            let next = known.wake(now).unwrap();
            pauses.push((next - now).as_secs() / RETRY.as_secs());
            now = next;
        }
        assert_eq!(pauses[..8], [1, 2, 4, 8, 16, 32, 64, 120]);
        assert!(pauses[8..].iter().all(|pause| *pause == 120));
    }

    #[test]
    fn results_for_forgotten_addresses_are_ignored() {
        let servers = servers(1);
        let mut known = confirmed(&servers);
        let mut due = RETRY + RETRY * REFRESH;
        let test = known.test(due, &servers, 2).unwrap();
        known.forget(&ours());
        assert_eq!(known.tested(due, 2, test.server, Outcome::Reached), None);
        assert_eq!(known.expired(RETRY + RETRY * EXPIRY), None);
        // An address that is seen again is tested soon, unless it has failed twice.
        for nonce in 3..5 {
            known.add(due, &ours());
            due += RETRY;
            let test = known.test(due, &servers, nonce).unwrap();
            known.tested(due, nonce, test.server, Outcome::Unreached);
            known.forget(&ours());
        }
        known.add(due, &ours());
        assert_eq!(known.test(due + RETRY, &servers, 5), None);
    }

    #[test]
    fn public_servers_test_public_addresses_and_private_servers_private_ones() {
        let private = address("/ip4/192.168.1.2/tcp/9");
        let inside = [(PeerId::random(), address("/ip4/192.168.1.9/tcp/9"))];
        let outside = [(PeerId::random(), address("/dns4/example.com/tcp/9"))];
        let mut known = Reachability::new(RETRY);
        known.add(ZERO, &ours());
        let unique_local = (PeerId::random(), address("/ip6/fd00::9/tcp/9"));
        assert_eq!(known.test(RETRY, &[unique_local], 1), None);
        assert_eq!(known.test(RETRY, &inside, 1), None);
        assert!(known.test(RETRY, &outside, 1).is_some());
        known.add(ZERO, &private);
        assert_eq!(known.test(RETRY, &outside, 2), None);
        assert!(known.test(RETRY, &inside, 2).is_some());
    }

    #[test]
    fn a_server_makes_one_test_at_a_time() {
        let servers = servers(1);
        let mut known = Reachability::new(RETRY);
        known.add(ZERO, &ours());
        known.add(ZERO, &address("/ip4/203.0.113.1/tcp/9"));
        let first = known.test(RETRY, &servers, 1).unwrap();
        assert_eq!(known.test(RETRY, &servers, 2), None);
        known.tested(RETRY, 1, first.server, Outcome::Reached);
        let second = known.test(RETRY, &servers, 2).unwrap();
        assert_ne!(second.address, first.address);
    }

    #[test]
    fn addresses_and_tests_are_bounded() {
        let servers = servers(MAX_TESTS + 1);
        let mut known = Reachability::new(RETRY);
        let at = |n: usize| address(&format!("/ip4/203.0.113.{n}/udp/9/quic-v1"));
        for n in 0..MAX_ADDRESSES {
            known.add(ZERO, &at(n));
        }
        for nonce in 0..MAX_TESTS as u64 {
            let only = &servers[nonce as usize..];
            assert!(known.test(RETRY, only, nonce).is_some());
        }
        assert_eq!(known.test(RETRY, &servers[MAX_TESTS..], 99), None);
        known.tested(RETRY, 0, servers[0].0, Outcome::Unreached);
        known.add(ZERO, &at(200));
        assert_eq!(known.candidates.len(), MAX_ADDRESSES);
        // The address that has failed made room.
        assert!(known.candidates.iter().all(|c| c.failures == 0));
    }
}
