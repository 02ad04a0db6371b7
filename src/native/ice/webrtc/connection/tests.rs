//! A connection whose path moves to a relayed address.

use std::{future::poll_fn, net::Ipv4Addr};

use super::{super::identity::Identity, *};
use crate::{
    core::candidate::CandidateKind,
    native::{
        ice::{
            gather::LocalCandidate,
            turn::{Roots, Server, TurnRelays},
        },
        udp::Addresses,
    },
    server::turn::testing::Turn,
    testing::PATIENCE,
    webrtc::backend::PeerConnection as _,
};

const LINGER: Duration = Duration::from_secs(1);

struct End {
    connection: PeerConnection,
    host: LocalCandidate,
    current: Arc<watch::Sender<Gathered>>,
    _relays: TurnRelays,
    _nat: Arc<watch::Sender<NatReport>>,
}

impl End {
    /// Starts one end, which has no address until its TURN servers give some.
    fn start(servers: Vec<Server>) -> Self {
        let sockets = Sockets::bind(Addresses::default()).unwrap();
        let current = Arc::new(watch::Sender::new(Gathered::default()));
        let nat = Arc::new(watch::Sender::new(NatReport::default()));
        let roots = Roots::load(None).unwrap();
        let relays = TurnRelays::start(&sockets, servers, &roots, LINGER, (&current, &nat));
        let ip = Ipv4Addr::LOCALHOST.into();
        let addr = SocketAddr::new(ip, sockets.port(ip).unwrap());
        let host = LocalCandidate {
            origin: Origin::Interface,
            addr,
            base: addr,
        };
        current.send_modify(|now| now.ready = true);
        let identity = Arc::new(Identity::generate().unwrap());
        let network = Network {
            candidates: current.subscribe(),
            nat: nat.subscribe(),
            relays: Some(relays.demand()),
            mdns: false,
        };
        let session = IceSession::new(identity, None, Instant::now());
        Self {
            connection: PeerConnection::start(session, sockets, network, None, None),
            host,
            current,
            _relays: relays,
            _nat: nat,
        }
    }

    /// Gives the end the address of loopback, or takes it away.
    fn plug(&self, is_in: bool) {
        let hosts = is_in.then_some(self.host);
        self.current.send_modify(|now| {
            now.replace(Origin::Interface, hosts.as_slice());
        });
    }

    async fn next(&mut self) -> PeerEvent<Channel> {
        poll_fn(|cx| self.connection.poll_event(cx)).await
    }
}

/// Carries the signalling between the ends, until `done` is true for an event of the first end.
async fn until(ends: &mut [End; 2], done: impl Fn(&PeerEvent<Channel>) -> bool) {
    let signalling = async {
        loop {
            let [first, second] = ends;
            let (event, to, offers) = tokio::select! {
                event = first.next() => (event, second, true),
                event = second.next() => (event, first, false),
            };
            match event {
                event if offers && done(&event) => return,
                PeerEvent::Description(sdp) if offers => to.connection.accept_offer(&sdp),
                PeerEvent::Description(sdp) => to.connection.accept_answer(&sdp),
                PeerEvent::Candidate(candidate) => {
                    to.connection.add_remote_candidate(Some(&candidate));
                }
                PeerEvent::Failed(error) => panic!("{error}"),
                _ => {}
            }
        }
    };
    time::timeout(PATIENCE, signalling).await.unwrap();
}

fn begins_at(kind: CandidateKind) -> impl Fn(&PeerEvent<Channel>) -> bool {
    move |event| matches!(event, PeerEvent::Path(pair) if pair.local.kind == kind)
}

/// The pair that is chosen first is seldom the pair that stays in use.
#[tokio::test]
async fn a_relayed_address_is_kept_while_it_carries_the_connection() {
    let turn = Turn::start().await;
    let mut ends = [End::start(vec![turn.server(false)]), End::start(Vec::new())];
    ends[1].plug(true);
    ends[0].connection.create_offer(false);
    until(&mut ends, |event| matches!(event, PeerEvent::Connected)).await;
    ends[0].plug(true);
    until(&mut ends, begins_at(CandidateKind::Host)).await;
    // No relayed address is needed now. Then the direct path disappears.
    ends[0].plug(false);
    until(&mut ends, begins_at(CandidateKind::Relayed)).await;
    let gone = time::timeout(2 * LINGER, turn.wait_for_allocations(0));
    assert!(gone.await.is_err(), "the address was given back");
    drop(ends);
    turn.wait_for_allocations(0).await;
}

/// A server is asked for nothing that is not needed.
#[tokio::test]
async fn peers_that_are_direct_ask_no_turn_server() {
    let turn = Turn::start().await;
    let mut ends = [(); 2].map(|()| End::start(vec![turn.server(false)]));
    for end in &ends {
        end.plug(true);
        // The checks have more time than the test.
        end.connection
            .act(|session| session.ask_turn_after(PATIENCE));
    }
    ends[0].connection.create_offer(false);
    until(&mut ends, |event| matches!(event, PeerEvent::Connected)).await;
    assert_eq!((turn.granted(), turn.allocations()), (0, 0));
}
