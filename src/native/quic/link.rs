//! What a QUIC endpoint takes for its socket: the shared sockets, seen through the marks of its own
//! connection ids.

use std::{
    collections::VecDeque,
    fmt,
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Instant,
};

use bytes::Bytes;
use quinn::{
    AsyncUdpSocket, UdpPoller,
    udp::{RecvMeta, Transmit},
};
use str0m::ice::StunMessage;

use crate::{
    core::quic::Bulk,
    native::socket::{Receiver, Sockets},
};

/// Bytes that may wait for a reader; more are dropped, as by a full socket buffer.
const MAX_WAITING: usize = 4 << 20;

/// What a run of datagrams takes besides its bytes.
const RUN: usize = 256;

/// Datagrams that Linux joins to one at most (UDP GRO).
const MAX_RECEIVE_SEGMENTS: usize = 64;

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much of one sender's waits for the endpoint.
pub(super) type Waiting = Arc<AtomicUsize>;

/// What has arrived for an endpoint.
#[derive(Default)]
pub(super) struct Inbox(Mutex<Arrived>);

#[derive(Default)]
struct Arrived {
    runs: VecDeque<Run>,
    waker: Option<Waker>,
}

/// Datagrams of `stride` bytes, the last one possibly shorter, from one place to one place.
struct Run {
    source: SocketAddr,
    destination: SocketAddr,
    data: Bytes,
    stride: usize,
    size: usize,
    waiting: Waiting,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.waiting.fetch_sub(self.size, Ordering::Relaxed);
    }
}

impl Inbox {
    /// Takes in `data`, cut into datagrams of `stride` bytes, unless too much is `waiting` already.
    pub(super) fn push(
        &self,
        (source, destination): (SocketAddr, SocketAddr),
        data: &[u8],
        stride: usize,
        waiting: &Waiting,
    ) {
        let size = data.len() + RUN;
        let before = waiting.fetch_add(size, Ordering::Relaxed);
        let run = Run {
            source,
            destination,
            data: Bytes::copy_from_slice(data),
            stride,
            size,
            waiting: waiting.clone(),
        };
        if before + size > MAX_WAITING {
            return;
        }
        let mut arrived = lock(&self.0);
        arrived.runs.push_back(run);
        if let Some(waker) = arrived.waker.take() {
            waker.wake();
        }
    }

    /// As [`AsyncUdpSocket::poll_recv`].
    pub(super) fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut arrived = lock(&self.0);
        let mut count = 0;
        for (buf, meta) in bufs.iter_mut().zip(meta) {
            let Some(run) = arrived.runs.front_mut() else {
                break;
            };
            // Whole datagrams; one that is longer than a buffer is cut, as by a socket.
            let most = run.stride.max(1) * (buf.len() / run.stride.max(1)).max(1);
            let piece = run.data.split_to(most.min(run.data.len()));
            let len = piece.len().min(buf.len());
            buf[..len].copy_from_slice(&piece[..len]);
            *meta = RecvMeta {
                addr: run.source,
                len,
                stride: run.stride,
                ecn: None,
                dst_ip: Some(run.destination.ip()),
            };
            count += 1;
            if run.data.is_empty() {
                arrived.runs.pop_front();
            }
        }
        if count == 0 {
            arrived.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }
}

/// Where datagrams of an endpoint go out.
pub(super) struct Outlet {
    sockets: Sockets,
    /// Which socket refused a datagram last.
    full_v6: AtomicBool,
    bulk: Mutex<Bulk>,
    start: Instant,
}

impl Outlet {
    pub(super) fn new(sockets: Sockets) -> Arc<Self> {
        Arc::new(Self {
            sockets,
            full_v6: AtomicBool::new(false),
            bulk: Mutex::default(),
            start: Instant::now(),
        })
    }

    /// Sends what `transmit` holds, between addresses of the network's.
    pub(super) fn try_send(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        transmit: &Transmit<'_>,
    ) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        let mut data = transmit.contents;
        lock(&self.bulk).sent(data.len().div_ceil(segment.max(1)));
        // An unreachable address is one that does not answer: QUIC has its timers for that.
        self.sockets
            .try_send(source, destination, &mut data, segment)
            .inspect_err(|_| self.full_v6.store(destination.is_ipv6(), Ordering::Relaxed))
    }

    pub(super) fn poller(self: &Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable {
            outlet: self.clone(),
            waiting: None,
        })
    }

    pub(super) fn local_addr(&self) -> io::Result<SocketAddr> {
        // An IPv6 endpoint speaks IPv4 as well, in mapped addresses.
        let port = self.sockets.port(Ipv6Addr::UNSPECIFIED.into());
        Ok(SocketAddr::new(
            Ipv6Addr::UNSPECIFIED.into(),
            port.unwrap_or(0),
        ))
    }

    /// Quinn asks at the beginning of each turn of a connection.
    pub(super) fn max_segments(&self) -> usize {
        match lock(&self.bulk).turn(self.start.elapsed()) {
            true => self.sockets.max_segments(),
            false => 1,
        }
    }

    pub(super) fn may_fragment(&self) -> bool {
        self.sockets.may_fragment()
    }
}

/// What the endpoint that listens and dials takes for its socket.
pub(crate) struct Link {
    outlet: Arc<Outlet>,
    inbox: Inbox,
    waiting: Waiting,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

impl Link {
    pub(super) fn new(sockets: Sockets) -> Arc<Self> {
        Arc::new(Self {
            outlet: Outlet::new(sockets),
            inbox: Inbox::default(),
            waiting: Waiting::default(),
        })
    }
}

/// Routed here by the mark in connection ids, or as the listener.
impl Receiver for Link {
    fn receive(&self, _: Instant, _: SocketAddr, _: SocketAddr, _: &[u8]) {}

    fn received_all(&self) {}

    fn accepts(&self, _: &StunMessage<'_>) -> bool {
        false
    }

    fn receive_quic(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        data: &[u8],
        segment: usize,
    ) -> bool {
        let ends = (mapped(source), destination);
        self.inbox.push(ends, data, segment, &self.waiting);
        true
    }
}

impl AsyncUdpSocket for Link {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.outlet.poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let ip = transmit.src_ip.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
        let source = SocketAddr::new(ip.to_canonical(), 0);
        let to = transmit.destination;
        let destination = SocketAddr::new(to.ip().to_canonical(), to.port());
        self.outlet.try_send(source, destination, transmit)
    }

    fn poll_recv(
        &self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inbox.poll_recv(cx, bufs, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.outlet.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.outlet.max_segments()
    }

    fn max_receive_segments(&self) -> usize {
        MAX_RECEIVE_SEGMENTS
    }

    fn may_fragment(&self) -> bool {
        self.outlet.may_fragment()
    }
}

/// Waits until the socket that refused a datagram takes one again.
struct Writable {
    outlet: Arc<Outlet>,
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
            let full: IpAddr = match this.outlet.full_v6.load(Ordering::Relaxed) {
                true => Ipv6Addr::UNSPECIFIED.into(),
                false => Ipv4Addr::UNSPECIFIED.into(),
            };
            Box::pin(this.outlet.sockets.writable(full))
        });
        let ready = ready!(waiting.as_mut().poll(cx));
        this.waiting = None;
        Poll::Ready(ready)
    }
}

/// As an IPv6 endpoint, which speaks IPv4 as well, has it (RFC 4291 section 2.5.5.2).
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

    const ENDS: (SocketAddr, SocketAddr) = {
        let nobody = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 1);
        (nobody, nobody)
    };

    /// The next datagrams, or runs of them, in buffers of 120 bytes.
    fn take(inbox: &Inbox) -> Option<Vec<Vec<u8>>> {
        let (mut first, mut second) = ([0; 120], [0; 120]);
        let mut buffers = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
        let mut meta = [RecvMeta::default(); 2];
        let polled = poll_fn(|cx| inbox.poll_recv(cx, &mut buffers, &mut meta));
        let count = polled.now_or_never()?.unwrap();
        let taken = meta.iter().zip(&buffers).take(count);
        Some(taken.map(|(m, buffer)| buffer[..m.len].to_vec()).collect())
    }

    #[test]
    fn a_run_is_taken_in_pieces_of_whole_datagrams() {
        let (inbox, waiting) = (Inbox::default(), Waiting::default());
        let run: Vec<u8> = (0..250).collect();
        inbox.push(ENDS, &run, 100, &waiting);
        let taken: Vec<_> = std::iter::from_fn(|| take(&inbox)).flatten().collect();
        let pieces: Vec<_> = run.chunks(100).map(<[u8]>::to_vec).collect();
        assert_eq!(taken, pieces);
        assert_eq!(waiting.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn one_that_sends_too_much_takes_no_room_of_others() {
        let (inbox, flood, other) = (Inbox::default(), Waiting::default(), Waiting::default());
        for _ in 0..=MAX_WAITING / RUN {
            inbox.push(ENDS, &[1], 1, &flood);
        }
        let full = flood.load(Ordering::Relaxed);
        assert!(
            (MAX_WAITING - 2 * RUN..=MAX_WAITING).contains(&full),
            "{full}"
        );
        inbox.push(ENDS, &[2], 1, &other);
        let taken: Vec<_> = std::iter::from_fn(|| take(&inbox)).flatten().collect();
        assert_eq!(taken.len(), full / (1 + RUN) + 1);
        assert_eq!(taken.last().unwrap(), &[2]);
    }
}
