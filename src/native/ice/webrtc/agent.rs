//! The ICE agent: its settings, how candidates reach it, and how pairs leave it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use str0m::{
    Candidate, IceCreds,
    crypto::Sha1HmacProvider,
    ice::{IceAgent, default_local_preference},
};

use crate::{
    core::{candidate::CandidateKind, server_url::ServerTransport},
    native::ice::gather::{LocalCandidate, Origin},
    webrtc::backend::{CandidatePair, Endpoint},
};

/// The time between two connectivity checks (Ta). It is the least that RFC 8445 section 14.2
/// allows. The default of 50 ms is for agents that share a narrow link with media. Here it would be
/// most of the time that connecting takes.
const TIMING_ADVANCE: Duration = Duration::from_millis(5);

/// The pause before the first retransmission of a check. The check that comes second punches the
/// hole, so the second one is sent soon.
const CHECK_RTO: Duration = Duration::from_millis(100);
/// The longest pause between two retransmissions, and between two checks of a pair that is in use.
const CHECK_RTO_MAX: Duration = Duration::from_secs(1);
/// The pause between two checks of a pair in use over which little passes (RFC 7675 section 5.1). A
/// connection at rest costs a third of what it costs with a check a second.
const CHECK_PAUSE_QUIET: Duration = Duration::from_secs(5);
/// The number of retransmissions. A pair is dead after 9.5 s.
const CHECK_RETRANSMITS: usize = 11;

/// How much the preference of a relayed candidate falls for each layer between the datagrams and
/// IP. The agent gives relayed candidates 16,383 at most, and two less for each one that it has
/// already.
const STREAM_PENALTY: u32 = 4_000;

/// The most pairs that are checked, those with the highest priority first (RFC 8445 section
/// 6.1.2.5).
pub(super) const MAX_PAIRS: usize = 100;

/// A check that has no answer yet: its source, its destination, and the datagram.
pub(super) type Check = (SocketAddr, SocketAddr, Vec<u8>);

/// Checks that are repeated at once, because the peer has just been heard on their pair (RFC 8445
/// section 7.3.1.4). The agent leaves pairs that are in progress to their timers. The first check
/// that punches a hole is dropped by the other NAT, and would cost [`CHECK_RTO`] each time.
#[derive(Default)]
pub(super) struct Triggered {
    unanswered: HashMap<(SocketAddr, SocketAddr), Vec<u8>>,
    due: Vec<Check>,
}

impl Triggered {
    /// Takes note of a datagram that the agent sent: a check, or the answer to a check.
    pub(super) fn sent(&mut self, source: SocketAddr, destination: SocketAddr, data: &[u8]) {
        // The first byte of a Binding request's type is 0, the second 1 (RFC 8489 section 5).
        if data.starts_with(&[0, 1]) && self.unanswered.len() < MAX_PAIRS {
            self.unanswered.insert((source, destination), data.to_vec());
        }
    }

    /// Takes note of an authentic message from `source` at the local address `destination`.
    pub(super) fn heard(&mut self, source: SocketAddr, destination: SocketAddr, request: bool) {
        let check = self.unanswered.remove(&(destination, source));
        if let Some(check) = check.filter(|_| request) {
            self.due.push((destination, source, check));
        }
    }

    /// Returns the next check to repeat. It is identical to the first, so both have the same
    /// answer.
    pub(super) fn poll(&mut self) -> Option<Check> {
        self.due.pop()
    }
}

/// Makes an agent with fresh credentials.
pub(super) fn new(hmac: &'static dyn Sha1HmacProvider, now: Instant) -> IceAgent {
    let mut ice = IceAgent::with_hmac(IceCreds::new(), hmac);
    ice.set_timing_advance(TIMING_ADVANCE);
    ice.set_initial_stun_rto(CHECK_RTO);
    ice.set_max_stun_rto(CHECK_RTO_MAX);
    ice.set_max_stun_retransmits(CHECK_RETRANSMITS);
    ice.set_max_candidate_pairs(MAX_PAIRS);
    // Before this, the agent has no clock and no timeout to poll for.
    ice.handle_timeout(now);
    ice
}

/// Checks the pair in use often, or seldom if little passes over it.
pub(super) fn set_quiet(ice: &mut IceAgent, is_quiet: bool) {
    ice.set_max_stun_rto(match is_quiet {
        true => CHECK_PAUSE_QUIET,
        false => CHECK_RTO_MAX,
    });
}

/// Adds a local candidate, and returns it in the agent's form. Returns `None` for addresses that
/// the agent refuses.
///
/// Relayed candidates of servers that are asked over UDP come before those over TCP and TLS (RFC
/// 8445 section 5.1.2.1), because a stream holds everything back for each lost packet.
pub(super) fn add(ice: &mut IceAgent, local: &LocalCandidate) -> Option<Candidate> {
    let behind = match local.origin {
        Origin::Turn(ServerTransport::Tcp) => STREAM_PENALTY,
        Origin::Turn(ServerTransport::Tls) => 2 * STREAM_PENALTY,
        _ => 0,
    };
    ice.set_local_preference(move |candidate: &Candidate, same_kind| {
        default_local_preference(candidate, same_kind).saturating_sub(behind)
    });
    let candidate = candidate(local)?;
    if is_behind_nat64(local) {
        // The agent checks from the base, which it has as an address of an interface.
        return Some(candidate);
    }
    ice.add_local_candidate(candidate).cloned()
}

/// Whether a NAT64 stands between the two addresses of a candidate. The agent has no such candidates.
fn is_behind_nat64(local: &LocalCandidate) -> bool {
    local.addr.is_ipv4() != local.base.is_ipv4()
}

/// Converts a local candidate to the agent's form. Returns `None` for addresses that it refuses.
pub(super) fn candidate(candidate: &LocalCandidate) -> Option<Candidate> {
    let made = match candidate.kind() {
        CandidateKind::ServerReflexive => {
            let told = if is_behind_nat64(candidate) {
                candidate.addr
            } else {
                candidate.base
            };
            Candidate::server_reflexive(candidate.addr, told, "udp")
        }
        CandidateKind::Relayed => Candidate::relayed(candidate.addr, candidate.base, "udp"),
        CandidateKind::Host | CandidateKind::PeerReflexive => {
            Candidate::host(candidate.addr, "udp")
        }
    };
    made.ok()
}

/// Facts about a nominated pair that the agent does not know.
pub(super) struct Known<'a> {
    /// The candidates that were offered.
    pub(super) local: &'a [LocalCandidate],
    /// The address from which the peer sees this side's checks come.
    pub(super) seen: Option<SocketAddr>,
    /// Whether the peer called its address a port mapping.
    pub(super) remote_mapped: bool,
}

/// Describes the nominated pair, from its two addresses.
pub(super) fn pair(
    ice: &IceAgent,
    known: &Known<'_>,
    source: SocketAddr,
    destination: SocketAddr,
) -> CandidatePair {
    let found = ice.remote_candidates().find(|c| c.addr() == destination);
    let remote = match found.map(|candidate| candidate.kind()) {
        Some(str0m::CandidateKind::Host) => CandidateKind::Host,
        Some(str0m::CandidateKind::ServerReflexive) => CandidateKind::ServerReflexive,
        Some(str0m::CandidateKind::Relayed) => CandidateKind::Relayed,
        Some(str0m::CandidateKind::PeerReflexive) | None => CandidateKind::PeerReflexive,
    };
    // The agent checks from the base. Of the local candidates with this base, the one that the peer
    // sees is in use. If the peer sees an address that was not offered, a NAT made it for the peer.
    let offered = known.local.iter().find(|l| Some(l.addr) == known.seen);
    let relayed = known
        .local
        .iter()
        .find(|l| l.addr == source && l.kind() == CandidateKind::Relayed);
    let offered = relayed.or(offered);
    let local = Endpoint {
        kind: match (offered, known.seen) {
            (Some(offered), _) => offered.kind(),
            (None, Some(_)) => CandidateKind::PeerReflexive,
            (None, None) => CandidateKind::Host,
        },
        addr: known.seen.or(Some(source)),
        mapped: offered.is_some_and(|offered| offered.origin == Origin::PortMapping),
    };
    let remote = Endpoint {
        kind: remote,
        addr: Some(destination),
        mapped: known.remote_mapped,
    };
    let mut pair = CandidatePair::new(local, remote);
    pair.rtt = ice.nominated_pair_rtt();
    pair
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_a_nat64_is_told_and_not_checked_from() {
        let provider = str0m::crypto::from_feature_flags();
        let mut ice = new(provider.sha1_hmac_provider, Instant::now());
        let local = LocalCandidate {
            origin: Origin::Stun,
            addr: "203.0.113.1:7".parse().unwrap(),
            base: "[2001:db8::1]:8".parse().unwrap(),
        };
        let told = add(&mut ice, &local).unwrap().to_sdp_string();
        assert!(told.contains("203.0.113.1 7 typ srflx"), "{told}");
        assert_eq!(ice.local_candidates().count(), 0);
    }

    #[test]
    fn relayed_candidates_come_after_all_others_and_streams_last() {
        let provider = str0m::crypto::from_feature_flags();
        let mut ice = new(provider.sha1_hmac_provider, Instant::now());
        let mut priority = |origin, port| {
            let addr = SocketAddr::from(([203, 0, 113, 1], port));
            let local = LocalCandidate {
                origin,
                addr,
                base: addr,
            };
            add(&mut ice, &local).unwrap().prio()
        };
        // The order does not depend on when the candidates come.
        let origins = [
            Origin::Turn(ServerTransport::Tls),
            Origin::Turn(ServerTransport::Tcp),
            Origin::Turn(ServerTransport::Udp),
            Origin::Turn(ServerTransport::Udp),
            Origin::Stun,
            Origin::Interface,
        ];
        let given: Vec<_> = (1..)
            .zip(origins)
            .map(|(port, o)| priority(o, port))
            .collect();
        let [tls, tcp, udp, late, stun, host] = given[..] else {
            panic!("{given:?}");
        };
        assert!(tls < tcp && tcp < late && late < udp && udp < stun && stun < host);
    }
}
