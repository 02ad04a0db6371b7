//! Datagrams: messages that may be lost and that wait for nothing.
//!
//! A *lane* carries the datagrams of one path. It meets the session in [`Queues`]: handles put
//! datagrams in, and the lane of the path in use takes them out. What any lane of the session
//! receives goes to the handles. Neither way goes through the event loop, which only says which lane
//! is in use.
//!
//! - `lane`: the state of a lane, which the session, the connection's handler and its muxer share.
//! - `carrier`: whatever moves the bytes of a lane, and how a lane is driven.

mod carrier;
mod lane;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

pub(crate) use self::{
    carrier::{Carrier, Driver, Ended},
    lane::{Lane, claim},
};
use crate::{
    core::datagram::{MAX_LEN, Queue},
    error::{Error, ErrorKind},
    metrics::Dropped,
};

/// The datagrams of one session that wait, in both directions.
#[derive(Debug)]
pub(crate) struct Queues {
    state: Mutex<State>,
    /// Wakes whoever waits for a datagram.
    arrived: Notify,
    dropped: Dropped,
}

#[derive(Debug, Default)]
struct State {
    outgoing: Queue,
    incoming: Queue,
    /// The lane of the path in use.
    lane: Option<Arc<Lane>>,
    /// Whether the peer takes datagrams. It is `None` until that is known.
    supported: Option<bool>,
    closed: Option<ErrorKind>,
}

impl Queues {
    pub(crate) fn new(dropped: Dropped) -> Self {
        Self {
            state: Mutex::default(),
            arrived: Notify::new(),
            dropped,
        }
    }

    /// No call leaves the state half changed, so a panic elsewhere does no harm.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a datagram, in the place of the oldest one if the queue is full.
    pub(crate) fn send(&self, datagram: &[u8]) -> Result<(), Error> {
        let mut state = self.lock();
        if let Some(kind) = state.closed {
            return Err(Error::new(kind, "the connection is closed"));
        }
        if state.supported == Some(false) {
            let kind = ErrorKind::Unsupported;
            return Err(Error::new(kind, "the peer takes no datagrams"));
        }
        let most = state.lane.as_ref().map_or(MAX_LEN, |lane| lane.max_len());
        if datagram.len() > most {
            let length = datagram.len();
            let limit = format!("datagram: it has {length} bytes, and the path carries {most}");
            return Err(Error::new(ErrorKind::LimitExceeded, limit));
        }
        if state.outgoing.push(datagram.to_vec()) {
            self.dropped.sent();
        }
        let lane = state.lane.clone();
        drop(state);
        if let Some(lane) = lane {
            lane.wake();
        }
        Ok(())
    }

    /// Waits for the next datagram. Returns `None` once the connection is closed.
    pub(crate) async fn receive(&self) -> Option<Vec<u8>> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut state = self.lock();
                if let Some(datagram) = state.incoming.pop() {
                    // Another reader may have been woken for a datagram that is still there.
                    if !state.incoming.is_empty() {
                        self.arrived.notify_one();
                    }
                    return Some(datagram);
                }
                if state.closed.is_some() {
                    self.arrived.notify_one();
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// Sends over `lane` from now on.
    pub(crate) fn send_over(&self, lane: Option<Arc<Lane>>) {
        let mut state = self.lock();
        let address = |lane: &Option<Arc<Lane>>| lane.as_ref().map(Arc::as_ptr);
        if address(&state.lane) != address(&lane) && state.closed.is_none() {
            state.lane = lane.clone();
            drop(state);
            if let Some(lane) = lane {
                lane.wake();
            }
        }
    }

    /// Notes whether the peer takes datagrams.
    pub(crate) fn support(&self, supported: bool) {
        let mut state = self.lock();
        state.supported = Some(supported);
        if !supported {
            state.outgoing.clear();
        }
        let lane = state.lane.clone();
        drop(state);
        if let Some(lane) = lane {
            lane.wake();
        }
    }

    /// Whether the peer may take datagrams, as far as it is known.
    pub(crate) fn may_be_supported(&self) -> bool {
        self.lock().supported != Some(false)
    }

    /// Ends sending, and receiving when everything is read.
    pub(crate) fn close(&self, kind: ErrorKind) {
        let mut state = self.lock();
        state.closed.get_or_insert(kind);
        state.outgoing.clear();
        state.lane = None;
        drop(state);
        self.arrived.notify_one();
    }

    /// Takes the next datagram to send, if `lane` is in use.
    fn next(&self, lane: &Lane) -> Option<Vec<u8>> {
        let mut state = self.lock();
        while state.is_used(lane)
            && let Some(datagram) = state.outgoing.pop()
        {
            if datagram.len() <= lane.max_len() {
                return Some(datagram);
            }
            // It was queued for a path that carried more.
            self.dropped.sent();
        }
        None
    }

    /// Whether a datagram waits for `lane`.
    fn waits_for(&self, lane: &Lane) -> bool {
        let state = self.lock();
        state.is_used(lane) && !state.outgoing.is_empty()
    }

    fn receives(&self, datagram: Vec<u8>) {
        let mut state = self.lock();
        if state.closed.is_none() {
            if state.incoming.push(datagram) {
                self.dropped.received();
            }
            drop(state);
            self.arrived.notify_one();
        }
    }
}

impl State {
    /// Whether `lane` is that of the path in use, and the peer is known to take datagrams. A stock
    /// peer would take a data channel for a stream.
    fn is_used(&self, lane: &Lane) -> bool {
        let used = self.lane.as_deref().map(std::ptr::from_ref);
        self.supported == Some(true) && used == Some(std::ptr::from_ref(lane))
    }
}
