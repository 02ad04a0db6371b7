//! Peers that are found by their id or in a room. The relays are real, except for one that lies.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::{
    PeerId, StreamProtocol, identify, relay,
    swarm::{NetworkBehaviour, SwarmEvent},
};
use throughline::{
    Config, Connector, ErrorKind, Identity, PathKind, Room, RoomEvent, RoomOptions, Ticket,
    server::{Server, UsageBy, usage},
};
use tokio::{sync::watch, time::timeout};

use common::{
    PATIENCE, echoed, echoing, free_ports, peer, server_config, until, until_path, until_polled,
    until_some,
};

mod common;
#[path = "common/stock.rs"]
mod stock;

/// A peer that tells the directories of these relays where it is.
fn config(relays: &[&Server]) -> Config {
    let mut config = common::config();
    config.relays = relays.iter().flat_map(|r| r.addresses().to_vec()).collect();
    config.directory = true;
    config.birthday = false;
    config
}

async fn relay() -> Server {
    Server::start(server_config()).await.unwrap()
}

fn counted(server: &Server, line: &str) -> bool {
    server.metrics().lines().any(|known| known == line)
}

async fn until_records(server: &Server, records: usize) {
    let line = format!("throughline_directory_records {records}");
    until(|| counted(server, &line)).await;
}

/// Binds a peer that echoes, and waits until this many peers are in the relay's directory.
async fn listed(relay: &Server, config: Config, records: usize) -> Connector {
    let me = echoing(config).await;
    until_records(relay, records).await;
    me
}

async fn connect(me: &Connector, ticket: &Ticket) -> throughline::Connection {
    let connected = timeout(PATIENCE, me.connect(ticket)).await;
    connected.expect("in time").unwrap()
}

#[tokio::test]
async fn a_peer_is_reached_by_its_id_and_its_addresses_are_found() {
    let relay = relay().await;
    let bob = listed(&relay, config(&[&relay]), 1).await;
    let mut dialler = config(&[&relay]);
    dialler.reserve = false;
    // Without a circuit or ICE, only the addresses in the record lead anywhere.
    dialler.start_delays.circuit_relay = PATIENCE;
    let alice = peer(dialler).await;
    let connection = connect(&alice, &Ticket::from(bob.peer_id())).await;
    assert_eq!(connection.peer_id(), bob.peer_id());
    assert_eq!(connection.path().unwrap().kind, PathKind::Direct);
    echoed(&connection).await;
}

#[tokio::test]
async fn a_short_ticket_is_enough_for_a_peer_that_knows_no_relay() {
    let relay = relay().await;
    let bob = listed(&relay, config(&[&relay]), 1).await;
    let ticket = bob.short_ticket();
    let text = ticket.to_string();
    assert!(text.starts_with("tl2") && text.len() < 155, "{text}");
    let alice = peer(config(&[])).await;
    let link = format!("https://page.example/#{text}");
    let connection = connect(&alice, &link.parse().unwrap()).await;
    until_path(&connection, PathKind::Direct).await;
    echoed(&connection).await;
    let again = connect(&alice, &Ticket::from(bob.peer_id()))
        .await
        .peer_id();
    assert_eq!(again, bob.peer_id(), "it is connected already");
}

#[tokio::test]
async fn early_data_follows_the_look_up_of_a_short_ticket() {
    let relay = relay().await;
    let bob = listed(&relay, config(&[&relay]), 1).await;
    let alice = peer(config(&[&relay])).await;
    let (connection, stream) = alice.open(&bob.short_ticket(), "echo/1").await.unwrap();
    assert_eq!(connection.peer_id(), bob.peer_id());
    let mut stream = stream;
    common::exchange(&mut stream, b"hello").await.unwrap();
}

#[tokio::test]
async fn without_any_relay_a_bare_id_leads_nowhere() {
    let alice = peer(config(&[])).await;
    let ticket = Ticket::from(Identity::generate().peer_id());
    let error = alice.connect(&ticket).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRelay, "{error}");
    let relay = relay().await;
    let mut dialler = config(&[&relay]);
    dialler.connect_timeout = Duration::from_secs(2);
    let alice = peer(dialler).await;
    let error = alice.connect(&ticket).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
}

#[tokio::test]
async fn peers_of_one_network_are_found_by_their_ids_without_any_relay() {
    let mut near = config(&[]);
    near.lan_discovery = true;
    let bob = echoing(near.clone()).await;
    let alice = peer(near.clone()).await;
    let began = Instant::now();
    let connection = connect(&alice, &Ticket::from(bob.peer_id())).await;
    let took = began.elapsed();
    // It takes a quarter of a second. If the first question is lost, there is another one after one second.
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(connection.path().unwrap().kind, PathKind::Direct);
    echoed(&connection).await;
    // Nobody answers for whoever does not want to be found, or is not there.
    let hidden = peer(config(&[])).await;
    near.connect_timeout = PATIENCE;
    let alice = peer(near).await;
    for absent in [hidden.peer_id(), Identity::generate().peer_id()] {
        let began = Instant::now();
        let error = alice.connect(&Ticket::from(absent)).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
        assert!(began.elapsed() < Duration::from_secs(10), "it is given up");
    }
}

#[tokio::test]
async fn an_old_ticket_finds_a_peer_that_has_moved_to_another_relay_and_address() {
    let (old, new) = (relay().await, relay().await);
    let identity = Identity::generate();
    let run = |relay: &Server| {
        let builder = Connector::builder().identity(identity.clone());
        builder.config(config(&[relay])).bind()
    };
    let first = run(&old).await.unwrap();
    let ticket = first.ticket();
    first.close().await;
    drop(old);
    let second = run(&new).await.unwrap();
    until_records(&new, 1).await;
    let mut dialler = config(&[&new]);
    dialler.connect_timeout = PATIENCE;
    let alice = peer(dialler).await;
    let (connected, accepted) = tokio::join!(alice.connect(&ticket), second.accept());
    assert_eq!(connected.unwrap().peer_id(), identity.peer_id());
    assert_eq!(accepted.unwrap().peer_id(), alice.peer_id());
}

#[tokio::test]
async fn a_peer_that_says_goodbye_is_forgotten_and_one_that_wants_it_is_never_known() {
    let relay = relay().await;
    let bob = listed(&relay, config(&[&relay]), 1).await;
    bob.close().await;
    until_records(&relay, 0).await;
    let mut silent = config(&[&relay]);
    silent.directory = false;
    let carol = echoing(silent).await;
    let alice = listed(&relay, config(&[&relay]), 1).await;
    // The relay's circuit still leads to it.
    let connection = connect(&alice, &Ticket::from(carol.peer_id())).await;
    echoed(&connection).await;
}

/// A relay whose directory does not show what it was told.
#[derive(NetworkBehaviour)]
struct Liar {
    relay: relay::Behaviour,
    identify: identify::Behaviour,
    streams: libp2p_stream::Behaviour,
}

/// What a relay that lies does when it is asked for a peer.
#[derive(Clone, Copy, PartialEq)]
enum Lie {
    /// It never answers.
    Mute,
    /// It shows another peer's record.
    Another,
    /// It shows the first record that the peer has left.
    Oldest,
    /// It does not lie.
    Newest,
}

/// A relay that lies.
struct Lying {
    address: String,
    lie: watch::Sender<Lie>,
    /// How many look-ups there were.
    asked: watch::Receiver<u32>,
    /// How many records were left.
    left: watch::Receiver<usize>,
}

async fn liar(lie: Lie) -> Lying {
    let mut swarm = stock::node(|key| Liar {
        relay: relay::Behaviour::new(key.public().to_peer_id(), relay::Config::default()),
        identify: identify::Behaviour::new(identify::Config::new(
            "/liar/1".to_owned(),
            key.public(),
        )),
        streams: libp2p_stream::Behaviour::new(),
    });
    let peer = *swarm.local_peer_id();
    let mut control = swarm.behaviour().streams.new_control();
    let directory = StreamProtocol::new("/throughline/directory/1");
    let mut asked = control.accept(directory).unwrap();
    swarm
        .listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap())
        .unwrap();
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            break address;
        }
    };
    swarm.add_external_address(address.clone());
    tokio::spawn(async move { while swarm.next().await.is_some() {} });
    let (look_up, looked_up) = watch::channel(0);
    let (leave, left) = watch::channel(0);
    let (lie, lies) = watch::channel(lie);
    tokio::spawn(async move {
        let (mut records, mut waiting) = (HashMap::<_, Vec<Vec<u8>>>::new(), Vec::new());
        while let Some((peer, mut stream)) = asked.next().await {
            let request = read_message(&mut stream).await;
            let answer = match request.split_first() {
                // The record is the whole field of a request to keep it.
                Some((0x0a, record)) => {
                    let of_peer = records.entry(peer).or_default();
                    of_peer.push([&[0x12], record].concat());
                    leave.send_modify(|left| *left += 1);
                    Vec::new()
                }
                Some((0x12, sought)) => {
                    look_up.send_modify(|asked| *asked += 1);
                    let sought = PeerId::from_bytes(&sought[1..]).unwrap();
                    let of_peer = records.get(&sought);
                    let shown = match *lies.borrow() {
                        Lie::Mute => {
                            waiting.push(stream);
                            continue;
                        }
                        Lie::Another => {
                            let other = records.iter().find(|(peer, _)| **peer != sought);
                            other.and_then(|(_, records)| records.last())
                        }
                        Lie::Oldest => of_peer.and_then(|records| records.first()),
                        Lie::Newest => of_peer.and_then(|records| records.last()),
                    };
                    shown.cloned().unwrap_or_default()
                }
                _ => Vec::new(),
            };
            let mut length = unsigned_varint::encode::usize_buffer();
            let length = unsigned_varint::encode::usize(answer.len(), &mut length);
            // Who has its answer may be gone.
            let _ = stream.write_all(&[length, &answer].concat()).await;
            let _ = stream.close().await;
        }
    });
    Lying {
        address: format!("{address}/p2p/{peer}"),
        lie,
        asked: looked_up,
        left,
    }
}

async fn read_message(stream: &mut libp2p::Stream) -> Vec<u8> {
    let (mut length, mut byte) = (0, [0x80]);
    for shift in [0, 7] {
        if byte[0] & 0x80 != 0 {
            stream.read_exact(&mut byte).await.unwrap();
            length |= usize::from(byte[0] & 0x7f) << shift;
        }
    }
    let mut message = vec![0; length];
    stream.read_exact(&mut message).await.unwrap();
    message
}

#[tokio::test]
async fn a_relay_that_shows_another_peer_or_an_old_record_is_not_believed() {
    let relay = liar(Lie::Another).await;
    let mut through = config(&[]);
    through.relays = vec![relay.address];
    let bob = echoing(through.clone()).await;
    let carol = echoing(through.clone()).await;
    let mut dialler = through.clone();
    dialler.reserve = false;
    let alice = peer(dialler).await;
    let connection = connect(&alice, &Ticket::from(bob.peer_id())).await;
    assert_eq!(connection.peer_id(), bob.peer_id());
    echoed(&connection).await;
    assert!(*relay.asked.borrow() > 0, "it was asked");
    assert_eq!(carol.report().await.unwrap().connections, 0);
}

#[tokio::test]
async fn an_old_record_does_not_count_after_a_newer_one_whatever_has_ended_since() {
    let mut relay = liar(Lie::Newest).await;
    let identity = Identity::generate();
    let mut through = config(&[]);
    through.relays = vec![relay.address];
    let run = || {
        let builder = Connector::builder().identity(identity.clone());
        builder.config(through.clone()).bind()
    };
    let first = run().await.unwrap();
    let listening = first.report().await.unwrap().listening;
    let port = |address: &String| address.strip_prefix("/ip4/127.0.0.1/tcp/")?.parse().ok();
    let old: u16 = listening.iter().find_map(port).unwrap();
    timeout(PATIENCE, relay.left.wait_for(|left| *left > 0))
        .await
        .unwrap()
        .unwrap();
    first.close().await;
    let of_first = *relay.left.borrow();
    let second = run().await.unwrap();
    timeout(PATIENCE, relay.left.wait_for(|left| *left > of_first))
        .await
        .unwrap()
        .unwrap();
    let mut dialler = through.clone();
    dialler.reserve = false;
    dialler.start_delays.circuit_relay = PATIENCE;
    dialler.connect_timeout = Duration::from_secs(2);
    let alice = peer(dialler).await;
    let ticket = Ticket::from(identity.peer_id());
    let (connection, accepted) = tokio::join!(connect(&alice, &ticket), second.accept());
    accepted.unwrap();
    connection.close().await;
    let is_idle = || async { (alice.report().await.unwrap().connections == 0).then_some(()) };
    until_some(is_idle).await;
    second.close().await;
    relay.lie.send_replace(Lie::Oldest);
    // Whoever is at the old address now is not dialled.
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", old))
        .await
        .unwrap();
    let asked = *relay.asked.borrow();
    tokio::select! {
        connected = alice.connect(&ticket) => assert!(connected.is_err()),
        _ = listener.accept() => panic!("the old record has counted"),
    }
    assert!(*relay.asked.borrow() > asked, "it was asked");
}

#[tokio::test]
async fn a_connect_does_not_wait_for_the_look_up() {
    let relay = liar(Lie::Mute).await;
    let mut through = config(&[]);
    through.relays = vec![relay.address];
    let bob = echoing(through.clone()).await;
    let alice = peer(through).await;
    let began = Instant::now();
    let connection = connect(&alice, &Ticket::from(bob.peer_id())).await;
    assert!(began.elapsed() < Duration::from_secs(5), "it has waited");
    assert!(*relay.asked.borrow() > 0, "it was asked");
    echoed(&connection).await;
}

fn room(secret: &str, data: &[u8]) -> RoomOptions {
    let mut options = RoomOptions::default();
    options.secret = secret.to_owned();
    options.data = data.to_vec();
    options
}

async fn enter(me: &Connector, options: RoomOptions) -> Room {
    let joined = timeout(PATIENCE, me.join("tea party", options)).await;
    joined.expect("in time").unwrap()
}

async fn next(room: &Room) -> RoomEvent {
    let event = timeout(PATIENCE, room.next()).await;
    event.expect("in time").expect("the room is there")
}

fn data_of(event: &RoomEvent) -> (throughline::PeerId, &[u8]) {
    match event {
        RoomEvent::Joined(member) | RoomEvent::Changed(member) => (member.id, &member.data),
        RoomEvent::Left(peer) => (*peer, &[]),
    }
}

#[tokio::test]
async fn members_of_a_room_see_each_other_come_change_and_go_and_connect() {
    let relay = relay().await;
    let (alice, bob) = (
        echoing(config(&[&relay])).await,
        peer(config(&[&relay])).await,
    );
    let first = enter(&alice, room("secret", b"Alice")).await;
    assert!(first.members().is_empty());
    let second = enter(&bob, room("secret", b"Bob")).await;
    let members = second.members();
    assert_eq!(members.len(), 1, "who enters sees who is there");
    assert_eq!(
        (members[0].id, &members[0].data[..]),
        (alice.peer_id(), &b"Alice"[..])
    );
    let joined = next(&first).await;
    assert!(matches!(joined, RoomEvent::Joined(_)), "{joined:?}");
    assert_eq!(data_of(&joined), (bob.peer_id(), &b"Bob"[..]));
    assert_eq!(
        data_of(&next(&second).await),
        (alice.peer_id(), &b"Alice"[..])
    );

    first.show(b"Alice, away").unwrap();
    let changed = next(&second).await;
    assert!(matches!(changed, RoomEvent::Changed(_)), "{changed:?}");
    assert_eq!(data_of(&changed).1, b"Alice, away");

    let connection = second.connect(alice.peer_id()).await.unwrap();
    echoed(&connection).await;

    let began = Instant::now();
    second.leave();
    assert_eq!(next(&first).await, RoomEvent::Left(bob.peer_id()));
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "it was not waited for"
    );
    assert_eq!(second.next().await, None);
    assert!(first.members().is_empty());
    let again = enter(&bob, room("secret", b"Bob")).await;
    assert!(matches!(next(&first).await, RoomEvent::Joined(_)));
    drop(again);
    assert_eq!(
        next(&first).await,
        RoomEvent::Left(bob.peer_id()),
        "dropped"
    );
    let _again = enter(&bob, room("secret", b"Bob")).await;
    assert!(matches!(next(&first).await, RoomEvent::Joined(_)));
    bob.close().await;
    assert_eq!(next(&first).await, RoomEvent::Left(bob.peer_id()), "closed");
}

#[tokio::test]
async fn without_the_secret_nobody_is_seen() {
    let relay = relay().await;
    let (alice, eve) = (peer(config(&[&relay])).await, peer(config(&[&relay])).await);
    let inside = enter(&alice, room("secret", b"Alice")).await;
    let mut elsewhere = room("secret", b"Eve");
    elsewhere.application = "another".to_owned();
    let outside = [
        enter(&eve, room("guess", b"Eve")).await,
        enter(&eve, elsewhere).await,
    ];
    let bob = peer(config(&[&relay])).await;
    let _bob = enter(&bob, room("secret", b"Bob")).await;
    assert_eq!(data_of(&next(&inside).await).0, bob.peer_id());
    for room in outside {
        assert!(room.members().is_empty());
    }
}

#[tokio::test]
async fn what_cannot_be_shown_or_entered_is_an_error() {
    let relay = relay().await;
    let alice = peer(config(&[&relay])).await;
    let long = alice.join("tea party", room("", &[7; 1025])).await;
    assert_eq!(long.unwrap_err().kind(), ErrorKind::InvalidConfig);
    let most = enter(&alice, room("", &[7; 1024])).await;
    assert_eq!(
        most.show(&[7; 1025]).unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
    let mut lonely = config(&[&relay]);
    lonely.reserve = false;
    lonely.relay_timeout = Duration::from_secs(1);
    let lonely = peer(lonely).await;
    let error = lonely.join("tea party", room("", b"")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRelay, "{error}");
    alice.close().await;
    assert_eq!(most.next().await, None);
}

#[tokio::test]
async fn a_member_that_dies_is_gone_when_its_record_is_over() {
    let relay = relay().await;
    let alice = peer(config(&[&relay])).await;
    let inside = enter(&alice, room("secret", b"Alice")).await;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let config = config(&[&relay]);
    let dying = runtime.spawn(async move {
        let bob = peer(config).await;
        (enter(&bob, room("secret", b"Bob")).await, bob)
    });
    let (_seat, bob) = dying.await.unwrap();
    assert!(matches!(next(&inside).await, RoomEvent::Joined(_)));
    runtime.shutdown_background();
    let left = timeout(PATIENCE * 2, inside.next()).await.expect("in time");
    assert_eq!(left, Some(RoomEvent::Left(bob.peer_id())));
}

#[tokio::test]
async fn a_room_outlives_its_relay() {
    let data = tempfile::tempdir().unwrap();
    let mut server = server_config();
    server.data = Some(data.path().to_owned());
    // The second server is found where the first was.
    server.port = free_ports();
    let first = Server::start(server.clone()).await.unwrap();
    let (alice, bob) = (peer(config(&[&first])).await, peer(config(&[&first])).await);
    let inside = enter(&alice, room("secret", b"Alice")).await;
    let other = enter(&bob, room("secret", b"Bob")).await;
    assert!(matches!(next(&inside).await, RoomEvent::Joined(_)));
    first.shutdown().await;
    // QUIC keeps its socket until the peers have had time to hear of the close.
    let port = server.port;
    until_polled(|| std::net::UdpSocket::bind(("127.0.0.1", port)).is_ok()).await;
    let _second = Server::start(server).await.unwrap();
    other.show(b"Bob, back").unwrap();
    let changed = next(&inside).await;
    assert_eq!(data_of(&changed), (bob.peer_id(), &b"Bob, back"[..]));
    assert!(matches!(changed, RoomEvent::Changed(_)), "nobody has left");
}

#[tokio::test]
async fn what_a_room_costs_is_on_the_record_of_its_members() {
    let home = tempfile::tempdir().unwrap();
    let mut server = server_config();
    server.data = Some(home.path().to_owned());
    let relay = Server::start(server).await.unwrap();
    let (alice, bob) = (peer(config(&[&relay])).await, peer(config(&[&relay])).await);
    let inside = enter(&alice, room("secret", b"Alice")).await;
    let other = enter(&bob, room("secret", b"Bob")).await;
    assert!(matches!(next(&inside).await, RoomEvent::Joined(_)));
    const CHANGES: u8 = 8;
    for n in 0..CHANGES {
        other.show(&[n; 1024]).unwrap();
        assert_eq!(data_of(&next(&inside).await).1, [n; 1024]);
    }
    let (reads, writes) = (alice.peer_id(), bob.peer_id());
    relay.shutdown().await;
    let rows = usage(home.path(), None, UsageBy::Peer).unwrap();
    for peer in [reads, writes] {
        let row = rows.iter().find(|row| row.name == peer.to_string());
        let bytes = row.expect("a line of its own").bytes;
        assert!(bytes >= u64::from(CHANGES) * 1024, "{bytes}");
    }
}

#[tokio::test]
async fn a_peer_enters_no_room_when_its_quota_is_used_up() {
    let mut server = server_config();
    server.traffic.peer_quota = Some("20kB/day".to_owned());
    let relay = Server::start(server).await.unwrap();
    let alice = peer(config(&[&relay])).await;
    let mut rooms = Vec::new();
    let refused = loop {
        let name = rooms.len().to_string();
        let joined = alice.join(&name, room("", &[7; 1024]));
        match timeout(PATIENCE, joined).await.expect("in time") {
            Ok(room) => rooms.push(room),
            Err(error) => break error,
        }
    };
    assert_eq!(refused.kind(), ErrorKind::LimitExceeded, "{refused}");
    assert!((2..20).contains(&rooms.len()), "{}", rooms.len());
}
