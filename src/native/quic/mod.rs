//! QUIC on the shared sockets, wire-compatible with libp2p's `/quic-v1`. It is a transport of its
//! own, and it also runs over the candidate pair of an ICE session.
//!
//! One endpoint listens and dials. A peer that dialled may change its address (RFC 9000 section 9):
//! the connection goes on when the new address has proved that it receives. Further endpoints belong to ICE sessions. To them, a peer never
//! changes its address: when ICE nominates another pair, only the path below changes, and neither
//! the connection nor its congestion controller is told.

mod admission;
mod connection;
mod datagrams;
mod link;
mod pairs;
mod path;
mod resets;
mod tls;
mod transport;

use std::{fmt, io, sync::Arc, time::Duration};

use futures::StreamExt as _;
use libp2p::{PeerId, identity::Keypair};
use quinn::{
    ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, VarInt,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
    rustls::pki_types::CertificateDer,
};

pub(crate) use self::{
    admission::Admission,
    connection::{QuicConnection, QuicError},
    pairs::PairLink,
    transport::{QuicTransport, socket_addr},
};
use self::{
    admission::Monotonic, link::EndpointSocket, pairs::Groups, path::OnPaths, resets::Resets,
    tls::Verifier,
};
#[cfg(feature = "server")]
use super::transports::windows::Sizes;
use super::udp::{Receiver, Sockets};
use crate::core::quic::{CONNECTION_ID_LEN, Tag};

/// A connection is lost when the peer sends nothing for this long. This is the value of libp2p.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a silent connection sends something, which keeps its NAT mappings and prevents the
/// idle timeout. The shortest mapping timeouts in use are longer.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// The streams that the peer may have open. The number suffices for all streams that a connection
/// or a relay carries by default, where each circuit of a relay is one stream, and leaves room for
/// others. libp2p allows 256.
const MAX_STREAMS: u32 = 1024 + 256;

/// The streams that the peer may have open at first. The limit grows when half of the allowed
/// streams are open. Each allowed stream costs memory from the beginning, open or not: all of them
/// cost 80 KiB for each connection.
const FIRST_STREAMS: u32 = 16;

/// The bytes on the way for each stream. This and [`CONNECTION_WINDOW`] are the values of libp2p:
/// they fill 1 Gbit/s at 80 ms, and a stream that nobody reads does not stop the others.
const STREAM_WINDOW: u32 = 10_000_000;
/// The bytes on the way for all streams of a connection.
const CONNECTION_WINDOW: u32 = 15_000_000;

/// How many received bytes may wait for their readers, and how many written bytes for their
/// receiver.
#[derive(Clone, Copy, Debug)]
struct Buffers {
    stream: u32,
    connection: u32,
    /// The written bytes. Without a bound, Quinn's own of 10 MB holds.
    unsent: Option<u32>,
    /// Received datagrams. A server takes none.
    datagrams: Option<usize>,
}

/// The buffers of a peer.
const BUFFERS: Buffers = Buffers {
    stream: STREAM_WINDOW,
    connection: CONNECTION_WINDOW,
    unsent: None,
    datagrams: Some(datagrams::UNREAD),
};

/// The largest datagram that a path is probed for, in bytes of UDP. It is what IPv6 leaves of the
/// 1,492 bytes of PPPoE. Ethernet would carry half a percent more.
const LARGEST_DATAGRAM: u16 = 1444;

/// Half of the way from the 1,200 bytes that every path carries to [`LARGEST_DATAGRAM`], and one
/// more. Quinn's search for the size then begins at its upper end, where it ends within one round
/// trip on most paths. On other paths it finds 1,321 or 1,200 bytes. The default step, 20, takes
/// four round trips and as many probes, which are, with their acknowledgements, a third of all that
/// a new connection sends.
const PROBE_STEP: u16 = (LARGEST_DATAGRAM - 1200) / 2 + 1;

/// The round trip that is assumed before it is measured. RFC 9002 section 6.2.2 has 333 ms. The
/// first packet of a hole punch is often lost, and its retransmission follows after three of these.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// The first packets that wait for a decision of this peer. The decision comes as soon as the swarm
/// has its turn. Further packets are dropped. Quinn's default of 65,536 takes 80 MB.
const MAX_INCOMING: usize = 512;

/// The further bytes that are kept of one such connection while it waits: the rest of its first
/// flight. All of them together may keep a quarter of the sum. Quinn's default is 10 MB.
const INCOMING_BUFFER: u64 = 8 * 1024;

/// rustls needs a server name, but libp2p has none. The verifier looks at the peer id instead.
const SERVER_NAME: &str = "l";

/// The parts that all QUIC endpoints of a peer share. It is cheap to clone.
#[derive(Clone)]
pub(crate) struct Quic(Arc<Inner>);

struct Inner {
    sockets: Sockets,
    client: quinn::ClientConfig,
    server: quinn::ServerConfig,
    verifier: Arc<Verifier>,
    groups: Groups,
    resets: Option<Resets>,
}

impl fmt::Debug for Quic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Quic").field(&self.0.sockets).finish()
    }
}

impl Quic {
    /// The sockets below.
    pub(crate) fn sockets(&self) -> &Sockets {
        &self.0.sockets
    }

    /// Makes a certificate for the peer id of `keypair`.
    ///
    /// # Errors
    /// Fails when no certificate can be made.
    pub(crate) fn new(keypair: &Keypair, sockets: Sockets) -> io::Result<Self> {
        Self::with(keypair, sockets, BUFFERS, None)
    }

    /// Makes the QUIC of a server, which holds little for each of many connections. After a
    /// restart, it tells its peers at once that their connections are gone.
    ///
    /// # Errors
    /// Fails as [`new`](Self::new) does.
    #[cfg(feature = "server")]
    pub(crate) fn bounded(keypair: &Keypair, sockets: Sockets, sizes: Sizes) -> io::Result<Self> {
        let buffers = Buffers {
            stream: sizes.circuit,
            connection: sizes.connection,
            unsent: Some(sizes.connection),
            datagrams: None,
        };
        Self::with(keypair, sockets, buffers, Some(Resets::new(keypair)))
    }

    fn with(
        keypair: &Keypair,
        sockets: Sockets,
        buffers: Buffers,
        resets: Option<Resets>,
    ) -> io::Result<Self> {
        let (client, server, verifier) = tls::configs(keypair)?;
        let client = QuicClientConfig::try_from(client).map_err(io::Error::other)?;
        let server = QuicServerConfig::try_from(server).map_err(io::Error::other)?;

        let mut probes = quinn::MtuDiscoveryConfig::default();
        probes
            .upper_bound(LARGEST_DATAGRAM)
            .minimum_change(PROBE_STEP);
        let mut transport = quinn::TransportConfig::default();
        transport
            .max_concurrent_uni_streams(0u32.into())
            .max_concurrent_bidi_streams(FIRST_STREAMS.into())
            .datagram_receive_buffer_size(buffers.datagrams)
            .datagram_send_buffer_size(datagrams::UNSENT)
            .keep_alive_interval(Some(KEEP_ALIVE))
            .max_idle_timeout(Some(
                VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32).into(),
            ))
            .allow_spin(false)
            .mtu_discovery_config(Some(probes))
            .stream_receive_window(buffers.stream.into())
            .receive_window(buffers.connection.into())
            .initial_rtt(INITIAL_RTT);
        if let Some(unsent) = buffers.unsent {
            transport.send_window(unsent.into());
        }
        let transport = Arc::new(transport);
        let mut client = quinn::ClientConfig::new(Arc::new(client));
        client.transport_config(transport.clone());
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
        server.transport = transport;
        server
            .time_source(Arc::new(Monotonic::default()))
            .max_incoming(MAX_INCOMING)
            .incoming_buffer_size(INCOMING_BUFFER)
            .incoming_buffer_size_total(MAX_INCOMING as u64 * INCOMING_BUFFER / 4);
        Ok(Self(Arc::new(Inner {
            sockets,
            client,
            server,
            verifier,
            groups: Groups::default(),
            resets,
        })))
    }

    /// Makes the endpoint that listens and dials, over `link`. Needs a Tokio runtime.
    fn endpoint(&self, link: &Arc<EndpointSocket>) -> io::Result<Endpoint> {
        let resets = self.0.resets.as_ref();
        endpoint(&self.0.sockets, &self.0.server, link, resets)
    }

    /// Makes the link below the connection of an ICE session.
    ///
    /// # Errors
    /// Fails when the system has no randomness.
    pub(crate) fn pair_link(&self) -> io::Result<Arc<PairLink>> {
        self.0.groups.link(&self.0.sockets, &self.0.server)
    }

    /// Takes one side of the handshake with `peer` over the candidate pair below `link`, and
    /// resolves to the connection. Any other peer is sent away.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the handshake.
    pub(crate) async fn over_pair(
        &self,
        link: &PairLink,
        peer: PeerId,
        client: bool,
    ) -> Result<QuicConnection, QuicError> {
        let mut incoming = link.incoming().ok_or(QuicError::Closed)?;
        if client {
            drop(incoming);
            let connecting = link.connect(self.0.client.clone(), SERVER_NAME)?;
            return self.authenticated(connecting.await?, Some(peer));
        }
        loop {
            let incoming = incoming.next().await.ok_or(QuicError::Closed)?;
            // A forged first packet must not end the wait for the real one.
            let connecting = match link.accept(incoming) {
                Ok(connecting) => connecting.await,
                Err(error) => Err(error),
            };
            match connecting.map_err(QuicError::from) {
                Ok(connection) => match self.authenticated(connection, Some(peer)) {
                    Ok(connection) => return Ok(connection),
                    Err(error) => tracing::debug!(%error, "the QUIC connection was refused"),
                },
                Err(error) => tracing::debug!(%error, "the QUIC handshake failed"),
            }
        }
    }

    /// Checks the identity of the peer, which the handshake has proved.
    fn authenticated(
        &self,
        connection: quinn::Connection,
        expected: Option<PeerId>,
    ) -> Result<QuicConnection, QuicError> {
        let identity = connection.peer_identity().ok_or(QuicError::Certificate)?;
        let chain = identity
            .downcast::<Vec<CertificateDer<'static>>>()
            .map_err(|_| QuicError::Certificate)?;
        let certificate = chain.first().ok_or(QuicError::Certificate)?;
        let peer = self.0.verifier.peer(certificate);
        let peer = peer.map_err(|_| QuicError::Certificate)?;
        match expected {
            Some(expected) if expected != peer => Err(QuicError::WrongPeer(peer)),
            _ => Ok(QuicConnection::new(peer, connection)),
        }
    }
}

/// Makes an endpoint that accepts and makes connections, over `link`. With `resets`, it resets what
/// another run of the same server has left. Needs a Tokio runtime.
fn endpoint(
    sockets: &Sockets,
    server: &quinn::ServerConfig,
    link: &Arc<EndpointSocket>,
    resets: Option<&Resets>,
) -> io::Result<Endpoint> {
    let mut tag = Tag::default();
    let mut config = EndpointConfig::default();
    match resets {
        Some(resets) => {
            tag = resets.tag();
            config.reset_key(Arc::new(resets.clone()));
        }
        None => getrandom::fill(&mut tag).map_err(io::Error::other)?,
    }
    let receiver: Arc<dyn Receiver> = link.clone();
    sockets.route_tag(tag, &receiver);
    config
        .supported_versions(vec![1])
        // With a cleared fixed bit, a datagram would look like one of another protocol here.
        .grease_quic_bit(false)
        .cid_generator(move || Box::new(MarkedIds(tag)));
    Endpoint::new_with_abstract_socket(
        config,
        Some(server.clone()),
        link.clone(),
        Arc::new(OnPaths),
    )
}

/// Makes connection ids that begin with the tag of their endpoint. The tag tells an observer
/// which connections share an endpoint, but their addresses tell that as well.
struct MarkedIds(Tag);

impl ConnectionIdGenerator for MarkedIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_LEN];
        // Without randomness, ids collide and quinn asks again. The handshake needs randomness
        // anyway.
        let _ = getrandom::fill(&mut id);
        id[..self.0.len()].copy_from_slice(&self.0);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        CONNECTION_ID_LEN
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}
