//! Tests floods of a server's `/webrtc-direct` port: STUN that is not authentic, and first checks
//! that are not followed by anything.

use std::net::SocketAddr;

use str0m::{
    crypto::from_feature_flags,
    ice::{StunMessage, TransId},
};
use tokio::net::UdpSocket;

use super::{
    server::{ATTACKER, HONEST, Served},
    *,
};

/// The share that follows from `connections.pending` and `connections.share_per_address` below.
const SHARE: usize = 10;
const SETTINGS: &str = "[connections]\npending = 100\nshare_per_address = 10\n";

const ANOTHER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 4);

/// Makes a first check with credentials of its own. Without `key`, it is authentic, because the key
/// is the server's fragment.
fn check(n: usize, version: &str, key: Option<&str>) -> Vec<u8> {
    let server = format!("libp2p+webrtc+{version}/{n:032}");
    let client = match version {
        "v1" => server.clone(),
        _ => format!("{n:08}"),
    };
    let username = format!("{server}:{client}");
    let id = TransId::new();
    let message = StunMessage::binding_request(&username, id, true, 7, 1, false);
    let mut bytes = vec![0; 1500];
    let hmac = from_feature_flags().sha1_hmac_provider;
    let key = key.unwrap_or(&server).as_bytes();
    let written = message.to_bytes(Some(key), &mut bytes, |key, parts| {
        hmac.sha1_hmac(key, parts)
    });
    bytes.truncate(written.unwrap());
    bytes
}

/// Sends the check from a port of its own, and reads what comes back until the server has been silent
/// for a while. Returns the datagrams.
async fn answers(from: Ipv4Addr, to: SocketAddr, check: &[u8]) -> Vec<Vec<u8>> {
    let socket = UdpSocket::bind((from, 0)).await.unwrap();
    socket.connect(to).await.unwrap();
    socket.send(check).await.unwrap();
    let mut came = Vec::new();
    let mut datagram = [0; 1500];
    let silence = Duration::from_secs(1);
    while let Ok(Ok(length)) = timeout(silence, socket.recv(&mut datagram)).await {
        came.push(datagram[..length].to_vec());
    }
    came
}

#[tokio::test(flavor = "multi_thread")]
async fn stun_that_is_not_authentic_makes_no_state() {
    let served = Served::start(SETTINGS);
    let to = served.socket("/webrtc-direct");
    let genuine = check(0, "v1", None);
    let nonsense = [
        check(
            1,
            "v1",
            Some("another key, which has twenty-two characters"),
        ),
        check(
            2,
            "v2",
            Some("another key, which has twenty-two characters"),
        ),
        check(3, "v3", None),
        genuine[..genuine.len() - 8].to_vec(),
        [&[1, 1], &genuine[2..]].concat(),
        vec![0; 20],
        vec![22; 200],
    ];
    let before = served.resident();
    for round in 0..400 {
        // Each round has a port of its own.
        let socket = UdpSocket::bind((ATTACKER, 0)).await.unwrap();
        for datagram in &nonsense {
            socket.send_to(datagram, to).await.unwrap();
        }
        if round == 0 {
            let mut answer = [0; 1500];
            let answered = timeout(Duration::from_millis(300), socket.recv(&mut answer)).await;
            // It is a good request for the STUN server at this port, which knows no PRIORITY.
            let refused = answered.expect("the STUN server refuses one").unwrap();
            assert_eq!(answer[..2], [1, 0x11], "{:?}", &answer[..refused]);
        }
    }
    // The address still has its whole share.
    let all = (0..SHARE).map(|n| check(100 + n, "v1", None));
    let came = join_all(all.map(async |check| answers(ATTACKER, to, &check).await)).await;
    assert!(came.iter().all(|came| !came.is_empty()));
    assert_eq!(served.refused("webrtc_handshake", "address"), 0);
    assert!(served.resident() < before + 4 * 1024);
}

#[tokio::test(flavor = "multi_thread")]
async fn first_checks_are_bounded_for_each_address_and_others_come_in() {
    let served = Served::start(SETTINGS);
    let to = served.socket("/webrtc-direct");
    let beyond = 5;
    for (version, attacker) in [("v1", ATTACKER), ("v2", ANOTHER)] {
        let all = (0..SHARE + beyond).map(|n| check(n, version, None));
        let came = join_all(all.map(async |check| {
            let came = answers(attacker, to, &check).await;
            (check.len(), came)
        }));
        let another = check(1000, version, None);
        let (came, other) = future::join(came, answers(HONEST, to, &another)).await;
        let answered = came.iter().filter(|(_, came)| !came.is_empty()).count();
        assert_eq!(answered, SHARE, "{version}");
        assert!(!other.is_empty(), "{version}");
        // A source that may be forged gets no more than three times what it sent.
        for (sent, came) in &came {
            let back: usize = came.iter().map(Vec::len).sum();
            assert!(back <= 3 * sent, "{back} bytes for {sent}");
        }
        // The places are free again before long.
        assert!(served.refused("webrtc_handshake", "address") >= beyond as u64);
        let again = check(2000, version, None);
        let freed = async { while answers(attacker, to, &again).await.is_empty() {} };
        timeout(SOON, freed).await.expect("a place");
    }
}
