//! Whatever moves the bytes of a lane, and how a lane is driven.

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use super::Lane;

/// How many datagrams a lane moves in each direction before the other work of its connection gets a
/// turn.
const BUDGET: usize = 32;

/// How often a lane is opened again on one connection after its carrier has ended. A carrier lives
/// as long as its connection, so only a faulty peer ends one.
const OPENINGS: u8 = 3;

/// A way to move datagrams: a substream, a data channel, or QUIC's datagrams. Dropping it closes it.
pub(crate) trait Carrier {
    /// Is ready when one datagram may be sent. Fails when the carrier has ended.
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>>;

    /// Sends a datagram after [`poll_ready`](Self::poll_ready).
    fn send(&mut self, datagram: Vec<u8>);

    /// Returns the next datagram of the peer. Fails when the carrier has ended.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<u8>, Ended>>;
}

/// A carrier carries nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended;

/// Moves the datagrams of a lane over the carriers that this side or the peer has opened. Each
/// carrier goes both ways, and the second one is there only if both sides open one at the same time.
#[derive(Debug)]
pub(crate) struct Driver<C> {
    lane: Arc<Lane>,
    /// Whether the muxer drives the lane, and not the handler.
    muxer: bool,
    /// The carriers are behind pointers, because most connections have none.
    own: Option<Box<C>>,
    peers: Option<Box<C>>,
    opening: bool,
    openings: u8,
}

impl<C: Carrier> Driver<C> {
    pub(crate) fn new(lane: Arc<Lane>, muxer: bool) -> Self {
        Self {
            lane,
            muxer,
            own: None,
            peers: None,
            opening: false,
            openings: OPENINGS,
        }
    }

    pub(crate) fn lane(&self) -> &Arc<Lane> {
        &self.lane
    }

    /// Takes the carrier that [`poll`](Self::poll) asked for, or `None` if there is none.
    pub(crate) fn opened(&mut self, carrier: Option<C>) {
        self.opening = false;
        if carrier.is_none() {
            // Only carriers that ended count, because there may be one later.
            self.openings += 1;
        }
        self.own = carrier.map(Box::new);
    }

    /// Takes a carrier that the peer has opened. It takes the place of an earlier one.
    pub(crate) fn accept(&mut self, carrier: C) {
        self.peers = Some(Box::new(carrier));
    }

    /// Moves datagrams. Returns whether a carrier has to be opened.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if !self.lane.is_known() {
            return false;
        }
        let mut used_up = false;
        for slot in [&mut self.own, &mut self.peers] {
            used_up |= receive(&self.lane, slot, cx);
            used_up |= send(&self.lane, self.muxer, slot, cx);
        }
        if used_up {
            cx.waker().wake_by_ref();
        }
        let has_none = self.own.is_none() && self.peers.is_none() && !self.opening;
        let open = has_none && self.openings > 0 && self.lane.is_wanted(self.muxer);
        if open {
            self.opening = true;
            self.openings -= 1;
        }
        open
    }
}

/// Returns whether there may be more to receive.
fn receive<C: Carrier>(lane: &Lane, slot: &mut Option<Box<C>>, cx: &mut Context<'_>) -> bool {
    for _ in 0..BUDGET {
        let Some(carrier) = slot else {
            return false;
        };
        match carrier.poll_next(cx) {
            Poll::Ready(Ok(datagram)) => lane.receives(datagram),
            Poll::Ready(Err(Ended)) => *slot = None,
            Poll::Pending => return false,
        }
    }
    true
}

/// Returns whether there may be more to send.
fn send<C: Carrier>(
    lane: &Lane,
    muxer: bool,
    slot: &mut Option<Box<C>>,
    cx: &mut Context<'_>,
) -> bool {
    for _ in 0..BUDGET {
        let Some(carrier) = slot else {
            return false;
        };
        match carrier.poll_ready(cx) {
            Poll::Ready(Ok(())) => match lane.next(muxer) {
                Some(datagram) => carrier.send(datagram),
                None => return false,
            },
            Poll::Ready(Err(Ended)) => *slot = None,
            Poll::Pending => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use futures::task::noop_waker;

    use super::{super::Queues, *};
    use crate::metrics::Dropped;

    /// Has `incoming` datagrams of the peer, takes what is sent, and may be broken.
    #[derive(Default)]
    struct Fake {
        incoming: usize,
        sent: usize,
        broken: bool,
    }

    impl Carrier for Fake {
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Ended>> {
            Poll::Ready(Ok(()))
        }

        fn send(&mut self, _: Vec<u8>) {
            self.sent += 1;
        }

        fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<Result<Vec<u8>, Ended>> {
            match self.incoming.checked_sub(1) {
                _ if self.broken => Poll::Ready(Err(Ended)),
                Some(left) => {
                    self.incoming = left;
                    Poll::Ready(Ok(Vec::new()))
                }
                None => Poll::Pending,
            }
        }
    }

    fn driver() -> (Arc<Queues>, Driver<Fake>) {
        let queues = Arc::new(Queues::new(Dropped::default()));
        let lane = Arc::<Lane>::default();
        lane.belong_to(Some(&queues));
        queues.support(true);
        queues.send_over(Some(lane.clone()));
        (queues, Driver::new(lane, false))
    }

    fn poll(driver: &mut Driver<Fake>) -> bool {
        driver.poll(&mut Context::from_waker(&noop_waker()))
    }

    #[test]
    fn a_carrier_is_opened_for_the_first_datagram_and_taken_from_the_peer() {
        let (queues, mut lane) = driver();
        assert!(!poll(&mut lane));
        queues.send(b"x").unwrap();
        assert!(poll(&mut lane) && !poll(&mut lane), "one at a time");
        lane.opened(Some(Fake::default()));
        assert!(!poll(&mut lane));
        assert_eq!(lane.own.as_ref().unwrap().sent, 1);

        let (queues, mut lane) = driver();
        lane.accept(Fake::default());
        queues.send(b"x").unwrap();
        assert!(!poll(&mut lane));
        assert_eq!(lane.peers.unwrap().sent, 1);
    }

    #[test]
    fn a_flood_leaves_turns_to_others() {
        let (_queues, mut lane) = driver();
        let incoming = 3 * BUDGET + 1;
        lane.accept(Fake {
            incoming,
            ..Fake::default()
        });
        for turn in 1..=3 {
            poll(&mut lane);
            let left = lane.peers.as_ref().unwrap().incoming;
            assert_eq!(left, incoming - turn * BUDGET);
        }
    }

    #[test]
    fn a_peer_that_ends_every_carrier_is_given_up() {
        let (queues, mut lane) = driver();
        queues.send(b"x").unwrap();
        for _ in 0..OPENINGS {
            assert!(poll(&mut lane));
            lane.opened(Some(Fake {
                broken: true,
                ..Fake::default()
            }));
        }
        assert!(!poll(&mut lane) && lane.own.is_none());
    }
}
