//! ICE, DTLS and SCTP of one connection as one state machine: no IO, time as an argument.

use std::{
    collections::{HashSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    task::Waker,
    time::{Duration, Instant},
};

use str0m::{
    Candidate as IceAgentCandidate, IceConnectionState, IceCreds,
    config::DtlsVersion,
    crypto::dtls::{DtlsInstance, DtlsOutput},
    ice::{IceAgent, IceAgentEvent, StunMessage, StunPacket},
    net::Protocol,
};

use super::{
    agent,
    association::{Association, Change, MAX_MESSAGE_SIZE},
    identity::Identity,
};
use crate::{
    core::{
        candidate::{Candidate, CandidateKind, CandidateTransport},
        sdp::{Description, Setup},
        signalling::IceCandidate,
    },
    native::gather::LocalCandidate,
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
    Channel(u16),
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

/// One connection.
pub(super) struct Session {
    identity: Arc<Identity>,
    ice: IceAgent,
    phase: Phase,
    mid: String,
    setup: Setup,
    remote: Option<Description>,
    local: Vec<LocalCandidate>,
    /// The addresses that datagrams of this connection may come from.
    sources: HashSet<SocketAddr>,
    new_sources: Vec<SocketAddr>,
    nominated: Option<(SocketAddr, SocketAddr)>,
    disconnected: Option<Instant>,
    dtls: Option<Box<dyn DtlsInstance>>,
    /// DTLS has a clock, and may be used. A client gets it when there is a path to send on.
    dtls_started: bool,
    dtls_timeout: Option<Instant>,
    /// Handshake records for the peer, and room for one record either way.
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
    pub(super) fn new(identity: Arc<Identity>, now: Instant) -> Self {
        Self {
            ice: agent::new(identity.crypto.sha1_hmac_provider, now),
            identity,
            phase: Phase::New,
            mid: "0".into(),
            setup: Setup::ActPass,
            remote: None,
            local: Vec::new(),
            sources: HashSet::new(),
            new_sources: Vec::new(),
            nominated: None,
            disconnected: None,
            dtls: None,
            dtls_started: false,
            dtls_timeout: None,
            records: Vec::new(),
            scratch: vec![0; MAX_RECORD],
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
                self.describe_remote(remote);
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
        let dtls = self.identity.crypto.dtls_provider.new_dtls(
            &self.identity.certificate,
            self.now,
            DtlsVersion::Dtls12,
            Some(MTU),
        );
        match dtls {
            Ok(mut dtls) => {
                dtls.set_active(self.setup == Setup::Active);
                self.dtls = Some(dtls);
                if self.setup != Setup::Active || self.nominated.is_some() {
                    self.start_dtls();
                }
            }
            Err(error) => return self.fail(BackendError::Dtls(error.to_string())),
        }
        for candidate in &remote.candidates {
            self.add_remote(candidate);
        }
        self.remote = Some(remote);
    }

    pub(super) fn add_remote_candidate(&mut self, candidate: &IceCandidate) {
        match candidate.candidate.parse() {
            Ok(candidate) => self.add_remote(&candidate),
            Err(error) => tracing::debug!(%error, "candidate skipped"),
        }
    }

    fn add_remote(&mut self, candidate: &Candidate) {
        let usable = candidate.component == 1 && candidate.transport == CandidateTransport::Udp;
        let Some(addr) = candidate.socket_addr().filter(|a| usable && a.port() != 0) else {
            return;
        };
        if let Ok(remote) = IceAgentCandidate::from_sdp_string(&candidate.to_string()) {
            self.expect(addr);
            self.ice.add_remote_candidate(remote);
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
            let added =
                agent::candidate(candidate).and_then(|c| self.ice.add_local_candidate(c).cloned());
            if let Some(added) = added
                && let Ok(line) = added.to_sdp_string().parse::<Candidate>()
            {
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
                .any(|local| local.kind == CandidateKind::Relayed && local.base == source),
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
                    let packet = StunPacket {
                        proto: Protocol::Udp,
                        source,
                        destination,
                        message,
                    };
                    self.ice.handle_packet(self.now, packet);
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
        if self
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
        let disconnected = self.disconnected.map(|since| since + DISCONNECTED_GRACE);
        let sctp = self
            .association
            .as_ref()
            .and_then(Association::poll_timeout);
        [
            self.ice.poll_timeout(),
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
                    self.expect(destination);
                    let pair = agent::pair(&self.ice, &self.local, source, destination);
                    self.event(SessionEvent::Path(pair));
                    if first {
                        self.start_dtls();
                    }
                }
                IceAgentEvent::IceRestart(_) => {}
            }
        }
    }

    fn start_dtls(&mut self) {
        if let Some(dtls) = &mut self.dtls
            && !std::mem::replace(&mut self.dtls_started, true)
            && let Err(error) = dtls.handle_timeout(self.now)
        {
            self.fail(BackendError::Dtls(error.to_string()));
        }
    }

    /// Sends what is to be sent: calls `send` for each datagram.
    pub(super) fn poll_transmit(&mut self, now: Instant, mut send: impl FnMut(Outgoing<'_>)) {
        self.now = self.now.max(now);
        while let Some(transmit) = self.ice.poll_transmit() {
            self.expect(transmit.destination);
            send(Outgoing {
                source: transmit.source,
                destination: transmit.destination,
                data: &transmit.contents,
            });
        }
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

    fn poll_dtls(&mut self, send: &mut impl FnMut(&[u8])) {
        loop {
            let Some(dtls) = self.dtls.as_mut().filter(|_| self.dtls_started) else {
                return;
            };
            match dtls.poll_output(&mut self.scratch) {
                DtlsOutput::Packet(packet) => send(packet),
                DtlsOutput::Timeout(timeout) => {
                    self.dtls_timeout = Some(timeout);
                    return;
                }
                DtlsOutput::PeerCert(certificate) => {
                    let actual = self.identity.fingerprint(certificate);
                    self.verified = self
                        .remote
                        .as_ref()
                        .is_some_and(|remote| remote.fingerprint == actual);
                    if !self.verified {
                        let what = "certificate does not fit the fingerprint".to_owned();
                        return self.fail(BackendError::Dtls(what));
                    }
                }
                DtlsOutput::Connected if self.verified => self.dtls_connected(),
                DtlsOutput::Connected => {
                    let what = "peer showed no certificate".to_owned();
                    return self.fail(BackendError::Dtls(what));
                }
                DtlsOutput::ApplicationData(data) => {
                    if let Some(association) = &mut self.association {
                        association.receive(self.now, data);
                    }
                }
                DtlsOutput::CloseNotify => {
                    self.fail(BackendError::Closed);
                    return;
                }
                DtlsOutput::BufferTooSmall { needed } => {
                    let what = format!("record of {needed} bytes");
                    return self.fail(BackendError::Dtls(what));
                }
                _ => {}
            }
        }
    }

    fn dtls_connected(&mut self) {
        if self.connected {
            return;
        }
        self.connected = true;
        let client = self.setup == Setup::Active;
        let size = match self.remote.as_ref().map(|remote| remote.max_message_size) {
            Some(0) | None => u32::MAX,
            Some(size) => size,
        };
        match Association::start(client, size, self.now) {
            Ok(association) => {
                self.association = Some(association);
                self.event(SessionEvent::Connected);
            }
            Err(error) => self.fail(error),
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
mod tests {
    use super::*;
    use crate::core::signalling::IceCandidate;
    use futures::task::noop_waker;
    use std::task::{Context, Poll};

    /// Two sessions, a network that takes 10 ms, and a clock.
    struct Net {
        now: Instant,
        ends: [Session; 2],
        seen: [Vec<SessionEvent>; 2],
        flying: VecDeque<(Instant, usize, SocketAddr, SocketAddr, Vec<u8>)>,
        cut: bool,
    }

    fn addr(end: usize) -> SocketAddr {
        ([192, 0, 2, end as u8 + 1], 1000).into()
    }

    fn host(end: usize) -> [LocalCandidate; 1] {
        [LocalCandidate {
            kind: CandidateKind::Host,
            addr: addr(end),
            base: addr(end),
        }]
    }

    impl Net {
        fn new() -> Self {
            let now = Instant::now();
            let end = || Session::new(Arc::new(Identity::generate().unwrap()), now);
            Self {
                now,
                ends: [end(), end()],
                seen: [Vec::new(), Vec::new()],
                flying: VecDeque::new(),
                cut: false,
            }
        }

        fn description(&mut self, end: usize) -> String {
            self.ends[end].set_local_candidates(&host(end));
            match self.ends[end].poll_event(&noop_waker()) {
                Some(SessionEvent::Description(sdp)) => sdp,
                other => panic!("{other:?}"),
            }
        }

        fn negotiate(&mut self, change: impl Fn(String) -> String) {
            self.ends[0].create_offer();
            let offer = self.description(0);
            self.ends[1].accept_offer(&offer);
            let answer = self.description(1);
            self.ends[0].accept_answer(&change(answer));
        }

        /// One millisecond of everything.
        fn step(&mut self) {
            self.now += Duration::from_millis(1);
            while self.flying.front().is_some_and(|(at, ..)| *at <= self.now) {
                let (_, to, source, destination, data) = self.flying.pop_front().unwrap();
                self.ends[to].receive(self.now, source, destination, &data);
            }
            for end in 0..2 {
                let session = &mut self.ends[end];
                if session.poll_timeout().is_some_and(|at| at <= self.now) {
                    session.handle_timeout(self.now);
                }
                let (flying, at) = (&mut self.flying, self.now + Duration::from_millis(10));
                let cut = self.cut;
                session.poll_transmit(self.now, |out| {
                    if !cut {
                        let data = out.data.to_vec();
                        flying.push_back((at, 1 - end, out.source, out.destination, data));
                    }
                });
                while let Some(event) = session.poll_event(&noop_waker()) {
                    self.seen[end].push(event);
                }
            }
        }

        fn run(&mut self, millis: usize) {
            for _ in 0..millis {
                self.step();
            }
        }

        fn saw(&self, end: usize, wanted: impl Fn(&SessionEvent) -> bool) -> bool {
            self.seen[end].iter().any(wanted)
        }

        fn association(&mut self, end: usize) -> &mut Association {
            self.ends[end].association.as_mut().unwrap()
        }
    }

    fn connected(event: &SessionEvent) -> bool {
        matches!(event, SessionEvent::Connected)
    }

    #[test]
    fn two_sessions_connect_within_five_round_trips() {
        let mut net = Net::new();
        net.negotiate(|answer| answer);
        net.run(100);
        assert!(net.saw(0, connected) && net.saw(1, connected));
        assert!(net.saw(0, |e| matches!(e, SessionEvent::Path(_))));
    }

    #[test]
    fn another_certificate_is_refused() {
        let mut net = Net::new();
        net.negotiate(|answer| {
            let at = answer.find("sha-256 ").unwrap() + 8;
            let flipped = if &answer[at..at + 1] == "0" { "1" } else { "0" };
            format!("{}{flipped}{}", &answer[..at], &answer[at + 1..])
        });
        net.run(500);
        let refused = |e: &SessionEvent| matches!(e, SessionEvent::Failed(BackendError::Dtls(_)));
        assert!(net.saw(0, refused));
        assert!(!net.saw(0, connected) && net.ends[0].is_closed());
    }

    #[test]
    fn a_dead_path_fails_in_time() {
        let mut net = Net::new();
        net.negotiate(|answer| answer);
        net.run(200);
        net.cut = true;
        net.run(30_000);
        let failed = |e: &SessionEvent| matches!(e, SessionEvent::Failed(BackendError::Ice));
        assert!(net.saw(0, failed) && net.saw(1, failed));
    }

    #[test]
    fn stream_ids_come_back_after_their_reset() {
        let mut net = Net::new();
        net.negotiate(|answer| answer);
        net.run(200);
        for _ in 0..3 {
            // More than there are, were they not freed.
            let ids: Vec<u16> = (0..200)
                .map(|_| net.association(0).open().unwrap())
                .collect();
            net.run(100);
            for id in ids {
                net.association(0).detach(id);
            }
            net.run(100);
            let opened: Vec<u16> = net.seen[1]
                .drain(..)
                .filter_map(|e| match e {
                    SessionEvent::Channel(id) => Some(id),
                    _ => None,
                })
                .collect();
            assert_eq!(opened.len(), 200);
            for id in opened {
                net.association(1).detach(id);
            }
            net.run(300);
            assert_eq!((net.association(0).len(), net.association(1).len()), (0, 0));
        }
    }

    /// A sender stopped by a full window hears of it as soon as the reader has made room.
    #[test]
    fn a_reader_that_goes_on_opens_the_window() {
        let mut net = Net::new();
        net.negotiate(|answer| answer);
        net.run(200);
        let waker = noop_waker();
        let mut cx = Context::from_waker(&waker);
        let id = net.association(0).open().unwrap();
        let mut sent = 0;
        for _ in 0..1500 {
            while net.association(0).poll_ready(id, &mut cx).is_ready() {
                net.association(0).send(id, &[7; 16_000]).unwrap();
                sent += 16_000;
            }
            net.step();
        }
        assert!(sent >= super::super::association::RECEIVE_WINDOW as usize);
        // The next window probe is more than a second away.
        let window = super::super::association::RECEIVE_WINDOW as usize;
        let mut read = 0;
        for millis in 0..5_000 {
            while let Poll::Ready(Some(data)) = net.association(1).poll_next(id, &mut cx) {
                read += data.len();
            }
            assert!(millis < 200 || read > window + 20_000, "{read} bytes");
            net.step();
        }
        assert_eq!(read, sent);
    }

    #[test]
    fn a_candidate_with_a_name_is_skipped() {
        let mut net = Net::new();
        net.negotiate(|answer| answer);
        net.ends[0].add_remote_candidate(&IceCandidate {
            candidate: "candidate:1 1 udp 1 aa.local 9 typ host".into(),
            ..IceCandidate::default()
        });
        net.run(100);
        assert!(net.saw(0, connected));
    }
}
