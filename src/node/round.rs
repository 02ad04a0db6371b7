//! The arguments that a session's methods get from the event loop.

use std::time::Duration;

use futures::channel::mpsc as futures_mpsc;
use tokio::sync::{broadcast, mpsc};
use web_time::Instant;

use super::{
    Command,
    effect::{Effect, Effects},
    engine::Internal,
    relays::{Relays, Spares},
    timers::Timer,
};
use crate::{
    Config, backend::trace::Entered, connection::Connection, core::plan::Rules,
    event::ConnectorEvent, metrics::Metrics, offer::Sealer, stream::PumpEvent,
};

/// The sending ends of the channels between the loop, its handles, pumps and tasks.
pub(super) struct Outbox {
    /// New handles get a clone. The sender is weak, so that the loop ends when all handles are
    /// gone.
    pub(super) commands: mpsc::WeakSender<Command>,
    pub(super) incoming: mpsc::Sender<Connection>,
    pub(super) pumps: futures_mpsc::Sender<PumpEvent>,
    pub(super) internal: mpsc::Sender<Internal>,
    pub(super) events: broadcast::Sender<ConnectorEvent>,
}

/// The knowledge of a session's methods about everything else, and the place for their effects.
pub(super) struct Round<'a> {
    pub(super) now: Instant,
    pub(super) config: &'a Config,
    pub(super) rules: &'a Rules,
    pub(super) metrics: &'a Metrics,
    pub(super) outbox: &'a Outbox,
    pub(super) relays: &'a Relays,
    pub(super) spares: &'a mut Spares,
    /// Seals offers. It is `None` if the identity's key cannot do that.
    pub(super) sealer: Option<&'a Sealer>,
    pub(super) effects: &'a mut Effects,
    /// The span of the session whose method runs, for what is logged meanwhile.
    pub(super) entered: Option<Entered>,
    /// Returns a number that is uniform in `0.0..1.0`, for jitter.
    pub(super) random: fn() -> f64,
}

impl Round<'_> {
    pub(super) fn push(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(super) fn after(&mut self, pause: Duration, timer: Timer) {
        self.push(Effect::After(pause, timer));
    }
}

/// Returns a number that is uniform in `0.0..1.0`, for jitter.
pub(crate) fn random() -> f64 {
    let mut bytes = [0; 4];
    // If there is no randomness, the result is 0. Jitter that is missing does no harm.
    let _ = getrandom::fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}
