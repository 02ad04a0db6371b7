//! Every decoder of bytes from the network, as a function of bytes. The fuzz targets in `fuzz/`,
//! the benchmarks in `benches/` and the tests below, which run them over the corpus, use these
//! functions.
//!
//! This module is not part of the API. A target must not panic, take long, or hold more than a
//! small multiple of its input. Whatever it can decode must be the same after encoding and decoding
//! it again. A target returns whether it could read all of its input.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use multiaddr::{Multiaddr, PeerId, Protocol};
use str0m::ice::StunMessage;

use crate::{
    config::Config,
    core::{
        self, autonat,
        candidate::Candidate,
        circuit::{Answer, CircuitError},
        datagram,
        dial::Policy,
        dial_back::Server,
        directory,
        drain::Drain,
        first_bytes::{self, Sniffed},
        frame::{self, StreamState},
        lan, mdns, notice,
        offer::Prelude,
        proxy::{self, Parsed},
        record::Record,
        reservation,
        resume::{self, Header, Request, Resume, StreamId},
        room::Member,
        sdp::Description,
        server_url::ServerUrl,
        signalling::{Action, IceCandidate, Message, Negotiation, Role},
        site::RelayText,
        upnp,
        webrtc_direct::Credentials,
    },
    envelope,
    native::{
        ice::{stun::message, turn::frame as turn, webrtc::dcep},
        transports::websocket::frame::{self as websocket_frame, Role as WebSocketRole},
        udp,
    },
    server::{access::messages, hop, stun, turn::fuzzing::TurnSession},
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

/// A request for access to a relay, and the relay's answer.
pub fn access(data: &[u8]) -> bool {
    let request = messages::Request::decode(data);
    if let Some(request) = &request {
        let token = request.token.as_deref();
        assert!(token.is_none_or(|token| token.len() <= core::access::MAX_TOKEN));
        let again = core::access::request(token, request.reserve, request.turn);
        assert!(messages::Request::decode(unframed(&again)).as_ref() == Some(request));
    }
    let answer = core::access::answered(data);
    if let Some(answer) = &answer {
        let again = messages::answer(answer);
        assert!(core::access::answered(unframed(&again)).as_ref() == Some(answer));
        let link = Multiaddr::from(Ipv4Addr::LOCALHOST);
        let turn = answer
            .as_ref()
            .ok()
            .and_then(|admitted| admitted.turn.as_ref());
        for url in turn.map_or_else(Vec::new, |turn| turn.urls(&link)) {
            assert_eq!(url.parse::<ServerUrl>().unwrap().host, "127.0.0.1");
        }
    }
    request.is_some() || answer.is_some()
}

/// A request to the directory of a relay, and its answer.
pub fn directory(data: &[u8]) -> bool {
    let request = directory::Request::decode(data);
    if let Some(request) = &request {
        let again = request.encode();
        assert_eq!(
            directory::Request::decode(unframed(&again)).as_ref(),
            Some(request)
        );
    }
    let answer = directory::Answer::decode(data);
    if let Some(answer) = &answer {
        let again = answer.encode();
        assert_eq!(
            directory::Answer::decode(unframed(&again)).as_ref(),
            Some(answer)
        );
    }
    request.is_some() || answer.is_some()
}

/// The record of a peer, and that of a member of a room, alone and in an envelope.
pub fn record(data: &[u8]) -> bool {
    let record = Record::decode(data);
    if let Some(record) = &record {
        let again = record.encode();
        assert!(again.len() < core::record::MAX_RECORD);
        assert!(Record::decode(&again).is_some_and(|again| again.peer == record.peer));
    }
    let member = Member::decode(data);
    if let Some(member) = &member {
        assert_eq!(Member::decode(&member.encode()).as_ref(), Some(member));
    }
    let opened = envelope::open(data, Duration::from_secs(1_800_000_000));
    record.is_some() || member.is_some() || opened.is_some()
}

/// A message without the length in front of it.
fn unframed(mut framed: &[u8]) -> &[u8] {
    core::protobuf::take_bytes(&mut framed).unwrap()
}

/// The user name in a check of a `/webrtc-direct` client.
pub fn direct_client(data: &[u8]) -> bool {
    let name = str::from_utf8(data).ok();
    let Some((server, client)) = name.and_then(|name| name.split_once(':')) else {
        return false;
    };
    let Some(read) = Credentials::read(server, client) else {
        return false;
    };
    assert_eq!((&*read.server, &*read.client), (server, client));
    assert!(server.ends_with(&read.client_pwd) && read.client_pwd.len() >= 22);
    true
}

/// The first bytes of a TCP client. What is known of them is the same however they come.
pub fn first_bytes(data: &[u8]) -> bool {
    let all = first_bytes::sniff(data);
    let parts = (0..data.len().min(256)).map(|length| first_bytes::sniff(&data[..length]));
    for known in parts {
        assert!(known == Sniffed::More || known == all);
    }
    assert!(all != Sniffed::More || data.len() < first_bytes::MOST);
    matches!(all, Sniffed::Is(_))
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

/// An AutoNAT server's answer, and the proof that it reached us.
pub fn autonat(data: &[u8]) -> bool {
    let answer = autonat::answer(data);
    if let Some(autonat::Answer::Wants(bytes)) = answer {
        assert!(autonat::data(bytes).len() < 2 * 100_000);
    }
    autonat::proof(data).is_some() || answer.is_some()
}

/// The `candidate` attribute.
pub fn candidate(data: &[u8]) -> bool {
    let Some(candidate) = text(data).and_then(|text| text.parse::<Candidate>().ok()) else {
        return false;
    };
    assert_eq!(candidate.to_string().parse(), Ok(candidate));
    true
}

/// A request to a relay, and the answer of a peer that is asked to accept a circuit.
pub fn relay_request(data: &[u8]) -> bool {
    let asked = hop::Request::decode(data).is_some();
    hop::stop_status(data).is_some() || asked
}

/// A relay's answer to a request for a reservation, and the message that announces a circuit.
pub fn reservation(data: &[u8]) -> bool {
    let granted = reservation::granted(data).is_ok();
    reservation::source(data).is_some() || granted
}

/// What a relay says before it ends.
pub fn drain(data: &[u8]) -> bool {
    let Some(drain) = Drain::decode(data) else {
        return false;
    };
    let again = drain.encode();
    let length = again
        .iter()
        .position(|byte| byte & 0x80 == 0)
        .map_or(0, |at| at + 1);
    assert_eq!(Drain::decode(&again[length..]), Some(drain));
    true
}

/// What a relay says of a quota.
pub fn notice(data: &[u8]) -> bool {
    let Some(left) = notice::decode(data) else {
        return false;
    };
    assert!(left.left <= left.all);
    assert_eq!(notice::decode(unframed(&notice::encode(&left))), Some(left));
    true
}

/// The header by which a proxy names its client. It is the same however it comes.
pub fn proxy(data: &[u8]) -> bool {
    let all = proxy::parse(data);
    for length in 0..data.len().min(256) {
        match proxy::parse(&data[..length]) {
            Parsed::More(needed) => assert!((length + 1..=proxy::MOST).contains(&needed)),
            known => assert_eq!(known, all),
        }
    }
    match all {
        Parsed::Header { length, .. } => length <= data.len(),
        _ => false,
    }
}

/// A relay's answer to a request for a circuit.
pub fn circuit(mut data: &[u8]) -> bool {
    let mut answer = Answer::default();
    loop {
        let wanted = answer.wanted();
        assert!(wanted > 0, "the answer never ends");
        let Some((bytes, rest)) = data.split_at_checked(wanted) else {
            return false;
        };
        data = rest;
        match answer.push(bytes) {
            Ok(false) => {}
            Err(CircuitError::Malformed(_)) => return false,
            Ok(true) | Err(_) => return true,
        }
    }
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

/// A request to an AutoNAT server.
pub fn dial_request(data: &[u8]) -> bool {
    if data.len() > autonat::MAX_REQUEST {
        return false;
    }
    let _ = autonat::is_taken(data);
    let Some(request) = autonat::read_request(data) else {
        return false;
    };
    let observed = Multiaddr::from(SOURCE.ip()).with(Protocol::Tcp(SOURCE.port()));
    let client = PeerId::from_bytes(&[0, 0]).expect("an identity of no bytes is valid");
    let server = Server::default();
    if let Some((index, address)) = server.choose(&request.addresses, &client, &observed) {
        assert!(index < request.addresses.len());
        assert_eq!(
            address.iter().next(),
            observed.iter().next(),
            "another host"
        );
        assert!((2..=3).contains(&address.iter().count()));
    }
    true
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
    let found = lan::answers(data, &peer, SOURCE.ip());
    assert!(found.len() <= 8);
    let again = lan::answer("fuzz", peer, &found);
    let read = lan::answers(&again, &peer, SOURCE.ip());
    assert!(read.iter().all(|address| found.contains(address)));
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

/// What a relay says of itself, or the text that names a relay.
pub fn profile(data: &[u8]) -> bool {
    if let Some(Ok(RelayText::Site(site))) = std::str::from_utf8(data).ok().map(str::parse) {
        assert_eq!(site.to_string().parse(), Ok(RelayText::Site(site)));
        return true;
    }
    let policy = Policy::new(false, Vec::new());
    let Ok(learnt) = core::profile::read(data, &policy) else {
        return false;
    };
    for address in &learnt.addresses {
        assert!(
            policy.check(address).is_ok()
                && address.iter().last() == Some(Protocol::P2p(learnt.peer))
        );
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

#[cfg(test)]
mod tests;
