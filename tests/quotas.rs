//! What a server carries for whom, as its clients see it: quotas, rates, and fair shares of the total.

use std::time::Duration;

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol,
    swarm::{SwarmEvent, dial_opts::DialOpts},
};
use throughline::{
    Config, Connection, Connector, ConnectorEvent, ConnectorEvents, ErrorKind, QuotaPeriod,
    server::{AccessMode, NewToken, Server, ServerConfig, TokenKey, UsageBy, usage},
};
use tokio::{sync::watch, time::timeout};

use common::{PATIENCE, config, echoing, exchange, peer, server_config, until};

mod common;
#[path = "common/stock.rs"]
mod stock;

const HOUR: Duration = Duration::from_secs(3600);
const PIECE: usize = 16 * 1024;

async fn start(edit: impl FnOnce(&mut ServerConfig)) -> Server {
    let mut config = server_config();
    edit(&mut config);
    Server::start(config).await.unwrap()
}

/// A peer that uses only the relay, so that its bytes go through it.
fn relayed(server: &Server) -> Config {
    let mut config = config();
    config.relays = server.addresses().to_vec();
    config.direct = false;
    config
}

/// A peer that dials and has no reservation.
async fn visitor(server: &Server) -> Connector {
    let mut config = relayed(server);
    config.reserve = false;
    config.resume_timeout = Duration::ZERO;
    config.connect_timeout = Duration::from_secs(5);
    peer(config).await
}

async fn event(events: &mut ConnectorEvents) -> ConnectorEvent {
    let event = timeout(PATIENCE, events.next()).await;
    event.expect("an event").expect("it is not closed")
}

/// Sends until nothing is carried any more.
async fn send_all(connection: &Connection) {
    let mut stream = connection.open("echo/1").await.unwrap();
    let sent = async { while stream.write_all(&[7; PIECE]).await.is_ok() {} };
    timeout(PATIENCE, sent).await.expect("the quota ends");
}

/// Sends for as long as the future lives, and counts what comes back. What is sent may wait in a window.
async fn flood(connection: Connection, back: watch::Sender<u64>) {
    let stream = connection.open("echo/1").await.unwrap();
    let (mut send, mut recv) = stream.split();
    let read = async {
        let mut piece = [0; PIECE];
        while let Ok(read @ 1..) = recv.read(&mut piece).await {
            back.send_modify(|back| *back += read as u64);
        }
    };
    let write = async { while send.write_all(&[7; PIECE]).await.is_ok() {} };
    futures::join!(read, write);
}

#[tokio::test]
async fn a_peer_hears_of_its_quota_before_it_ends() {
    let server = start(|config| config.traffic.peer_quota = Some("1MB/day".into())).await;
    let bob = echoing(relayed(&server)).await;
    let mut events = bob.events();
    let connection = visitor(&server).await;
    let connection = connection.connect(&bob.ticket()).await.unwrap();
    send_all(&connection).await;
    let mut lefts = Vec::new();
    while lefts.last() != Some(&0) {
        let ConnectorEvent::Quota {
            relay,
            left,
            total,
            period,
            ends,
            ..
        } = event(&mut events).await
        else {
            panic!("it is about the quota");
        };
        assert_eq!(relay, server.peer_id().to_string());
        assert_eq!((total, period), (1_000_000, QuotaPeriod::Day));
        assert!(left <= 200_000 && ends <= 24 * HOUR);
        lefts.push(left);
    }
    assert!(
        lefts.len() <= 3 && lefts.is_sorted_by(|a, b| a > b),
        "{lefts:?}"
    );
    // Whoever has no quota hears nothing, and the stream ends with the connector.
    let other = peer(relayed(&server)).await;
    let events = other.events();
    other.close().await;
    assert_eq!(events.count().await, 0);
}

#[tokio::test]
async fn a_quota_outlasts_a_restart() {
    let home = tempfile::tempdir().unwrap();
    let key = TokenKey::load_or_create(home.path().join("key.pem")).unwrap();
    let serve = || {
        start(|config| {
            config.access.mode = Some(AccessMode::Token);
            config.access.keys = vec![key.public()];
            config.data = Some(home.path().join("data"));
        })
    };
    let token = |name: &str| {
        let mut token = NewToken::new(name, HOUR);
        token.quota = Some("300kB/day, 1GB/month".into());
        key.sign(&token).unwrap()
    };
    let with = |server: &Server, name: &str| {
        let mut config = relayed(server);
        config.relay_tokens = Some(token(name).into());
        config
    };
    let server = serve().await;
    let bob = echoing(with(&server, "bob")).await;
    let dialler = visitor(&server).await;
    let connection = dialler.connect(&bob.ticket()).await.unwrap();
    send_all(&connection).await;
    bob.close().await;
    server.shutdown().await;
    let rows = usage(&home.path().join("data"), None, UsageBy::Token).unwrap();
    assert!(
        rows.iter()
            .any(|row| row.name == "bob" && row.bytes > 290_000)
    );
    let server = serve().await;
    let refused = Connector::builder().config(with(&server, "bob")).bind();
    let error = timeout(PATIENCE, refused).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::QuotaExceeded, "{error}");
    assert!(error.retry_after().is_some_and(|ends| ends <= 24 * HOUR));
    // Another token has a quota of its own.
    peer(with(&server, "carol")).await;
}

#[tokio::test]
async fn two_busy_peers_halve_the_total_and_a_quiet_one_waits_for_nobody() {
    let server = start(|config| config.traffic.total = 1_000_000).await;
    let (bob, carol, quiet) = (
        echoing(relayed(&server)).await,
        echoing(relayed(&server)).await,
        echoing(relayed(&server)).await,
    );
    let counts = [(); 2].map(|()| watch::Sender::new(0));
    let mut visitors = Vec::new();
    let mut floods = tokio::task::JoinSet::new();
    // Bob has three circuits, and gets no more for that.
    for (of, to) in [(0, &bob), (0, &bob), (0, &bob), (1, &carol)] {
        let me = visitor(&server).await;
        let connection = me.connect(&to.ticket()).await.unwrap();
        floods.spawn(flood(connection, counts[of].clone()));
        visitors.push(me);
    }
    let me = visitor(&server).await;
    let connection = me.connect(&quiet.ticket()).await.unwrap();
    let mut stream = connection.open("echo/1").await.unwrap();
    let reached = |at: u64| {
        let mut counts = counts.each_ref().map(|count| count.subscribe());
        async move {
            for count in &mut counts {
                count.wait_for(|back| *back >= at).await.unwrap();
            }
        }
    };
    // What may be ahead is used up after this, so that only the rate counts.
    timeout(PATIENCE, reached(400_000)).await.unwrap();
    let before = counts.each_ref().map(|count| *count.borrow());
    exchange(&mut stream, &[7; 1000]).await.unwrap();
    timeout(PATIENCE, reached(before[0].max(before[1]) + 500_000))
        .await
        .unwrap();
    let [bob, carol] = [0, 1].map(|of| (*counts[of].borrow() - before[of]) as f64);
    let ratio = bob / carol;
    assert!((0.4..2.5).contains(&ratio), "{bob} and {carol}");
}

#[tokio::test]
async fn a_circuit_has_a_rate() {
    let server = start(|config| config.traffic.per_circuit = 200_000).await;
    let bob = echoing(relayed(&server)).await;
    let me = visitor(&server).await;
    let connection = me.connect(&bob.ticket()).await.unwrap();
    let mut stream = connection.open("echo/1").await.unwrap();
    let begun = std::time::Instant::now();
    exchange(&mut stream, &[7; 150_000]).await.unwrap();
    // 300 kB there and back, of which a quarter of a second was saved up.
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(1000), "{took:?}");
}

#[tokio::test]
async fn offers_count_for_the_quota() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let server = start(|config| config.data = Some(data.clone())).await;
    let bob = echoing(relayed(&server)).await;
    let me = visitor(&server).await;
    let (connection, mut stream) = me.open(&bob.ticket(), "echo/1").await.unwrap();
    exchange(&mut stream, &[7; 20_000]).await.unwrap();
    let id = bob.peer_id().to_string();
    until(|| {
        let rows = usage(&data, None, UsageBy::Peer).unwrap_or_default();
        rows.iter().any(|row| row.name == id && row.bytes > 40_000)
    })
    .await;
    drop(connection);
}

const HOP: StreamProtocol = StreamProtocol::new("/libp2p/circuit/relay/0.2.0/hop");
const STOP: StreamProtocol = StreamProtocol::new("/libp2p/circuit/relay/0.2.0/stop");
const EARLY: StreamProtocol = StreamProtocol::new("/throughline/circuit/1");
const OFFER: StreamProtocol = StreamProtocol::new("/throughline/offer/1");

/// A libp2p node that is connected to the server, and does as it likes.
async fn node(server: &Server) -> (PeerId, libp2p_stream::Control) {
    let mut swarm = stock::node(|_| libp2p_stream::Behaviour::new());
    let quic = server.addresses().iter().find(|text| text.contains("quic"));
    let address: Multiaddr = quic.unwrap().parse().unwrap();
    let relay: PeerId = server.peer_id().to_string().parse().unwrap();
    swarm
        .dial(DialOpts::peer_id(relay).addresses(vec![address]).build())
        .unwrap();
    let (id, control) = (*swarm.local_peer_id(), swarm.behaviour().new_control());
    let connected = async {
        while !matches!(
            swarm.select_next_some().await,
            SwarmEvent::ConnectionEstablished { .. }
        ) {}
    };
    timeout(PATIENCE, connected).await.expect("a connection");
    tokio::spawn(async move {
        loop {
            swarm.next().await;
        }
    });
    (id, control)
}

/// Sends a request to the relay, and returns everything that it answers.
async fn asked(
    control: &libp2p_stream::Control,
    (server, protocol): (&Server, StreamProtocol),
    request: &[u8],
) -> Vec<u8> {
    let relay = server.peer_id().to_string().parse().unwrap();
    let mut control = control.clone();
    let stream = control.open_stream(relay, protocol).await.unwrap();
    let (mut from, mut to) = stream.split();
    // A refusal may come before the request has left, and a stream that is reset is an end, too.
    let ask = async {
        let _ = to.write_all(request).await;
        let _ = to.flush().await;
    };
    let read = async {
        let mut answer = Vec::new();
        let _ = from.read_to_end(&mut answer).await;
        answer
    };
    let both = timeout(PATIENCE, async { futures::join!(ask, read) }).await;
    both.expect("an end").1
}

#[tokio::test]
async fn nobody_pays_for_circuits_and_offers_that_it_refuses() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let server = start(|config| {
        config.data = Some(data.clone());
        config.traffic.peer_quota = Some("60kB/day".into());
    });
    let server = server.await;
    let (id, peer) = node(&server).await;
    let reserve = || asked(&peer, (&server, HOP), &[2, 8, 0]);
    let is_granted = |answer: Vec<u8>| answer.ends_with(&[0x28, 100]);
    assert!(is_granted(reserve().await));
    // It says PERMISSION_DENIED to circuits, and hangs up on offers.
    let mut circuits = peer.clone().accept(STOP).unwrap();
    tokio::spawn(async move {
        while let Some((_, mut stream)) = circuits.next().await {
            stream.read_exact(&mut [0; 64]).await.unwrap();
            let _ = stream.write_all(&[5, 8, 1, 0x20, 0xca, 1]).await;
            let _ = stream.flush().await;
        }
    });
    let mut offers = peer.clone().accept(OFFER).unwrap();
    tokio::spawn(async move {
        while let Some((_, mut stream)) = offers.next().await {
            stream.read_exact(&mut [0; 64]).await.unwrap();
            stream.close().await.unwrap();
        }
    });
    let (_, stranger) = node(&server).await;
    let id_bytes = id.to_bytes();
    let length = id_bytes.len() as u8;
    let head = [length + 6, 8, 1, 0x12, length + 2, 0x0a, length];
    // All rounds together are more than the quota. One fits into what the relay reads before it is refused.
    let request = [&head[..], &id_bytes, &[7; 4_000]].concat();
    for _ in 0..20 {
        let refused = asked(&stranger, (&server, EARLY), &request).await;
        assert_eq!(refused, [5, 8, 2, 0x28, 0xca, 1]);
        assert!(
            asked(&stranger, (&server, OFFER), &request)
                .await
                .is_empty()
        );
    }
    assert!(is_granted(reserve().await), "its quota is untouched");
    server.shutdown().await;
    let rows = usage(&data, None, UsageBy::Peer).unwrap();
    let row = rows.iter().find(|row| row.name == id.to_string());
    assert_eq!(row.map(|row| (row.bytes, row.circuits)), Some((0, 0)));
}
