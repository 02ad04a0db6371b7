//! The state of one lane, which the session, a connection's handler and its muxer share.
//!
//! libp2p gives a muxer nothing to do but streams, and no way to its handler. But its connection
//! task polls the muxer right after the handlers, with the same waker. So the handler leaves the lane
//! in a place of the thread, and the muxer takes it if both were polled for the same task.

use std::{
    cell::RefCell,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Waker},
};

use super::Queues;
use crate::core::{datagram::MAX_LEN, loss::Counts};

thread_local! {
    /// The lane of the connection whose handler was polled last on this thread.
    static OFFERED: RefCell<Option<(Waker, Weak<Lane>)>> = const { RefCell::new(None) };
}

/// Takes the lane that the handler of the same connection has left. The muxer then carries the
/// datagrams, once it has called [`Lane::carry`].
pub(crate) fn claim(cx: &Context<'_>) -> Option<Arc<Lane>> {
    OFFERED.with_borrow_mut(|place| {
        // Wakers that are alike wake the same task, and each connection has its own.
        let (_, lane) = place.take_if(|(waker, _)| waker.will_wake(cx.waker()))?;
        let lane = lane.upgrade()?;
        lane.lock().claimed = true;
        Some(lane)
    })
}

/// The lane of one path: one for each libp2p connection.
#[derive(Debug, Default)]
pub(crate) struct Lane(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The session, once it is known. It may be over, or there may never be one.
    session: Option<Weak<Queues>>,
    /// The task of the connection.
    task: Option<Waker>,
    claimed: bool,
    /// The longest datagram that the muxer carries. It is `None` if only a substream can.
    carried: Option<usize>,
    /// The length that the session was told.
    told: Option<usize>,
    /// Counts what the connection sends and loses, if its transport can.
    counter: Option<Counter>,
}

/// Returns the counts of a connection.
struct Counter(Box<dyn Fn() -> Counts + Send>);

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Counter").field(&(self.0)()).finish()
    }
}

impl Lane {
    /// No call leaves the state half changed, so a panic elsewhere does no harm.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says which session's datagrams the lane carries. Until then, the lane takes none from the
    /// peer. With `None`, it drops what the peer sends.
    pub(crate) fn belong_to(&self, session: Option<&Arc<Queues>>) {
        self.lock().session = Some(session.map(Arc::downgrade).unwrap_or_default());
        self.wake();
    }

    /// Wakes the connection's task, which moves the datagrams.
    pub(crate) fn wake(&self) {
        let task = self.lock().task.clone();
        if let Some(task) = task {
            task.wake();
        }
    }

    /// The handler of the connection is polled. Returns whether the session has to be told of the lane,
    /// because it does not know the lane or its [`max_len`](Self::max_len) yet. It counts as told from
    /// now on.
    pub(crate) fn polled(self: &Arc<Self>, cx: &Context<'_>) -> bool {
        let mut state = self.lock();
        match &mut state.task {
            Some(task) => task.clone_from(cx.waker()),
            None => state.task = Some(cx.waker().clone()),
        }
        if !state.claimed {
            let offered = (cx.waker().clone(), Arc::downgrade(self));
            OFFERED.with_borrow_mut(|place| *place = Some(offered));
        }
        let len = Some(state.max_len());
        std::mem::replace(&mut state.told, len) != len
    }

    /// Says that the muxer carries datagrams of up to `max_len` bytes.
    pub(crate) fn carry(&self, max_len: usize) {
        let mut state = self.lock();
        if state.carried.replace(max_len) != Some(max_len)
            && let Some(task) = state.task.clone()
        {
            drop(state);
            // The handler tells the session.
            task.wake();
        }
    }

    /// Says how the packets of the connection are counted.
    #[allow(dead_code, reason = "a browser counts no packets")]
    pub(crate) fn counted_by(&self, counts: impl Fn() -> Counts + Send + 'static) {
        self.lock().counter = Some(Counter(Box::new(counts)));
    }

    /// Returns what the connection has sent and lost so far, if that is known.
    pub(crate) fn counts(&self) -> Option<Counts> {
        let state = self.lock();
        state.counter.as_ref().map(|counter| (counter.0)())
    }

    /// Returns the length of the longest datagram that the lane carries.
    pub(crate) fn max_len(&self) -> usize {
        self.lock().max_len()
    }

    /// Whether it is known whose datagrams the lane carries.
    pub(super) fn is_known(&self) -> bool {
        self.lock().session.is_some()
    }

    /// Takes the next datagram to send. Either the muxer or a substream gets it.
    pub(super) fn next(&self, muxer: bool) -> Option<Vec<u8>> {
        self.sender(muxer)?.next(self)
    }

    /// Whether a datagram waits for the muxer, or for a substream.
    pub(super) fn is_wanted(&self, muxer: bool) -> bool {
        self.sender(muxer)
            .is_some_and(|queues| queues.waits_for(self))
    }

    fn sender(&self, muxer: bool) -> Option<Arc<Queues>> {
        let state = self.lock();
        let session = state
            .session
            .as_ref()
            .filter(|_| state.carried.is_some() == muxer);
        session?.upgrade()
    }

    pub(super) fn receives(&self, datagram: Vec<u8>) {
        let session = self.lock().session.clone();
        if let Some(queues) = session.and_then(|session| session.upgrade()) {
            queues.receives(datagram);
        }
    }
}

impl State {
    fn max_len(&self) -> usize {
        self.carried.unwrap_or(MAX_LEN)
    }
}

#[cfg(test)]
mod tests {
    use futures::task::{ArcWake, waker};

    use super::*;
    use crate::{error::ErrorKind, metrics::Dropped};

    struct Task;

    impl ArcWake for Task {
        fn wake_by_ref(_: &Arc<Self>) {}
    }

    #[test]
    fn a_muxer_gets_the_lane_of_its_own_connection() {
        let (one, other) = (waker(Arc::new(Task)), waker(Arc::new(Task)));
        let (mut first, mut second) = (Context::from_waker(&one), Context::from_waker(&other));
        let (first, second) = (&mut first, &mut second);
        let lanes = [Arc::<Lane>::default(), Arc::default()];
        assert!(claim(first).is_none());
        assert!(lanes[0].polled(first) && !lanes[0].polled(first));
        assert!(claim(second).is_none(), "another task's");
        // The other handlers kept the muxer of the first connection waiting.
        lanes[1].polled(second);
        assert!(claim(first).is_none(), "the second lane took the place");
        assert!(Arc::ptr_eq(&claim(second).unwrap(), &lanes[1]));
        lanes[0].polled(first);
        assert!(Arc::ptr_eq(&claim(first).unwrap(), &lanes[0]));
        lanes[0].polled(first);
        assert!(claim(first).is_none(), "it is offered until it is taken");
    }

    /// A lane of a session whose peer takes datagrams.
    fn session() -> (Arc<Queues>, Arc<Lane>) {
        let queues = Arc::new(Queues::new(Dropped::default()));
        let lane = Arc::new(Lane::default());
        lane.belong_to(Some(&queues));
        queues.support(true);
        queues.send_over(Some(lane.clone()));
        (queues, lane)
    }

    #[test]
    fn either_the_muxer_or_a_substream_sends() {
        let (queues, lane) = session();
        queues.send(b"1").unwrap();
        assert!(lane.is_wanted(false) && !lane.is_wanted(true));
        assert_eq!(lane.next(true), None);
        lane.carry(1300);
        assert!(lane.is_wanted(true) && !lane.is_wanted(false));
        assert_eq!(lane.next(false), None);
        assert_eq!(lane.next(true).as_deref(), Some(&b"1"[..]));
        queues.send(&[0; 1300]).unwrap();
        let error = queues.send(&[0; 1301]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::LimitExceeded);
    }

    #[test]
    fn another_path_sends_what_waits_if_it_carries_that_much() {
        let (queues, lane) = session();
        lane.carry(1300);
        queues.send(b"1").unwrap();
        queues.send(&[0; 1300]).unwrap();
        queues.send(b"2").unwrap();
        let circuit = Arc::new(Lane::default());
        circuit.belong_to(Some(&queues));
        queues.send_over(Some(circuit.clone()));
        assert_eq!(lane.next(true), None, "the path is not in use");
        assert_eq!(circuit.next(false).as_deref(), Some(&b"1"[..]));
        assert_eq!(circuit.next(false).as_deref(), Some(&b"2"[..]));
    }

    #[test]
    fn nothing_is_sent_to_a_peer_that_may_not_take_it() {
        let queues = Arc::new(Queues::new(Dropped::default()));
        let lane = Arc::new(Lane::default());
        lane.belong_to(Some(&queues));
        queues.send_over(Some(lane.clone()));
        queues.send(b"early").unwrap();
        assert!(!lane.is_wanted(false), "it is not known yet");
        queues.support(false);
        assert!(!lane.is_wanted(false));
        let error = queues.send(b"late").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        queues.close(ErrorKind::ConnectionLost);
        let error = queues.send(b"later").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionLost);
    }

    #[tokio::test]
    async fn readers_share_what_arrives_until_the_end() {
        let (queues, lane) = session();
        let reader = || async { queues.receive().await };
        let mut all = futures::future::join3(reader(), reader(), async {
            lane.receives(b"1".to_vec());
            lane.receives(b"2".to_vec());
        })
        .await;
        all.0.as_mut().unwrap().append(all.1.as_mut().unwrap());
        assert_eq!(all.0.unwrap().len(), 2);
        lane.receives(b"3".to_vec());
        queues.close(ErrorKind::ConnectionClosed);
        lane.receives(b"4".to_vec());
        assert_eq!(reader().await.as_deref(), Some(&b"3"[..]));
        assert_eq!((reader().await, reader().await), (None, None));
    }

    #[test]
    fn what_nobody_reads_or_sends_is_bounded_and_counted() {
        use crate::{core::datagram::MAX_WAITING, metrics::Metrics};
        let metrics = Metrics::new();
        let queues = Arc::new(Queues::new(metrics.dropped.clone()));
        let lane = Arc::new(Lane::default());
        lane.belong_to(Some(&queues));
        for n in 0..MAX_WAITING as u32 + 7 {
            lane.receives(n.to_be_bytes().to_vec());
            queues.send(b"x").unwrap();
            queues.send(b"y").unwrap();
        }
        let text = metrics.encode();
        let name = "throughline_datagrams_dropped_total";
        for (direction, dropped) in [("received", 7), ("sent", MAX_WAITING + 14)] {
            let line = format!("{name}{{direction=\"{direction}\"}} {dropped}");
            assert!(text.contains(&line), "{line} not in\n{text}");
        }
    }
}
