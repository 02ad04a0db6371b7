//! A TURN server (RFC 8656) over UDP and TCP, for UDP peers.
//!
//! It keeps no list of users (see [`credentials`]). A request without valid credentials leaves no
//! state behind. Through the server, a client may reach the internet, but not the networks that the
//! server itself is in.

mod addresses;
mod allocation;
mod answers;
mod credentials;
mod datagrams;
mod deadlines;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod meter;
mod ports;
mod reach;
mod requests;
mod stream;
#[cfg(test)]
pub(crate) mod testing;

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, UdpSocket},
    task::JoinSet,
    time,
};
use tracing::Instrument as _;

pub use self::credentials::{TurnCredentials, turn_secret};
pub(crate) use self::{
    addresses::RelayAddresses,
    credentials::{Authority, TurnOffer},
    reach::Own,
};
use self::{datagrams::Datagrams, requests::Requests};
use super::{
    access::Access,
    metrics::Metrics,
    pool::{Pool, Pools},
    socket::{Socket, reset},
    usage::Usage,
};

/// How often the server removes what has expired.
const SWEEP: Duration = Duration::from_secs(5);

/// The bound sockets of a server.
pub(crate) struct Listeners {
    udp: Vec<Arc<Datagrams>>,
    tcp: Vec<TcpListener>,
}

impl Listeners {
    /// # Errors
    /// If a UDP socket cannot tell at which of its addresses a datagram arrives.
    pub(crate) fn new(udp: Vec<UdpSocket>, tcp: Vec<TcpListener>) -> io::Result<Self> {
        let udp = udp.into_iter();
        let udp = udp.map(|socket| Datagrams::new(socket).map(Arc::new));
        Ok(Self {
            udp: udp.collect::<io::Result<_>>()?,
            tcp,
        })
    }
}

/// The parts of a server.
pub(crate) struct Setup {
    pub(crate) authority: Arc<Authority>,
    pub(crate) addresses: RelayAddresses,
    pub(crate) access: Access,
    pub(crate) own: Arc<Own>,
    pub(crate) pools: Pools,
    pub(crate) usage: Usage,
    pub(crate) metrics: Metrics,
}

/// A TURN server without sockets. Clones share it.
#[derive(Clone)]
pub(crate) struct TurnServer {
    requests: Arc<Requests>,
    own: Arc<Own>,
    connections: Pool,
}

impl TurnServer {
    pub(crate) fn new(setup: Setup) -> Self {
        Self {
            own: setup.own.clone(),
            connections: setup.pools.turn_connections.clone(),
            requests: Arc::new(Requests::new(setup)),
        }
    }

    /// Serves a client over TCP or TLS that came in elsewhere, unless it gets no place.
    pub(crate) async fn client(&self, stream: Socket, from: SocketAddr) {
        match self.connections.take(from.ip().to_canonical()) {
            Ok(place) => stream::client(stream, from, place, &self.requests).await,
            Err(_) => reset(stream.tcp()),
        }
    }

    /// Serves `listeners` until the future is dropped. Dropping it ends every allocation.
    pub(crate) async fn serve(self, listeners: Listeners) {
        let mut tasks = JoinSet::new();
        tasks.spawn(self.own.clone().watch().in_current_span());
        for socket in listeners.udp {
            tasks.spawn(datagrams::serve(socket, self.requests.clone()).in_current_span());
        }
        for listener in listeners.tcp {
            let (connections, requests) = (self.connections.clone(), self.requests.clone());
            tasks.spawn(stream::serve(listener, connections, requests).in_current_span());
        }
        let mut sweep = time::interval(SWEEP);
        loop {
            sweep.tick().await;
            self.requests.expire(Instant::now());
        }
    }
}
