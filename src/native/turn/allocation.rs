//! One allocation: the client's state, and what is sent and received through it.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use stun_types::{
    TransportType,
    attribute::{AlternateServer, AttributeType, ErrorCode},
    message::{Message, MessageClass, TransactionId},
};
use tokio::{
    sync::{Notify, oneshot},
    time,
};
use turn_client_proto::{
    api::{Transmit, TurnConfig, TurnEvent, TurnPollRet, TurnRecvRet},
    prelude::{DelayedTransmitBuild as _, TurnClientApi as _},
    tcp::TurnClientTcp,
    types::{
        AddressFamily, TurnCredentials,
        attribute::{ChannelNumber, XorPeerAddress},
        message::CHANNEL_BIND,
    },
    udp::TurnClientUdp,
};

use super::{Failure, Offer, Server, frame, queue::Queue};
use crate::{
    core::scope::is_global,
    native::socket::{Carrier, Sockets},
};

/// First retransmission of a request over UDP, its greatest interval, how many there are, and how
/// long the last one waits. RFC 8489 section 6.2.1 recommends 500 ms, which on a lost packet
/// would be most of a connection's set-up.
const RTO: Duration = Duration::from_millis(200);
const RTO_MAX: Duration = Duration::from_millis(1600);
const RETRANSMITS: u32 = 6;
const RTO_LAST: Duration = Duration::from_secs(2);

/// What the client leaves between two requests.
const REQUEST_CADENCE: Duration = Duration::from_millis(50);

/// How long the server may take to confirm that an allocation is deleted.
const DELETE_TIMEOUT: Duration = Duration::from_secs(1);

/// Peers that an allocation exchanges datagrams with, by address, and channels at most. Each
/// costs the server state and a request every few minutes.
const MAX_PEERS: usize = 256;
const MAX_CHANNELS: usize = 64;

/// Datagrams that wait for the permission to send them: a check or two for each pair.
const MAX_WAITING: usize = 64;

/// When a peer that the server refused is asked for again.
const REFUSED: Duration = Duration::from_secs(30);

/// With it a server says why there is no address of a family (RFC 8656 section 18.12).
const ADDRESS_ERROR_CODE: AttributeType = AttributeType::new(0x8001);

turn_client_proto::impl_client!(Client, (Udp, TurnClientUdp), (Tcp, TurnClientTcp));

/// Which families of relayed addresses an allocation is to have.
pub(super) enum Families {
    /// IPv4 and IPv6 (RFC 8656 section 7.1, ADDITIONAL-ADDRESS-FAMILY). A server without IPv6 says
    /// so; older ones take no notice of the wish, of which this tells.
    Both(oneshot::Sender<()>),
    /// IPv6 alone, which those servers know, too (REQUESTED-ADDRESS-FAMILY).
    V6,
}

/// An allocation. Everything happens in [`drive`](Self::drive), [`Carrier::carry`] and
/// [`Carrier::take`].
pub(super) struct Allocation {
    server: SocketAddr,
    /// What it sends from over UDP.
    source: SocketAddr,
    sockets: Sockets,
    /// Bytes for the connection; `None` over UDP.
    queue: Option<Queue>,
    state: Mutex<State>,
    /// Wakes the driver.
    work: Notify,
    /// The client's clock begins here.
    start: Instant,
}

struct State {
    client: Client,
    /// Peers that were asked for, and when the server refused them, if it did.
    peers: HashMap<IpAddr, Option<Instant>>,
    channels: HashSet<SocketAddr>,
    /// The peers of channels that were asked for. A server may use one before its answer is here, and
    /// the answer may be lost where a connection to the server is full.
    numbers: HashMap<u16, SocketAddr>,
    waiting: VecDeque<(SocketAddr, Vec<u8>)>,
    relayed: Vec<SocketAddr>,
    deleted: bool,
    /// The last error that the server named.
    error: Option<u16>,
    /// The request that it asked for credentials at.
    challenge: Option<TransactionId>,
    /// Whether it asked again at one that had them (RFC 8489 section 9.2.5).
    refused: bool,
    /// Where it says to go instead.
    elsewhere: Option<SocketAddr>,
    /// Told once there is an IPv4 address and nothing is said of an IPv6 one.
    ipv6: Option<oneshot::Sender<()>>,
}

/// What is to be done after the client was asked.
struct Step {
    wait: Option<Instant>,
    ended: bool,
    created: Vec<SocketAddr>,
}

impl Allocation {
    /// From the socket at `source`, to which `server` has to be routed.
    pub(super) fn over_udp(
        server: &Server,
        (source, addr): (SocketAddr, SocketAddr),
        sockets: &Sockets,
        families: Families,
    ) -> Arc<Self> {
        let client = TurnClientUdp::allocate(local(), addr, config(server, &families));
        Self::new(Client::Udp(client), (source, addr), sockets, None, families)
    }

    /// Over a connection, to which [`queue`](Self::queue) has to be written.
    pub(super) fn over_stream(
        server: &Server,
        addr: SocketAddr,
        sockets: &Sockets,
        families: Families,
    ) -> Arc<Self> {
        let client = TurnClientTcp::allocate(local(), addr, config(server, &families));
        let (ends, queue) = ((local(), addr), Some(Queue::default()));
        Self::new(Client::Tcp(client), ends, sockets, queue, families)
    }

    fn new(
        client: Client,
        (source, server): (SocketAddr, SocketAddr),
        sockets: &Sockets,
        queue: Option<Queue>,
        families: Families,
    ) -> Arc<Self> {
        let state = State {
            client,
            peers: HashMap::new(),
            channels: HashSet::new(),
            numbers: HashMap::new(),
            waiting: VecDeque::new(),
            relayed: Vec::new(),
            deleted: false,
            error: None,
            challenge: None,
            refused: false,
            elsewhere: None,
            ipv6: match families {
                Families::Both(missing) => Some(missing),
                Families::V6 => None,
            },
        };
        Arc::new(Self {
            server,
            source,
            sockets: sockets.clone(),
            queue,
            state: Mutex::new(state),
            work: Notify::new(),
            start: Instant::now(),
        })
    }

    pub(super) fn queue(&self) -> Option<&Queue> {
        self.queue.as_ref()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clock(&self, now: Instant) -> stun_proto::Instant {
        let nanos = now.saturating_duration_since(self.start).as_nanos();
        stun_proto::Instant::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
    }

    /// Allocates, within `timeout`, offers what was allocated and keeps it until `released`, then
    /// deletes it.
    pub(super) async fn drive(
        &self,
        timeout: Duration,
        released: &mut Pin<&mut impl Future<Output = ()>>,
        offer: &Offer,
    ) -> Result<(), Failure> {
        let mut deadline = Some(Instant::now() + timeout);
        let mut deleted = false;
        loop {
            let now = Instant::now();
            let step = self.step(now);
            for relayed in step.created {
                offer.add(relayed);
                deadline = None;
            }
            if deleted && (step.ended || deadline.is_some_and(|deadline| now >= deadline)) {
                return Ok(());
            }
            if step.ended || deadline.is_some_and(|deadline| now >= deadline) {
                let state = self.state();
                return Err(match (state.elsewhere, state.error, step.ended) {
                    (Some(other), ..) => Failure::Elsewhere(other),
                    (_, Some(code), _) => Failure::Refused(code),
                    (_, None, true) => Failure::Lost,
                    (_, None, false) => Failure::Timeout,
                });
            }
            let until = [step.wait, deadline].into_iter().flatten().min();
            let until = until.unwrap_or(now + Duration::from_secs(60));
            tokio::select! {
                () = self.work.notified() => {}
                () = time::sleep_until(until.into()) => {}
                () = &mut *released, if !deleted => {
                    offer.withdraw();
                    if !self.delete() {
                        return Ok(());
                    }
                    deleted = true;
                    deadline = Some(now + DELETE_TIMEOUT);
                }
            }
        }
    }

    /// Deletes what was allocated, if anything was, and says so to the server at once: the program
    /// may be about to end.
    pub(super) fn delete(&self) -> bool {
        let clock = self.clock(Instant::now());
        let mut state = self.state();
        if state.deleted {
            return true;
        }
        state.deleted = state.client.delete(clock).is_ok();
        let deleted = state.deleted;
        // The client would keep a distance from its last request.
        let due = state.client.poll_transmit(clock + REQUEST_CADENCE);
        drop(state);
        if let Some(due) = due.filter(|_| deleted) {
            self.ask(&due.data);
        }
        deleted
    }

    /// Lets the client do what is due.
    fn step(&self, now: Instant) -> Step {
        let clock = self.clock(now);
        let mut out = Vec::new();
        let mut created = Vec::new();
        let mut state = self.state();
        if state.refused {
            // The client would ask on until it has no time left.
            return Step {
                wait: None,
                ended: true,
                created,
            };
        }
        let polled = state.client.poll(clock);
        while let Some(event) = state.client.poll_event() {
            match event {
                TurnEvent::AllocationCreated(_, relayed) => {
                    state.relayed.push(relayed);
                    state.error = None;
                    created.push(relayed);
                }
                TurnEvent::AllocationCreateFailed(AddressFamily::IPV6)
                    if !state.relayed.is_empty() =>
                {
                    if let Some(missing) = state.ipv6.take() {
                        let _ = missing.send(());
                    }
                }
                TurnEvent::PermissionCreated(_, ip) => self.send_waiting(&mut state, ip, clock),
                TurnEvent::PermissionCreateFailed(_, ip) => {
                    state.peers.insert(ip, Some(now));
                    state.waiting.retain(|(to, _)| to.ip() != ip);
                }
                TurnEvent::ChannelCreateFailed(_, peer) => {
                    tracing::debug!("a TURN channel is refused");
                    // Indications serve as well; it is not asked for again.
                    state.channels.insert(peer);
                }
                _ => {}
            }
        }
        while let Some(transmit) = state.client.poll_transmit(clock) {
            if let Some((number, peer)) = asked_channel(&transmit.data) {
                state.numbers.insert(number, peer);
            }
            out.push(transmit);
        }
        // Sending has set timers.
        let polled = match polled {
            TurnPollRet::Closed => TurnPollRet::Closed,
            _ => state.client.poll(clock),
        };
        drop(state);
        for transmit in out {
            self.ask(&transmit.data);
        }
        match polled {
            TurnPollRet::WaitUntil(at) => {
                let wait = at.duration_since(clock);
                // A client that wants to be asked at once, again and again, is paced.
                let wait = wait.max(Duration::from_millis(2));
                Step {
                    wait: now.checked_add(wait),
                    ended: false,
                    created,
                }
            }
            closed => Step {
                wait: None,
                ended: matches!(closed, TurnPollRet::Closed),
                created,
            },
        }
    }

    /// Sends a request.
    fn ask(&self, request: &[u8]) {
        match &self.queue {
            Some(queue) => queue.request(request),
            None => self.send_to_server(request, request.len()),
        }
    }

    /// Sends frames of `segment` bytes, the last one possibly shorter, which over a connection
    /// are padded ones.
    fn send_to_server(&self, mut frames: &[u8], segment: usize) {
        match &self.queue {
            Some(queue) => queue.data(frames),
            None => {
                // A full buffer loses the rest, as a network would.
                let _ = self
                    .sockets
                    .try_send(self.source, self.server, &mut frames, segment);
            }
        }
    }

    fn send_waiting(&self, state: &mut State, ip: IpAddr, clock: stun_proto::Instant) {
        for _ in 0..state.waiting.len() {
            let Some((to, datagram)) = state.waiting.pop_front() else {
                return;
            };
            if to.ip() != ip {
                state.waiting.push_back((to, datagram));
            } else if let Some(frame) = self.frame(state, to, &datagram, clock) {
                self.send_to_server(&frame, frame.len());
            }
        }
    }

    /// The datagram as it is sent to the server; `None` without a permission for it.
    fn frame(
        &self,
        state: &mut State,
        to: SocketAddr,
        datagram: &[u8],
        clock: stun_proto::Instant,
    ) -> Option<Vec<u8>> {
        let sent = state
            .client
            .send_to(TransportType::Udp, to, datagram, clock);
        let mut frame = sent.ok()??.data.build();
        if self.queue.is_some() {
            let len = frame.len();
            frame::pad(&mut frame, len);
        }
        Some(frame)
    }

    /// Keeps a datagram until its destination is permitted, and asks for that.
    fn wait_for_permission(&self, state: &mut State, now: Instant, to: SocketAddr, data: &[u8]) {
        let relayed = state.relayed.iter().find(|r| r.is_ipv4() == to.is_ipv4());
        // A server on the internet does not reach into private networks, and may refuse to try.
        if relayed.is_none_or(|relayed| !is_global(to.ip()) && is_global(relayed.ip())) {
            return;
        }
        match state.peers.get(&to.ip()) {
            Some(Some(refused)) if now < *refused + REFUSED => return,
            None if state.peers.len() >= MAX_PEERS => return,
            _ => {}
        }
        if state.waiting.len() >= MAX_WAITING {
            state.waiting.pop_front();
        }
        state.waiting.push_back((to, data.to_vec()));
        let (udp, clock) = (TransportType::Udp, self.clock(now));
        // It fails while the request for it is under way.
        if state.client.create_permission(udp, to.ip(), clock).is_ok() {
            state.peers.insert(to.ip(), None);
            self.work.notify_one();
        }
    }

    /// Binds a channel, which saves 32 bytes a datagram, for a peer that more than checks go to.
    fn bind_channel(&self, state: &mut State, now: Instant, to: SocketAddr) {
        if state.channels.len() < MAX_CHANNELS && state.channels.insert(to) {
            let (udp, clock) = (TransportType::Udp, self.clock(now));
            // It fails where indications have to serve.
            if state.client.bind_channel(udp, to, clock).is_ok() {
                self.work.notify_one();
            }
        }
    }
}

impl Carrier for Allocation {
    fn carry(&self, destination: SocketAddr, data: &[u8], segment: usize) {
        let now = Instant::now();
        let clock = self.clock(now);
        let mut frames = Vec::new();
        let mut framed = 0;
        let mut state = self.state();
        for datagram in data.chunks(segment) {
            // STUN (RFC 7983) is for checks.
            if datagram.first().is_some_and(|first| *first > 3) {
                self.bind_channel(&mut state, now, destination);
            }
            match self.frame(&mut state, destination, datagram, clock) {
                Some(frame) => {
                    framed = framed.max(frame.len());
                    frames.extend(frame);
                }
                None => self.wait_for_permission(&mut state, now, destination, datagram),
            }
        }
        drop(state);
        if !frames.is_empty() {
            self.send_to_server(&frames, framed);
        }
    }

    fn take(&self, now: Instant, data: &[u8]) -> bool {
        if frame::is_binding(data) {
            return false;
        }
        let (transport, clock) = match self.queue {
            Some(_) => (TransportType::Tcp, self.clock(now)),
            None => (TransportType::Udp, self.clock(now)),
        };
        let mut state = self.state();
        if let Ok(message) = Message::from_bytes(data) {
            let code = error_code(&message);
            state.error = code.or(state.error);
            if code == Some(ErrorCode::TRY_ALTERNATE) {
                let other = message.attribute::<AlternateServer>();
                state.elsewhere = other.ok().map(|other| other.server());
            } else if code == Some(ErrorCode::UNAUTHORIZED) {
                let request = message.transaction_id();
                let first = *state.challenge.get_or_insert(request);
                state.refused |= first != request;
            }
            if message.has_attribute(ADDRESS_ERROR_CODE) {
                state.ipv6 = None;
            }
        }
        let received = Transmit::new(data, transport, self.server, local());
        let received = state.client.recv(received, clock);
        let datagram = match &received {
            TurnRecvRet::PeerData(received) => Some((received.peer, received.data())),
            _ => channel_data(&state.numbers, data),
        };
        if let Some((peer, datagram)) = datagram {
            let relayed = state.relayed.iter().find(|r| r.is_ipv4() == peer.is_ipv4());
            let relayed = relayed.copied();
            drop(state);
            if let Some(relayed) = relayed {
                self.sockets.receive_relayed(now, peer, relayed, datagram);
            }
        } else {
            drop(state);
            self.work.notify_one();
        }
        true
    }
}

/// The error that a response names, other than those that are steps of every authentication.
fn error_code(message: &Message<'_>) -> Option<u16> {
    if !message.has_class(MessageClass::Error) {
        return None;
    }
    let code = message.attribute::<ErrorCode>().ok()?.code();
    (code != ErrorCode::STALE_NONCE).then_some(code)
}

/// The channel that a request is to bind, and its peer.
fn asked_channel(request: &[u8]) -> Option<(u16, SocketAddr)> {
    let message = Message::from_bytes(request).ok()?;
    let bind = message.has_method(CHANNEL_BIND) && message.has_class(MessageClass::Request);
    let number = message.attribute::<ChannelNumber>().ok().filter(|_| bind)?;
    let peer = message.attribute::<XorPeerAddress>().ok()?;
    Some((number.channel(), peer.addr(message.transaction_id())))
}

/// The datagram in a ChannelData message (RFC 8656 section 12.4), and its peer.
fn channel_data<'a>(
    numbers: &HashMap<u16, SocketAddr>,
    frame: &'a [u8],
) -> Option<(SocketAddr, &'a [u8])> {
    let [first, second, high, low, data @ ..] = frame else {
        return None;
    };
    let peer = numbers.get(&u16::from_be_bytes([*first, *second]))?;
    let len = u16::from_be_bytes([*high, *low]);
    Some((*peer, data.get(..usize::from(len))?))
}

/// What the client takes for its own address; it only compares it.
fn local() -> SocketAddr {
    (Ipv4Addr::UNSPECIFIED, 0).into()
}

fn config(server: &Server, families: &Families) -> TurnConfig {
    let credentials = TurnCredentials::new(&server.username, &server.credential);
    let mut config = TurnConfig::new(credentials);
    match families {
        Families::Both(_) => config.add_address_family(AddressFamily::IPV6),
        Families::V6 => config.set_address_family(AddressFamily::IPV6),
    }
    config.set_request_retransmits(RTO, RTO_MAX, RETRANSMITS, RTO_LAST);
    config
}
