//! A list of peers decides, also about credentials for TURN.

use std::{
    io::{Read as _, Write as _},
    net::TcpStream,
    time::Duration,
};

use throughline::{Connector, ErrorKind, Identity, Strategy, server::AccessMode};

use super::{
    PATIENCE, bind,
    common::{self, until, until_some},
    counted, relayed, start,
};

#[tokio::test]
async fn a_list_decides_who_may_reserve_and_a_change_counts() {
    let home = tempfile::tempdir().unwrap();
    let list = home.path().join("peers");
    let (alice, bob) = (Identity::generate(), Identity::generate());
    std::fs::write(&list, alice.peer_id().to_string()).unwrap();
    let server = start(|config| {
        config.access.mode = Some(AccessMode::List);
        config.access.list = Some(list.clone());
    });
    let server = server.await;
    let as_peer = |identity: &Identity| {
        let builder = Connector::builder().config(relayed(&server));
        builder.identity(identity.clone()).bind()
    };
    let first = as_peer(&alice).await.unwrap();
    let error = as_peer(&bob).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AccessDenied, "{error}");
    assert!(error.message().contains("does not admit us"), "{error}");
    std::fs::write(&list, bob.peer_id().to_string()).unwrap();
    server.reload_access();
    until(|| counted(&server, "throughline_relay_reservations 0")).await;
    let second = as_peer(&bob).await.unwrap();
    assert!(!second.ticket().relays().is_empty());
    assert!(as_peer(&alice).await.is_err());
    first.close().await;
}

#[tokio::test]
async fn who_is_denied_asks_once() {
    let home = tempfile::tempdir().unwrap();
    let list = home.path().join("peers");
    std::fs::write(&list, "").unwrap();
    let closed = start(|config| {
        config.access.mode = Some(AccessMode::List);
        config.access.list = Some(list.clone());
    });
    let closed = closed.await;
    let open = common::relay().await;
    let mut both = relayed(&closed);
    both.relays.extend_from_slice(open.addresses());
    both.relay_reservations = 2;
    let me = bind(both.clone()).await.unwrap();
    let denied = "throughline_relay_reservation_requests_total{outcome=\"denied\"}";
    until(|| counted(&closed, &format!("{denied} 1"))).await;
    // Another peer comes and goes in the time in which a loop would ask again and again.
    let mut other = relayed(&open);
    other.connect_timeout = PATIENCE;
    for _ in 0..20 {
        let other = bind(other.clone()).await.unwrap();
        let connection = other.connect(&me.ticket()).await.unwrap();
        connection.close().await;
        other.close().await;
    }
    assert!(
        counted(&closed, &format!("{denied} 1")),
        "{}",
        closed.metrics()
    );
    let report = me.report().await.unwrap();
    let errors: Vec<_> = report
        .relays
        .iter()
        .filter_map(|relay| relay.last_error.as_deref())
        .collect();
    assert_eq!(errors, ["the relay does not admit us"]);
}

fn get(url: &str, path: &str) -> String {
    let host = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(host).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_admitted_gets_turn_credentials_and_nobody_else() {
    for open in [true, false] {
        let home = tempfile::tempdir().unwrap();
        let list = home.path().join("peers");
        let (alice, bob) = (Identity::generate(), Identity::generate());
        let all: Vec<_> = [&alice, &bob].map(|peer| peer.peer_id().to_string()).into();
        std::fs::write(&list, all.join("\n")).unwrap();
        let server = start(|config| {
            config.turn.secret = Some("secret".into());
            if !open {
                config.access.mode = Some(AccessMode::List);
                config.access.list = Some(list.clone());
            }
        });
        let server = server.await;
        let page = tokio::task::block_in_place(|| get(server.http_url(), "/config.json"));
        assert_eq!(page.contains("\"credential\""), open, "{page}");
        let bind = |identity: Identity| {
            let mut config = relayed(&server);
            config.direct = true;
            // These peers are direct before a server would be asked, and need no ICE.
            config.start_delays.turn = Duration::ZERO;
            config.start_delays.direct = Duration::from_secs(60);
            Connector::builder()
                .config(config)
                .identity(identity)
                .bind()
        };
        let bob = bind(bob).await.unwrap();
        let alice = bind(alice).await.unwrap();
        for peer in [&alice, &bob] {
            until_some(async || {
                let report = peer.report().await.unwrap();
                report.strategies.contains(&Strategy::Turn).then_some(())
            })
            .await;
        }
        let connection = alice.connect(&bob.ticket()).await.unwrap();
        let granted = "throughline_turn_requests_total{outcome=\"granted\"}";
        until(|| server.metrics().contains(granted)).await;
        drop(connection);
    }
}
