//! The datagrams that an allocation sends and receives, with their permissions and channels.

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use stun_types::{
    TransportType,
    attribute::{AlternateServer, AttributeType, ErrorCode},
    message::Message,
};
use turn_client_proto::{
    api::{Transmit, TurnRecvRet},
    prelude::{DelayedTransmitBuild as _, TurnClientApi as _},
};

use super::{
    super::{
        answers::{Meaning, channel_data, error_code, meaning},
        frame,
    },
    Allocation, State, local,
};
use crate::{core::scope::is_global, native::udp::TurnCarrier};

/// The most peers, by address, with which an allocation exchanges datagrams. Each costs the server
/// state and a request every few minutes.
const MAX_PEERS: usize = 256;
/// The most channels of an allocation. Each costs as much as a peer.
const MAX_CHANNELS: usize = 64;

/// The most datagrams that wait for a permission. It suffices for a check or two for each pair.
const MAX_WAITING: usize = 64;

/// How long a peer that the server refused is not asked for again.
const REFUSED: Duration = Duration::from_secs(30);

/// The attribute with which a server tells why there is no address of a family (RFC 8656 section
/// 18.12).
const ADDRESS_ERROR_CODE: AttributeType = AttributeType::new(0x8001);

impl Allocation {
    pub(super) fn send_waiting(&self, state: &mut State, ip: IpAddr, clock: stun_proto::Instant) {
        for _ in 0..state.waiting.len() {
            let Some((to, datagram)) = state.waiting.pop_front() else {
                return;
            };
            if to.ip() != ip {
                state.waiting.push_back((to, datagram));
            } else if let Some(frame) = self.frame(state, to, &datagram, clock) {
                self.send_to_server(&frame, frame.len());
            }
        }
    }

    /// Makes the frame for the server from a datagram. Returns `None` without a permission for the
    /// destination.
    fn frame(
        &self,
        state: &mut State,
        to: SocketAddr,
        datagram: &[u8],
        clock: stun_proto::Instant,
    ) -> Option<Vec<u8>> {
        let sent = state
            .client
            .send_to(TransportType::Udp, to, datagram, clock);
        let mut frame = sent.ok()??.data.build();
        if self.queue.is_some() {
            let len = frame.len();
            frame::pad(&mut frame, len);
        }
        Some(frame)
    }

    /// Keeps a datagram until its destination is permitted, and asks for the permission.
    fn wait_for_permission(&self, state: &mut State, now: Instant, to: SocketAddr, data: &[u8]) {
        let relayed = state.relayed.iter().find(|r| r.is_ipv4() == to.is_ipv4());
        // A server on the internet cannot reach private networks, and may refuse to try.
        if relayed.is_none_or(|relayed| !is_global(to.ip()) && is_global(relayed.ip())) {
            return;
        }
        match state.peers.get(&to.ip()) {
            Some(Some(refused)) if now < *refused + REFUSED => return,
            None if state.peers.len() >= MAX_PEERS => return,
            _ => {}
        }
        if state.waiting.len() >= MAX_WAITING {
            state.waiting.pop_front();
        }
        state.waiting.push_back((to, data.to_vec()));
        let (udp, clock) = (TransportType::Udp, self.clock(state, now));
        // This fails while a request for the permission is under way.
        if state.client.create_permission(udp, to.ip(), clock).is_ok() {
            state.peers.insert(to.ip(), None);
            self.work.notify_one();
        }
    }

    /// Binds a channel, which saves 32 bytes for each datagram. It is for a peer that gets more
    /// than ICE checks.
    fn bind_channel(&self, state: &mut State, now: Instant, to: SocketAddr) {
        if state.channels.len() < MAX_CHANNELS && state.channels.insert(to) {
            let (udp, clock) = (TransportType::Udp, self.clock(state, now));
            // This fails where indications have to serve.
            if state.client.bind_channel(udp, to, clock).is_ok() {
                self.work.notify_one();
            }
        }
    }
}

impl TurnCarrier for Allocation {
    fn carry(&self, destination: SocketAddr, data: &[u8], segment: usize) {
        let now = Instant::now();
        let mut frames = Vec::new();
        let mut framed = 0;
        let mut state = self.state();
        let clock = self.clock(&state, now);
        for datagram in data.chunks(segment) {
            if !is_check(datagram) {
                self.used.note(now);
                self.bind_channel(&mut state, now, destination);
            }
            match self.frame(&mut state, destination, datagram, clock) {
                Some(frame) => {
                    framed = framed.max(frame.len());
                    frames.extend(frame);
                }
                None => self.wait_for_permission(&mut state, now, destination, datagram),
            }
        }
        let unwatched = !frames.is_empty() && state.silence.sent(now);
        drop(state);
        if unwatched {
            self.work.notify_one();
        }
        if !frames.is_empty() {
            self.send_to_server(&frames, framed);
        }
    }

    fn take(&self, now: Instant, data: &[u8]) -> bool {
        if frame::is_binding(data) {
            return false;
        }
        let transport = match self.queue {
            Some(_) => TransportType::Tcp,
            None => TransportType::Udp,
        };
        let mut state = self.state();
        let clock = self.clock(&state, now);
        let mut doubtful = false;
        if let Ok(message) = Message::from_bytes(data)
            && state.asked.answers(&message)
        {
            let code = error_code(&message);
            if let Some(code) = code.filter(|_| !state.relayed.is_empty()) {
                let meaning = meaning(&message, code);
                state.lost |= meaning == Meaning::Gone;
                doubtful = meaning == Meaning::Doubtful;
            }
            state.error = code.or(state.error);
            if code == Some(ErrorCode::TRY_ALTERNATE) {
                let other = message.attribute::<AlternateServer>();
                state.elsewhere = other.ok().map(|other| other.server());
            } else if code == Some(ErrorCode::UNAUTHORIZED) {
                let request = message.transaction_id();
                let first = *state.challenge.get_or_insert(request);
                state.refused |= first != request;
            }
            if message.has_attribute(ADDRESS_ERROR_CODE) {
                state.ipv6 = None;
            }
        }
        let received = Transmit::new(data, transport, self.server, local());
        let received = state.client.recv(received, clock);
        let datagram = match &received {
            TurnRecvRet::PeerData(received) => Some((received.peer, received.data())),
            _ => channel_data(&state.numbers, data),
        };
        state.silence.heard(datagram.is_some());
        if doubtful {
            state.silence.hint();
        }
        if let Some((peer, datagram)) = datagram {
            if !is_check(datagram) {
                self.used.note(now);
            }
            let relayed = state.relayed.iter().find(|r| r.is_ipv4() == peer.is_ipv4());
            let relayed = relayed.copied();
            drop(state);
            if let Some(relayed) = relayed {
                self.sockets.receive_relayed(now, peer, relayed, datagram);
            }
        } else {
            drop(state);
            self.work.notify_one();
        }
        true
    }
}

/// Whether a datagram is STUN (RFC 7983), which ICE checks are. They need no channel, and are no use
/// of an address.
fn is_check(datagram: &[u8]) -> bool {
    datagram.first().is_none_or(|first| *first <= 3)
}
