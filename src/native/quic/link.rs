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
use str0m::ice::StunMessage;

use crate::native::socket::{Receiver, Sockets};

/// Where the peer of an ICE session always is, as its endpoint sees it: an address that is nobody's
/// (RFC 6666). The candidate pair below changes without QUIC taking notice.
pub(super) const PEER: SocketAddr =
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1)), 1);

/// Bytes that may wait for an endpoint; more are dropped, as by a full socket buffer.
const INBOX: usize = 4 << 20;

/// Runs of datagrams that may wait, likewise.
const INBOX_RUNS: usize = 16 << 10;

/// Where datagrams come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// To the addresses that the endpoint names.
    Any,
    /// Between one local address and one of the peer, once both are known.
    Pair(Option<(SocketAddr, SocketAddr)>),
}

/// One endpoint's view of the shared sockets.
pub(crate) struct Link {
    sockets: Sockets,
    route: Mutex<Route>,
    inbox: Mutex<Inbox>,
    /// Which socket refused a datagram last.
    full_v6: AtomicBool,
}

#[derive(Default)]
struct Inbox {
    runs: VecDeque<Run>,
    bytes: usize,
    waker: Option<Waker>,
}

/// Datagrams of `stride` bytes, the last one possibly shorter, from one place to one place.
struct Run {
    source: SocketAddr,
    destination: SocketAddr,
    data: Bytes,
    stride: usize,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    pub(crate) fn new(sockets: Sockets, route: Route) -> Arc<Self> {
        Arc::new(Self {
            sockets,
            route: Mutex::new(route),
            inbox: Mutex::default(),
            full_v6: AtomicBool::new(false),
        })
    }

    /// Uses the pair from now on.
    pub(crate) fn set_pair(&self, source: SocketAddr, destination: SocketAddr) {
        *lock(&self.route) = Route::Pair(Some((source, destination)));
    }

    /// The pair in use.
    pub(crate) fn pair(&self) -> Option<(SocketAddr, SocketAddr)> {
        match *lock(&self.route) {
            Route::Any => None,
            Route::Pair(pair) => pair,
        }
    }

    /// Takes in what has arrived.
    pub(crate) fn push(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        data: &[u8],
        stride: usize,
    ) {
        let source = match *lock(&self.route) {
            Route::Any => mapped(source),
            Route::Pair(_) => PEER,
        };
        let mut inbox = lock(&self.inbox);
        if inbox.bytes + data.len() > INBOX || inbox.runs.len() >= INBOX_RUNS {
            return;
        }
        inbox.bytes += data.len();
        inbox.runs.push_back(Run {
            source,
            destination,
            data: Bytes::copy_from_slice(data),
            stride,
        });
        if let Some(waker) = inbox.waker.take() {
            waker.wake();
        }
    }
}

/// Routed here by the marks in connection ids, or as the listener.
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
        self.push(source, destination, data, segment);
        true
    }
}

impl AsyncUdpSocket for Link {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(Writable {
            link: self,
            waiting: None,
        })
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let (source, destination) = match *lock(&self.route) {
            Route::Any => {
                let ip = transmit.src_ip.unwrap_or(Ipv6Addr::UNSPECIFIED.into());
                let source = SocketAddr::new(ip.to_canonical(), 0);
                let to = transmit.destination;
                (source, SocketAddr::new(to.ip().to_canonical(), to.port()))
            }
            Route::Pair(Some(pair)) => pair,
            // Lost, as on any path that is not there.
            Route::Pair(None) => return Ok(()),
        };
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        let mut data = transmit.contents;
        // An unreachable address is one that does not answer: QUIC has its timers for that.
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
            let is_done = run.data.is_empty();
            inbox.bytes -= piece.len();
            if is_done {
                inbox.runs.pop_front();
            }
        }
        if count == 0 {
            inbox.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        // An IPv6 endpoint speaks IPv4 as well, in mapped addresses.
        let port = self.sockets.port(Ipv6Addr::UNSPECIFIED.into());
        Ok(SocketAddr::new(
            Ipv6Addr::UNSPECIFIED.into(),
            port.unwrap_or(0),
        ))
    }

    fn max_transmit_segments(&self) -> usize {
        self.sockets.max_segments()
    }

    fn max_receive_segments(&self) -> usize {
        match *lock(&self.route) {
            Route::Any => MAX_RECEIVE_SEGMENTS,
            Route::Pair(_) => PAIR_SEGMENTS,
        }
    }

    fn may_fragment(&self) -> bool {
        self.sockets.may_fragment()
    }
}

/// Datagrams that Linux joins to one at most (UDP GRO).
const MAX_RECEIVE_SEGMENTS: usize = 64;

/// Datagrams of a run that an endpoint of one connection takes at a time. It has room for 32 times
/// as many for as long as it is, 3 MiB with all that a run may hold.
const PAIR_SEGMENTS: usize = 1;

/// Waits until the socket that refused a datagram takes one again.
struct Writable {
    link: Arc<Link>,
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
    use futures::future::poll_fn;

    use super::*;

    #[tokio::test]
    async fn a_run_is_taken_in_pieces_of_whole_datagrams() {
        let sockets = Sockets::bind(Default::default()).unwrap();
        let link = Link::new(sockets, Route::Pair(None));
        let run: Vec<u8> = (0..250).collect();
        link.push(PEER, PEER, &run, 100);
        let mut taken = Vec::new();
        while lock(&link.inbox).bytes > 0 {
            let (mut first, mut second) = ([0; 120], [0; 120]);
            let mut buffers = [IoSliceMut::new(&mut first), IoSliceMut::new(&mut second)];
            let mut meta = [RecvMeta::default(); 2];
            let count = poll_fn(|cx| link.poll_recv(cx, &mut buffers, &mut meta)).await;
            for (meta, buffer) in meta.iter().zip(&buffers).take(count.unwrap()) {
                taken.push(buffer[..meta.len].to_vec());
            }
        }
        let pieces: Vec<_> = run.chunks(100).map(<[u8]>::to_vec).collect();
        assert_eq!(taken, pieces);
    }
}
