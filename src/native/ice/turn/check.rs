//! A check whether TURN servers work, apart from any connection.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time};

use super::{Roots, SUBJECT, Server, TurnRelays};
use crate::{
    Config, Error, ErrorKind,
    config::server_url,
    native::{
        ice::gather::Gathered,
        udp::{Addresses, Sockets},
    },
    report::{NatReport, TurnReport},
};

/// How long to wait after the first address for a second one. The second allocation takes a round
/// trip or two.
const SECOND: Duration = Duration::from_millis(500);

impl Config {
    /// Asks every server of [`turn`](Self::turn) for an address, all at once, and then gives the
    /// addresses back. Returns one report for each server, in the order of the configuration. A
    /// report has the addresses that the server gave, or the reason why it gave none. Native only.
    /// This takes a few round trips, and up to 15 s if a server does not answer.
    ///
    /// # Errors
    /// Fails with [`ErrorKind::InvalidConfig`] when the URL of a server or `turn_ca` is invalid,
    /// and with [`ErrorKind::Io`] when no UDP socket can be bound.
    ///
    /// # Cancel safety
    /// Dropping the future gives back the allocated addresses.
    ///
    /// # Panics
    /// Panics outside a Tokio runtime.
    pub async fn check_turn(&self) -> Result<Vec<TurnReport>, Error> {
        crate::native::check(self)?;
        let io = |error: std::io::Error| Error::new(ErrorKind::Io, error.to_string());
        let roots = Roots::load(self.turn_ca.as_deref()).map_err(io)?;
        let mut checks = Vec::new();
        for server in &self.turn {
            let server = Server {
                url: server_url("turn", &server.url, |_| true)?,
                username: server.username.clone(),
                credential: server.credential.clone(),
            };
            // Each check has its own sockets, so URLs that lead to the same server do not disturb
            // each other.
            let sockets = Sockets::bind(Addresses::default()).map_err(io)?;
            checks.push(check(sockets, server, roots.clone()));
        }
        Ok(futures::future::join_all(checks).await)
    }
}

async fn check(sockets: Sockets, server: Server, roots: Roots) -> TurnReport {
    let current = Arc::new(watch::Sender::new(Gathered::default()));
    let nat = Arc::new(watch::Sender::new(NatReport::default()));
    let (mut gathered, mut told) = (current.subscribe(), nat.subscribe());
    let mut report = TurnReport {
        server: server.url.to_string(),
        relayed: Vec::new(),
        took: None,
        error: None,
    };
    let begin = Instant::now();
    let relays = TurnRelays::start(
        &sockets,
        vec![server],
        &roots,
        Duration::ZERO,
        (&current, &nat),
    );
    let hold = relays.hold();
    let given = async {
        let _ = gathered.wait_for(|now| !now.candidates.is_empty()).await;
    };
    let refused = async {
        let told = told.wait_for(|now| !now.hopeless.is_empty()).await.ok()?;
        let why = told.hopeless.first()?.reason.trim_start_matches(SUBJECT);
        Some(why.to_owned())
    };
    tokio::select! {
        () = given => {
            report.took = Some(begin.elapsed());
            let both = gathered.wait_for(|now| now.candidates.len() > 1);
            let _ = time::timeout(SECOND, both).await.is_ok();
            let relayed = &current.borrow().candidates;
            report.relayed = relayed.iter().map(|c| c.addr.to_string()).collect();
        }
        why = refused => report.error = why,
    }
    drop(hold);
    // The server has to be told before the sockets are closed.
    let gone = gathered.wait_for(|now| now.candidates.is_empty());
    let _ = time::timeout(SECOND, gone).await.is_ok();
    report
}
