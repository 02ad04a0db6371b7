//! One connection as a state machine: ICE, and DTLS with SCTP or QUIC above it. It does no IO, and
//! takes the time as an argument.

mod candidates;
mod description;
#[cfg_attr(not(feature = "server"), allow(dead_code, reason = "a server's"))]
mod direct;
mod dtls;
mod guess;
mod quic;
mod relayed;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    task::Waker,
    time::{Duration, Instant},
};

use bytes::Bytes;
use str0m::{
    IceConnectionState,
    crypto::dtls::DtlsInstance,
    ice::{IceAgent, IceAgentEvent, StunMessage, StunPacket},
    net::Protocol,
};

use self::{direct::Direct, guess::Guess, relayed::Relayed};
use super::{
    agent::{self, Triggered},
    association::{Association, Change, ChannelId},
    gate::Gate,
    identity::Identity,
};
use crate::{
    core::{
        birthday::{Effort, Part, Side},
        candidate::Candidate,
        dial::Policy,
        plan::Late,
        quiet::Quiet,
        scope::{Scope, scope},
        sdp::{Description, Setup},
        signalling::IceCandidate,
    },
    native::{ice::gather::LocalCandidate, nat64::Nat64, quic::PairLink},
    webrtc::backend::{BackendError, CandidatePair},
};

/// How long all pairs may be dead before the connection fails. A candidate that is still on its
/// way, or a path that comes back, revives it.
const DISCONNECTED_GRACE: Duration = Duration::from_secs(3);

/// How long a shutdown may take to send the queued messages.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// How long DTLS waits after a pair was nominated, with libdatachannel and Firefox. libdatachannel gives an
/// answer first to its ICE agent and then to those who check fingerprints. If the path is so short that a
/// certificate comes in between, it refuses the certificate for good. Firefox drops what comes before it
/// knows that the pair is nominated.
const NOMINATION_PAUSE: Duration = Duration::from_millis(50);

/// The size of DTLS datagrams, which every path carries.
const MTU: usize = 1200;

/// The largest DTLS record with its header (RFC 6347 section 4.1).
const MAX_RECORD: usize = (16 << 10) + 512;

/// The events that a [`IceSession`] reports.
#[derive(Debug)]
pub(super) enum SessionEvent {
    Description(String),
    Candidate(IceCandidate),
    Connected,
    Path(CandidatePair),
    Channel(ChannelId),
    /// The peer opened a channel for datagrams.
    Lane(ChannelId),
    /// Connecting may take this long from now.
    MoreTime(Duration),
    Late(Late),
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
    /// No local description was made.
    New,
    /// An offer is wanted, but the addresses of the interfaces are not known yet.
    Offering,
    /// An answer is wanted, but the addresses of the interfaces are not known yet.
    Answering,
    /// The local description was given out. Further candidates trickle.
    Described,
}

/// The protocol over the nominated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Secure {
    /// The answer will decide.
    Undecided,
    /// DTLS and SCTP. Browsers speak only these.
    Dtls,
    /// QUIC, between two peers of this library.
    Quic,
}

/// The state of one connection.
pub(super) struct IceSession {
    identity: Arc<Identity>,
    ice: IceAgent,
    triggered: Triggered,
    phase: Phase,
    secure: Secure,
    /// The link below the QUIC endpoint, if this side supports QUIC.
    link: Option<Arc<PairLink>>,
    /// Whether a QUIC handshake was begun.
    quic_begun: bool,
    /// The result of the QUIC handshake, until the answer says that QUIC is used.
    quic_ended: Option<Result<(), BackendError>>,
    /// The addresses to which the peer may have datagrams sent.
    policy: Policy,
    /// How the peer's addresses are reached.
    nat64: Nat64,
    /// Whether the peers leave TURN out.
    no_turn: bool,
    /// The relayed addresses of the peer that are left out.
    left_out: HashSet<SocketAddr>,
    /// When TURN servers are asked.
    relayed: Relayed,
    /// How many ports may be guessed.
    effort: Option<Effort>,
    /// The state of this side as the server of a `/webrtc-direct` client, if it is one.
    direct: Option<Direct>,
    /// What is known of this side's NAT, for guessing ports.
    side: Option<Side>,
    /// Where the guess leads that rests on a doubt.
    doubted: Option<IpAddr>,
    /// The part of this side once the guess was in vain.
    other_part: Option<Part>,
    gate: Gate,
    guess: Option<Guess>,
    /// The first chunk of our SCTP handshake, if it goes with the description.
    init: Option<Bytes>,
    /// The local sockets and the remote addresses that guessing ports has found.
    met: HashSet<SocketAddr>,
    mid: String,
    setup: Setup,
    remote: Option<Description>,
    local: Vec<LocalCandidate>,
    /// The addresses that datagrams of this connection may come from.
    sources: HashSet<SocketAddr>,
    new_sources: Vec<SocketAddr>,
    /// Candidates with names in place of addresses, which must be looked up.
    named: Vec<Candidate>,
    /// The number of names so far.
    names: usize,
    /// The number of candidates that were told after the description.
    trickled: usize,
    /// The address from which each remote address sees this side.
    seen: HashMap<SocketAddr, SocketAddr>,
    /// The addresses that the peer calls port mappings.
    mapped: HashSet<SocketAddr>,
    nominated: Option<(SocketAddr, SocketAddr)>,
    quiet: Quiet,
    /// The number of DTLS records that were sent.
    sent: u64,
    /// The pair of the peer's first check that the agent has answered, over which a client begins DTLS.
    heard: Option<(SocketAddr, SocketAddr)>,
    disconnected: Option<Instant>,
    dtls: Option<Box<dyn DtlsInstance>>,
    /// Whether DTLS has a clock and may be used. A client starts DTLS when there is a path to send
    /// on.
    dtls_started: bool,
    dtls_timeout: Option<Instant>,
    /// Handshake records for the peer.
    records: Vec<Vec<u8>>,
    /// Room for one record in either direction, if DTLS is used.
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

impl IceSession {
    /// Makes a session. `link` is below the QUIC endpoint of this connection, if it is to have one.
    pub(super) fn new(identity: Arc<Identity>, link: Option<Arc<PairLink>>, now: Instant) -> Self {
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
            policy: Policy::new(true, Vec::new()),
            nat64: Nat64::default(),
            no_turn: false,
            left_out: HashSet::new(),
            relayed: Relayed::default(),
            effort: None,
            direct: None,
            side: None,
            doubted: None,
            other_part: None,
            gate: Gate::default(),
            init: None,
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
            quiet: Quiet::default(),
            sent: 0,
            heard: None,
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

    /// The username fragment in STUN requests to this side.
    pub(super) fn fragment(&self) -> String {
        self.ice.local_credentials().ufrag.clone()
    }

    /// Handles a datagram that arrived.
    pub(super) fn receive(
        &mut self,
        now: Instant,
        source: SocketAddr,
        destination: SocketAddr,
        data: &[u8],
    ) {
        self.now = self.now.max(now);
        match data.first() {
            // The answer, and this side's own check, would go to the source of the check.
            Some(0..=3) if scope(source.ip()) == Scope::Forbidden => {}
            // A stock peer may check from its TURN server although it was asked not to.
            Some(0..=3) if self.left_out.contains(&source) => {}
            Some(0..=3) => {
                if let Ok(message) = StunMessage::parse(data) {
                    let is_request = message.is_binding_request();
                    // The agent does not report the address that the peer sees, so it is read here.
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
                        if !is_request && self.nominated == Some((destination, source)) {
                            self.quiet.answered();
                        }
                    }
                    if let Some(link) = &self.link
                        && authentic
                        && is_request
                        && link.pair().is_none()
                    {
                        link.set_pair(destination, source);
                    }
                    if authentic && is_request {
                        self.check((destination, source));
                    } else if !is_request && self.may_prove(&message) {
                        self.answered((destination, source), data);
                    }
                    self.ice.handle_timeout(self.now);
                    self.ice_events();
                }
            }
            Some(20..=63) => self.receive_dtls(data),
            _ => {}
        }
    }

    /// Whether a STUN response answers one of this side's checks.
    pub(super) fn accepts(&self, message: &StunMessage<'_>) -> bool {
        self.ice.accepts_message(message) || self.may_prove(message)
    }

    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.now = self.now.max(now);
        let now = self.now;
        if self.nominated.is_some() {
            let sent = self.sent + self.link.as_ref().map_or(0, |link| link.sent());
            agent::set_quiet(&mut self.ice, self.quiet.look(now, sent));
        }
        self.ice.handle_timeout(now);
        self.ice_events();
        self.guess_timeout();
        self.relayed_timeout();
        // The ICE agent does not know the guessed pairs yet.
        if !self.is_guessing()
            && self
                .disconnected
                .is_some_and(|since| now >= since + DISCONNECTED_GRACE)
        {
            return self.fail(BackendError::Ice);
        }
        let dtls_timeout = self.dtls_timeout();
        if let Some(dtls) = &mut self.dtls
            && dtls_timeout.is_some_and(|timeout| now >= timeout)
        {
            self.dtls_timeout = None;
            self.dtls_started = true;
            if let Err(error) = dtls.handle_timeout(now) {
                return self.fail(BackendError::Dtls(error.to_string()));
            }
        }
        if let Some(association) = &mut self.association {
            association.handle_timeout(now);
        }
        self.association_changes();
    }

    /// The time at which [`handle_timeout`](Self::handle_timeout) is due. `None` once closed.
    pub(super) fn poll_timeout(&mut self) -> Option<Instant> {
        if self.closed {
            return None;
        }
        // What has passed was seen.
        let quiet = self.quiet.ends_at().filter(|at| *at > self.now);
        let disconnected = self.disconnected.filter(|_| !self.is_guessing());
        let disconnected = disconnected.map(|since| since + DISCONNECTED_GRACE);
        let sctp = self
            .association
            .as_ref()
            .and_then(Association::poll_timeout);
        [
            self.ice.poll_timeout(),
            self.guess.as_ref().and_then(Guess::next_at),
            self.relayed_at(),
            disconnected,
            quiet,
            self.dtls_timeout(),
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
                    tracing::debug!(?state, "the state of ICE changed");
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
                    if self.nominate((source, destination)) {
                        self.use_pair(source, destination);
                        if first {
                            self.begin_dtls();
                        }
                    }
                }
                IceAgentEvent::IceRestart(_) => {}
            }
        }
    }

    /// Sends over this pair from now on.
    fn use_pair(&mut self, source: SocketAddr, destination: SocketAddr) {
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
    }

    /// Calls `send` for each datagram that is to be sent.
    pub(super) fn poll_transmit(&mut self, now: Instant, mut send: impl FnMut(Outgoing<'_>)) {
        self.now = self.now.max(now);
        while let Some(transmit) = self.ice.poll_transmit() {
            let (source, destination) = (transmit.source, transmit.destination);
            self.expect(destination);
            self.triggered.sent(source, destination, &transmit.contents);
            let is_check = transmit.contents.starts_with(&[0, 1]);
            if is_check && self.nominated == Some((source, destination)) {
                self.quiet.checked(self.now);
            }
            // A binding success response.
            if transmit.contents.starts_with(&[1, 1]) {
                self.hear((source, destination));
            }
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
        while let Some(((source, destination), data)) = self.poll_check() {
            send(Outgoing {
                source,
                destination,
                data: &data,
            });
        }
        self.probe(&mut send);
        let Some((source, destination)) = self.path() else {
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
                Change::Lane(id) => self.event(SessionEvent::Lane(id)),
                Change::Lost(_) if self.shutdown.is_some() => {}
                Change::Lost(why) => self.fail(BackendError::Sctp(why)),
            }
        }
    }

    /// Closes gracefully: sends the queued messages and tells the peer, in at most a second.
    pub(super) fn shutdown(&mut self, now: Instant) {
        if self.shutdown.is_none() && !self.closed {
            self.shutdown = Some(now + SHUTDOWN_GRACE);
            if let Some(association) = &mut self.association {
                association.shutdown();
            }
            if self.path().is_none() {
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

    /// Closes at once. One datagram tells the peer.
    pub(super) fn close(&mut self) {
        if let Some(dtls) = self.dtls.as_mut().filter(|_| self.dtls_started)
            && let Err(error) = dtls.close()
        {
            tracing::trace!(%error, "DTLS cannot be closed");
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
            tracing::debug!(%error, "the WebRTC connection failed");
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

    /// Returns the next event. If there is none, `waker` is woken when there is one.
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
