//! Tests the AutoNAT server: which clients it dials, and that it dials nobody else.

use std::num::NonZeroU32;

use futures::{channel::oneshot, future::join_all};
use libp2p::{autonat::v2::client as stock, identify};
use libp2p_stream::Control;
use tokio::net::{TcpListener, UdpSocket};

use super::*;

const DIAL_REQUEST: StreamProtocol = StreamProtocol::new("/libp2p/autonat/2/dial-request");
const REJECTED: &[u8] = &[4, 0x12, 2, 8, 100];
const REFUSED: &[u8] = &[4, 0x12, 2, 8, 101];
/// The answer has index 0 and `E_DIAL_ERROR`.
const UNREACHED: &[u8] = &[9, 0x12, 7, 8, 0xc8, 1, 0x10, 0, 0x18, 100];

/// The configuration of a server for peers on this machine.
fn allowing() -> ServerConfig {
    let mut config = config();
    config.autonat.allow_private = true;
    config
}

/// Connects a client from `ip` that can send the server any request.
async fn asker(server: &Server, ip: &str) -> Asker {
    let mut swarm = client();
    // QUIC dials from the address that it listens on.
    let listen = format!("/ip4/{ip}/udp/0/quic-v1").parse().unwrap();
    swarm.listen_on(listen).unwrap();
    event(&mut swarm, |event| {
        matches!(event, SwarmEvent::NewListenAddr { .. }).then_some(())
    })
    .await;
    let peer = dial(&mut swarm, address(server, "/quic-v1")).await.unwrap();
    let control = swarm.behaviour().stream.new_control();
    drive(swarm);
    Asker { control, peer }
}

#[derive(Clone)]
struct Asker {
    control: Control,
    peer: PeerId,
}

impl Asker {
    async fn open(&self) -> libp2p::Stream {
        let mut control = self.control.clone();
        control.open_stream(self.peer, DIAL_REQUEST).await.unwrap()
    }

    /// Asks the server to dial `addresses`. Returns its answer.
    async fn ask(&self, addresses: &[Multiaddr]) -> Vec<u8> {
        let mut stream = self.open().await;
        stream.write_all(&request(addresses)).await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        timeout(PATIENCE, read).await.expect("an end").unwrap();
        answer
    }
}

/// Encodes `Message { dialRequest { addrs, nonce = 7 } }` after its length.
fn request(addresses: &[Multiaddr]) -> Vec<u8> {
    let behind_length = |bytes: Vec<u8>| {
        let (low, high) = (bytes.len() & 0x7f, bytes.len() >> 7);
        let length = match high {
            0 => vec![low as u8],
            _ => vec![low as u8 | 0x80, high as u8],
        };
        [length, bytes].concat()
    };
    let field = |bytes: Vec<u8>| [vec![0x0a], behind_length(bytes)].concat();
    let mut fields: Vec<u8> = addresses.iter().flat_map(|a| field(a.to_vec())).collect();
    fields.extend([0x11, 7, 0, 0, 0, 0, 0, 0, 0]);
    behind_length(field(fields))
}

fn at(text: String) -> Multiaddr {
    text.parse().unwrap()
}

/// A listener that nobody must connect to.
struct Canary {
    tcp: TcpListener,
    udp: UdpSocket,
}

impl Canary {
    async fn at(ip: &str) -> Self {
        Self {
            tcp: TcpListener::bind((ip, 0)).await.unwrap(),
            udp: UdpSocket::bind((ip, 0)).await.unwrap(),
        }
    }

    fn ports(&self) -> [u16; 2] {
        let (tcp, udp) = (self.tcp.local_addr(), self.udp.local_addr());
        [tcp, udp].map(|addr| addr.unwrap().port())
    }

    /// Connects, and checks that this connection is the first. Connections come in the order in
    /// which they were made.
    async fn is_alone(&self) {
        let me = tokio::net::TcpStream::connect(self.tcp.local_addr().unwrap());
        let me = me.await.unwrap();
        let (_, first) = self.tcp.accept().await.unwrap();
        assert_eq!(first, me.local_addr().unwrap(), "another connection");
        let me = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        me.send_to(b"me", self.udp.local_addr().unwrap())
            .await
            .unwrap();
        let (_, first) = self.udp.recv_from(&mut [0; 9]).await.unwrap();
        assert_eq!(first, me.local_addr().unwrap(), "another datagram");
    }
}

#[tokio::test]
async fn only_the_client_itself_is_dialled() {
    let server = start(allowing()).await;
    let asker = asker(&server, "127.0.0.1").await;
    let (here, beside) = (Canary::at("127.0.0.1").await, Canary::at("127.0.0.2").await);
    let ([tcp, udp], [other, other_udp]) = (here.ports(), beside.ports());
    let base = at(format!("/ip4/127.0.0.1/tcp/{tcp}"));
    let lines = "/ HTTP/1.1\r\nHost: a\r\n\r\nSET a b\r\n";
    let http = server.http_url().rsplit(':').next().unwrap().to_owned();
    let mut own = address(&server, "/tcp/");
    own.pop();
    let mut asked = vec![
        base.clone().with(Protocol::Ws(lines.into())),
        base.clone().with(Protocol::Wss(lines.into())),
        base.clone().with(Protocol::Http),
        base.clone().with(Protocol::P2pCircuit),
        base.clone().with(Protocol::P2p(asker.peer)),
        base.with(Protocol::P2p(asker.peer))
            .with(Protocol::P2pCircuit),
        own,
    ];
    asked.extend(
        [
            format!("/ip4/127.0.0.2/tcp/{other}"),
            format!("/ip4/127.0.0.2/udp/{other_udp}/quic-v1"),
            format!("/ip6/::ffff:127.0.0.2/tcp/{other}"),
            format!("/ip6/::1/tcp/{tcp}"),
            format!("/ip4/0.0.0.0/tcp/{tcp}"),
            format!("/dns4/localhost/tcp/{tcp}"),
            format!("/dns/localhost/udp/{udp}/quic-v1"),
            "/dnsaddr/localhost".into(),
            "/ip4/169.254.169.254/tcp/80".into(),
            "/ip4/169.254.169.254/tcp/8080".into(),
            "/ip4/10.9.9.9/tcp/6379".into(),
            "/ip4/127.0.0.1/tcp/22".into(),
            "/ip4/127.0.0.1/udp/53/quic-v1".into(),
            format!("/ip4/127.0.0.1/udp/{udp}"),
            format!("/ip4/127.0.0.1/udp/{udp}/webrtc-direct"),
            format!("/ip4/127.0.0.1/tcp/{http}"),
        ]
        .map(at),
    );
    for address in &asked {
        let answer = asker.ask(std::slice::from_ref(address)).await;
        assert_eq!(answer, REFUSED, "{address}");
    }
    assert_eq!(asker.ask(&asked).await, REFUSED);
    assert_eq!(asker.ask(&[]).await, REFUSED);
    here.is_alone().await;
    beside.is_alone().await;
    let refused = format!(
        "throughline_autonat_tests_total{{outcome=\"refused\"}} {}\n",
        asked.len() + 2
    );
    let metrics = server.metrics();
    assert!(metrics.contains(&refused), "{metrics}");
}

#[tokio::test]
async fn private_clients_are_refused_unless_the_operator_allows_them() {
    let server = start(config()).await;
    let asker = asker(&server, "127.0.0.1").await;
    let canary = Canary::at("127.0.0.1").await;
    let [tcp, udp] = canary.ports();
    let asked = [
        at(format!("/ip4/127.0.0.1/tcp/{tcp}")),
        at(format!("/ip4/127.0.0.1/udp/{udp}/quic-v1")),
    ];
    assert_eq!(asker.ask(&asked).await, REFUSED);
    canary.is_alone().await;
}

/// A proxy may stand before a client that connects by WebSocket, and then the address is the
/// proxy's.
#[tokio::test]
async fn a_client_that_connects_by_websocket_is_not_dialled() {
    let server = start(allowing()).await;
    let mut swarm = client();
    let peer = dial(&mut swarm, address(&server, "/ws")).await.unwrap();
    let control = swarm.behaviour().stream.new_control();
    drive(swarm);
    let canary = Canary::at("127.0.0.1").await;
    let asked = at(format!("/ip4/127.0.0.1/tcp/{}", canary.ports()[0]));
    let asker = Asker { control, peer };
    assert_eq!(asker.ask(&[asked]).await, REFUSED);
    canary.is_alone().await;
}

#[tokio::test]
async fn a_dial_that_nobody_answers_ends_and_delays_nobody_else() {
    let server = start(allowing()).await;
    let (one, two) = (
        asker(&server, "127.0.0.1").await,
        asker(&server, "127.0.0.2").await,
    );
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let asked = [at(format!(
        "/ip4/127.0.0.1/tcp/{}",
        silent.local_addr().unwrap().port()
    ))];
    let (first, mut answered) = {
        let (one, asked) = (one.clone(), asked.clone());
        let (sender, answered) = oneshot::channel();
        let ask = async move { sender.send(one.ask(&asked).await) };
        (tokio::spawn(ask), answered)
    };
    let (mut dialled, _) = timeout(PATIENCE, silent.accept()).await.unwrap().unwrap();
    let mut head = [0; 20];
    let read = tokio::io::AsyncReadExt::read_exact(&mut dialled, &mut head);
    timeout(PATIENCE, read).await.unwrap().unwrap();
    assert_eq!(&head, b"\x13/multistream/1.0.0\n");
    // A client may have one dial at a time.
    assert_eq!(one.ask(&asked).await, REJECTED);
    let closed = closed("127.0.0.2").await;
    assert_eq!(two.ask(&[closed]).await, UNREACHED);
    assert_eq!(answered.try_recv(), Ok(None), "the first dial has ended");
    first.await.unwrap().unwrap();
    assert_eq!(answered.await.unwrap(), UNREACHED);
    let metrics = server.metrics();
    for line in [
        "throughline_refused_total{what=\"dial_back\",reason=\"peer\"} 1\n",
        "throughline_autonat_tests_total{outcome=\"unreached\"} 2\n",
        "throughline_autonat_tests_total{outcome=\"rejected\"} 1\n",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
}

/// Returns an address at which nobody listens.
async fn closed(ip: &str) -> Multiaddr {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket
        .bind((ip.parse::<std::net::IpAddr>().unwrap(), 0).into())
        .unwrap();
    at(format!(
        "/ip4/{ip}/tcp/{}",
        socket.local_addr().unwrap().port()
    ))
}

#[tokio::test]
async fn a_client_that_asks_too_often_is_rejected_and_others_are_not() {
    let mut config = allowing();
    config.autonat.per_source = NonZeroU32::MIN;
    let server = start(config).await;
    let (one, two) = (
        asker(&server, "127.0.0.1").await,
        asker(&server, "127.0.0.2").await,
    );
    let (asked, other) = (closed("127.0.0.1").await, closed("127.0.0.2").await);
    let mut rejected = 0;
    for n in 0..50 {
        let answer = one.ask(std::slice::from_ref(&asked)).await;
        assert!(n > 1 || answer == UNREACHED, "the burst has two");
        rejected += usize::from(answer == REJECTED);
    }
    assert!(rejected > 0);
    let metrics = server.metrics();
    let counted =
        format!("throughline_refused_total{{what=\"dial_back\",reason=\"rate\"}} {rejected}\n");
    assert!(metrics.contains(&counted), "{metrics}");
    assert_eq!(two.ask(&[other]).await, UNREACHED);
}

#[tokio::test]
async fn requests_that_are_not_finished_end() {
    let server = start(allowing()).await;
    let (one, two) = (
        asker(&server, "127.0.0.1").await,
        asker(&server, "127.0.0.2").await,
    );
    let whole = request(&[closed("127.0.0.1").await]);
    let held = (0..32).map(|n| {
        let (one, whole) = (one.clone(), whole.clone());
        async move {
            let mut stream = one.open().await;
            // A stream beyond the limit is reset already.
            let _ = stream.write_all(&whole[..n % whole.len()]).await;
            let _ = stream.flush().await;
            let ended = stream.read_to_end(&mut Vec::new()).await;
            assert_eq!(ended.unwrap_or(0), 0, "the server answered");
        }
    });
    let held = tokio::spawn(join_all(held));
    let asked = closed("127.0.0.2").await;
    assert_eq!(two.ask(&[asked]).await, UNREACHED);
    timeout(PATIENCE, held).await.expect("all end").unwrap();
    let asked = closed("127.0.0.1").await;
    assert_eq!(one.ask(&[asked]).await, UNREACHED);
}

#[tokio::test]
async fn malformed_requests_are_rejected_and_too_long_ones_are_reset() {
    let server = start(allowing()).await;
    let one = asker(&server, "127.0.0.1").await;
    for (bytes, answer) in [
        (&[0xff, 0x7f][..], &[][..]),
        (&[0x80, 0x80, 1], &[]),
        (&[0], REJECTED),
        (&[3, 0x22, 1, 0], REJECTED),
        (&[2, 0x0a, 9], REJECTED),
    ] {
        let mut stream = one.open().await;
        stream.write_all(bytes).await.unwrap();
        stream.flush().await.unwrap();
        let mut read = Vec::new();
        let end = timeout(PATIENCE, stream.read_to_end(&mut read));
        assert!(end.await.is_ok(), "the stream does not end");
        assert_eq!(read, answer, "{bytes:?}");
    }
}

#[derive(NetworkBehaviour)]
struct Stock {
    identify: identify::Behaviour,
    autonat: stock::Behaviour,
}

/// libp2p's own client learns its addresses by identify, asks the server, and is reached.
#[tokio::test]
async fn a_stock_client_is_confirmed_by_quic_and_tcp() {
    let server = start(allowing()).await;
    let mut swarm = super::stock::node(|keys| {
        let often = stock::Config::default().with_probe_interval(Duration::from_millis(100));
        Stock {
            identify: identify::Behaviour::new(identify::Config::new(
                "/test/1".into(),
                keys.public(),
            )),
            autonat: stock::Behaviour::new(rand::make_rng(), often),
        }
    });
    let mut left = BTreeSet::new();
    for listen in ["/ip4/127.0.0.1/udp/0/quic-v1", "/ip4/127.0.0.1/tcp/0"] {
        swarm.listen_on(listen.parse().unwrap()).unwrap();
    }
    let confirmed = async {
        let mut wanted = 2;
        while wanted > 0 || !left.is_empty() {
            match swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { address, .. } => {
                    left.insert(address);
                    wanted -= 1;
                    if wanted == 0 {
                        for road in ["/quic-v1", "/tcp/"] {
                            let to: Multiaddr = super::address(&server, road);
                            let Some(Protocol::P2p(peer)) = to.iter().last() else {
                                panic!("{to} names a peer");
                            };
                            let to = DialOpts::peer_id(peer).addresses(vec![to]);
                            let to = to.condition(PeerCondition::Always).build();
                            swarm.dial(to).unwrap();
                        }
                    }
                }
                SwarmEvent::ExternalAddrConfirmed { address } => {
                    assert!(left.remove(&address), "{address}");
                }
                _ => {}
            }
        }
    };
    timeout(PATIENCE, confirmed).await.expect("both are found");
    let metrics = server.metrics();
    let reached = "throughline_autonat_tests_total{outcome=\"reached\"} 2\n";
    assert!(metrics.contains(reached), "{metrics}");
}
