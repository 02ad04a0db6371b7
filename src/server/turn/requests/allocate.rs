//! Requests for an allocation (RFC 8656 section 7).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use stun_types::{
    AddressFamily,
    attribute::{AttributeStaticType as _, ErrorCode},
    message::Message,
};
use turn_client_proto::types::attribute::{
    AdditionalAddressFamily, EvenPort, RequestedAddressFamily, RequestedTransport, ReservationToken,
};

use super::{Client, Requests};
use crate::{
    core::{access::Denial, quota, reputation::Treatment},
    server::{
        access,
        pool::Place,
        turn::{
            allocation::{Allocation, Passage, Relay, Reply},
            answers::{LIFETIME, MAX_LIFETIME, Refusal, Success, lifetime},
            ports::Port,
        },
    },
};

/// The port that a client wants (RFC 8656 section 7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum WantedPort {
    Any,
    Even,
    /// An even port, and the next one for a second allocation.
    Pair,
    /// The port that is kept for this token.
    Kept(u64),
}

impl WantedPort {
    fn of(request: &Message<'_>) -> Result<Self, u16> {
        let has = (
            request.has_attribute(EvenPort::TYPE),
            request.has_attribute(ReservationToken::TYPE),
        );
        match (
            has,
            request.attribute::<EvenPort>(),
            request.attribute::<ReservationToken>(),
        ) {
            ((false, false), ..) => Ok(Self::Any),
            ((true, false), Ok(even), _) if even.requested() => Ok(Self::Pair),
            ((true, false), Ok(_), _) => Ok(Self::Even),
            ((false, true), _, Ok(token)) => Ok(Self::Kept(token.token())),
            _ => Err(ErrorCode::BAD_REQUEST),
        }
    }
}

impl Requests {
    /// Handles a request for an allocation (RFC 8656 section 7.2).
    pub(super) fn allocate(
        &self,
        client: Client,
        reply: &Reply,
        request: &Message<'_>,
        username: &str,
        now: Instant,
    ) -> Result<Success, Refusal> {
        let lifetime = lifetime(request).clamp(LIFETIME, MAX_LIFETIME);
        let success = |relays: &[Relay], missing, token| Success {
            lifetime: Some(lifetime),
            relayed: relays.iter().map(|relay| relay.address).collect(),
            mapped: Some(client.address),
            missing,
            token,
        };
        if let Some(held) = self.allocation(client) {
            if held.transaction == request.transaction_id() && held.username == username {
                return Ok(success(&held.relays, None, held.token));
            }
            return Err(ErrorCode::ALLOCATION_MISMATCH.into());
        }
        let transport = request.attribute::<RequestedTransport>();
        let transport = transport.map_err(|_| ErrorCode::BAD_REQUEST)?;
        if transport.protocol() != RequestedTransport::UDP {
            return Err(ErrorCode::UNSUPPORTED_TRANSPORT_PROTOCOL.into());
        }
        let port = WantedPort::of(request)?;
        let requested = request.attribute::<RequestedAddressFamily>();
        let additional = request.attribute::<AdditionalAddressFamily>();
        let (family, additional) = match (requested, additional) {
            (Err(_), Err(_)) => (AddressFamily::IPV4, None),
            // The port that is kept has a family, and only one port can have a next one.
            _ if matches!(port, WantedPort::Kept(_)) => return Err(ErrorCode::BAD_REQUEST.into()),
            (_, Ok(_)) if port == WantedPort::Pair => return Err(ErrorCode::BAD_REQUEST.into()),
            (Ok(_), Ok(_)) => return Err(ErrorCode::BAD_REQUEST.into()),
            (Ok(requested), Err(_)) => (requested.family(), None),
            (Err(_), Ok(additional)) if additional.family() == AddressFamily::IPV4 => {
                return Err(ErrorCode::BAD_REQUEST.into());
            }
            (Err(_), Ok(additional)) => (AddressFamily::IPV4, Some(additional.family())),
        };
        let grant = self.access.turn_grant(username);
        let (grant, mut holders) = grant.map_err(|denial| match denial {
            Denial::Quota(_) => ErrorCode::ALLOCATION_QUOTA_REACHED,
            _ => ErrorCode::FORBIDDEN,
        })?;
        let account = self.access.turn_account(username);
        // Other users of TURN are those whom the operator has given credentials.
        let treatment = account.peer.parse().ok().map(|peer| {
            let ip = client.address.ip().to_canonical();
            self.reputation.treat(&peer, Some(ip))
        });
        let treatment = treatment.unwrap_or_default();
        let now_set = self.settings.now();
        holders.extend(access::Meter::of_rate(now_set.traffic.per_allocation));
        match treatment {
            Treatment::Refused => return Err(ErrorCode::FORBIDDEN.into()),
            Treatment::Slow => {
                holders.extend(access::Meter::of_rate(now_set.reputation.slow_rate));
            }
            Treatment::Usual | Treatment::Preferred => {}
        }
        let ip = client.address.ip();
        let meter = self.meters.of(ip, account, holders, treatment.weight());
        let passage = Passage {
            peers: Arc::default(),
            reply: reply.clone(),
            reach: self.reach.clone(),
            meter: meter.clone(),
        };
        let mut relays = Vec::new();
        let mut missing = None;
        let mut next = None;
        for family in [Some(family), additional].into_iter().flatten() {
            let opened = self.open(client, family, username, relays.len(), port, now);
            let opened = opened.and_then(|(port, second)| {
                next = second;
                let relay = Relay::on(port, passage.clone());
                relay.map_err(|_| ErrorCode::INSUFFICIENT_CAPACITY)
            });
            match opened {
                Ok(relay) => relays.push(relay),
                Err(code) if additional.is_some() && missing.is_none() => {
                    missing = Some((family, code));
                }
                Err(code) => return Err(code.into()),
            }
        }
        let token = next.map(|port| self.kept().keep(port, username, now));
        let success = success(&relays, missing, token);
        meter.begin(now);
        let expires = now + Duration::from_secs(lifetime.into());
        let transaction = (request.transaction_id(), token);
        let username = username.to_owned();
        let peers = passage.peers;
        let until = (now, expires, grant.ends);
        let held = Allocation::new(username, transaction, relays, peers, until);
        self.change(|all| {
            all.insert(client, Arc::new(held));
        });
        Ok(success)
    }

    /// Opens a port for a client, and the next one if the client wants it. The same allocation
    /// already has `opened` others.
    fn open(
        &self,
        client: Client,
        family: AddressFamily,
        username: &str,
        opened: usize,
        port: WantedPort,
        now: Instant,
    ) -> Result<(Port, Option<Port>), u16> {
        if let WantedPort::Kept(token) = port {
            let port = self.kept().take(token, username, now);
            return Ok((port.ok_or(ErrorCode::INSUFFICIENT_CAPACITY)?, None));
        }
        let v4 = family == AddressFamily::IPV4;
        let address = self.addresses.of(client.local.ip(), v4);
        let address = address.ok_or(ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED)?;
        let place = self.place(client, username, opened)?;
        let bound = match port {
            WantedPort::Pair => {
                let places = [place, self.place(client, username, opened + 1)?];
                let pair = Port::bind_pair(address, &self.ports, places);
                pair.map(|[port, next]| (port, Some(next)))
            }
            _ => {
                let even = port == WantedPort::Even;
                let port = Port::bind(address, &self.ports, even, place);
                port.map(|port| (port, None))
            }
        };
        bound.map_err(|error| {
            tracing::debug!(%error, "no relayed address");
            self.refuse("allocation", "port", client);
            ErrorCode::INSUFFICIENT_CAPACITY
        })
    }

    /// Takes a place for a relayed address of a user, who is about to have `opened` more than now.
    fn place(&self, client: Client, username: &str, opened: usize) -> Result<Place, u16> {
        let of_user = self.relays_of(username) + self.kept().of(username) + opened;
        if of_user >= self.settings.now().turn.allocations_per_user.get() {
            self.refuse("allocation", "user", client);
            return Err(ErrorCode::ALLOCATION_QUOTA_REACHED);
        }
        let place = self.places.take(client.address.ip());
        place.map_err(|refusal| match refusal {
            quota::Refusal::Full => ErrorCode::INSUFFICIENT_CAPACITY,
            _ => ErrorCode::ALLOCATION_QUOTA_REACHED,
        })
    }

    /// Returns how many relayed addresses a user has.
    fn relays_of(&self, username: &str) -> usize {
        let all = self.allocations();
        let of_user = all.values().filter(|held| held.username == username);
        of_user.map(|held| held.relays.len()).sum()
    }
}
