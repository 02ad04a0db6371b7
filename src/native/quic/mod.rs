//! QUIC on the shared sockets, wire-compatible with libp2p's `/quic-v1`: as a transport of its own,
//! and over the candidate pair of an ICE session.
//!
//! One endpoint listens and dials. Others are those of ICE sessions, to which a peer never changes its
//! address: when ICE nominates another pair, the path below goes there, and neither the connection nor
//! its congestion controller is told.

mod admission;
mod connection;
mod link;
mod pairs;
mod path;
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
    connection::{Connection, Error},
    pairs::PairLink,
    transport::{Transport, socket_addr},
};
use self::{link::Link, pairs::Groups, path::OnPaths, tls::Verifier};
use super::socket::{Receiver, Sockets};
use crate::core::quic::{CONNECTION_ID_LEN, Tag};

/// Without a word from the peer for this long a connection is lost; the value of libp2p.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Keeps NAT mappings and the idle timeout away: the shortest mapping timeouts in use are above it.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Streams that the peer may have open: as many as a connection and a relay carry by default, each
/// circuit of a relay's being one, with room for what is opened besides. libp2p has 256.
const MAX_STREAMS: u32 = 1024 + 256;

/// How many of them it may have at first; more when half of those are open. Each costs memory from
/// the beginning, open or not: all of them 80 KiB for each connection.
const FIRST_STREAMS: u32 = 16;

/// Bytes on the way per stream, and on all streams of a connection. The values of libp2p: they fill
/// 1 Gbit/s at 80 ms, and a stream that nobody reads does not stop the others.
const STREAM_WINDOW: u32 = 10_000_000;
const CONNECTION_WINDOW: u32 = 15_000_000;

/// The largest datagram that a path is probed for, in bytes of UDP: what IPv6 leaves of the 1,492 of
/// PPPoE. Ethernet would carry half a percent more.
const LARGEST_DATAGRAM: u16 = 1444;

/// Half of the way to it from the 1,200 that every path carries, and one more: Quinn's search for the
/// size then begins at its upper end, where most paths end it within one round trip. Others are
/// found to carry 1,321 or 1,200. The default, 20, takes four round trips and as many probes, with
/// their acknowledgements a third of all that a new connection sends.
const PROBE_STEP: u16 = (LARGEST_DATAGRAM - 1200) / 2 + 1;

/// What the round trip is taken for before it is measured (RFC 9002 section 6.2.2 has 333 ms): the
/// first packet of a hole punch is often lost, and its retransmission follows after three of these.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// First packets that wait for our decision, which comes as soon as the swarm has its turn; further
/// ones are dropped. Quinn's 65,536 take 80 MB.
const MAX_INCOMING: usize = 512;

/// What else of one such connection is kept meanwhile, of all a quarter of as much each: the rest of
/// its first flight. Quinn keeps 10 MB.
const INCOMING_BUFFER: u64 = 8 * 1024;

/// rustls wants a server name, libp2p has none; its verifier looks at the peer id.
const SERVER_NAME: &str = "l";

/// What all endpoints of a peer have in common. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Quic(Arc<Inner>);

struct Inner {
    sockets: Sockets,
    client: quinn::ClientConfig,
    server: quinn::ServerConfig,
    verifier: Arc<Verifier>,
    groups: Groups,
}

impl fmt::Debug for Quic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Quic").field(&self.0.sockets).finish()
    }
}

impl Quic {
    /// With a certificate for the peer id of `keypair`.
    ///
    /// # Errors
    /// When no certificate can be made.
    pub(crate) fn new(keypair: &Keypair, sockets: Sockets) -> io::Result<Self> {
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
            .datagram_receive_buffer_size(None)
            .keep_alive_interval(Some(KEEP_ALIVE))
            .max_idle_timeout(Some(
                VarInt::from_u32(IDLE_TIMEOUT.as_millis() as u32).into(),
            ))
            .allow_spin(false)
            .mtu_discovery_config(Some(probes))
            .stream_receive_window(STREAM_WINDOW.into())
            .receive_window(CONNECTION_WINDOW.into())
            .initial_rtt(INITIAL_RTT);
        let transport = Arc::new(transport);
        let mut client = quinn::ClientConfig::new(Arc::new(client));
        client.transport_config(transport.clone());
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
        server.transport = transport;
        // A path changes below a Link, where ICE has verified it, or not at all.
        server
            .migration(false)
            .max_incoming(MAX_INCOMING)
            .incoming_buffer_size(INCOMING_BUFFER)
            .incoming_buffer_size_total(MAX_INCOMING as u64 * INCOMING_BUFFER / 4);
        Ok(Self(Arc::new(Inner {
            sockets,
            client,
            server,
            verifier,
            groups: Groups::default(),
        })))
    }

    /// The endpoint that listens and dials, over `link`. Needs a Tokio runtime.
    fn endpoint(&self, link: &Arc<Link>) -> io::Result<Endpoint> {
        endpoint(&self.0.sockets, &self.0.server, link)
    }

    /// What lies below the connection of an ICE session.
    ///
    /// # Errors
    /// Without randomness.
    pub(crate) fn pair_link(&self) -> io::Result<Arc<PairLink>> {
        self.0.groups.link(&self.0.sockets, &self.0.server)
    }

    /// Takes one side of the handshake with `peer` over the candidate pair below `link`, and
    /// resolves to the connection. Whoever else answers or comes is sent away.
    ///
    /// # Cancel safety
    /// Dropping the future gives the handshake up.
    pub(crate) async fn over_pair(
        &self,
        link: &PairLink,
        peer: PeerId,
        client: bool,
    ) -> Result<Connection, Error> {
        let mut incoming = link.incoming().ok_or(Error::Closed)?;
        if client {
            drop(incoming);
            let connecting = link.connect(self.0.client.clone(), SERVER_NAME)?;
            return self.authenticated(connecting.await?, Some(peer));
        }
        loop {
            let incoming = incoming.next().await.ok_or(Error::Closed)?;
            // A forged first packet must not end the wait for the real one.
            let connecting = match link.accept(incoming) {
                Ok(connecting) => connecting.await,
                Err(error) => Err(error),
            };
            match connecting.map_err(Error::from) {
                Ok(connection) => match self.authenticated(connection, Some(peer)) {
                    Ok(connection) => return Ok(connection),
                    Err(error) => tracing::debug!(%error, "a QUIC connection is refused"),
                },
                Err(error) => tracing::debug!(%error, "a QUIC handshake failed"),
            }
        }
    }

    /// Checks who is at the other end, which the handshake has proved.
    fn authenticated(
        &self,
        connection: quinn::Connection,
        expected: Option<PeerId>,
    ) -> Result<Connection, Error> {
        let identity = connection.peer_identity().ok_or(Error::Certificate)?;
        let chain = identity
            .downcast::<Vec<CertificateDer<'static>>>()
            .map_err(|_| Error::Certificate)?;
        let certificate = chain.first().ok_or(Error::Certificate)?;
        let peer = self.0.verifier.peer(certificate);
        let peer = peer.map_err(|_| Error::Certificate)?;
        match expected {
            Some(expected) if expected != peer => Err(Error::WrongPeer(peer)),
            _ => Ok(Connection::new(peer, connection)),
        }
    }
}

/// An endpoint that takes connections and makes them, over `link`. Needs a Tokio runtime.
fn endpoint(
    sockets: &Sockets,
    server: &quinn::ServerConfig,
    link: &Arc<Link>,
) -> io::Result<Endpoint> {
    let mut tag = Tag::default();
    getrandom::fill(&mut tag).map_err(io::Error::other)?;
    let receiver: Arc<dyn Receiver> = link.clone();
    sockets.route_tag(tag, &receiver);
    let mut config = EndpointConfig::default();
    config
        .supported_versions(vec![1])
        // Cleared fixed bits would make datagrams look like those of other protocols here.
        .grease_quic_bit(false)
        .cid_generator(move || Box::new(MarkedIds(tag)));
    Endpoint::new_with_abstract_socket(
        config,
        Some(server.clone()),
        link.clone(),
        Arc::new(OnPaths),
    )
}

/// Connection ids that begin with the mark of their endpoint. An observer could tell by it which
/// connections share one, as it can by their addresses.
struct MarkedIds(Tag);

impl ConnectionIdGenerator for MarkedIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; CONNECTION_ID_LEN];
        // Without randomness, ids collide and quinn asks again; the handshake needs it anyway.
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
