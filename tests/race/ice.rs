//! ICE and its results, with our peers and with peers that answer differently from ours.

use std::{convert::Infallible, future, io, iter};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use libp2p::{
    InboundUpgrade, Multiaddr, PeerId, Stream, StreamProtocol, Swarm, SwarmBuilder,
    core::{UpgradeInfo, upgrade::DeniedUpgrade},
    multiaddr::Protocol,
    noise, relay,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, OneShotHandler,
        SubstreamProtocol, SwarmEvent, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
    },
    yamux,
};
use throughline::PathEvent;

use super::*;

/// Waits until `count` attempts have ended.
async fn until_attempts(conn: &Connection, count: usize) {
    let mut events = conn.path_events();
    let ended = async {
        while conn.attempts().len() < count {
            assert!(events.next().await.is_some(), "closed before");
        }
    };
    timeout(PATIENCE, ended).await.expect("ICE fails");
}

#[tokio::test]
async fn every_result_of_ice_is_counted() {
    let relay = relay().await;
    // This peer keeps to its relay, and says so.
    let bob = peer(relayed(listener(&[&relay]))).await;
    accepting(&bob);
    let mut config = dialler();
    config.upgrade_tries = 0;
    let alice = peer(config.clone()).await;
    let conn = alice.connect(&bob.ticket()).await.unwrap();
    let mut events = conn.path_events();
    until_attempts(&conn, 3).await;
    let cause = conn.attempts()[1].cause.unwrap();
    assert_eq!(cause, Cause::Refused);
    conn.close().await;
    while let Some(event) = events.next().await {
        assert!(!matches!(event, PathEvent::Lagged { .. }));
    }
    assert_eq!(
        books(&alice),
        entries(&[
            "attempts circuit_relay 1",
            "attempts direct 1",
            "attempts stun 1",
            "successes circuit_relay 1",
            "failures direct refused 1",
            "failures stun refused 1",
        ])
    );

    // The connection is closed while ICE runs.
    let carol = peer(listener(&[&relay])).await;
    accepting(&carol);
    let alice = peer(config).await;
    let ticket = carol.ticket().without_addresses();
    alice.connect(&ticket).await.unwrap().close().await;
    assert_eq!(
        books(&alice),
        entries(&[
            "attempts circuit_relay 1",
            "attempts direct 1",
            "attempts stun 1",
            "successes circuit_relay 1",
            "failures direct cancelled 1",
            "failures stun cancelled 1",
        ])
    );
}

/// How a stock peer answers an offer, or a relay answers a request for a circuit.
#[derive(Clone, Debug)]
enum Says {
    /// The peer does not speak the protocol.
    No,
    /// The peer does not answer.
    Nothing,
    /// The peer answers with one candidate, at which nobody listens.
    Candidate(std::net::SocketAddr),
    /// The relay makes no circuits for us.
    Denied,
}

impl UpgradeInfo for Says {
    type Info = StreamProtocol;
    type InfoIter = std::option::IntoIter<StreamProtocol>;

    fn protocol_info(&self) -> Self::InfoIter {
        let protocol = match self {
            Self::No => None,
            Self::Nothing | Self::Candidate(_) => Some("/webrtc-signaling/0.0.1"),
            Self::Denied => Some("/libp2p/circuit/relay/0.2.0/hop"),
        };
        protocol.map(StreamProtocol::new).into_iter()
    }
}

impl InboundUpgrade<Stream> for Says {
    type Output = Infallible;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Infallible>>;

    fn upgrade_inbound(self, mut stream: Stream, _: StreamProtocol) -> Self::Future {
        async move {
            stream.read_exact(&mut [0; 16]).await?;
            // A message is protobuf after its length.
            let length = |length: usize| match length {
                0..0x80 => vec![length as u8],
                _ => vec![length as u8 | 0x80, (length >> 7) as u8],
            };
            let message = match self {
                Self::Candidate(nobody) => {
                    let sdp = answer(nobody);
                    // type = ANSWER, then the data.
                    [&[8, 1, 18], &length(sdp.len())[..], sdp.as_bytes()].concat()
                }
                // type = STATUS, status = PERMISSION_DENIED.
                Self::Denied => vec![8, 2, 0x28, 202, 1],
                Self::No | Self::Nothing => Vec::new(),
            };
            if !message.is_empty() {
                stream.write_all(&length(message.len())).await?;
                stream.write_all(&message).await?;
                stream.flush().await?;
            }
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await?;
            future::pending().await
        }
        .boxed()
    }
}

fn answer(nobody: std::net::SocketAddr) -> String {
    let digest: Vec<_> = iter::repeat_n("AB", 32).collect();
    [
        "v=0",
        "o=- 1 1 IN IP4 0.0.0.0",
        "s=-",
        "t=0 0",
        "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
        "c=IN IP4 0.0.0.0",
        "a=mid:0",
        "a=ice-ufrag:nobody",
        "a=ice-pwd:nobodynobodynobodynobody",
        &format!("a=fingerprint:sha-256 {}", digest.join(":")),
        "a=setup:active",
        "a=sctp-port:5000",
        &format!(
            "a=candidate:1 1 udp 2130706431 {} {} typ host",
            nobody.ip(),
            nobody.port()
        ),
        "",
    ]
    .join("\r\n")
}

/// Answers in this way on every connection.
struct Signalling(Says);

impl NetworkBehaviour for Signalling {
    type ConnectionHandler = OneShotHandler<Says, DeniedUpgrade, Infallible>;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        let says = SubstreamProtocol::new(self.0.clone(), ());
        Ok(OneShotHandler::new(says, Default::default()))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        _: libp2p::core::Endpoint,
        _: libp2p::core::transport::PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handle_established_inbound_connection(id, peer, address, address)
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        _: THandlerOutEvent<Self>,
    ) {
    }

    fn poll(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        std::task::Poll::Pending
    }
}

#[derive(NetworkBehaviour)]
struct Stock {
    relay: relay::client::Behaviour,
    signalling: Signalling,
}

fn swarm(says: Says) -> Swarm<Stock> {
    SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_relay_client(noise::Config::new, yamux::Config::default)
        .unwrap()
        .with_behaviour(|_, relay| Stock {
            relay,
            signalling: Signalling(says),
        })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build()
}

/// Starts a stock peer with a reservation, and returns its ticket.
async fn stock(relay: &Server, says: Says) -> Ticket {
    let quic = relay.addresses().iter().find(|a| a.contains("quic"));
    let relay: Multiaddr = quic.unwrap().parse().unwrap();
    let mut swarm = swarm(says);
    let circuit = relay.clone().with(Protocol::P2pCircuit);
    swarm.listen_on(circuit).unwrap();
    let reserved = relay::client::Event::ReservationReqAccepted {
        relay_peer_id: PeerId::random(),
        renewal: false,
        limit: None,
    };
    let granted = std::mem::discriminant(&reserved);
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(StockEvent::Relay(event))
                if std::mem::discriminant(&event) == granted =>
            {
                break;
            }
            _ => {}
        }
    }
    let peer = swarm.local_peer_id().to_string().parse().unwrap();
    tokio::spawn(swarm.for_each(|_| future::ready(())));
    Ticket::from_parts(peer, [relay.to_string()], []).unwrap()
}

/// Returns the books of one upgrade from a circuit, with a peer that answers in this way.
async fn books_of(relay: &Server, says: Says, mut config: Config) -> BTreeSet<String> {
    let ticket = stock(relay, says).await;
    config.upgrade_tries = 0;
    let alice = peer(config).await;
    let conn = alice.connect(&ticket).await.unwrap();
    let ends = 3 + alice.metrics().matches("strategy=\"turn\"").count();
    until_attempts(&conn, ends).await;
    conn.close().await;
    books(&alice)
}

fn failed(cause: &str) -> BTreeSet<String> {
    entries(&[
        "attempts circuit_relay 1",
        "attempts direct 1",
        "attempts stun 1",
        "successes circuit_relay 1",
        &format!("failures direct {cause} 1"),
        &format!("failures stun {cause} 1"),
    ])
}

#[tokio::test]
async fn ice_fails_for_each_reason_and_says_which() {
    let relay = relay().await;
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let nobody = Says::Candidate(silent.local_addr().unwrap());
    let mut config = dialler();
    config.strategy_timeout = Duration::from_secs(1);
    for (says, cause) in [
        (Says::No, Cause::Unsupported),
        (Says::Nothing, Cause::Timeout),
        (nobody, Cause::NoPair),
    ] {
        let books = books_of(&relay, says.clone(), config.clone()).await;
        assert_eq!(books, failed(cause.as_str()), "{says:?}");
    }
}

#[tokio::test]
async fn a_turn_server_that_refuses_is_a_failure_of_turn() {
    let mut config = server_config();
    config.turn.secret = Some("secret".into());
    let relay = Server::start(config).await.unwrap();
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let nobody = Says::Candidate(silent.local_addr().unwrap());
    let mut config = dialler();
    // A TURN server is tried for 5 s.
    config.strategy_timeout = Duration::from_secs(7);
    let url = relay.turn_urls()[0].clone();
    config.turn = vec![throughline::TurnServer {
        url,
        username: "nobody".into(),
        credential: "wrong".into(),
    }];
    let mut expected = failed("no_pair");
    expected.extend(entries(&["attempts turn 1", "failures turn refused 1"]));
    assert_eq!(books_of(&relay, nobody, config).await, expected);
}

#[tokio::test]
async fn a_peer_on_the_same_machine_is_found_by_ice() {
    let relay = relay().await;
    let bob = peer(listener(&[&relay])).await;
    accepting(&bob);
    let alice = peer(dialler()).await;
    let ticket = bob.ticket().without_addresses();
    let conn = alice.connect(&ticket).await.unwrap();
    until_direct(&conn).await;
    let mut counted = entries(&[
        "attempts circuit_relay 1",
        "attempts direct 1",
        "attempts stun 1",
        "successes circuit_relay 1",
        "successes direct 1",
        "failures stun cancelled 1",
        "current_method direct 1",
    ]);
    assert_eq!(books(&alice), counted);
    conn.close().await;
    counted.remove("current_method direct 1");
    assert_eq!(books(&alice), counted);
}

#[tokio::test]
async fn a_circuit_that_the_relay_denies_is_asked_for_once() {
    let mut relay = swarm(Says::Denied);
    let any = "/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap();
    relay.listen_on(any).unwrap();
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = relay.select_next_some().await {
            break format!("{address}/p2p/{}", relay.local_peer_id());
        }
    };
    tokio::spawn(relay.for_each(|_| future::ready(())));
    let alice = peer(relayed(dialler())).await;
    let error = refused(&alice, &ticket(&[address], &[])).await;
    assert_eq!(error.kind(), ErrorKind::AccessDenied);
    assert_eq!(causes(&error), [(Strategy::CircuitRelay, Cause::Denied)]);
    let lost = [
        "attempts circuit_relay 1",
        "failures circuit_relay denied 1",
    ];
    assert_eq!(books(&alice), entries(&lost));
}
