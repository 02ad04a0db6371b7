//! Tests of the client against libp2p's server.

use futures::AsyncReadExt as _;
use libp2p::{
    Swarm, Transport as _,
    autonat::v2::server,
    core::{transport::ListenerId, upgrade::Version},
    noise,
    swarm::SwarmEvent,
    tcp, yamux,
};
use tokio::sync::mpsc;

use super::*;

const SOON: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(20);

fn swarm<B: NetworkBehaviour>(behaviour: B) -> Swarm<B> {
    let keypair = libp2p::identity::Keypair::generate_ed25519();
    let transport = tcp::tokio::Transport::new(tcp::Config::new().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(&keypair).unwrap())
        .multiplex(yamux::Config::default())
        .boxed();
    let config = libp2p::swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(60));
    Swarm::new(transport, behaviour, keypair.public().to_peer_id(), config)
}

async fn listen<B: NetworkBehaviour>(swarm: &mut Swarm<B>) -> (ListenerId, Multiaddr) {
    let id = swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap());
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return (id.unwrap(), address);
        }
    }
}

/// A client that is connected to a server. The server runs in a task of its own.
async fn connected() -> Swarm<AutonatClient> {
    let mut server = swarm(server::Behaviour::default());
    let (_, address) = listen(&mut server).await;
    let peer = *server.local_peer_id();
    tokio::spawn(async move {
        loop {
            server.select_next_some().await;
        }
    });
    let mut client = swarm(AutonatClient::new(RETRY));
    client.dial(address).unwrap();
    loop {
        if let SwarmEvent::ConnectionEstablished { .. } = client.select_next_some().await {
            client.behaviour_mut().identified(peer, true);
            return client;
        }
    }
}

/// Waits for the next change. It is `true` for an address that was confirmed.
async fn change(client: &mut Swarm<AutonatClient>) -> (bool, Multiaddr) {
    let next = async {
        loop {
            match client.select_next_some().await {
                SwarmEvent::ExternalAddrConfirmed { address } => return (true, address),
                SwarmEvent::ExternalAddrExpired { address } => return (false, address),
                _ => {}
            }
        }
    };
    timeout(SOON, next).await.expect("no change")
}

/// Reports that some peer sees the client at `address`.
fn mention(client: &mut Swarm<AutonatClient>, address: &Multiaddr) {
    let now = client.behaviour().start.elapsed();
    client.behaviour_mut().known.add(now, address);
    client.behaviour_mut().identified(PeerId::random(), false);
}

#[tokio::test]
async fn an_address_is_confirmed_while_it_leads_to_us() {
    let mut client = connected().await;
    let (listener, address) = listen(&mut client).await;
    mention(&mut client, &address);
    assert_eq!(change(&mut client).await, (true, address.clone()));
    assert_eq!(client.external_addresses().collect::<Vec<_>>(), [&address]);
    // No report says so, but the address no longer leads to the client.
    assert!(client.remove_listener(listener));
    assert_eq!(change(&mut client).await, (false, address.clone()));
    assert_eq!(client.external_addresses().count(), 0);
    // The address leads to the client again.
    client.listen_on(address.clone()).unwrap();
    assert_eq!(change(&mut client).await, (true, address));
}

#[tokio::test]
async fn a_confirmation_ends_when_its_server_is_gone() {
    let mut client = connected().await;
    let (_, address) = listen(&mut client).await;
    mention(&mut client, &address);
    assert_eq!(change(&mut client).await, (true, address.clone()));
    let server = client.behaviour().dialled[0].0;
    client.disconnect_peer_id(server).unwrap();
    assert_eq!(change(&mut client).await, (false, address));
}

/// Sends the nonce back on the connection that the client made, and then claims to have reached the
/// client.
async fn lie(mut liar: Swarm<Substreams>, told: mpsc::Sender<()>) {
    let (mut nonce, mut asked) = (0, None);
    loop {
        match liar.select_next_some().await {
            SwarmEvent::Behaviour(SubstreamEvent::Inbound {
                peer,
                connection,
                mut stream,
                ..
            }) => {
                let request = arriving::read_message(&mut stream, 64).await.unwrap();
                let (_, last) = request.split_last_chunk().unwrap();
                nonce = u64::from_le_bytes(*last);
                let back = StreamProtocol::new(autonat::DIAL_BACK);
                liar.behaviour_mut().open(peer, connection, back);
                asked = Some(stream);
            }
            SwarmEvent::Behaviour(SubstreamEvent::Opened { result, .. }) => {
                let mut back = result.unwrap();
                let proof = [&[9, 9][..], &nonce.to_le_bytes()].concat();
                let _ = back.write_all(&proof).await;
                let _ = back.flush().await;
                // The client reads the proof, or refuses the stream.
                let _ = back.read(&mut [0]).await;
                // The bytes of Message { dialResponse { status = OK, dialStatus = OK } }.
                let reached = [8, 0x12, 6, 8, 0xc8, 1, 0x18, 0xc8, 1];
                let mut asked = asked.take().unwrap();
                asked.write_all(&reached).await.unwrap();
                asked.flush().await.unwrap();
                told.send(()).await.unwrap();
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_proof_on_a_connection_that_we_made_is_refused() {
    let request = StreamProtocol::new(autonat::DIAL_REQUEST);
    let mut liar = swarm(Substreams::new([request], true));
    let (_, at) = listen(&mut liar).await;
    let peer = *liar.local_peer_id();
    let (told, mut lies) = mpsc::channel(1);
    tokio::spawn(lie(liar, told));
    let mut client = swarm(AutonatClient::new(RETRY));
    client.dial(at).unwrap();
    mention(&mut client, &"/ip4/127.0.0.1/tcp/9".parse().unwrap());
    let three = async {
        let mut left = 3;
        while left > 0 {
            tokio::select! {
                event = client.select_next_some() => match event {
                    SwarmEvent::ConnectionEstablished { .. } => {
                        client.behaviour_mut().identified(peer, true);
                    }
                    SwarmEvent::ExternalAddrConfirmed { .. } => panic!("a false proof is taken"),
                    _ => {}
                },
                lie = lies.recv() => left -= u32::from(lie.is_some()),
            }
        }
    };
    timeout(SOON, three).await.expect("no further request");
}

#[tokio::test]
async fn a_mapping_is_a_candidate_until_it_ends() {
    let mut swarm = swarm(AutonatClient::new(RETRY));
    let mut news = async |mapped: Option<&str>| {
        let mapped = mapped.map(|addr| addr.parse().unwrap());
        swarm.behaviour_mut().set_mapped(mapped);
        let mut news = Vec::new();
        while let Some(event) = swarm.next().now_or_never() {
            news.extend(match event.unwrap() {
                SwarmEvent::NewExternalAddrCandidate { address } => Some(format!("+{address}")),
                SwarmEvent::ExternalAddrExpired { address } => Some(format!("-{address}")),
                _ => None,
            });
        }
        news
    };
    let [first, second] = ["203.0.113.1:9", "203.0.113.1:10"];
    assert!(news(None).await.is_empty());
    assert_eq!(news(Some(first)).await, ["+/ip4/203.0.113.1/udp/9/quic-v1"]);
    assert!(news(Some(first)).await.is_empty());
    let moved = [
        "-/ip4/203.0.113.1/udp/9/quic-v1",
        "+/ip4/203.0.113.1/udp/10/quic-v1",
    ];
    assert_eq!(news(Some(second)).await, moved);
    assert_eq!(news(None).await, ["-/ip4/203.0.113.1/udp/10/quic-v1"]);
}
