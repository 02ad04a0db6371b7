//! Whether TURN servers do what they are for, asked apart from any connection.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::watch, time};

use super::{Relays, Roots, SUBJECT, Server};
use crate::{
    Config, Error, ErrorKind,
    config::server_url,
    native::{
        gather::Gathered,
        socket::{Addresses, Sockets},
    },
    report::{NatReport, TurnReport},
};

/// After the first address: what a server gives in a second allocation comes within a round trip or
/// two.
const SECOND: Duration = Duration::from_millis(500);

impl Config {
    /// Asks every server of [`turn`](Self::turn) for an address, all at once, and gives the
    /// addresses back: in the order of the configuration, what each gave, or why it did not.
    /// Native only. Takes a few round trips, and up to 15 s where a server does not answer.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] when a server's URL or `turn_ca` is none; [`ErrorKind::Io`]
    /// when no UDP socket can be bound.
    ///
    /// # Cancel safety
    /// Dropping the future gives back what has been allocated.
    ///
    /// # Panics
    /// Outside a Tokio runtime.
    pub async fn check_turn(&self) -> Result<Vec<TurnReport>, Error> {
        super::super::check(self)?;
        let io = |error: std::io::Error| Error::new(ErrorKind::Io, error.to_string());
        let roots = Roots::load(self.turn_ca.as_deref()).map_err(io)?;
        let mut checks = Vec::new();
        for server in &self.turn {
            let server = Server {
                url: server_url("turn", &server.url, |_| true)?,
                username: server.username.clone(),
                credential: server.credential.clone(),
            };
            // Sockets of its own: URLs that lead to the same server do not disturb each other.
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
    let relays = Relays::start(
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
    // It has to be told before the sockets are gone.
    let gone = gathered.wait_for(|now| now.candidates.is_empty());
    let _ = time::timeout(SECOND, gone).await.is_ok();
    report
}
