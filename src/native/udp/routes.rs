//! The routes from a datagram to its receiver.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Instant,
};

use str0m::ice::StunMessage;

use super::{Handle, Receiver, Sockets, TurnCarrier};
use crate::{
    core::{
        quic::{CHANNEL_DATA, Destination, FIRST_BYTE, Tag},
        webrtc_direct::Credentials,
    },
    native::ice::turn::frame,
};

/// The receivers, by what their datagrams have in common.
#[derive(Default)]
pub(super) struct Routes {
    /// Receivers of STUN requests, by the local username fragment that the request names.
    by_fragment: HashMap<String, Weak<dyn Receiver>>,
    /// The receiver of checks of clients of `/webrtc-direct`, which have no session yet.
    stun_listener: Option<Weak<dyn Receiver>>,
    /// The STUN and TURN server of these sockets.
    service: Option<Weak<dyn Receiver>>,
    /// Receivers of everything else, by source. Several receivers may wait for one source.
    by_source: HashMap<SocketAddr, Vec<Weak<dyn Receiver>>>,
    /// The receiver of STUN responses that no candidate pair waits for.
    stun_client: Option<Weak<dyn Receiver>>,
    /// Receivers of QUIC, by the tag of their endpoint in the connection ids that it chose.
    by_tag: HashMap<Tag, Weak<dyn Receiver>>,
    /// The receiver of QUIC connections that begin and that no other receiver takes.
    quic_listener: Option<Weak<dyn Receiver>>,
    /// TURN clients, by the local port and the address of their server. The first bytes of channel
    /// data and of QUIC overlap, so the source decides (RFC 9443 section 3).
    pub(super) by_server: HashMap<(u16, SocketAddr), Weak<dyn TurnCarrier>>,
    /// TURN clients that carry whatever is sent from a relayed address.
    pub(super) by_relayed: HashMap<SocketAddr, Weak<dyn TurnCarrier>>,
}

impl Routes {
    /// Whether a datagram from a TURN server may be TURN. Data of channels and short headers of QUIC begin
    /// with the same bytes, but all connection ids of ours have a tag.
    pub(super) fn may_be_turn(&self, datagram: &[u8]) -> bool {
        match datagram.first() {
            Some(first) if *first < FIRST_BYTE => true,
            Some(first) if CHANNEL_DATA.contains(first) => {
                let tag = Destination::of(datagram).and_then(|to| to.tag);
                tag.is_none_or(|tag| !self.by_tag.contains_key(&tag))
            }
            _ => false,
        }
    }

    fn service(&self) -> Option<Handle> {
        self.service.as_ref().and_then(Weak::upgrade)
    }

    /// The receiver of checks of clients of `/webrtc-direct`.
    fn listener(&self, username: Option<(&str, &str)>) -> Option<Handle> {
        username.and_then(|(server, client)| Credentials::read(server, client))?;
        self.stun_listener.as_ref().and_then(Weak::upgrade)
    }
}

impl Sockets {
    /// Routes QUIC datagrams to connection ids with this tag.
    pub(crate) fn route_tag(&self, tag: Tag, to: &Handle) {
        let mut routes = self.routes();
        routes.by_tag.retain(|_, weak| weak.strong_count() > 0);
        routes.by_tag.insert(tag, Arc::downgrade(to));
    }

    /// Routes QUIC connections that begin and that no other receiver takes.
    pub(crate) fn route_quic_listener(&self, to: &Handle) {
        self.routes().quic_listener = Some(Arc::downgrade(to));
    }

    /// Routes STUN requests for the local username fragment.
    pub(crate) fn route_fragment(&self, fragment: &str, to: &Handle) {
        let to = Arc::downgrade(to);
        self.routes().by_fragment.insert(fragment.to_owned(), to);
    }

    /// Routes the first checks of clients of `/webrtc-direct`.
    #[cfg(feature = "server")]
    pub(crate) fn route_stun_listener(&self, to: &Handle) {
        self.routes().stun_listener = Some(Arc::downgrade(to));
    }

    /// Routes STUN and TURN to a server. Checks of ICE and of clients of `/webrtc-direct` go before it.
    #[cfg(feature = "server")]
    pub(crate) fn route_service(&self, to: &Handle) {
        self.routes().service = Some(Arc::downgrade(to));
    }

    /// Routes datagrams that come from `source`.
    pub(crate) fn route_source(&self, source: SocketAddr, to: &Handle) {
        let mut routes = self.routes();
        let all = routes.by_source.entry(source).or_default();
        all.retain(|weak| weak.strong_count() > 0);
        all.push(Arc::downgrade(to));
    }

    /// Routes STUN responses that no other receiver accepts.
    pub(crate) fn route_stun_client(&self, to: &Handle) {
        self.routes().stun_client = Some(Arc::downgrade(to));
    }

    /// Routes everything that comes from a TURN server to a local port to the server's client,
    /// before all other routes. Returns `false` if the server has a client on this port already:
    /// over one socket there can be no other (RFC 8656 section 5).
    pub(crate) fn route_server(
        &self,
        port: u16,
        server: SocketAddr,
        to: &Arc<dyn TurnCarrier>,
    ) -> bool {
        let mut routes = self.routes();
        let taken = routes.by_server.get(&(port, server));
        if taken.is_some_and(|carrier| carrier.strong_count() > 0) {
            return false;
        }
        routes.by_server.insert((port, server), Arc::downgrade(to));
        true
    }

    /// Routes everything that is sent from a relayed address through its TURN client.
    pub(crate) fn route_relayed(&self, relayed: SocketAddr, through: &Arc<dyn TurnCarrier>) {
        let mut routes = self.routes();
        routes.by_relayed.insert(relayed, Arc::downgrade(through));
    }

    /// Removes the routes of a TURN client.
    pub(crate) fn unroute_carrier(&self, carrier: &Weak<dyn TurnCarrier>) {
        let mut routes = self.routes();
        routes.by_server.retain(|_, other| !other.ptr_eq(carrier));
        routes.by_relayed.retain(|_, other| !other.ptr_eq(carrier));
    }

    /// Handles a datagram from `source` that arrived at a relayed address.
    pub(crate) fn receive_relayed(
        &self,
        now: Instant,
        source: SocketAddr,
        relayed: SocketAddr,
        data: &[u8],
    ) {
        let mut touched = Vec::new();
        let one = (data, data.len().max(1));
        dispatch(&self.0.routes, now, source, relayed, one, &mut touched);
        for receiver in touched {
            receiver.received_all();
        }
    }

    /// Removes the routes of a receiver.
    pub(crate) fn unroute(
        &self,
        fragment: &str,
        sources: impl IntoIterator<Item = SocketAddr>,
        receiver: &Handle,
    ) {
        let receiver = Arc::downgrade(receiver);
        let mut routes = self.routes();
        routes.by_fragment.remove(fragment);
        for source in sources {
            if let Some(all) = routes.by_source.get_mut(&source) {
                all.retain(|weak| !weak.ptr_eq(&receiver) && weak.strong_count() > 0);
                if all.is_empty() {
                    routes.by_source.remove(&source);
                }
            }
        }
    }

    pub(super) fn routes(&self) -> MutexGuard<'_, Routes> {
        lock(&self.0.routes)
    }
}

pub(super) fn lock(routes: &Mutex<Routes>) -> MutexGuard<'_, Routes> {
    routes.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hands over datagrams: `run` is cut into pieces of `stride` bytes. The kernel joins what one source has
/// sent, whatever its protocol.
pub(super) fn dispatch(
    routes: &Mutex<Routes>,
    now: Instant,
    source: SocketAddr,
    destination: SocketAddr,
    (run, stride): (&[u8], usize),
    touched: &mut Vec<Handle>,
) {
    let may_be_quic = |datagram: &[u8]| datagram.first().is_some_and(|b| *b >= FIRST_BYTE);
    let mut rest = run;
    while let Some(first) = rest.chunks(stride).next() {
        if !may_be_quic(first) {
            deliver(routes, now, source, destination, first, touched);
            rest = &rest[first.len()..];
            continue;
        }
        let quic = rest.chunks(stride).take_while(|next| may_be_quic(next));
        let (piece, after) = rest.split_at(quic.map(<[u8]>::len).sum());
        deliver_quic(routes, now, source, destination, (piece, stride));
        rest = after;
    }
}

/// Finds the receivers of a datagram. A datagram without a receiver is dropped.
fn deliver(
    routes: &Mutex<Routes>,
    now: Instant,
    source: SocketAddr,
    destination: SocketAddr,
    datagram: &[u8],
    touched: &mut Vec<Handle>,
) {
    // The receivers are called without the lock, because they may change routes.
    let mut found: [Option<Handle>; 4] = Default::default();
    match datagram.first() {
        // STUN and TURN.
        Some(0..=3) => {
            let service = lock(routes).service();
            if let Some(service) = &service
                && !frame::is_binding(datagram)
            {
                service.receive(now, source, destination, datagram);
                return;
            }
            let parsed = StunMessage::parse(datagram);
            let routes = lock(routes);
            let Ok(message) = parsed else {
                // Servers that ask for no credentials do not sign their answers, so the parser of
                // the ICE agent refuses them. The STUN client recognises its own transactions.
                let client = routes.stun_client.as_ref().and_then(Weak::upgrade);
                drop(routes);
                if let Some(receiver) = service.or(client) {
                    receiver.receive(now, source, destination, datagram);
                }
                return;
            };
            if message.is_binding_request() {
                let username = message.split_username();
                let owner = username
                    .and_then(|(fragment, _)| routes.by_fragment.get(fragment))
                    .and_then(Weak::upgrade);
                let listener = || routes.listener(username);
                found[0] = owner.or_else(listener).or(service);
            } else {
                let waiting = routes.by_source.get(&source).into_iter().flatten();
                let client = routes.stun_client.iter();
                let waiting: Vec<_> = waiting.chain(client).filter_map(Weak::upgrade).collect();
                drop(routes);
                found[0] = waiting
                    .into_iter()
                    .find(|receiver| receiver.accepts(&message));
            }
        }
        // DTLS. Two connections over one pair of addresses cannot be told apart, but each discards
        // the records that it cannot decrypt.
        Some(20..=63) => {
            let routes = lock(routes);
            let waiting = routes.by_source.get(&source).into_iter().flatten();
            for (slot, receiver) in found.iter_mut().zip(waiting.filter_map(Weak::upgrade)) {
                *slot = Some(receiver);
            }
        }
        _ => {}
    }
    for receiver in found.into_iter().flatten() {
        receiver.receive(now, source, destination, datagram);
        let last = touched.last();
        if !last.is_some_and(|last| Arc::ptr_eq(last, &receiver)) {
            touched.push(receiver);
        }
    }
}

/// Hands over a run of QUIC datagrams, in as few pieces as it has endpoints.
fn deliver_quic(
    all: &Mutex<Routes>,
    now: Instant,
    source: SocketAddr,
    destination: SocketAddr,
    (run, stride): (&[u8], usize),
) {
    let mut rest = run;
    while let Some(first) = rest.chunks(stride).next() {
        let to = Destination::of(first);
        let same = rest
            .chunks(stride)
            .take_while(|datagram| Destination::of(datagram) == to);
        let (piece, after) = rest.split_at(same.map(<[u8]>::len).sum());
        rest = after;
        let mut routes = lock(all);
        let tag = to.and_then(|to| to.tag);
        let tagged = tag.and_then(|tag| routes.by_tag.get(&tag)?.upgrade());
        // The first bytes overlap (RFC 9443 section 3), but all connection ids of ours have a tag.
        let may_be_channel =
            tagged.is_none() && first.first().is_some_and(|b| CHANNEL_DATA.contains(b));
        if may_be_channel && let Some(service) = routes.service() {
            drop(routes);
            if service.has_channels(source, destination) {
                let datagrams = piece.chunks(stride);
                datagrams.for_each(|data| service.receive(now, source, destination, data));
                continue;
            }
            routes = lock(all);
        }
        let Some(to) = to else {
            continue;
        };
        let mut receivers: Vec<Handle> = Vec::from_iter(tagged);
        if receivers.is_empty() {
            if to.may_begin {
                let waiting = routes.by_source.get(&source).into_iter().flatten();
                receivers.extend(waiting.filter_map(Weak::upgrade));
            }
            receivers.extend(routes.quic_listener.as_ref().and_then(Weak::upgrade));
        }
        // The receivers are called without the lock, because they may change routes.
        drop(routes);
        for receiver in receivers {
            if receiver.receive_quic(source, destination, piece, stride) {
                break;
            }
        }
    }
}

/// Routes `run`, cut into datagrams of `stride` bytes, to receivers of every kind. Returns how many
/// times a receiver was called. For the fuzz targets.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn demultiplex(source: SocketAddr, fragment: &str, run: &[u8], stride: usize) -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Counter {
        calls: AtomicUsize,
        bytes: AtomicUsize,
    }

    impl Counter {
        fn count(&self, data: &[u8]) {
            self.calls.fetch_add(1, Ordering::Relaxed);
            self.bytes.fetch_add(data.len(), Ordering::Relaxed);
        }
    }

    impl Receiver for Counter {
        fn receive(&self, _: Instant, _: SocketAddr, _: SocketAddr, data: &[u8]) {
            self.count(data);
        }

        fn accepts(&self, message: &StunMessage<'_>) -> bool {
            message.is_successful_binding_response()
        }

        fn receive_quic(&self, _: SocketAddr, _: SocketAddr, data: &[u8], segment: usize) -> bool {
            assert!(!data.is_empty() && segment > 0);
            self.count(data);
            // Odd lengths imitate a receiver that takes no connection of this peer.
            data.len().is_multiple_of(2)
        }
    }

    let counter = Arc::new(Counter::default());
    let handle: Handle = counter.clone();
    let to = || Arc::downgrade(&handle);
    let mut routes = Routes::default();
    routes.by_fragment.insert(fragment.to_owned(), to());
    routes.by_source.insert(source, vec![to(), to()]);
    routes.stun_client = Some(to());
    routes.stun_listener = Some(to());
    routes.service = Some(to());
    routes.by_tag.insert(Tag::default(), to());
    routes.quic_listener = Some(to());
    let mut touched = Vec::new();
    let now = Instant::now();
    let stride = stride.max(1);
    dispatch(
        &Mutex::new(routes),
        now,
        source,
        source,
        (run, stride),
        &mut touched,
    );
    // At most three receivers get each byte: two that wait for the source, and the listener.
    assert!(counter.bytes.load(Ordering::Relaxed) <= 3 * run.len());
    counter.calls.load(Ordering::Relaxed)
}
