//! The server as stock libp2p peers, STUN clients and browsers' HTTP see it.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    num::{NonZeroU32, NonZeroUsize},
    time::Duration,
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, Transport as _,
    core::muxing::StreamMuxerBox,
    multiaddr::Protocol,
    noise, ping, relay,
    swarm::{
        NetworkBehaviour, SwarmEvent,
        dial_opts::{DialOpts, PeerCondition},
    },
    tcp, yamux,
};
use libp2p_stream as stream;
use stun_types::{
    attribute::XorMappedAddress,
    message::{BINDING, Message, MessageWrite as _, MessageWriteVec},
};
use throughline::server::{Server, ServerConfig};
use tokio::time::timeout;

/// Long enough for a loaded machine; everything awaited is an event.
const PATIENCE: Duration = Duration::from_secs(20);
const ECHO: StreamProtocol = StreamProtocol::new("/test/echo");

#[derive(NetworkBehaviour)]
struct Behaviour {
    relay: relay::client::Behaviour,
    ping: ping::Behaviour,
    stream: stream::Behaviour,
}

fn config() -> ServerConfig {
    let mut config = ServerConfig::default();
    config.hosts = vec!["127.0.0.1".parse().unwrap()];
    config.port = 0;
    config
}

async fn start(config: ServerConfig) -> Server {
    Server::start(config).await.unwrap()
}

/// A stock libp2p peer that knows every road to the server.
fn client() -> Swarm<Behaviour> {
    let webrtc = |keys: &libp2p::identity::Keypair| {
        let certificate = libp2p_webrtc::tokio::Certificate::generate(&mut rand::rng()).unwrap();
        libp2p_webrtc::tokio::Transport::new(keys.clone(), certificate)
            .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
    };
    futures::executor::block_on(async {
        SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_tcp(
                tcp::Config::default(),
                noise::Config::new,
                yamux::Config::default,
            )
            .unwrap()
            .with_quic()
            .with_other_transport(webrtc)
            .unwrap()
            .with_dns_config(Default::default(), Default::default())
            .with_websocket(noise::Config::new, yamux::Config::default)
            .await
            .unwrap()
            .with_relay_client(noise::Config::new, yamux::Config::default)
            .unwrap()
            .with_behaviour(|_, relay| Behaviour {
                relay,
                ping: ping::Behaviour::default(),
                stream: stream::Behaviour::new(),
            })
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
            .build()
    })
}

fn address(server: &Server, has: &str) -> Multiaddr {
    let found = server.addresses().iter().find(|text| text.contains(has));
    found.unwrap().parse().unwrap()
}

/// Waits for the first event that `pick` takes.
async fn event<T>(
    swarm: &mut Swarm<Behaviour>,
    mut pick: impl FnMut(&SwarmEvent<BehaviourEvent>) -> Option<T>,
) -> T {
    let events = async {
        loop {
            let event = swarm.select_next_some().await;
            if let Some(found) = pick(&event) {
                return found;
            }
        }
    };
    timeout(PATIENCE, events).await.expect("the event comes")
}

/// Asks for a reservation; gives the addresses that came with it, or why there is none.
async fn reserve(
    swarm: &mut Swarm<Behaviour>,
    relay: Multiaddr,
) -> Result<BTreeSet<Multiaddr>, String> {
    swarm.listen_on(relay.with(Protocol::P2pCircuit)).unwrap();
    let mut addresses = BTreeSet::new();
    let mut accepted = false;
    loop {
        let next = event(swarm, |event| match event {
            SwarmEvent::NewListenAddr { address, .. } => Some(Ok(Some(address.clone()))),
            SwarmEvent::ListenerClosed { reason, .. } => Some(Err(format!("{reason:?}"))),
            SwarmEvent::Behaviour(BehaviourEvent::Relay(
                relay::client::Event::ReservationReqAccepted { .. },
            )) => Some(Ok(None)),
            _ => None,
        });
        match next.await? {
            Some(address) => {
                addresses.insert(address);
            }
            None => accepted = true,
        }
        // The listener tells all addresses of the reservation at once.
        if accepted && addresses.len() == 4 {
            return Ok(addresses);
        }
    }
}

fn drive(mut swarm: Swarm<Behaviour>) {
    tokio::spawn(async move {
        loop {
            swarm.next().await;
        }
    });
}

/// A reserved peer that echoes, running in the background; gives its circuit address.
async fn reserved_echo(server: &Server) -> Multiaddr {
    let mut swarm = client();
    let peer = *swarm.local_peer_id();
    let relay = address(server, "quic-v1");
    reserve(&mut swarm, relay.clone()).await.unwrap();
    let mut incoming = swarm.behaviour().stream.new_control().accept(ECHO).unwrap();
    drive(swarm);
    tokio::spawn(async move {
        while let Some((_, stream)) = incoming.next().await {
            tokio::spawn(async move {
                let (reader, mut writer) = stream.split();
                let _ = futures::io::copy(reader, &mut writer).await;
                let _ = writer.close().await;
            });
        }
    });
    relay.with(Protocol::P2pCircuit).with(Protocol::P2p(peer))
}

/// Dials one more connection to `address`; gives the peer, or what the relay said.
async fn dial(swarm: &mut Swarm<Behaviour>, address: Multiaddr) -> Result<PeerId, String> {
    let Some(Protocol::P2p(peer)) = address.iter().last() else {
        panic!("{address} names a peer");
    };
    let options = DialOpts::peer_id(peer)
        .addresses(vec![address])
        .condition(PeerCondition::Always)
        .build();
    let id = options.connection_id();
    swarm.dial(options).unwrap();
    event(swarm, |event| match event {
        SwarmEvent::ConnectionEstablished {
            connection_id,
            peer_id,
            ..
        } if *connection_id == id => Some(Ok(*peer_id)),
        SwarmEvent::OutgoingConnectionError {
            connection_id,
            error,
            ..
        } if *connection_id == id => Some(Err(format!("{error:?}"))),
        _ => None,
    })
    .await
}

#[tokio::test]
async fn a_reservation_carries_every_address() {
    let server = start(config()).await;
    let mut swarm = client();
    let reserved = reserve(&mut swarm, address(&server, "/tcp/"))
        .await
        .unwrap();
    let circuit = format!("/p2p-circuit/p2p/{}", swarm.local_peer_id());
    let expected: BTreeSet<Multiaddr> = server
        .addresses()
        .iter()
        .map(|address| format!("{address}{circuit}").parse().unwrap())
        .collect();
    assert_eq!(reserved, expected);
    for road in ["/quic-v1/", "/ws/", "/webrtc-direct/certhash/"] {
        assert!(
            reserved
                .iter()
                .any(|address| address.to_string().contains(road)),
            "{road}"
        );
    }
    let metrics = server.metrics();
    assert!(
        metrics.contains("throughline_relay_reservations 1\n"),
        "{metrics}"
    );
}

#[tokio::test]
async fn every_listener_is_dialled() {
    let server = start(config()).await;
    for road in ["/quic-v1", "/tcp/", "/ws", "/webrtc-direct"] {
        let mut swarm = client();
        // libp2p-webrtc dials from a listener's socket only.
        swarm
            .listen_on("/ip4/127.0.0.1/udp/0/webrtc-direct".parse().unwrap())
            .unwrap();
        event(&mut swarm, |e| {
            matches!(e, SwarmEvent::NewListenAddr { .. }).then_some(())
        })
        .await;
        let peer = dial(&mut swarm, address(&server, road)).await.expect(road);
        assert_eq!(peer.to_string(), server.peer_id().to_string());
    }
}

#[tokio::test]
async fn a_circuit_carries_more_than_a_stock_relay_lets_through() {
    let server = start(config()).await;
    let target = reserved_echo(&server).await;
    let mut swarm = client();
    let peer = dial(&mut swarm, target).await.unwrap();
    let mut control = swarm.behaviour().stream.new_control();
    drive(swarm);
    let stream = control.open_stream(peer, ECHO).await.unwrap();
    let sent: Vec<u8> = (0..1_000_000u32).map(|n| (n >> 3) as u8).collect();
    let (mut reader, mut writer) = stream.split();
    let mut received = Vec::new();
    let write = async {
        writer.write_all(&sent).await.unwrap();
        writer.close().await.unwrap();
    };
    let ((), read) = timeout(
        PATIENCE,
        futures::future::join(write, reader.read_to_end(&mut received)),
    )
    .await
    .expect("the bytes come back");
    read.unwrap();
    assert!(
        received == sent,
        "{} of {} bytes",
        received.len(),
        sent.len()
    );
    assert!(server.metrics().contains("throughline_relay_circuits 1\n"));
}

#[tokio::test]
async fn the_circuit_too_many_is_refused_clearly_and_harms_no_other() {
    let mut config = config();
    config.relay.circuits_per_peer = NonZeroUsize::new(2).unwrap();
    config.relay.circuits = NonZeroUsize::new(3).unwrap();
    let server = start(config).await;
    let target = reserved_echo(&server).await;

    let mut first = client();
    dial(&mut first, target.clone()).await.unwrap();
    dial(&mut first, target.clone()).await.unwrap();
    let refusal = dial(&mut first, target.clone()).await.unwrap_err();
    assert!(refusal.contains("ResourceLimitExceeded"), "{refusal}");

    let mut second = client();
    dial(&mut second, target.clone()).await.unwrap();
    let refusal = dial(&mut second, target).await.unwrap_err();
    assert!(refusal.contains("ResourceLimitExceeded"), "{refusal}");
    let metrics = server.metrics();
    assert!(
        metrics.contains("throughline_relay_circuits 3\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("requests_total{outcome=\"limit\"} 2\n"),
        "{metrics}"
    );

    // What was open still is.
    let peer = *second
        .connected_peers()
        .find(|peer| peer.to_string() != server.peer_id().to_string())
        .unwrap();
    let mut control = second.behaviour().stream.new_control();
    drive(second);
    let mut stream = control.open_stream(peer, ECHO).await.unwrap();
    stream.write_all(b"still here").await.unwrap();
    let mut echoed = [0; 10];
    timeout(PATIENCE, stream.read_exact(&mut echoed))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&echoed, b"still here");
}

#[tokio::test]
async fn the_reservation_too_many_is_refused_clearly() {
    let mut config = config();
    config.relay.reservations = NonZeroUsize::new(1).unwrap();
    let server = start(config).await;
    let relay = address(&server, "quic-v1");
    let mut first = client();
    reserve(&mut first, relay.clone()).await.unwrap();
    let refusal = reserve(&mut client(), relay.clone()).await.unwrap_err();
    assert!(refusal.contains("ResourceLimitExceeded"), "{refusal}");
    // Its place is free as soon as it leaves.
    drop(first);
    let free = async {
        while !server
            .metrics()
            .contains("throughline_relay_reservations 0\n")
        {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, free).await.unwrap();
    reserve(&mut client(), relay).await.unwrap();
}

#[tokio::test]
async fn no_reservation_is_said() {
    let server = start(config()).await;
    let nobody = address(&server, "quic-v1")
        .with(Protocol::P2pCircuit)
        .with(Protocol::P2p(PeerId::random()));
    let refusal = dial(&mut client(), nobody).await.unwrap_err();
    assert!(refusal.contains("NoReservation"), "{refusal}");
}

#[tokio::test]
async fn a_restart_keeps_identity_and_certificate() {
    let home = tempfile::tempdir().unwrap();
    let mut config = config();
    config.data = Some(home.path().join("data"));
    let names = |server: &Server| {
        let certhash = address(server, "certhash")
            .iter()
            .find_map(|part| match part {
                Protocol::Certhash(hash) => Some(hash),
                _ => None,
            });
        (server.peer_id(), certhash.unwrap())
    };
    let first = start(config.clone()).await;
    let before = names(&first);
    first.shutdown().await;
    let second = start(config).await;
    assert_eq!(names(&second), before);
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let first = start(config()).await;
    let Some(Protocol::Udp(port)) = address(&first, "quic-v1").iter().nth(1) else {
        panic!("a UDP port");
    };
    let mut config = config();
    config.port = port;
    let error = Server::start(config).await.unwrap_err();
    assert_eq!(error.kind(), throughline::ErrorKind::Io);
    assert!(error.message().contains(&port.to_string()), "{error}");
}

fn stun_address(url: &str) -> SocketAddr {
    url.strip_prefix("stun:").unwrap().parse().unwrap()
}

fn ask(socket: &UdpSocket, server: SocketAddr, request: &[u8]) -> Option<Vec<u8>> {
    socket.send_to(request, server).unwrap();
    let mut buffer = [0; 1500];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    assert_eq!(from, server);
    Some(buffer[..length].to_vec())
}

fn binding_request() -> Vec<u8> {
    Message::builder_request(BINDING, MessageWriteVec::new()).finish()
}

#[tokio::test]
async fn stun_tells_the_source_on_both_ports_and_ignores_what_is_malformed() {
    let server = start(config()).await;
    let urls: Vec<SocketAddr> = server
        .stun_urls()
        .iter()
        .map(|url| stun_address(url))
        .collect();
    assert_eq!(urls.len(), 2);
    let asked = tokio::task::spawn_blocking(move || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        for server in urls {
            // Unanswered: the next answer on the socket is that of the request behind them.
            for malformed in [
                &b""[..],
                b"\0",
                &[0; 20],
                &[0xff; 1400],
                b"GET / HTTP/1.1\r\n\r\n",
            ] {
                socket.send_to(malformed, server).unwrap();
            }
            let request = binding_request();
            let answer = ask(&socket, server, &request).expect("an answer");
            let answer = Message::from_bytes(&answer).unwrap();
            let mapped = answer.attribute::<XorMappedAddress>().unwrap();
            assert_eq!(
                mapped.addr(answer.transaction_id()),
                socket.local_addr().unwrap()
            );
            assert_eq!(
                answer.transaction_id(),
                Message::from_bytes(&request).unwrap().transaction_id()
            );
        }
    });
    asked.await.unwrap();
    let metrics = server.metrics();
    assert!(
        metrics.contains("stun_requests_total{outcome=\"answered\"} 2\n"),
        "{metrics}"
    );
    assert!(
        metrics.contains("stun_requests_total{outcome=\"ignored\"} 10\n"),
        "{metrics}"
    );
}

#[tokio::test]
async fn stun_answers_no_flood() {
    let mut config = config();
    config.stun.per_source = NonZeroU32::new(1).unwrap();
    let server = start(config).await;
    let address = stun_address(&server.stun_urls()[0]);
    tokio::task::spawn_blocking(move || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // A burst of twice the rate is answered, what follows at once is not.
        assert!(ask(&socket, address, &binding_request()).is_some());
        assert!(ask(&socket, address, &binding_request()).is_some());
        for _ in 0..20 {
            socket.send_to(&binding_request(), address).unwrap();
        }
    })
    .await
    .unwrap();
    let limited = async {
        while !server.metrics().contains("outcome=\"limited\"") {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, limited).await.unwrap();
}

fn http(url: &str, request: &str) -> String {
    let address: SocketAddr = url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(url: &str, path: &str) -> String {
    http(
        url,
        &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn http_serves_the_page_and_nothing_beside_it() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("www/index.html", "<h1>page</h1>");
    write("npm/dist/index.js", "export {}");
    write("npm/pkg/a.wasm", "wasm");
    write("npm/package.json", "{}");
    write("secret", "secret");
    let mut config = config();
    config.http.www = Some(home.path().join("www"));
    config.http.npm = Some(home.path().join("npm"));
    let server = start(config).await;
    let url = server.http_url().to_owned();
    let peer = server.peer_id().to_string();
    tokio::task::spawn_blocking(move || {
        let page = get(&url, "/");
        assert!(
            page.starts_with("HTTP/1.1 200") && page.ends_with("<h1>page</h1>"),
            "{page}"
        );
        assert!(page.contains("nosniff"));
        assert!(get(&url, "/npm/dist/index.js").contains("text/javascript"));
        assert!(get(&url, "/npm/pkg/a.wasm").contains("application/wasm"));
        for path in [
            "/no",
            "/npm/package.json",
            "/../secret",
            "/..%2fsecret",
            "/npm/dist/../../secret",
        ] {
            let answer = get(&url, path);
            assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
        }
        assert!(get(&url, "/health").ends_with("ok\n"));
        let config = get(&url, "/config.json");
        let json = config.split_once("\r\n\r\n").unwrap().1;
        let config: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(config["peer_id"], peer);
        assert_eq!(config["relays"].as_array().unwrap().len(), 4);
        assert_eq!(config["stun"].as_array().unwrap().len(), 2);
        assert_eq!(config["turn"], serde_json::json!([]), "no secret, no TURN");
        assert!(config["demo"].is_null());
        let metrics = get(&url, "/metrics");
        assert!(metrics.contains("throughline_connections 0\n"), "{metrics}");
        assert!(
            metrics.contains("http_requests_total{outcome=\"client_error\"} 5\n"),
            "{metrics}"
        );
        let bad = http(&url, "\0\0\0\r\n\r\n");
        assert!(bad.starts_with("HTTP/1.1 400"), "{bad}");
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_page_gets_credentials_of_its_own_for_turn() {
    let mut config = config();
    config.turn.secret = Some("secret".into());
    let server = start(config).await;
    let url = server.http_url().to_owned();
    let turn = || {
        let answer = get(&url, "/config.json");
        let json = answer.split_once("\r\n\r\n").unwrap().1;
        let config: serde_json::Value = serde_json::from_str(json).unwrap();
        config["turn"][0].clone()
    };
    let (first, second) = tokio::task::block_in_place(|| (turn(), turn()));
    assert_eq!(first["urls"], serde_json::json!(server.turn_urls()));
    let urls = server.turn_urls();
    assert!(urls[0].starts_with("turn:127.0.0.1:") && urls[1].ends_with("?transport=tcp"));
    assert_ne!(first["username"], second["username"]);
    assert_ne!(first["credential"], second["credential"]);
    let shared = server.turn_credentials().unwrap();
    assert!(shared.username.ends_with(":peer") && !shared.credential.is_empty());
    assert!(
        server
            .metrics()
            .contains("throughline_turn_allocations 0\n")
    );
}

#[tokio::test]
async fn garbage_at_every_port_harms_nobody() {
    let server = start(config()).await;
    let roads: Vec<Multiaddr> = server
        .addresses()
        .iter()
        .map(|a| a.parse().unwrap())
        .collect();
    tokio::task::spawn_blocking(move || {
        for road in roads {
            let mut parts = road.iter();
            let Some(Protocol::Ip4(ip)) = parts.next() else {
                panic!("an IPv4 address");
            };
            match parts.next() {
                Some(Protocol::Udp(port)) => {
                    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                    for length in [0, 1, 20, 1200, 1400] {
                        socket.send_to(&vec![0xc3; length], (ip, port)).unwrap();
                    }
                }
                Some(Protocol::Tcp(port)) => {
                    let mut stream = TcpStream::connect((ip, port)).unwrap();
                    stream.write_all(&[0xc3; 4096]).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
    })
    .await
    .unwrap();
    reserve(&mut client(), address(&server, "/ws"))
        .await
        .unwrap();
}
