//! ICE of one connection, and DTLS with SCTP or QUIC above it, as one state machine: no IO, time as
//! an argument.

mod candidates;
mod description;
mod dtls;
mod guess;
mod quic;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    task::Waker,
    time::{Duration, Instant},
};

use str0m::{
    IceConnectionState,
    crypto::dtls::DtlsInstance,
    ice::{IceAgent, IceAgentEvent, StunMessage, StunPacket},
    net::Protocol,
};

use self::guess::Guess;
use super::{
    agent::{self, Triggered},
    association::{Association, Change, ChannelId},
    gate::Gate,
    identity::Identity,
};
use crate::{
    core::{
        birthday::{Effort, Guessing, Side},
        candidate::Candidate,
        dial::Policy,
        scope::{Scope, scope},
        sdp::{Description, Setup},
        signalling::IceCandidate,
    },
    native::{gather::LocalCandidate, quic::PairLink},
    rtc::backend::{BackendError, CandidatePair},
};

/// How long all pairs may be dead before the connection is: a candidate that is still on its way,
/// or a path that comes back, revives it.
const DISCONNECTED_GRACE: Duration = Duration::from_secs(3);

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
    link: Option<Arc<PairLink>>,
    /// A QUIC handshake was begun.
    quic_begun: bool,
    /// How it ended, until the answer says that it counts.
    quic_ended: Option<Result<(), BackendError>>,
    /// Where the peer may have us send.
    policy: Policy,
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
            // A check is answered, and checked back, where it says it comes from.
            Some(0..=3) if scope(source.ip()) == Scope::Forbidden => {}
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
