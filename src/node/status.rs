//! Whether others can reach us, told when it changes.

use tokio::sync::watch;

use super::engine::Node;
use crate::{
    backend::transports::LISTENS,
    report::NatReport,
    status::{Reachability, Status},
    ticket::Ticket,
};

/// What was told last.
pub(super) struct Told {
    sender: watch::Sender<Status>,
    /// See [`Status::news`].
    news: String,
    /// Whether something has happened since that may be news.
    pub(super) is_old: bool,
}

impl Told {
    pub(super) fn new(ticket: Ticket) -> (Self, watch::Receiver<Status>) {
        let (sender, receiver) = watch::channel(Status {
            state: Reachability::Connecting,
            reason: None,
            ticket,
            relays: Vec::new(),
            nat: NatReport::default(),
            listening: Vec::new(),
            confirmed: Vec::new(),
        });
        let told = Self {
            sender,
            news: String::new(),
            is_old: true,
        };
        (told, receiver)
    }
}

impl Node {
    /// Tells the status if there is news. It does so between two inputs, so that nobody sees half of
    /// a change.
    pub(super) fn tell_status(&mut self) {
        if std::mem::take(&mut self.status.is_old) {
            let mut now = self.status_now();
            let news = now.news();
            let is_news = self.status.news != news;
            self.status.news = news;
            self.status.sender.send_if_modified(|told| {
                *told = now;
                is_news
            });
        }
    }

    fn status_now(&self) -> Status {
        let (state, reason) = self.reachability();
        let report = self.report();
        Status {
            state,
            reason,
            ticket: self.shared.ticket(),
            relays: report.relays,
            nat: report.nat,
            listening: report.listening,
            confirmed: report.confirmed,
        }
    }

    fn reachability(&self) -> (Reachability, Option<String>) {
        use Reachability::{Connecting, Reachable, Unreachable};
        let because = |why: &str| Some(why.to_owned());
        if self.relays.held() > 0 || !self.own.confirmed().is_empty() {
            return (Reachable, None);
        }
        match (self.config.relays.is_empty(), self.config.reserve) {
            (true, _) if LISTENS && !self.own.direct().is_empty() => {
                let why =
                    "there is no relay, so only peers reach this one that can dial its addresses";
                (Reachable, because(why))
            }
            (true, _) => (Unreachable, because("there is no relay; configure one")),
            (false, false) => (Unreachable, because("reserve is false")),
            (false, true) if self.relays.all_failed() => (Unreachable, Some(self.no_relay())),
            (false, true) => {
                let errors = self.relays.errors();
                (Connecting, (!errors.is_empty()).then(|| errors.join("; ")))
            }
        }
    }

    /// Says why no relay holds a reservation.
    pub(super) fn no_relay(&self) -> String {
        let mut message = "no relay granted a reservation".to_owned();
        for error in self.relays.errors() {
            message.push_str("; ");
            message.push_str(&error);
        }
        message
    }
}
