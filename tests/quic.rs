//! Tests our QUIC with that of stock rust-libp2p. Each is dialler and listener once.

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _, future::ready};
use libp2p::{Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, swarm::SwarmEvent};
use throughline::{Connector, PathKind, Ticket};
use tokio::{sync::mpsc, time::timeout};

use common::{PATIENCE, until_some};

mod common;

const ECHO: StreamProtocol = StreamProtocol::new("/echo/1");

/// Makes a stock node that speaks QUIC and nothing else.
fn stock() -> Swarm<libp2p_stream::Behaviour> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(|_| libp2p_stream::Behaviour::new())
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build()
}

/// Runs a swarm, and passes its events on.
fn run(mut swarm: Swarm<libp2p_stream::Behaviour>) -> mpsc::Receiver<SwarmEvent<()>> {
    let (events, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        loop {
            if events.send(swarm.select_next_some().await).await.is_err() {
                return;
            }
        }
    });
    receiver
}

async fn ours() -> Connector {
    Connector::builder()
        .listen("/ip4/127.0.0.1/udp/0/quic-v1")
        .protocol("echo/1")
        .bind()
        .await
        .unwrap()
}

fn bytes() -> Vec<u8> {
    (0..1_000_000u32).map(|n| n as u8).collect()
}

#[tokio::test]
async fn stock_libp2p_listens_and_we_dial() {
    let mut swarm = stock();
    let peer: PeerId = *swarm.local_peer_id();
    let mut control = swarm.behaviour().new_control();
    swarm
        .listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap())
        .unwrap();
    let mut events = run(swarm);
    let address: Multiaddr = loop {
        if let Some(SwarmEvent::NewListenAddr { address, .. }) = events.recv().await {
            break address;
        }
    };
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    let mut incoming = control.accept(ECHO).unwrap();
    tokio::spawn(async move {
        while let Some((_, stream)) = incoming.next().await {
            let (mut recv, mut send) = stream.split();
            futures::io::copy(&mut recv, &mut send).await.unwrap();
            send.close().await.unwrap();
        }
    });

    let me = ours().await;
    let none: [String; 0] = [];
    let peer = peer.to_string().parse().unwrap();
    let ticket = Ticket::from_parts(peer, none, [address.to_string()]).unwrap();
    let conn = timeout(PATIENCE, me.connect(&ticket))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(conn.path().unwrap().kind, PathKind::Direct);
    let (mut send, mut recv) = conn.open("echo/1").await.unwrap().split();
    let sent = bytes();
    let copy = sent.clone();
    let writing = tokio::spawn(async move {
        send.write_all(&copy).await.unwrap();
        send.close().await.unwrap();
    });
    let mut back = Vec::new();
    timeout(PATIENCE, recv.read_to_end(&mut back))
        .await
        .unwrap()
        .unwrap();
    writing.await.unwrap();
    assert!(back == sent);
}

#[tokio::test]
async fn we_listen_and_stock_libp2p_dials() {
    let me = ours().await;
    let address = until_some(|| ready(me.ticket().addresses().first().cloned())).await;
    assert!(address.ends_with("/quic-v1"), "{address}");
    let swarm = stock();
    let peer: PeerId = me.peer_id().to_string().parse().unwrap();
    let mut control = swarm.behaviour().new_control();
    let mut swarm = swarm;
    swarm
        .dial(
            address
                .parse::<Multiaddr>()
                .unwrap()
                .with_p2p(peer)
                .unwrap(),
        )
        .unwrap();
    let mut events = run(swarm);
    tokio::spawn(async move { while events.recv().await.is_some() {} });
    let conn = timeout(PATIENCE, me.accept()).await.unwrap().unwrap();

    let stream = timeout(PATIENCE, control.open_stream(peer, ECHO))
        .await
        .unwrap()
        .unwrap();
    let (mut recv, mut send) = stream.split();
    let sent = bytes();
    let copy = sent.clone();
    let writing = tokio::spawn(async move {
        send.write_all(&copy).await.unwrap();
        send.close().await.unwrap();
    });
    let (protocol, stream) = timeout(PATIENCE, conn.accept_stream())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(protocol, "echo/1");
    tokio::spawn(async move {
        let (mut send, mut recv) = stream.split();
        futures::io::copy(&mut recv, &mut send).await.unwrap();
        send.close().await.unwrap();
    });
    let mut back = Vec::new();
    timeout(PATIENCE, recv.read_to_end(&mut back))
        .await
        .unwrap()
        .unwrap();
    writing.await.unwrap();
    assert!(back == sent);
}

#[tokio::test]
async fn two_quic_addresses_of_one_family_are_refused() {
    let error = Connector::builder()
        .listen("/ip4/127.0.0.1/udp/0/quic-v1")
        .listen("/ip4/127.0.0.1/udp/1/quic-v1")
        .bind()
        .await
        .unwrap_err();
    assert_eq!(error.kind(), throughline::ErrorKind::InvalidConfig);
    assert!(error.message().starts_with("listen"), "{error}");
}
