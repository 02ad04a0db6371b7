//! ICE of one connection, and DTLS with SCTP or QUIC above it, as one state machine: no IO, time as
//! an argument.

mod dtls;
mod guess;
mod quic;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::Waker,
    time::{Duration, Instant},
};

use str0m::{
    Candidate as IceAgentCandidate, IceConnectionState, IceCreds,
    crypto::dtls::DtlsInstance,
    ice::{IceAgent, IceAgentEvent, StunMessage, StunPacket},
    net::Protocol,
};

use self::guess::Guess;
use super::{
    agent::{self, Triggered},
    association::{Association, Change, ChannelId, MAX_MESSAGE_SIZE},
    gate::Gate,
    identity::Identity,
};
use crate::{
    core::{
        birthday::{Effort, Guessing, Side},
        candidate::{Candidate, CandidateAddr, CandidateKind, CandidateTransport},
        sdp::{Description, Setup},
        signalling::IceCandidate,
    },
    native::{
        gather::{LocalCandidate, Origin},
        quic::Link,
    },
    rtc::backend::{BackendError, CandidatePair},
};

/// How long all pairs may be dead before the connection is: a candidate that is still on its way,
/// or a path that comes back, revives it.
const DISCONNECTED_GRACE: Duration = Duration::from_secs(3);

/// Most candidates told after the description: half of what a peer takes in all. Guessed ports
/// are guessed anew whenever some connection begins, however many do.
const MAX_TRICKLED: usize = crate::core::signalling::MAX_MESSAGES / 2;

/// Names of the peer that are asked for at most: it has one for each of its addresses.
const MAX_NAMES: usize = 8;

/// How long a shutdown may take to send what is queued.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// Datagrams of DTLS stay within what every path carries.
const MTU: usize = 1200;

/// The largest DTLS record with its header (RFC 6347 section 4.1).
const MAX_RECORD: usize = (16 << 10) + 512;

/// What a [`Session`] reports.
#[derive(Debug)]
pub(super) enum SessionEvent {
    Description(String),
    Candidate(IceCandidate),
    Connected,
    Path(CandidatePair),
    Channel(ChannelId),
    /// It may take this long from now.
    MoreTime(Duration),
    Guessing(Guessing),
    Failed(BackendError),
}

/// A datagram to send.
pub(super) struct Outgoing<'a> {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) data: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No description of ours was made.
    New,
    /// An offer is wanted; the addresses of the interfaces are not known yet.
    Offering,
    /// An answer is wanted, likewise.
    Answering,
    /// Our description was given out: candidates trickle.
    Described,
}

/// What is spoken over the nominated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Secure {
    /// The answer will tell.
    Undecided,
    /// DTLS and SCTP, which is all that browsers speak.
    Dtls,
    /// QUIC, between two of us.
    Quic,
}

/// One connection.
pub(super) struct Session {
    identity: Arc<Identity>,
    ice: IceAgent,
    triggered: Triggered,
    phase: Phase,
    secure: Secure,
    /// Below the QUIC endpoint, where this side speaks QUIC.
    link: Option<Arc<Link>>,
    /// A QUIC handshake was begun.
    quic_begun: bool,
    /// How it ended, until the answer says that it counts.
    quic_ended: Option<Result<(), BackendError>>,
    /// How much may be guessed, and our part in it.
    effort: Option<Effort>,
    side: Option<Side>,
    gate: Gate,
    guess: Option<Guess>,
    /// Sockets of ours, and addresses of the peer, that guessing ports has met.
    met: HashSet<SocketAddr>,
    mid: String,
    setup: Setup,
    remote: Option<Description>,
    local: Vec<LocalCandidate>,
    /// The addresses that datagrams of this connection may come from.
    sources: HashSet<SocketAddr>,
    new_sources: Vec<SocketAddr>,
    /// Candidates with names in the place of addresses, to be asked for, and how many there were.
    named: Vec<Candidate>,
    names: usize,
    /// Candidates told after the description.
    trickled: usize,
    /// Where peers' addresses see us come from.
    seen: HashMap<SocketAddr, SocketAddr>,
    /// Addresses that the peer calls port mappings.
    mapped: HashSet<SocketAddr>,
    nominated: Option<(SocketAddr, SocketAddr)>,
    disconnected: Option<Instant>,
    dtls: Option<Box<dyn DtlsInstance>>,
    /// DTLS has a clock, and may be used. A client gets it when there is a path to send on.
    dtls_started: bool,
    dtls_timeout: Option<Instant>,
    /// Handshake records for the peer, and room for one record either way, if DTLS is spoken.
    records: Vec<Vec<u8>>,
    scratch: Vec<u8>,
    verified: bool,
    connected: bool,
    pub(super) association: Option<Association>,
    events: VecDeque<SessionEvent>,
    waker: Option<Waker>,
    shutdown: Option<Instant>,
    closed: bool,
    now: Instant,
}

impl Session {
    /// `link` is below the QUIC endpoint of this connection, if it is to have one.
    pub(super) fn new(identity: Arc<Identity>, link: Option<Arc<Link>>, now: Instant) -> Self {
        Self {
            ice: agent::new(identity.crypto.sha1_hmac_provider, now),
            identity,
            triggered: Triggered::default(),
            phase: Phase::New,
            secure: match link {
                Some(_) => Secure::Undecided,
                None => Secure::Dtls,
            },
            link,
            quic_begun: false,
            quic_ended: None,
            effort: None,
            side: None,
            gate: Gate::default(),
            guess: None,
            met: HashSet::new(),
            mid: "0".into(),
            setup: Setup::ActPass,
            remote: None,
            local: Vec::new(),
            sources: HashSet::new(),
            new_sources: Vec::new(),
            named: Vec::new(),
            names: 0,
            trickled: 0,
            seen: HashMap::new(),
            mapped: HashSet::new(),
            nominated: None,
            disconnected: None,
            dtls: None,
            dtls_started: false,
            dtls_timeout: None,
            records: Vec::new(),
            scratch: Vec::new(),
            verified: false,
            connected: false,
            association: None,
            events: VecDeque::new(),
            waker: None,
            shutdown: None,
            closed: false,
            now,
        }
    }

    /// The username fragment that STUN requests to us name.
    pub(super) fn fragment(&self) -> String {
        self.ice.local_credentials().ufrag.clone()
    }

    pub(super) fn create_offer(&mut self) {
        self.ice.set_controlling(true);
        self.phase = Phase::Offering;
    }

    pub(super) fn accept_offer(&mut self, sdp: &str) {
        // Descriptions that do not parse were refused before they came here.
        match Description::parse(sdp) {
            Ok(remote) => {
                self.mid = remote.mid.clone();
                // RFC 8445 section 6.1.1: the full agent controls a lite one.
                self.ice.set_controlling(remote.ice_lite);
                // RFC 8842 section 5.3: active saves the offerer's first flight a round trip.
                self.setup = match remote.setup {
                    Setup::Active => Setup::Passive,
                    Setup::ActPass | Setup::Passive => Setup::Active,
                };
                self.phase = Phase::Answering;
                self.decide(remote.quic);
                self.describe_remote(remote);
            }
            Err(error) => self.fail(BackendError::Description(error.to_string())),
        }
    }

    pub(super) fn accept_answer(&mut self, sdp: &str) {
        match Description::parse(sdp) {
            Ok(remote) => {
                self.setup = match remote.setup {
                    Setup::Active => Setup::Passive,
                    Setup::Passive => Setup::Active,
                    Setup::ActPass => {
                        let what = "setup of an answer must be active or passive".to_owned();
                        return self.fail(BackendError::Description(what));
                    }
                };
                self.decide(remote.quic);
                self.describe_remote(remote);
                self.settle_quic();
            }
            Err(error) => self.fail(BackendError::Description(error.to_string())),
        }
    }

    fn describe_remote(&mut self, remote: Description) {
        if remote.fingerprint.hash != "sha-256" {
            let what = format!(
                "fingerprint by {} is not supported",
                remote.fingerprint.hash
            );
            return self.fail(BackendError::Description(what));
        }
        self.ice.set_remote_credentials(IceCreds {
            ufrag: remote.ufrag.clone(),
            pass: remote.pwd.clone(),
        });
        for candidate in &remote.candidates {
            self.add_remote(candidate);
        }
        self.remote = Some(remote);
        self.plan_guess();
        if self.secure == Secure::Dtls {
            self.make_dtls();
        }
    }

    pub(super) fn add_remote_candidate(&mut self, candidate: &IceCandidate) {
        match candidate.candidate.parse() {
            Ok(candidate) => self.add_remote(&candidate),
            Err(error) => tracing::debug!(%error, "candidate skipped"),
        }
    }

    fn add_remote(&mut self, candidate: &Candidate) {
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
        if let Ok(remote) = IceAgentCandidate::from_sdp_string(&candidate.to_string()) {
            self.expect(addr);
            if candidate.mapped && self.sources.contains(&addr) {
                self.mapped.insert(addr);
            }
            self.ice.add_remote_candidate(remote);
        }
    }

    /// The candidates whose names are to be asked for. Each is said once.
    pub(super) fn take_named(&mut self) -> Vec<Candidate> {
        std::mem::take(&mut self.named)
    }

    /// The network knows the name of a candidate.
    pub(super) fn resolved(&mut self, candidate: &Candidate, ip: IpAddr) {
        if let CandidateAddr::Name(_, port) = candidate.addr {
            let addr = CandidateAddr::Ip(SocketAddr::new(ip, port));
            self.add_remote(&Candidate {
                addr,
                ..candidate.clone()
            });
        }
    }

    fn expect(&mut self, source: SocketAddr) {
        // Enough for any real peer; a flood of candidates must not fill the routes.
        if self.sources.len() < agent::MAX_PAIRS && self.sources.insert(source) {
            self.new_sources.push(source);
        }
    }

    /// The sources to route here that were not before.
    pub(super) fn take_new_sources(&mut self) -> Vec<SocketAddr> {
        std::mem::take(&mut self.new_sources)
    }

    /// All sources routed here.
    pub(super) fn sources(&self) -> Vec<SocketAddr> {
        self.sources.iter().copied().collect()
    }

    /// Tells what can be offered now. The first call after an offer or answer was asked for
    /// makes the description; later ones trickle what is new and give up what is gone.
    pub(super) fn set_local_candidates(&mut self, candidates: &[LocalCandidate]) {
        if self.phase == Phase::New {
            return;
        }
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
            if self.local.contains(candidate) {
                continue;
            }
            self.local.push(*candidate);
            if let Some(added) = agent::add(&mut self.ice, candidate)
                && let Ok(mut line) = added.to_sdp_string().parse::<Candidate>()
            {
                line.mapped = candidate.origin == Origin::PortMapping;
                written.push(line);
            }
        }
        match self.phase {
            Phase::New | Phase::Offering | Phase::Answering => {
                self.phase = Phase::Described;
                let sdp = self.describe(written);
                self.event(SessionEvent::Description(sdp));
            }
            Phase::Described if !self.connected => {
                let room = MAX_TRICKLED.saturating_sub(self.trickled);
                written.truncate(room);
                self.trickled += written.len();
                for line in written {
                    let candidate = IceCandidate {
                        candidate: line.to_string(),
                        sdp_mid: Some(self.mid.clone()),
                        sdp_m_line_index: Some(0),
                        username_fragment: Some(self.fragment()),
                    };
                    self.event(SessionEvent::Candidate(candidate));
                }
            }
            // The peer has stopped reading; it sees new ones as peer-reflexive.
            Phase::Described => {}
        }
    }

    /// Whether a description waits for local candidates.
    pub(super) fn wants_candidates(&self) -> bool {
        matches!(self.phase, Phase::Offering | Phase::Answering)
    }

    /// Whether a relayed address of ours carries the connection, or may yet be what makes it.
    pub(super) fn needs_relay(&self) -> bool {
        match self.nominated {
            Some((source, _)) if self.connected => self
                .local
                .iter()
                .any(|local| local.kind() == CandidateKind::Relayed && local.base == source),
            _ => true,
        }
    }

    fn describe(&self, candidates: Vec<Candidate>) -> String {
        let credentials = self.ice.local_credentials();
        let description = Description {
            ufrag: credentials.ufrag.clone(),
            pwd: credentials.pass.clone(),
            ice_lite: false,
            fingerprint: self
                .identity
                .fingerprint(&self.identity.certificate.certificate),
            setup: self.setup,
            mid: self.mid.clone(),
            max_message_size: MAX_MESSAGE_SIZE,
            quic: self.secure != Secure::Dtls,
            side: self.side.filter(|_| self.effort.is_some()),
            candidates,
        };
        description.to_sdp(getrandom::u64().unwrap_or_default())
    }

    /// A datagram arrived.
    pub(super) fn receive(
        &mut self,
        now: Instant,
        source: SocketAddr,
        destination: SocketAddr,
        data: &[u8],
    ) {
        self.now = self.now.max(now);
        match data.first() {
            Some(0..=3) => {
                if let Ok(message) = StunMessage::parse(data) {
                    let is_request = message.is_binding_request();
                    // The agent keeps to itself what the peer sees of us.
                    if self.sources.contains(&source)
                        && self.ice.accepts_message(&message)
                        && let Some(mapped) = message.mapped_address()
                    {
                        self.seen.insert(source, mapped);
                    }
                    let packet = StunPacket {
                        proto: Protocol::Udp,
                        source,
                        destination,
                        message,
                    };
                    let authentic = self.ice.handle_packet(self.now, packet);
                    if authentic {
                        self.triggered.heard(source, destination, is_request);
                    }
                    if let Some(link) = &self.link
                        && authentic
                        && is_request
                        && link.pair().is_none()
                    {
                        link.set_pair(destination, source);
                    }
                    self.ice.handle_timeout(self.now);
                    self.ice_events();
                }
            }
            Some(20..=63) => {
                if let Some(dtls) = self.dtls.as_mut().filter(|_| self.dtls_started) {
                    if let Err(error) = dtls.handle_packet(data) {
                        return self.fail(BackendError::Dtls(error.to_string()));
                    }
                    let mut replies = Vec::new();
                    self.poll_dtls(&mut |record| replies.push(record.to_vec()));
                    self.records.append(&mut replies);
                    self.association_changes();
                }
            }
            _ => {}
        }
    }

    /// Whether a STUN response answers one of our checks.
    pub(super) fn accepts(&self, message: &StunMessage<'_>) -> bool {
        self.ice.accepts_message(message)
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.now = self.now.max(now);
        let now = self.now;
        self.ice.handle_timeout(now);
        self.ice_events();
        self.guess_timeout();
        // Of the pairs that ports are guessed for the agent knows nothing yet.
        if !self.is_guessing()
            && self
                .disconnected
                .is_some_and(|since| now >= since + DISCONNECTED_GRACE)
        {
            return self.fail(BackendError::Ice);
        }
        if let Some(dtls) = &mut self.dtls
            && self.dtls_timeout.is_some_and(|timeout| now >= timeout)
        {
            self.dtls_timeout = None;
            if let Err(error) = dtls.handle_timeout(now) {
                return self.fail(BackendError::Dtls(error.to_string()));
            }
        }
        if let Some(association) = &mut self.association {
            association.handle_timeout(now);
        }
        self.association_changes();
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due; `None` once closed.
    pub(super) fn poll_timeout(&mut self) -> Option<Instant> {
        if self.closed {
            return None;
        }
        let disconnected = self.disconnected.filter(|_| !self.is_guessing());
        let disconnected = disconnected.map(|since| since + DISCONNECTED_GRACE);
        let sctp = self
            .association
            .as_ref()
            .and_then(Association::poll_timeout);
        [
            self.ice.poll_timeout(),
            self.guess.as_ref().and_then(Guess::next_at),
            disconnected,
            self.dtls_timeout,
            sctp,
            self.shutdown,
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn ice_events(&mut self) {
        while let Some(event) = self.ice.poll_event() {
            match event {
                IceAgentEvent::IceConnectionStateChange(state) => {
                    tracing::debug!(?state, "ICE");
                    self.disconnected = match state {
                        IceConnectionState::Disconnected => Some(self.now),
                        _ => None,
                    };
                }
                IceAgentEvent::DiscoveredRecv { source, .. } => self.expect(source),
                IceAgentEvent::NominatedSend {
                    source,
                    destination,
                    ..
                } => {
                    let first = self.nominated.is_none();
                    self.nominated = Some((source, destination));
                    let guessed = self.guessed(source, destination);
                    if let Some(link) = &self.link {
                        link.set_pair(source, destination);
                    }
                    self.expect(destination);
                    let known = agent::Known {
                        local: &self.local,
                        seen: self.seen.get(&destination).copied(),
                        remote_mapped: self.mapped.contains(&destination),
                    };
                    let mut pair = agent::pair(&self.ice, &known, source, destination);
                    pair.guessed = guessed;
                    self.event(SessionEvent::Path(pair));
                    if first {
                        self.start_dtls();
                    }
                }
                IceAgentEvent::IceRestart(_) => {}
            }
        }
    }

    /// Sends what is to be sent: calls `send` for each datagram.
    pub(super) fn poll_transmit(&mut self, now: Instant, mut send: impl FnMut(Outgoing<'_>)) {
        self.now = self.now.max(now);
        while let Some(transmit) = self.ice.poll_transmit() {
            let (source, destination) = (transmit.source, transmit.destination);
            self.expect(destination);
            self.triggered.sent(source, destination, &transmit.contents);
            send(Outgoing {
                source,
                destination,
                data: &transmit.contents,
            });
        }
        while let Some((source, destination, data)) = self.triggered.poll() {
            send(Outgoing {
                source,
                destination,
                data: &data,
            });
        }
        self.probe(&mut send);
        let Some((source, destination)) = self.nominated else {
            return;
        };
        let mut send = |data: &[u8]| {
            send(Outgoing {
                source,
                destination,
                data,
            });
        };
        for record in self.records.drain(..) {
            send(&record);
        }
        self.poll_dtls(&mut send);
        let now = self.now;
        while let Some(packets) = self.association.as_mut().and_then(|a| a.poll_transmit(now)) {
            for packet in packets {
                if let Some(dtls) = &mut self.dtls
                    && let Err(error) = dtls.send_application_data(&packet)
                {
                    return self.fail(BackendError::Dtls(error.to_string()));
                }
                self.poll_dtls(&mut send);
            }
        }
        self.association_changes();
        self.finish_shutdown();
        if self.shutdown.is_some() {
            self.poll_dtls(&mut send);
        }
    }

    fn association_changes(&mut self) {
        while let Some(change) = self.association.as_mut().and_then(Association::poll) {
            match change {
                Change::Opened(id) => self.event(SessionEvent::Channel(id)),
                Change::Lost(_) if self.shutdown.is_some() => {}
                Change::Lost(why) => self.fail(BackendError::Sctp(why)),
            }
        }
    }

    /// Closes gracefully: what is queued is sent, the peer is told, in at most a second.
    pub(super) fn shutdown(&mut self, now: Instant) {
        if self.shutdown.is_none() && !self.closed {
            self.shutdown = Some(now + SHUTDOWN_GRACE);
            if let Some(association) = &mut self.association {
                association.shutdown();
            }
            if self.nominated.is_none() {
                self.closed = true;
            }
        }
    }

    fn finish_shutdown(&mut self) {
        let Some(deadline) = self.shutdown.filter(|_| !self.closed) else {
            return;
        };
        let sent = self.association.as_ref().is_none_or(Association::is_closed);
        if sent || self.now >= deadline {
            self.close();
        }
    }

    /// Closes at once: the peer is told by one datagram.
    pub(super) fn close(&mut self) {
        if let Some(dtls) = self.dtls.as_mut().filter(|_| self.dtls_started)
            && let Err(error) = dtls.close()
        {
            tracing::trace!(%error, "DTLS close");
        }
        if let Some(association) = &mut self.association {
            association.lose("closed");
        }
        self.shutdown.get_or_insert(self.now);
        self.guess = None;
        self.closed = true;
        self.wake();
    }

    /// Whether nothing is left to do.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    fn fail(&mut self, error: BackendError) {
        if !self.closed {
            tracing::debug!(%error, "connection failed");
            self.event(SessionEvent::Failed(error));
            self.close();
        }
    }

    fn event(&mut self, event: SessionEvent) {
        self.events.push_back(event);
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// The next event, or `waker` is woken when there is one.
    pub(super) fn poll_event(&mut self, waker: &Waker) -> Option<SessionEvent> {
        let event = self.events.pop_front();
        if event.is_none() {
            self.waker = Some(waker.clone());
        }
        event
    }
}

#[cfg(test)]
mod tests;
