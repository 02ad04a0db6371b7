//! Waiting until other peers can reach us with the ticket.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{effect::Effect, engine::Node, timers::Timer};
use crate::{
    backend::transports::LISTENS,
    error::{Error, ErrorKind},
};

/// How long the operating system may take to tell the first address that we listen on.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(1);

type Reply = oneshot::Sender<Result<(), Error>>;

/// The callers that wait for the ticket.
#[derive(Default)]
pub(super) struct Online {
    waiting: Vec<Reply>,
    /// Whether a part of the ticket has come since [`Online::take_settling`] was last called. The
    /// ticket is complete when libp2p has nothing more to report.
    settling: bool,
}

impl Online {
    /// Notes that a part of the ticket has come. More may follow at once.
    pub(super) fn settle(&mut self) {
        self.settling = true;
    }

    /// Returns whether a part has come since the last call.
    pub(super) fn take_settling(&mut self) -> bool {
        std::mem::take(&mut self.settling)
    }

    fn answer(&mut self, answer: impl Fn() -> Result<(), Error>) {
        for reply in std::mem::take(&mut self.waiting) {
            let _ = reply.send(answer());
        }
    }
}

impl Node {
    pub(super) fn wait_online(&mut self, reply: Reply) {
        if !self.online.settling && self.is_online() {
            self.tell_status();
            let _ = reply.send(Ok(()));
            return;
        }
        self.online.waiting.push(reply);
        if self.is_alone() {
            self.effects
                .push(Effect::After(LISTEN_TIMEOUT, Timer::OnlineDeadline));
        } else if self.relays.all_failed() {
            self.answer_no_relay();
        } else {
            let timeout = self.config.relay_timeout;
            self.effects
                .push(Effect::After(timeout, Timer::OnlineDeadline));
        }
    }

    /// libp2p has reported all that came for the ticket.
    pub(super) fn on_settled(&mut self) {
        self.refresh_ticket();
        if self.is_online() {
            // Whoever is told asks at once.
            self.tell_status();
            self.online.answer(|| Ok(()));
        }
    }

    /// Whether no relay is configured and we listen ourselves, so that the ticket needs no relay.
    pub(super) fn is_alone(&self) -> bool {
        LISTENS && self.config.relays.is_empty()
    }

    /// Whether the ticket has an address that leads to us, and says what the relays can do.
    fn is_online(&self) -> bool {
        self.relays.are_known() || self.is_alone() && !self.own.direct().is_empty()
    }

    pub(super) fn on_online_deadline(&mut self) {
        if self.is_alone() || self.relays.held() > 0 {
            self.tell_status();
            self.online.answer(|| Ok(()));
        } else {
            self.answer_no_relay();
        }
    }

    pub(super) fn answer_no_relay(&mut self) {
        let message = self.no_relay();
        let refusal = self.relays.refusal();
        let kind = refusal.map_or(ErrorKind::NoRelay, |refusal| refusal.kind);
        let ends = refusal.and_then(|refusal| refusal.ends);
        self.online.answer(|| {
            let error = Error::new(kind, message.clone());
            Err(error.with_retry_after(ends))
        });
    }
}
