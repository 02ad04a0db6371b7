//! The chain of libp2p transports, in the one order that works.
//!
//! `libp2p::SwarmBuilder` puts the relay client first, where it would take the
//! `…/p2p-circuit/webrtc` addresses of this library's own transport. So this module builds the
//! chain by hand: the own transport, circuits, and then everything with an IP address or a domain
//! name.

mod backlog;
pub(crate) mod guard;
#[cfg(feature = "server")]
pub(crate) mod handed;
pub(crate) mod names;
mod tcp;
pub(crate) mod websocket;
#[cfg_attr(not(feature = "server"), allow(dead_code, reason = "a server's"))]
pub(crate) mod windows;

use std::{io, time::Duration};

use futures::{AsyncRead, AsyncWrite};
use libp2p::{
    Multiaddr, PeerId, Transport as _,
    core::{
        ConnectedPoint,
        muxing::StreamMuxerBox,
        transport::{Boxed, timeout::TransportTimeout},
        upgrade::Version,
    },
    identity,
    multiaddr::multiaddr,
    noise,
};

#[cfg(feature = "server")]
use libp2p::quic;

#[cfg(feature = "server")]
use self::handed::{Arrivals, Handed};
use self::{
    backlog::Backlog, guard::Guard, names::Names, tcp::Tcp, websocket::WebSocketTransport,
    windows::Windows,
};
#[cfg(feature = "server")]
use super::udp::Sockets;
use super::{
    Net,
    behaviours::{
        self,
        forwarded::Forwarded,
        pool::{self, Pool},
    },
    quic::{Admission, Quic, QuicConnection},
    roots::Roots,
};
#[cfg(feature = "server")]
use crate::core::dial::Policy;
use crate::{
    stream::BoxedStream,
    swarm::muxer::{Muxer, Yamux},
};

/// A transport whose connections are authenticated and multiplexed.
pub(crate) type BoxedTransport = Boxed<(PeerId, StreamMuxerBox)>;

/// How long one dial or one inbound upgrade may take, including DNS and handshakes.
///
/// It equals the default budget of a strategy in [`crate::Config`]: a slower transport is of no
/// use, because the strategy that waits for it has given up.
#[cfg(feature = "server")]
pub(crate) const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The bounds on the connections that come to a server.
#[cfg_attr(not(feature = "server"), allow(dead_code, reason = "a server's"))]
#[derive(Clone)]
pub(crate) struct Bounds {
    /// The pool of handshakes over TCP and WebSocket. Connections for which it has no place end at
    /// once.
    pub(crate) handshakes: Pool,
    pub(crate) windows: Windows,
    /// The clients of WebSockets that come through proxies.
    pub(crate) forwarded: Forwarded,
}

/// Builds the transports of a peer.
///
/// `first` is asked before all others (`/webrtc` and `/webrtc-direct` of this library), and
/// `circuits` next. A dial of an address that one transport does not know falls through to the
/// next. Yamux has room for this many `streams` of the application.
pub(crate) fn peer(
    keypair: &identity::Keypair,
    first: BoxedTransport,
    circuits: Boxed<BoxedStream>,
    net: &Net,
    streams: usize,
    timeout: Duration,
) -> io::Result<BoxedTransport> {
    let yamux = Yamux::holding(streams);
    let circuits = circuits
        .upgrade(Version::V1Lazy)
        .authenticate(noise_config(keypair)?)
        .multiplex(yamux.clone())
        .timeout(timeout)
        .boxed();
    let admission = Admission::new(behaviours::handshakes(), &pool::Debug);
    let ways = (&net.guard, &net.names, &net.roots);
    let direct = internet(keypair, timeout, ways, yamux, None, || {
        own_quic(&net.quic, &admission, timeout, |_, _| {})
    })?;
    Ok(join(join(first, circuits), direct))
}

/// Builds the transports of a server, which listens over QUIC at `sockets`, and gets connections over
/// TCP from `arrivals`.
///
/// The server listens on this library's sockets, because all peers of a relay may send at once, and
/// the sockets of libp2p have only the system's default buffers. It dials with libp2p's transport,
/// which uses a new port each time. These dials are AutoNAT's, and reaching a peer from a port that
/// the peer has sent to proves nothing.
///
/// # Errors
/// Fails when the transports cannot be set up.
#[cfg(feature = "server")]
pub(crate) fn server(
    keypair: &identity::Keypair,
    sockets: Vec<Sockets>,
    arrivals: Arrivals,
    admission: &Admission,
    bounds: &Bounds,
    timeout: Duration,
) -> io::Result<BoxedTransport> {
    let sizes = bounds.windows.sizes();
    let own = sockets.into_iter();
    let own = own.map(|sockets| Quic::bounded(keypair, sockets, sizes));
    let own = own.collect::<Result<Vec<_>, _>>()?;
    // A server decides where it handles a request which addresses it tests. This guard bars only
    // the addresses that nobody may dial.
    let guard = Guard::new(Policy::new(true, Vec::new()));
    let ways = (&guard, &Names::of_system(), &Roots::load(None)?);
    let yamux = Yamux::bounded(sizes.connection as usize, sizes.circuit as usize);
    let windows = bounds.windows.clone();
    let handed = Handed::new(arrivals)
        .upgrade(Version::V1Lazy)
        .authenticate(noise_config(keypair)?)
        .multiplex(yamux.clone())
        .map(move |(peer, muxer), at| (peer, known(Some(&windows), muxer, &at)));
    let handed = TransportTimeout::new(handed.boxed(), timeout).boxed();
    let internet = internet(keypair, timeout, ways, yamux, Some(bounds), || {
        let mut config = quic::Config::new(keypair);
        config.max_stream_data = sizes.connection;
        config.max_connection_data = sizes.connection;
        let stock = quic::tokio::Transport::new(config);
        let stock = stock
            .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
            .boxed();
        own.iter().try_rfold(stock, |rest, quic| {
            let windows = bounds.windows.clone();
            let own = own_quic(quic, admission, timeout, move |connection, remote| {
                let known = windows.add(remote, connection.window());
                connection.keep(Box::new(known));
            });
            Ok(join(own?, rest))
        })
    })?;
    Ok(join(handed, internet))
}

/// Makes QUIC of this library. `made` is called with each connection and where it leads.
fn own_quic(
    quic: &Quic,
    admission: &Admission,
    timeout: Duration,
    made: impl Fn(&mut QuicConnection, &Multiaddr) + Clone + Send + 'static,
) -> io::Result<BoxedTransport> {
    let transport = super::quic::QuicTransport::new(quic.clone(), admission.clone(), timeout)?;
    let made = move |(peer, mut connection), at: ConnectedPoint| {
        made(&mut connection, at.get_remote_address());
        (peer, StreamMuxerBox::new(connection))
    };
    Ok(transport.map(made).boxed())
}

/// Makes QUIC, WebSocket (`ws` and, for dialling only, `wss`) and TCP, over IP addresses and names.
fn internet(
    keypair: &identity::Keypair,
    timeout: Duration,
    (guard, names, roots): (&Guard, &Names, &Roots),
    yamux: Yamux,
    bounds: Option<&Bounds>,
    quic: impl FnOnce() -> io::Result<BoxedTransport>,
) -> io::Result<BoxedTransport> {
    let noise = noise_config(keypair)?;
    // A hole punch needs the reuse of the TCP port and of the QUIC listener's socket. libp2p reuses
    // both unless a dial forbids it.
    let forwarded = bounds.map_or_else(Forwarded::default, |bounds| bounds.forwarded.clone());
    let tcp = || {
        let handshakes = bounds.map(|bounds| bounds.handshakes.clone());
        Backlog::new(Tcp::new(), handshakes, forwarded.clone())
    };
    let windows = bounds.map(|bounds| bounds.windows.clone());
    // A WebSocket needs the name for TLS and for the Host header, so its resolver is below it. It
    // stands first, because the resolver around QUIC and TCP takes every name.
    let websocket = guard.named(names, tcp);
    let websocket = WebSocketTransport::new(websocket, roots.clone(), forwarded.clone())
        .upgrade(Version::V1Lazy)
        .authenticate(noise.clone())
        .multiplex(yamux.clone())
        .map({
            let windows = windows.clone();
            move |(peer, muxer), at| (peer, known(windows.as_ref(), muxer, &at))
        })
        .boxed();
    let tcp = tcp()
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux)
        .map(move |(peer, muxer), at| (peer, known(windows.as_ref(), muxer, &at)))
        .boxed();
    let quic_and_tcp = names.over(guard.over(join(quic()?, tcp))).boxed();
    Ok(TransportTimeout::new(join(websocket, quic_and_tcp), timeout).boxed())
}

/// Lets `windows` set the window of a connection.
fn known<C>(windows: Option<&Windows>, mut muxer: Muxer<C>, at: &ConnectedPoint) -> StreamMuxerBox
where
    C: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    if let Some((windows, window)) = windows.zip(muxer.window()) {
        let known = windows.add(at.get_remote_address(), move |bytes| {
            window.set(bytes as usize);
        });
        muxer.keep(Box::new(known));
    }
    StreamMuxerBox::new(muxer)
}

/// Tries `left` first, and `right` for addresses that `left` does not know.
pub(crate) fn join(left: BoxedTransport, right: BoxedTransport) -> BoxedTransport {
    left.or_transport(right)
        .map(|either, _| either.into_inner())
        // `Either` would hide the error in it from `source`.
        .map_err(|either| either.into_inner())
        .boxed()
}

/// Whether a peer listens at addresses of its own.
pub(crate) const LISTENS: bool = true;

/// Whether one of the transports dials addresses of this form. Only servers have addresses of
/// `/webrtc-direct`, and only pages dial them.
pub(crate) fn dials(address: &Multiaddr) -> bool {
    use libp2p::multiaddr::Protocol;
    let unknown = |part: Protocol<'_>| {
        matches!(
            part,
            Protocol::WebRTCDirect | Protocol::WebTransport | Protocol::Quic | Protocol::Unix(_)
        )
    };
    !address.iter().any(unknown)
}

/// The most streams of a connection, whatever the configuration says. The configuration allows no
/// more anyway.
pub(crate) const MOST_STREAMS: usize = 65_536;

/// The addresses that a peer listens on by default: QUIC and TCP on every interface and in both
/// families, on ports that the system chooses.
pub(crate) fn default_listen_addresses() -> Vec<Multiaddr> {
    use std::net::{Ipv4Addr, Ipv6Addr};
    vec![
        multiaddr!(Ip4(Ipv4Addr::UNSPECIFIED), Udp(0u16), QuicV1),
        multiaddr!(Ip6(Ipv6Addr::UNSPECIFIED), Udp(0u16), QuicV1),
        multiaddr!(Ip4(Ipv4Addr::UNSPECIFIED), Tcp(0u16)),
        multiaddr!(Ip6(Ipv6Addr::UNSPECIFIED), Tcp(0u16)),
    ]
}

fn noise_config(keypair: &identity::Keypair) -> io::Result<noise::Config> {
    noise::Config::new(keypair).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use futures::StreamExt as _;
    use libp2p::core::{
        Endpoint,
        transport::{DialOpts, ListenerId, PortUse, dummy::DummyTransport},
    };
    use libp2p::multiaddr::Protocol;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    #[cfg(not(feature = "server"))]
    use crate::core::dial::Policy;
    use crate::testing::PATIENCE;

    fn transport() -> BoxedTransport {
        let keypair = identity::Keypair::generate_ed25519();
        let no_quic = || Ok(DummyTransport::new().boxed());
        let guard = Guard::new(Policy::new(true, Vec::new()));
        let ways = (&guard, &Names::of_system(), &Roots::load(None).unwrap());
        let (timeout, yamux) = (Duration::from_millis(200), Yamux::holding(1));
        internet(&keypair, timeout, ways, yamux, None, no_quic).unwrap()
    }

    /// Accepts connections and stays silent. If `takes` is set, it answers the WebSocket handshake
    /// first.
    async fn silent(listener: TcpListener, takes: bool) {
        let mut held = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if takes {
                let mut head = [0; 1024];
                let read = stream.read(&mut head).await.unwrap();
                let head = std::str::from_utf8(&head[..read]).unwrap();
                let (_, key) = head.split_once("Sec-WebSocket-Key: ").unwrap();
                let accept = websocket::accept_key(key.lines().next().unwrap().as_bytes());
                let response = format!(
                    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\
                     Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
                );
                stream.write_all(response.as_bytes()).await.unwrap();
            }
            held.push(stream);
        }
    }

    /// In a WebSocket connection, each step waits for the peer: TLS, the opening handshake, and
    /// noise.
    #[tokio::test]
    async fn a_peer_that_falls_silent_is_given_up() {
        let options = DialOpts {
            role: Endpoint::Dialer,
            port_use: PortUse::New,
        };
        for (suffix, takes) in [("", false), ("/wss", false), ("/ws", false), ("/ws", true)] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            let port = listener.local_addr().unwrap().port();
            let address = format!("/ip4/127.0.0.1/tcp/{port}{suffix}");
            let dial = transport().dial(address.parse().unwrap(), options).unwrap();
            let dialled = async {
                tokio::select! {
                    dialled = dial => dialled,
                    () = silent(listener, takes) => unreachable!("the silent peer never returns"),
                }
            };
            let dialled = tokio::time::timeout(PATIENCE, dialled)
                .await
                .expect("the dial has no deadline");
            assert!(dialled.is_err(), "{suffix}");
        }
        for suffix in ["", "/ws"] {
            let mut transport = transport();
            let any = format!("/ip4/127.0.0.1/tcp/0{suffix}").parse().unwrap();
            transport.listen_on(ListenerId::next(), any).unwrap();
            let address = transport.next().await.unwrap().into_new_address().unwrap();
            let Some(Protocol::Tcp(port)) = address.iter().nth(1) else {
                panic!("{address}");
            };
            let _silent = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
                .await
                .unwrap();
            let (upgrade, _) = transport.next().await.unwrap().into_incoming().unwrap();
            let upgraded = tokio::time::timeout(PATIENCE, upgrade)
                .await
                .expect("the upgrade has no deadline");
            assert!(upgraded.is_err(), "{suffix}");
        }
    }
}
