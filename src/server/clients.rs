//! The peers that are connected to the relay, and what they use it for.
//!
//! A connection is closed after a while if its peer holds no reservation and takes part in no
//! circuit, offer or AutoNAT test. Open streams do not keep it, because they cost the peer nothing.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};

use super::pool::{Place, Pools};
use crate::core::quota::{Holder, Refusal};

/// The connected peers. The map grows only with the connections.
pub(crate) struct Clients {
    pools: Pools,
    by_peer: HashMap<PeerId, Client>,
}

struct Client {
    connections: Vec<ClientConnection>,
    /// Each use holds one clone.
    used: Arc<()>,
    last_used: Instant,
    /// One place for all reservations of the peer.
    place: Option<Place>,
}

struct ClientConnection {
    id: ConnectionId,
    from: Multiaddr,
    since: Instant,
    reserved_until: Option<Instant>,
}

/// Keeps the connections of a peer until it is dropped.
pub(crate) struct Use(#[expect(dead_code, reason = "it counts by being there")] Arc<()>);

/// The outcome of a request for a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reserved {
    New,
    Renewed,
}

impl ClientConnection {
    fn is_reserved(&self, now: Instant) -> bool {
        self.reserved_until.is_some_and(|until| now < until)
    }
}

impl Client {
    fn is_reserved(&self, now: Instant) -> bool {
        self.connections.iter().any(|held| held.is_reserved(now))
    }

    /// Gives the place back when no reservation is left.
    fn settle(&mut self, now: Instant) {
        if !self.is_reserved(now) {
            self.place = None;
        }
    }
}

impl Clients {
    pub(crate) fn new(pools: &Pools) -> Self {
        Self {
            pools: pools.clone(),
            by_peer: HashMap::new(),
        }
    }

    pub(crate) fn connected(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        from: &Multiaddr,
        now: Instant,
    ) {
        let client = self.by_peer.entry(peer).or_insert_with(|| Client {
            connections: Vec::new(),
            used: Arc::default(),
            last_used: now,
            place: None,
        });
        client.connections.push(ClientConnection {
            id,
            from: from.clone(),
            since: now,
            reserved_until: None,
        });
    }

    /// Removes a connection, together with its reservation.
    pub(crate) fn disconnected(&mut self, peer: &PeerId, id: ConnectionId, now: Instant) {
        if let Some(client) = self.by_peer.get_mut(peer) {
            client.connections.retain(|held| held.id != id);
            client.settle(now);
            if client.connections.is_empty() {
                self.by_peer.remove(peer);
            }
        }
    }

    pub(crate) fn is_connected(&self, peer: &PeerId) -> bool {
        self.by_peer.contains_key(peer)
    }

    /// Returns whether `peer` holds a reservation.
    pub(crate) fn is_holder(&self, peer: &PeerId, now: Instant) -> bool {
        let client = self.by_peer.get(peer);
        client.is_some_and(|client| client.is_reserved(now))
    }

    /// Returns the peers that hold a reservation.
    pub(crate) fn holders(&self, now: Instant) -> Vec<PeerId> {
        let holders = self.by_peer.iter();
        let holders = holders.filter(|(_, client)| client.is_reserved(now));
        holders.map(|(peer, _)| *peer).collect()
    }

    /// Returns the remote address of a connection of `peer`, or `None` if the connection is gone.
    pub(crate) fn address(&self, peer: &PeerId, id: ConnectionId) -> Option<&Multiaddr> {
        let mut connections = self.by_peer.get(peer)?.connections.iter();
        Some(&connections.find(|held| held.id == id)?.from)
    }

    /// Returns whether `peer` holds a reservation on this connection.
    pub(crate) fn is_reserved(&self, peer: &PeerId, id: ConnectionId, now: Instant) -> bool {
        let client = self.by_peer.get(peer);
        let mut connections = client.iter().flat_map(|client| &client.connections);
        connections.any(|held| held.id == id && held.is_reserved(now))
    }

    /// Gives `peer` a reservation on one of its connections, or renews it.
    ///
    /// # Errors
    /// The limit that refuses it. A peer can renew its reservation even if the relay is full. A
    /// peer that holds as many as it may loses the one on its oldest connection.
    pub(crate) fn reserve(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        now: Instant,
    ) -> Result<Reserved, Refusal> {
        let forwarded = &self.pools.limits.forwarded;
        let config = self.pools.settings.now();
        let term = Duration::from_secs(config.relay.reservation_seconds);
        let most = config.relay.reservations_per_peer.get();
        let client = self.by_peer.get_mut(&peer).ok_or(Refusal::Peer)?;
        let at = client.connections.iter().position(|held| held.id == id);
        let at = at.ok_or(Refusal::Peer)?;
        let renewed = client.connections[at].is_reserved(now);
        if client.place.is_none() {
            let holder = Holder {
                ip: forwarded.source(&client.connections[at].from),
                peer: Some(peer),
            };
            client.place = Some(self.pools.reservations.take(holder)?);
        }
        client.connections[at].reserved_until = Some(now + term);
        // The oldest connections are the likeliest to be dead: a peer that has lost its network
        // comes back on a new one.
        let reserved = |held: &&mut ClientConnection| held.is_reserved(now);
        let newest_first = client.connections.iter_mut().rev().filter(reserved);
        for oldest in newest_first.filter(|held| held.id != id).skip(most - 1) {
            oldest.reserved_until = None;
        }
        Ok(match renewed {
            true => Reserved::Renewed,
            false => Reserved::New,
        })
    }

    /// Removes a reservation of which the peer could not be told.
    pub(crate) fn unreserve(&mut self, peer: &PeerId, id: ConnectionId, now: Instant) {
        if let Some(client) = self.by_peer.get_mut(peer) {
            let held = client.connections.iter_mut().find(|held| held.id == id);
            if let Some(connection) = held {
                connection.reserved_until = None;
            }
            client.settle(now);
        }
    }

    /// Returns the connection over which `peer` is told of a circuit. A peer that has come back
    /// reserves on its newest connection, and accepts no circuits on another one.
    pub(crate) fn reserved(&self, peer: &PeerId, now: Instant) -> Option<ConnectionId> {
        let mut connections = self.by_peer.get(peer)?.connections.iter().rev();
        Some(connections.find(|held| held.is_reserved(now))?.id)
    }

    /// Returns the connection over which `peer` is told something, which has no reservation only if no
    /// connection has.
    pub(crate) fn newest(&self, peer: &PeerId, now: Instant) -> Option<ConnectionId> {
        let last = || Some(self.by_peer.get(peer)?.connections.last()?.id);
        self.reserved(peer, now).or_else(last)
    }

    /// Returns every connection that a peer holds a reservation on.
    pub(crate) fn all_reserved(&self, now: Instant) -> Vec<(PeerId, ConnectionId)> {
        let of_peer = |(peer, client): (&PeerId, &Client)| {
            let held = client
                .connections
                .iter()
                .filter(|held| held.is_reserved(now));
            held.map(|held| (*peer, held.id)).collect::<Vec<_>>()
        };
        self.by_peer.iter().flat_map(of_peer).collect()
    }

    /// Keeps the connections of `peer` until the returned [`Use`] is dropped.
    pub(crate) fn use_by(&mut self, peer: &PeerId, now: Instant) -> Option<Use> {
        let client = self.by_peer.get_mut(peer)?;
        client.last_used = now;
        Some(Use(client.used.clone()))
    }

    /// Removes reservations that have run out, and returns the connections that nobody needs.
    pub(crate) fn sweep(&mut self, now: Instant) -> Vec<ConnectionId> {
        let patience = self.pools.settings.now().connections.idle_seconds;
        let patience = Duration::from_secs(patience);
        let mut idle = Vec::new();
        for (peer, client) in &mut self.by_peer {
            client.settle(now);
            let is_used = Arc::strong_count(&client.used) > 1;
            if is_used || client.place.is_some() || self.pools.dial_backs.is_held_by(*peer) {
                client.last_used = now;
            }
            let unused = |held: &&ClientConnection| {
                now.saturating_duration_since(client.last_used.max(held.since)) >= patience
            };
            idle.extend(client.connections.iter().filter(unused).map(|held| held.id));
        }
        idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::{config::ServerConfig, metrics::Metrics, settings::Settings};

    const SECOND: Duration = Duration::from_secs(1);

    fn clients(reservations: usize) -> (Clients, Instant) {
        let mut config = ServerConfig::default();
        config.connections.idle_seconds = 30;
        config.relay.reservation_seconds = 100;
        config.relay.reservations = reservations.try_into().unwrap();
        config.relay.reservations_per_peer = 2.try_into().unwrap();
        let metrics = Metrics::new(&config);
        let pools = Pools::new(&Settings::fixed(config), &metrics);
        (Clients::new(&pools), Instant::now())
    }

    fn from(last: u8) -> Multiaddr {
        format!("/ip4/192.0.2.{last}/tcp/1").parse().unwrap()
    }

    fn id(n: usize) -> ConnectionId {
        ConnectionId::new_unchecked(n)
    }

    #[test]
    fn a_full_relay_still_renews_and_one_address_never_fills_it() {
        let (mut clients, now) = clients(2);
        let [a, b, c] = [(); 3].map(|()| PeerId::random());
        for (n, (peer, last)) in [(a, 1), (b, 1), (c, 2)].into_iter().enumerate() {
            clients.connected(peer, id(n), &from(last), now);
        }
        assert_eq!(clients.reserve(a, id(0), now), Ok(Reserved::New));
        assert_eq!(clients.reserve(b, id(1), now), Err(Refusal::Address));
        assert_eq!(clients.reserve(c, id(2), now), Ok(Reserved::New));
        assert_eq!(clients.reserve(a, id(0), now), Ok(Reserved::Renewed));
        clients.disconnected(&a, id(0), now);
        assert_eq!(clients.reserve(b, id(1), now), Ok(Reserved::New));
    }

    #[test]
    fn a_reservation_is_of_its_connection_and_ends_with_it_and_with_its_term() {
        let (mut clients, now) = clients(9);
        let peer = PeerId::random();
        for n in 0..3 {
            clients.connected(peer, id(n), &from(1), now);
        }
        assert_eq!(clients.reserved(&peer, now), None);
        for n in 0..2 {
            assert_eq!(clients.reserve(peer, id(n), now), Ok(Reserved::New));
        }
        assert_eq!(clients.reserved(&peer, now), Some(id(1)), "the newest");
        assert_eq!(clients.reserve(peer, id(2), now), Ok(Reserved::New));
        assert!(
            !clients.is_reserved(&peer, id(0), now),
            "the oldest has gone"
        );
        assert!(clients.is_reserved(&peer, id(1), now));
        assert_eq!(clients.reserve(peer, id(0), now), Ok(Reserved::New));
        assert!(
            !clients.is_reserved(&peer, id(1), now),
            "never the one that was asked for"
        );
        assert_eq!(clients.reserved(&peer, now), Some(id(2)));
        clients.disconnected(&peer, id(2), now);
        assert_eq!(clients.reserved(&peer, now), Some(id(0)));
        assert_eq!(
            clients.reserve(peer, id(0), now + 50 * SECOND),
            Ok(Reserved::Renewed)
        );
        assert_eq!(clients.reserved(&peer, now + 149 * SECOND), Some(id(0)));
        assert_eq!(clients.reserved(&peer, now + 150 * SECOND), None);
        assert_eq!(clients.pools.reservations.taken(), 1);
        clients.sweep(now + 150 * SECOND);
        assert_eq!(clients.pools.reservations.taken(), 0);
        clients.reserve(peer, id(1), now + 150 * SECOND).unwrap();
        clients.unreserve(&peer, id(1), now + 150 * SECOND);
        assert_eq!(clients.pools.reservations.taken(), 0);
        for n in [0, 1] {
            clients.disconnected(&peer, id(n), now);
        }
        assert!(clients.by_peer.is_empty());
    }

    #[test]
    fn who_is_here_for_nothing_goes() {
        let (mut clients, now) = clients(9);
        let [idle, held, used] = [(); 3].map(|()| PeerId::random());
        for (n, peer) in [idle, held, used].into_iter().enumerate() {
            clients.connected(peer, id(n), &from(1), now);
        }
        clients.reserve(held, id(1), now).unwrap();
        let using = clients.use_by(&used, now);
        let tested = PeerId::random();
        clients.connected(tested, id(4), &from(1), now);
        let holder = Holder {
            ip: None,
            peer: Some(tested),
        };
        let test = clients.pools.dial_backs.take(holder).unwrap();
        clients.connected(idle, id(3), &from(1), now + SECOND);
        assert!(clients.sweep(now + 29 * SECOND).is_empty());
        assert_eq!(clients.sweep(now + 30 * SECOND), [id(0)], "each by itself");
        let mut gone = clients.sweep(now + 31 * SECOND);
        gone.sort_by_key(ToString::to_string);
        assert_eq!(gone, [id(0), id(3)]);
        drop((using, test));
        assert!(
            !clients.sweep(now + 60 * SECOND).contains(&id(2)),
            "used until lately"
        );
        assert!(clients.sweep(now + 61 * SECOND).contains(&id(2)));
        // A reservation that has run out does not keep the connection any longer.
        assert!(!clients.sweep(now + 99 * SECOND).contains(&id(1)));
        assert!(!clients.sweep(now + 128 * SECOND).contains(&id(1)));
        assert!(clients.sweep(now + 129 * SECOND).contains(&id(1)));
    }
}
