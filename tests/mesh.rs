//! Full meshes of the members of a room, over a real relay.

use std::time::{Duration, Instant};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _};
use throughline::{
    Config, Connection, Connector, Error, ErrorKind, Identity, Mesh, MeshEvent, PeerId,
    RoomOptions, Stream, Ticket, server::Server,
};
use tokio::time::timeout;

use common::{PATIENCE, peer, server_config};

mod common;

fn config(relay: &Server) -> Config {
    let mut config = common::config();
    config.relays = relay.addresses().to_vec();
    config.directory = true;
    config.birthday = false;
    config
}

async fn relay() -> Server {
    Server::start(server_config()).await.unwrap()
}

fn options(data: &[u8]) -> RoomOptions {
    let mut options = RoomOptions::default();
    options.secret = "secret".to_owned();
    options.data = data.to_vec();
    options
}

async fn join(me: &Connector, data: &[u8]) -> Mesh {
    let joined = timeout(PATIENCE, Mesh::join(me, "tea party", options(data))).await;
    joined.expect("in time").unwrap()
}

/// Starts two peers, of which the first dials the second.
async fn in_order(relay: &Server) -> [Connector; 2] {
    let mut identities = [Identity::generate(), Identity::generate()];
    identities.sort_by_key(|identity| identity.peer_id().to_string());
    let starts = identities.map(|identity| {
        let builder = Connector::builder().config(config(relay));
        builder.identity(identity).bind()
    });
    let [first, second] = starts.map(|start| async { start.await.unwrap() });
    [first.await, second.await]
}

/// Opens the stream of a mesh with these bytes in the place of the proof.
async fn open_with(connection: &Connection, proof: &[u8]) -> Stream {
    let mut stream = connection.open("throughline-mesh/1").await.unwrap();
    stream.write_all(proof).await.unwrap();
    stream
}

async fn next(mesh: &Mesh) -> MeshEvent {
    let event = timeout(PATIENCE, mesh.next()).await;
    event.expect("in time").expect("the mesh is there")
}

/// Waits until a mesh has joined this many others, and returns what they show.
async fn joined(mesh: &Mesh, count: usize) -> Vec<(PeerId, Vec<u8>)> {
    let mut joined = Vec::new();
    while joined.len() < count {
        if let MeshEvent::Joined(member) = next(mesh).await {
            joined.push((member.id, member.data));
        }
    }
    joined.sort();
    joined
}

async fn message(mesh: &Mesh) -> (PeerId, Vec<u8>) {
    loop {
        if let MeshEvent::Message(from, message) = next(mesh).await {
            return (from, message);
        }
    }
}

async fn left(mesh: &Mesh) -> PeerId {
    loop {
        if let MeshEvent::Left(peer) = next(mesh).await {
            return peer;
        }
    }
}

#[tokio::test]
async fn everybody_hears_what_one_says_and_who_has_gone() {
    let relay = relay().await;
    let names: [&[u8]; 3] = [b"Ada", b"Bob", b"Cyd"];
    let (mut peers, mut meshes) = (Vec::new(), Vec::new());
    for name in names {
        let me = peer(config(&relay)).await;
        meshes.push(join(&me, name).await);
        peers.push(me);
    }
    let ids: Vec<_> = peers.iter().map(Connector::peer_id).collect();
    for (at, mesh) in meshes.iter().enumerate() {
        let others = (0..3).filter(|other| *other != at);
        let mut others: Vec<_> = others.map(|at| (ids[at], names[at].to_vec())).collect();
        others.sort();
        assert_eq!(joined(mesh, 2).await, others);
        let others: Vec<_> = others.into_iter().map(|(id, _)| id).collect();
        assert_eq!(mesh.peers(), others);
    }
    for me in &peers {
        let connections = me.report().await.unwrap().connections;
        assert_eq!(connections, 2, "one for each other member");
    }
    let [ada, bob, cyd] = &meshes[..] else {
        unreachable!()
    };
    ada.broadcast(b"hello").await.unwrap();
    ada.broadcast(b"").await.unwrap();
    for mesh in [bob, cyd] {
        assert_eq!(message(mesh).await, (ids[0], b"hello".to_vec()));
        assert_eq!(message(mesh).await, (ids[0], Vec::new()));
    }
    assert!(bob.send(ids[2], b"psst").await.unwrap());
    assert_eq!(message(cyd).await, (ids[1], b"psst".to_vec()));
    let long = ada.broadcast(&[0; 65_537]).await.unwrap_err();
    assert_eq!(long.kind(), ErrorKind::LimitExceeded);

    ada.room().show(b"Ada, away").unwrap();
    let changed = loop {
        if let MeshEvent::Changed(member) = next(bob).await {
            break member;
        }
    };
    assert_eq!((changed.id, &changed.data[..]), (ids[0], &b"Ada, away"[..]));

    let began = Instant::now();
    cyd.leave();
    for mesh in [ada, bob] {
        assert_eq!(left(mesh).await, ids[2]);
    }
    assert!(began.elapsed() < Duration::from_secs(10), "not waited for");
    assert!(
        timeout(PATIENCE, async { while cyd.next().await.is_some() {} })
            .await
            .is_ok()
    );
    assert!(!ada.send(ids[2], b"late").await.unwrap());
    drop(meshes.swap_remove(0));
    assert_eq!(left(&meshes[1]).await, ids[0], "dropped");
}

#[tokio::test]
async fn a_slow_member_holds_the_sender_back_and_loses_nothing() {
    const COUNT: u32 = 400;
    let relay = relay().await;
    let (a, b) = (peer(config(&relay)).await, peer(config(&relay)).await);
    let (from, to) = (join(&a, b"").await, join(&b, b"").await);
    joined(&from, 1).await;
    joined(&to, 1).await;
    let sender = from.clone();
    let sends = tokio::spawn(async move {
        let mut message = vec![0; 60_000];
        for number in 0..COUNT {
            message[..4].copy_from_slice(&number.to_be_bytes());
            sender.broadcast(&message).await.unwrap();
        }
    });
    for number in 0..COUNT {
        let (sender, message) = message(&to).await;
        assert_eq!(
            (sender, &message[..4]),
            (a.peer_id(), &number.to_be_bytes()[..])
        );
        // 24 MB are more than the queues and the window of the stream hold.
        if number == 0 {
            assert!(!sends.is_finished(), "it waits for whoever does not read");
        }
    }
    sends.await.unwrap();
    from.send_datagram(b"maybe");
    let datagram = loop {
        match timeout(Duration::from_secs(1), to.next()).await {
            Ok(Some(MeshEvent::Datagram(peer, datagram))) => break (peer, datagram),
            Ok(event) => assert!(event.is_some()),
            // It may be lost.
            Err(_) => from.send_datagram(b"maybe"),
        }
    };
    assert_eq!(datagram, (a.peer_id(), b"maybe".to_vec()));
}

#[tokio::test]
async fn who_wants_something_else_is_handed_on_and_a_lost_link_comes_back() {
    let relay = relay().await;
    let (a, b) = (peer(config(&relay)).await, peer(config(&relay)).await);
    let (first, second) = (join(&a, b"").await, join(&b, b"").await);
    joined(&first, 1).await;
    joined(&second, 1).await;
    let visitor = peer(config(&relay)).await;
    let connection = visitor.connect(&Ticket::from(a.peer_id())).await.unwrap();
    let mut stream = connection.open("echo/1").await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let (stranger, stream) = loop {
        if let MeshEvent::Stranger(connection, stream) = next(&first).await {
            break (connection, stream);
        }
    };
    assert_eq!(stranger.peer_id(), visitor.peer_id());
    assert_eq!(stream.protocol(), "echo/1");

    let link = first.connection(b.peer_id()).unwrap();
    link.close().await;
    // A member is connected again when its end is read, at both ends.
    for mesh in [&first, &second] {
        left(mesh).await;
    }
    for mesh in [&first, &second] {
        joined(mesh, 1).await;
    }
    second.broadcast(b"again").await.unwrap();
    assert_eq!(message(&first).await.1, b"again");
}

#[tokio::test]
async fn who_does_not_know_the_room_takes_no_part() {
    let relay = relay().await;
    let [low, high] = in_order(&relay).await;
    let mesh = join(&high, b"").await;
    let connection = low.connect(&Ticket::from(high.peer_id())).await.unwrap();
    for proof in [[0; 32], [7; 32]] {
        let mut stream = open_with(&connection, &proof).await;
        let refused = timeout(PATIENCE, stream.read_to_end(&mut Vec::new())).await;
        let refused = Error::from(refused.expect("in time").unwrap_err());
        assert_eq!(refused.kind(), ErrorKind::ProtocolRefused);
    }
    assert!(mesh.peers().is_empty());
    let mut other = connection.open("echo/1").await.unwrap();
    other.write_all(b"hello").await.unwrap();
    match next(&mesh).await {
        MeshEvent::Stranger(from, _) => assert_eq!(from.peer_id(), low.peer_id()),
        event => panic!("{event:?}"),
    }
}

#[tokio::test]
async fn a_member_counts_when_it_has_taken_the_stream_and_is_not_dialled_all_the_time() {
    let relay = relay().await;
    let [low, high] = in_order(&relay).await;
    // It is in the room, and not in the mesh.
    let _room = high.join("tea party", options(b"")).await.unwrap();
    let mesh = join(&low, b"").await;
    let connection = timeout(PATIENCE, high.accept()).await.unwrap().unwrap();
    let mut began = Instant::now();
    for round in 0..3 {
        let next = timeout(PATIENCE, connection.accept_stream()).await;
        let (protocol, mut stream) = next.expect("in time").unwrap();
        assert_eq!(protocol, "throughline-mesh/1");
        let mut proof = [0; 32];
        timeout(PATIENCE, stream.read_exact(&mut proof))
            .await
            .expect("in time")
            .unwrap();
        // The pauses double, with a deviation of a quarter.
        let least = [0, 750, 1500][round];
        assert!(began.elapsed() >= Duration::from_millis(least), "{round}");
        began = Instant::now();
        match round {
            // What it was told is no proof of its own.
            0 => stream.write_all(&proof).await.unwrap(),
            _ => stream.refuse(),
        }
        assert!(mesh.peers().is_empty());
    }
    assert!(mesh.next().now_or_never().is_none(), "nothing is told");
}

#[tokio::test]
async fn a_connector_is_in_one_mesh_at_a_time_and_free_when_it_has_left() {
    let relay = relay().await;
    let (me, visitor) = (peer(config(&relay)).await, peer(config(&relay)).await);
    let mesh = join(&me, b"").await;
    let second = Mesh::join(&me, "another", options(b"")).await;
    assert_eq!(second.unwrap_err().kind(), ErrorKind::LimitExceeded);
    mesh.leave();
    assert!(mesh.next().await.is_none());
    drop(join(&me, b"").await);
    let last = join(&me, b"").await;
    last.leave();
    drop(last);
    let ticket = Ticket::from(me.peer_id());
    let (accepted, connected) = tokio::join!(me.accept(), visitor.connect(&ticket));
    assert!(connected.is_ok());
    assert_eq!(accepted.unwrap().peer_id(), visitor.peer_id());
}

#[tokio::test]
async fn what_a_member_says_stands_between_its_coming_and_its_going() {
    let relay = relay().await;
    let [low, high] = in_order(&relay).await;
    let (reader, writer) = (join(&low, b"").await, join(&high, b"").await);
    joined(&writer, 1).await;
    for number in 0..10_u8 {
        writer.broadcast(&[number]).await.unwrap();
    }
    assert!(matches!(next(&reader).await, MeshEvent::Joined(_)));
    assert!(matches!(next(&reader).await, MeshEvent::Message(_, message) if message == [0_u8]));
    let link = writer.connection(low.peer_id()).unwrap();
    link.close().await;
    left(&writer).await;
    let mut expected = 1;
    loop {
        match next(&reader).await {
            MeshEvent::Message(_, message) => assert_eq!(message, [expected]),
            MeshEvent::Left(_) => break,
            event => panic!("{event:?}"),
        }
        expected += 1;
    }
    joined(&reader, 1).await;
    joined(&writer, 1).await;
    writer.broadcast(b"again").await.unwrap();
    assert_eq!(message(&reader).await.1, b"again");
}

#[tokio::test]
async fn a_member_that_takes_too_little_is_put_out() {
    let relay = relay().await;
    let (a, b) = (peer(config(&relay)).await, peer(config(&relay)).await);
    let (from, to) = (join(&a, b"").await, join(&b, b"").await);
    joined(&from, 1).await;
    joined(&to, 1).await;
    let sender = from.clone();
    let floods = tokio::spawn(async move {
        while sender.send(b.peer_id(), &[0; 60_000]).await.unwrap() {}
        b
    });
    // It takes one message a second, and each of the sixteen that wait is taken within ten.
    let trickle = tokio::spawn(async move {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            message(&to).await;
        }
    });
    let gone = left(&from).await;
    assert_eq!(gone, floods.await.unwrap().peer_id());
    trickle.abort();
}
