//! The server behind `throughline serve`. It is a circuit relay v2, a STUN server and a TURN server
//! with HTTP, and native programs and browsers can reach it.
//!
//! A peer behind a NAT keeps a reservation here, and others reach it through a circuit. The circuit
//! carries signalling first, and data as long as no direct path is found. Browsers connect by
//! WebSocket, or by `/webrtc-direct` if the server has no domain and no certificate.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use throughline::server::{Server, ServerConfig};
//!
//! let server = Server::start(ServerConfig::default()).await?;
//! for address in server.addresses() {
//!     println!("{address}");
//! }
//! server.shutdown().await;
//! # Ok(())
//! # }
//! ```

pub(crate) mod access;
mod assets;
mod autonat;
mod bill;
mod certificate;
mod circuits;
mod clients;
mod config;
mod descriptors;
mod directory;
mod embedded;
mod entrance;
mod fairness;
mod fleet;
mod heart;
pub(crate) mod hop;
mod http;
mod listeners;
mod metrics;
mod plan;
mod pool;
mod profile;
mod pump;
mod rate_limiter;
mod relay_rates;
mod reputation;
mod settings;
mod socket;
mod start;
pub(crate) mod stun;
mod swarm;
mod tls;
pub(crate) mod turn;
mod udp;
mod urls;
mod usage;
mod watch;
mod web;

use std::{
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, task::JoinHandle, time};

pub use self::access::{NewToken, TokenKey};
#[cfg(test)]
pub(crate) use self::config::options;
pub use self::config::{
    AccessConfig, AccessMode, AutonatConfig, ConnectionLimits, DEFAULT_PORT, DrainConfig,
    FleetConfig, HTTPS_PORT, HookConfig, HttpConfig, Layout, MAX_PORT, RelayLimits,
    ReputationConfig, ServerConfig, StunConfig, TlsConfig, TrafficConfig, TurnConfig, UsageConfig,
};
use self::{
    access::Access,
    descriptors::Descriptors,
    embedded::Files,
    fleet::Fleet,
    heart::Heart,
    http::{DemoPeer, Door},
    metrics::Metrics,
    pool::Pools,
    settings::{Changes, Settings},
    tls::Tls,
    udp::Service,
    usage::Usage,
};
pub use self::{
    fleet::usage_of_fleet,
    plan::{Bind, Plan},
    reputation::{ScoreSource, Scores},
    turn::{TurnCredentials, turn_secret},
    usage::{Day, DayError, UsageBy, UsageRow, usage},
};
use crate::{
    error::{Error, ErrorKind},
    identity::PeerId,
    native::{inherited, runtime},
    ticket::Ticket,
};

/// How long the last batch of the record of usage may take.
const LAST_BATCH: Duration = Duration::from_secs(5);
/// How long a fleet may take to take in what peers took last.
const LAST_ROWS: Duration = Duration::from_secs(2);

/// The file of the identity in the data directory.
const IDENTITY_FILE: &str = "identity";
/// The file of the `/webrtc-direct` certificate there.
const CERTIFICATE_FILE: &str = "webrtc-direct.pem";
/// How long clients may take to leave a server that drains, if nothing else keeps it.
const LEAVE: Duration = Duration::from_secs(5);
/// How often a server that drains looks whether something is left.
const LOOK: Duration = Duration::from_millis(100);

/// A running server. Dropping it stops it at once. [`shutdown`](Self::shutdown) lets it tell its
/// peers first.
///
/// ```no_run
/// # async fn run() -> Result<(), throughline::Error> {
/// use throughline::server::{Server, ServerConfig};
///
/// let server = Server::start(ServerConfig::default()).await?;
/// println!("relay at {:?}, STUN at {:?}", server.addresses(), server.stun_urls());
/// server.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Server {
    peer_id: PeerId,
    addresses: Vec<String>,
    stun: Vec<String>,
    turn: Vec<String>,
    turn_credentials: Option<TurnCredentials>,
    http: String,
    admin: Option<String>,
    demo: Arc<RwLock<Option<DemoPeer>>>,
    /// The page that is part of the program.
    files: Arc<RwLock<Files>>,
    access: Access,
    metrics: Metrics,
    usage: Usage,
    fleet: Option<Fleet>,
    tls: Option<Tls>,
    /// The addresses that are announced because of the certificate.
    secured: Vec<String>,
    settings: Changes,
    pools: Pools,
    descriptors: Descriptors,
    heart: Heart,
    stop: Option<oneshot::Sender<()>>,
    relay: JoinHandle<()>,
    /// The tasks that accept connections at the first TCP port.
    entrances: Vec<JoinHandle<()>>,
    services: Vec<JoinHandle<()>>,
    /// What handles STUN and TURN over UDP.
    _receivers: Vec<Arc<Service>>,
}

impl Server {
    /// Opens all listeners and starts to serve.
    ///
    /// It must be called within a tokio runtime. It needs no DNS and no default route. It raises
    /// the process's limit of descriptors as far as the system lets it.
    ///
    /// # Errors
    /// - [`ErrorKind::InvalidConfig`] if a setting is out of range or names a folder that does not
    ///   exist.
    /// - [`ErrorKind::InvalidIdentity`] if the identity file cannot be used.
    /// - [`ErrorKind::Io`] if a certificate cannot be used, others can write to the data
    ///   directory, or an address is taken.
    ///
    /// # Cancel safety
    /// Dropping the future closes everything that it opened. Files that it made stay.
    pub async fn start(config: ServerConfig) -> Result<Self, Error> {
        config.validate()?;
        let source = reputation::source(&config)?;
        Self::start_with(config, source).await
    }

    /// Starts as [`start`](Self::start) does, with scores of peers from a source of the program in
    /// the place of [`url`](ReputationConfig::url).
    ///
    /// # Errors
    /// As those of [`start`](Self::start).
    ///
    /// # Cancel safety
    /// As that of [`start`](Self::start).
    pub async fn start_with_scores(
        config: ServerConfig,
        source: Arc<dyn ScoreSource>,
    ) -> Result<Self, Error> {
        config.validate()?;
        Self::start_with(config, Some(source)).await
    }

    /// The peer id of this relay.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// The addresses that were announced at the start, best first. Each ends in `/p2p/` and the peer id.
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// The URLs of the STUN server (RFC 7064): each announced IP address, with the first port and the
    /// [second](StunConfig::alternate_port), if there is one.
    pub fn stun_urls(&self) -> &[String] {
        &self.stun
    }

    /// The URLs of the TURN server (RFC 7065), over UDP and TCP. There are none without a
    /// [secret](TurnConfig::secret).
    pub fn turn_urls(&self) -> &[String] {
        &self.turn
    }

    /// Credentials for the TURN server, which peers may share. They last
    /// [`credential_seconds`](TurnConfig::credential_seconds) from the start of the server.
    pub fn turn_credentials(&self) -> Option<&TurnCredentials> {
        self.turn_credentials.as_ref()
    }

    /// The URL of the page.
    pub fn http_url(&self) -> &str {
        &self.http
    }

    /// The URL of the operator's [own address](HttpConfig::admin), if there is one.
    pub fn admin_url(&self) -> Option<&str> {
        self.admin.as_deref()
    }

    /// Everything that the server counts, in the format of `/metrics`.
    pub fn metrics(&self) -> String {
        // Writing to a string does not fail.
        self.metrics.encode().unwrap_or_default()
    }

    /// Reads the [files of the certificate](TlsConfig::cert) again, for a caller that knows better than
    /// to wait until their change is noticed. Connections that are there keep the old certificate.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the files cannot be used. The old certificate is served on.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the old certificate, until the change of the files is noticed.
    pub async fn reload_certificate(&self) -> Result<(), Error> {
        match &self.tls {
            Some(tls) => tls.reload().await,
            None => Ok(()),
        }
    }

    /// Sets the peer that the demo page connects to, and the command that starts a native peer in a
    /// terminal (`program`). `/config.json` holds both.
    pub fn set_demo_peer(&self, ticket: &Ticket, program: impl Into<String>) {
        let peer = DemoPeer {
            ticket: ticket.to_string(),
            peer_id: ticket.peer_id().to_string(),
            program: program.into(),
        };
        *self.demo.write().unwrap_or_else(PoisonError::into_inner) = Some(peer);
    }

    /// Sets a page that is part of the program. It is served at `/` unless
    /// [`HttpConfig::www`](crate::server::HttpConfig) names a folder. A file has a name below `/`, such as
    /// `index.html` or `npm/dist/index.js`, and its content is compressed by gzip.
    pub fn set_page(&self, files: &'static [(&'static str, &'static [u8])]) {
        *self.files.write().unwrap_or_else(PoisonError::into_inner) = files;
    }

    /// Reads the files of [`AccessConfig`] again. That also happens by itself when they change. Peers
    /// that are no longer admitted are disconnected within two seconds.
    pub fn reload_access(&self) {
        self.access.reload();
    }

    /// Changes the settings while the server runs, and closes no connection for that.
    ///
    /// Whoever holds more than a lowered limit allows keeps it, and gets no more. A
    /// reservation, a circuit or an allocation that has begun keeps its term and its own limits.
    /// Some settings cannot change while the server runs. If such a setting differs, it stays as it
    /// is, and its name is returned. `docs/options.md` says which they are.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), throughline::Error> {
    /// use throughline::server::{Server, ServerConfig};
    ///
    /// let mut config = ServerConfig::default();
    /// let server = Server::start(config.clone()).await?;
    /// config.relay.circuits = 2048.try_into().unwrap();
    /// config.port = 443;
    /// assert_eq!(server.reload(config)?, ["port"]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What [`ServerConfig::validate`] refuses. Nothing changes then.
    pub fn reload(&self, mut config: ServerConfig) -> Result<Vec<&'static str>, Error> {
        config.validate()?;
        config.announce.extend(self.secured.iter().cloned());
        self.descriptors.fit(&mut config);
        let kept = self.settings.take(&config);
        self.metrics.limits(&self.settings.now());
        if let Some(tls) = self.tls.clone() {
            runtime::spawn(async move {
                if let Err(error) = tls.reload().await {
                    tracing::error!(%error, "the old certificate is served on");
                }
            });
        }
        self.access.reload();
        tracing::info!("the settings are read again");
        Ok(kept)
    }

    /// Prepares for the end: takes no new reservations, circuits and allocations, and tells the
    /// clients that understand it to move to other relays. Completes when the server may be shut
    /// down.
    ///
    /// What has begun goes on until it ends by itself, and for
    /// [`seconds`](DrainConfig::seconds) at most. If nothing is left but reservations, their
    /// holders get 5 seconds to move. A server that drains never takes up its work again.
    ///
    /// # Cancel safety
    /// Dropping the future ends the wait, and the server goes on to drain.
    pub async fn drain(&self) {
        let begun = Instant::now();
        let longest = self.longest_drain();
        if longest.is_zero() {
            return;
        }
        tracing::info!("draining");
        self.settings.drain();
        self.metrics.draining();
        let pools = &self.pools;
        let carries = || {
            let carrying = [&pools.circuits, &pools.offers, &pools.allocations];
            carrying.iter().any(|pool| pool.taken() > 0)
        };
        let is_needed =
            |passed: Duration| carries() || pools.reservations.taken() > 0 && passed < LEAVE;
        let mut look = time::interval(LOOK);
        loop {
            look.tick().await;
            let passed = begun.elapsed();
            if passed >= longest || !is_needed(passed) {
                return;
            }
        }
    }

    /// The longest time that [`drain`](Self::drain) may take.
    pub fn longest_drain(&self) -> Duration {
        Duration::from_secs(self.settings.now().drain.seconds)
    }

    /// Whether the server works. A server that does not is best restarted.
    pub fn is_alive(&self) -> bool {
        !self.relay.is_finished() && self.heart.beats(Instant::now())
    }

    /// Closes the listeners and every connection, and writes what is left of the record of
    /// [usage](UsageConfig). This takes one second at most, the time that the disk takes, and in a fleet up to
    /// two seconds until the fleet knows what peers took, and has the rest of all quotas back.
    ///
    /// # Cancel safety
    /// Dropping the future drops the server, which stops it at once.
    pub async fn shutdown(mut self) {
        // Whoever comes now waits for the next server, or is refused, and is not let in for a moment.
        for entrance in &self.entrances {
            entrance.abort();
        }
        if let Some(stop) = self.stop.take() {
            // An error means that the relay has stopped by itself.
            let _ = stop.send(());
        }
        let _ = (&mut self.relay).await;
        if let Some(writer) = self.usage.stop() {
            // Neither a panic of the thread nor a slow disk may keep the server.
            let written = tokio::task::spawn_blocking(|| writer.join());
            let _ = time::timeout(LAST_BATCH, written).await;
        }
        if let Some(fleet) = &self.fleet {
            let told = fleet.tell_last(self.usage.is_kept());
            if time::timeout(LAST_ROWS, told).await.is_err() {
                tracing::warn!(
                    "the fleet hears what peers took last, and of rests of quotas, after a restart"
                );
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.relay.abort();
        for service in self.entrances.iter().chain(&self.services) {
            service.abort();
        }
        self.usage.stop();
    }
}

/// Serves the text that `text` returns at `/metrics` of `listener`, within the bounds of a server's
/// [operator's address](HttpConfig::admin). The program's `--metrics` uses it.
#[doc(hidden)]
pub async fn serve_metrics(
    listener: tokio::net::TcpListener,
    text: impl Fn() -> String + Clone + Send + Sync + 'static,
) {
    let config = ServerConfig::default();
    let metrics = Metrics::new(&config);
    let pools = Pools::new(&Settings::fixed(config), &metrics);
    let door = Door::new(&pools.admin, &pools, &Descriptors::unlimited());
    http::serve(listener, http::metrics_of(text), door).await;
}

/// Takes over the sockets that a service manager has bound for this program (`sd_listen_fds(3)`). The
/// next [`Server`] uses those whose addresses it would bind.
///
/// # Errors
/// [`ErrorKind::Io`] if a descriptor that was passed on is neither a TCP listener nor a UDP socket.
pub fn inherit_sockets() -> Result<(), Error> {
    inherited::take_over().map_err(|error| {
        Error::new(ErrorKind::Io, format!("LISTEN_FDS: {error}")).with_source(error)
    })
}

impl std::fmt::Debug for Pools {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pools").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Descriptors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Descriptors").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}
