//! The candidates of both ends: those that are told, those that are learned, and the sources of
//! datagrams.

use std::net::{IpAddr, SocketAddr};

use str0m::Candidate as IceAgentCandidate;

use super::{IceSession, Phase, Secure, SessionEvent, agent};
use crate::{
    core::{
        candidate::{Candidate, CandidateAddr, CandidateKind, CandidateTransport},
        dial::Policy,
        signalling::IceCandidate,
    },
    native::{
        ice::gather::{LocalCandidate, Origin},
        nat64::Nat64,
    },
};

/// The most candidates that are told after the description. It is half of the messages that a peer
/// takes in all. The limit is needed because ports are guessed anew whenever any connection begins.
const MAX_TRICKLED: usize = crate::core::signalling::MAX_MESSAGES / 2;

/// The most names of the peer that are looked up. A peer has one name for each of its addresses.
pub(super) const MAX_NAMES: usize = 8;

impl IceSession {
    pub(in crate::native::ice::webrtc) fn add_remote_candidate(
        &mut self,
        candidate: &IceCandidate,
    ) {
        match candidate.candidate.parse() {
            Ok(candidate) => self.add_remote(&candidate),
            Err(error) => tracing::debug!(%error, "a candidate that cannot be parsed is skipped"),
        }
    }

    /// Sets the policy. Candidates that `policy` bars are treated as if they had never been named. Others
    /// are reached as `nat64` says.
    pub(in crate::native::ice::webrtc) fn keep_to(&mut self, policy: Policy, nat64: Nat64) {
        (self.policy, self.nat64) = (policy, nat64);
    }

    /// Whether datagrams may be sent to `candidate`. A name has no address yet, so it is allowed.
    pub(super) fn allows(&mut self, candidate: &Candidate) -> bool {
        let to = candidate.socket_addr();
        if self.no_turn && candidate.kind == CandidateKind::Relayed {
            let room = self.left_out.len() < agent::MAX_PAIRS;
            self.left_out.extend(to.filter(|_| room));
            return false;
        }
        to.is_none_or(|to| self.policy.allows(to).is_ok())
    }

    /// Adds a candidate of the peer to the agent. All remote candidates pass through here.
    pub(super) fn add_remote(&mut self, candidate: &Candidate) {
        if !self.allows(candidate) {
            tracing::debug!("a candidate that must not be sent to is skipped");
            return;
        }
        let usable = candidate.component == 1 && candidate.transport == CandidateTransport::Udp;
        if let CandidateAddr::Name(..) = candidate.addr
            && usable
            && self.names < MAX_NAMES
        {
            self.names += 1;
            self.named.push(candidate.clone());
        }
        let Some(addr) = candidate.socket_addr().filter(|a| usable && a.port() != 0) else {
            return;
        };
        let Some(reached) = self.nat64.route(addr) else {
            tracing::debug!("a candidate of the network behind the NAT64 is skipped");
            return;
        };
        // A relayed address of ours may still reach the address itself.
        self.add_remote_at(candidate, addr);
        if reached != addr {
            let addr = CandidateAddr::Ip(reached);
            let candidate = candidate.clone();
            self.add_remote_at(&Candidate { addr, ..candidate }, reached);
        }
    }

    fn add_remote_at(&mut self, candidate: &Candidate, addr: SocketAddr) {
        if let Ok(remote) = IceAgentCandidate::from_sdp_string(&candidate.to_string()) {
            self.expect(addr);
            if candidate.mapped && self.sources.contains(&addr) {
                self.mapped.insert(addr);
            }
            self.ice.add_remote_candidate(remote);
        }
    }

    /// The candidates whose names are to be looked up. Each is returned once.
    pub(in crate::native::ice::webrtc) fn take_named(&mut self) -> Vec<Candidate> {
        std::mem::take(&mut self.named)
    }

    /// Takes the address of a candidate's name, which the network has told.
    pub(in crate::native::ice::webrtc) fn resolved(&mut self, candidate: &Candidate, ip: IpAddr) {
        if let CandidateAddr::Name(_, port) = candidate.addr {
            let addr = CandidateAddr::Ip(SocketAddr::new(ip, port));
            self.add_remote(&Candidate {
                addr,
                ..candidate.clone()
            });
        }
    }

    pub(super) fn expect(&mut self, source: SocketAddr) {
        // This is enough for any real peer. A flood of candidates must not fill the routes.
        if self.sources.len() < agent::MAX_PAIRS && self.sources.insert(source) {
            self.new_sources.push(source);
        }
    }

    /// The new sources that are to be routed here. Each is returned once.
    pub(in crate::native::ice::webrtc) fn take_new_sources(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.new_sources)
    }

    /// All sources that are routed here.
    pub(in crate::native::ice::webrtc) fn sources(&self) -> Vec<SocketAddr> {
        self.sources.iter().copied().collect()
    }

    /// Sets the candidates that can be offered now. The first call after an offer or answer was
    /// asked for makes the description. Later calls trickle new candidates and withdraw those that
    /// are gone.
    pub(in crate::native::ice::webrtc) fn set_local_candidates(
        &mut self,
        candidates: &[LocalCandidate],
    ) {
        if self.phase == Phase::New {
            return;
        }
        let allowed =
            |c: &&LocalCandidate| c.kind() != CandidateKind::Relayed || self.offers_relayed();
        let candidates: Vec<_> = candidates.iter().filter(allowed).copied().collect();
        let gone = |old: &&LocalCandidate| !candidates.contains(old);
        let gone: Vec<_> = self.local.iter().filter(gone).copied().collect();
        for candidate in gone {
            if let Some(candidate) = agent::candidate(&candidate) {
                self.ice.invalidate_candidate(&candidate);
            }
            self.local.retain(|local| *local != candidate);
        }
        let mut written = Vec::new();
        for candidate in candidates {
            if self.local.contains(&candidate) {
                continue;
            }
            self.local.push(candidate);
            if let Some(added) = agent::add(&mut self.ice, &candidate)
                && let Ok(mut line) = added.to_sdp_string().parse::<Candidate>()
            {
                line.mapped = candidate.origin == Origin::PortMapping;
                written.push(line);
            }
        }
        match self.phase {
            Phase::New | Phase::Offering | Phase::Answering => {
                self.phase = Phase::Described;
                let late = self.take_late(&mut written);
                let sdp = self.describe(written);
                self.event(SessionEvent::Description(sdp));
                self.trickle(late);
            }
            Phase::Described if !self.connected => self.trickle(written),
            // The peer no longer reads signalling. It sees new candidates as peer-reflexive.
            Phase::Described => {}
        }
    }

    fn trickle(&mut self, mut candidates: Vec<Candidate>) {
        candidates.truncate(MAX_TRICKLED.saturating_sub(self.trickled));
        self.trickled += candidates.len();
        for line in candidates {
            let candidate = IceCandidate {
                candidate: line.to_string(),
                sdp_mid: Some(self.mid.clone()),
                sdp_m_line_index: Some(0),
                username_fragment: Some(self.fragment()),
            };
            self.event(SessionEvent::Candidate(candidate));
        }
    }

    /// Takes the candidates out of an answer that follow it, because a page would check them first. A
    /// browser checks a pair every 50 ms, and those of hosts first, which hardly answer if the peers
    /// are behind different NATs.
    fn take_late(&self, candidates: &mut Vec<Candidate>) -> Vec<Candidate> {
        let Some(remote) = self.remote.as_ref().filter(|_| self.secure == Secure::Dtls) else {
            return Vec::new();
        };
        let public = |candidates: &[Candidate]| {
            let reflexive = |c: &&Candidate| c.kind == CandidateKind::ServerReflexive;
            let addrs = candidates.iter().filter(reflexive);
            let ips = addrs.filter_map(|c| Some(c.socket_addr()?.ip()));
            ips.collect::<Vec<_>>()
        };
        let (own, theirs) = (public(candidates), public(&remote.candidates));
        if own.is_empty() || theirs.is_empty() || own.iter().any(|ip| theirs.contains(ip)) {
            return Vec::new();
        }
        let of_host = |c: &mut Candidate| c.kind == CandidateKind::Host;
        candidates.extract_if(.., of_host).collect()
    }

    /// Whether a description waits for local candidates.
    pub(in crate::native::ice::webrtc) fn wants_candidates(&self) -> bool {
        matches!(self.phase, Phase::Offering | Phase::Answering)
    }
}
