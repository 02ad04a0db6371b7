//! What a `/webrtc-direct` address says, and the session descriptions that follow from it.

use std::net::IpAddr;

use libp2p::multihash::Multihash;
use multiaddr::{Multiaddr, Protocol};

use crate::core::sdp::Fingerprint;

/// The multihash code of SHA-256.
const SHA2_256: u64 = 0x12;

/// Marks credentials of version 1, by which the server knows whom it has before it. Version 1 has
/// the same credentials on both sides.
const CREDENTIALS_PREFIX: &str = "libp2p+webrtc+v1/";

/// How many random characters follow: enough that nobody can guess them (RFC 8445 section 5.3
/// asks for 128 bits in the password).
const CREDENTIALS_LEN: usize = 32;

/// The server of an address `/ip4|ip6/<ip>/udp/<port>/webrtc-direct/certhash/<hash>`, with or
/// without `/p2p/<peer>` behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    ip: IpAddr,
    port: u16,
    certificate: Multihash<64>,
}

impl Target {
    /// The server that `address` names, or `None` when the address is of another kind.
    pub(super) fn from_multiaddr(address: &Multiaddr) -> Option<Self> {
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
    pub(super) fn certificate(&self) -> &Multihash<64> {
        &self.certificate
    }

    /// The answer that the server would give if it were asked. It is an ICE-lite agent and the
    /// DTLS server.
    pub(super) fn answer(&self, credentials: &str) -> String {
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

/// Fresh credentials, name and password in one.
pub(super) fn credentials() -> Result<String, getrandom::Error> {
    // 64 characters, so that six bits of a byte choose one evenly. All are ice-chars.
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut random = [0; CREDENTIALS_LEN];
    getrandom::fill(&mut random)?;
    let characters = random
        .iter()
        .map(|byte| char::from(ALPHABET[usize::from(byte % 64)]));
    Ok(CREDENTIALS_PREFIX.chars().chain(characters).collect())
}

/// `offer` with both ICE credentials replaced.
pub(super) fn with_credentials(offer: &str, credentials: &str) -> String {
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

/// What both sides mix into the noise handshake, so that it vouches for the DTLS session under
/// it. The client is the one who dials.
pub(super) fn prologue(client: &Multihash<64>, server: &Multihash<64>) -> Vec<u8> {
    const PREFIX: &[u8] = b"libp2p-webrtc-noise:";
    [PREFIX, &client.to_bytes(), &server.to_bytes()].concat()
}

/// A SHA-256 fingerprint as a multihash.
pub(super) fn multihash(fingerprint: &Fingerprint) -> Option<Multihash<64>> {
    (fingerprint.hash == "sha-256" && fingerprint.digest.len() == 32)
        .then(|| Multihash::wrap(SHA2_256, &fingerprint.digest).ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use wasm_bindgen_test::wasm_bindgen_test;

    use super::*;
    use crate::core::sdp::Description;

    const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
    const SERVER: &str = "/ip4/192.0.2.1/udp/4002/webrtc-direct/certhash/\
                          uEiDDq4_xNyDorZBH3TlGazyJdOWSwvo4PUo5YHFMrvDE8g";

    fn target(address: &str) -> Option<Target> {
        Target::from_multiaddr(&address.parse().expect("a multiaddr"))
    }

    #[wasm_bindgen_test]
    fn knows_servers_from_what_is_behind_them() {
        let server = target(SERVER);
        assert!(server.is_some());
        assert_eq!(target(&format!("{SERVER}/p2p/{PEER}")), server);
        for address in [
            format!("{SERVER}/p2p/{PEER}/p2p-circuit"),
            format!("{SERVER}/p2p/{PEER}/p2p-circuit/webrtc"),
            "/ip4/192.0.2.1/udp/4002/webrtc-direct".to_owned(),
            "/ip4/192.0.2.1/tcp/4002/ws".to_owned(),
            SERVER.replace("/ip4/192.0.2.1", "/dns4/relay.example"),
        ] {
            assert_eq!(target(&address), None, "{address}");
        }
    }

    #[wasm_bindgen_test]
    fn the_answer_is_a_description() {
        let credentials = credentials().expect("randomness");
        let target = target(SERVER).expect("a server");
        let answer = Description::parse(&target.answer(&credentials)).expect("a description");
        assert_eq!(answer.ufrag, credentials);
        assert_eq!(answer.pwd, credentials);
        assert!(answer.ice_lite);
        assert_eq!(answer.candidates.len(), 1);
        assert_eq!(multihash(&answer.fingerprint), Some(target.certificate));
    }

    #[wasm_bindgen_test]
    fn munging_changes_the_credentials_alone() {
        let offer = "v=0\r\na=ice-ufrag:abcd\r\na=ice-pwd:0123456789\r\na=mid:0\r\n";
        let munged = with_credentials(offer, "X");
        assert_eq!(munged, "v=0\r\na=ice-ufrag:X\r\na=ice-pwd:X\r\na=mid:0\r\n");
    }

    /// The test vector of the `/webrtc-direct` specification.
    #[wasm_bindgen_test]
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
}
