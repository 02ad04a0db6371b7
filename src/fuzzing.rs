//! Every decoder of what the network sends, as functions of bytes: for the fuzz targets in `fuzz/`,
//! for the benchmarks in `benches/`, and for the tests below, which run them over the corpus.
//!
//! Not part of the API. A target must not panic, take long or hold more than a small multiple of
//! its input; what it can read must survive being written and read again. It tells whether it
//! could read all of its input.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::{Bytes, BytesMut};
use multiaddr::{Multiaddr, PeerId, Protocol};
use str0m::ice::StunMessage;

use crate::{
    config::Config,
    core::{
        self, autonat,
        candidate::Candidate,
        circuit::{Answer, CircuitError},
        dial_back::Server,
        frame::{self, StreamState},
        mdns,
        offer::Prelude,
        resume::{self, Header, Request, Resume, StreamId},
        sdp::Description,
        server_url::ServerUrl,
        signalling::{Action, IceCandidate, Message, Negotiation, Role},
    },
    native::{
        rtc::dcep,
        socket,
        stun::message,
        turn::frame as turn,
        websocket::frame::{self as websocket_frame, Role as WebSocketRole},
    },
    rtc::address,
    server::{hop, stun, turn::fuzzing::Session},
    ticket::Ticket,
};

/// One decoder.
pub type Target = fn(&[u8]) -> bool;

/// All of them by name, which is also the name of the folder of its corpus.
pub const TARGETS: &[(&str, Target)] = &[
    ("address", address),
    ("autonat", autonat),
    ("candidate", candidate),
    ("circuit", circuit),
    ("data_channel", data_channel),
    ("datagrams", datagrams),
    ("dial_request", dial_request),
    ("frame", frame),
    ("mdns", mdns),
    ("offer", offer),
    ("options", options),
    ("quic", quic),
    ("relay_request", relay_request),
    ("resume", resume),
    ("resume_header", resume_header),
    ("sdp", sdp),
    ("server_url", server_url),
    ("signalling", signalling),
    ("stun", stun),
    ("ticket", ticket),
    ("turn_requests", turn_requests),
    ("turn_stream", turn_stream),
    ("websocket", websocket),
];

const ID: StreamId = StreamId([7; 16]);
const SOURCE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 32853);
const WINDOW: u64 = resume::INITIAL_WINDOW;

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
    if core::dial::Policy::new(true, Vec::new())
        .check(&addr)
        .is_ok()
    {
        // What is written into requests, as it is.
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        assert!(addr.iter().all(|part| match part {
            Protocol::Ws(text) | Protocol::Wss(text) | Protocol::Sni(text) => plain(&text),
            Protocol::Dns(text) | Protocol::Dns4(text) | Protocol::Dns6(text) => plain(&text),
            _ => true,
        }));
    }
    true
}

/// What an AutoNAT server answers, and what proves that it reached us.
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

/// What a relay is asked for, and what a peer answers that is to take a circuit in.
pub fn relay_request(data: &[u8]) -> bool {
    let asked = hop::Request::decode(data).is_some();
    hop::stop_status(data).is_some() || asked
}

/// A relay's answer to who asked for a circuit.
pub fn circuit(mut data: &[u8]) -> bool {
    let mut answer = Answer::default();
    loop {
        let wanted = answer.wanted();
        assert!(wanted > 0, "an answer without an end");
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

/// `DATA_CHANNEL_OPEN`.
pub fn data_channel(data: &[u8]) -> bool {
    dcep::parse_open(data).is_some()
}

/// What arrives at the shared socket in one call of the kernel: datagrams as long as the first two
/// bytes say, or, if these are 0, one.
pub fn datagrams(data: &[u8]) -> bool {
    let Some((length, run)) = data.split_first_chunk() else {
        return false;
    };
    let stride = match usize::from(u16::from_be_bytes(*length)) {
        0 => run.len(),
        stride => stride,
    };
    socket::demultiplex(SOURCE, "evtj", run, stride) > 0
}

/// What an AutoNAT server is asked to dial.
pub fn dial_request(data: &[u8]) -> bool {
    if data.len() > autonat::MAX_REQUEST {
        return false;
    }
    let _ = autonat::is_taken(data);
    let Some(request) = autonat::read_request(data) else {
        return false;
    };
    let observed = Multiaddr::from(SOURCE.ip()).with(Protocol::Tcp(SOURCE.port()));
    let client = PeerId::from_bytes(&[0, 0]).expect("an empty key");
    let server = Server::default();
    if let Some((index, address)) = server.choose(&request.addresses, &client, &observed) {
        assert!(index < request.addresses.len());
        assert_eq!(address.iter().next(), observed.iter().next(), "a stranger");
        assert!((2..=3).contains(&address.iter().count()));
    }
    true
}

/// Frames on a data channel, which come in pieces as long as the first byte says.
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

/// What answers the question for a page's name.
pub fn mdns(data: &[u8]) -> bool {
    let name = mdns::Name::parse("0c8a7c2e-1b1d-4e62-9a1e-2f5c5e6ad0b1.local");
    name.is_some_and(|name| !name.answers(data).is_empty())
}

/// What an opened offer says of itself.
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
    // A duration may be too long to be written; what is written must be the same.
    if let Ok(json) = serde_json::to_vec(&config) {
        assert_eq!(serde_json::from_slice::<Config>(&json).ok(), Some(config));
    }
    true
}

/// The head of a QUIC datagram.
pub fn quic(data: &[u8]) -> bool {
    core::quic::Destination::of(data).is_some()
}

/// Frames of a resumable stream: to its opener if the first byte is odd, else to its acceptor,
/// which reads if the second bit is set.
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

/// The header of a substream that is to carry a resumable stream.
pub fn resume_header(data: &[u8]) -> bool {
    // Longer ones are refused by their length.
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

/// Signalling messages to an answerer, each behind its length of two bytes.
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

/// A datagram that is taken for STUN, by a peer and by the server.
pub fn stun(data: &[u8]) -> bool {
    let parsed = StunMessage::parse(data);
    if let Ok(message) = &parsed {
        let _ = (message.is_binding_request(), message.split_username());
        let _ = (message.mapped_address(), message.error_code());
    }
    let outcome = stun::answer(data, SOURCE, 0, &layout());
    if let stun::Outcome::Answer(reply, _) | stun::Outcome::Refuse(reply) = &outcome {
        // What the server promises to those whose address is forged.
        assert!(reply.len() <= data.len() + 36, "amplification");
    }
    let client = message::response(data);
    parsed.is_ok() || client.is_some() || outcome != stun::Outcome::Ignore
}

/// A server with two addresses of two ports each.
fn layout() -> stun::Layout {
    let sockets = [(1, 3478), (1, 3479), (2, 3478), (2, 3479)];
    let address = |(host, port)| Some(SocketAddr::from(([198, 51, 100, host], port)));
    stun::Layout(sockets.map(address).to_vec())
}

/// A ticket.
pub fn ticket(data: &[u8]) -> bool {
    let Some(ticket) = text(data).and_then(|text| text.parse::<Ticket>().ok()) else {
        return false;
    };
    assert_eq!(ticket.to_string().parse().ok(), Some(ticket));
    true
}

/// What one client sends to a TURN server, each frame behind its length of two bytes.
pub fn turn_requests(data: &[u8]) -> bool {
    thread_local! {
        static SESSION: Option<Session> = Session::new();
    }
    SESSION.with(|session| {
        let session = session.as_ref().expect("sockets");
        session.play(pieces(data)) > 0
    })
}

/// TURN messages and the data of channels in a stream.
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

/// What a WebSocket's peer sends: to a server if the first byte is odd, else to a client, in pieces
/// as long as half of that byte.
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
    // What comes in one piece with a breach is lost.
    assert!(all.starts_with(&payload) && (violation.is_some() || all == payload));
    violation.is_none()
}

/// Moves `bytes` through a resumable stream in memory, from its opener to its acceptor.
///
/// # Panics
/// When the stream fails.
pub fn transfer(bytes: &[u8]) {
    let (mut opener, mut acceptor) = (opener(), acceptor());
    let mut decoders = [resume::Decoder::default(), resume::Decoder::default()];
    let (mut wire, mut buffer) = (Vec::new(), vec![0; resume::MAX_FRAME]);
    // The header, which the acceptor has seen.
    opener.poll_transmit(&mut wire);
    let (mut written, mut received) = (0, 0);
    while received < bytes.len() {
        wire.clear();
        acceptor.poll_transmit(&mut wire);
        deliver(&wire, &mut decoders[0], &mut opener);
        written += opener.write(&bytes[written..]).expect("an open stream");
        wire.clear();
        opener.poll_transmit(&mut wire);
        deliver(&wire, &mut decoders[1], &mut acceptor);
        while let Some(read @ 1..) = acceptor.read(&mut buffer).expect("an open stream") {
            received += read;
        }
    }
}

fn deliver(mut wire: &[u8], decoder: &mut resume::Decoder, to: &mut Resume) {
    while let Some(frame) = decoder.decode(&mut wire).expect("frames of ours") {
        to.handle_frame(frame).expect("frames of ours");
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
    let mut acceptor = Resume::acceptor(&header, WINDOW).expect("a good header");
    acceptor.attach_from(&header).expect("a good header");
    acceptor
}

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}

/// Cuts what is written as length (two bytes, network order) and content.
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
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Mutated copies of each file, which keep the targets alive; `FUZZ_COPIES` asks for more.
    const COPIES: u64 = 200;

    fn copies() -> u64 {
        let asked = std::env::var("FUZZ_COPIES").ok();
        asked
            .and_then(|copies| copies.parse().ok())
            .unwrap_or(COPIES)
    }

    fn corpus(name: &str) -> Vec<Vec<u8>> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus")
            .join(name);
        let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
        let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect()
    }

    /// xorshift64: the same copies on every machine.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % end.max(1) as u64) as usize
        }

        fn mutate(&mut self, data: &mut Vec<u8>) {
            for _ in 0..=self.below(4) {
                let (at, other) = (self.below(data.len()), self.below(data.len()));
                match self.below(5) {
                    _ if data.is_empty() => data.push(self.below(256) as u8),
                    0 => data[at] ^= 1 << self.below(8),
                    1 => data[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                    2 => data.truncate(at),
                    3 => data.insert(at, self.below(256) as u8),
                    _ => data.extend_from_within(at.min(other)..at.max(other)),
                }
            }
        }
    }

    #[test]
    fn every_target_survives_its_corpus_and_what_is_like_it() {
        for (name, target) in TARGETS {
            let files = corpus(name);
            let read = files.iter().filter(|file| target(file)).count();
            assert!(
                read * 2 > files.len(),
                "{name}: {read} of {} read",
                files.len()
            );
            for (index, file) in files.iter().enumerate() {
                let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ index as u64);
                for _ in 0..copies() {
                    let mut data = file.clone();
                    random.mutate(&mut data);
                    target(&data);
                }
            }
        }
    }

    #[test]
    fn each_target_has_a_fuzzer() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
        for (name, _) in TARGETS {
            let text = fs::read_to_string(folder.join(format!("{name}.rs"))).unwrap();
            assert!(text.contains(&format!("fuzzing::{name}(")), "{name}");
        }
    }

    /// RFC 5769 sections 2.1 to 2.4, which are part of the corpus.
    #[test]
    fn the_sample_messages_of_rfc_5769_read_as_it_says() {
        let file = |name: &str| {
            let path = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("fuzz/corpus/stun")
                .join(name);
            fs::read(path).unwrap()
        };
        let mapped = |data: &[u8]| StunMessage::parse(data).unwrap().mapped_address().unwrap();
        let (v4, v6) = (file("rfc5769-ipv4-response"), file("rfc5769-ipv6-response"));
        assert_eq!(mapped(&v4).to_string(), "192.0.2.1:32853");
        assert_eq!(
            mapped(&v6).to_string(),
            "[2001:db8:1234:5678:11:2233:4455:6677]:32853"
        );

        let request = file("rfc5769-request");
        let message = StunMessage::parse(&request).unwrap();
        assert_eq!(message.split_username(), Some(("evtj", "h6vY")));
        assert_eq!(message.prio(), Some(0x6e00_01ff));
        // PRIORITY is for peers: a server has to refuse it (RFC 8489 section 6.3.1).
        assert!(matches!(
            stun::answer(&request, SOURCE, 0, &layout()),
            stun::Outcome::Refuse(_)
        ));
        // FINGERPRINT covers what is before it; its own head says that it is one.
        for at in (0..request.len() - 8).chain(request.len() - 4..request.len()) {
            let mut damaged = request.clone();
            damaged[at] ^= 1;
            assert_eq!(
                stun::answer(&damaged, SOURCE, 0, &layout()),
                stun::Outcome::Ignore,
                "byte {at}"
            );
        }
    }

    #[test]
    fn bytes_move_through_a_stream_in_memory() {
        transfer(&vec![1; 1 << 20]);
    }
}
