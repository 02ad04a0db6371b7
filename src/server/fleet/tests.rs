//! Three servers, three NATS servers, and thousands of peers that come, move and go.

use std::{
    fs,
    net::TcpStream,
    process::{Child, Command, Stdio},
    sync::Mutex,
};

use futures::StreamExt as _;
use libp2p::identity::Keypair;

use super::*;
use crate::{
    core::{
        quota::Quota,
        record::{self, Record},
    },
    native::behaviours::pool::Debug,
    server::{
        access::Access,
        config::ServerConfig,
        pool::{Pool, Pools},
    },
    testing::{free_ports, until_polled},
};

const PEERS: usize = 3_000;
const SERVERS: usize = 3;
/// How many of them do something at a time.
const AT_A_TIME: usize = 100;

/// The NATS servers. They end with the test.
struct Nats(Vec<Child>);

impl Drop for Nats {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // Those that were killed have ended.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A cluster of three, with its URLs.
async fn cluster(home: &std::path::Path) -> (Nats, Vec<String>) {
    let ports = [(); 3].map(|()| free_ports());
    let routes = ports.map(|port| format!("\"nats-route://127.0.0.1:{}\"", port + 1));
    let routes = routes.join(",");
    let children = ports.iter().map(|port| {
        let settings = home.join(format!("{port}.conf"));
        let text = format!(
            "server_name: n{port}\nlisten: \"127.0.0.1:{port}\"\n\
             cluster {{ name: fleet, listen: \"127.0.0.1:{}\", routes: [{routes}] }}\n\
             jetstream {{ store_dir: \"{}\", max_mem: 256M, max_file: 256M }}\n",
            port + 1,
            home.join(port.to_string()).display()
        );
        fs::write(&settings, text).unwrap();
        let mut command = Command::new("/usr/sbin/nats-server");
        command.arg("-c").arg(settings).stdin(Stdio::null());
        let quiet = command.stdout(Stdio::null()).stderr(Stdio::null());
        quiet
            .spawn()
            .expect("nats-server is there; see scripts/setup")
    });
    let nats = Nats(children.collect());
    until_polled(|| {
        ports
            .iter()
            .all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok())
    })
    .await;
    let urls = ports.map(|port| format!("nats://127.0.0.1:{port}"));
    (nats, urls.to_vec())
}

/// A part of the fleet without a relay.
fn part(urls: &[String]) -> Fleet {
    let key = Keypair::generate_ed25519();
    let mut config = ServerConfig::default();
    config.fleet.servers = urls.to_vec();
    let places = || Pool::new("seat", Quota::shared(100_000, 100), &Debug);
    let own = key.public().to_peer_id();
    let elsewhere = Elsewhere {
        all: places(),
        room: Box::new(places),
    };
    let known = (Memory::new(places), elsewhere);
    let fleet = Fleet::new(&config.fleet, own, known, &Metrics::new(&config)).unwrap();
    let settings = Settings::fixed(config.clone());
    let pools = Pools::new(&settings, &Metrics::new(&config));
    let own = Own {
        key,
        addresses: watch::channel(Vec::new()).1,
        settings,
        revoked: None,
        usage: Usage::default(),
    };
    let quotas = Access::open(&pools).share();
    tokio::spawn(fleet.clone().keep(own, quotas));
    fleet
}

/// A peer: its key, the number of its record, and where it is.
struct Peer {
    key: Keypair,
    seq: u64,
    at: Option<usize>,
}

impl Peer {
    fn id(&self) -> PeerId {
        self.key.public().to_peer_id()
    }

    /// A record as large as that of a peer with two relays.
    fn put(&mut self, at: usize, fleets: &[Fleet], place: &Pool) {
        self.seq += 1;
        self.at = Some(at);
        let relay = PeerId::random();
        let address = |port| format!("/ip4/192.0.2.1/udp/{port}/quic-v1/p2p/{relay}");
        let record = Record {
            peer: self.id(),
            seq: self.seq,
            expires: envelope::now() + record::LIFETIME,
            relays: (1..7).map(|port| address(port).parse().unwrap()).collect(),
            addresses: Vec::new(),
            resumable: true,
            forwarded: true,
            incarnation: Some([7; 8]),
            mapped: Vec::new(),
        };
        let bytes = envelope::sign(&self.key, &record).unwrap();
        let entry = Entry::record(self.id(), bytes).unwrap();
        let take = || place.take(std::net::IpAddr::from([192, 0, 2, 1]));
        fleets[at].put(entry, Instant::now(), &take).unwrap();
    }
}

async fn until_told(fleets: &[Fleet]) -> Duration {
    let began = Instant::now();
    until_polled(|| fleets.iter().all(|fleet| fleet.0.shared.waiting() == 0)).await;
    began.elapsed()
}

/// Checks that every server finds each of these peers where it is, and none that has gone. Returns the median
/// and the 99th percentile of the time that a look-up took.
async fn check(fleets: &[Fleet], peers: &[Peer]) -> (Duration, Duration) {
    let took = Mutex::new(Vec::new());
    let asked = peers
        .iter()
        .flat_map(|peer| (0..SERVERS).map(move |at| (peer, at)));
    let look_ups = futures::stream::iter(asked).for_each_concurrent(32, |(peer, at)| {
        let took = &took;
        async move {
            let began = Instant::now();
            let is_here = peer.at == Some(at);
            // What was looked up before would count for a second.
            let later = began + Duration::from_secs(1);
            let found = fleets[at].find(&peer.id(), is_here, later).await;
            if !is_here {
                took.lock().unwrap().push(began.elapsed());
            }
            let seq = found.map(|found| envelope::open(&found, envelope::now()).unwrap().seq);
            match peer.at {
                Some(_) => assert_eq!(seq, Some(peer.seq), "at {at}"),
                None => assert_eq!(seq, None, "at {at}"),
            }
        }
    });
    look_ups.await;
    let mut took = took.into_inner().unwrap();
    took.sort();
    (took[took.len() / 2], took[took.len() * 99 / 100])
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "it takes minutes and prints what docs/fleet.md says; `make load` runs it"]
async fn thousands_of_peers_come_move_and_go() {
    let home = tempfile::tempdir().unwrap();
    let (mut nats, urls) = cluster(home.path()).await;
    let fleets: Vec<_> = (0..SERVERS).map(|_| part(&urls)).collect();
    until_polled(|| fleets.iter().all(|fleet| !fleet.is_cut_off())).await;
    let place = Pool::new("test", Quota::shared(100_000, 100), &Debug);
    let mut peers: Vec<_> = (0..PEERS)
        .map(|_| Peer {
            key: Keypair::generate_ed25519(),
            seq: 0,
            at: None,
        })
        .collect();
    for (number, peer) in peers.iter_mut().enumerate() {
        peer.put(number % SERVERS, &fleets, &place);
    }
    let took = until_told(&fleets).await;
    let rate = PEERS as f64 / took.as_secs_f64();
    eprintln!("{PEERS} peers came: told in {took:?}, {rate:.0} a second");
    let (middle, most) = check(&fleets, &peers).await;
    eprintln!("a look-up took {middle:?}, and {most:?} at the 99th percentile");

    let mut worst = Duration::ZERO;
    for round in 0..120 {
        for n in 0..AT_A_TIME {
            let peer = &mut peers[(round * 997 + n * 31) % PEERS];
            let next = (round + n) % (SERVERS + 1);
            match (next, peer.at) {
                (SERVERS, Some(at)) => {
                    fleets[at].forget(&peer.id(), Instant::now());
                    peer.at = None;
                }
                (SERVERS, None) => {}
                // It goes to another server without a word to the one where it was.
                (next, _) => peer.put(next, &fleets, &place),
            }
        }
        if round == 60 {
            nats.0[0].kill().unwrap();
        }
        worst = worst.max(until_told(&fleets).await);
    }
    eprintln!(
        "the slowest of 120 rounds of {AT_A_TIME} changes, with one NATS server killed: {worst:?}"
    );
    let (middle, most) = check(&fleets, &peers).await;
    eprintln!("a look-up took {middle:?}, and {most:?} at the 99th percentile");
}
