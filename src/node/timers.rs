//! All deadlines, in one queue with one timer. A deadline is never removed before its time. Whoever
//! takes it checks whether it still matters.

use std::{
    collections::BTreeMap,
    task::{Context, Poll},
    time::Duration,
};

use futures::FutureExt as _;
use futures_timer::Delay;
use libp2p::{PeerId, swarm::ConnectionId};
use web_time::Instant;

use super::{
    relays::{ReservationId, SiteId},
    rooms::RoomId,
};
use crate::{
    core::{resume::StreamId, room::Source},
    stream::SessionId,
};

/// The purpose of a deadline.
pub(super) enum Timer {
    Session(SessionId, Deadline),
    /// The liveness of the link to a relay wants to know the time.
    Link(PeerId),
    /// This dial of a relay that was there before has had long enough.
    Unanswered(PeerId, ConnectionId),
    /// A place for a spare circuit is free again.
    Spare,
    /// The pause after the failure of a relay is over.
    RelayRested(PeerId),
    /// A relay has had long enough to grant a reservation.
    ReservationDeadline(PeerId, ReservationId),
    /// It is time to leave a relay that is about to end and has said so over this link.
    Leave(PeerId, ConnectionId),
    /// A site is to be asked again.
    Site(SiteId),
    /// A reservation is to be renewed.
    Renew(PeerId, ReservationId),
    /// The directory of a relay is to be told our record again.
    Record(PeerId),
    /// A relay has had long enough to let us into a room.
    JoinDeadline(RoomId),
    /// A room is to be attended over a relay again.
    Attend(RoomId, PeerId),
    /// Whom only this stream has shown in a room is no longer there.
    Unseen(RoomId, Source),
    OnlineDeadline,
    ShutdownDeadline,
}

/// The purpose of a deadline of a session.
pub(super) enum Deadline {
    /// The race has asked to be told the time.
    Race,
    /// The time for identify to say whether the peer speaks resumable streams is over.
    Identify,
    /// The time for a path to come back is over.
    Resume,
    /// The time for ICE to report the nominated pair of this connection is over.
    Pair(ConnectionId),
    /// The liveness of this connection wants to know the time.
    Probe(ConnectionId),
    /// It is time to check whether anybody still needs the session.
    Idle,
    /// The substream of a stream failed although its path is still up. The stream gets a new one.
    Reattach(StreamId),
}

/// A deadline that may be moved to an earlier time. A timer cannot be taken back, so a timer that
/// was replaced still fires, and is ignored.
#[derive(Default)]
pub(super) struct Alarm(Option<Instant>);

impl Alarm {
    /// Moves the alarm to `at`, unless it is set for an earlier time. Returns the pause until then, for
    /// which a timer is to be started.
    pub(super) fn set(&mut self, at: Option<Instant>, now: Instant) -> Option<Duration> {
        let at = at.filter(|at| self.0.is_none_or(|set| *at < set))?;
        self.0 = Some(at);
        Some(at.saturating_duration_since(now))
    }

    /// Whether the time of the alarm has come. Then it is no longer set.
    pub(super) fn rings(&mut self, now: Instant) -> bool {
        self.0.take_if(|at| *at <= now).is_some()
    }
}

/// A deadline that comes later than this has waited for a process or a page that stood still. No load
/// delays the loop for as long. While a machine sleeps, this clock stands still on most systems.
const STOOD_STILL: Duration = Duration::from_secs(5);

pub(crate) struct Timers<T> {
    queue: BTreeMap<(Instant, u64), T>,
    next: u64,
    delay: Option<(Instant, Delay)>,
    stood_still: bool,
    /// When the caller last learnt of a standstill. All deadlines from before that were late
    /// together.
    told: Option<Instant>,
}

impl<T> Timers<T> {
    pub(crate) fn new() -> Self {
        Self {
            queue: BTreeMap::new(),
            next: 0,
            delay: None,
            stood_still: false,
            told: None,
        }
    }

    /// Whether a deadline came much too late since this was last asked. Then the network may be
    /// another one.
    pub(crate) fn have_stood_still(&mut self) -> bool {
        let stood_still = std::mem::take(&mut self.stood_still);
        if stood_still {
            self.told = Some(Instant::now());
        }
        stood_still
    }

    pub(crate) fn after(&mut self, pause: Duration, what: T) {
        self.queue.insert((Instant::now() + pause, self.next), what);
        self.next += 1;
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<T> {
        loop {
            let Some(entry) = self.queue.first_entry() else {
                self.delay = None;
                return Poll::Pending;
            };
            let due = entry.key().0;
            let now = Instant::now();
            if due <= now {
                let is_news = self.told.is_none_or(|told| told < due);
                self.stood_still |= is_news && due + STOOD_STILL <= now;
                return Poll::Ready(entry.remove());
            }
            match &mut self.delay {
                // A timer that wakes too early costs less than a new one.
                Some((at, delay)) if *at <= due => match delay.poll_unpin(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(()) => self.delay = None,
                },
                _ => self.delay = Some((due, Delay::new(due - now))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[test]
    fn an_alarm_rings_once_at_its_earliest_time() {
        let now = Instant::now();
        let after = |millis| now + Duration::from_millis(millis);
        let mut alarm = Alarm::default();
        assert!(!alarm.rings(now));
        assert_eq!(alarm.set(Some(after(50)), now), Some(after(50) - now));
        assert_eq!(alarm.set(Some(after(10)), now), Some(after(10) - now));
        assert_eq!(alarm.set(Some(after(20)), now), None);
        assert_eq!(alarm.set(None, now), None);
        assert!(!alarm.rings(after(9)) && alarm.rings(after(10)));
        // This is the timer that was replaced.
        assert!(!alarm.rings(after(50)));
    }

    #[test]
    fn a_deadline_that_comes_much_too_late_is_told_once() {
        let mut timers = Timers::new();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        // The last one was late together with the one before it.
        let late = [
            (Duration::from_secs(1), false),
            (STOOD_STILL, true),
            (STOOD_STILL, false),
        ];
        for (late, stood_still) in late {
            timers
                .queue
                .insert((Instant::now() - late, timers.next), ());
            timers.next += 1;
            assert!(timers.poll(&mut cx).is_ready());
            assert_eq!(timers.have_stood_still(), stood_still);
            assert!(!timers.have_stood_still());
        }
    }

    #[test]
    fn deadlines_come_in_their_order() {
        futures::executor::block_on(async {
            let mut timers = Timers::new();
            timers.after(Duration::from_millis(20), "late");
            timers.after(Duration::from_millis(1), "early");
            assert_eq!(poll_fn(|cx| timers.poll(cx)).await, "early");
            timers.after(Duration::ZERO, "now");
            assert_eq!(poll_fn(|cx| timers.poll(cx)).await, "now");
            assert_eq!(poll_fn(|cx| timers.poll(cx)).await, "late");
        });
    }
}
