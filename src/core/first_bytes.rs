//! Tells by its first bytes what a client of the one TCP port speaks.
//!
//! Each protocol of a server begins with bytes that no other one begins with. TLS begins with a record
//! of a handshake, libp2p with the name of multistream-select, HTTP with a method, and TURN with a
//! header of STUN. A WebSocket is known only from the head of its request.

/// The longest head of a request that is looked at. HTTP answers a longer one as it answers any.
pub(crate) const MOST: usize = 8 * 1024;

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Tls,
    /// libp2p's multistream-select.
    Libp2p,
    Http,
    /// A request over HTTP for a WebSocket, which carries libp2p.
    WebSocket,
    /// TURN or STUN.
    Turn,
}

/// What is known from the bytes that have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sniffed {
    Is(Protocol),
    /// More bytes are needed.
    More,
    /// No protocol of a server begins so.
    Unknown,
}

/// The first message of multistream-select, with its length.
const MULTISTREAM: &[u8] = b"\x13/multistream/1.0.0\n";
/// The type of a TLS record that holds a handshake, and the major version (RFC 8446 section 5.1).
const HANDSHAKE: [u8; 2] = [22, 3];
/// The constant in each STUN header, and where it stands (RFC 8489 section 5).
const MAGIC_COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const COOKIE_AT: usize = 4;
/// The longest method of HTTP. Registered ones that a page may use have 7 letters at most.
const METHOD: usize = 16;

/// Says what a stream that begins with `bytes` speaks.
///
/// More bytes never change what is known, and [`MOST`] bytes are enough for every protocol.
pub(crate) fn sniff(bytes: &[u8]) -> Sniffed {
    let bytes = bytes.get(..MOST).unwrap_or(bytes);
    match bytes.first() {
        None => Sniffed::More,
        // RFC 7983 section 7: STUN begins with 0 to 3.
        Some(0..=3) => match bytes.get(COOKIE_AT..) {
            Some(rest) => begins(rest, &MAGIC_COOKIE, Protocol::Turn),
            None => Sniffed::More,
        },
        Some(&first) if first == HANDSHAKE[0] => begins(bytes, &HANDSHAKE, Protocol::Tls),
        Some(&first) if first == MULTISTREAM[0] => begins(bytes, MULTISTREAM, Protocol::Libp2p),
        Some(b'A'..=b'Z') => request(bytes),
        Some(_) => Sniffed::Unknown,
    }
}

/// Whether `bytes` begin with `start`, as far as they have arrived.
fn begins(bytes: &[u8], start: &[u8], protocol: Protocol) -> Sniffed {
    if bytes.starts_with(start) {
        Sniffed::Is(protocol)
    } else if start.starts_with(bytes) {
        Sniffed::More
    } else {
        Sniffed::Unknown
    }
}

/// Reads the head of a request, which begins with a capital letter.
fn request(bytes: &[u8]) -> Sniffed {
    let method = bytes.iter().take_while(|byte| byte.is_ascii_uppercase());
    match method.count() {
        long if long > METHOD => return Sniffed::Unknown,
        all if all == bytes.len() => return Sniffed::More,
        length if bytes[length] != b' ' => return Sniffed::Unknown,
        _ => {}
    }
    let mut lines = bytes.split(|byte| *byte == b'\n');
    // What stands behind the last line break is not a whole line.
    lines.next_back();
    let mut upgrades = false;
    for line in lines.map(<[u8]>::trim_ascii_end) {
        if line.is_empty() {
            return Sniffed::Is(match upgrades {
                true => Protocol::WebSocket,
                false => Protocol::Http,
            });
        }
        upgrades |= asks_for_websocket(line);
    }
    match bytes.len() < MOST {
        true => Sniffed::More,
        false => Sniffed::Is(Protocol::Http),
    }
}

/// Whether a line of a head is `Upgrade: websocket` (RFC 6455 section 4.2.1), which may name other
/// protocols too.
fn asks_for_websocket(line: &[u8]) -> bool {
    let mut parts = line.splitn(2, |byte| *byte == b':');
    let name = parts.next().unwrap_or_default();
    let protocols = parts.next().unwrap_or_default();
    let mut protocols = protocols.split(|byte| *byte == b',');
    name.eq_ignore_ascii_case(b"upgrade")
        && protocols.any(|one| one.trim_ascii().eq_ignore_ascii_case(b"websocket"))
}

/// What a client may name inside TLS (RFC 7301, RFC 7443).
pub(crate) const ALPN: [&[u8]; 4] = [b"http/1.1", b"stun.turn", b"stun.nat-discovery", b"libp2p"];

/// Whether a client that has agreed on `alpn` may speak `protocol`. Without ALPN, it may speak any.
/// A client that names one protocol and speaks another one may be a page that was lured into talking
/// to a service that it does not know.
pub(crate) fn agrees(alpn: Option<&[u8]>, protocol: Protocol) -> bool {
    match alpn {
        None => protocol != Protocol::Tls,
        Some(b"http/1.1") => matches!(protocol, Protocol::Http | Protocol::WebSocket),
        Some(b"stun.turn" | b"stun.nat-discovery") => protocol == Protocol::Turn,
        Some(b"libp2p") => protocol == Protocol::Libp2p,
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TURN: &[u8] = b"\x00\x03\x00\x00\x21\x12\xa4\x42 twelve bytes";
    const PAGE: &[u8] = b"GET /config.json HTTP/1.1\r\nHost: x\r\n\r\n";
    const SOCKET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\nUPGRADE:h2c, WebSocket\r\n\r\n";

    fn is(protocol: Protocol) -> Sniffed {
        Sniffed::Is(protocol)
    }

    #[test]
    fn each_protocol_is_known_by_its_beginning() {
        assert_eq!(sniff(b""), Sniffed::More);
        assert_eq!(sniff(b"\x16\x03\x01\x02\x00"), is(Protocol::Tls));
        assert_eq!(
            sniff(b"\x13/multistream/1.0.0\n\x07/noise\n"),
            is(Protocol::Libp2p)
        );
        assert_eq!(sniff(TURN), is(Protocol::Turn));
        assert_eq!(sniff(PAGE), is(Protocol::Http));
        assert_eq!(sniff(SOCKET), is(Protocol::WebSocket));
        assert_eq!(sniff(b"HEAD / HTTP/1.1\n\n"), is(Protocol::Http));
        let other: [&[u8]; 7] = [
            b"SSH-2.0-x\r\n",
            b"\x16\x02",
            b"\x13/multicast",
            b"\x00\x03\x00\x00\x21\x12\xa4\x43",
            b"ABCDEFGHIJKLMNOPQ",
            b"get / HTTP/1.1",
            &[0x80; 20],
        ];
        for bytes in other {
            assert_eq!(sniff(bytes), Sniffed::Unknown, "{bytes:?}");
        }
    }

    #[test]
    fn a_websocket_is_asked_for_in_the_head_only() {
        for head in [
            "GET /?Upgrade:websocket HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nX-Upgrade: websocket\r\n\r\n",
            "GET / HTTP/1.1\r\nUpgrade: websockets\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\nUpgrade: websocket\r\n\r\n",
        ] {
            assert_eq!(sniff(head.as_bytes()), is(Protocol::Http), "{head}");
        }
    }

    #[test]
    fn a_head_without_an_end_is_left_to_http() {
        let mut head = b"GET / HTTP/1.1\r\nUpgrade: websocket\r\nX: ".to_vec();
        head.resize(MOST - 1, b'a');
        assert_eq!(sniff(&head), Sniffed::More);
        head.push(b'a');
        assert_eq!(sniff(&head), is(Protocol::Http));
    }

    #[test]
    fn whoever_names_a_protocol_has_to_speak_it() {
        use Protocol::*;
        for protocol in [Libp2p, Http, WebSocket, Turn] {
            assert!(agrees(None, protocol));
            let named: Vec<_> = ALPN
                .iter()
                .filter(|alpn| agrees(Some(alpn), protocol))
                .collect();
            let count = if protocol == Turn { 2 } else { 1 };
            assert_eq!(named.len(), count, "{protocol:?}");
            assert!(!agrees(Some(b"h2"), protocol));
        }
        assert!(!agrees(None, Tls), "TLS inside TLS");
    }

    proptest! {
        /// More bytes change nothing that is known, and a bounded number is enough.
        #[test]
        fn what_is_known_stays(
            start in prop::sample::select(vec![TURN, PAGE, SOCKET, MULTISTREAM, &HANDSHAKE[..], b""]),
            rest in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let bytes = [start, &rest].concat();
            let all = sniff(&bytes);
            for length in 0..bytes.len() {
                let known = sniff(&bytes[..length]);
                prop_assert!(known == Sniffed::More || known == all, "{length}");
            }
            let mut long = bytes;
            long.resize(MOST, b'a');
            prop_assert_ne!(sniff(&long), Sniffed::More);
        }

        #[test]
        fn arbitrary_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            sniff(&bytes);
        }
    }
}
