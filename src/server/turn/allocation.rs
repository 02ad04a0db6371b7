//! Allocations: the relayed addresses, permissions and channels of a client.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use stun_types::{
    attribute::ErrorCode,
    message::{Message, MessageWrite as _, MessageWriteExt as _, MessageWriteVec, TransactionId},
};
use tokio::{net::UdpSocket, task::AbortHandle};
use turn_client_proto::types::{
    attribute::{Data, XorPeerAddress},
    message::DATA,
};

use super::{
    addresses::RelayAddress, meter::Meter, ports::Port, reach::Reach, requests::Client,
    stream::Queue,
};
use crate::{
    native::{runtime, udp::Sockets},
    server::{pool::Place, rate_limiter::Bucket},
};

/// How long a permission lasts (RFC 8656 section 9).
const PERMISSION: Duration = Duration::from_secs(300);
/// How long a channel binding lasts (RFC 8656 section 12).
const CHANNEL: Duration = Duration::from_secs(600);

/// The most permissions, and the most channels, of one allocation. ICE has a few dozen pairs.
const MAX_PEERS: usize = 256;

/// The longest datagram that is relayed. It suffices for jumbo frames, and bounds the memory of an
/// allocation.
pub(super) const MAX_DATAGRAM: usize = 9 << 10;

/// How many datagrams are relayed in a row before other tasks get a turn.
const BURST: usize = 64;

/// How many requests per second a client with an allocation may make, and twice as many in a burst.
/// They do not count against the limit of its address. So whoever forges that address cannot keep
/// the client from renewing.
const REQUESTS: f64 = 10.0;

/// The way back to a client.
#[derive(Clone)]
pub(super) enum Reply {
    Datagrams(Sockets, Client),
    Stream(Queue),
}

impl Reply {
    /// Sends data from a peer. If there is no room, the data is lost, because nobody waits for a
    /// slow client.
    fn relay(&self, frame: &[u8]) {
        match self {
            Self::Datagrams(..) => self.answer(frame),
            Self::Stream(queue) => queue.relay(frame),
        }
    }

    /// Sends an answer to a request.
    pub(super) fn answer(&self, frame: &[u8]) {
        match self {
            Self::Datagrams(sockets, client) => {
                sockets.answer(client.local, client.address, frame);
            }
            Self::Stream(queue) => queue.answer(frame),
        }
    }
}

/// The allocation of one client.
pub(super) struct Allocation {
    pub(super) username: String,
    /// The transaction of the request that made the allocation. If that request is repeated, it
    /// gets the same answer.
    pub(super) transaction: TransactionId,
    /// The token of the next port, if the client has asked for it.
    pub(super) token: Option<u64>,
    pub(super) relays: Vec<Relay>,
    pub(super) peers: Arc<Peers>,
    expires: Mutex<Instant>,
    /// The end of what the client was granted, if that has one.
    pub(super) ends: Option<SystemTime>,
    requests: Mutex<Bucket>,
}

impl Allocation {
    pub(super) fn new(
        username: String,
        (transaction, token): (TransactionId, Option<u64>),
        relays: Vec<Relay>,
        peers: Arc<Peers>,
        (now, expires, ends): (Instant, Instant, Option<SystemTime>),
    ) -> Self {
        Self {
            username,
            transaction,
            token,
            relays,
            peers,
            expires: Mutex::new(expires),
            ends,
            requests: Mutex::new(Bucket::new(REQUESTS, now)),
        }
    }

    /// Whether the client may make a request at `now`. Requests that others forge in its name do
    /// not count.
    pub(super) fn may_ask(&self, now: Instant) -> bool {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.take(REQUESTS, 1.0, now)
    }

    pub(super) fn expires(&self) -> MutexGuard<'_, Instant> {
        self.expires.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the relayed address for peers of the family of `peer`.
    pub(super) fn relay(&self, peer: IpAddr) -> Option<&Relay> {
        self.relays
            .iter()
            .find(|relay| relay.address.is_ipv4() == peer.is_ipv4())
    }
}

/// Between which peers and client a relayed address passes datagrams, and within which limits.
#[derive(Clone)]
pub(super) struct Passage {
    pub(super) peers: Arc<Peers>,
    pub(super) reply: Reply,
    pub(super) reach: Arc<Reach>,
    pub(super) meter: Meter,
}

impl Passage {
    /// Whether a datagram may pass to or from a permitted peer. A permission is not enough, because
    /// it names an IP address, and may be older than the rules for that address.
    fn passes(&self, peer: SocketAddr, length: usize) -> bool {
        match self.reach.bars(peer) {
            Some(bar) => {
                self.meter.refuse("turn_datagram", bar.name());
                false
            }
            None => self.meter.passes(length),
        }
    }

    /// Relays the datagrams that have arrived at `socket` to the client.
    fn relay(&self, socket: &UdpSocket) -> io::Result<()> {
        const HEADER: usize = 4;
        // The buffer is on the stack, and exists only while there is something to relay, so a
        // silent peer costs no buffer.
        let mut buffer = [0; HEADER + MAX_DATAGRAM + 1];
        for _ in 0..BURST {
            let (len, peer) = match socket.try_recv_from(&mut buffer[HEADER..]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                received => received?,
            };
            let route = self.peers.route(peer, Instant::now());
            if len > MAX_DATAGRAM || route == Route::Denied || !self.passes(peer, len) {
                continue;
            }
            match route {
                Route::Denied => {}
                Route::Channel(number) => {
                    buffer[..2].copy_from_slice(&number.to_be_bytes());
                    buffer[2..HEADER].copy_from_slice(&(len as u16).to_be_bytes());
                    self.reply.relay(&buffer[..HEADER + len]);
                }
                Route::Indication => {
                    if let Some(indication) = indication(peer, &buffer[HEADER..HEADER + len]) {
                        self.reply.relay(&indication);
                    }
                }
            }
        }
        Ok(())
    }
}

/// One relayed address.
pub(super) struct Relay {
    /// The relayed address that the client is told.
    pub(super) address: SocketAddr,
    socket: Arc<UdpSocket>,
    passage: Passage,
    reader: AbortHandle,
    _place: Place,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Relay {
    /// Relays what arrives at a port, until it is dropped.
    ///
    /// # Errors
    /// Fails if the runtime cannot wait for the socket.
    pub(super) fn on(port: Port, passage: Passage) -> io::Result<Self> {
        let Port {
            socket,
            address: RelayAddress { told, .. },
            place,
        } = port;
        let socket = Arc::new(UdpSocket::from_std(socket)?);
        let address = SocketAddr::new(told, socket.local_addr()?.port());
        let read = read(socket.clone(), passage.clone());
        Ok(Self {
            address,
            socket,
            passage,
            reader: runtime::task(read).abort_handle(),
            _place: place,
        })
    }

    /// Sends a datagram to a permitted peer. The datagram is lost if the socket has no room.
    pub(super) fn send(&self, datagram: &[u8], peer: SocketAddr) {
        if self.passage.passes(peer, datagram.len()) {
            let _ = self.socket.try_send_to(datagram, peer);
        }
    }
}

/// Relays the datagrams of permitted peers to the client, until the future is dropped.
async fn read(socket: Arc<UdpSocket>, passage: Passage) {
    loop {
        let relayed = socket
            .readable()
            .await
            .and_then(|()| passage.relay(&socket));
        if relayed.is_err() {
            // It may be an ICMP error of an earlier datagram. The pause keeps a lasting error from
            // keeping a core busy.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::task::yield_now().await;
    }
}

fn indication(peer: SocketAddr, data: &[u8]) -> Option<Vec<u8>> {
    let mut message = Message::builder_indication(DATA, MessageWriteVec::new());
    let peer = XorPeerAddress::new(peer, message.transaction_id());
    message.add_attribute(&peer).ok()?;
    message.add_attribute(&Data::new(data)).ok()?;
    Some(message.finish())
}

/// How data from a peer gets to the client.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Route {
    Denied,
    Channel(u16),
    Indication,
}

/// The permissions and channels of an allocation.
#[derive(Default)]
pub(super) struct Peers(Mutex<Table>);

#[derive(Default)]
struct Table {
    permissions: HashMap<IpAddr, Instant>,
    channels: HashMap<u16, (SocketAddr, Instant)>,
    numbers: HashMap<SocketAddr, u16>,
}

impl Peers {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Permits `peers`, or renews their permissions.
    ///
    /// # Errors
    /// The STUN error code with which the request is refused.
    pub(super) fn permit(&self, peers: &[IpAddr], now: Instant) -> Result<(), u16> {
        let mut table = self.table();
        table.permissions.retain(|_, expires| *expires > now);
        let new = peers
            .iter()
            .filter(|ip| !table.permissions.contains_key(ip));
        if table.permissions.len() + new.count() > MAX_PEERS {
            return Err(ErrorCode::INSUFFICIENT_CAPACITY);
        }
        for ip in peers {
            table.permissions.insert(*ip, now + PERMISSION);
        }
        Ok(())
    }

    /// Binds a channel, or renews the binding, and permits the peer.
    ///
    /// # Errors
    /// The STUN error code with which the request is refused.
    pub(super) fn bind(&self, number: u16, peer: SocketAddr, now: Instant) -> Result<(), u16> {
        {
            let mut table = self.table();
            let Table {
                channels, numbers, ..
            } = &mut *table;
            channels.retain(|_, (peer, expires)| {
                let lives = *expires > now;
                if !lives {
                    numbers.remove(peer);
                }
                lives
            });
            // A channel has one peer, and a peer has one channel (RFC 8656 section 12.2).
            let other_peer = channels
                .get(&number)
                .is_some_and(|(bound, _)| *bound != peer);
            let other_number = numbers.get(&peer).is_some_and(|bound| *bound != number);
            if other_peer || other_number {
                return Err(ErrorCode::BAD_REQUEST);
            }
            if channels.len() >= MAX_PEERS && !channels.contains_key(&number) {
                return Err(ErrorCode::INSUFFICIENT_CAPACITY);
            }
        }
        self.permit(&[peer.ip()], now)?;
        let mut table = self.table();
        table.channels.insert(number, (peer, now + CHANNEL));
        table.numbers.insert(peer, number);
        Ok(())
    }

    /// Returns the peer at the other end of a channel, as long as the peer is permitted.
    pub(super) fn of_channel(&self, number: u16, now: Instant) -> Option<SocketAddr> {
        let table = self.table();
        let (peer, expires) = table.channels.get(&number)?;
        let permitted = table.permissions.get(&peer.ip())? > &now;
        (*expires > now && permitted).then_some(*peer)
    }

    /// Returns how data from `peer` gets to the client.
    pub(super) fn route(&self, peer: SocketAddr, now: Instant) -> Route {
        let table = self.table();
        let permission = table.permissions.get(&peer.ip());
        if permission.is_none_or(|expires| *expires <= now) {
            return Route::Denied;
        }
        let number = table.numbers.get(&peer);
        let channel = number.and_then(|number| Some((number, table.channels.get(number)?)));
        match channel {
            Some((number, (_, expires))) if *expires > now => Route::Channel(*number),
            _ => Route::Indication,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(n: u8) -> SocketAddr {
        ([192, 0, 2, n], 9).into()
    }

    #[test]
    fn a_permission_is_for_an_ip_address_and_expires() {
        let (peers, now) = (Peers::default(), Instant::now());
        peers.permit(&[peer(1).ip()], now).unwrap();
        let other_port = ([192, 0, 2, 1], 10).into();
        assert_eq!(peers.route(other_port, now), Route::Indication);
        assert_eq!(peers.route(peer(2), now), Route::Denied);
        assert_eq!(peers.route(peer(1), now + PERMISSION), Route::Denied);
    }

    #[test]
    fn a_channel_has_one_peer_and_a_peer_one_channel() {
        let (peers, now) = (Peers::default(), Instant::now());
        peers.bind(0x4000, peer(1), now).unwrap();
        assert_eq!(peers.bind(0x4001, peer(1), now), Err(400));
        assert_eq!(peers.bind(0x4000, peer(2), now), Err(400));
        peers.bind(0x4000, peer(1), now).unwrap();
        assert_eq!(peers.route(peer(1), now), Route::Channel(0x4000));
        assert_eq!(peers.of_channel(0x4000, now), Some(peer(1)));
        // The permission ends before the channel.
        assert_eq!(peers.of_channel(0x4000, now + PERMISSION), None);
        peers.bind(0x4001, peer(1), now + CHANNEL).unwrap();
        assert_eq!(peers.route(peer(1), now + CHANNEL), Route::Channel(0x4001));
    }

    #[test]
    fn permissions_and_channels_are_bounded() {
        let (peers, now) = (Peers::default(), Instant::now());
        let ip = |n: usize| IpAddr::from([192, 0, (n >> 8) as u8, n as u8]);
        let most: Vec<_> = (0..MAX_PEERS).map(ip).collect();
        peers.permit(&most, now).unwrap();
        peers.permit(&most, now).unwrap();
        assert_eq!(peers.permit(&[ip(MAX_PEERS)], now), Err(508));
        assert_eq!(peers.bind(0x4000, (ip(MAX_PEERS), 1).into(), now), Err(508));
        peers.permit(&[ip(MAX_PEERS)], now + PERMISSION).unwrap();
    }
}
