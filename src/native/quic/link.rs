//! The socket of a QUIC endpoint: a view of the shared sockets, which holds only datagrams with the
//! tag of the endpoint's own connection ids.

use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use bytes::Bytes;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};

use super::path::Path;
use crate::{
    core::quic::Bulk,
    native::udp::{Receiver, Sockets},
};

/// A block of addresses that belong to nobody (RFC 6666).
pub(super) const DISCARD: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0);

/// The address of all peers, as an endpoint of ICE sessions sees it.
pub(super) const PEER: SocketAddr = SocketAddr::new(IpAddr::V6(DISCARD), 1);

/// The most bytes that wait for an endpoint. Those from one address take at most half of them. More
/// are dropped, as by a full socket buffer.
const MAX_WAITING: usize = 8 << 20;

/// The cost of a run of datagrams besides its bytes.
const RUN: usize = 256;

/// The most datagrams that Linux joins to one run (UDP GRO).
const MAX_RECEIVE_SEGMENTS: usize = 64;

/// The datagrams of a run that an endpoint of ICE sessions takes at a time. Quinn holds room for 32
/// times as many for as long as the endpoint exists, which would be 3 MiB with all that a run may
/// hold.
const PAIR_SEGMENTS: usize = 1;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The datagrams that have arrived for an endpoint.
#[derive(Default)]
struct Inbox {
    runs: VecDeque<Run>,
    waiting: usize,
    /// The bytes that wait, by source.
    from: HashMap<IpAddr, usize>,
    waker: Option<Waker>,
}

/// Datagrams of `stride` bytes from one source to one destination. The last one may be shorter.
struct Run {
    source: IpAddr,
    /// The address of the sender as the endpoint sees it.
    peer: SocketAddr,
    local: Option<IpAddr>,
    data: Bytes,
    stride: usize,
    size: usize,
}

impl Inbox {
    /// Takes in a run, unless its sender already has as much waiting as there is room left. However
    /// many senders send too much, others find room.
    fn push(&mut self, run: Run) {
        let from = self.from.entry(run.source).or_default();
        if *from + run.size + self.waiting + run.size > MAX_WAITING {
            return;
        }
        *from += run.size;
        self.waiting += run.size;
        self.runs.push_back(run);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Removes the first run, which has been read.
    fn pop(&mut self) {
        let Some(Run { source, size, .. }) = self.runs.pop_front() else {
            return;
        };
        self.waiting -= size;
        if let Entry::Occupied(mut from) = self.from.entry(source) {
            *from.get_mut() -= size;
            if *from.get() == 0 {
                from.remove();
            }
        }
    }
}

/// The addresses at which an endpoint sees its peers.
#[derive(Clone, Copy)]
pub(super) enum Peers {
    /// Peers have their own addresses. This is for the endpoint that listens and dials.
    Network,
    /// All peers are at [`PEER`], each on the path of its connection. This is for endpoints of ICE
    /// sessions.
    Paths,
}

/// One endpoint's view of the shared sockets.
pub(crate) struct EndpointSocket {
    sockets: Sockets,
    peers: Peers,
    inbox: Mutex<Inbox>,
    /// Whether the socket that refused a datagram last is the IPv6 socket.
    full_v6: AtomicBool,
    bulk: Mutex<Bulk>,
    start: Instant,
}

impl fmt::Debug for EndpointSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl EndpointSocket {
    pub(super) fn new(sockets: Sockets, peers: Peers) -> Arc<Self> {
        Arc::new(Self {
            sockets,
            peers,
            inbox: Mutex::default(),
            full_v6: AtomicBool::new(false),
            bulk: Mutex::default(),
            start: Instant::now(),
        })
    }

    /// Takes in `data`, cut into datagrams of `stride` bytes, as arriving at the address `local`.
    pub(super) fn push(
        &self,
        source: SocketAddr,
        local: Option<IpAddr>,
        data: &[u8],
        stride: usize,
    ) {
        let peer = match self.peers {
            Peers::Network => mapped(source),
            Peers::Paths => PEER,
        };
        lock(&self.inbox).push(Run {
            source: source.ip(),
            peer,
            local,
            data: Bytes::copy_from_slice(data),
            stride,
            size: data.len() + RUN,
        });
    }
}

/// Datagrams are routed here by the tag in connection ids, or because this is the listener.
impl Receiver for EndpointSocket {
    fn receive_quic(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        data: &[u8],
        segment: usize,
    ) -> bool {
        let local = match self.peers {
            Peers::Network => Some(destination.ip()),
            Peers::Paths => None,
        };
        self.push(source, local, data, segment);
        true
    }
}

impl AsyncUdpSocket for EndpointSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable {
            link: self,
            waiting: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let pair = match self.peers {
            Peers::Network => {
                let ip = transmit.src_ip.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
                let to = transmit.destination;
                let to = SocketAddr::new(to.ip().to_canonical(), to.port());
                Some((SocketAddr::new(ip.to_canonical(), 0), to))
            }
            Peers::Paths => Path::current(),
        };
        let Some((source, destination)) = pair else {
            // The datagram is lost, as on any path that does not exist.
            return Ok(());
        };
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        let mut data = transmit.contents;
        lock(&self.bulk).sent(data.len().div_ceil(segment.max(1)));
        // An unreachable address is one that does not answer, and QUIC has timers for that.
        self.sockets
            .try_send(source, destination, &mut data, segment)
            .inspect_err(|_| self.full_v6.store(destination.is_ipv6(), Ordering::Relaxed))
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut inbox = lock(&self.inbox);
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some(run) = inbox.runs.front_mut() else {
                break;
            };
            // Only whole datagrams are taken. A datagram that is longer than a buffer is cut, as by
            // a socket.
            let most = run.stride.max(1) * (buf.len() / run.stride.max(1)).max(1);
            let piece = run.data.split_to(most.min(run.data.len()));
            let len = piece.len().min(buf.len());
            buf[..len].copy_from_slice(&piece[..len]);
            *meta = RecvMeta {
                addr: run.peer,
                len,
                stride: run.stride,
                ecn: None,
                dst_ip: run.local,
            };
            count += 1;
            if run.data.is_empty() {
                inbox.pop();
            }
        }
        if count == 0 {
            inbox.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        // An IPv6 endpoint speaks IPv4 as well, with mapped addresses.
        let port = self.sockets.port(Ipv6Addr::UNSPECIFIED.into());
        Ok(SocketAddr::new(
            Ipv6Addr::UNSPECIFIED.into(),
            port.unwrap_or(0),
        ))
    }

    /// Quinn calls this at the beginning of each turn of a connection.
    fn max_transmit_segments(&self) -> usize {
        match lock(&self.bulk).turn(self.start.elapsed()) {
            true => self.sockets.max_segments(),
            false => 1,
        }
    }

    fn max_receive_segments(&self) -> usize {
        match self.peers {
            Peers::Network => MAX_RECEIVE_SEGMENTS,
            Peers::Paths => PAIR_SEGMENTS,
        }
    }

    fn may_fragment(&self) -> bool {
        self.sockets.may_fragment()
    }
}

/// Waits until the socket that refused a datagram takes one again.
struct Writable {
    link: Arc<EndpointSocket>,
    waiting: Option<Pin<Box<dyn Future<Output = io::Result<()>> + Send + Sync>>>,
}

impl fmt::Debug for Writable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writable").finish_non_exhaustive()
    }
}

impl UdpPoller for Writable {
    fn poll_writable(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let waiting = this.waiting.get_or_insert_with(|| {
            let full: IpAddr = match this.link.full_v6.load(Ordering::Relaxed) {
                true => Ipv6Addr::UNSPECIFIED.into(),
                false => Ipv4Addr::UNSPECIFIED.into(),
            };
            Box::pin(this.link.sockets.writable(full))
        });
        let ready = ready!(waiting.as_mut().poll(cx));
        this.waiting = None;
        Poll::Ready(ready)
    }
}

/// The address as an IPv6 endpoint that speaks IPv4 as well sees it (RFC 4291 section 2.5.5.2).
fn mapped(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    SocketAddr::new(ip.into(), address.port())
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt as _, future::poll_fn};

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

    fn link() -> Arc<EndpointSocket> {
        EndpointSocket::new(Sockets::bind(Default::default()).unwrap(), Peers::Paths)
    }

    fn push(link: &EndpointSocket, from: IpAddr, data: &[u8], stride: usize) {
        link.push(SocketAddr::new(from, 1), None, data, stride);
    }

    /// Takes the next datagrams, or runs of them, into buffers of 120 bytes.
    fn take(link: &EndpointSocket) -> Option<Vec<Vec<u8>>> {
        let (mut first, mut second) = ([0; 120], [0; 120]);
        let mut buffers = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
        let mut meta = [RecvMeta::default(); 2];
        let polled = poll_fn(|cx| link.poll_recv(cx, &mut buffers, &mut meta));
        let count = polled.now_or_never()?.unwrap();
        let taken = meta.iter().zip(&buffers).take(count);
        Some(taken.map(|(m, buffer)| buffer[..m.len].to_vec()).collect())
    }

    fn take_all(link: &EndpointSocket) -> Vec<Vec<u8>> {
        std::iter::from_fn(|| take(link)).flatten().collect()
    }

    #[tokio::test]
    async fn a_run_is_taken_in_pieces_of_whole_datagrams() {
        let link = link();
        let run: Vec<u8> = (0..250).collect();
        push(&link, HERE, &run, 100);
        let pieces: Vec<_> = run.chunks(100).map(<[u8]>::to_vec).collect();
        assert_eq!(take_all(&link), pieces);
        let inbox = lock(&link.inbox);
        assert!(inbox.waiting == 0 && inbox.from.is_empty());
    }

    #[tokio::test]
    async fn a_sender_of_too_much_leaves_half_the_room_to_others() {
        let link = link();
        let runs = MAX_WAITING / (1 + RUN);
        for _ in 0..runs {
            push(&link, HERE, &[1], 1);
        }
        for _ in 0..runs {
            push(&link, THERE, &[2], 1);
        }
        let taken = take_all(&link);
        let of = |sender| taken.iter().filter(|data| data[..] == [sender]).count();
        assert_eq!(of(1), runs / 2);
        assert_eq!(of(2), runs / 4);
    }
}
