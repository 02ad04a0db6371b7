//! The header of PROXY protocol version 2, by which a proxy names its client before the client's first
//! byte (<https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt>, section 2.2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header that is read. The addresses have 36 bytes at most, and the rest is for what
/// proxies add about TLS and themselves.
pub(crate) const MOST: usize = 16 + 2048;

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The signature, the version with the command, the family, and the length of the rest.
const FIXED: usize = 16;

const LOCAL: u8 = 0x20;
const PROXY: u8 = 0x21;
const TCP_OVER_IPV4: u8 = 0x11;
const TCP_OVER_IPV6: u8 = 0x21;

/// What is known from the bytes that have arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    /// This many bytes are needed in all before more is known.
    More(usize),
    /// The header has this many bytes. The client is not known if the proxy asks for itself, as for a
    /// test of health, or if the client came to the proxy in another way than over TCP.
    Header {
        length: usize,
        client: Option<SocketAddr>,
    },
    /// It is no such header, or one that is too long.
    Invalid,
}

/// Reads the beginning of a connection of a proxy. More bytes never change what is known.
pub(crate) fn parse(bytes: &[u8]) -> Parsed {
    let start = bytes.get(..SIGNATURE.len()).unwrap_or(bytes);
    if !SIGNATURE.starts_with(start) {
        return Parsed::Invalid;
    }
    let Some((fixed, rest)) = bytes.split_first_chunk::<FIXED>() else {
        return Parsed::More(FIXED);
    };
    let [.., command, family, high, low] = *fixed;
    let length = usize::from(u16::from_be_bytes([high, low]));
    // Unknown commands and versions must be refused.
    if ![LOCAL, PROXY].contains(&command) || FIXED + length > MOST {
        return Parsed::Invalid;
    }
    let Some(body) = rest.get(..length) else {
        return Parsed::More(FIXED + length);
    };
    let client = match (command, family) {
        (PROXY, TCP_OVER_IPV4) => address::<4>(body, 8, |ip| Ipv4Addr::from(ip).into()),
        (PROXY, TCP_OVER_IPV6) => address::<16>(body, 32, |ip| Ipv6Addr::from(ip).into()),
        // The addresses of other families must be skipped.
        _ => Some(None),
    };
    match client {
        Some(client) => Parsed::Header {
            length: FIXED + length,
            client,
        },
        None => Parsed::Invalid,
    }
}

/// Reads the source, whose port stands at `port`, behind both addresses. Returns `None` if it is cut off.
/// A source without a port or an address says nothing.
fn address<const N: usize>(
    body: &[u8],
    port: usize,
    ip: impl Fn([u8; N]) -> IpAddr,
) -> Option<Option<SocketAddr>> {
    let source = body.first_chunk::<N>()?;
    // The port of the destination has to be there, too.
    let ports = body.get(port..port + 4)?;
    let source = SocketAddr::new(
        ip(*source).to_canonical(),
        u16::from_be_bytes([ports[0], ports[1]]),
    );
    let is_address = source.port() != 0 && !source.ip().is_unspecified();
    Some(is_address.then_some(source))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, body].concat()
    }

    const V4: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0xc3, 0x50, 1, 0xbb];

    fn client(bytes: &[u8]) -> Option<String> {
        match parse(bytes) {
            Parsed::Header { length, client } => {
                assert!(length <= bytes.len());
                client.map(|client| client.to_string())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_proxy_names_its_client() {
        let v4 = header(PROXY, TCP_OVER_IPV4, &V4);
        assert_eq!(client(&v4).as_deref(), Some("192.0.2.7:50000"));
        let more = [&v4[..], b"GET / HTTP/1.1"].concat();
        assert_eq!(parse(&more), parse(&v4), "what follows is the client's");
        let with_more = header(PROXY, TCP_OVER_IPV4, &[&V4[..], &[4, 0, 1, 9]].concat());
        assert_eq!(client(&with_more).as_deref(), Some("192.0.2.7:50000"));
        let mut v6 = [0; 36];
        v6[..16].copy_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
        v6[32..34].copy_from_slice(&[0xc3, 0x50]);
        let of_v6 = |v6: &[u8]| client(&header(PROXY, TCP_OVER_IPV6, v6));
        assert_eq!(of_v6(&v6).as_deref(), Some("[2001:db8::7]:50000"));
        let mapped: Ipv6Addr = "::ffff:192.0.2.7".parse().unwrap();
        v6[..16].copy_from_slice(&mapped.octets());
        assert_eq!(of_v6(&v6).as_deref(), Some("192.0.2.7:50000"));
    }

    #[test]
    fn some_headers_name_nobody() {
        assert_eq!(client(&header(LOCAL, 0, b"")), None);
        assert_eq!(client(&header(LOCAL, TCP_OVER_IPV4, &V4)), None);
        for family in [0, 0x31, 0x12, 0x22, 0xff] {
            assert_eq!(client(&header(PROXY, family, &V4)), None, "{family:x}");
        }
        assert_eq!(client(&header(PROXY, TCP_OVER_IPV4, &[0; 12])), None);
    }

    #[test]
    fn what_is_no_header_is_refused() {
        for bytes in [
            &b"GET / HTTP/1.1"[..],
            b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n",
            b"\r\n\r\n\0\r\nQUIX",
            &header(0x22, TCP_OVER_IPV4, &V4),
            &header(0x11, TCP_OVER_IPV4, &V4),
            &header(PROXY, TCP_OVER_IPV4, &V4[..11]),
            &header(PROXY, TCP_OVER_IPV6, &[1; 35]),
            &header(PROXY, 0, &[0; MOST - FIXED + 1]),
        ] {
            assert_eq!(parse(bytes), Parsed::Invalid, "{bytes:?}");
        }
        assert_eq!(parse(b""), Parsed::More(FIXED));
        let all = header(PROXY, TCP_OVER_IPV4, &V4);
        assert_eq!(parse(&all[..FIXED]), Parsed::More(all.len()));
        assert_eq!(MOST, 2064);
        let longest = header(PROXY, 0, &[0; MOST - FIXED]);
        let is_read = |length, client| Parsed::Header { length, client };
        assert_eq!(parse(&longest), is_read(MOST, None));
    }

    proptest! {
        /// More bytes change nothing that is known, and a bounded number is enough.
        #[test]
        fn what_is_known_stays(
            start in prop::sample::select(vec![0usize, 12, 13, 14, 16]),
            rest in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let whole = header(PROXY, TCP_OVER_IPV4, &[0; 40]);
            let bytes = [&whole[..start], &rest].concat();
            let all = parse(&bytes);
            for length in 0..bytes.len() {
                match parse(&bytes[..length]) {
                    Parsed::More(needed) => prop_assert!((length + 1..=MOST).contains(&needed)),
                    known => prop_assert_eq!(known, all),
                }
            }
        }
    }
}
