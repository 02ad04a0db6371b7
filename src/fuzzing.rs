//! Every decoder of bytes from the network, as a function of bytes. The fuzz targets in `fuzz/`,
//! the benchmarks in `benches/` and the tests below, which run them over the corpus, use these
//! functions.
//!
//! This module is not part of the API. A target must not panic, take long, or hold more than a
//! small multiple of its input. Whatever it can decode must be the same after encoding and decoding
//! it again. A target returns whether it could read all of its input.

mod relays;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::{Bytes, BytesMut};
use multiaddr::{Multiaddr, Protocol};
use str0m::ice::StunMessage;

pub use self::relays::{
    access, autonat, circuit, dial_request, direct_client, directory, drain, first_bytes, fleet,
    notice, profile, proxy, record, relay_request, reservation,
};
use crate::{
    config::Config,
    core::{
        self,
        candidate::Candidate,
        datagram,
        dial::Policy,
        frame::{self, StreamState},
        lan, mdns,
        offer::Prelude,
        resume::{self, Header, Request, Resume, StreamId},
        sdp::Description,
        server_url::ServerUrl,
        signalling::{Action, IceCandidate, Message, Negotiation, Role},
        upnp,
    },
    native::{
        ice::{stun::message, turn::frame as turn, webrtc::dcep},
        transports::websocket::frame::{self as websocket_frame, Role as WebSocketRole},
        udp,
    },
    server::{stun, turn::fuzzing::TurnSession},
    ticket::Ticket,
    webrtc::address,
};

/// A fuzz target for one decoder.
pub type Target = fn(&[u8]) -> bool;

/// All targets by name. The folder of a target's corpus has the same name.
pub const TARGETS: &[(&str, Target)] = &[
    ("access", access),
    ("address", address),
    ("autonat", autonat),
    ("candidate", candidate),
    ("circuit", circuit),
    ("data_channel", data_channel),
    ("datagrams", datagrams),
    ("dial_request", dial_request),
    ("direct_client", direct_client),
    ("directory", directory),
    ("drain", drain),
    ("first_bytes", first_bytes),
    ("fleet", fleet),
    ("frame", frame),
    ("lan", lan),
    ("lane", lane),
    ("mdns", mdns),
    ("notice", notice),
    ("offer", offer),
    ("options", options),
    ("proxy", proxy),
    ("profile", profile),
    ("quic", quic),
    ("record", record),
    ("relay_request", relay_request),
    ("reservation", reservation),
    ("resume", resume),
    ("resume_header", resume_header),
    ("sdp", sdp),
    ("server_url", server_url),
    ("signalling", signalling),
    ("stun", stun),
    ("ticket", ticket),
    ("turn_requests", turn_requests),
    ("turn_stream", turn_stream),
    ("upnp", upnp),
    ("websocket", websocket),
];

const ID: StreamId = StreamId([7; 16]);
const SOURCE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 32853);
const WINDOW: u64 = resume::INITIAL_WINDOW;

/// A message without the length in front of it.
fn unframed(mut framed: &[u8]) -> &[u8] {
    core::protobuf::take_bytes(&mut framed).unwrap()
}

/// A multiaddress of a peer.
pub fn address(data: &[u8]) -> bool {
    let Ok(addr) = Multiaddr::try_from(data.to_vec()) else {
        return false;
    };
    if let Ok(target) = address::parse_target(&addr) {
        let circuit = target.circuit;
        assert!(circuit.is_none_or(|circuit| address::is_circuit(&circuit)));
    }
    let _ = address::parse_listener(&addr);
    let _ = address::advertised(&addr);
    let _ = core::address::route(&addr);
    let _ = core::address::relay_part(&addr);
    let _ = core::address::scope_of(&addr);
    if Policy::new(true, Vec::new()).check(&addr).is_ok() {
        // This text is written into requests as it is.
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        assert!(addr.iter().all(|part| match part {
            Protocol::Ws(text) | Protocol::Wss(text) | Protocol::Sni(text) => plain(&text),
            Protocol::Dns(text) | Protocol::Dns4(text) | Protocol::Dns6(text) => plain(&text),
            _ => true,
        }));
    }
    true
}

/// The `candidate` attribute.
pub fn candidate(data: &[u8]) -> bool {
    let Some(candidate) = text(data).and_then(|text| text.parse::<Candidate>().ok()) else {
        return false;
    };
    assert_eq!(candidate.to_string().parse(), Ok(candidate));
    true
}

/// A `DATA_CHANNEL_OPEN` message.
pub fn data_channel(data: &[u8]) -> bool {
    dcep::parse_open(data).is_some()
}

/// The datagrams that arrive at the shared socket in one call of the kernel. The first two bytes
/// give the length of each datagram. If they are 0, there is only one datagram.
pub fn datagrams(data: &[u8]) -> bool {
    let Some((length, run)) = data.split_first_chunk() else {
        return false;
    };
    let stride = match usize::from(u16::from_be_bytes(*length)) {
        0 => run.len(),
        stride => stride,
    };
    udp::demultiplex(SOURCE, "evtj", run, stride) > 0
}

/// Frames on a data channel. They come in pieces whose length is the first byte.
pub fn frame(data: &[u8]) -> bool {
    let Some((&piece, data)) = data.split_first() else {
        return false;
    };
    let mut decoder = frame::Decoder::default();
    let mut state = StreamState::default();
    for piece in data.chunks(usize::from(piece).max(1)) {
        decoder.push(Bytes::copy_from_slice(piece));
        loop {
            match decoder.next_frame() {
                Err(_) => return false,
                Ok(None) => break,
                Ok(Some(frame)) => {
                    assert!(frame.message.len() <= frame::MAX_FRAME_LEN);
                    frame::encode_data(&frame.message, &mut BytesMut::new());
                    if let Some(flag) = frame.flag {
                        state.received(flag);
                        let _ = state.poll_flag();
                    }
                }
            }
        }
    }
    true
}

/// The datagrams on a substream.
pub fn lane(data: &[u8]) -> bool {
    let mut decoder = datagram::Decoder::default();
    let mut again = Vec::new();
    for piece in pieces(data).flat_map(|piece| piece.chunks(1000)) {
        decoder.room()[..piece.len()].copy_from_slice(piece);
        decoder.received(piece.len());
        loop {
            match decoder.next() {
                Ok(Some(datagram)) => datagram::encode(&datagram, &mut again),
                Ok(None) => break,
                Err(_) => return false,
            }
        }
    }
    let wire: Vec<u8> = pieces(data).flatten().copied().collect();
    assert!(wire.starts_with(&again));
    wire == again
}

/// A question for the peers of the local network, or the answer of a peer.
pub fn lan(data: &[u8]) -> bool {
    let peer = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
    let peer = peer.parse().unwrap();
    let answers = |packet: &[u8]| lan::answers(packet, SOURCE.ip(), |sought| *sought == peer);
    let found = answers(data);
    assert!(found.len() <= 8);
    let addresses: Vec<_> = found.iter().map(|(_, address)| address.clone()).collect();
    let read = answers(&lan::answer("fuzz", peer, &addresses));
    assert!(read.iter().all(|answer| found.contains(answer)));
    lan::asks(data).is_some() || !found.is_empty()
}

/// An answer to the multicast DNS question for a page's name.
pub fn mdns(data: &[u8]) -> bool {
    let name = mdns::Name::parse("0c8a7c2e-1b1d-4e62-9a1e-2f5c5e6ad0b1.local");
    name.is_some_and(|name| !name.answers(data).is_empty())
}

/// The first bytes of an opened offer.
pub fn offer(data: &[u8]) -> bool {
    let Some((prelude, rest)) = Prelude::take(data) else {
        return false;
    };
    assert_eq!([&prelude.encode()[..], rest].concat(), data);
    true
}

/// The options of a connector as JSON.
pub fn options(data: &[u8]) -> bool {
    let Ok(config) = serde_json::from_slice::<Config>(data) else {
        return false;
    };
    // A duration may be too long to be written. If the configuration can be written, it must be
    // read back unchanged.
    if let Ok(json) = serde_json::to_vec(&config) {
        assert_eq!(serde_json::from_slice::<Config>(&json).ok(), Some(config));
    }
    true
}

/// The head of a QUIC datagram.
pub fn quic(data: &[u8]) -> bool {
    core::quic::Destination::of(data).is_some()
}

/// Frames of a resumable stream. They go to its opener if the first byte is odd, and else to its
/// acceptor. The stream is read if the second bit is set.
pub fn resume(data: &[u8]) -> bool {
    let Some((&first, mut data)) = data.split_first() else {
        return false;
    };
    let mut stream = if first & 1 == 1 { opener() } else { acceptor() };
    let mut decoder = resume::Decoder::default();
    let (mut out, mut buffer) = (Vec::new(), [0; 512]);
    loop {
        match decoder.decode(&mut data) {
            Err(_) => return false,
            Ok(None) => return data.is_empty(),
            Ok(Some(frame)) if stream.handle_frame(frame).is_err() => return false,
            Ok(Some(_)) => {}
        }
        let _ = stream.write(&buffer[..usize::from(first)]);
        if first & 2 != 0 {
            while let Ok(Some(1..)) = stream.read(&mut buffer) {}
        }
        out.clear();
        stream.poll_transmit(&mut out);
    }
}

/// The header of a substream that carries a resumable stream.
pub fn resume_header(data: &[u8]) -> bool {
    // Longer headers are refused by their length.
    if data.len() > resume::MAX_HEADER {
        return false;
    }
    let Ok(header) = Header::decode(data) else {
        return false;
    };
    let mut out = Vec::new();
    header.encode(&mut out);
    let prefix = 1 + usize::from(out[0] >> 7);
    assert_eq!(Header::decode(&out[prefix..]), Ok(header));
    true
}

/// A session description.
pub fn sdp(data: &[u8]) -> bool {
    let Some(description) = text(data).and_then(|text| Description::parse(text).ok()) else {
        return false;
    };
    let written = description.to_sdp(7);
    assert_eq!(Description::parse(&written), Ok(description));
    true
}

/// The URL of a STUN or TURN server.
pub fn server_url(data: &[u8]) -> bool {
    let Some(url) = text(data).and_then(|text| text.parse::<ServerUrl>().ok()) else {
        return false;
    };
    assert_eq!(url.to_string().parse(), Ok(url));
    true
}

/// Signalling messages to an answerer, each after its length of two bytes.
pub fn signalling(data: &[u8]) -> bool {
    let mut negotiation = Negotiation::new(Role::Answerer);
    for message in pieces(data) {
        let Ok(message) = Message::decode(message) else {
            return false;
        };
        let _ = Message::decode(&message.encode());
        if negotiation.received(message).is_err() {
            return false;
        }
        while let Some(action) = negotiation.poll() {
            if let Action::AddCandidate(Some(candidate)) = action {
                assert!(IceCandidate::from_json(&candidate.to_json()).is_ok());
            }
        }
    }
    true
}

/// A datagram that a peer and the server take for STUN.
pub fn stun(data: &[u8]) -> bool {
    let parsed = StunMessage::parse(data);
    if let Ok(message) = &parsed {
        let _ = (message.is_binding_request(), message.split_username());
        let _ = (message.mapped_address(), message.error_code());
    }
    let outcome = stun::answer(data, SOURCE, 0, &layout());
    if let stun::Outcome::Answer(reply, _) | stun::Outcome::Refuse(reply) = &outcome {
        // The server answers a forged source address with at most this many additional bytes.
        assert!(reply.len() <= data.len() + 36, "the reply is too long");
    }
    let client = message::response(data);
    parsed.is_ok() || client.is_some() || outcome != stun::Outcome::Ignore
}

/// Makes the layout of a server with two addresses and two ports on each.
fn layout() -> stun::Layout {
    let sockets = [(1, 3478), (1, 3479), (2, 3478), (2, 3479)];
    let address = |(host, port)| Some(SocketAddr::from(([198, 51, 100, host], port)));
    stun::Layout {
        addresses: sockets.map(address).to_vec(),
        ports: 2,
    }
}

/// A ticket.
pub fn ticket(data: &[u8]) -> bool {
    let Some(ticket) = text(data).and_then(|text| text.parse::<Ticket>().ok()) else {
        return false;
    };
    assert_eq!(ticket.to_string().parse().ok(), Some(ticket));
    true
}

/// The frames that one client sends to a TURN server, each after its length of two bytes.
pub fn turn_requests(data: &[u8]) -> bool {
    thread_local! {
        static SESSION: Option<TurnSession> = TurnSession::new();
    }
    SESSION.with(|session| {
        let session = session.as_ref().expect("the server has its sockets");
        session.play(pieces(data)) > 0
    })
}

/// A stream of TURN messages and channel data.
pub fn turn_stream(mut data: &[u8]) -> bool {
    loop {
        match turn::first(data) {
            Err(_) => return false,
            Ok(None) => return data.is_empty(),
            Ok(Some(frame)) => {
                assert!(0 < frame.len && frame.len <= frame.end && frame.end <= data.len());
                let _ = turn::is_binding(&data[..frame.len]);
                data = &data[frame.end..];
            }
        }
    }
}

/// The answers of a router: to a search, to a request for its description, and to a request for a
/// mapping.
pub fn upnp(data: &[u8]) -> bool {
    let at = SocketAddr::from(([192, 168, 1, 1], 5000));
    let found = upnp::location(data, at.ip());
    assert!(found.iter().all(|place| place.at.ip() == at.ip()));
    let service = text(data).and_then(|text| upnp::service(text, at));
    assert!(
        service
            .iter()
            .all(|service| service.control.at.ip() == at.ip())
    );
    let body = upnp::body(data);
    let _ = body.as_deref().map(upnp::external_address);
    found.is_some() || service.is_some() || body.is_ok()
}

/// The frames of a WebSocket's peer. They go to a server if the first byte is odd, and else to a
/// client. They come in pieces whose length is half of that byte.
pub fn websocket(data: &[u8]) -> bool {
    let Some((&first, data)) = data.split_first() else {
        return false;
    };
    let role = match first & 1 {
        1 => WebSocketRole::Server,
        _ => WebSocketRole::Client,
    };
    let read = |piece: usize| {
        let mut decoder = websocket_frame::Decoder::new(role);
        let (mut payload, mut signals) = (Vec::new(), Vec::new());
        for piece in data.chunks(piece) {
            let mut piece = piece.to_vec();
            let read = decoder.decode(&mut piece, |signal| signals.push(signal));
            match read {
                Ok(len) => payload.extend_from_slice(&piece[..len]),
                Err(violation) => return (payload, signals, Some(violation)),
            }
            if matches!(signals.last(), Some(websocket_frame::Signal::Close(_))) {
                break;
            }
        }
        (payload, signals, None)
    };
    let (payload, signals, violation) = read(usize::from(first / 2).max(1));
    let (all, all_signals, all_violation) = read(1);
    assert_eq!((&signals, violation), (&all_signals, all_violation));
    // The bytes that come in one piece with a violation are lost.
    assert!(all.starts_with(&payload) && (violation.is_some() || all == payload));
    violation.is_none()
}

/// Moves `bytes` through a resumable stream in memory, from its opener to its acceptor.
///
/// # Panics
/// Panics if the stream fails.
pub fn transfer(bytes: &[u8]) {
    let (mut opener, mut acceptor) = (opener(), acceptor());
    let mut decoders = [resume::Decoder::default(), resume::Decoder::default()];
    let (mut wire, mut buffer) = (Vec::new(), vec![0; resume::MAX_FRAME]);
    // Takes the header, which the acceptor has seen already.
    opener.poll_transmit(&mut wire);
    let (mut written, mut received) = (0, 0);
    while received < bytes.len() {
        wire.clear();
        acceptor.poll_transmit(&mut wire);
        deliver(&wire, &mut decoders[0], &mut opener);
        written += opener.write(&bytes[written..]).expect("the stream is open");
        wire.clear();
        opener.poll_transmit(&mut wire);
        deliver(&wire, &mut decoders[1], &mut acceptor);
        while let Some(read @ 1..) = acceptor.read(&mut buffer).expect("the stream is open") {
            received += read;
        }
    }
}

fn deliver(mut wire: &[u8], decoder: &mut resume::Decoder, to: &mut Resume) {
    while let Some(frame) = decoder.decode(&mut wire).expect("our frames are valid") {
        to.handle_frame(frame).expect("our frames are valid");
    }
}

fn opener() -> Resume {
    let mut opener = Resume::opener(ID, "fuzz".into(), WINDOW);
    opener.attach();
    opener
}

fn acceptor() -> Resume {
    let request = Request::Open {
        window: WINDOW,
        protocol: "fuzz".into(),
    };
    let header = Header {
        id: ID,
        epoch: 1,
        request,
    };
    let mut acceptor = Resume::acceptor(&header, WINDOW).expect("the header is valid");
    acceptor.attach_from(&header).expect("the header is valid");
    acceptor
}

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// Cuts data into pieces, each of which stands after its length (two bytes in network order).
fn pieces(mut data: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (length, rest) = data.split_first_chunk()?;
        let length = usize::from(u16::from_be_bytes(*length)).min(rest.len());
        let (piece, rest) = rest.split_at(length);
        data = rest;
        Some(piece)
    })
}
