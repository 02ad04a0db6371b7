//! One allocation: the state of the client, and its life from the first request to the last.

mod carrier;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use stun_types::message::{Message, TransactionId};
use tokio::{
    sync::{Notify, oneshot},
    time,
};
use turn_client_proto::{
    api::{TurnConfig, TurnEvent, TurnPollRet},
    prelude::TurnClientApi as _,
    tcp::TurnClientTcp,
    types::{AddressFamily, TurnCredentials},
    udp::TurnClientUdp,
};

use super::{
    Failure, Offer, Server,
    answers::{Asked, asked_channel},
    demand::{Hosts, LastUse},
    queue::Queue,
};
use crate::{
    core::silence::{Silence, Verdict},
    native::udp::Sockets,
};

/// The pause before the first retransmission of a request over UDP. RFC 8489 section 6.2.1
/// recommends 500 ms, which would be most of a connection's set-up when a packet is lost.
const RTO: Duration = Duration::from_millis(200);
/// The longest pause between two retransmissions.
const RTO_MAX: Duration = Duration::from_millis(1600);
/// The number of retransmissions.
const RETRANSMITS: u32 = 6;
/// How long to wait after the last retransmission.
const RTO_LAST: Duration = Duration::from_secs(2);

/// The pause that the client keeps between two requests.
const REQUEST_CADENCE: Duration = Duration::from_millis(50);

/// How long the server may take to confirm that an allocation is deleted.
const DELETE_TIMEOUT: Duration = Duration::from_secs(1);

turn_client_proto::impl_client!(Client, (Udp, TurnClientUdp), (Tcp, TurnClientTcp));

/// The families of relayed addresses that an allocation is to have.
pub(super) enum Families {
    /// IPv4 and IPv6 (ADDITIONAL-ADDRESS-FAMILY, RFC 8656 section 7.1). A server without IPv6 says
    /// so. Older servers ignore the wish, and then the sender is told.
    Both(oneshot::Sender<()>),
    /// IPv6 alone (REQUESTED-ADDRESS-FAMILY). Older servers know this attribute, too.
    V6,
}

/// An allocation. All work happens in [`drive`](Self::drive), [`TurnCarrier::carry`] and
/// [`TurnCarrier::take`].
pub(super) struct Allocation {
    server: SocketAddr,
    /// The local address that it sends from. It may be unspecified over UDP.
    source: SocketAddr,
    sockets: Sockets,
    /// The bytes that wait to be sent over TCP or TLS. `None` over UDP.
    queue: Option<Queue>,
    state: Mutex<State>,
    /// Wakes [`drive`](Self::drive).
    work: Notify,
    /// The zero of the client's clock.
    start: Instant,
    used: Arc<LastUse>,
}

struct State {
    client: Client,
    /// How far the client's clock is ahead.
    ahead: Duration,
    asked: Asked,
    /// Whether the server still answers, once it has allocated.
    silence: Silence,
    /// The peers that were asked for, and when the server refused them, if it did.
    peers: HashMap<IpAddr, Option<Instant>>,
    channels: HashSet<SocketAddr>,
    /// The peers of the channels that were asked for. A server may use a channel before its answer
    /// arrives. The answer may also be lost when the connection to the server is full.
    numbers: HashMap<u16, SocketAddr>,
    waiting: VecDeque<(SocketAddr, Vec<u8>)>,
    relayed: Vec<SocketAddr>,
    deleted: bool,
    /// Whether the server no longer holds what it has allocated.
    lost: bool,
    /// The last error code of the server.
    error: Option<u16>,
    /// The request at which the server asked for credentials.
    challenge: Option<TransactionId>,
    /// Whether the server asked again for credentials at another request (RFC 8489 section 9.2.5).
    refused: bool,
    /// The other server that this one refers to.
    elsewhere: Option<SocketAddr>,
    /// Told when there is an IPv4 address, and the server does not mention IPv6.
    ipv6: Option<oneshot::Sender<()>>,
}

impl State {
    /// Whether there is an allocation that was not deleted.
    fn is_held(&self) -> bool {
        !self.relayed.is_empty() && !self.deleted
    }
}

/// The work that follows from polling the client.
struct Step {
    wait: Option<Instant>,
    ended: bool,
    created: Vec<SocketAddr>,
}

impl Allocation {
    /// Makes an allocation over UDP, from the socket at `source`. The caller routes `server` to it.
    pub(super) fn over_udp(
        server: &Server,
        (source, addr): (SocketAddr, SocketAddr),
        sockets: &Sockets,
        families: Families,
        used: &Arc<LastUse>,
    ) -> Arc<Self> {
        let client = TurnClientUdp::allocate(local(), addr, config(server, &families));
        let client = (Client::Udp(client), None);
        Self::new(client, (source, addr), sockets, families, used)
    }

    /// Makes an allocation over TCP or TLS, from the address `source`. The caller writes
    /// [`queue`](Self::queue) to the connection.
    pub(super) fn over_stream(
        server: &Server,
        (source, addr): (SocketAddr, SocketAddr),
        sockets: &Sockets,
        families: Families,
        used: &Arc<LastUse>,
    ) -> Arc<Self> {
        let client = TurnClientTcp::allocate(local(), addr, config(server, &families));
        let client = (Client::Tcp(client), Some(Queue::default()));
        Self::new(client, (source, addr), sockets, families, used)
    }

    fn new(
        (client, queue): (Client, Option<Queue>),
        (source, server): (SocketAddr, SocketAddr),
        sockets: &Sockets,
        families: Families,
        used: &Arc<LastUse>,
    ) -> Arc<Self> {
        let state = State {
            client,
            ahead: Duration::ZERO,
            asked: Asked::default(),
            silence: Silence::default(),
            peers: HashMap::new(),
            channels: HashSet::new(),
            numbers: HashMap::new(),
            waiting: VecDeque::new(),
            relayed: Vec::new(),
            deleted: false,
            lost: false,
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
            used: used.clone(),
        })
    }

    pub(super) fn queue(&self) -> Option<&Queue> {
        self.queue.as_ref()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn clock(&self, state: &State, now: Instant) -> stun_proto::Instant {
        let elapsed = now.saturating_duration_since(self.start) + state.ahead;
        let nanos = elapsed.as_nanos();
        stun_proto::Instant::from_nanos(i64::try_from(nanos).unwrap_or(i64::MAX))
    }

    /// Allocates within `timeout`, offers the relayed addresses, keeps them until `released`, and
    /// then deletes the allocation.
    pub(super) async fn drive(
        &self,
        timeout: Duration,
        released: &mut Pin<&mut impl Future<Output = ()>>,
        offer: &Offer,
    ) -> Result<(), Failure> {
        let mut deadline = Some(Instant::now() + timeout);
        let mut deleted = false;
        let mut hosts = Hosts::watch(&offer.current);
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
                return Err(self.failure(step.ended));
            }
            let until = [step.wait, deadline].into_iter().flatten().min();
            let until = until.unwrap_or(now + Duration::from_secs(60));
            tokio::select! {
                () = self.work.notified() => {}
                () = time::sleep_until(until.into()) => {}
                gone = hosts.changed() => self.on_network_changed(&gone),
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

    /// Why the allocation has `ended`, or was not made in time.
    fn failure(&self, ended: bool) -> Failure {
        let state = self.state();
        let given = !state.relayed.is_empty();
        let failure = match (state.elsewhere, state.error, ended) {
            _ if given => Failure::Lost,
            (Some(other), ..) => Failure::Elsewhere(other),
            (_, Some(code), _) => Failure::Refused(code),
            (_, None, true) => Failure::Closed,
            (_, None, false) => Failure::Timeout,
        };
        drop(state);
        if given {
            // A server that only could not be reached still holds the allocation.
            self.delete();
        }
        failure
    }

    /// Whether the server has allocated an address.
    pub(super) fn was_given(&self) -> bool {
        !self.state().relayed.is_empty()
    }

    /// Asks the server whether it still knows this machine, which may have another address now. A
    /// stream from an address that is gone is dead.
    fn on_network_changed(&self, gone: &[IpAddr]) {
        let mut state = self.state();
        state.lost |= self.queue.is_some() && gone.contains(&self.source.ip());
        state.silence.hint();
    }

    #[cfg(all(test, feature = "server"))]
    pub(super) fn hint(&self) {
        self.on_network_changed(&[]);
        self.work.notify_one();
    }

    /// How far the client's clock is ahead.
    #[cfg(all(test, feature = "server"))]
    pub(super) fn ahead(&self) -> Duration {
        self.state().ahead
    }

    /// Deletes the allocation, and tells the server at once, because the program may be about to
    /// end. Returns whether there was an allocation.
    pub(super) fn delete(&self) -> bool {
        let mut state = self.state();
        let clock = self.clock(&state, Instant::now());
        if state.deleted {
            return true;
        }
        state.deleted = state.client.delete(clock).is_ok();
        let deleted = state.deleted;
        // The client would wait a while after its last request.
        let due = state.client.poll_transmit(clock + REQUEST_CADENCE);
        drop(state);
        if let Some(due) = due.filter(|_| deleted) {
            self.ask(&due.data);
        }
        deleted
    }

    /// Lets the client do the work that is due.
    fn step(&self, now: Instant) -> Step {
        let mut out = Vec::new();
        let mut created = Vec::new();
        let mut state = self.state();
        let mut clock = self.clock(&state, now);
        if state.is_held() {
            match state.silence.tick(now) {
                Verdict::Wait => {}
                Verdict::Ask => clock = self.ask_early(&mut state, now),
                Verdict::Gone => state.lost = true,
            }
        }
        if state.refused || state.lost {
            // The client would ask again and again.
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
                    tracing::debug!("the TURN server refused a channel");
                    // Indications serve as well, so the channel is not asked for again.
                    state.channels.insert(peer);
                }
                _ => {}
            }
        }
        while let Some(transmit) = state.client.poll_transmit(clock) {
            if let Ok(request) = Message::from_bytes(&transmit.data) {
                state.asked.note(&request);
                if let Some((number, peer)) = asked_channel(&request) {
                    state.numbers.insert(number, peer);
                }
            }
            state.silence.sent(now);
            out.push(transmit);
        }
        // Sending has set timers.
        let polled = match polled {
            TurnPollRet::Closed => TurnPollRet::Closed,
            _ => state.client.poll(clock),
        };
        let silent = match state.is_held() {
            true => state.silence.wake(now),
            false => None,
        };
        drop(state);
        for transmit in out {
            self.ask(&transmit.data);
        }
        match polled {
            TurnPollRet::WaitUntil(at) => {
                let wait = at.duration_since(clock);
                // A client that wants to be polled at once, again and again, is slowed down.
                let wait = wait.max(Duration::from_millis(2));
                let wait = now.checked_add(wait);
                Step {
                    wait: wait.into_iter().chain(silent).min(),
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

    /// Makes the client send its next request now, by setting its clock to the time at which the
    /// request is due. Then everything is renewed sooner than it has to be.
    fn ask_early(&self, state: &mut State, now: Instant) -> stun_proto::Instant {
        let clock = self.clock(state, now);
        if let TurnPollRet::WaitUntil(at) = state.client.poll(clock) {
            state.ahead += at.duration_since(clock);
        }
        self.clock(state, now)
    }

    /// Sends a request.
    fn ask(&self, request: &[u8]) {
        match &self.queue {
            Some(queue) => queue.request(request),
            None => self.send_to_server(request, request.len()),
        }
    }

    /// Sends frames of `segment` bytes. The last one may be shorter. Over a connection the frames
    /// are padded.
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
}

/// The address that the client takes for its own. It only compares this address.
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
