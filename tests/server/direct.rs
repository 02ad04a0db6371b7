//! `/webrtc-direct`, as stock rust-libp2p speaks it. That client reads no message over 8 KiB, and
//! sends messages of 16 KiB.

use futures::{AsyncRead, AsyncWrite};

use super::*;

const PING: StreamProtocol = StreamProtocol::new("/ipfs/ping/1.0.0");
const COUNT: StreamProtocol = StreamProtocol::new("/test/count");

/// The most bytes that are sent at once in one direction. The stock client joins bytes that it may
/// not send yet to messages that are too long for itself, so each piece waits for the one before.
const LARGE: usize = 12 << 10;

/// A piece that fits into one message that the stock client reads.
const PIECE: usize = 4_000;

/// Makes a stock client that can dial `/webrtc-direct`, which libp2p-webrtc does from a listener's
/// socket only.
pub(super) async fn listening() -> Swarm<Behaviour> {
    let mut swarm = client();
    let any = "/ip4/127.0.0.1/udp/0/webrtc-direct".parse().unwrap();
    swarm.listen_on(any).unwrap();
    event(&mut swarm, |e| {
        matches!(e, SwarmEvent::NewListenAddr { .. }).then_some(())
    })
    .await;
    swarm
}

/// Starts a peer with a reservation that answers each large piece with a byte.
async fn counting(server: &Server) -> PeerId {
    let mut swarm = client();
    let peer = *swarm.local_peer_id();
    reserve(&mut swarm, address(server, "quic-v1"))
        .await
        .unwrap();
    let control = &mut swarm.behaviour().stream.new_control();
    let mut incoming = control.accept(COUNT).unwrap();
    drive(swarm);
    tokio::spawn(async move {
        while let Some((_, mut stream)) = incoming.next().await {
            let mut piece = vec![0; LARGE];
            while stream.read_exact(&mut piece).await.is_ok() {
                let _ = stream.write_all(&piece[..1]).await;
                let _ = stream.flush().await;
            }
        }
    });
    peer
}

/// Connects to `peer` through the relay, over `/webrtc-direct`.
async fn through(server: &Server, peer: PeerId) -> stream::Control {
    let mut swarm = listening().await;
    let circuit = address(server, "/webrtc-direct")
        .with(Protocol::P2pCircuit)
        .with(Protocol::P2p(peer));
    assert_eq!(dial(&mut swarm, circuit).await.unwrap(), peer);
    let control = swarm.behaviour().stream.new_control();
    drive(swarm);
    control
}

/// Sends pieces, and gets each back.
async fn rounds(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), count: usize, len: usize) {
    let mut echoed = vec![0; len];
    for round in 0..count {
        let sent: Vec<u8> = (0..len).map(|n| (n * 7 + round) as u8).collect();
        stream.write_all(&sent).await.unwrap();
        stream.flush().await.unwrap();
        let back = timeout(PATIENCE, stream.read_exact(&mut echoed)).await;
        back.expect("an echo").unwrap();
        assert!(echoed == sent, "round {round}");
    }
}

#[tokio::test]
async fn a_circuit_over_webrtc_direct_carries_data_both_ways() {
    let server = start(config()).await;
    let echo = reserved_echo(&server).await;
    let Some(Protocol::P2p(peer)) = echo.iter().last() else {
        panic!("{echo}");
    };
    let mut control = through(&server, peer).await;
    let mut stream = control.open_stream(peer, ECHO).await.unwrap();
    rounds(&mut stream, 200, PIECE).await;
}

#[tokio::test]
async fn messages_over_8_kib_reach_the_relay() {
    let server = start(config()).await;
    let peer = counting(&server).await;
    let mut control = through(&server, peer).await;
    let mut stream = control.open_stream(peer, COUNT).await.unwrap();
    let sends = async {
        for round in 0..200u8 {
            stream.write_all(&[round; LARGE]).await.unwrap();
            stream.flush().await.unwrap();
            let mut answer = [0];
            stream.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, [round]);
        }
    };
    timeout(PATIENCE, sends).await.expect("answers");
}

/// Each stream ends in order on both sides, and its channel can be used again.
#[tokio::test]
async fn hundreds_of_streams_one_after_another() {
    let server = start(config()).await;
    let mut swarm = listening().await;
    let relay = dial(&mut swarm, address(&server, "/webrtc-direct"))
        .await
        .unwrap();
    let mut control = swarm.behaviour().stream.new_control();
    drive(swarm);
    for n in 0..600 {
        let opened = timeout(PATIENCE, control.open_stream(relay, PING)).await;
        let mut stream = opened
            .expect("a stream")
            .unwrap_or_else(|e| panic!("{n}: {e}"));
        rounds(&mut stream, 1, 32).await;
        stream.close().await.unwrap();
        let mut rest = Vec::new();
        let ended = timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        ended
            .expect("an end")
            .unwrap_or_else(|e| panic!("{n}: {e}"));
        assert!(rest.is_empty());
    }
}

#[tokio::test]
async fn many_clients_share_the_port() {
    let server = start(config()).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        let mut swarm = listening().await;
        let relay = dial(&mut swarm, address(&server, "/webrtc-direct"))
            .await
            .unwrap();
        clients.push((swarm.behaviour().stream.new_control(), relay));
        drive(swarm);
    }
    let all = clients.iter_mut().map(async |(control, relay)| {
        let mut stream = control.open_stream(*relay, PING).await.unwrap();
        rounds(&mut stream, 20, 32).await;
    });
    futures::future::join_all(all).await;
}
