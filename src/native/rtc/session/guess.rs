//! Guessing ports by the birthday method, when and how a session does it.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use str0m::ice::{StunMessage, TransId};

use super::{MTU, Outgoing, Session, SessionEvent};
use crate::{
    core::{
        birthday::{Effort, Prober, Side},
        candidate::{Candidate, CandidateKind},
    },
    native::{
        gather::{LocalCandidate, Origin},
        rtc::{agent, burst::Burst},
    },
};

/// How long connecting may take after the last probe.
const GUESS_GRACE: Duration = Duration::from_secs(3);

/// The priority of a candidate that is discovered by a check (RFC 8445 section 5.1.2.1), for checks
/// that the agent does not know of.
const GUESS_PRIORITY: u32 = (110 << 24) | (0xffff << 8) | 255;

/// Guessing a port, by the birthday method.
pub(super) enum Guess {
    /// Not until then.
    At(Instant, Side),
    /// We probe this address, from that one.
    Probing {
        since: Instant,
        prober: Prober,
        target: IpAddr,
        base: SocketAddr,
        end: Instant,
    },
    /// Sockets are opened as soon as the driver takes this.
    Opening { burst: Option<Burst>, end: Instant },
}

impl Guess {
    /// When something is due.
    pub(super) fn next_at(&self) -> Option<Instant> {
        match self {
            Self::At(at, _) => Some(*at),
            Self::Probing {
                since, prober, end, ..
            } => Some(prober.next_at().map_or(*end, |at| *since + at)),
            Self::Opening { end, .. } => Some(*end),
        }
    }
}

impl Session {
    /// Allows to guess ports.
    pub(in crate::native::rtc) fn may_guess(&mut self, effort: Option<Effort>) {
        self.effort = effort;
    }

    /// Says our part in it, as far as it is known; in time for the description.
    pub(in crate::native::rtc) fn set_side(&mut self, side: Option<Side>) {
        self.side = side;
        // An answerer knows the peer's part first.
        self.plan_guess();
    }

    /// Both sides know how both NATs map.
    pub(super) fn plan_guess(&mut self) {
        let remote = self.remote.as_ref().and_then(|remote| remote.side);
        if let (Some(effort), Some(ours), Some(theirs), None) =
            (self.effort, self.side, remote, &self.guess)
            && ours != theirs
            && self.nominated.is_none()
        {
            self.guess = Some(Guess::At(self.now + effort.delay, ours));
        }
    }

    /// Begins or ends what is due.
    pub(super) fn guess_timeout(&mut self) {
        match self.guess {
            Some(Guess::At(at, side)) if self.now >= at => self.begin_guess(side),
            Some(Guess::Probing { end, .. } | Guess::Opening { end, .. }) if self.now >= end => {
                self.guess = None;
            }
            _ => {}
        }
    }

    fn begin_guess(&mut self, side: Side) {
        self.guess = None;
        let reflexive = |c: &&Candidate| c.kind == CandidateKind::ServerReflexive;
        let candidates = self.remote.iter().flat_map(|remote| &remote.candidates);
        let mut theirs = candidates
            .filter(reflexive)
            .filter_map(Candidate::socket_addr);
        let target = theirs.find(SocketAddr::is_ipv4);
        let bases = self.local.iter().map(|local| local.base);
        let base = bases
            .filter(SocketAddr::is_ipv4)
            .find(|base| !base.ip().is_loopback());
        let (Some(effort), Some(target), Some(base)) = (self.effort, target, base) else {
            return;
        };
        tracing::debug!(?side, "guessing ports");
        let end = self.now + effort.duration() + GUESS_GRACE;
        self.guess = Some(match side {
            Side::Easy => Guess::Probing {
                since: self.now,
                prober: Prober::new(effort, getrandom::u64().unwrap_or_default()),
                target: target.ip(),
                base,
                end,
            },
            Side::Hard => Guess::Opening {
                burst: Some(Burst { target, effort }),
                end,
            },
        });
        self.event(SessionEvent::MoreTime(effort.duration() + GUESS_GRACE));
    }

    /// The sockets that are to be opened now. Said once.
    pub(in crate::native::rtc) fn take_burst(&mut self) -> Option<Burst> {
        match &mut self.guess {
            Some(Guess::Opening { burst, .. }) => burst.take(),
            _ => None,
        }
    }

    /// A check that the agent does not know of; `None` once a pair is nominated.
    pub(in crate::native::rtc) fn guess_check(&self) -> Option<Vec<u8>> {
        if self.nominated.is_some() || self.closed {
            return None;
        }
        let remote = self.remote.as_ref()?;
        let username = format!("{}:{}", remote.ufrag, self.ice.local_credentials().ufrag);
        let tie_breaker = getrandom::u64().unwrap_or_default();
        let check = StunMessage::binding_request(
            &username,
            TransId::new(),
            self.ice.controlling(),
            tie_breaker,
            GUESS_PRIORITY,
            false,
        );
        let hmac = self.identity.crypto.sha1_hmac_provider;
        let mut bytes = vec![0; MTU];
        let len = check
            .to_bytes(Some(remote.pwd.as_bytes()), &mut bytes, |key, parts| {
                hmac.sha1_hmac(key, parts)
            })
            .ok()?;
        bytes.truncate(len);
        Some(bytes)
    }

    /// A socket of ours has been met by the peer.
    pub(in crate::native::rtc) fn adopt(&mut self, local: SocketAddr) {
        let found = LocalCandidate {
            origin: Origin::Birthday,
            addr: local,
            base: local,
        };
        if let Some(candidate) = agent::candidate(&found) {
            self.ice.add_local_candidate(candidate);
        }
    }

    /// Sends the probes that are due.
    pub(super) fn probe(&mut self, send: &mut impl FnMut(Outgoing<'_>)) {
        let now = self.now;
        loop {
            let Some(Guess::Probing {
                since,
                prober,
                target,
                base,
                ..
            }) = &mut self.guess
            else {
                return;
            };
            let Some(port) = prober.poll(now.saturating_duration_since(*since)) else {
                return;
            };
            let (source, destination) = (*base, SocketAddr::new(*target, port));
            if let Some(check) = self.guess_check() {
                send(Outgoing {
                    source,
                    destination,
                    data: &check,
                });
            }
        }
    }
}
