//! Reservations, and who is connected to whom: what a peer that is admitted gets, and what it takes.

use std::time::Instant;

use libp2p::{PeerId, swarm::ConnectionId};

use super::Relay;
use crate::{
    core::{
        notice,
        quota::Refusal,
        reputation::{Offence, Treatment},
    },
    native::transports::windows::Wide,
    server::{
        bill::Party,
        circuits::{self, Carried, Held, Parties},
        clients::Reserved,
        hop::{self, Status},
        relay_rates::{Rate, Spent},
        usage::Amounts,
    },
};

impl Relay {
    /// Whether a peer may ask for a reservation. The rate does not apply to renewals, so requests of
    /// neighbours cannot cost a peer its reservation.
    pub(super) fn may_reserve(&mut self, peer: PeerId, connection: ConnectionId) -> bool {
        self.clients.is_reserved(&peer, connection, Instant::now())
            || self.allows(Rate::Reservations, peer, connection)
    }

    /// Gives a peer a reservation, or renews it. Returns the encoded answer.
    ///
    /// # Errors
    /// The limit that refuses it.
    pub(super) fn reserve(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
    ) -> Result<Vec<u8>, Refusal> {
        let reserved = self.clients.reserve(peer, connection, Instant::now());
        let reserved = reserved.inspect_err(|_| self.metrics.reservation("denied"))?;
        match reserved {
            Reserved::New => {
                self.metrics.reservation("accepted");
                self.watch.superseded(&peer, connection);
                if let Some(left) = self.access.left(&peer) {
                    self.tell(peer, connection, notice::PROTOCOL, notice::encode(&left));
                }
                let one = Amounts {
                    reservations: 1,
                    ..Amounts::default()
                };
                self.usage.add(&self.access.account(&peer), one);
            }
            Reserved::Renewed => self.metrics.reservation("renewed"),
        }
        self.count_reservations();
        Ok(hop::granted(&self.addresses(), &self.settings.now().relay))
    }

    pub(super) fn on_connect(&mut self, asked: circuits::Asked, to: PeerId) {
        match self.admit(&asked, to) {
            Ok((connection, held)) => {
                let requests = &mut self.swarm.behaviour_mut().requests;
                let open = requests.open(to, connection, asked.what.onward());
                let (proof, probe) = match asked.what {
                    Carried::Circuit => self.watch.ask(connection),
                    _ => Default::default(),
                };
                if probe {
                    self.swarm.behaviour_mut().ping.probe(to, connection);
                }
                self.circuits.opening(open, asked, held, proof);
            }
            Err(status) => {
                if asked.what == Carried::Circuit {
                    self.metrics.circuit(match status {
                        Status::Limit => "limit",
                        Status::Quota => "quota",
                        Status::NoReservation => "no_reservation",
                        _ => "denied",
                    });
                }
                asked.refuse(status);
            }
        }
    }

    /// Returns the connection over which the other peer is told, what the circuit or offer holds,
    /// and who pays for it.
    fn admit(
        &mut self,
        asked: &circuits::Asked,
        to: PeerId,
    ) -> Result<(ConnectionId, (Held, Parties, Treatment)), Status> {
        let (source, now) = (asked.source, Instant::now());
        let connection = self.clients.reserved(&to, now);
        let connection = connection.ok_or(Status::NoReservation)?;
        let [of_source, of_peer] = [(source, asked.connection), (to, connection)]
            .map(|(peer, connection)| self.treatment(peer, connection));
        if [of_source, of_peer].contains(&Treatment::Refused) {
            return Err(Status::Denied);
        }
        let rate = match asked.what {
            Carried::Circuit => Rate::Circuits,
            _ => Rate::Offers,
        };
        if !self.allows(rate, source, asked.connection) {
            return Err(Status::Limit);
        }
        let meters = self.access.meters_of(source, to);
        let [of_dialler, of_callee] = meters.map_err(|_| Status::Quota)?;
        let holder = self.holder(source, asked.connection);
        let place = self.circuits.place(asked.what, holder);
        let place = place.map_err(|_| Status::Limit)?;
        let uses = [source, to].map(|peer| self.clients.use_by(&peer, now));
        let wide = match asked.what {
            Carried::Circuit => [(source, asked.connection), (to, connection)]
                .map(|(peer, connection)| self.widen(&peer, connection)),
            _ => [None, None],
        };
        // It is slow if one of both is.
        let treatment = match of_source {
            Treatment::Slow => Treatment::Slow,
            _ => of_peer,
        };
        let party = |peer, meters, treatment: Treatment| Party {
            account: self.access.account(peer),
            meters,
            weight: treatment.weight(),
        };
        let parties = (
            party(&source, of_dialler, of_source),
            party(&to, of_callee, treatment),
        );
        Ok((connection, (Held(place, uses, wide), parties, treatment)))
    }

    /// How a peer is treated, by what is thought of it.
    pub(super) fn treatment(&self, peer: PeerId, connection: ConnectionId) -> Treatment {
        let ip = self.holder(peer, connection).ip;
        self.pools.reputation.treat(&peer, ip)
    }

    /// Widens the window of this connection for a circuit. It is narrowed again when the [`Wide`]
    /// is dropped.
    fn widen(&self, peer: &PeerId, connection: ConnectionId) -> Option<Wide> {
        let from = self.clients.address(peer, connection)?;
        self.pools.windows.widen(from)
    }

    /// Returns whether the rate limit allows the request of this peer. A refusal is counted and
    /// logged.
    pub(super) fn allows(&mut self, rate: Rate, peer: PeerId, connection: ConnectionId) -> bool {
        let ip = self.holder(peer, connection).ip;
        let now = Instant::now();
        let allowed = ip.map(|ip| self.rates.allow(rate, peer, ip, now));
        if allowed == Some(Ok(())) {
            return true;
        }
        self.pools.refusals.tell(rate.name(), "rate", ip);
        // Its address is not to blame, and it is not to blame for its address: others may be behind it.
        if allowed == Some(Err(Spent::OfPeer)) {
            self.pools.reputation.note(Some(peer), None, Offence::Flood);
        }
        false
    }
}
