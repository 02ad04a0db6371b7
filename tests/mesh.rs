//! Full meshes of the members of a room, over a real relay.

use std::time::{Duration, Instant};

use futures::AsyncWriteExt as _;
use throughline::{
    Config, Connector, ErrorKind, Mesh, MeshEvent, PeerId, RoomOptions, Ticket, server::Server,
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

async fn join(me: &Connector, data: &[u8]) -> Mesh {
    let mut options = RoomOptions::default();
    options.secret = "secret".to_owned();
    options.data = data.to_vec();
    let joined = timeout(PATIENCE, Mesh::join(me, "tea party", options)).await;
    joined.expect("in time").unwrap()
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
    for mesh in [&first, &second] {
        left(mesh).await;
        joined(mesh, 1).await;
    }
    second.broadcast(b"again").await.unwrap();
    assert_eq!(message(&first).await.1, b"again");
}
