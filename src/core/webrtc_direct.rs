//! The content of a `/webrtc-direct` address, and the session descriptions that follow from it.

use std::net::IpAddr;

use multiaddr::{Multiaddr, Protocol, multihash::Multihash};

use super::sdp::Fingerprint;

/// The multihash code of SHA-256.
const SHA2_256: u64 = 0x12;

/// The beginning of version 1 credentials, by which the server recognises this protocol. In version
/// 1, both sides have the same credentials.
const CREDENTIALS_PREFIX: &str = "libp2p+webrtc+v1/";

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

    /// The answer that the server would give if it were asked. The server is an ICE-lite agent and
    /// the DTLS server.
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

/// Makes fresh credentials. They are both username fragment and password.
// There are 64 characters, so six bits of a byte choose each with equal probability. All are
// ice-chars.
pub(crate) fn credentials(random: [u8; CREDENTIALS_LEN]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let characters = random
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte % 64)]));
    CREDENTIALS_PREFIX.chars().chain(characters).collect()
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

/// The bytes that both sides mix into the noise handshake, so that it vouches for the DTLS session
/// below. The client is the side that dials.
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
            // A hash of another kind.
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

    proptest! {
        /// RFC 8839 section 5.4: letters, digits, `+` and `/`.
        #[test]
        fn credentials_hold_ice_chars_and_differ(random: [u8; CREDENTIALS_LEN], at in 0..CREDENTIALS_LEN) {
            let made = credentials(random);
            let secret = made.strip_prefix(CREDENTIALS_PREFIX).expect("the prefix");
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
