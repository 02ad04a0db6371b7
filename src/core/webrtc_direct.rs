//! The content of a `/webrtc-direct` address, the session descriptions that follow from it, and the
//! ICE credentials by which a server knows its clients.

use std::{net::IpAddr, ops::RangeInclusive};

use multiaddr::{Multiaddr, Protocol, multihash::Multihash};

use super::sdp::Fingerprint;

/// The multihash code of SHA-256.
const SHA2_256: u64 = 0x12;

/// The beginning of the server's credentials in version 1, where both sides have the same ones. A
/// page has to change its own offer for that, which browsers are about to forbid.
const V1: &str = "libp2p+webrtc+v1/";

/// The beginning of the server's credentials in version 2. The password of the client follows, which
/// the browser has chosen.
const V2: &str = "libp2p+webrtc+v2/";

/// The lengths of a username fragment and of a password (RFC 8839 section 5.4).
const FRAGMENT_LEN: RangeInclusive<usize> = 4..=256;
const PASSWORD_LEN: RangeInclusive<usize> = 22..=256;

/// The number of random characters that follow. They are so many that nobody can guess them (RFC
/// 8445 section 5.3 asks for 128 bits in the password).
pub(crate) const CREDENTIALS_LEN: usize = 32;

/// The server of an address `/ip4|ip6/<ip>/udp/<port>/webrtc-direct/certhash/<hash>`. The address
/// may end with `/p2p/<peer>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DirectServer {
    ip: IpAddr,
    port: u16,
    certificate: Multihash<64>,
}

impl DirectServer {
    /// Returns the server that `address` names, or `None` if the address is of another kind.
    pub(crate) fn from_multiaddr(address: &Multiaddr) -> Option<Self> {
        let mut parts = address.iter();
        let ip = match parts.next()? {
            Protocol::Ip4(ip) => ip.into(),
            Protocol::Ip6(ip) => ip.into(),
            _ => return None,
        };
        let Protocol::Udp(port) = parts.next()? else {
            return None;
        };
        let (Protocol::WebRTCDirect, Protocol::Certhash(certificate)) =
            (parts.next()?, parts.next()?)
        else {
            return None;
        };
        if !matches!(parts.next(), None | Some(Protocol::P2p(_))) {
            return None;
        }
        let known = certificate.code() == SHA2_256 && certificate.digest().len() == 32;
        (known && parts.next().is_none()).then_some(Self {
            ip,
            port,
            certificate,
        })
    }

    /// The multihash of the server's certificate.
    pub(crate) fn certificate(&self) -> &Multihash<64> {
        &self.certificate
    }

    /// Returns the answer that the server would give if it were asked. The server is an ICE-lite
    /// agent and the DTLS server.
    pub(crate) fn answer(&self, credentials: &str) -> String {
        let Self { ip, port, .. } = self;
        let family = if ip.is_ipv4() { "IP4" } else { "IP6" };
        let fingerprint = Fingerprint {
            hash: "sha-256".to_owned(),
            digest: self.certificate.digest().to_vec(),
        };
        format!(
            "v=0\r\n\
             o=- 0 0 IN {family} {ip}\r\n\
             s=-\r\n\
             t=0 0\r\n\
             a=ice-lite\r\n\
             m=application {port} UDP/DTLS/SCTP webrtc-datachannel\r\n\
             c=IN {family} {ip}\r\n\
             a=mid:0\r\n\
             a=ice-options:ice2\r\n\
             a=ice-ufrag:{credentials}\r\n\
             a=ice-pwd:{credentials}\r\n\
             a=fingerprint:{fingerprint}\r\n\
             a=setup:passive\r\n\
             a=sctp-port:5000\r\n\
             a=max-message-size:16384\r\n\
             a=candidate:1 1 UDP 2130706431 {ip} {port} typ host\r\n\
             a=end-of-candidates\r\n"
        )
    }
}

/// Makes fresh credentials of version 1. They are the username fragment and the password of both
/// sides.
// There are 64 characters, so six bits of a byte choose each with equal probability. All are
// ice-chars.
pub(crate) fn credentials(random: [u8; CREDENTIALS_LEN]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let characters = random
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte % 64)]));
    V1.chars().chain(characters).collect()
}

/// Returns the credentials of the server in version 2, for a client with the password `pwd`. They
/// are its username fragment and its password.
pub(crate) fn credentials_for(pwd: &str) -> String {
    [V2, pwd].concat()
}

/// The credentials of both sides, as the server reads them from a connectivity check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Credentials {
    /// The username fragment of the server, which is its password as well.
    pub(crate) server: String,
    /// The username fragment of the client.
    pub(crate) client: String,
    /// The password of the client.
    pub(crate) client_pwd: String,
    /// Whether the client speaks version 2, and so a version of this protocol that has FIN_ACK.
    pub(crate) is_v2: bool,
}

impl Credentials {
    /// Reads the two parts of the user name in a client's connectivity check. Returns `None` if
    /// they belong to no version of this protocol.
    pub(crate) fn read(server: &str, client: &str) -> Option<Self> {
        if !is_made_of_ice_chars(server, FRAGMENT_LEN) {
            return None;
        }
        let (client_pwd, is_v2) = match server.strip_prefix(V2) {
            Some(pwd) => (pwd, true),
            None if server.starts_with(V1) && client == server => (server, false),
            None => return None,
        };
        let valid = is_made_of_ice_chars(client, FRAGMENT_LEN)
            && is_made_of_ice_chars(client_pwd, PASSWORD_LEN);
        valid.then(|| Self {
            server: server.to_owned(),
            client: client.to_owned(),
            client_pwd: client_pwd.to_owned(),
            is_v2,
        })
    }
}

/// Whether `text` is of this length and has only the characters of ICE credentials (RFC 8839 section
/// 5.4).
fn is_made_of_ice_chars(text: &str, len: RangeInclusive<usize>) -> bool {
    let is_ice_char = |b: u8| b.is_ascii_alphanumeric() || b == b'+' || b == b'/';
    len.contains(&text.len()) && text.bytes().all(is_ice_char)
}

/// Returns `offer` with both ICE credentials replaced.
pub(crate) fn with_credentials(offer: &str, credentials: &str) -> String {
    let mut munged = String::with_capacity(offer.len() + credentials.len());
    for line in offer.lines() {
        let attribute = ["a=ice-ufrag:", "a=ice-pwd:"]
            .into_iter()
            .find(|name| line.starts_with(name));
        match attribute {
            Some(name) => {
                munged.push_str(name);
                munged.push_str(credentials);
            }
            None => munged.push_str(line),
        }
        munged.push_str("\r\n");
    }
    munged
}

/// Returns the bytes that both sides mix into the noise handshake, so that it vouches for the DTLS
/// session below. The client is the side that dials.
pub(crate) fn prologue(client: &Multihash<64>, server: &Multihash<64>) -> Vec<u8> {
    const PREFIX: &[u8] = b"libp2p-webrtc-noise:";
    [PREFIX, &client.to_bytes(), &server.to_bytes()].concat()
}

/// Converts a SHA-256 fingerprint to a multihash.
pub(crate) fn multihash(fingerprint: &Fingerprint) -> Option<Multihash<64>> {
    (fingerprint.hash == "sha-256" && fingerprint.digest.len() == 32)
        .then(|| Multihash::wrap(SHA2_256, &fingerprint.digest).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::core::sdp::Description;

    const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
    const SERVER: &str = "/ip4/192.0.2.1/udp/4002/webrtc-direct/certhash/\
                          uEiDDq4_xNyDorZBH3TlGazyJdOWSwvo4PUo5YHFMrvDE8g";

    fn target(address: &str) -> Option<DirectServer> {
        DirectServer::from_multiaddr(&address.parse().expect("a multiaddr"))
    }

    #[test]
    fn knows_servers_from_what_is_behind_them() {
        let server = target(SERVER);
        let certificate = server.as_ref().expect("a server").certificate();
        assert_eq!(certificate.digest()[..2], [0xc3, 0xab]);
        assert_eq!(target(&format!("{SERVER}/p2p/{PEER}")), server);
        for address in [
            format!("{SERVER}/p2p/{PEER}/p2p-circuit"),
            format!("{SERVER}/p2p/{PEER}/p2p-circuit/webrtc"),
            "/ip4/192.0.2.1/udp/4002/webrtc-direct".to_owned(),
            "/ip4/192.0.2.1/tcp/4002/ws".to_owned(),
            SERVER.replace("/ip4/192.0.2.1", "/dns4/relay.example"),
            SERVER.replace("/udp/", "/tcp/"),
            SERVER.replace("webrtc-direct", "quic-v1"),
            // This hash is of another kind.
            SERVER.replace("uEiDDq4", "uEyDDq4"),
        ] {
            assert_eq!(target(&address), None, "{address}");
        }
    }

    #[test]
    fn the_answer_is_a_description() {
        let credentials = credentials(std::array::from_fn(|at| at as u8));
        let target = target(SERVER).expect("a server");
        let answer = Description::parse(&target.answer(&credentials)).expect("a description");
        assert_eq!(answer.ufrag, credentials);
        assert_eq!(answer.pwd, credentials);
        assert!(answer.ice_lite);
        assert_eq!(answer.candidates.len(), 1);
        assert_eq!(multihash(&answer.fingerprint), Some(target.certificate));
    }

    #[test]
    fn munging_changes_the_credentials_alone() {
        let offer = "v=0\r\na=ice-ufrag:abcd\r\na=ice-pwd:0123456789\r\na=mid:0\r\n";
        let munged = with_credentials(offer, "X");
        assert_eq!(munged, "v=0\r\na=ice-ufrag:X\r\na=ice-pwd:X\r\na=mid:0\r\n");
    }

    /// The test vector is from the `/webrtc-direct` specification.
    #[test]
    fn prologue_as_specified() {
        let hash = |hex: &str| {
            let digest = data_encoding::HEXLOWER.decode(hex.as_bytes()).expect("hex");
            Multihash::wrap(SHA2_256, &digest).expect("32 bytes")
        };
        let client = hash("3e79af40d6059617a0d83b83a52ce73b0c1f37a72c6043ad2969e2351bdca870");
        let server = hash("30fc9f469c207419dfdd0aab5f27a86c973c94e40548db9375cca2e915973b99");
        let expected = "6c69627032702d7765627274632d6e6f6973653a\
                        12203e79af40d6059617a0d83b83a52ce73b0c1f37a72c6043ad2969e2351bdca870\
                        122030fc9f469c207419dfdd0aab5f27a86c973c94e40548db9375cca2e915973b99";
        let prologue = data_encoding::HEXLOWER.encode(&prologue(&client, &server));
        assert_eq!(prologue, expected);
    }

    #[test]
    fn an_answer_names_the_family_of_its_address() {
        let answer = |address: &str| {
            let server = target(&SERVER.replace("/ip4/192.0.2.1", address)).expect("a server");
            server.answer("x")
        };
        assert!(answer("/ip4/192.0.2.1").contains("c=IN IP4 192.0.2.1\r\n"));
        assert!(answer("/ip6/2001:db8::1").contains("c=IN IP6 2001:db8::1\r\n"));
    }

    #[test]
    fn only_sha_256_names_a_certificate() {
        let fingerprint = |hash: &str, length| Fingerprint {
            hash: hash.to_owned(),
            digest: vec![7; length],
        };
        assert!(multihash(&fingerprint("sha-256", 32)).is_some());
        assert_eq!(multihash(&fingerprint("sha-256", 31)), None);
        assert_eq!(multihash(&fingerprint("sha-512", 32)), None);
    }

    #[test]
    fn a_server_knows_both_versions_from_the_user_name() {
        let own = credentials([7; CREDENTIALS_LEN]);
        let read = Credentials::read(&own, &own).expect("version 1");
        assert!(!read.is_v2);
        assert_eq!([&read.server, &read.client, &read.client_pwd], [&own; 3]);
        let pwd = "mF2jQbqq0K2p+a/4Zt8f0Iuw";
        let server = credentials_for(pwd);
        let read = Credentials::read(&server, "hT3x").expect("version 2");
        let expected = Credentials {
            server: server.clone(),
            client: "hT3x".to_owned(),
            client_pwd: pwd.to_owned(),
            is_v2: true,
        };
        assert_eq!(read, expected);
        let longest = credentials_for(&"a".repeat(256 - V2.len()));
        assert!(Credentials::read(&longest, "hT3x").is_some());
        for (server, client) in [
            // These are credentials of somebody else, and of another version.
            ("hT3x", "hT3x"),
            (pwd, pwd),
            (&*server.replace("v2", "v3"), "hT3x"),
            // In version 1, both sides must have the same credentials.
            (&*own, "hT3x"),
            (V1, V1),
            // This password and this fragment are too short.
            (&*credentials_for(&pwd[..21]), "hT3x"),
            (&*server, "hT3"),
            // These fragments are too long.
            (&*format!("{longest}a"), "hT3x"),
            (&*server, &*"a".repeat(257)),
            (&*server, "hT3-"),
            (&*format!("{server}-"), "hT3x"),
            (&*format!("{own}ä"), &*format!("{own}ä")),
        ] {
            assert_eq!(Credentials::read(server, client), None, "{server} {client}");
        }
    }

    proptest! {
        #[test]
        fn no_user_name_is_too_odd(server in ".{0,300}", client in ".{0,300}", prefix in 0..3usize) {
            let server = [["", V1, V2][prefix], &server].concat();
            if let Some(read) = Credentials::read(&server, &client) {
                prop_assert_eq!(read.is_v2, prefix == 2);
                prop_assert!(PASSWORD_LEN.contains(&read.client_pwd.len()));
                prop_assert!(FRAGMENT_LEN.contains(&read.server.len()));
            }
        }

        /// RFC 8839 section 5.4: letters, digits, `+` and `/`.
        #[test]
        fn credentials_hold_ice_chars_and_differ(random: [u8; CREDENTIALS_LEN], at in 0..CREDENTIALS_LEN) {
            let made = credentials(random);
            let secret = made.strip_prefix(V1).expect("the prefix");
            prop_assert_eq!(secret.len(), CREDENTIALS_LEN);
            prop_assert!(secret.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/".contains(&b)));
            let mut other = random;
            other[at] ^= 1;
            prop_assert_ne!(credentials(other), made);
        }

        #[test]
        fn no_multiaddress_is_too_odd(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(address) = Multiaddr::try_from(bytes) {
                let _ = DirectServer::from_multiaddr(&address);
            }
        }
    }
}
