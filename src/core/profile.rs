//! What a relay says of itself: its peer id, its addresses over every transport, and its servers. It is
//! one JSON document, which a relay serves at [`PATH`] and over its links.
//!
//! Whoever wrote it is a stranger in part: a relay of the user may say where it is, and may not aim us
//! at anybody. So the reader drops each address and each server that [`Policy`] refuses.

use std::{net::SocketAddr, time::Duration};

use multiaddr::{Multiaddr, PeerId, Protocol};
use serde::{Deserialize, Serialize};

use super::{
    access::MAX_USERNAME,
    address::{self, MAX_ADDRESS_BYTES},
    dial::{self, Policy},
    server_url::{ServerTransport, ServerUrl, Service},
};

/// The longest password for TURN, in bytes. That of a server of ours has 28.
const MAX_CREDENTIAL: usize = 512;

/// Where it is served over HTTP (RFC 8615).
pub(crate) const PATH: &str = "/.well-known/throughline";
/// The protocol by which it is read over a link. The relay writes it behind its length.
pub(crate) const PROTOCOL: &str = "/throughline/profile/1";
/// The longest document. One with every transport of both families has some 3 KiB.
pub(crate) const MAX_BYTES: usize = 64 * 1024;
/// The longest document over a link, where the length has two bytes.
pub(crate) const MAX_MESSAGE: usize = (1 << 14) - 1;
/// How long what was read counts, if the relay does not say so.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(300);

/// The version of the document. A later version may mean something else by the same names. New names
/// do not change it.
const VERSION: u64 = 1;
/// The most addresses that are told and kept. One for each transport and address family makes 8, with a name
/// besides.
pub(crate) const MAX_ADDRESSES: usize = 16;
/// The most servers of one kind that are kept. Browsers slow down with more.
const MAX_SERVERS: usize = 4;
/// The bounds of the time that what was read counts.
const AGES: (u64, u64) = (30, 24 * 60 * 60);

/// The document, as it is written.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Profile {
    pub(crate) version: u64,
    pub(crate) peer_id: String,
    /// The addresses of the relay. Each ends in `/p2p/<relay>`.
    pub(crate) addresses: Vec<String>,
    pub(crate) stun: Vec<String>,
    pub(crate) turn: Vec<Turn>,
    /// The protocols that it serves to peers, as identify names them.
    pub(crate) protocols: Vec<String>,
    /// Other relays of the same operator, as a peer would configure them.
    pub(crate) sisters: Vec<String>,
    /// For how many seconds it counts.
    pub(crate) max_age: u64,
}

/// The part of the document that is read.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Read {
    version: u64,
    peer_id: String,
    addresses: Vec<String>,
    stun: Vec<String>,
    turn: Vec<Turn>,
    max_age: u64,
}

/// A TURN server as `RTCIceServer` has it. Without credentials, a peer gets them over its link.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Turn {
    pub(crate) urls: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) username: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) credential: String,
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Turn")
            .field("urls", &self.urls)
            .finish_non_exhaustive()
    }
}

/// What is kept of a document.
#[derive(Clone, Debug)]
pub(crate) struct Learnt {
    pub(crate) peer: PeerId,
    /// Each ends in `/p2p/<peer>`. There is at least one.
    pub(crate) addresses: Vec<Multiaddr>,
    pub(crate) stun: Vec<String>,
    /// Those with credentials.
    pub(crate) turn: Option<Turn>,
    /// How long it counts.
    pub(crate) age: Duration,
}

impl Profile {
    /// The document of a relay in the present version.
    pub(crate) fn new(peer: PeerId) -> Self {
        Self {
            version: VERSION,
            peer_id: peer.to_string(),
            max_age: MAX_AGE.as_secs(),
            ..Self::default()
        }
    }
}

/// Reads a document. `policy` says what may be dialled.
///
/// # Errors
/// Says what is wrong with it.
pub(crate) fn read(json: &[u8], policy: &Policy) -> Result<Learnt, String> {
    if json.len() > MAX_BYTES {
        return Err(format!("it is longer than {MAX_BYTES} bytes"));
    }
    let json = std::str::from_utf8(json).map_err(|_| "it is not UTF-8")?;
    let profile: Read = serde_json::from_str(json).map_err(|error| error.to_string())?;
    if profile.version != VERSION {
        return Err(format!("its version is {} and not 1", profile.version));
    }
    let peer: PeerId = profile.peer_id.parse().map_err(|_| "it has no peer id")?;
    let sound = |text: &String| {
        let address: Multiaddr = text.parse().ok()?;
        let is_circuit = address.iter().any(|part| part == Protocol::P2pCircuit);
        let fits = address.len() <= MAX_ADDRESS_BYTES && !is_circuit;
        let address = address::with_peer(&address, peer).filter(|_| fits)?;
        policy.check(&address).is_ok().then_some(address)
    };
    let addresses = profile.addresses.iter().filter_map(sound);
    let addresses: Vec<_> = addresses.take(MAX_ADDRESSES).collect();
    if addresses.is_empty() {
        return Err("it has no address that may be dialled".to_owned());
    }
    // A relay leads its clients to servers at its own hosts only.
    let hosts: Vec<_> = addresses.iter().filter_map(host).collect();
    let kept = |urls: &[String], is_fit: fn(Service) -> bool| -> Vec<String> {
        let fit = urls
            .iter()
            .filter(|url| may_use(url, is_fit, &hosts, policy));
        fit.take(MAX_SERVERS).cloned().collect()
    };
    let turn = profile.turn.into_iter().find(has_sound_credentials);
    let turn = turn.map(|turn| Turn {
        urls: kept(&turn.urls, is_turn),
        ..turn
    });
    Ok(Learnt {
        peer,
        addresses,
        stun: kept(&profile.stun, |service| service == Service::Stun),
        // Browsers refuse a server without an address, and all others with it.
        turn: turn.filter(|turn| !turn.urls.is_empty()),
        age: Duration::from_secs(profile.max_age.clamp(AGES.0, AGES.1)),
    })
}

/// The host of an address, as URLs have it.
fn host(address: &Multiaddr) -> Option<String> {
    match address.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.to_string()),
        Protocol::Ip6(ip) => Some(ip.to_string()),
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => {
            Some(name.to_ascii_lowercase())
        }
        _ => None,
    }
}

/// One server that the ICE of some target cannot use would make it refuse all.
fn is_turn(service: Service) -> bool {
    matches!(service, Service::Turn(transport) if transport != ServerTransport::Dtls)
}

fn has_sound_credentials(turn: &Turn) -> bool {
    (1..=MAX_USERNAME).contains(&turn.username.len())
        && (1..=MAX_CREDENTIAL).contains(&turn.credential.len())
}

/// Whether a server may be asked that a relay has named. Where a name leads is checked when it is
/// resolved, except in a page.
fn may_use(url: &str, is_fit: fn(Service) -> bool, hosts: &[String], policy: &Policy) -> bool {
    let Ok(url) = url.parse::<ServerUrl>() else {
        return false;
    };
    if !hosts.contains(&url.host.to_ascii_lowercase()) {
        return false;
    }
    let place = match url.host.parse() {
        Ok(ip) => policy.allows(SocketAddr::new(ip, url.port)).is_ok(),
        Err(_) => !dial::is_localhost(&url.host),
    };
    is_fit(url.service) && place
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    fn document() -> Value {
        json!({
            "version": 1,
            "peer_id": PEER,
            "addresses": ["/ip4/192.0.2.1/udp/1/quic-v1", format!("/dns4/r.example/tcp/1/tls/ws/p2p/{PEER}")],
            "stun": ["stun:192.0.2.1:3"],
            "turn": [{ "urls": ["turn:192.0.2.1:5"], "username": "u", "credential": "c" }],
            "later": { "names": "are skipped" },
        })
    }

    fn read_all(document: &Value, private: bool) -> Result<Learnt, String> {
        let policy = Policy::new(private, Vec::new());
        read(document.to_string().as_bytes(), &policy)
    }

    #[test]
    fn what_a_relay_writes_is_read() {
        let peer: PeerId = PEER.parse().unwrap();
        let written = Profile {
            addresses: vec![format!("/ip4/192.0.2.1/tcp/1/p2p/{PEER}")],
            turn: vec![Turn {
                urls: vec!["turn:192.0.2.1:5".into()],
                ..Turn::default()
            }],
            ..Profile::new(peer)
        };
        let json = serde_json::to_string(&written).unwrap();
        assert!(!json.contains("credential"), "{json}");
        let learnt = read(json.as_bytes(), &Policy::new(false, Vec::new())).unwrap();
        assert_eq!((learnt.peer, learnt.age), (peer, MAX_AGE));
        assert_eq!(learnt.addresses[0].to_string(), written.addresses[0]);
        assert!(learnt.turn.is_none(), "it has no credentials");
    }

    #[test]
    fn every_address_ends_in_the_peer() {
        let learnt = read_all(&document(), false).unwrap();
        let ends = format!("/p2p/{PEER}");
        let texts: Vec<_> = learnt.addresses.iter().map(Multiaddr::to_string).collect();
        assert_eq!(texts.len(), 2);
        assert!(texts.iter().all(|text| text.ends_with(&ends)), "{texts:?}");
        assert_eq!(learnt.stun, ["stun:192.0.2.1:3"]);
        assert_eq!(learnt.turn.unwrap().urls, ["turn:192.0.2.1:5"]);
        assert_eq!(learnt.age, Duration::from_secs(AGES.0), "it does not say");
    }

    #[test]
    fn nobody_is_aimed_at() {
        let other = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo";
        let mut aimed = document();
        aimed["addresses"] = json!([
            "/ip4/169.254.169.254/tcp/80",
            "/ip4/10.0.0.1/tcp/1",
            "/dns4/localhost/tcp/1/ws",
            "/ip4/127.0.0.1/tcp/1/x-parity-ws/%2Fset",
            format!("/ip4/192.0.2.1/tcp/1/p2p/{other}"),
            format!("/ip4/192.0.2.1/tcp/1/p2p/{PEER}/p2p-circuit"),
            "no address",
        ]);
        let error = read_all(&aimed, false).unwrap_err();
        assert!(error.contains("no address"), "{error}");
        let learnt = read_all(&aimed, true).unwrap();
        let texts = learnt.addresses.iter().map(Multiaddr::to_string);
        let expected = ["/ip4/10.0.0.1/tcp/1", "/dns4/localhost/tcp/1/ws"];
        assert!(texts.eq(expected.map(|address| format!("{address}/p2p/{PEER}"))));

        let others = aimed["addresses"].clone();
        aimed["addresses"] = json!(["/ip4/192.0.2.1/tcp/1"]);
        aimed["stun"] = json!([
            "stun:169.254.169.254",
            "stun:10.0.0.1",
            "stun:192.0.2.9",
            "stun:localhost:1",
            "turn:a",
            "x"
        ]);
        aimed["turn"][0]["urls"] = json!(["turn:[fe80::1]:1", "turn:192.0.2.9", "stun:10.0.0.1"]);
        let learnt = read_all(&aimed, false).unwrap();
        assert!(learnt.stun.is_empty() && learnt.turn.is_none());
        aimed["addresses"] = others;
        // This relay may have private addresses.
        let stun = read_all(&aimed, true).unwrap().stun;
        assert_eq!(stun, ["stun:10.0.0.1"]);
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut long = document();
        let addresses = (1..99).map(|port| format!("/ip4/192.0.2.1/tcp/{port}"));
        long["addresses"] = addresses.collect();
        long["stun"] = (1..99)
            .map(|port| format!("stun:192.0.2.1:{port}"))
            .collect();
        long["max_age"] = json!(u64::MAX);
        let learnt = read_all(&long, false).unwrap();
        assert_eq!(learnt.addresses.len(), MAX_ADDRESSES);
        assert_eq!(learnt.stun.len(), MAX_SERVERS);
        assert_eq!(learnt.age, Duration::from_secs(86_400), "a day");
        let mut whole = document().to_string();
        whole += &" ".repeat(MAX_BYTES - whole.len());
        assert!(read(whole.as_bytes(), &Policy::new(false, Vec::new())).is_ok());
        let huge = vec![b' '; MAX_BYTES + 1];
        let error = read(&huge, &Policy::new(false, Vec::new())).unwrap_err();
        assert!(error.contains("longer than 65536"), "{error}");
    }

    #[test]
    fn a_turn_server_needs_a_name_and_a_credential_of_a_sound_length() {
        let turn = |username: &str, credential: &str| {
            let mut document = document();
            document["turn"][0]["username"] = json!(username);
            document["turn"][0]["credential"] = json!(credential);
            read_all(&document, false).unwrap().turn
        };
        assert!(turn(&"u".repeat(MAX_USERNAME), &"c".repeat(MAX_CREDENTIAL)).is_some());
        assert!(turn("", "c").is_none());
        assert!(turn("u", "").is_none());
        assert!(turn(&"u".repeat(MAX_USERNAME + 1), "c").is_none());
        assert!(turn("u", &"c".repeat(MAX_CREDENTIAL + 1)).is_none());
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (name, value, why) in [
            ("version", json!(2), "version is 2"),
            ("peer_id", json!("x"), "no peer id"),
            ("addresses", json!("x"), "invalid type"),
            ("addresses", json!([]), "no address"),
        ] {
            let mut wrong = document();
            wrong[name] = value;
            let error = read_all(&wrong, false).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn debug_shows_no_credentials() {
        let turn = read_all(&document(), false).unwrap().turn;
        assert!(!format!("{turn:?}").contains("credential"));
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes, &Policy::new(true, Vec::new()));
        }
    }
}
