//! What must not matter, or matter no longer than it lasts: a relay that is killed, peers that fall
//! silent, descriptors and disks that run out.
#![cfg(target_os = "linux")]

use std::{
    fs,
    io::{BufRead as _, BufReader},
    net::{TcpListener, TcpStream},
    path::Path,
    pin::Pin,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use futures::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _, future,
};
use libp2p::{
    Multiaddr, PeerId, SwarmBuilder,
    core::{
        UpgradeInfo,
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
    },
    multiaddr::Protocol,
    relay,
    swarm::SwarmEvent,
    yamux,
};
use serde_json::Value;
use throughline::{Config, Connection, Connector, PathKind, Ticket};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(30);

/// A running program; dropping it kills it, as `kill -9` does.
struct Program {
    child: Child,
    ready: Value,
}

impl Program {
    fn start(arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_throughline"))
            .args(arguments)
            .arg("--json")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(ready["event"], "ready", "{line}");
        Self { child, ready }
    }

    /// A relay at this port and the next ones.
    fn relay(port: u16, data: &Path) -> Self {
        let (port, data) = (port.to_string(), data.to_str().unwrap());
        Self::start(&[
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            &port,
            "--data",
            data,
        ])
    }

    fn address(&self, has: &str) -> String {
        let addresses = self.ready["addresses"].as_array().unwrap();
        let mut addresses = addresses.iter().filter_map(Value::as_str);
        addresses.find(|text| text.contains(has)).unwrap().into()
    }

    fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.child.id());
        fs::read_dir(folder).unwrap().count()
    }

    fn limit_descriptors(&self, most: usize) {
        let (pid, limit) = (self.child.id().to_string(), format!("--nofile={most}:"));
        let mut prlimit = Command::new("prlimit");
        let limited = prlimit.args(["--pid", &pid, &limit]).status();
        assert!(limited.unwrap().success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first of five ports that were free a moment ago.
fn free_ports() -> u16 {
    loop {
        let first = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = first.local_addr().unwrap().port();
        let next = |n| TcpListener::bind(("127.0.0.1", port.checked_add(n)?)).ok();
        if [1, 2, 4].into_iter().all(|n| next(n).is_some()) {
            return port;
        }
    }
}

/// A peer that stays on its relay.
fn relayed(relay: &str) -> Config {
    let mut config = Config::default();
    config.relays = vec![relay.into()];
    config.listen = vec!["/ip4/127.0.0.1/udp/0/quic-v1".into()];
    config.port_mapping = false;
    config.direct = false;
    config
}

fn dialling(mut config: Config) -> Config {
    config.reserve = false;
    config
}

async fn peer(config: Config) -> Connector {
    Connector::builder().config(config).bind().await.unwrap()
}

async fn echoing(config: Config) -> Connector {
    let me = peer(config).await;
    let connector = me.clone();
    tokio::spawn(async move {
        while let Some(connection) = connector.accept().await {
            tokio::spawn(async move {
                while let Some((_, stream)) = connection.accept_stream().await {
                    tokio::spawn(async move {
                        let (mut send, mut recv) = stream.split();
                        futures::io::copy(&mut recv, &mut send).await?;
                        send.close().await
                    });
                }
            });
        }
    });
    me
}

async fn echoed(connection: &Connection) {
    let exchange = async {
        let mut stream = connection.open("echo/1").await.unwrap();
        stream.write_all(b"still there").await.unwrap();
        stream.close().await.unwrap();
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.unwrap();
        assert_eq!(back, b"still there");
    };
    timeout(PATIENCE, exchange).await.expect("an echo");
}

/// What stands at `offset` of a stream: every byte tells of its place.
fn byte(offset: usize) -> u8 {
    (offset.wrapping_mul(2_654_435_761) >> 13) as u8
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_killed_under_load_costs_no_byte() {
    const BYTES: usize = 8 << 20;
    let (port, home) = (free_ports(), tempfile::tempdir().unwrap());
    let relay = Program::relay(port, home.path());
    // Over TCP a peer hears of the death at once.
    let address = relay.address("/tcp/");
    let bob = echoing(relayed(&address)).await;
    let alice = peer(dialling(relayed(&address))).await;
    let mut direct = relayed(&address);
    direct.direct = true;
    let carol = echoing(direct.clone()).await;
    let dave = peer(dialling(direct)).await;

    let direct = dave.connect(&carol.ticket()).await.unwrap();
    until_direct(&direct).await;
    let connection = alice.connect(&bob.ticket()).await.unwrap();
    let stream = connection.open("echo/1").await.unwrap();
    let (mut send, mut recv) = stream.split();
    let write = async move {
        for start in (0..BYTES).step_by(1 << 16) {
            let piece: Vec<_> = (start..start + (1 << 16)).map(byte).collect();
            send.write_all(&piece).await.unwrap();
        }
        send.close().await.unwrap();
    };
    let mut relay = Some(relay);
    let read = async {
        let (mut at, mut buffer, mut killed) = (0, vec![0; 1 << 16], false);
        loop {
            let read = recv.read(&mut buffer).await.unwrap();
            if read == 0 {
                break;
            }
            assert!(
                buffer[..read]
                    .iter()
                    .zip(at..)
                    .all(|(b, at)| *b == byte(at))
            );
            at += read;
            if at > BYTES / 8 && !killed {
                killed = relay.take().is_some();
                // Those that need no relay do not notice.
                echoed(&direct).await;
                relay = Some(tokio::task::block_in_place(|| {
                    Program::relay(port, home.path())
                }));
            }
        }
        assert_eq!(at, BYTES);
    };
    let both = async { tokio::join!(write, read) };
    timeout(PATIENCE, both).await.expect("all bytes come back");
    let connection = timeout(PATIENCE, async {
        loop {
            // Bob's reservation may have to wait for its turn.
            match alice.connect(&bob.ticket()).await {
                Ok(connection) => return connection,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    echoed(&connection.await.unwrap()).await;
}

async fn until_direct(connection: &Connection) {
    let mut events = connection.path_events();
    let direct = async {
        while connection.path().is_none_or(|p| p.kind != PathKind::Direct) {
            assert!(events.next().await.is_some(), "closed");
        }
    };
    timeout(PATIENCE, direct).await.expect("a direct path");
}

/// A security protocol that falls silent: at once, or after the first message of the other side.
#[derive(Clone)]
struct Silent {
    listens: bool,
}

impl UpgradeInfo for Silent {
    type Info = &'static str;
    type InfoIter = std::iter::Once<&'static str>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once("/noise")
    }
}

type Nothing = (PeerId, Pin<Box<dyn ReadWrite>>);
trait ReadWrite: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> ReadWrite for T {}

impl<C: AsyncRead + AsyncWrite + Unpin + Send + 'static> InboundConnectionUpgrade<C> for Silent {
    type Output = Nothing;
    type Error = std::io::Error;
    type Future = future::BoxFuture<'static, std::io::Result<Nothing>>;

    fn upgrade_inbound(self, mut stream: C, _: Self::Info) -> Self::Future {
        Box::pin(async move {
            if self.listens {
                stream.read_exact(&mut [0; 34]).await?;
            }
            // It stays open.
            let _stream = stream;
            future::pending().await
        })
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin + Send + 'static> OutboundConnectionUpgrade<C> for Silent {
    type Output = Nothing;
    type Error = std::io::Error;
    type Future = future::BoxFuture<'static, std::io::Result<Nothing>>;

    fn upgrade_outbound(self, stream: C, _: Self::Info) -> Self::Future {
        Box::pin(async move {
            let _stream = stream;
            future::pending().await
        })
    }
}

/// A peer that reserves at `relay`, takes circuits in, or dials `to`, and falls silent on them.
async fn silent(relay: &Multiaddr, listens: bool, to: Option<PeerId>) -> PeerId {
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_relay_client(
            move |_: &_| Ok::<_, std::io::Error>(Silent { listens }),
            yamux::Config::default,
        )
        .unwrap()
        .with_behaviour(|_, relay: relay::client::Behaviour| relay)
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .build();
    let circuit = relay.clone().with(Protocol::P2pCircuit);
    match to {
        None => drop(swarm.listen_on(circuit).unwrap()),
        Some(peer) => swarm.dial(circuit.with(Protocol::P2p(peer))).unwrap(),
    }
    let me = *swarm.local_peer_id();
    let begun = async {
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { .. } => return,
                SwarmEvent::Behaviour(relay::client::Event::OutboundCircuitEstablished {
                    ..
                }) => {
                    return;
                }
                _ => {}
            }
        }
    };
    timeout(PATIENCE, begun).await.expect("a silent peer");
    tokio::spawn(async move { while swarm.next().await.is_some() {} });
    me
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_that_fall_silent_cost_others_nothing() {
    let home = tempfile::tempdir().unwrap();
    let relay = Program::relay(free_ports(), home.path());
    let address = relay.address("/quic-v1");
    let parsed: Multiaddr = address.parse().unwrap();
    let bob = echoing(relayed(&address)).await;
    let mut impatient = dialling(relayed(&address));
    impatient.connect_timeout = Duration::from_secs(1);
    let alice = peer(impatient).await;
    let before = alice.connect(&bob.ticket()).await.unwrap();
    for listens in [false, true] {
        let mute = silent(&parsed, listens, None).await;
        let none: [String; 0] = [];
        let mute = mute.to_string().parse().unwrap();
        let ticket = Ticket::from_parts(mute, [address.clone()], none).unwrap();
        let start = Instant::now();
        let (refused, ()) = tokio::join!(alice.connect(&ticket), echoed(&before));
        let error = refused.unwrap_err();
        assert_eq!(error.code(), "unreachable", "{error}");
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "{:?}",
            start.elapsed()
        );
    }
    // Circuits to bob on which nobody speaks.
    for _ in 0..8 {
        silent(
            &parsed,
            false,
            Some(bob.peer_id().to_string().parse().unwrap()),
        )
        .await;
    }
    let carol = peer(dialling(relayed(&address))).await;
    echoed(&carol.connect(&bob.ticket()).await.unwrap()).await;
    echoed(&before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_without_descriptors_left_serves_those_it_has() {
    let home = tempfile::tempdir().unwrap();
    let relay = Program::relay(free_ports(), home.path());
    let (quic, tcp) = (relay.address("/quic-v1"), relay.address("/tcp/"));
    let bob = echoing(relayed(&quic)).await;
    let alice = peer(dialling(relayed(&tcp))).await;
    let before = alice.connect(&bob.ticket()).await.unwrap();
    let limit = relay.descriptors() + 4;
    relay.limit_descriptors(limit);
    let tcp_port: Multiaddr = tcp.parse().unwrap();
    let port = tcp_port.iter().find_map(|part| match part {
        Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    let flood: Vec<_> = (0..32)
        .map(|_| TcpStream::connect(("127.0.0.1", port.unwrap())).unwrap())
        .collect();
    let full = async {
        while relay.descriptors() < limit {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, full).await.expect("the limit is reached");
    echoed(&before).await;
    // QUIC needs no descriptor of its own.
    let carol = peer(dialling(relayed(&quic))).await;
    echoed(&carol.connect(&bob.ticket()).await.unwrap()).await;
    drop(flood);
    let dave = peer(dialling(relayed(&tcp))).await;
    echoed(&dave.connect(&bob.ticket()).await.unwrap()).await;
}

/// The last line that a program prints that cannot start.
fn failure(script: &str) -> Value {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|_| {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        panic!("{text}{errors}")
    })
}

#[test]
fn a_peer_that_gets_no_descriptor_says_so() {
    let program = env!("CARGO_BIN_EXE_throughline");
    // Enough for the runtime, not for the sockets.
    let error = failure(&format!(
        "ulimit -n 9; exec {program} listen --no-port-mapping --json"
    ));
    assert_eq!(error["code"], "io", "{error}");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("Too many open files"),
        "{error}"
    );
}

#[test]
fn a_full_disk_is_said_and_nothing_is_lost() {
    let home = tempfile::tempdir().unwrap();
    let (program, home) = (env!("CARGO_BIN_EXE_throughline"), home.path().display());
    let serve = format!("{program} serve --host 127.0.0.1 --port 0 --data {home} --json");
    // A disk of 32 KiB in a mount namespace of its own. A server that starts is told to stop.
    let script = format!(
        "set -e; mount -t tmpfs -o size=32k,mode=700 tmpfs {home}
         full() {{ cat /dev/zero > {home}/filler 2>/dev/null || true; }}
         starts() {{ : > {home}.out; {serve} > {home}.out & while ! [ -s {home}.out ]; do sleep 0.02; done
                    kill $!; wait $! || true; cat {home}.out; }}
         full; if {serve}; then exit 1; fi
         rm {home}/filler; [ -z \"$(ls -A {home})\" ]
         starts
         cp -r {home} {home}.before; rm {home}/webrtc-direct.pem; full
         if {serve}; then exit 1; fi
         rm {home}/filler {home}.before/webrtc-direct.pem; diff -r {home} {home}.before; rm -r {home}.before
         starts; rm {home}.out"
    );
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", &script])
        .output()
        .unwrap();
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    if errors.contains("unshare:") && std::env::var_os("CI").is_none() {
        eprintln!("skipped: {errors}");
        return;
    }
    assert!(output.status.success(), "{text}{errors}");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [no_identity, first, no_certificate, second] = &lines[..] else {
        panic!("{text}{errors}");
    };
    for error in [no_identity, no_certificate] {
        assert_eq!(error["code"], "io", "{error}");
        assert!(
            error["message"].as_str().unwrap().contains("No space left"),
            "{error}"
        );
    }
    assert_eq!(first["event"], "ready");
    assert_eq!(first["peer_id"], second["peer_id"]);
}
