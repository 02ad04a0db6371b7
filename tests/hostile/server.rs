//! Tests floods of a server from one address. Others connect, reserve and get a circuit meanwhile,
//! and afterwards the server has its memory back.
//!
//! On Linux, all of 127.0.0.0/8 is this machine, so each of these addresses can be another
//! stranger.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Instant,
};

use libp2p::{identity::Keypair, multiaddr::Protocol};
use serde_json::Value;
use tokio::{
    net::UdpSocket,
    task::{JoinHandle, JoinSet},
};

use super::{
    common::program::Program,
    measure::{Bystander, Times, at_a_pace, is_long, returns, rounds, unharmed},
    *,
};

pub(crate) const ATTACKER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
pub(crate) const HONEST: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// How much more may stay resident after a flood, in kilobytes.
const LEFT: u64 = 10 * 1024;

/// The share of one address in the requests that are read at once, which src/server/pool.rs counts.
const REQUESTS_OF_AN_ADDRESS: usize = 102;

const HOP: &str = "/libp2p/circuit/relay/0.2.0/hop";
/// RESERVE, CONNECT to a peer that does not exist, and its refusal (libp2p specification
/// `relay/circuit-v2.md`).
const RESERVE: [u8; 3] = [2, 8, 0];
const CONNECT: [u8; 11] = [10, 8, 1, 0x12, 6, 0x0a, 4, 0, 2, 1, 1];
const NO_RESERVATION: [u8; 6] = [5, 8, 2, 0x28, 0xcc, 1];

/// A running `throughline serve`, with the settings of a test.
pub(crate) struct Served {
    program: Program,
    ready: Value,
    /// The part of the address by which honest peers reach it.
    pub(crate) way: &'static str,
    round: AtomicU32,
    _home: tempfile::TempDir,
}

impl Served {
    pub(crate) fn start(settings: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("server.toml");
        let ports = "hosts = [\"127.0.0.1\"]\nport = 0\n";
        std::fs::write(&path, format!("{ports}{settings}")).unwrap();
        let program = Program::start(&["serve", "--no-turn", "--config", path.to_str().unwrap()]);
        let ready = program.event("ready");
        Self {
            program,
            ready,
            way: "/quic-v1",
            round: AtomicU32::new(1),
            _home: home,
        }
    }

    pub(crate) fn address(&self, has: &str) -> Multiaddr {
        let mut addresses = self.ready["addresses"].as_array().unwrap().iter();
        let address = addresses.find_map(|text| text.as_str().filter(|text| text.contains(has)));
        address.unwrap().parse().unwrap()
    }

    pub(crate) fn socket(&self, has: &str) -> SocketAddr {
        let address = self.address(has);
        let port = address.iter().find_map(|part| match part {
            Protocol::Tcp(port) | Protocol::Udp(port) => Some(port),
            _ => None,
        });
        (Ipv4Addr::LOCALHOST, port.unwrap()).into()
    }

    fn peer(&self) -> PeerId {
        self.ready["peer_id"].as_str().unwrap().parse().unwrap()
    }

    /// Returns how often `what` was refused for `reason`.
    pub(crate) fn refused(&self, what: &str, reason: &str) -> u64 {
        let url = self.ready["http"].as_str().unwrap();
        let to = match url.strip_prefix("http://") {
            Some(to) => to.parse().unwrap(),
            // The port of TLS takes HTTP without it, too.
            None => self.socket("/tcp/"),
        };
        let mut stream = std::net::TcpStream::connect(to).unwrap();
        let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let line = format!("throughline_refused_total{{what=\"{what}\",reason=\"{reason}\"}} ");
        let counted = answer.lines().find_map(|text| text.strip_prefix(&line));
        counted.map_or(0, |count| count.trim().parse().unwrap())
    }

    /// Returns the resident memory in kilobytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = format!("/proc/{}/status", self.program.id());
        let status = std::fs::read_to_string(status).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.unwrap().trim().trim_end_matches("kB").trim();
        kilobytes.parse().unwrap()
    }

    /// Lets an honest pair meet: one reserves, and the other connects through a circuit.
    async fn round(&self) {
        // Each pair has another address, so that none asks too often.
        let round = self.round.fetch_add(1, Ordering::Relaxed);
        let [.., high, low] = round.to_be_bytes();
        let here = Ipv4Addr::new(127, 1, high, low);
        let mut config = config();
        config.listen = vec![format!("/ip4/{here}/udp/0/quic-v1")];
        config.relays = vec![self.address(self.way).to_string()];
        config.direct = false;
        let bob = echoing(config.clone()).await;
        config.reserve = false;
        let alice = peer(config).await;
        let connection = alice.connect(&bob.ticket()).await.unwrap();
        echoed(&connection).await;
        alice.close().await;
        bob.close().await;
    }

    async fn rounds(&self) -> Times {
        Times::of(Duration::ZERO, async || self.round().await).await
    }

    /// Checks that others are unharmed by `attack`, and that nothing is left of it.
    pub(crate) async fn withstands(&self, what: &str, attack: impl Future<Output = Attack>) {
        let quiet = self.rounds().await;
        let before = self.resident();
        let attack = attack.await;
        let attacked = self.rounds().await;
        let peak = self.resident();
        drop(attack);
        println!("{what}: {before} kB, then {peak} kB");
        unharmed(what, &quiet, &attacked);
        until_polled(|| self.resident() < before + LEFT).await;
    }
}

/// An attack that goes on until it is dropped.
pub(crate) struct Attack(#[expect(dead_code, reason = "dropping it ends the tasks")] JoinSet<()>);

impl Attack {
    /// Runs `count` tasks at once.
    pub(crate) fn of<F>(count: usize, task: impl Fn(usize) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        for n in 0..count {
            tasks.spawn(task(n));
        }
        Self(tasks)
    }
}

/// How often attackers are sent away before others are served beside them.
const SENT_AWAY: usize = 500;

async fn all_sent_away(mut each: mpsc::Receiver<()>) {
    let all = async {
        for _ in 0..SENT_AWAY {
            each.recv().await.expect("attackers that go on");
        }
    };
    timeout(PATIENCE, all).await.expect("refusals");
}

/// Connects a hostile node at the attacker's address to the server. Returns what opens streams on
/// the connection, and a handle that resolves when the connection ends.
async fn intruder(to: Multiaddr) -> Option<(libp2p_stream::Control, JoinHandle<()>)> {
    let mut swarm = hostile();
    let here = format!("/ip4/{ATTACKER}/udp/0/quic-v1").parse().unwrap();
    swarm.listen_on(here).unwrap();
    let control = swarm.behaviour().new_control();
    let (sender, mut established) = mpsc::channel(1);
    let ended = tokio::spawn(async move {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { .. } => swarm.dial(to.clone()).unwrap(),
                SwarmEvent::ConnectionEstablished { .. } => _ = sender.try_send(()),
                SwarmEvent::ConnectionClosed { .. }
                | SwarmEvent::OutgoingConnectionError { .. } => {
                    return;
                }
                _ => {}
            }
        }
    });
    let established = timeout(PATIENCE, established.recv()).await.unwrap();
    established.map(|()| (control, ended))
}

/// Holds 600 connections at once that say nothing. Each comes back a tenth of a second after it is
/// sent away.
fn silent(to: SocketAddr) -> Attack {
    Attack::of(600, move |_| async move {
        let silence = at_a_pace(Duration::from_millis(100), || async {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind((ATTACKER, 0).into()).unwrap();
            if let Ok(mut stream) = socket.connect(to).await {
                let _ = stream.read(&mut [0]).await;
            }
        });
        silence.await;
        future::pending().await
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_of_one_address_take_its_share_only() {
    // Over TCP, the honest peers come from one address.
    let bursts = "[relay]\nreservation_burst = 100000\ncircuit_burst = 100000\n";
    let mut served = Served::start(bursts);
    served.way = "/tcp/";
    let to = served.socket("/tcp/");
    if is_long() {
        // An attack on another process shows how much of the machine the attacker takes.
        let bystander = Bystander::start();
        bystander.is_ready().await;
        let quiet = served.rounds().await;
        let attack = silent(bystander.address);
        let beside = served.rounds().await;
        drop(attack);
        println!("row 4: p50/p99 quiet {quiet}, an attack on another process {beside}");
    }
    let attack = async {
        let attack = silent(to);
        until_polled(|| served.refused("handshake", "address") > 500).await;
        attack
    };
    served.withstands("row 4, silent connections", attack).await;
}

/// What the first packet of a connection says.
#[derive(Clone, Copy, PartialEq)]
enum Says {
    Hello,
    /// The connection ends before it has begun (RFC 9000 section 10.2.3).
    Close,
}

/// Makes first packets of QUIC connections, each with connection ids of its own.
async fn initials(count: usize, says: Says) -> Arc<Vec<Vec<u8>>> {
    let sink = UdpSocket::bind((ATTACKER, 0)).await.unwrap();
    let mut endpoint = quinn::Endpoint::client((ATTACKER, 0).into()).unwrap();
    let tls = libp2p_tls::make_client_config(&Keypair::generate_ed25519(), None).unwrap();
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(crypto)));
    let (mut packets, mut begun) = (Vec::new(), Vec::new());
    while packets.len() < count {
        let connecting = endpoint.connect(sink.local_addr().unwrap(), "l").unwrap();
        let hello = initial(&sink).await;
        match says {
            Says::Hello => {
                packets.push(hello);
                begun.push(connecting);
            }
            Says::Close => {
                drop(connecting);
                packets.push(initial(&sink).await);
            }
        }
    }
    Arc::new(packets)
}

/// Returns the next Initial packet (RFC 9000 section 17.2.2).
async fn initial(sink: &UdpSocket) -> Vec<u8> {
    loop {
        let mut packet = vec![0; 1500];
        let length = sink.recv(&mut packet).await.unwrap();
        packet.truncate(length);
        if packet[0] & 0xf0 == 0xc0 && length >= 1200 {
            return packet;
        }
    }
}

/// Sends 5,200 first packets a second to `to`, from 50 ports that send nothing else. Returns the
/// attack once a Retry has come (RFC 9000 section 17.2.5).
async fn forged(to: SocketAddr, says: Says) -> Attack {
    let packets = initials(2000, says).await;
    let (sender, mut retried) = mpsc::channel(1);
    let attack = Attack::of(50, |port| {
        let (packets, sender) = (packets.clone(), sender.clone());
        async move {
            let socket = UdpSocket::bind((ATTACKER, 0)).await.unwrap();
            socket.connect(to).await.unwrap();
            let mut tick = tokio::time::interval(Duration::from_secs(1) / 104);
            for packet in packets.iter().cycle().skip(40 * port) {
                tick.tick().await;
                let _ = socket.send(packet).await;
                let mut answer = [0; 1500];
                while socket.try_recv(&mut answer).is_ok() {
                    if answer[0] & 0xf0 == 0xf0 {
                        let _ = sender.try_send(());
                    }
                }
            }
        }
    });
    let retried = timeout(PATIENCE, retried.recv()).await;
    retried.expect("a Retry").unwrap();
    attack
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_first_packets_cost_others_a_round_trip() {
    let served = Served::start("");
    let attack = forged(served.socket("/quic-v1"), Says::Hello);
    served.withstands("row 5, forged Initials", attack).await;
}

/// The endpoint keeps such a connection for three seconds, so it has a place for as long.
#[tokio::test(flavor = "multi_thread")]
async fn first_packets_that_close_take_places_as_well() {
    let served = Served::start("");
    let attack = forged(served.socket("/quic-v1"), Says::Close);
    served
        .withstands("row 5, Initials that close", attack)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forged_first_packets_do_not_lock_a_peer_up() {
    let victim = victim(config()).await;
    let port = address(&victim, "/quic-v1")
        .iter()
        .find_map(|part| match part {
            Protocol::Udp(port) => Some(port),
            _ => None,
        });
    let _attack = forged((Ipv4Addr::LOCALHOST, port.unwrap()).into(), Says::Hello).await;
    let mut elsewhere = config();
    elsewhere.listen = vec![format!("/ip4/{HONEST}/udp/0/quic-v1")];
    for _ in 0..rounds().min(20) {
        let honest = peer(elsewhere.clone()).await;
        let ticket = victim.ticket();
        let connected = honest.connect(&ticket);
        let connected = timeout(SOON, connected).await.expect("in time").unwrap();
        echoed(&connected).await;
    }
}

/// Returns the relay's answer to a request.
async fn ask(control: &libp2p_stream::Control, relay: PeerId, request: &[u8]) -> Option<Vec<u8>> {
    let mut control = control.clone();
    let stream = control.open_stream(relay, StreamProtocol::new(HOP));
    let mut stream = stream.await.ok()?;
    stream.write_all(request).await.ok()?;
    stream.flush().await.ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.ok()?;
    Some(answer)
}

/// Opens a stream, sends the first byte of a request, and reads until the other end hangs up.
/// Returns `None` once no stream can be opened.
async fn half_sent(
    control: &libp2p_stream::Control,
    to: PeerId,
    protocol: &'static str,
) -> Option<()> {
    let mut control = control.clone();
    let stream = control.open_stream(to, StreamProtocol::new(protocol));
    let mut stream = stream.await.ok()?;
    let _ = stream.write_all(&[40]).await;
    let _ = stream.flush().await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
    Some(())
}

/// Each connection holds a ping stream, and a stream whose request is half sent.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_are_there_for_nothing_end() {
    const HALF: &str = "/throughline/circuit/1";
    const IDLE: Duration = Duration::from_secs(2);
    /// With this pause, 60 connections come back each second.
    const RETURN: Duration = Duration::from_secs(1);
    let served = Served::start("[connections]\nestablished = 100\nidle_seconds = 2\n");
    let (to, relay) = (served.address("/quic-v1"), served.peer());
    let (sender, mut held) = mpsc::channel(600);
    let attack = async {
        let attack = Attack::of(60, move |_| {
            let (to, sender) = (to.clone(), sender.clone());
            async move {
                for _ in 0..returns() {
                    let begun = Instant::now();
                    let Some((control, mut ended)) = intruder(to.clone()).await else {
                        tokio::time::sleep_until((begun + RETURN).into()).await;
                        continue;
                    };
                    let mut held = false;
                    let streams = async {
                        let answer = ask(&control, relay, &CONNECT).await;
                        held = answer.is_some_and(|answer| answer == NO_RESERVATION);
                        let ping = half_sent(&control, relay, "/ipfs/ping/1.0.0");
                        let requests =
                            async { while half_sent(&control, relay, HALF).await.is_some() {} };
                        future::join(ping, requests).await;
                        future::pending().await
                    };
                    tokio::select! {
                        () = streams => {}
                        _ = &mut ended => {}
                    }
                    // The others were sent away at once.
                    if held {
                        let _ = sender.try_send(begun.elapsed());
                    }
                    tokio::time::sleep_until((begun + RETURN).into()).await;
                }
            }
        });
        for _ in 0..20 {
            let lasted = timeout(PATIENCE, held.recv()).await;
            let lasted = lasted.expect("an end").unwrap();
            assert!(lasted < IDLE + SOON, "{lasted:?}");
        }
        assert!(served.refused("connection", "address") > 0);
        attack
    };
    served.withstands("row 6, idle identities", attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_half_sent_take_their_share_only() {
    const KINDS: [&str; 3] = ["/throughline/circuit/1", "/throughline/offer/1", HOP];
    /// The server waits for a request as long as this, so 10,240 streams are there all the time.
    const REQUEST: Duration = Duration::from_secs(3);
    let served = Served::start("");
    let (to, relay) = (served.address("/quic-v1"), served.peer());
    let attack = async {
        let (sender, sent_away) = mpsc::channel(SENT_AWAY);
        // Ten identities have a thousand streams each.
        let attack = Attack::of(10, move |_| {
            let (to, sender) = (to.clone(), sender.clone());
            async move {
                let Some((control, _ended)) = intruder(to).await else {
                    return;
                };
                let streams = (0..1024).map(|n| {
                    let (control, sender) = (control.clone(), sender.clone());
                    at_a_pace(REQUEST, move || {
                        let (control, sender) = (control.clone(), sender.clone());
                        async move {
                            let kind = KINDS[n % KINDS.len()];
                            if half_sent(&control, relay, kind).await.is_some() {
                                let _ = sender.try_send(());
                            }
                        }
                    })
                });
                join_all(streams).await;
            }
        });
        all_sent_away(sent_away).await;
        // Streams that had a place may be among those sent away.
        let refused = served.refused("request", "address") as usize;
        assert!(refused >= SENT_AWAY - REQUESTS_OF_AN_ADDRESS, "{refused}");
        attack
    };
    served.withstands("row 7, half-sent requests", attack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reservations_of_one_address_end_at_its_share() {
    const RESERVED: [u8; 2] = [0x28, 100];
    const REFUSED: [u8; 6] = [5, 8, 2, 0x28, 0xc9, 1];
    let served = Served::start("[relay]\nreservations = 100\n");
    let (to, relay) = (served.address("/quic-v1"), served.peer());
    let attack = async {
        let mut held = Vec::new();
        let mut reserved = 0;
        for _ in 0..30 {
            let (control, ended) = intruder(to.clone()).await.unwrap();
            let answer = ask(&control, relay, &RESERVE).await.unwrap();
            match answer.ends_with(&RESERVED) {
                true => reserved += 1,
                false => assert_eq!(answer, REFUSED),
            }
            held.push((control, ended));
        }
        assert_eq!(reserved, 10);
        assert_eq!(served.refused("reservation", "address"), 20);
        // A reservation that is held can be renewed.
        let answer = ask(&held[0].0, relay, &RESERVE).await.unwrap();
        assert!(answer.ends_with(&RESERVED));
        for (_, ended) in &held {
            assert!(!ended.is_finished());
        }
        // Ten peers a second ask again.
        let tasks = held.into_iter().map(|(control, ended)| async move {
            at_a_pace(Duration::from_secs(3), || ask(&control, relay, &RESERVE)).await;
            let _ = ended.await;
        });
        Attack(tasks.collect())
    };
    served.withstands("row 14, reservations", attack).await;
}
