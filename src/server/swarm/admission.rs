//! Who gets what they ask the relay for.

use std::time::Instant;

use super::Relay;
use crate::{
    core::{
        access::{Admitted, Denial},
        directory::Request::Find,
        protobuf::behind_length,
        reputation::Treatment,
    },
    server::{
        access::{Grant, Judgement, Verdict, What, messages},
        circuits::{Asked, Carried, Wanted},
        hop::{Request, Status},
        relay_rates::Rate,
        turn::TurnOffer,
    },
};

impl Relay {
    /// Gives peers that are admitted credentials for the TURN server from now on.
    pub(crate) fn offer_turn(&mut self, offer: Option<TurnOffer>) {
        self.turn = offer;
    }

    /// A peer asks for something. It gets an answer when it is known whether the peer is admitted.
    pub(super) fn on_asked(&mut self, asked: Asked, wanted: Wanted) {
        let (peer, connection) = (asked.source, asked.connection);
        if self.treatment(peer, connection) == Treatment::Refused {
            let ip = self.holder(peer, connection).ip;
            self.pools.refusals.tell("access", "reputation", ip);
            return asked.deny(Denial::Access);
        }
        let wanted = match wanted {
            Wanted::Profile => return self.on_curious(asked),
            // Who looks a peer up is about to dial it. Everything else takes a reservation.
            Wanted::Directory(request)
                if !self.access.is_for_dialers() || !matches!(request, Find(_)) =>
            {
                return self.on_directory(asked, request);
            }
            wanted => wanted,
        };
        let (what, turn, token) = match &wanted {
            // It was answered above.
            Wanted::Profile => (None, false, None),
            Wanted::Hop(Request::Reserve) if asked.what == Carried::Circuit => {
                (Some(What::Reservation), false, None)
            }
            Wanted::Hop(Request::Reserve) => return asked.refuse(Status::Malformed),
            Wanted::Hop(Request::Connect(_)) => {
                let what = match asked.what {
                    Carried::Offer => What::Offer,
                    _ => What::Circuit,
                };
                let what = Some(what).filter(|_| self.access.is_for_dialers());
                (what, false, None)
            }
            Wanted::Directory(_) => (Some(What::Circuit), false, None),
            Wanted::Access(request) => {
                let what = match request.turn && !request.reserve {
                    true => What::Turn,
                    false => What::Reservation,
                };
                (Some(what), request.turn, request.token.as_deref())
            }
        };
        // A token is checked, and the hook is asked, no more often than reservations are allowed. A
        // renewal with the same token is free, and one with another token is not.
        let is_renewable = !matches!(
            wanted,
            Wanted::Hop(Request::Connect(_)) | Wanted::Directory(_)
        );
        let may = match self.access.is_verified(&peer, token) {
            true => !is_renewable || self.may_reserve(peer, connection),
            false => self.allows(Rate::Reservations, peer, connection),
        };
        if !may {
            self.metrics.reservation("denied");
            return asked.deny(Denial::Limit);
        }
        let Some(what) = what else {
            return self.on_judged(asked, wanted, Ok(Grant::default()));
        };
        let from = self.holder(peer, connection).ip;
        match self.access.judge(peer, from, token, (what, turn)) {
            Judgement::Now(verdict) => self.on_judged(asked, wanted, verdict),
            Judgement::Later(verdict) => self.circuits.await_verdict(asked, wanted, verdict),
        }
    }

    /// A peer asks what the server says of itself. It gets credentials by the protocol of access only.
    fn on_curious(&mut self, asked: Asked) {
        let allowed = self.allows(Rate::Offers, asked.source, asked.connection);
        let profile = self.profiles.as_ref().filter(|_| allowed);
        let json = profile.and_then(|profiles| serde_json::to_vec(&profiles.public()).ok());
        match json {
            Some(json) => self.circuits.grant(asked, behind_length(&json)),
            None => asked.refuse(Status::Limit),
        }
    }

    /// There is a verdict on what a peer has asked for.
    pub(super) fn on_judged(&mut self, asked: Asked, wanted: Wanted, verdict: Verdict) {
        let (peer, connection) = (asked.source, asked.connection);
        if !self.clients.is_connected(&peer) {
            // It has left before the hook has answered.
            return self.access.forget(&peer);
        }
        let grant = match verdict {
            Ok(grant) => grant,
            Err(denial) => {
                match wanted {
                    Wanted::Hop(Request::Connect(_)) if asked.what == Carried::Circuit => {
                        self.metrics.circuit("denied");
                    }
                    Wanted::Hop(Request::Connect(_)) | Wanted::Profile | Wanted::Directory(_) => {}
                    Wanted::Hop(Request::Reserve) | Wanted::Access(_) => {
                        self.metrics.reservation("denied");
                    }
                }
                return asked.deny(denial);
            }
        };
        match wanted {
            // It needs no verdict.
            Wanted::Profile => {}
            Wanted::Hop(Request::Connect(to)) => self.on_connect(asked, to),
            Wanted::Directory(request) => self.on_directory(asked, request),
            Wanted::Hop(Request::Reserve) => match self.reserve(peer, connection) {
                Ok(granted) => self.circuits.grant(asked, behind_length(&granted)),
                Err(_) => asked.refuse(Status::Limit),
            },
            Wanted::Access(request) => {
                let reserved = request.reserve.then(|| self.reserve(peer, connection));
                let Ok(reservation) = reserved.transpose() else {
                    return asked.deny(Denial::Limit);
                };
                let lasts = grant.lasts();
                let wants = request.turn && grant.has_turn();
                let turn = self.turn.as_ref().filter(|_| wants);
                let turn = turn.map(|offer| {
                    let id = self.access.turn_id(&peer, &grant);
                    offer.issue(&id, lasts)
                });
                let admitted = Admitted {
                    lasts,
                    reservation,
                    turn,
                };
                self.circuits.grant(asked, messages::answer(&Ok(admitted)));
            }
        }
    }

    /// Closes the connections of peers that need admission and are no longer admitted.
    pub(super) fn send_barred_away(&mut self) {
        if self.access.is_open() {
            return;
        }
        let mut peers = self.clients.holders(Instant::now());
        if self.access.is_for_dialers() {
            peers.extend(self.access.peers());
        }
        for peer in peers {
            if !self.access.still_admits(&peer) {
                self.pools.refusals.tell("access", "no_longer", None);
                // An error means that it has disconnected by itself.
                let _ = self.swarm.disconnect_peer_id(peer);
            }
        }
    }
}
