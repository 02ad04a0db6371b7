//! Tests peers that fall silent, each at another moment.

use std::{pin::Pin, time::Instant};

use futures::{AsyncRead, AsyncWrite, StreamExt as _, future};
use libp2p::{
    PeerId, SwarmBuilder,
    core::{
        UpgradeInfo,
        upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade},
    },
    relay,
    swarm::SwarmEvent,
    yamux,
};
use throughline::Ticket;

use super::*;

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
            // The stream stays open.
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

/// Starts a peer that reserves at `relay` and accepts circuits, or that dials `to`. It falls silent
/// on these circuits.
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
    let (_relay, ready) = serve(free_ports(), home.path());
    let address = address(&ready, "/quic-v1");
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
    // Nobody speaks on these circuits to bob.
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

/// How long the relay may take to refuse. The first is the timeout of src/server/circuits.rs, for
/// diallers of ours whose link to the relay is up. The second is above the time in which
/// src/server/watch.rs notices that a peer is gone.
const ASKED: Duration = Duration::from_secs(10);
const FOUND_OUT: Duration = Duration::from_secs(20);

/// The peer stops without a word, while its kernel keeps its sockets open.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_vanished_with_its_reservation_is_refused_by_the_relay() {
    let home = tempfile::tempdir().unwrap();
    let (_relay, ready) = serve(free_ports(), home.path());
    let (quic, tcp) = (address(&ready, "/quic-v1"), address(&ready, "/tcp/"));
    let roads = [(&quic, true), (&quic, false), (&tcp, true), (&tcp, false)];
    let refusals = roads.map(async |(address, link_is_up)| {
        let bind = ["--bind", "/ip4/127.0.0.1/udp/0/quic-v1"];
        let bob = Program::start(&[&["listen", "--relay", address][..], &bind].concat());
        let ready = tokio::task::block_in_place(|| bob.event("ready"));
        let ticket: Ticket = ready["ticket"].as_str().unwrap().parse().unwrap();
        let ticket = ticket.without_addresses();
        let mut config = relayed(address);
        config.reserve = link_is_up;
        config.connect_timeout = PATIENCE;
        config.strategy_timeout = PATIENCE;
        let alice = peer(config).await;
        bob.signal("-STOP");
        let refusal = async || {
            let error = alice.connect(&ticket).await.unwrap_err();
            error.attempts()[0].reason.clone().unwrap()
        };
        let start = Instant::now();
        let (reason, time) = (refusal().await, start.elapsed());
        assert!(reason.contains("the relay"), "{reason}");
        let most = if link_is_up { ASKED } else { FOUND_OUT };
        assert!(time < most + Duration::from_secs(2), "{reason}: {time:?}");
        // Once the relay has found out, it says so at once.
        let told = async { while !refusal().await.contains("holds no reservation") {} };
        timeout(FOUND_OUT, told).await.expect("no reservation");
    });
    future::join_all(refusals).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_vanished_is_replaced() {
    let homes = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let [(first, gone), (_second, standby)] =
        homes.each_ref().map(|h| serve(free_ports(), h.path()));
    let [gone, standby] = [gone, standby].map(|ready| address(&ready, "/tcp/"));
    let mut config = relayed(&gone);
    config.relays.push(standby.clone());
    config.relay_reservations = 1;
    let me = peer(config).await;
    let of = |relay: &str, address: &str| relay.rsplit('/').next() == address.rsplit('/').next();
    assert!(of(&me.ticket().relays()[0], &gone));
    first.signal("-STOP");
    let moved = |relay: &String| of(relay, &standby);
    until(|| me.ticket().relays().iter().any(moved)).await;
}
