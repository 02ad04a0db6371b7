//! One address configures everything: a peer learns the rest from the relay, and is told what it is to
//! others.

use std::{net::SocketAddr, path::Path, time::Instant};

use futures::StreamExt as _;
use multibase::Base;
use throughline::{
    Config, Connector, Error, ErrorKind, Identity, Reachability, Status, Ticket,
    server::{Layout, Server, ServerConfig},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UdpSocket},
    time::{Duration, timeout},
};

use common::{PATIENCE, echoed, echoing, server_config, until_some};

mod common;

/// A server at one TCP port.
async fn serve(adapt: impl FnOnce(&mut ServerConfig)) -> Server {
    let mut config = server_config();
    config.layout = Layout::One;
    adapt(&mut config);
    Server::start(config).await.unwrap()
}

/// A peer whose only knowledge is where its relays are.
fn knowing(relays: &[&str]) -> Config {
    let mut config = common::config();
    config.relays = relays.iter().map(ToString::to_string).collect();
    config
}

async fn bind(config: Config) -> Result<Connector, Error> {
    let bound = Connector::builder().config(config).bind();
    timeout(PATIENCE, bound).await.expect("a bind ends")
}

/// Waits for a status of which `pick` makes something.
async fn told<T>(me: &Connector, pick: impl Fn(&Status) -> Option<T>) -> T {
    let mut changes = me.status_changes();
    let told = async {
        loop {
            let status = changes.next().await.expect("the connector is open");
            if let Some(picked) = pick(&status) {
                return picked;
            }
        }
    };
    timeout(PATIENCE, told).await.expect("the status changes")
}

fn reached(status: &Status) -> Option<String> {
    (status.state == Reachability::Reachable).then(|| status.ticket.to_string())
}

/// Answers every HTTP request with these bytes. Returns the address.
async fn answering(answer: impl Into<Vec<u8>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = answer.into();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = [0; 1024];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(&answer).await;
            });
        }
    });
    address
}

fn response(json: &serde_json::Value) -> String {
    let json = json.to_string();
    let length = json.len();
    format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{json}")
}

fn profile(server: &Server, addresses: &[String]) -> serde_json::Value {
    let peer = server.peer_id().to_string();
    serde_json::json!({ "version": 1, "peer_id": peer, "addresses": addresses })
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_is_enough_for_two_peers() {
    let server = serve(|config| config.turn.secret = Some("secret".into())).await;
    let relay = server.http_url().to_owned();
    let bob = echoing(knowing(&[&relay])).await;
    let alice = bind(knowing(&[&relay])).await.unwrap();
    let connection = alice.connect(&bob.ticket()).await.unwrap();
    echoed(&connection).await;
    for peer in [&alice, &bob] {
        let status = told(peer, |status| {
            let asked = status.nat.stun.len() == 2 && reached(status).is_some();
            asked.then(|| status.clone())
        });
        let status = status.await;
        assert_eq!(status.reason, None);
        let relay = &status.relays[0];
        assert_eq!(relay.peer_id, server.peer_id().to_string());
        assert!(relay.reserved && relay.connected);
        assert_eq!(relay.name.as_deref(), relay_name(&server).as_deref());
        let servers: Vec<_> = status
            .nat
            .stun
            .iter()
            .map(|stun| format!("stun:{}", stun.server))
            .collect();
        assert_eq!(servers, server.stun_urls());
    }
    let strategies = alice.report().await.unwrap().strategies;
    assert!(
        strategies.contains(&throughline::Strategy::Turn),
        "{strategies:?}"
    );
    for peer in [alice, bob] {
        peer.close().await;
    }
    server.shutdown().await;
}

/// The text of a relay on this machine needs no scheme.
fn relay_name(server: &Server) -> Option<String> {
    server.http_url().strip_prefix("http://").map(str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_of_the_user_win() {
    let server = serve(|_| {}).await;
    let mut config = knowing(&[server.http_url()]);
    config.stun = vec!["stun:127.0.0.1:9".into()];
    let me = bind(config).await.unwrap();
    let stun = told(&me, |status| {
        reached(status).map(|_| status.nat.stun.clone())
    })
    .await;
    assert_eq!(stun.len(), 1);
    assert_eq!(stun[0].server, "127.0.0.1:9");
    me.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_is_known_by_one_transport_tells_the_others_over_its_link() {
    let server = serve(|_| {}).await;
    let quic = server
        .addresses()
        .iter()
        .find(|address| address.contains("quic-v1"));
    let me = bind(knowing(&[quic.unwrap()])).await.unwrap();
    told(&me, |status| (status.nat.stun.len() == 2).then_some(())).await;
    me.close().await;
    server.shutdown().await;
}

/// Starts a server with a certificate for `localhost`. Returns the certificate as well.
async fn secured(folder: &Path) -> (Server, std::path::PathBuf) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let ca = folder.join("cert.pem");
    let server = serve(|config| {
        config.tls.cert = Some(ca.clone());
        config.tls.key = Some(folder.join("key.pem"));
    });
    (server.await, ca)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_certificate_proves_the_name_and_the_pin_the_relay() {
    let folder = tempfile::tempdir().unwrap();
    let (server, ca) = secured(folder.path()).await;
    let url = server.http_url();
    assert!(url.starts_with("https://localhost"), "{url}");
    let trusting = |relay: &str| {
        let mut config = knowing(&[relay]);
        config.relay_ca = Some(ca.clone());
        bind(config)
    };
    trusting(url).await.unwrap().close().await;
    let pinned = format!("{url}/p2p/{}", server.peer_id());
    trusting(&pinned).await.unwrap().close().await;
    let other = Identity::generate().peer_id();
    let error = trusting(&format!("{url}/p2p/{other}")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRelay);
    let message = error.message();
    assert!(message.contains("another relay is there"), "{message}");
    assert!(message.contains("/.well-known/throughline"), "{message}");
    let error = bind(knowing(&[url])).await.unwrap_err();
    assert!(error.message().contains("certificate"), "{error}");
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_ticket_names_its_relay() {
    let folder = tempfile::tempdir().unwrap();
    let (server, ca) = secured(folder.path()).await;
    let url = server.http_url();
    let config = |relays: &[&str]| {
        let mut config = knowing(relays);
        config.relay_ca = Some(ca.clone());
        config.directory = true;
        config
    };
    let bob = echoing(config(&[url])).await;
    // A name of this machine is for nobody else.
    let own = bob.short_ticket().relays();
    assert!(own[0].contains("/p2p/"), "{own:?}");
    // Without flags, the key of the peer id, and the relay behind its length.
    let id = Base::Base58Btc.decode(bob.peer_id().to_string()).unwrap();
    let named = [&[0][..], &id[6..], &[url.len() as u8], url.as_bytes()].concat();
    let text = format!("tl2{}", Base::Base32Lower.encode(named));
    assert!(text.len() < 100, "{text}");
    let ticket: Ticket = text.parse().unwrap();
    assert_eq!(ticket.relays(), [url]);
    let alice = bind(config(&[url])).await.unwrap();
    echoed(&alice.connect(&ticket).await.unwrap()).await;
    // A stranger's ticket aims nobody at this machine, and a call does not wait for what is not asked.
    let carol = bind(config(&[])).await.unwrap();
    let start = Instant::now();
    let error = carol.connect(&ticket).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
    assert!(start.elapsed() < Duration::from_secs(2));
    server.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_without_udp_costs_a_fraction_of_a_second() {
    let server = serve(|_| {}).await;
    // It takes every datagram and answers none.
    let hole = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = hole.local_addr().unwrap().port();
    let peer = server.peer_id();
    let tcp = server
        .addresses()
        .iter()
        .find(|address| address.contains("/tcp/"));
    let addresses = [
        format!("/ip4/127.0.0.1/udp/{port}/quic-v1/p2p/{peer}"),
        tcp.unwrap().clone(),
    ];
    let site = answering(response(&profile(&server, &addresses))).await;
    let started = Instant::now();
    let me = bind(knowing(&[&format!("http://{site}")])).await.unwrap();
    let took = started.elapsed();
    assert!(took < Duration::from_millis(900), "{took:?}");
    me.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_name_delays_no_other_relay() {
    let server = serve(|_| {}).await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = format!("http://{}", silent.local_addr().unwrap());
    let started = Instant::now();
    let me = bind(knowing(&[&dead, server.http_url()])).await.unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
    let relays = me.status().relays;
    let named = relays
        .iter()
        .find(|relay| relay.peer_id.is_empty())
        .unwrap();
    assert_eq!(named.name.as_deref(), dead.strip_prefix("http://"));
    me.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_answer_does_no_harm_and_is_named() {
    let server = serve(|_| {}).await;
    let metadata = ["/ip4/169.254.169.254/tcp/80/ws".to_owned()];
    let huge = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}",
        " ".repeat(1_000_000)
    );
    let chunks = format!("400\r\n{}\r\n", " ".repeat(1024)).repeat(100);
    let endless = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
    let cases: [(Vec<u8>, &str); 9] = [
        (Vec::new(), "check the name"),
        (
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "status 404",
        ),
        (
            b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n".to_vec(),
            "status 500",
        ),
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"
                .to_vec(),
            "redirects",
        ),
        (huge.into_bytes(), "too long"),
        (endless.into_bytes(), "too long"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>".to_vec(),
            "not that of a relay",
        ),
        (
            response(&profile(&server, &metadata)).into_bytes(),
            "no address that may be dialled",
        ),
        (b"junk\r\n\r\n".to_vec(), "check the name"),
    ];
    for (answer, why) in cases {
        let site = answering(answer).await;
        let error = bind(knowing(&[&format!("http://{site}")]))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoRelay);
        let message = error.message();
        let url = format!("http://{site}/.well-known/throughline");
        assert!(
            message.contains(&url) && message.contains(why),
            "{why}: {message}"
        );
    }
    // Another relay answers at the address than the one that the site names.
    let mut lie = profile(&server, server.addresses());
    let other = Identity::generate().peer_id().to_string();
    let addresses = server.addresses().iter();
    let addresses = addresses.filter_map(|address| Some(address.split_once("/p2p/")?.0.to_owned()));
    lie["addresses"] = addresses.collect();
    lie["peer_id"] = other.into();
    let site = answering(response(&lie)).await;
    let error = bind(knowing(&[&format!("http://{site}")]))
        .await
        .unwrap_err();
    assert!(error.message().contains("another peer answered"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_never_comes_has_a_deadline() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = knowing(&[&format!("http://{}", silent.local_addr().unwrap())]);
    config.relay_timeout = Duration::from_millis(300);
    let error = bind(config).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRelay);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_moves_is_found_at_its_new_place() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().to_owned();
    let started = || serve(|config| config.data = Some(data.clone()));
    let first = started().await;
    // A site of its own stands for a name that leads to another machine later.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let site = listener.local_addr().unwrap();
    let (at, answers) = tokio::sync::watch::channel(response(&profile(&first, first.addresses())));
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let answer = answers.borrow().clone();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    let me = bind(knowing(&[&format!("http://{site}")])).await.unwrap();
    let before = told(&me, reached).await;
    first.shutdown().await;
    told(&me, |status| {
        let lost = status.state != Reachability::Reachable;
        lost.then(|| assert_ne!(status.ticket.to_string(), before, "the ticket has no relay"))
    })
    .await;
    let second = started().await;
    at.send_replace(response(&profile(&second, second.addresses())));
    let after = told(&me, reached).await;
    assert_ne!(before, after);
    me.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_says_why_nobody_reaches_us_and_ends_with_the_connector() {
    let alone = bind(common::config()).await.unwrap();
    let status = alone.status();
    assert_eq!(status.state, Reachability::Reachable);
    assert!(status.reason.unwrap().contains("no relay"));
    let mut changes = alone.status_changes();
    assert!(changes.next().await.is_some(), "the present one");
    alone.close().await;
    let ended = async { while changes.next().await.is_some() {} };
    timeout(PATIENCE, ended).await.unwrap();

    let mut config = knowing(&["http://127.0.0.1:9"]);
    config.reserve = false;
    let dialler = bind(config).await.unwrap();
    let why = told(&dialler, |status| status.reason.clone()).await;
    assert!(why.contains("reserve"), "{why}");
    until_some(async || {
        let relays = dialler.status().relays;
        relays[0]
            .last_error
            .clone()
            .filter(|error| error.contains("http://127.0.0.1:9/"))
    })
    .await;
    dialler.close().await;
}

#[tokio::test]
async fn a_text_that_names_no_relay_is_refused_at_once() {
    for (text, why) in [
        ("http://relay.example.org", "needs https"),
        ("relay example", "has no host"),
        ("169.254.169.254", "metadata"),
        ("/ip4/127.0.0.1/tcp/1", "does not end in /p2p/"),
    ] {
        let error = bind(knowing(&[text])).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidAddress);
        assert!(
            error.message().contains(why) && error.message().contains(text),
            "{error}"
        );
    }
}
