//! Peers with two relays use the one with the lower sum of round trips.

use std::{net::SocketAddr, time::Duration};

use throughline::{PathKind, server::Server};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    common::{echo, echoing, exchange, peer, until},
    dialler, listener, relay, relayed, value,
};

const FAR: Duration = Duration::from_millis(30);

/// Carries bytes one way, each as late as a far place would get it.
async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin + Send + 'static) {
    let (late, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(1024);
    tokio::spawn(async move {
        while let Some((at, bytes)) = due.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        let sent = late.send((Instant::now() + FAR, buffer[..length].to_vec()));
        if sent.await.is_err() {
            return;
        }
    }
}

/// Returns an address at which `relay` is far away.
async fn far(relay: &Server) -> String {
    let is_tcp = |address: &&String| address.contains("/tcp/") && !address.contains("/ws");
    let address = relay.addresses().iter().find(is_tcp).unwrap();
    let parts: Vec<_> = address.split('/').collect();
    let there = SocketAddr::new(parts[2].parse().unwrap(), parts[4].parse().unwrap());
    let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = door.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((here, _)) = door.accept().await {
            let there = TcpStream::connect(there).await.unwrap();
            let (here, there) = (here.into_split(), there.into_split());
            tokio::spawn(carry(here.0, there.1));
            tokio::spawn(carry(there.0, here.1));
        }
    });
    format!("/ip4/127.0.0.1/tcp/{port}/p2p/{}", relay.peer_id())
}

fn circuits(relay: &Server) -> u64 {
    value(&relay.metrics(), "throughline_relay_circuits ")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_moves_to_the_relay_with_the_lower_sum_of_round_trips() {
    let (first, second) = (relay().await, relay().await);
    let mut config = relayed(listener(&[&second]));
    config.relays.insert(0, far(&first).await);
    config.relay_reservations = 2;
    let bob = echoing(config).await;
    until(|| bob.metrics().contains("throughline_reservations 2")).await;
    let mut config = relayed(dialler());
    config.probe_interval = Duration::from_millis(500);
    let alice = peer(config).await;
    let connection = alice.connect(&bob.ticket()).await.unwrap();
    let mut stream = echo(&connection).await.unwrap();
    let through = |relay: &Server| {
        let path = connection.path().unwrap();
        assert_eq!(path.kind, PathKind::Relayed);
        path.remote.unwrap().contains(&relay.peer_id().to_string())
    };
    assert!(through(&first), "it is the first of the ticket");
    until(|| circuits(&first) == 0 && circuits(&second) == 1 && through(&second)).await;
    exchange(&mut stream, &[7; 100_000]).await.unwrap();
}
