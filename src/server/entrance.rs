//! The one TCP port: connections of every protocol come in here, and each goes to the service that
//! speaks its protocol.
//!
//! Until that is known, a connection holds a place in the pool of handshakes. Everything until then, with
//! the handshake of TLS, has one deadline that no byte moves.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::Router;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use tracing::Instrument as _;

use super::{
    descriptors::Descriptors,
    http::{self, ACCEPT_PAUSE, Door, is_of_one_connection},
    metrics::Metrics,
    pool::{Place, Pool, Pools, Refusals},
    rate_limiter::{RateLimiter, Refill},
    settings::Settings,
    socket::{ForPeers, Replayed, Secured, Socket, reset},
    tls::Tls,
    turn::TurnServer,
};
use crate::{
    core::{
        first_bytes::{MOST, Protocol, Sniffed, agrees, sniff},
        prefix::Prefix,
        proxy,
        quota::{Holder, Refusal},
    },
    native::transports::handed::{Arrival, Way},
};

/// From when a connection is there until it is known what its client speaks.
const PATIENCE: Duration = Duration::from_secs(10);
/// How much is read at once to find that out.
const CHUNK: usize = 1024;
/// How many connections may wait for libp2p to take them. Each of them holds a place, too.
pub(crate) const ARRIVALS: usize = 64;

/// Returns the rate of handshakes of TLS, which follows the settings.
pub(crate) fn handshake_rate(settings: &Settings) -> Mutex<RateLimiter> {
    let settings = settings.clone();
    let rates = move || {
        let tls = &settings.now().tls;
        Refill::new(tls.handshakes_per_source.get(), tls.handshakes.get())
    };
    Mutex::new(RateLimiter::following(rates, std::time::Instant::now()))
}

/// Where each protocol goes.
pub(crate) struct Entrance {
    pub(crate) peers: mpsc::Sender<Arrival>,
    pub(crate) pages: (Router, Door),
    pub(crate) turn: Option<TurnServer>,
    pub(crate) tls: Option<Tls>,
    pub(crate) pools: Pools,
    /// How often handshakes of TLS may begin.
    pub(crate) handshake_rate: Mutex<RateLimiter>,
    pub(crate) trusted_proxies: Vec<Prefix>,
    /// Proxies whose connections begin with a header that names the client.
    pub(crate) naming_proxies: Vec<Prefix>,
    pub(crate) metrics: Metrics,
    pub(crate) descriptors: Descriptors,
}

/// Serves the connections of `listener` until the future is dropped, and every connection with it that
/// libp2p has not taken.
pub(crate) async fn serve(listener: TcpListener, entrance: Arc<Entrance>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, remote)) => match entrance.place(remote.ip().to_canonical()) {
                Ok(place) => {
                    let served = entrance.clone().serve(stream, remote, place);
                    connections.spawn(served.in_current_span());
                }
                Err(_) => reset(&stream),
            },
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                entrance.descriptors.failed("tcp", &error);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

impl Entrance {
    fn handshakes(&self) -> &Pool {
        &self.pools.handshakes
    }

    fn refusals(&self) -> &Refusals {
        &self.pools.refusals
    }

    /// Whether `ip` may begin a handshake of TLS now. A refusal is counted and logged.
    fn lets_shake_hands(&self, ip: IpAddr) -> bool {
        let rate = self.handshake_rate.lock();
        let mut rate = rate.unwrap_or_else(PoisonError::into_inner);
        let may = rate.allow(ip, std::time::Instant::now());
        drop(rate);
        if !may {
            self.refusals().tell("tls_handshake", "rate", Some(ip));
        }
        may
    }

    /// Whether a connection from `ip` begins with a header that names the client.
    fn is_named(&self, ip: IpAddr) -> bool {
        let mut proxies = self.naming_proxies.iter();
        proxies.any(|prefix| prefix.contains(ip))
    }

    /// The place of a connection from `ip`. That of a proxy counts for nobody until it says for whom
    /// it asks.
    fn place(&self, ip: IpAddr) -> Result<Place, Refusal> {
        let mut proxies = self.trusted_proxies.iter();
        let is_proxy = proxies.any(|prefix| prefix.contains(ip)) || self.is_named(ip);
        match is_proxy {
            true => self.handshakes().take(Holder::default()),
            false => self.handshakes().take(ip),
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream, remote: SocketAddr, place: Place) {
        let Ok(local) = stream.local_addr() else {
            return;
        };
        let _ = stream.set_nodelay(true);
        let begun = Instant::now();
        let (stream, remote, place) = match self.is_named(remote.ip().to_canonical()) {
            true => match timeout(PATIENCE, self.named(stream, remote, place)).await {
                Ok(Some(named)) => named,
                Ok(None) => return,
                Err(_) => return self.refusals().tell("proxy_header", "deadline", None),
            },
            false => (stream, remote, place),
        };
        let patience = PATIENCE.saturating_sub(begun.elapsed());
        let (socket, protocol) = match timeout(patience, self.recognise(stream, remote.ip())).await
        {
            Ok(Ok(Some(recognised))) => recognised,
            Ok(Ok(None)) => return,
            Ok(Err(error)) => return tracing::debug!(%error, "a TCP client was not understood"),
            Err(_) => {
                let ip = Some(remote.ip().to_canonical());
                return self.refusals().tell("first_bytes", "deadline", ip);
            }
        };
        let ip = remote.ip().to_canonical();
        let way = match (protocol, socket.is_tls()) {
            (Protocol::Http, _) => {
                drop(place);
                let (router, door) = self.pages.clone();
                return http::client(socket, ip, router, door).await;
            }
            (Protocol::Turn, _) => {
                drop(place);
                if let Some(turn) = &self.turn {
                    turn.client(socket, remote).await;
                }
                return;
            }
            (Protocol::WebSocket, true) => Way::TlsWebSocket,
            (Protocol::WebSocket, false) => Way::WebSocket,
            (_, true) => Way::Tls,
            (_, false) => Way::Tcp,
        };
        let arrival = Arrival {
            stream: Box::pin(ForPeers(socket)),
            way,
            local,
            remote,
            place,
        };
        if timeout(PATIENCE, self.peers.send(arrival)).await.is_err() {
            self.refusals().tell("first_bytes", "queue", Some(ip));
        }
    }

    /// Reads the header of a proxy. Returns the address and the place of the client, or those of the
    /// proxy if it asks for itself. Returns `None` if the connection is refused.
    async fn named(
        &self,
        mut stream: TcpStream,
        proxy: SocketAddr,
        place: Place,
    ) -> Option<(TcpStream, SocketAddr, Place)> {
        let client = match client(&mut stream).await {
            Ok(client) => client,
            Err(error) => {
                tracing::debug!(%error, "a proxy named no client");
                let reason = match error.kind() {
                    io::ErrorKind::InvalidData => "invalid",
                    _ => "closed",
                };
                self.refusals().tell("proxy_header", reason, None);
                reset(&stream);
                return None;
            }
        };
        let remote = client.unwrap_or(proxy);
        drop(place);
        match self.place(remote.ip()) {
            Ok(place) => Some((stream, remote, place)),
            Err(_) => {
                reset(&stream);
                None
            }
        }
    }

    /// Finds out what a client speaks, within TLS if it speaks that. Returns `None` if the client only
    /// wanted a handshake.
    async fn recognise(
        &self,
        mut stream: TcpStream,
        ip: IpAddr,
    ) -> io::Result<Option<(Socket, Protocol)>> {
        let (first, protocol) = first_bytes(&mut stream).await?;
        let stream = Replayed::new(first, stream);
        if protocol != Protocol::Tls {
            return Ok(Some((Socket::Plain(stream), protocol)));
        }
        let tls = self
            .tls
            .as_ref()
            .ok_or_else(|| unknown("TLS is not set up"))?;
        // A handshake costs a signature, which is much for a flood.
        if !self.lets_shake_hands(ip.to_canonical()) {
            return Ok(None);
        }
        let accepted = tls.accept(stream).await;
        self.metrics.tls_handshake(match &accepted {
            Ok(_) => "ok",
            Err(_) => "failed",
        });
        let Some(mut stream) = accepted? else {
            return Ok(None);
        };
        let (first, protocol) = first_bytes(&mut stream).await?;
        if !agrees(alpn(&stream), protocol) {
            return Err(unknown("another protocol than TLS agreed on"));
        }
        let socket = Socket::Tls(Replayed::new(first, Box::new(stream)));
        Ok(Some((socket, protocol)))
    }
}

fn alpn(stream: &Secured) -> Option<&[u8]> {
    stream.get_ref().1.alpn_protocol()
}

/// Reads the header of a proxy and no byte more, and returns the client that it names.
async fn client(stream: &mut TcpStream) -> io::Result<Option<SocketAddr>> {
    let mut header = Vec::new();
    loop {
        match proxy::parse(&header) {
            proxy::Parsed::Header { client, .. } => return Ok(client),
            proxy::Parsed::Invalid => return Err(unknown("no header of PROXY protocol")),
            proxy::Parsed::More(needed) => {
                let mut chunk = [0; proxy::MOST];
                let missing = needed - header.len();
                match stream.read(&mut chunk[..missing]).await? {
                    0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    read => header.extend_from_slice(&chunk[..read]),
                }
            }
        }
    }
}

/// Reads until it is known what a client speaks.
async fn first_bytes<S>(stream: &mut S) -> io::Result<(Vec<u8>, Protocol)>
where
    S: AsyncRead + Unpin,
{
    let mut first = Vec::new();
    loop {
        let mut chunk = [0; CHUNK];
        let room = CHUNK.min(MOST - first.len());
        match stream.read(&mut chunk[..room]).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => first.extend_from_slice(&chunk[..read]),
        }
        match sniff(&first) {
            Sniffed::Is(protocol) => return Ok((first, protocol)),
            Sniffed::More => {}
            Sniffed::Unknown => return Err(unknown("no protocol of this server")),
        }
    }
}

fn unknown(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
