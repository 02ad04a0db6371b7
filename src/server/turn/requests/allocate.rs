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
    core::quota,
    server::turn::{
        allocation::{Allocation, Passage, Relay, Reply},
        answers::{LIFETIME, MAX_LIFETIME, Refusal, Success, lifetime},
    },
};

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
        let success = |relays: &[Relay], missing| Success {
            lifetime: Some(lifetime),
            relayed: relays.iter().map(|relay| relay.address).collect(),
            mapped: Some(client.address),
            missing,
        };
        if let Some(held) = self.allocation(client) {
            if held.transaction == request.transaction_id() && held.username == username {
                return Ok(success(&held.relays, None));
            }
            return Err(ErrorCode::ALLOCATION_MISMATCH.into());
        }
        let transport = request.attribute::<RequestedTransport>();
        let transport = transport.map_err(|_| ErrorCode::BAD_REQUEST)?;
        if transport.protocol() != RequestedTransport::UDP {
            return Err(ErrorCode::UNSUPPORTED_TRANSPORT_PROTOCOL.into());
        }
        if request.has_attribute(EvenPort::TYPE) || request.has_attribute(ReservationToken::TYPE) {
            return Err(ErrorCode::INSUFFICIENT_CAPACITY.into());
        }
        let requested = request.attribute::<RequestedAddressFamily>();
        let additional = request.attribute::<AdditionalAddressFamily>();
        let (family, additional) = match (requested, additional) {
            (Ok(_), Ok(_)) => return Err(ErrorCode::BAD_REQUEST.into()),
            (Ok(requested), Err(_)) => (requested.family(), None),
            (Err(_), Ok(additional)) if additional.family() == AddressFamily::IPV4 => {
                return Err(ErrorCode::BAD_REQUEST.into());
            }
            (Err(_), Ok(additional)) => (AddressFamily::IPV4, Some(additional.family())),
            (Err(_), Err(_)) => (AddressFamily::IPV4, None),
        };
        let holder = self.access.turn_meter(username);
        let holder = holder.map_err(|_| ErrorCode::FORBIDDEN)?;
        let passage = Passage {
            peers: Arc::default(),
            reply: reply.clone(),
            reach: self.reach.clone(),
            meter: self.meters.of(client.address.ip(), holder),
        };
        let mut relays = Vec::new();
        let mut missing = None;
        for family in [Some(family), additional].into_iter().flatten() {
            match self.open(client, family, username, relays.len(), &passage) {
                Ok(relay) => relays.push(relay),
                Err(code) if additional.is_some() && missing.is_none() => {
                    missing = Some((family, code));
                }
                Err(code) => return Err(code.into()),
            }
        }
        let success = success(&relays, missing);
        let expires = now + Duration::from_secs(lifetime.into());
        let transaction = request.transaction_id();
        let username = username.to_owned();
        let peers = passage.peers;
        let held = Allocation::new(username, transaction, relays, peers, (now, expires));
        self.change(|all| {
            all.insert(client, Arc::new(held));
        });
        Ok(success)
    }

    /// Opens a relayed address for a client. The same allocation already has `opened` others.
    fn open(
        &self,
        client: Client,
        family: AddressFamily,
        username: &str,
        opened: usize,
        passage: &Passage,
    ) -> Result<Relay, u16> {
        let v4 = family == AddressFamily::IPV4;
        let address = self.addresses.of(client.local.ip(), v4);
        let address = address.ok_or(ErrorCode::ADDRESS_FAMILY_NOT_SUPPORTED)?;
        let of_user = self.relays_of(username) + opened;
        if of_user >= self.most_per_user {
            self.refuse("allocation", "user", client);
            return Err(ErrorCode::ALLOCATION_QUOTA_REACHED);
        }
        let place = self.places.take(client.address.ip());
        let place = place.map_err(|refusal| match refusal {
            quota::Refusal::Full => ErrorCode::INSUFFICIENT_CAPACITY,
            _ => ErrorCode::ALLOCATION_QUOTA_REACHED,
        })?;
        Relay::open(address, &self.ports, place, passage.clone()).map_err(|error| {
            tracing::debug!(%error, "no relayed address");
            self.refuse("allocation", "port", client);
            ErrorCode::INSUFFICIENT_CAPACITY
        })
    }

    /// Returns how many relayed addresses a user has.
    fn relays_of(&self, username: &str) -> usize {
        let all = self.allocations();
        let of_user = all.values().filter(|held| held.username == username);
        of_user.map(|held| held.relays.len()).sum()
    }
}
