//! The limits of connections, and of what HTTP serves.

use std::{
    net::SocketAddr,
    num::{NonZeroU32, NonZeroUsize},
    path::PathBuf,
};

use serde::{Deserialize, Serialize};

use super::{nonzero_u32, nonzero_usize};

/// Limits of connections.
///
/// The server raises its limit of file descriptors as far as it may. If all pools together may
/// still need more descriptors, every pool of connections and of allocations shrinks in proportion,
/// and a warning names both numbers.
///
/// ```
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.connections.established = 100_000;
/// config.connections.share_per_address = 1;
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct ConnectionLimits {
    /// Peers' connections that are held at once, 1 to 4294967295. Default 8192.
    pub established: u32,
    /// Connections of one peer, 1 to 4294967295. Default 8.
    pub per_peer: u32,
    /// Connections whose handshake is under way, 1 to 4294967295. The limit applies to each kind:
    /// TCP and WebSocket, QUIC, WebRTC, and connections that the server makes. Default 512. Over TCP,
    /// a connection also counts until its first bytes tell its protocol. When
    /// more than a sixteenth of it are under way over QUIC, senders must prove that they are at
    /// their address, which takes one round trip.
    pub pending: u32,
    /// Seconds after which an unused connection is closed, 1 to 86400. A connection is unused if
    /// its peer holds no reservation and takes part in no circuit, no offer and no AutoNAT test.
    /// Open streams do not keep it. Default 30.
    pub idle_seconds: u64,
    /// Bytes of one connection that may wait in the server to be read, 65536 to 16777216. As many
    /// may wait to be sent. Each circuit over the connection adds
    /// [`circuit_window`](super::RelayLimits::circuit_window). Default 131072, which is enough for
    /// requests and some offers. A connection without a circuit carries nothing else.
    pub window: u32,
    /// HTTP connections that are held at once. Further ones are closed at once. Default 256.
    pub http: NonZeroUsize,
    /// The share of every pool that one IPv4 address or one IPv6 /64 may hold, in percent, 1 to
    /// 100. The pools are those of connections, handshakes, reservations, circuits, allocations, the
    /// members of each room, and so on. An IPv6 /48 may hold twice that share. Default 10: nine
    /// addresses together leave a tenth of the places free, and an office behind one address has 400
    /// reservations. A small pool gives everybody 8 places, or three quarters of its places. 100 lets
    /// one address hold everything.
    pub share_per_address: u8,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            established: 8192,
            per_peer: 8,
            pending: 512,
            idle_seconds: 30,
            window: 128 * 1024,
            http: nonzero_usize(256),
            share_per_address: 10,
        }
    }
}

/// What HTTP serves besides `/metrics`, `/health`, `/ready` and `/config.json`, and to whom.
///
/// ```
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.http.admin = Some("127.0.0.1:9090".parse().unwrap());
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct HttpConfig {
    /// The folder of the page at `/`. A file `name.br` or `name.gz` beside the file `name` is its
    /// compressed form, and is sent unless it is older. Default none: a built-in page that names
    /// the addresses.
    pub www: Option<PathBuf>,
    /// The folder of the npm package, which is served under `/npm/`. Default none.
    pub npm: Option<PathBuf>,
    /// The operator's own address, such as `127.0.0.1:9090`, which has its own connections.
    /// `/metrics` is then served only there, and `/ready` says there which pool is full. At the
    /// public address, `/ready` then says only whether the server takes more peers. Default none: both are
    /// public.
    pub admin: Option<SocketAddr>,
    /// Prefixes of reverse proxies that stand before the server, such as `["127.0.0.1",
    /// "10.0.0.0/8"]`. 0 to 64 prefixes. Default none: every connection counts for the address that
    /// it comes from.
    ///
    /// If a connection comes from such a proxy, its client is the last address in `X-Forwarded-For`
    /// that is not such a proxy. The client counts for the share of the connections, for the rate
    /// of requests, for the TURN credentials of a page, and for what a peer takes that comes by
    /// WebSocket. AutoNAT does not test peers behind a proxy. List only proxies that set the header
    /// themselves. With other proxies, a client could claim any address.
    pub trusted_proxies: Vec<String>,
    /// Requests per second that one IPv4 address, or one IPv6 /64, may make on average. In a burst,
    /// it may make twice as many. Further requests are answered with 429. Default 50: a page asks
    /// for about twenty files, and an office behind one address reloads it.
    pub requests_per_source: NonZeroU32,
    /// Requests per second of all clients together. Default 2000, of which one address may make a
    /// fortieth.
    pub requests: NonZeroU32,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            www: None,
            npm: None,
            admin: None,
            trusted_proxies: Vec::new(),
            requests_per_source: nonzero_u32(50),
            requests: nonzero_u32(2000),
        }
    }
}
