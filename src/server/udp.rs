//! STUN and TURN over UDP. They may share a socket with QUIC and `/webrtc-direct`, and with each other.

use std::{fmt, net::SocketAddr, sync::Arc, time::Instant};

use super::{stun::StunServer, turn::TurnServer};
use crate::native::{
    ice::turn::frame,
    udp::{Receiver, Sockets},
};

/// What handles STUN and TURN at one socket.
pub(crate) struct Service {
    /// The STUN server, and the number of the socket there.
    stun: Option<(usize, Arc<StunServer>)>,
    turn: Option<(Sockets, TurnServer)>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service")
            .field("stun", &self.stun.is_some())
            .field("turn", &self.turn.is_some())
            .finish()
    }
}

impl Receiver for Service {
    fn receive(&self, now: Instant, source: SocketAddr, destination: SocketAddr, datagram: &[u8]) {
        let from_to = (source, destination);
        match (&self.stun, &self.turn) {
            (_, Some((sockets, turn))) if self.stun.is_none() || !frame::is_binding(datagram) => {
                turn.receive(sockets, from_to, datagram);
            }
            (Some((at, stun)), _) => stun.receive(*at, now, from_to, datagram),
            (None, _) => {}
        }
    }

    fn has_channels(&self, source: SocketAddr, destination: SocketAddr) -> bool {
        let turn = self.turn.as_ref();
        turn.is_some_and(|(_, turn)| turn.has_allocation(source, destination))
    }
}

/// Serves STUN and TURN at their sockets until the services are dropped.
pub(crate) fn serve_udp(
    (stun_sockets, stun): (Vec<Sockets>, Arc<StunServer>),
    (turn_sockets, turn): (Vec<Sockets>, Option<TurnServer>),
) -> Vec<Arc<Service>> {
    let turn_at = |sockets: &Sockets| {
        let shares = |other: &&Sockets| other.bound() == sockets.bound();
        let shared = turn_sockets.iter().find(shares)?;
        Some((shared.clone(), turn.clone()?))
    };
    let both = stun_sockets.iter().enumerate().map(|(at, sockets)| {
        let service = Service {
            stun: Some((at, stun.clone())),
            turn: turn_at(sockets),
        };
        (sockets, service)
    });
    let is_apart = |sockets: &&Sockets| {
        stun_sockets
            .iter()
            .all(|other| other.bound() != sockets.bound())
    };
    let turn_only = turn_sockets.iter().filter(is_apart).map(|sockets| {
        let service = Service {
            stun: None,
            turn: turn_at(sockets),
        };
        (sockets, service)
    });
    let serve = |(sockets, service): (&Sockets, Service)| {
        let service = Arc::new(service);
        let receiver: Arc<dyn Receiver> = service.clone();
        sockets.route_service(&receiver);
        service
    };
    both.chain(turn_only).map(serve).collect()
}
