//! How long an address lasts: as long as it is used, and not beyond the server's memory of it.

use tokio::sync::oneshot;

use super::{
    super::{Offer, lock},
    *,
};
use crate::{
    core::server_url::ServerTransport,
    native::{
        ice::gather::Origin,
        udp::{TurnCarrier, any_source},
    },
};

/// A far peer, and what has arrived from it.
struct Far {
    socket: UdpSocket,
    received: mpsc::UnboundedReceiver<(SocketAddr, SocketAddr, Vec<u8>)>,
    _inbox: Arc<dyn Receiver>,
}

impl Far {
    async fn of(peer: &Peer) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (sender, received) = mpsc::unbounded_channel();
        let inbox: Arc<dyn Receiver> = Arc::new(Inbox(sender));
        let addr = socket.local_addr().unwrap();
        peer.sockets.route_source(addr, &inbox);
        Self {
            socket,
            received,
            _inbox: inbox,
        }
    }

    /// Sends a datagram in each direction, until both have arrived.
    async fn exchange(&mut self, peer: &Peer, relayed: SocketAddr) {
        let addr = self.socket.local_addr().unwrap();
        let mut buffer = [0; 64];
        loop {
            peer.sockets.send(relayed, addr, &datagram(1), 5).await;
            let there = self.socket.recv_from(&mut buffer);
            // The first datagrams wait for their permission.
            let there = timeout(Duration::from_millis(100), there).await;
            if there.is_ok_and(|there| there.unwrap().1 == relayed) {
                break;
            }
        }
        self.socket.send_to(&datagram(2), relayed).await.unwrap();
        let back = timeout(SOON, self.received.recv()).await.unwrap();
        assert_eq!(back, Some((addr, relayed, datagram(2))));
    }
}

/// The peer may send to an address that this end does not send from.
#[tokio::test]
async fn an_address_in_use_is_kept_although_nobody_asks_for_it() {
    let linger = Duration::from_secs(1);
    let turn = Turn::start().await;
    let peer = Peer::lingering(turn.server(false), linger);
    let hold = peer.relays.hold();
    let relayed = peer.relayed(1).await[0].addr;
    let mut far = Far::of(&peer).await;
    far.exchange(&peer, relayed).await;
    drop(hold);
    let start = Instant::now();
    while start.elapsed() < 2 * linger + linger / 2 {
        far.socket.send_to(&datagram(3), relayed).await.unwrap();
        let received = timeout(SOON, far.received.recv()).await.unwrap();
        assert!(received.is_some());
        // The peer keeps silent for a while, and this side waits for it to end.
        let more = timeout(linger / 10, far.received.recv());
        assert!(more.await.is_err());
    }
    assert_eq!(peer.relayed(1).await[0].addr, relayed);
    peer.relayed(0).await;
    turn.wait_for_allocations(0).await;
}

/// Waits until the only relayed address is another one than `old`.
async fn another(peer: &Peer, old: SocketAddr) -> SocketAddr {
    let mut current = peer.current.subscribe();
    let other = current.wait_for(|now| {
        let mut relayed = now.candidates.iter().map(|candidate| candidate.addr);
        relayed.next().is_some_and(|addr| addr != old)
    });
    let other = timeout(SOON, other).await.expect("the loss is noticed");
    other.unwrap().candidates[0].addr
}

async fn survives_a_restart(over_tcp: bool) {
    let mut turn = Turn::start().await;
    let peer = Peer::new(turn.server(over_tcp));
    let _hold = peer.relays.hold();
    let relayed = peer.relayed(1).await[0].addr;
    let mut far = Far::of(&peer).await;
    far.exchange(&peer, relayed).await;
    turn.restart().await;
    // Datagrams that are sent now are dropped without a word.
    let to = far.socket.local_addr().unwrap();
    peer.sockets.send(relayed, to, &datagram(4), 5).await;
    let other = another(&peer, relayed).await;
    far.exchange(&peer, other).await;
    assert_eq!(turn.allocations(), 1);
}

#[tokio::test]
async fn a_server_that_restarted_gives_another_address_over_udp() {
    survives_a_restart(false).await;
}

#[tokio::test]
async fn a_server_that_restarted_gives_another_address_over_tcp() {
    survives_a_restart(true).await;
}

/// The address of this machine may be another one now, to which the server owes nothing.
#[tokio::test]
async fn the_server_is_asked_at_once_when_the_network_changes() {
    let turn = Turn::start().await;
    let peer = Peer::new(turn.server(false));
    let _hold = peer.relays.hold();
    let relayed = peer.relayed(1).await[0];
    let before = turn.granted();
    let host = LocalCandidate {
        origin: Origin::Interface,
        addr: "192.0.2.1:1".parse().unwrap(),
        base: "192.0.2.1:1".parse().unwrap(),
    };
    peer.current.send_modify(|now| now.candidates.push(host));
    until_polled(|| turn.granted() > before).await;
    assert!(peer.current.borrow().candidates.contains(&relayed));
}

/// A server holds an allocation that this side no longer knows, for example one of an earlier run.
#[tokio::test]
async fn a_forgotten_allocation_is_left_behind() {
    let turn = Turn::start().await;
    let sockets = Sockets::bind(Addresses::default()).unwrap();
    let server = turn.server(false);
    let addr = SocketAddr::new(server.url.host.parse().unwrap(), server.url.port);
    let current = Arc::new(watch::Sender::new(Gathered::default()));
    let (missing, _) = oneshot::channel();
    let (ends, used) = ((any_source(addr), addr), Arc::default());
    let families = Families::Both(missing);
    let forgotten = Allocation::over_udp(&server, ends, &sockets, families, &used);
    let carrier: Arc<dyn TurnCarrier> = forgotten.clone();
    assert!(sockets.route_server(sockets.port(addr.ip()).unwrap(), addr, &carrier));
    let offer = Offer {
        server: addr.ip(),
        carrier,
        transport: ServerTransport::Udp,
        sockets: sockets.clone(),
        current: Arc::downgrade(&current),
        relayed: Default::default(),
    };
    let mut never = std::pin::pin!(std::future::pending());
    tokio::select! {
        _ = forgotten.drive(SOON, &mut never, &offer) => panic!("it was given"),
        () = turn.wait_for_allocations(1) => {}
    }
    drop((offer, forgotten));
    let roots = Roots::load(None).unwrap();
    let nat = Arc::default();
    let relays = TurnRelays::start(&sockets, vec![server], &roots, LINGER, (&current, &nat));
    let _hold = relays.hold();
    turn.wait_for_allocations(2).await;
}

/// More than an hour passes for the client: it renews the allocation, the permission and the channel
/// again and again.
#[tokio::test]
async fn everything_is_renewed_for_hours() {
    let turn = Turn::start().await;
    let peer = Peer::new(turn.server(false));
    let _hold = peer.relays.hold();
    let relayed = peer.relayed(1).await[0].addr;
    let mut far = Far::of(&peer).await;
    far.exchange(&peer, relayed).await;
    let allocation = lock(&peer.relays.live)[0].upgrade().unwrap();
    while allocation.ahead() < Duration::from_secs(2 * 3600) {
        let (granted, ahead) = (turn.granted(), allocation.ahead());
        allocation.hint();
        until_polled(|| turn.granted() > granted && allocation.ahead() > ahead).await;
        far.exchange(&peer, relayed).await;
    }
    assert_eq!(turn.allocations(), 1);
    assert_eq!(peer.relayed(1).await[0].addr, relayed);
}
