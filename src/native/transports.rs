//! The chain of libp2p transports, in the one order that works.
//!
//! `libp2p::SwarmBuilder` puts the relay client first, where it would swallow the
//! `…/p2p-circuit/webrtc` addresses of our own transport; so the chain is built by hand:
//! ours, circuits, then everything with an IP address or a domain name.

#[cfg(feature = "server")]
use std::net::SocketAddr;
use std::{io, time::Duration};

use libp2p::{
    Multiaddr, PeerId, Transport as _,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, timeout::TransportTimeout},
        upgrade::Version,
    },
    dns, identity,
    multiaddr::multiaddr,
    noise, tcp,
};

#[cfg(feature = "server")]
use libp2p::quic;

#[cfg(feature = "server")]
use super::socket::Sockets;
use super::{
    Net,
    guard::Guard,
    pool,
    quic::{Admission, Quic},
    stock, websocket,
};
#[cfg(feature = "server")]
use crate::core::dial::Policy;
use crate::{circuit::Duplex, muxer::Yamux};

/// A transport whose connections are authenticated and multiplexed.
pub(crate) type BoxedTransport = Boxed<(PeerId, StreamMuxerBox)>;

/// How long one dial or one inbound upgrade may take, DNS and handshakes included.
///
/// Equal to the per-strategy budget of [`crate::Config`]: a transport that is slower than
/// the strategy that waits for it helps nobody.
#[cfg(feature = "server")]
pub(crate) const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Builds the transports of a peer.
///
/// `first` is asked before all others (our `/webrtc` and `/webrtc-direct`), `circuits` next.
/// A dial of an address that a transport does not know falls through to the next.
pub(crate) fn peer(
    keypair: &identity::Keypair,
    first: BoxedTransport,
    circuits: Boxed<Duplex>,
    net: &Net,
    timeout: Duration,
) -> io::Result<BoxedTransport> {
    let circuits = circuits
        .upgrade(Version::V1Lazy)
        .authenticate(noise_config(keypair)?)
        .multiplex(Yamux::default())
        .timeout(timeout)
        .boxed();
    let admission = Admission::new(stock::handshakes(), &pool::Debug);
    let direct = internet(keypair, timeout, &net.guard, || {
        own_quic(&net.quic, &admission, timeout)
    })?;
    Ok(join(join(first, circuits), direct))
}

/// Builds the transports of a server, which listens over QUIC at `addresses`.
///
/// It listens on sockets of our own, because a relay's peers may all send at once, and libp2p's have
/// no more room than the system gives. Dials go from a new port by libp2p's: they are AutoNAT's, and
/// a port that a peer has sent to proves nothing.
///
/// # Errors
/// When one of the addresses cannot be bound.
#[cfg(feature = "server")]
pub(crate) fn server(
    keypair: &identity::Keypair,
    addresses: &[SocketAddr],
    admission: &Admission,
    timeout: Duration,
) -> io::Result<BoxedTransport> {
    let mut own = Vec::new();
    for address in addresses {
        let sockets = Sockets::bind_one(*address)
            .map_err(|e| io::Error::new(e.kind(), format!("QUIC at {address}: {e}")))?;
        own.push(Quic::new(keypair, sockets)?);
    }
    // Which addresses a server tests is decided where it is asked to; here, only where nobody goes.
    let guard = Guard::new(Policy::new(true, Vec::new()));
    internet(keypair, timeout, &guard, || {
        let stock = quic::tokio::Transport::new(quic::Config::new(keypair));
        let stock = stock
            .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
            .boxed();
        own.iter().try_rfold(stock, |rest, quic| {
            Ok(join(own_quic(quic, admission, timeout)?, rest))
        })
    })
}

fn own_quic(quic: &Quic, admission: &Admission, timeout: Duration) -> io::Result<BoxedTransport> {
    Ok(
        super::quic::Transport::new(quic.clone(), admission.clone(), timeout)?
            .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
            .boxed(),
    )
}

/// QUIC, WebSocket (`ws` and, dialling only, `wss`) and TCP, over IP addresses and names.
fn internet(
    keypair: &identity::Keypair,
    timeout: Duration,
    guard: &Guard,
    quic: impl Fn() -> io::Result<BoxedTransport>,
) -> io::Result<BoxedTransport> {
    let noise = noise_config(keypair)?;
    // TCP port reuse and the reuse of the QUIC listener's socket are what makes a hole
    // punch possible; libp2p does both unless a dial forbids it.
    let tcp = || tcp::tokio::Transport::new(tcp::Config::new().nodelay(true));
    // A WebSocket needs the name for TLS and the Host header, so it resolves below itself,
    // and stands first: the resolver outside of QUIC and TCP takes every name for its own.
    let websocket = websocket::Transport::new(guard.named(tcp)?)?
        .upgrade(Version::V1Lazy)
        .authenticate(noise.clone())
        .multiplex(Yamux::default())
        .boxed();
    let quic_and_tcp = with_dns(|| {
        let tcp = tcp()
            .upgrade(Version::V1Lazy)
            .authenticate(noise.clone())
            .multiplex(Yamux::default())
            .boxed();
        Ok(guard.over(join(quic()?, tcp)))
    })?
    .boxed();
    Ok(TransportTimeout::new(join(websocket, quic_and_tcp), timeout).boxed())
}

/// Tries `left` first, `right` with what `left` does not know.
pub(crate) fn join(left: BoxedTransport, right: BoxedTransport) -> BoxedTransport {
    left.or_transport(right)
        .map(|either, _| either.into_inner())
        // Either would hide from `source` which error it holds.
        .map_err(|either| either.into_inner())
        .boxed()
}

/// A peer has addresses of its own.
pub(crate) const LISTENS: bool = true;

/// The addresses a peer listens on unless it is told otherwise: QUIC and TCP on every
/// interface and both families, on ports the system chooses.
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

/// Resolves names with the system's servers, or, where there are none (a network namespace,
/// a container without DNS), with `/etc/hosts` alone instead of refusing to start.
pub(super) fn with_dns<T>(
    inner: impl Fn() -> io::Result<T>,
) -> io::Result<dns::tokio::Transport<T>> {
    dns::tokio::Transport::system(inner()?).or_else(|error| {
        tracing::info!(%error, "no DNS servers are configured, names resolve by the hosts file only");
        Ok(dns::tokio::Transport::custom(
            inner()?,
            dns::ResolverConfig::default(),
            dns::ResolverOpts::default(),
        ))
    })
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

    const PATIENCE: Duration = Duration::from_secs(20);

    fn transport() -> BoxedTransport {
        let keypair = identity::Keypair::generate_ed25519();
        let no_quic = || Ok(DummyTransport::new().boxed());
        let guard = Guard::new(Policy::new(true, Vec::new()));
        internet(&keypair, Duration::from_millis(200), &guard, no_quic).unwrap()
    }

    /// Says nothing, or takes a WebSocket and says nothing more, to whoever connects.
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

    /// Of a WebSocket, each step waits for the peer: TLS, the opening handshake, noise.
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
                    () = silent(listener, takes) => unreachable!("it never ends"),
                }
            };
            let dialled = tokio::time::timeout(PATIENCE, dialled)
                .await
                .expect("a deadline");
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
                .expect("a deadline");
            assert!(upgraded.is_err(), "{suffix}");
        }
    }
}
