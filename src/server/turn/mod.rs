//! A TURN server (RFC 8656) over UDP and TCP, for UDP peers.
//!
//! It keeps no list of users (see [`credentials`]). A request without valid credentials leaves no
//! state behind. Through the server, a client may reach the internet, but not the networks that the
//! server itself is in.

mod addresses;
mod allocation;
mod answers;
mod credentials;
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
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{net::TcpListener, task::JoinSet, time};
use tracing::Instrument as _;

pub use self::credentials::{TurnCredentials, turn_secret};
pub(crate) use self::{
    addresses::RelayAddresses,
    credentials::{Authority, TurnOffer},
    reach::Own,
};
use self::{
    allocation::Reply,
    requests::{Client, Requests},
};
use super::{
    access::Access,
    metrics::Metrics,
    pool::{Pool, Pools},
    socket::{Socket, reset},
    usage::Usage,
};
use crate::native::udp::Sockets;

/// How often the server removes what has expired.
const SWEEP: Duration = Duration::from_secs(5);

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

    /// Handles a datagram that came from `source` to the address `destination` of `sockets`.
    pub(crate) fn receive(
        &self,
        sockets: &Sockets,
        (source, destination): (SocketAddr, SocketAddr),
        datagram: &[u8],
    ) {
        // Port 0 cannot be answered.
        if source.port() == 0 {
            return;
        }
        let client = Client::over_udp(source, destination);
        let reply = Reply::Datagrams(sockets.clone(), client);
        self.requests.receive(client, &reply, datagram);
    }

    /// Whether the client over UDP at `source` has an allocation.
    pub(crate) fn has_allocation(&self, source: SocketAddr, destination: SocketAddr) -> bool {
        let client = Client::over_udp(source, destination);
        self.requests.has_allocation(client)
    }

    /// Serves the clients of `listeners`, and removes what has expired, until the future is dropped.
    pub(crate) async fn serve(self, listeners: Vec<TcpListener>) {
        let mut tasks = JoinSet::new();
        tasks.spawn(self.own.clone().watch().in_current_span());
        for listener in listeners {
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
