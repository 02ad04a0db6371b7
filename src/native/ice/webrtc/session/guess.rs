//! Guessing ports by the birthday method: when and how a session does it.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use str0m::ice::{StunMessage, TransId};

use super::{IceSession, MTU, Outgoing, SessionEvent};
use crate::{
    core::{
        birthday::{Effort, Part, Prober, Role, Side},
        candidate::{Candidate, CandidateKind},
        plan::Late,
    },
    event::{Cause, Strategy},
    native::ice::{
        gather::{LocalCandidate, Origin},
        webrtc::{
            agent,
            burst::Burst,
            gate::{Gate, Pass},
        },
    },
};

/// How long the answer to the last probe may take.
const GUESS_GRACE: Duration = Duration::from_secs(3);

/// The reason why a guess does not begin beside another one. See [`Gate`].
const BUSY: &str = "ports are being guessed through the same router for another connection";

/// How long connecting may take after [`GUESS_GRACE`].
const CONNECT_GRACE: Duration = Duration::from_secs(1);

/// The priority of a candidate that a check discovers (RFC 8445 section 5.1.2.1). It is for checks
/// that the agent does not know of.
const GUESS_PRIORITY: u32 = (110 << 24) | (0xffff << 8) | 255;

/// The state of guessing ports by the birthday method.
pub(super) enum Guess {
    /// Guessing begins at this time.
    At(Instant, Role),
    /// This side probes ports of `target`, from `base`.
    Probing {
        since: Instant,
        prober: Prober,
        target: IpAddr,
        base: SocketAddr,
        end: Instant,
        _pass: Pass,
    },
    /// This side opens sockets. The driver does so as soon as it takes `burst`.
    Opening {
        burst: Option<Burst>,
        sockets: u32,
        end: Instant,
        _pass: Pass,
    },
    /// Guessing has ended and does not begin again.
    Over,
}

impl Guess {
    /// The time at which something is due.
    pub(super) fn next_at(&self) -> Option<Instant> {
        match self {
            Self::At(at, _) => Some(*at),
            Self::Probing {
                since, prober, end, ..
            } => Some(prober.next_at().map_or(*end, |at| *since + at)),
            Self::Opening { end, .. } => Some(*end),
            Self::Over => None,
        }
    }
}

impl IceSession {
    /// Allows guessing ports, if `gate` lets it through.
    pub(in crate::native::ice::webrtc) fn may_guess(&mut self, effort: Option<Effort>, gate: Gate) {
        self.effort = effort;
        self.gate = gate;
    }

    /// Whether ports are guessed, or about to be.
    pub(super) fn is_guessing(&self) -> bool {
        matches!(&self.guess, Some(guess) if !matches!(guess, Guess::Over))
    }

    /// Whether TURN servers wait until ports were guessed.
    pub(super) fn guess_comes_first(&self) -> bool {
        match &self.guess {
            Some(Guess::At(_, role)) => !role.is_doubtful,
            Some(Guess::Probing { .. } | Guess::Opening { .. }) => self.doubted.is_none(),
            None | Some(Guess::Over) => false,
        }
    }

    /// Sets what is known of this side's NAT. It is called before the description is made.
    pub(in crate::native::ice::webrtc) fn set_side(&mut self, side: Option<Side>) {
        self.side = side;
        // An answerer knows the side of the peer first.
        self.plan_guess();
    }

    /// Plans to guess once both sides are known.
    pub(super) fn plan_guess(&mut self) {
        let Some(remote) = self.remote.as_ref().filter(|_| self.nominated.is_none()) else {
            return;
        };
        // Both ends compare the same two words, and each try has new ones.
        let first = self.ice.local_credentials().ufrag < remote.ufrag;
        if let (Some(effort), Some(ours), Some(theirs), None) =
            (self.effort, self.side, remote.side, &self.guess)
            && let Some(role) = ours.role(theirs, first)
        {
            let delay = effort.delay * if role.is_doubtful { 2 } else { 1 };
            self.guess = Some(Guess::At(self.now + delay, role));
        }
    }

    /// Begins or ends guessing, if that is due.
    pub(super) fn guess_timeout(&mut self) {
        match self.guess {
            Some(Guess::At(at, role)) if self.now >= at => self.begin_guess(role),
            Some(Guess::Probing { end, .. } | Guess::Opening { end, .. }) if self.now >= end => {
                let reason = match &self.guess {
                    Some(Guess::Opening { sockets, .. }) => {
                        format!("the peer found none of the {sockets} sockets")
                    }
                    _ => "none of the probed ports belongs to the peer".to_owned(),
                };
                self.guess = Some(Guess::Over);
                if let Some(part) = self.other_part.take() {
                    tracing::debug!(?part, "guessing ports the other way");
                    self.guess = self.try_guess(part).ok();
                    return;
                }
                if let Some(target) = self.doubted {
                    self.gate.note_vain(target, self.now);
                }
                self.tell(Late::Failed(Strategy::Birthday, Cause::NoPair, reason));
                self.leave_time_for_relayed();
            }
            _ => {}
        }
    }

    fn begin_guess(&mut self, role: Role) {
        if role.is_doubtful && !self.may_doubt() {
            self.guess = Some(Guess::Over);
            return self.leave_time_for_relayed();
        }
        tracing::debug!(?role, "guessing ports");
        self.tell(Late::Began(Strategy::Birthday));
        self.other_part = role.takes_turns.then(|| role.part.other());
        let guess = self.try_guess(role.part);
        let guess = guess.unwrap_or_else(|(cause, reason)| {
            self.tell(Late::Failed(Strategy::Birthday, cause, reason.to_owned()));
            Guess::Over
        });
        self.guess = Some(guess);
    }

    /// Whether a guess that rests on a doubt is worth its price. It is not behind one NAT, because nothing
    /// comes back there to where it has come from, and not soon after another one in vain.
    fn may_doubt(&mut self) -> bool {
        let target = self.their_mapped().map(|target| target.ip());
        let own = self.own_mapped().map(|own| own.ip());
        self.doubted = target;
        target.is_some_and(|ip| own != Some(ip) && !self.gate.is_vain(ip, self.now))
    }

    /// The address of the peer's NAT.
    fn their_mapped(&self) -> Option<SocketAddr> {
        let reflexive = |c: &&Candidate| c.kind == CandidateKind::ServerReflexive;
        let candidates = self.remote.iter().flat_map(|remote| &remote.candidates);
        let mut theirs = candidates
            .filter(reflexive)
            .filter_map(Candidate::socket_addr);
        theirs.find(SocketAddr::is_ipv4)
    }

    /// The address of our NAT.
    fn own_mapped(&self) -> Option<SocketAddr> {
        let seen = |local: &&LocalCandidate| local.origin == Origin::Stun && local.addr.is_ipv4();
        self.local.iter().find(seen).map(|local| local.addr)
    }

    fn try_guess(&mut self, part: Part) -> Result<Guess, (Cause, &'static str)> {
        let target = self.their_mapped().and_then(|to| self.nat64.route(to));
        let bases = self.local.iter().map(|local| local.base);
        let base = bases
            .filter(|base| target.is_some_and(|target| target.is_ipv4() == base.is_ipv4()))
            .find(|base| !base.ip().is_loopback());
        let (Some(effort), Some(target), Some(base)) = (self.effort, target, base) else {
            return Err((
                Cause::NoAddress,
                "the IPv4 address of the peer's NAT is not known",
            ));
        };
        let gateway = self.own_mapped().unwrap_or(base).ip();
        let pass = self.gate.enter(gateway).ok_or((Cause::Limit, BUSY))?;
        let time = effort.duration() + GUESS_GRACE;
        let end = self.now + time;
        self.event(SessionEvent::MoreTime(time + CONNECT_GRACE));
        Ok(match part {
            Part::Probe => Guess::Probing {
                since: self.now,
                prober: Prober::new(effort, getrandom::u64().unwrap_or_default()),
                target: target.ip(),
                base,
                end,
                _pass: pass,
            },
            Part::Open => Guess::Opening {
                burst: Some(Burst { target, effort }),
                sockets: effort.sockets,
                end,
                _pass: pass,
            },
        })
    }

    /// Ends the guessing, because a pair was nominated. Returns whether guessing found the pair.
    pub(super) fn guessed(&mut self, source: SocketAddr, destination: SocketAddr) -> bool {
        if let Some(Guess::Probing { target, prober, .. }) = &self.guess
            && destination.ip() == *target
            && prober.has_probed(destination.port())
        {
            self.met.insert(destination);
        }
        self.guess = Some(Guess::Over);
        self.met.contains(&source) || self.met.contains(&destination)
    }

    /// The sockets that are to be opened now. They are returned once.
    pub(in crate::native::ice::webrtc) fn take_burst(&mut self) -> Option<Burst> {
        match &mut self.guess {
            Some(Guess::Opening { burst, .. }) => burst.take(),
            _ => None,
        }
    }

    /// Makes a check that the agent does not know of. Returns `None` once a pair is nominated.
    pub(in crate::native::ice::webrtc) fn guess_check(&self) -> Option<Vec<u8>> {
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

    /// Adds a local socket that the peer has met.
    pub(in crate::native::ice::webrtc) fn adopt(&mut self, local: SocketAddr) {
        self.met.insert(local);
        let found = LocalCandidate {
            origin: Origin::Birthday,
            addr: local,
            base: local,
        };
        agent::add(&mut self.ice, &found);
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::task::noop_waker;

    use super::*;
    use crate::native::ice::webrtc::identity::Identity;

    const EFFORT: Effort = Effort {
        delay: Duration::from_millis(50),
        sockets: 4,
        probes: 20,
        rate: 100,
    };
    /// The port of the socket that the peer meets.
    const MET: u16 = 7777;

    /// A session with the easy role and one with the hard role. Their NATs let only guessed traffic
    /// through.
    struct Pair {
        now: Instant,
        ends: [IceSession; 2],
        seen: [Vec<SessionEvent>; 2],
        /// The port of the hard side's NAT that the easy side has met.
        met: Option<u16>,
        burst: Option<Burst>,
    }

    fn inner(end: usize, port: u16) -> SocketAddr {
        ([192, 168, 1, end as u8 + 1], port).into()
    }

    fn outer(end: usize, port: u16) -> SocketAddr {
        ([198, 51, 100, end as u8 + 1], port).into()
    }

    impl Pair {
        fn new(gates: [Gate; 2]) -> Self {
            Self::of([Side::Easy, Side::Hard], gates)
        }

        fn of(sides: [Side; 2], gates: [Gate; 2]) -> Self {
            let now = Instant::now();
            let identity = Arc::new(Identity::generate().unwrap());
            let mut ends = gates.map(|gate| {
                let mut session = IceSession::new(identity.clone(), None, now);
                session.may_guess(Some(EFFORT), gate);
                session
            });
            for (end, side) in ends.iter_mut().zip(sides) {
                end.set_side(Some(side));
            }
            let describe = |session: &mut IceSession, end| {
                let base = inner(end, 1000);
                let found = [(Origin::Interface, base), (Origin::Stun, outer(end, 1000))];
                session.set_local_candidates(&found.map(|(origin, addr)| LocalCandidate {
                    origin,
                    addr,
                    base,
                }));
                match session.poll_event(&noop_waker()) {
                    Some(SessionEvent::Description(sdp)) => sdp,
                    other => panic!("{other:?}"),
                }
            };
            ends[0].create_offer(false);
            let offer = describe(&mut ends[0], 0);
            ends[1].accept_offer(&offer);
            let answer = describe(&mut ends[1], 1);
            ends[0].accept_answer(&answer);
            Self {
                now,
                ends,
                seen: [Vec::new(), Vec::new()],
                met: None,
                burst: None,
            }
        }

        /// Lets a millisecond pass.
        fn step(&mut self) {
            self.now += Duration::from_millis(1);
            let mut arriving = Vec::new();
            for (end, session) in self.ends.iter_mut().enumerate() {
                session.handle_timeout(self.now);
                self.burst = self.burst.or(session.take_burst());
                let met = &mut self.met;
                session.poll_transmit(self.now, |out| {
                    let data = out.data.to_vec();
                    let (from, to) = (out.source.port(), out.destination.port());
                    let guess = out.destination == outer(1, to) && to != 1000;
                    match end {
                        0 if guess && to == *met.get_or_insert(to) => {
                            arriving.push((1, outer(0, 1000), inner(1, MET), data));
                        }
                        1 if from == MET => {
                            let port = met.unwrap_or_default();
                            arriving.push((0, outer(1, port), inner(0, 1000), data));
                        }
                        _ => {}
                    }
                });
                while let Some(event) = session.poll_event(&noop_waker()) {
                    self.seen[end].push(event);
                }
            }
            for (end, source, destination, data) in arriving {
                if end == 1 && self.ends[1].met.is_empty() {
                    self.ends[1].adopt(destination);
                }
                self.ends[end].receive(self.now, source, destination, &data);
            }
        }

        fn run(&mut self, time: Duration) {
            for _ in 0..time.as_millis() {
                self.step();
            }
        }

        fn guessings(&self, end: usize) -> Vec<&Late> {
            let events = self.seen[end].iter();
            let guessings = events.filter_map(|event| match event {
                SessionEvent::Late(what) => Some(what),
                _ => None,
            });
            guessings.collect()
        }
    }

    #[test]
    fn both_ends_report_a_guessed_path() {
        let mut pair = Pair::new(Default::default());
        pair.run(Duration::from_secs(1));
        let burst = Burst {
            target: outer(0, 1000),
            effort: EFFORT,
        };
        assert_eq!(pair.burst, Some(burst));
        for end in 0..2 {
            assert_eq!(pair.guessings(end), [&Late::Began(Strategy::Birthday)]);
            let guessed = |event: &SessionEvent| match event {
                SessionEvent::Path(path) => path.guessed,
                _ => false,
            };
            assert!(pair.seen[end].iter().any(guessed), "{:?}", pair.seen[end]);
            assert!(!pair.ends[end].is_guessing());
        }
    }

    #[test]
    fn a_failed_guess_is_reported_and_not_repeated() {
        let mut pair = Pair::new(Default::default());
        pair.met = Some(0);
        pair.run(EFFORT.delay + EFFORT.duration() + GUESS_GRACE);
        for end in 0..2 {
            let [
                Late::Began(Strategy::Birthday),
                Late::Failed(Strategy::Birthday, Cause::NoPair, reason),
            ] = pair.guessings(end)[..]
            else {
                panic!("{:?}", pair.seen[end]);
            };
            assert!(reason.contains(["port", "4 sockets"][end]), "{reason}");
            let side = pair.ends[end].side;
            pair.ends[end].set_side(side);
            assert!(!pair.ends[end].is_guessing());
        }
    }

    #[test]
    fn ports_are_guessed_when_two_nats_look_easy_and_nothing_comes_through() {
        let mut pair = Pair::of([Side::Easy, Side::Unsure], Default::default());
        pair.run(2 * EFFORT.delay - Duration::from_millis(1));
        for end in 0..2 {
            assert!(pair.guessings(end).is_empty(), "ordinary checks have time");
            assert!(!pair.ends[end].guess_comes_first());
        }
        pair.run(Duration::from_secs(1));
        for end in 0..2 {
            assert_eq!(pair.guessings(end), [&Late::Began(Strategy::Birthday)]);
            assert!(pair.ends[end].nominated.is_some());
        }
    }

    #[test]
    fn two_sides_that_are_unsure_take_turns() {
        let mut pair = Pair::of([Side::Unsure; 2], Default::default());
        // Nothing gets through.
        pair.met = Some(0);
        pair.run(2 * EFFORT.delay + Duration::from_millis(1));
        let opens = |pair: &Pair| {
            pair.ends
                .iter()
                .position(|end| matches!(end.guess, Some(Guess::Opening { .. })))
        };
        let first = opens(&pair).unwrap();
        pair.run(EFFORT.duration() + GUESS_GRACE);
        assert_eq!(opens(&pair), Some(1 - first));
        for end in 0..2 {
            assert_eq!(pair.guessings(end), [&Late::Began(Strategy::Birthday)]);
        }
    }

    #[test]
    fn a_doubt_that_was_in_vain_is_not_followed_again_soon() {
        let gates = [Gate::default(), Gate::default()];
        // Each side has both parts, one after the other.
        let whole = 2 * (EFFORT.delay + EFFORT.duration() + GUESS_GRACE);
        for told in [2, 0] {
            let mut pair = Pair::of([Side::Unsure; 2], gates.clone());
            pair.met = Some(0);
            pair.run(whole);
            for end in 0..2 {
                assert_eq!(pair.guessings(end).len(), told);
                assert!(!pair.ends[end].is_guessing());
            }
        }
    }

    #[test]
    fn turn_servers_are_asked_once_a_guess_has_failed() {
        let mut pair = Pair::new(Default::default());
        pair.met = Some(0);
        pair.ends
            .iter_mut()
            .for_each(|session| session.know_turn(true));
        pair.run(EFFORT.delay + EFFORT.duration() + GUESS_GRACE / 2);
        assert!(pair.ends.iter().all(|end| !end.offers_relayed()));
        pair.run(GUESS_GRACE);
        for end in 0..2 {
            assert!(pair.ends[end].offers_relayed() && pair.ends[end].needs_relayed());
            let told = pair.guessings(end);
            assert_eq!(told.last(), Some(&&Late::Began(Strategy::Turn)));
            let more = |event: &&SessionEvent| matches!(event, SessionEvent::MoreTime(_));
            assert_eq!(pair.seen[end].iter().filter(more).count(), 2);
        }
    }

    #[test]
    fn a_second_guess_through_the_same_gateway_is_refused() {
        let gates = [Gate::default(), Gate::default()];
        let gateway = outer(0, 1000).ip();
        let pass = gates[0].enter(gateway);
        let begun = EFFORT.delay + Duration::from_millis(5);
        let mut pair = Pair::new(gates.clone());
        pair.met = Some(0);
        pair.run(begun);
        let told = pair.guessings(0);
        let refused = [
            &Late::Began(Strategy::Birthday),
            &Late::Failed(Strategy::Birthday, Cause::Limit, BUSY.to_owned()),
        ];
        assert_eq!(told, refused);
        assert_eq!(pair.guessings(1), [&Late::Began(Strategy::Birthday)]);
        // The next guess may begin once the first has ended.
        drop(pass);
        let mut pair = Pair::new([gates[0].clone(), Gate::default()]);
        pair.met = Some(0);
        pair.run(begun);
        assert_eq!(pair.guessings(0), [&Late::Began(Strategy::Birthday)]);
        assert!(gates[0].enter(gateway).is_none());
        pair.ends[0].close();
        assert!(gates[0].enter(gateway).is_some());
    }
}
