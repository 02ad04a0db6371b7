//! Relays that are one for their clients, with real NATS servers.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `nats` | the NATS servers |
//! | `away` | NATS servers and relays that die |
//! | `parted` | NATS servers that are cut off, hang, or come back with old data |
//! | `quotas` | quotas of which each relay has a part |
//! | `lies` | somebody who writes into the buckets and is no relay |

mod away;
#[path = "../common/mod.rs"]
mod common;
mod lies;
mod nats;
mod parted;
mod quotas;

use std::path::PathBuf;

use throughline::{
    Config, Connector, Room, RoomOptions, Ticket,
    server::{
        AccessMode, NewToken, Server, ServerConfig, TokenKey, UsageBy, UsageRow, usage,
        usage_of_fleet,
    },
};
use tokio::time::timeout;

use common::{PATIENCE, echo, echoed, echoing, exchange, peer, server_config, until, until_some};
use nats::Nats;

/// A relay of the fleet.
pub(crate) async fn relay(nats: &Nats, edit: impl FnOnce(&mut ServerConfig)) -> Server {
    let mut config = server_config();
    config.autonat.allow_private = true;
    config.fleet.servers = nats.urls();
    config.fleet.replicas = nats.replicas();
    edit(&mut config);
    Server::start(config).await.unwrap()
}

/// Relays that have reached each other.
pub(crate) async fn fleet<const N: usize>(nats: &Nats) -> [Server; N] {
    let mut relays = Vec::new();
    for _ in 0..N {
        relays.push(relay(nats, |_| {}).await);
    }
    let relays: [Server; N] = relays.try_into().expect("there are so many");
    until_whole(&relays).await;
    relays
}

/// Waits until each of these relays knows of all others.
pub(crate) async fn until_whole(relays: &[Server]) {
    let others = relays.len() - 1;
    for relay in relays {
        until_counted(relay, "throughline_fleet_up 1").await;
        until_counted(relay, &format!("throughline_fleet_relays {others}")).await;
    }
}

/// A peer that uses these relays only.
pub(crate) fn config(relays: &[&Server]) -> Config {
    let mut config = common::config();
    config.relays = relays.iter().flat_map(|r| r.addresses().to_vec()).collect();
    config.directory = true;
    config.birthday = false;
    config
}

pub(crate) fn counted(server: &Server, line: &str) -> bool {
    server.metrics().lines().any(|known| known == line)
}

pub(crate) async fn until_counted(server: &Server, line: &str) {
    until(|| counted(server, line)).await;
}

/// The value of a counter or a gauge.
pub(crate) fn count(server: &Server, name: &str) -> u64 {
    let metrics = server.metrics();
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

/// Waits until the fleet knows all that this relay knows.
pub(crate) async fn until_told(server: &Server) {
    let writes = |outcome| {
        let name = format!("throughline_fleet_writes_total{{outcome=\"{outcome}\"}}");
        count(server, &name)
    };
    // Nothing is written if another relay has told it already.
    until(|| {
        writes("written") + writes("compared") > 0 && counted(server, "throughline_fleet_waiting 0")
    })
    .await;
}

/// Binds a peer that echoes, and waits until the fleet knows it.
pub(crate) async fn listed(relay: &Server, config: Config) -> Connector {
    let me = echoing(config).await;
    until_counted(relay, "throughline_directory_records 1").await;
    until_told(relay).await;
    me
}

pub(crate) async fn connect(me: &Connector, to: &Connector) -> throughline::Connection {
    let ticket = Ticket::from(to.peer_id());
    let connected = timeout(PATIENCE, me.connect(&ticket)).await;
    connected.expect("in time").unwrap()
}

/// Connects as soon as NATS servers have agreed on new leaders.
pub(crate) async fn connect_at_last(me: &Connector, to: &Connector) -> throughline::Connection {
    let ticket = Ticket::from(to.peer_id());
    until_some(|| async { me.connect(&ticket).await.ok() }).await
}

pub(crate) async fn enter(me: &Connector, data: &[u8]) -> Room {
    let mut options = RoomOptions::default();
    options.secret = "secret".to_owned();
    options.data = data.to_vec();
    let joined = timeout(PATIENCE, me.join("tea party", options)).await;
    joined.expect("in time").unwrap()
}

/// Waits until the room has exactly these members with what they show.
pub(crate) async fn until_members(room: &Room, members: &[(&Connector, &[u8])]) {
    until(|| {
        let there = room.members();
        let is_there = |(peer, data): &(&Connector, &[u8])| {
            let mut there = there.iter();
            there.any(|member| member.id == peer.peer_id() && member.data == *data)
        };
        there.len() == members.len() && members.iter().all(is_there)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_at_one_relay_is_found_by_its_id_through_another() {
    let nats = Nats::start(1).await;
    let [first, second, third] = fleet(&nats).await;
    let bob = listed(&first, config(&[&first])).await;
    let alice = peer(config(&[&second])).await;
    let connection = connect(&alice, &bob).await;
    assert_eq!(connection.peer_id(), bob.peer_id());
    echoed(&connection).await;
    let found = |relay| count(relay, "throughline_fleet_lookups_total{outcome=\"found\"}");
    assert!(found(&second) > 0 && found(&first) == 0);
    // A peer that says goodbye is known nowhere.
    bob.close().await;
    until_counted(&first, "throughline_directory_records 0").await;
    until_told(&first).await;
    let mut dialler = config(&[&third]);
    dialler.connect_timeout = std::time::Duration::from_secs(2);
    let late = peer(dialler).await;
    let error = late
        .connect(&Ticket::from(bob.peer_id()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), throughline::ErrorKind::Unreachable, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_room_is_the_same_at_all_relays() {
    let nats = Nats::start(1).await;
    let [first, second, third] = fleet(&nats).await;
    let alice = echoing(config(&[&first])).await;
    let bob = peer(config(&[&second])).await;
    let carol = peer(config(&[&third, &second])).await;
    let at_first = enter(&alice, b"Alice").await;
    until_told(&first).await;
    let at_second = enter(&bob, b"Bob").await;
    until_members(&at_second, &[(&alice, b"Alice")]).await;
    until_members(&at_first, &[(&bob, b"Bob")]).await;
    let at_both = enter(&carol, b"Carol").await;
    until_members(&at_both, &[(&alice, b"Alice"), (&bob, b"Bob")]).await;
    until_members(&at_first, &[(&bob, b"Bob"), (&carol, b"Carol")]).await;

    at_first.show(b"Alice, away").unwrap();
    until_members(&at_second, &[(&alice, b"Alice, away"), (&carol, b"Carol")]).await;
    let connection = timeout(PATIENCE, at_second.connect(alice.peer_id())).await;
    echoed(&connection.expect("in time").unwrap()).await;

    let began = std::time::Instant::now();
    at_second.leave();
    until_members(&at_first, &[(&carol, b"Carol")]).await;
    until_members(&at_both, &[(&alice, b"Alice, away")]).await;
    assert!(
        began.elapsed() < std::time::Duration::from_secs(10),
        "it was not waited for"
    );
    // One that comes again is seen again.
    let _again = enter(&bob, b"Bob, again").await;
    until_members(&at_first, &[(&bob, b"Bob, again"), (&carol, b"Carol")]).await;
    for relay in [&first, &second, &third] {
        assert!(counted(relay, "throughline_fleet_unsound_total 0"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_drains_sends_its_clients_to_a_sister_that_does_not() {
    let nats = Nats::start(1).await;
    let [first, second, third] = fleet(&nats).await;
    let bob = echoing(config(&[&first])).await;
    until(|| !bob.ticket().relays().is_empty()).await;
    // The second drains as well, so it is no place to go to.
    second.drain().await;
    let sister = third.peer_id().to_string();
    until(|| {
        let Some(profile) = profile(&first) else {
            return false;
        };
        let sisters = profile["sisters"].as_array().unwrap();
        let is_third = |sister_of: &serde_json::Value| {
            sister_of
                .as_str()
                .is_some_and(|text| text.ends_with(&sister))
        };
        !sisters.is_empty() && sisters.iter().all(is_third)
    })
    .await;
    let drain = tokio::spawn(async move { first.drain().await });
    until(|| {
        let relays = bob.ticket().relays();
        !relays.is_empty() && relays.iter().all(|relay| relay.ends_with(&sister))
    })
    .await;
    drain.await.unwrap();
}

/// What a relay says of itself.
fn profile(relay: &Server) -> Option<serde_json::Value> {
    use std::io::{Read as _, Write as _};
    let host = relay
        .http_url()
        .strip_prefix("http://")?
        .trim_end_matches('/');
    let mut stream = std::net::TcpStream::connect(host).ok()?;
    let request = format!(
        "GET /.well-known/throughline HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

/// A key that signs tokens, and a file of revoked tokens without any.
pub(crate) fn token_key(home: &tempfile::TempDir) -> (TokenKey, PathBuf) {
    let key = TokenKey::load_or_create(home.path().join("key.pem")).unwrap();
    let file = home.path().join("revoked");
    std::fs::write(&file, "# nobody\n").unwrap();
    (key, file)
}

pub(crate) fn token(key: &TokenKey) -> String {
    let hour = std::time::Duration::from_secs(3600);
    key.sign(&NewToken::new("alice", hour)).unwrap()
}

/// The id of a token, as a line of a file.
pub(crate) fn id_of(token: &str) -> String {
    let claims = token.split('.').nth(1).unwrap().as_bytes();
    let claims = data_encoding::BASE64URL_NOPAD.decode(claims).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    format!("{}\n", claims["jti"].as_str().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_one_relay_revokes_counts_at_none() {
    let nats = Nats::start(1).await;
    let home = tempfile::tempdir().unwrap();
    let (key, file) = token_key(&home);
    let tokens = |config: &mut ServerConfig| {
        config.access.mode = Some(AccessMode::Token);
        config.access.keys = vec![key.public()];
    };
    let first = relay(&nats, |config| {
        tokens(config);
        config.access.revoked = Some(file.clone());
    });
    let (first, second) = (first.await, relay(&nats, tokens).await);
    let relays = [first, second];
    until_whole(&relays).await;
    let [first, second] = relays;
    let token = token(&key);
    let mut through = config(&[&second]);
    through.relay_tokens = Some(token.as_str().into());
    let me = peer(through).await;
    until(|| !me.ticket().relays().is_empty()).await;

    std::fs::write(&file, id_of(&token)).unwrap();
    first.reload_access();
    until(|| me.ticket().relays().is_empty()).await;

    // It stays so when somebody deletes the key, because the file still names the token.
    let revoked = lies::bucket(&nats, "throughline_revoked").await;
    let key = data_encoding::HEXLOWER.encode(id_of(&token).trim().as_bytes());
    revoked.delete(&key).await.unwrap();
    until_some(|| async { revoked.get(&key).await.ok().flatten() }).await;
}

/// What all together took: bytes, circuits, reservations and seconds.
pub(crate) fn sum(rows: &[UsageRow]) -> [u64; 4] {
    let mut sum = [0; 4];
    for row in rows {
        let row = [row.bytes, row.circuits, row.reservations, row.seconds];
        sum.iter_mut().zip(row).for_each(|(sum, more)| *sum += more);
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn what_peers_take_is_added_up_over_all_relays_and_counts_once() {
    const SIZE: usize = 100_000;
    let mut nats = Nats::start(1).await;
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let mut relays = Vec::new();
    for home in &homes {
        let data = Some(home.path().to_owned());
        relays.push(relay(&nats, |config| config.data = data).await);
    }
    until_whole(&relays).await;
    let (mut peers, mut streams) = (Vec::new(), Vec::new());
    for relay in &relays {
        let mut relayed = config(&[relay]);
        relayed.direct = false;
        let (bob, alice) = (echoing(relayed.clone()).await, peer(relayed).await);
        let connection = connect(&alice, &bob).await;
        streams.push(echo(&connection).await.unwrap());
        peers.extend([bob, alice]);
    }
    let mut settings = ServerConfig::default().fleet;
    settings.servers = nats.urls();
    for round in 0..3 {
        for stream in &mut streams {
            exchange(stream, &vec![7; SIZE]).await.unwrap();
        }
        match round {
            0 => {
                // It has arrived, and more comes while nobody can be told.
                let settings = &settings;
                until_some(|| async move {
                    let rows = usage_of_fleet(settings, None, UsageBy::Day).await.ok();
                    rows.filter(|rows| sum(rows)[0] > 0)
                })
                .await;
                nats.kill_all();
            }
            1 => nats.run().await,
            _ => {}
        }
    }
    drop(streams);
    for peer in peers {
        peer.close().await;
    }
    let (fleet, homes) = (&settings, &homes);
    until_some(|| async move {
        let rows = usage_of_fleet(fleet, None, UsageBy::Peer).await.ok()?;
        let own = homes
            .iter()
            .map(|home| usage(home.path(), None, UsageBy::Peer));
        let own: Vec<_> = own.flat_map(Result::unwrap).collect();
        let is_whole = sum(&rows)[0] > (3 * 2 * 2 * SIZE) as u64;
        (is_whole && sum(&rows) == sum(&own)).then_some(())
    })
    .await;
    let since = "9999-01-01".parse().ok();
    let none = usage_of_fleet(&settings, since, UsageBy::Day)
        .await
        .unwrap();
    assert!(none.is_empty());
}

/// A relay looks at its record every 15 s, and this test takes less than that.
#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_ends_tells_first_what_its_peers_took() {
    const SIZE: usize = 100_000;
    let nats = Nats::start(1).await;
    let home = tempfile::tempdir().unwrap();
    let data = Some(home.path().to_owned());
    let relay = relay(&nats, |config| config.data = data).await;
    until_counted(&relay, "throughline_fleet_up 1").await;
    let mut relayed = config(&[&relay]);
    relayed.direct = false;
    let (bob, alice) = (echoing(relayed.clone()).await, peer(relayed).await);
    let connection = connect(&alice, &bob).await;
    let mut stream = echo(&connection).await.unwrap();
    exchange(&mut stream, &vec![7; SIZE]).await.unwrap();
    relay.shutdown().await;
    let mut settings = ServerConfig::default().fleet;
    settings.servers = nats.urls();
    let rows = usage_of_fleet(&settings, None, UsageBy::Peer).await;
    let (rows, own) = (
        rows.unwrap(),
        usage(home.path(), None, UsageBy::Peer).unwrap(),
    );
    assert!(sum(&rows)[0] > (2 * SIZE) as u64, "{rows:?}");
    assert_eq!(sum(&rows), sum(&own));
}
