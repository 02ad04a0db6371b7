//! A QUIC connection as libp2p streams.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite, FutureExt as _, future::BoxFuture};
use libp2p::{
    PeerId,
    core::muxing::{StreamMuxer, StreamMuxerEvent},
};
use quinn::{RecvStream, SendStream, VarInt};

use super::{
    FIRST_STREAMS, MAX_STREAMS,
    datagrams::{self, QuicDatagrams},
};
use crate::{
    core::loss::Counts,
    datagrams::{Driver, claim},
    swarm::dials::WRONG_PEER,
};

/// The application error code of a reset or a close. libp2p gives no code a meaning.
const NO_ERROR: VarInt = VarInt::from_u32(0);

/// The reasons why a connection could not be made, or has ended.
#[derive(Debug)]
pub(crate) enum QuicError {
    /// The handshake or the connection failed.
    Connection(quinn::ConnectionError),
    /// The connection could not begin.
    Connect(quinn::ConnectError),
    /// The peer's certificate names no peer.
    Certificate,
    /// Another peer than the expected one answered.
    WrongPeer(PeerId),
    /// The handshake took too long.
    Timeout,
    /// The socket is gone, or has no such address.
    Closed,
    /// The system refused.
    Io(io::Error),
}

impl fmt::Display for QuicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(error) => error.fmt(f),
            Self::Connect(error) => error.fmt(f),
            Self::Certificate => f.write_str("the certificate is not one of libp2p"),
            Self::WrongPeer(peer) => write!(f, "{WRONG_PEER}: {peer}"),
            Self::Timeout => f.write_str("the QUIC handshake took too long"),
            Self::Closed => f.write_str("closed"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for QuicError {}

impl From<quinn::ConnectionError> for QuicError {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Connection(error)
    }
}

impl From<quinn::ConnectError> for QuicError {
    fn from(error: quinn::ConnectError) -> Self {
        Self::Connect(error)
    }
}

impl From<io::Error> for QuicError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

type Streams = BoxFuture<'static, Result<(SendStream, RecvStream), quinn::ConnectionError>>;

/// An authenticated connection. Dropping it closes it, with all its streams.
pub(crate) struct QuicConnection {
    peer: PeerId,
    connection: quinn::Connection,
    incoming: Streams,
    outgoing: Option<Streams>,
    /// How many streams the peer may have open.
    allowed: u32,
    /// Each stream that the peer has open holds a clone of this.
    open: Arc<()>,
    closed: BoxFuture<'static, quinn::ConnectionError>,
    /// Moves the datagrams. It is `None` until the connection's handler has left a lane, and stays
    /// so if the handler leaves none.
    datagrams: Option<Driver<QuicDatagrams>>,
    /// A value that is dropped with the connection.
    #[cfg(feature = "server")]
    kept: Option<Box<dyn Send>>,
}

impl fmt::Debug for QuicConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connection").field(&self.peer).finish()
    }
}

impl QuicConnection {
    pub(super) fn new(peer: PeerId, connection: quinn::Connection) -> Self {
        let closing = connection.clone();
        Self {
            peer,
            incoming: accept(&connection),
            outgoing: None,
            allowed: FIRST_STREAMS,
            open: Arc::default(),
            closed: async move { closing.closed().await }.boxed(),
            datagrams: None,
            connection,
            #[cfg(feature = "server")]
            kept: None,
        }
    }

    /// Sets how many bytes may be unread, and how many unsent.
    #[cfg(feature = "server")]
    pub(crate) fn window(&self) -> impl Fn(u32) + Send + Sync + 'static {
        let connection = self.connection.clone();
        move |bytes| {
            connection.set_receive_window(bytes.into());
            connection.set_send_window(bytes.into());
        }
    }

    /// Drops `kept` with the connection.
    #[cfg(feature = "server")]
    pub(crate) fn keep(&mut self, kept: Box<dyn Send>) {
        self.kept = Some(kept);
    }

    /// The peer at the other end.
    pub(crate) fn peer(&self) -> PeerId {
        self.peer
    }
}

/// Counts the packets that want an acknowledgement. Each packet has at least one of these frames,
/// and few have more.
fn counts(connection: &quinn::Connection) -> Counts {
    let stats = connection.stats();
    let frames = stats.frame_tx;
    let wanting = [
        frames.stream,
        frames.datagram,
        frames.ping,
        frames.max_data,
        frames.max_stream_data,
        frames.max_streams_bidi,
        frames.reset_stream,
        frames.stop_sending,
    ];
    Counts {
        sent: wanting.iter().sum(),
        lost: stats.path.lost_packets,
    }
}

fn accept(connection: &quinn::Connection) -> Streams {
    let connection = connection.clone();
    async move { connection.accept_bi().await }.boxed()
}

impl Drop for QuicConnection {
    fn drop(&mut self) {
        self.connection.close(NO_ERROR, &[]);
    }
}

impl StreamMuxer for QuicConnection {
    type Substream = QuicStream;
    type Error = QuicError;

    fn poll_inbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<QuicStream, QuicError>> {
        let (send, recv) = ready!(self.incoming.poll_unpin(cx))?;
        self.incoming = accept(&self.connection);
        let stream = QuicStream::new(send, recv, Some(self.open.clone()));
        if Arc::strong_count(&self.open) > self.allowed as usize / 2 && self.allowed < MAX_STREAMS {
            self.allowed = MAX_STREAMS.min(self.allowed * 2);
            let allowed = self.allowed.into();
            self.connection.set_max_concurrent_bi_streams(allowed);
        }
        Poll::Ready(Ok(stream))
    }

    fn poll_outbound(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<QuicStream, QuicError>> {
        let this = &mut *self;
        let outgoing = this.outgoing.get_or_insert_with(|| {
            let connection = this.connection.clone();
            async move { connection.open_bi().await }.boxed()
        });
        let opened = ready!(outgoing.poll_unpin(cx));
        this.outgoing = None;
        let (send, recv) = opened?;
        Poll::Ready(Ok(QuicStream::new(send, recv, None)))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), QuicError>> {
        self.connection.close(NO_ERROR, &[]);
        match ready!(self.closed.poll_unpin(cx)) {
            quinn::ConnectionError::LocallyClosed => Poll::Ready(Ok(())),
            error => Poll::Ready(Err(error.into())),
        }
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, QuicError>> {
        let this = &mut *self;
        if this.datagrams.is_none() {
            this.datagrams = claim(cx).map(|lane| {
                let counted = this.connection.clone();
                lane.counted_by(move || counts(&counted));
                datagrams::driver(&this.connection, lane)
            });
        }
        if let Some(driver) = &mut this.datagrams {
            // The length changes as QUIC learns what the path carries.
            if let Some(max_len) = datagrams::max_len(&this.connection) {
                driver.lane().carry(max_len);
            }
            driver.poll(cx);
        }
        Poll::Pending
    }
}

/// One stream. Dropping it finishes the written half, as quinn does and as libp2p's protocols rely
/// on, because a reset would take back bytes that the peer has not read yet. It also asks the peer
/// to stop writing the other half.
pub(crate) struct QuicStream {
    send: SendStream,
    recv: RecvStream,
    _open: Option<Arc<()>>,
}

impl QuicStream {
    fn new(send: SendStream, recv: RecvStream, open: Option<Arc<()>>) -> Self {
        Self {
            send,
            recv,
            _open: open,
        }
    }
}

impl AsyncRead for QuicStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        AsyncRead::poll_read(Pin::new(&mut self.recv), cx, buf)
    }
}

impl AsyncWrite for QuicStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        AsyncWrite::poll_write(Pin::new(&mut self.send), cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // An error says that the peer has stopped reading, or that the stream is finished.
        let _ = self.send.finish();
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        net::{IpAddr, Ipv4Addr, SocketAddr},
        time::Duration,
    };

    use futures::{AsyncWriteExt as _, future::poll_fn};
    use libp2p::identity::Keypair;

    use super::{
        super::{LARGEST_DATAGRAM, PairLink, Quic},
        *,
    };
    use crate::native::udp::{Addresses, Receiver, Sockets};

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    struct Peer {
        id: PeerId,
        sockets: Sockets,
        address: SocketAddr,
        quic: Quic,
    }

    impl Peer {
        fn new() -> Self {
            Self::with(Quic::new)
        }

        fn with(quic: impl FnOnce(&Keypair, Sockets) -> io::Result<Quic>) -> Self {
            let keypair = Keypair::generate_ed25519();
            let sockets = Sockets::bind(Addresses::default()).unwrap();
            Self {
                id: keypair.public().to_peer_id(),
                address: (HERE, sockets.port(HERE).unwrap()).into(),
                quic: quic(&keypair, sockets.clone()).unwrap(),
                sockets,
            }
        }

        fn link_to(&self, other: SocketAddr) -> Arc<PairLink> {
            let link = self.quic.pair_link().unwrap();
            link.set_pair(self.address, other);
            link
        }
    }

    /// Takes datagrams that begin a connection, as an ICE session does.
    struct Door(Arc<PairLink>);

    impl Receiver for Door {
        fn receive_quic(
            &self,
            source: SocketAddr,
            _: SocketAddr,
            data: &[u8],
            segment: usize,
        ) -> bool {
            self.0.push(source, data, segment);
            true
        }
    }

    /// One end of a connection over a candidate pair.
    struct End {
        connection: QuicConnection,
        _link: Arc<PairLink>,
    }

    async fn connect(from: &Peer, to: &Peer) -> [End; 2] {
        connect_over(from, to, to.address).await
    }

    /// Connects over two pairs. `from` sends to the address `at`, which may differ from the address
    /// that `to` sends from.
    async fn connect_over(from: &Peer, to: &Peer, at: SocketAddr) -> [End; 2] {
        let (link, back) = (from.link_to(at), to.link_to(from.address));
        let receiver: Arc<dyn Receiver> = Arc::new(Door(back.clone()));
        to.sockets.route_quic_listener(&receiver);
        let dialled = from.quic.over_pair(&link, to.id, true);
        let taken = to.quic.over_pair(&back, from.id, false);
        let (dialled, taken) = tokio::join!(dialled, taken);
        [(dialled, link), (taken, back)].map(|(connection, _link)| End {
            connection: connection.unwrap(),
            _link,
        })
    }

    async fn open(end: &mut End) -> QuicStream {
        let opened = poll_fn(|cx| Pin::new(&mut end.connection).poll_outbound(cx)).await;
        let mut stream = opened.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream
    }

    async fn next(end: &mut End) -> QuicStream {
        let next = poll_fn(|cx| Pin::new(&mut end.connection).poll_inbound(cx)).await;
        next.unwrap()
    }

    #[tokio::test]
    async fn one_probe_finds_the_size_that_most_paths_carry() {
        let (one, other) = (Peer::new(), Peer::new());
        let [mut from, mut to] = connect(&one, &other).await;
        loop {
            let path = from.connection.connection.stats().path;
            if path.current_mtu > 1200 {
                assert_eq!(path.current_mtu, LARGEST_DATAGRAM);
                break assert_eq!(path.sent_plpmtud_probes, 1);
            }
            open(&mut from).await;
            next(&mut to).await;
        }
    }

    #[tokio::test]
    async fn sessions_with_the_same_addresses_are_told_apart() {
        let (one, other) = (Peer::new(), Peer::new());
        let mut pairs = Vec::new();
        for _ in 0..3 {
            pairs.push(connect(&one, &other).await);
        }
        let [from, _] = &mut pairs[1];
        open(from).await;
        let arrived = |end| tokio::time::timeout(Duration::from_secs(5), next(end));
        arrived(&mut pairs[1][1]).await.unwrap();
        for end in [0, 2] {
            assert!(next(&mut pairs[end][1]).now_or_never().is_none());
        }
    }

    /// This happens with TURN, where each end may relay. The test also uses connection ids that are
    /// made after the handshake.
    #[tokio::test]
    async fn ends_may_send_over_different_pairs() {
        let (one, other) = (Peer::new(), Peer::new());
        let at =
            |last| SocketAddr::new(Ipv4Addr::new(127, 0, 0, last).into(), other.address.port());
        let mut pairs = Vec::new();
        for last in 1..=3 {
            let made = connect_over(&one, &other, at(last));
            let made = tokio::time::timeout(Duration::from_secs(5), made);
            pairs.push(made.await.unwrap());
        }
        for _ in 0..3 {
            for ends in &mut pairs {
                let crosses = async {
                    open(&mut ends[0]).await;
                    next(&mut ends[1]).await;
                };
                let crosses = tokio::time::timeout(Duration::from_secs(5), crosses);
                crosses.await.unwrap();
                ends.swap(0, 1);
            }
        }
    }

    /// The end that closes gives up its session at once.
    #[tokio::test]
    async fn a_close_still_reaches_the_peer() {
        let (one, other) = (Peer::new(), Peer::new());
        let [mut from, mut to] = connect(&one, &other).await;
        open(&mut from).await;
        next(&mut to).await;
        let closed = poll_fn(|cx| Pin::new(&mut from.connection).poll_close(cx));
        closed.await.unwrap();
        drop(from);
        let told = poll_fn(|cx| Pin::new(&mut to.connection).poll_inbound(cx));
        let told = tokio::time::timeout(Duration::from_secs(5), told).await;
        assert!(told.unwrap().is_err());
    }

    #[tokio::test]
    async fn more_streams_are_allowed_as_they_are_used() {
        let [mut from, mut to] = connect(&Peer::new(), &Peer::new()).await;
        let mut opened = Vec::new();
        while let Some(stream) = open(&mut from).now_or_never() {
            opened.push(stream);
        }
        assert_eq!(opened.len(), FIRST_STREAMS as usize);
        let opens = async {
            while opened.len() < MAX_STREAMS as usize {
                opened.push(open(&mut from).await);
            }
        };
        let takes = async {
            let mut taken = Vec::new();
            while taken.len() < MAX_STREAMS as usize {
                taken.push(next(&mut to).await);
            }
            taken
        };
        let all = futures::future::join(opens, takes);
        let _taken = tokio::time::timeout(Duration::from_secs(20), all)
            .await
            .unwrap();
        assert!(open(&mut from).now_or_never().is_none());
    }

    #[cfg(feature = "server")]
    #[tokio::test]
    async fn what_nobody_reads_stops_at_the_window_of_the_connection() {
        use crate::native::transports::windows::Sizes;
        const CONNECTION: usize = 100_000;
        let sizes = Sizes {
            connection: CONNECTION as u32,
            circuit: 10 * CONNECTION as u32,
        };
        let server = Peer::with(|keypair, sockets| Quic::bounded(keypair, sockets, sizes));
        let [mut from, mut to] = connect(&Peer::new(), &server).await;
        let mut stream = open(&mut from).await;
        let _unread = next(&mut to).await;
        let filled = stream.write_all(&[7; CONNECTION - 1]);
        let filled = tokio::time::timeout(Duration::from_secs(20), filled).await;
        filled.unwrap().unwrap();
        assert!(stream.write(b"x").now_or_never().is_none());
        let mut other = poll_fn(|cx| Pin::new(&mut from.connection).poll_outbound(cx))
            .await
            .unwrap();
        assert!(other.write(b"x").now_or_never().is_none());
        to.connection.window()(3 * CONNECTION as u32);
        let more = stream.write_all(&[7; 2 * CONNECTION]);
        let more = tokio::time::timeout(Duration::from_secs(20), more).await;
        more.unwrap().unwrap();
        assert!(stream.write(b"x").now_or_never().is_none());
    }
}
