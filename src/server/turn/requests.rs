//! What clients ask, and what comes of it (RFC 8656).

mod allocate;

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    ops::RangeInclusive,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use stun_types::{
    AddressFamily,
    attribute::{
        Attribute as _, AttributeStaticType as _, ErrorCode, MessageIntegrity, Nonce, Realm,
        UnknownAttributes, Username,
    },
    message::{
        BINDING, LongTermKeyCredentials, Message, MessageClass, MessageIntegrityCredentials,
        MessageWrite as _, MessageWriteExt as _, MessageWriteVec,
    },
    prelude::AttributeFromRaw as _,
};
use turn_client_proto::types::{
    attribute::{ChannelNumber, Data, RequestedAddressFamily, XorPeerAddress},
    message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, REFRESH},
};

use super::{
    Setup,
    addresses::RelayAddresses,
    allocation::{Allocation, Reply, Route},
    answers::{
        LIFETIME, MAX_LIFETIME, Refusal, Success, binding, error_code, lifetime, sign, succeed,
        understood,
    },
    credentials::Authority,
    meter::Meters,
    ports::Kept,
    reach::{Bar, Reach},
};
use crate::{
    core::quota,
    server::{
        access::Access,
        metrics::Metrics,
        pool::{Pool, Refusals},
        rate_limiter::{RateLimiter, Refill},
        reputation::Reputation,
        settings::Settings,
    },
};

/// Requests per second of all clients together, over UDP and over TCP, at most.
const TOTAL_REQUESTS: u32 = 20_000;

/// A client is known by its 5-tuple (RFC 8656 section 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Client {
    pub(super) over_tcp: bool,
    /// The address of the server that it asked at.
    pub(super) local: SocketAddr,
    pub(super) address: SocketAddr,
}

impl Client {
    /// The client that sends datagrams from `address`, and has asked at `local`.
    pub(super) fn over_udp(address: SocketAddr, local: SocketAddr) -> Self {
        Self {
            over_tcp: false,
            local,
            address,
        }
    }
}

/// The state of the server.
pub(super) struct Requests {
    realm: String,
    authority: Arc<Authority>,
    access: Access,
    addresses: RelayAddresses,
    ports: RangeInclusive<u16>,
    /// Relayed addresses.
    places: Pool,
    settings: Settings,
    reach: Arc<Reach>,
    allocations: Mutex<HashMap<Client, Arc<Allocation>>>,
    kept: Mutex<Kept>,
    /// Sources over UDP are forged easily: they spend nothing of those over TCP.
    udp: Mutex<RateLimiter>,
    tcp: Mutex<RateLimiter>,
    meters: Meters,
    reputation: Reputation,
    refusals: Refusals,
    metrics: Metrics,
}

impl Requests {
    pub(super) fn new(setup: Setup) -> Self {
        let Setup {
            authority,
            addresses,
            access,
            own,
            pools,
            usage,
            metrics,
        } = setup;
        let limiter = || {
            let settings = pools.settings.clone();
            let rates = move || {
                let each = settings.now().turn.requests_per_source;
                Refill::new(each.get(), TOTAL_REQUESTS)
            };
            Mutex::new(RateLimiter::following(rates, Instant::now()))
        };
        let (udp, tcp) = (limiter(), limiter());
        let config = &pools.settings.now().turn;
        let meters = Meters::new(&pools, metrics.clone(), usage);
        Self {
            realm: config.realm.clone(),
            authority,
            access,
            addresses,
            ports: config.first_port..=config.last_port,
            places: pools.allocations,
            settings: pools.settings,
            reach: Arc::new(Reach::new(config.allow_private_peers, own)),
            allocations: Mutex::default(),
            kept: Mutex::default(),
            udp,
            tcp,
            meters,
            reputation: pools.reputation,
            refusals: pools.refusals,
            metrics,
        }
    }

    fn allocations(&self) -> MutexGuard<'_, HashMap<Client, Arc<Allocation>>> {
        self.allocations
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn allocation(&self, client: Client) -> Option<Arc<Allocation>> {
        self.allocations().get(&client).cloned()
    }

    pub(super) fn has_allocation(&self, client: Client) -> bool {
        self.allocations().contains_key(&client)
    }

    /// Ends what a client holds.
    pub(super) fn close(&self, client: Client) {
        self.change(|all| {
            all.remove(&client);
        });
    }

    /// Ends what has expired.
    pub(super) fn expire(&self, now: Instant) {
        self.kept().expire(now);
        let time = SystemTime::now();
        self.change(|all| {
            all.retain(|_, held| {
                *held.expires() > now
                    && held.ends.is_none_or(|ends| ends > time)
                    && !self.access.bars_turn(&held.username)
            });
        });
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<Client, Arc<Allocation>>)) {
        let mut all = self.allocations();
        change(&mut all);
        self.metrics.turn_allocations(all.len());
    }

    /// Counts that `what` was refused to a client.
    pub(super) fn refuse(&self, what: &'static str, reason: &'static str, client: Client) {
        self.refusals.tell(what, reason, Some(client.address.ip()));
    }

    /// Handles one frame of a client. Nothing is decoded before its sender may send it: data needs
    /// an allocation, and anything else is limited for each source.
    pub(super) fn receive(&self, client: Client, reply: &Reply, frame: &[u8]) {
        let now = Instant::now();
        let held = self.allocation(client);
        match (frame, held) {
            // RFC 8656 section 12.4, and an indication of the Send method (RFC 8489 section 5).
            ([0x40..=0x7f, ..] | [0x00, 0x16, ..], None) => self.metrics.turn("ignored"),
            ([first @ 0x40..=0x7f, second, high, low, data @ ..], Some(allocation)) => {
                let number = u16::from_be_bytes([*first, *second]);
                let len = usize::from(u16::from_be_bytes([*high, *low]));
                if let Some(data) = data.get(..len) {
                    channel_data(&allocation, number, data, now);
                }
            }
            ([0x00, 0x16, ..], Some(allocation)) => {
                if let Ok(message) = Message::from_bytes(frame) {
                    send_indication(&allocation, &message, now);
                }
            }
            (_, held) => match self.may_ask(client, held, now) {
                Ok(()) => self.handle(client, reply, frame, now),
                Err(refusal) => {
                    self.metrics.turn("limited");
                    self.refuse("turn_request", refusal.name(), client);
                }
            },
        }
    }

    fn may_ask(
        &self,
        client: Client,
        held: Option<Arc<Allocation>>,
        now: Instant,
    ) -> Result<(), quota::Refusal> {
        if held.is_some_and(|allocation| allocation.may_ask(now)) {
            return Ok(());
        }
        let limiter = match client.over_tcp {
            true => &self.tcp,
            false => &self.udp,
        };
        let mut limiter = limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.take(client.address.ip(), 1.0, now)
    }

    fn handle(&self, client: Client, reply: &Reply, frame: &[u8], now: Instant) {
        let (answer, outcome) = match Message::from_bytes(frame) {
            Ok(message) if !message.has_class(MessageClass::Request) => (None, "ignored"),
            Ok(message) if message.has_method(BINDING) => binding(frame, client.address),
            Ok(message) => self.request(client, reply, &message, now),
            Err(_) => (None, "ignored"),
        };
        self.metrics.turn(outcome);
        if let Some(answer) = answer {
            reply.answer(&answer);
        }
    }

    /// The answer, and what became of the request.
    fn request(
        &self,
        client: Client,
        reply: &Reply,
        request: &Message<'_>,
        now: Instant,
    ) -> (Option<Vec<u8>>, &'static str) {
        let known = [ALLOCATE, REFRESH, CREATE_PERMISSION, CHANNEL_BIND];
        if !known.contains(&request.method()) {
            return (
                self.error(request, ErrorCode::BAD_REQUEST, client, false),
                "refused",
            );
        }
        let (username, key) = match self.authenticate(client, request, SystemTime::now()) {
            Ok(user) => user,
            Err(code) => {
                let challenged = matches!(code, ErrorCode::UNAUTHORIZED | ErrorCode::STALE_NONCE);
                let answer = self.error(request, code, client, challenged);
                return (answer, "unauthorized");
            }
        };
        let result = understood(request).and_then(|()| match request.method() {
            ALLOCATE => self.allocate(client, reply, request, &username, now),
            _ => {
                // RFC 8656 section 5: 437 without an allocation, 441 for another user's.
                let allocation = self
                    .allocation(client)
                    .ok_or(ErrorCode::ALLOCATION_MISMATCH)?;
                if allocation.username != username {
                    return Err(ErrorCode::WRONG_CREDENTIALS.into());
                }
                match request.method() {
                    REFRESH => self.refresh(client, &allocation, request, now),
                    CREATE_PERMISSION => self.permit(client, &allocation, request, now),
                    _ => self.bind_channel(client, &allocation, request, now),
                }
            }
        });
        let outcome = if result.is_ok() { "granted" } else { "refused" };
        let answer = match result {
            Ok(success) => succeed(request, &success, &key),
            Err(Refusal::Code(code)) => {
                let mut answer = Message::builder_error(request, MessageWriteVec::new());
                error_code(code)
                    .and_then(|code| answer.add_attribute(&code).ok())
                    .and_then(|()| sign(answer, &key))
            }
            Err(Refusal::Unknown(unknown)) => {
                let mut answer = Message::builder_error(request, MessageWriteVec::new());
                error_code(ErrorCode::UNKNOWN_ATTRIBUTE)
                    .and_then(|code| answer.add_attribute(&code).ok())
                    .and_then(|()| answer.add_attribute(&UnknownAttributes::new(&unknown)).ok())
                    .and_then(|()| sign(answer, &key))
            }
        };
        (answer, outcome)
    }

    /// RFC 8489 section 9.2.4, without what this server does not offer.
    fn authenticate(
        &self,
        client: Client,
        request: &Message<'_>,
        time: SystemTime,
    ) -> Result<(String, MessageIntegrityCredentials), u16> {
        if !request.has_attribute(MessageIntegrity::TYPE) {
            return Err(ErrorCode::UNAUTHORIZED);
        }
        let missing = |_| ErrorCode::BAD_REQUEST;
        let username = request.attribute::<Username>().map_err(missing)?;
        let realm = request.attribute::<Realm>().map_err(missing)?;
        let nonce = request.attribute::<Nonce>().map_err(missing)?;
        let username = username.username();
        if !self.authority.is_fresh(nonce.nonce(), client.address, time) {
            return Err(ErrorCode::STALE_NONCE);
        }
        // An allocation outlives the credentials that it was made with.
        let holds = self
            .allocation(client)
            .is_some_and(|held| held.username == username);
        let password = match holds {
            true => Some(self.authority.password(username)),
            false => self.authority.check(username, time),
        };
        let password = password.ok_or(ErrorCode::UNAUTHORIZED)?;
        if realm.realm() != self.realm {
            return Err(ErrorCode::UNAUTHORIZED);
        }
        let user = username.to_owned();
        let key = LongTermKeyCredentials::new(user.clone(), password, self.realm.clone()).into();
        match request.validate_integrity(&key) {
            Ok(_) if self.access.bars_turn(&user) => Err(ErrorCode::UNAUTHORIZED),
            Ok(_) => Ok((user, key)),
            Err(_) => Err(ErrorCode::UNAUTHORIZED),
        }
    }

    /// An answer without a signature: nobody has proved to know a key.
    fn error(
        &self,
        request: &Message<'_>,
        code: u16,
        client: Client,
        challenge: bool,
    ) -> Option<Vec<u8>> {
        let mut answer = Message::builder_error(request, MessageWriteVec::new());
        answer.add_attribute(&error_code(code)?).ok()?;
        if challenge {
            let nonce = self.authority.nonce(client.address, SystemTime::now());
            answer.add_attribute(&Realm::new(&self.realm).ok()?).ok()?;
            answer.add_attribute(&Nonce::new(&nonce).ok()?).ok()?;
        }
        Some(answer.finish())
    }

    /// RFC 8656 section 8.2.
    fn refresh(
        &self,
        client: Client,
        allocation: &Allocation,
        request: &Message<'_>,
        now: Instant,
    ) -> Result<Success, Refusal> {
        if let Ok(family) = request.attribute::<RequestedAddressFamily>() {
            let v4 = family.family() == AddressFamily::IPV4;
            if !allocation
                .relays
                .iter()
                .any(|relay| relay.address.is_ipv4() == v4)
            {
                return Err(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH.into());
            }
        }
        let lifetime = match lifetime(request) {
            0 => {
                self.close(client);
                0
            }
            lifetime => lifetime.clamp(LIFETIME, MAX_LIFETIME),
        };
        *allocation.expires() = now + Duration::from_secs(lifetime.into());
        Ok(Success {
            lifetime: Some(lifetime),
            ..Success::default()
        })
    }

    /// RFC 8656 section 10.2.
    fn permit(
        &self,
        client: Client,
        allocation: &Allocation,
        request: &Message<'_>,
        now: Instant,
    ) -> Result<Success, Refusal> {
        let mut ips = Vec::new();
        for (_, attribute) in request.iter_attributes() {
            if attribute.get_type() == XorPeerAddress::TYPE {
                let peer = XorPeerAddress::from_raw(attribute);
                let peer = peer.map_err(|_| ErrorCode::BAD_REQUEST)?;
                let peer = peer.addr(request.transaction_id()).ip();
                // Of any port: relayed addresses of other clients may be at the server's own.
                let bar = self.reach.bars_ip(peer);
                self.check_peer(client, allocation, peer, bar)?;
                ips.push(peer);
            }
        }
        if ips.is_empty() {
            return Err(ErrorCode::BAD_REQUEST.into());
        }
        allocation.peers.permit(&ips, now)?;
        Ok(Success::default())
    }

    /// RFC 8656 section 12.2.
    fn bind_channel(
        &self,
        client: Client,
        allocation: &Allocation,
        request: &Message<'_>,
        now: Instant,
    ) -> Result<Success, Refusal> {
        let missing = |_| ErrorCode::BAD_REQUEST;
        let number = request
            .attribute::<ChannelNumber>()
            .map_err(missing)?
            .channel();
        let peer = request.attribute::<XorPeerAddress>().map_err(missing)?;
        let peer = peer.addr(request.transaction_id());
        if !(0x4000..=0x7fff).contains(&number) {
            return Err(ErrorCode::BAD_REQUEST.into());
        }
        let bar = self.reach.bars(peer);
        self.check_peer(client, allocation, peer.ip(), bar)?;
        allocation.peers.bind(number, peer, now)?;
        Ok(Success::default())
    }

    fn check_peer(
        &self,
        client: Client,
        allocation: &Allocation,
        peer: IpAddr,
        bar: Option<Bar>,
    ) -> Result<(), u16> {
        if let Some(bar) = bar {
            self.refuse("turn_peer", bar.name(), client);
            return Err(ErrorCode::FORBIDDEN);
        }
        if allocation.relay(peer).is_none() {
            return Err(ErrorCode::PEER_ADDRESS_FAMILY_MISMATCH);
        }
        Ok(())
    }
}

fn channel_data(allocation: &Allocation, number: u16, data: &[u8], now: Instant) {
    if let Some(peer) = allocation.peers.of_channel(number, now)
        && let Some(relay) = allocation.relay(peer.ip())
    {
        relay.send(data, peer);
    }
}

/// RFC 8656 section 11.2: what has no permission is dropped.
fn send_indication(allocation: &Allocation, message: &Message<'_>, now: Instant) {
    if let Ok(peer) = message.attribute::<XorPeerAddress>()
        && let Ok(data) = message.attribute::<Data<'_>>()
    {
        let peer = peer.addr(message.transaction_id());
        let permitted = allocation.peers.route(peer, now) != Route::Denied;
        if let Some(relay) = allocation.relay(peer.ip()).filter(|_| permitted) {
            relay.send(data.data(), peer);
        }
    }
}

#[cfg(test)]
mod tests;
