use std::time::Instant;

use stun_types::{
    attribute::XorMappedAddress,
    message::{Message, MessageWrite as _, MessageWriteExt as _, MessageWriteVec},
};
use tokio::{net::UdpSocket, time};

use super::*;
use crate::{
    core::nat::{NatMapping, NatPorts},
    native::udp::Addresses,
};

const SOON: Duration = Duration::from_secs(10);

fn candidate(origin: Origin, port: u16) -> LocalCandidate {
    LocalCandidate {
        origin,
        addr: SocketAddr::new([192, 0, 2, 1].into(), port),
        base: SocketAddr::new([10, 0, 0, 1].into(), 1),
    }
}

/// Binds a STUN server that does not answer yet.
async fn server() -> (UdpSocket, String) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let name = socket.local_addr().unwrap().to_string();
    (socket, name)
}

/// Answers all requests of one source with the same port. Each new source has the next port,
/// counting up from `first`.
fn number_sources(socket: UdpSocket, first: u16) {
    tokio::spawn(async move {
        let mut sources = Vec::new();
        let mut buffer = [0; 100];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            if !sources.contains(&from) {
                sources.push(from);
            }
            let at = sources.iter().position(|source| *source == from).unwrap();
            let mapped = SocketAddr::new([198, 51, 100, 7].into(), first + at as u16);
            let request = Message::from_bytes(&buffer[..length]).unwrap();
            let mut answer = Message::builder_success(&request, MessageWriteVec::new());
            answer
                .add_attribute(&XorMappedAddress::new(mapped, request.transaction_id()))
                .unwrap();
            socket.send_to(&answer.finish(), from).await.unwrap();
        }
    });
}

fn start(stun: Vec<String>) -> Gatherer {
    let settings = Settings {
        stun,
        stun_timeout: Duration::from_secs(5),
        turn: Vec::new(),
        roots: Roots::load(None).unwrap(),
        port_mapping: None,
        policy: Policy::new(true, Vec::new()),
    };
    Gatherer::start(&Sockets::bind(Addresses::default()).unwrap(), settings)
}

fn ports(gathered: &Gathered, origin: Origin) -> Vec<u16> {
    gathered.of(origin).map(|c| c.addr.port()).collect()
}

#[test]
fn new_candidates_replace_those_of_the_same_origin() {
    let mut gathered = Gathered::default();
    assert!(gathered.replace(Origin::Stun, &[candidate(Origin::Stun, 1)]));
    assert!(gathered.replace(Origin::Interface, &[candidate(Origin::Interface, 2)]));
    assert!(!gathered.replace(Origin::Stun, &[candidate(Origin::Stun, 1)]));
    assert!(gathered.replace(Origin::PortMapping, &[candidate(Origin::PortMapping, 3)]));
    let ports: Vec<_> = gathered.candidates.iter().map(|c| c.addr.port()).collect();
    assert_eq!(ports, [2, 3, 1]);
    assert!(gathered.replace(Origin::Stun, &[]));
    assert_eq!(gathered.candidates.len(), 2);
}

#[tokio::test]
async fn silent_servers_do_not_delay_the_answer_of_another() {
    let (_silent, first) = server().await;
    let (_also_silent, second) = server().await;
    let (alive, third) = server().await;
    number_sources(alive, 40_000);
    let started = Instant::now();
    let gatherer = start(vec![first, second, third]);
    let mut gathered = gatherer.watch();
    let known = gathered.wait_for(|g| g.of(Origin::Stun).next().is_some());
    time::timeout(SOON, known).await.unwrap().unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "the answer is delayed"
    );
}

#[tokio::test]
async fn servers_that_a_relay_names_are_asked_besides_those_of_the_user() {
    let (ours, first) = server().await;
    let (named, second) = server().await;
    number_sources(ours, 40_000);
    number_sources(named, 40_000);
    let gatherer = start(vec![first.clone()]);
    // Nobody may aim us at metadata.
    let aimed = "169.254.169.254:80".to_owned();
    gatherer.use_stun(
        PeerId::random(),
        vec![second.clone(), aimed.clone(), first.clone()],
    );
    let mut nat = gatherer.nat();
    let told = nat.wait_for(|nat| nat.stun.iter().filter(|s| s.mapped.is_some()).count() == 2);
    let report = time::timeout(SOON, told).await.unwrap().unwrap().clone();
    let servers: Vec<_> = report.stun.iter().map(|stun| &stun.server).collect();
    assert_eq!(servers, [&first, &second, &aimed]);
    assert_eq!(report.stun[2].error, None, "it was not asked");
    let relay = PeerId::random();
    gatherer.use_stun(relay, vec!["127.0.0.1:9".to_owned()]);
    gatherer.use_stun(relay, Vec::new());
    let fewer = nat.wait_for(|nat| nat.stun.len() == 3);
    time::timeout(SOON, fewer).await.unwrap().unwrap();
}

#[tokio::test]
async fn doubts_of_the_mapping_do_not_hide_that_a_server_is_silent() {
    let (_silent, first) = server().await;
    let (alive, second) = server().await;
    number_sources(alive, 40_000);
    let gatherer = start(vec![first.clone(), second]);
    let mut nat = gatherer.nat();
    let told = nat.wait_for(|nat| {
        let of_silent = nat.stun.iter().find(|report| report.server == first);
        of_silent.is_some_and(|report| report.error.is_some())
    });
    // Paths fail again and again meanwhile.
    let mut failures = time::interval(Duration::from_millis(500));
    let doubting = async {
        loop {
            failures.tick().await;
            gatherer.doubt_mapping();
        }
    };
    tokio::select! {
        told = time::timeout(SOON, told) => assert!(told.unwrap().is_ok()),
        () = doubting => {}
    }
}

#[tokio::test]
async fn a_sequence_is_predicted_anew_when_an_attempt_begins() {
    let (first, first_name) = server().await;
    let (second, second_name) = server().await;
    // One source has 40000 at one server and 40003 at the other. A later source has the next port.
    number_sources(first, 40_000);
    number_sources(second, 40_003);
    let gatherer = start(vec![first_name, second_name]);
    let mut nat = gatherer.nat();
    let sequence = nat.wait_for(|nat| nat.ports == NatPorts::Contiguous);
    let report = time::timeout(SOON, sequence)
        .await
        .unwrap()
        .unwrap()
        .clone();
    assert_eq!(report.mapping, NatMapping::AddressAndPortDependent);
    assert_eq!(report.port_step.map(i32::abs), Some(3));
    let mut gathered = gatherer.watch();
    let before = ports(&gathered.borrow_and_update(), Origin::Prediction);
    assert!(!before.is_empty());
    // The ports are asked for anew only when the known ones have become old.
    let asked_anew = async {
        loop {
            gatherer.attempt_begins();
            let changed = time::timeout(Duration::from_millis(50), gathered.changed());
            if changed.await.is_ok() {
                return;
            }
        }
    };
    time::timeout(SOON, asked_anew).await.unwrap();
    let after = ports(&gathered.borrow(), Origin::Prediction);
    assert!(
        !after.is_empty() && after[0] != before[0],
        "{before:?} {after:?}"
    );
}
