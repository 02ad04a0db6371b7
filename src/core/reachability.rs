//! Which of our addresses others can dial, as far as AutoNAT servers have found: what is tested
//! when, by whom, and for how long a result counts.
//!
//! What holds is never taken for granted: a mapping ends, a firewall changes. So each address is
//! tested again and again, soon while that may change something and rarely where it never worked.

use std::{net::IpAddr, time::Duration};

use multiaddr::{Multiaddr, PeerId, Protocol};

use super::{autonat::Outcome, scope::is_global};

/// Addresses kept at most. There are a few for each interface and family.
const MAX_ADDRESSES: usize = 16;
/// Tests under way at a time, one for each server: ours make but one for each peer. Each may cost
/// 100 kB and ten seconds.
const MAX_TESTS: usize = 4;
/// After how many pauses of a retry a confirmed address is tested again, and what is confirmed no
/// longer counts: with the default of 30 s, 10 and 20 minutes. A test costs up to 100 kB.
const REFRESH: u32 = 20;
const EXPIRY: u32 = 2 * REFRESH;
/// The longest pause between two tests of an address that fails, in pauses of a retry; by default
/// an hour. Most peers are behind NATs that let nobody in, and stay there.
const LONGEST: u32 = 120;

/// What is to be said to others.
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

/// An address of ours.
struct Candidate {
    address: Multiaddr,
    /// When it is tested next.
    due: Duration,
    /// The nonce of the test under way, and the server that makes it.
    test: Option<(u64, PeerId)>,
    /// Tests since the last one that reached us.
    failures: u32,
    /// Who has reached us there, and until when that counts.
    confirmed: Option<(PeerId, Duration)>,
}

/// All of them.
pub(crate) struct Reachability {
    retry: Duration,
    candidates: Vec<Candidate>,
}

impl Reachability {
    /// `retry` is the pause before the first test, so that what lives shorter costs nobody one, and
    /// after the first that fails.
    pub(crate) fn new(retry: Duration) -> Self {
        Self {
            retry,
            candidates: Vec::new(),
        }
    }

    /// Somebody sees us at `address`, or the router says that it leads to us.
    pub(crate) fn add(&mut self, now: Duration, address: &Multiaddr) {
        if self.candidates.iter().any(|c| c.address == *address) {
            return;
        }
        if self.candidates.len() >= MAX_ADDRESSES {
            let idle = |(_, c): &(usize, &Candidate)| c.confirmed.is_none() && c.test.is_none();
            let all = self.candidates.iter().enumerate();
            let Some((worst, _)) = all.filter(idle).max_by_key(|(_, c)| c.failures) else {
                return;
            };
            self.candidates.remove(worst);
        }
        self.candidates.push(Candidate {
            address: address.clone(),
            due: now + self.retry,
            test: None,
            failures: 0,
            confirmed: None,
        });
    }

    /// `address` is ours no longer, or the network has changed. One that has failed stays, so that
    /// whoever mentions it next does not make it new.
    pub(crate) fn forget(&mut self, address: &Multiaddr) {
        self.candidates
            .retain(|c| c.address != *address || (c.confirmed.is_none() && c.failures > 0));
    }

    /// The next test, if one is due and one of `servers` fits it; `nonce` is what it is known by
    /// from now on.
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

    /// What became of a test by `server`. What the network has made meaningless is ignored.
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

    /// What was confirmed too long ago.
    pub(crate) fn expired(&mut self, now: Duration) -> Option<Change> {
        let old = |c: &&mut Candidate| c.confirmed.is_some_and(|(_, until)| until <= now);
        let candidate = self.candidates.iter_mut().find(old)?;
        candidate.confirmed = None;
        candidate.failures = candidate.failures.max(1);
        Some(Change::Lost(candidate.address.clone()))
    }

    /// When time alone brings something next. What is due already waits for a server.
    pub(crate) fn wake(&self, now: Duration) -> Option<Duration> {
        let idle = self.candidates.iter().filter(|c| c.test.is_none());
        let tests = idle.map(|c| c.due).filter(|due| *due > now);
        let ends = self.candidates.iter().filter_map(|c| c.confirmed);
        tests.chain(ends.map(|(_, until)| until)).min()
    }
}

impl Candidate {
    /// Who may test it: the one that has reached us there, or one after the other. A server in a
    /// private network may be in ours and reach us where others do not, and one on the internet
    /// has no use for a private address.
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

/// A name is of the internet.
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

    /// With `address` as a candidate that the first of `servers` has just reached.
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
    fn what_is_confirmed_is_tested_again_by_the_same_server_and_lost_when_it_fails() {
        let servers = servers(3);
        let mut known = confirmed(&servers);
        let due = RETRY + RETRY * REFRESH;
        assert_eq!(known.wake(RETRY), Some(due));
        assert_eq!(
            known.test(due - Duration::from_millis(1), &servers, 2),
            None
        );
        let test = known.test(due, &servers, 2).unwrap();
        assert_eq!(test.server, servers[0].0);
        assert_eq!(known.tested(due, 2, test.server, Outcome::Reached), None);
        let due = due + RETRY * REFRESH;
        let test = known.test(due, &servers, 3).unwrap();
        let lost = known.tested(due, 3, test.server, Outcome::Unreached);
        assert_eq!(lost, Some(Change::Lost(ours())));
        // Soon again, by another one.
        assert_eq!(known.wake(due), Some(due + RETRY));
        let test = known.test(due + RETRY, &servers, 4).unwrap();
        assert_eq!(test.server, servers[1].0);
        let back = known.tested(due + RETRY, 4, test.server, Outcome::Reached);
        assert_eq!(back, Some(Change::Confirmed(ours())));
    }

    #[test]
    fn a_test_that_says_nothing_changes_nothing_until_the_result_is_too_old() {
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
    fn without_a_server_a_result_ends_all_the_same() {
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
    fn a_network_that_changed_makes_its_tests_meaningless() {
        let servers = servers(1);
        let mut known = confirmed(&servers);
        let mut due = RETRY + RETRY * REFRESH;
        let test = known.test(due, &servers, 2).unwrap();
        known.forget(&ours());
        assert_eq!(known.tested(due, 2, test.server, Outcome::Reached), None);
        assert_eq!(known.expired(RETRY + RETRY * EXPIRY), None);
        // Seen anew, it is tested soon; one that has failed twice is not.
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
    fn servers_test_addresses_of_their_own_kind() {
        let private = address("/ip4/192.168.1.2/tcp/9");
        let inside = [(PeerId::random(), address("/ip4/192.168.1.9/tcp/9"))];
        let outside = [(PeerId::random(), address("/dns4/example.com/tcp/9"))];
        let mut known = Reachability::new(RETRY);
        known.add(ZERO, &ours());
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
    fn there_are_bounds() {
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
        // The one that has failed made room.
        assert!(known.candidates.iter().all(|c| c.failures == 0));
    }
}
