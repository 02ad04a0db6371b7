//! HTTP: what the server says of itself, the demo page with its `/config.json`, `/metrics`, `/health`
//! and `/ready`.
//!
//! `/health` says whether the server works at all, so that a supervisor restarts one that hangs.
//! `/ready` says whether it takes new peers, so that a load balancer leaves out one that is full or
//! ends. `/metrics` can stand on an address of the operator's own. Then the reason why the server is
//! not ready is told only there. The first port tells both only to whoever asks from this machine.

mod connections;

use std::{
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use axum::{
    Router,
    body::Body,
    extract::{Extension, Path, State},
    http::{HeaderValue, Response, StatusCode, header, request::Parts},
    response::IntoResponse,
    routing::get,
};
use serde::Serialize;

use self::connections::Source;
pub(crate) use self::connections::{ACCEPT_PAUSE, Door, client, is_of_one_connection, serve};
use super::{
    assets,
    descriptors::Descriptors,
    embedded::{self, Files},
    fleet::Fleet,
    heart::Heart,
    metrics::Metrics,
    pool::Pools,
    profile::Profiles,
    tls::Tls,
    usage::Usage,
};
use crate::core::profile::{self, Profile};

/// `/config.json`: what the server says of itself, and what only its demo page needs.
#[derive(Serialize)]
struct PageConfig {
    #[serde(flatten)]
    profile: Profile,
    demo: Option<DemoPeer>,
}

/// The peer that a demo page connects to.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct DemoPeer {
    pub(crate) ticket: String,
    pub(crate) peer_id: String,
    /// What a visitor types in a terminal to start the program.
    pub(crate) program: String,
}

/// What the handlers share.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) profiles: Profiles,
    pub(crate) demo: Arc<RwLock<Option<DemoPeer>>>,
    /// The page that is part of the program.
    pub(crate) files: Arc<RwLock<Files>>,
    pub(crate) metrics: Metrics,
    pub(crate) www: Option<Arc<PathBuf>>,
    pub(crate) npm: Option<Arc<PathBuf>>,
    pub(crate) pools: Pools,
    pub(crate) descriptors: Descriptors,
    pub(crate) usage: Usage,
    pub(crate) heart: Heart,
    pub(crate) tls: Option<Tls>,
    /// The servers that are one with this one, if there are any.
    pub(super) fleet: Option<Fleet>,
}

impl Site {
    /// Why no more peers can be taken, in a word; none where they can.
    fn unready(&self) -> Option<&'static str> {
        let Pools {
            handshakes,
            connections,
            reservations,
            quic,
            ..
        } = &self.pools;
        [
            (self.pools.settings.is_draining(), "draining"),
            (handshakes.is_full(), "handshakes"),
            (quic.is_full(), "quic_handshakes"),
            (connections.is_full(), "connections"),
            (reservations.is_full(), "reservations"),
            (self.descriptors.are_short(), "descriptors"),
        ]
        .into_iter()
        .find_map(|(unready, why)| unready.then_some(why))
    }

    fn files(&self) -> Files {
        *self.files.read().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who gets the operator's part: the metrics, and why the server is not ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operators {
    /// Everybody.
    Here,
    /// Whoever asks from this machine.
    Nearby,
    /// Nobody, because the operator has an address for it.
    Elsewhere,
}

/// What everybody gets.
pub(crate) fn public(site: Site, operators: Operators) -> Router {
    let pages = Router::new()
        .route(profile::PATH, get(well_known))
        .route("/config.json", get(config))
        .route("/npm/{*path}", get(npm))
        .route("/", get(index))
        .route("/{*path}", get(www));
    let pages = match operators {
        Operators::Here => pages.merge(self::operators()),
        Operators::Nearby => pages
            .route("/health", get(health))
            .route("/ready", get(ready_nearby))
            .route("/metrics", get(metrics_nearby)),
        Operators::Elsewhere => pages
            .route("/health", get(health))
            .route("/ready", get(ready_for_all)),
    };
    pages.with_state(site)
}

/// What the operator gets at an address of their own.
pub(crate) fn admin(site: Site) -> Router {
    operators().with_state(site)
}

fn operators() -> Router<Site> {
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
}

/// Counts a response and sets the headers that every one has.
fn finish(metrics: &Metrics, mut response: Response<Body>) -> Response<Body> {
    metrics.http(match response.status().as_u16() {
        200..=399 => "ok",
        400..=499 => "client_error",
        _ => "server_error",
    });
    let headers = response.headers_mut();
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    // A page's address may carry a ticket.
    headers.insert(
        header::REFERRER_POLICY,
        HeaderValue::from_static("no-referrer"),
    );
    response
}

/// How often the relay's loop comes round says whether the server works.
async fn health(State(site): State<Site>) -> (StatusCode, String) {
    if !site.heart.beats(Instant::now()) {
        return (StatusCode::SERVICE_UNAVAILABLE, "hangs\n".into());
    }
    // The server goes on without the record and the fleet, and with the old certificate.
    let faults = [
        (site.usage.fault().is_some(), "usage is not written"),
        (
            site.tls.is_some_and(|tls| tls.is_stale()),
            "the certificate is not renewed",
        ),
        (
            site.fleet.is_some_and(|fleet| fleet.is_cut_off()),
            "the fleet is out of reach",
        ),
    ];
    let faults = faults
        .into_iter()
        .filter_map(|(is, fault)| is.then_some(fault));
    let faults: Vec<_> = faults.collect();
    let text = match faults.is_empty() {
        true => "ok\n".to_owned(),
        false => format!("ok, but {}\n", faults.join(", and ")),
    };
    (StatusCode::OK, text)
}

async fn ready(State(site): State<Site>) -> (StatusCode, String) {
    match site.unready() {
        None => (StatusCode::OK, "ok\n".into()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("unready: {why}\n")),
    }
}

/// A stranger need not learn which pool to go on filling.
async fn ready_for_all(State(site): State<Site>) -> (StatusCode, &'static str) {
    match site.unready() {
        None => (StatusCode::OK, "ok\n"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "unready\n"),
    }
}

async fn ready_nearby(
    site: State<Site>,
    Extension(Source(ip)): Extension<Source>,
) -> (StatusCode, String) {
    if ip.is_loopback() {
        return ready(site).await;
    }
    let (status, text) = ready_for_all(site).await;
    (status, text.into())
}

async fn metrics_nearby(
    site: State<Site>,
    Extension(Source(ip)): Extension<Source>,
) -> Response<Body> {
    match ip.is_loopback() {
        true => metrics(site).await,
        false => assets::status(StatusCode::NOT_FOUND),
    }
}

async fn metrics(State(site): State<Site>) -> Response<Body> {
    match site.metrics.encode() {
        Ok(text) => open_metrics(text),
        Err(_) => assets::status(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// What `text` gives, at `/metrics` and nothing else.
pub(crate) fn metrics_of(text: impl Fn() -> String + Clone + Send + Sync + 'static) -> Router {
    Router::new().route("/metrics", get(move || async move { open_metrics(text()) }))
}

fn open_metrics(text: String) -> Response<Body> {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

async fn well_known(
    State(site): State<Site>,
    Extension(Source(ip)): Extension<Source>,
) -> Response<Body> {
    let profile = site.profiles.of_visitor(ip);
    let age = profile.max_age;
    // Credentials are for one visitor.
    let is_secret = profile.turn.iter().any(|turn| !turn.credential.is_empty());
    let whose = if is_secret { "private" } else { "public" };
    json(&profile, &format!("{whose}, max-age={age}"))
}

async fn config(
    State(site): State<Site>,
    Extension(Source(ip)): Extension<Source>,
) -> Response<Body> {
    let demo = site.demo.read().unwrap_or_else(PoisonError::into_inner);
    let config = PageConfig {
        profile: site.profiles.of_visitor(ip),
        demo: demo.clone(),
    };
    json(&config, "no-cache")
}

fn json(value: &impl Serialize, caching: &str) -> Response<Body> {
    match serde_json::to_string(value) {
        Ok(json) => (
            [
                (header::CONTENT_TYPE, "application/json"),
                (header::CACHE_CONTROL, caching),
                // For everybody; a page of another origin may use this relay too.
                (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
            ],
            json,
        )
            .into_response(),
        Err(_) => assets::status(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

async fn index(State(site): State<Site>, request: Parts) -> Response<Body> {
    match &site.www {
        Some(www) => assets::file(www, "", &request).await,
        None if !site.files().is_empty() => embedded::file(site.files(), "", &request),
        None => (
            [(header::CONTENT_TYPE, "text/html; charset=utf-8")],
            built_in_page(&site.profiles.public()),
        )
            .into_response(),
    }
}

async fn www(State(site): State<Site>, Path(path): Path<String>, request: Parts) -> Response<Body> {
    match &site.www {
        Some(www) => assets::file(www, &path, &request).await,
        None => embedded::file(site.files(), &path, &request),
    }
}

/// The npm package's loader and wasm, as a visitor of a package mirror would load them.
async fn npm(State(site): State<Site>, Path(path): Path<String>, request: Parts) -> Response<Body> {
    let published = ["dist/", "pkg/"]
        .iter()
        .any(|folder| path.starts_with(folder));
    match &site.npm {
        Some(npm) if published => assets::file(npm, &path, &request).await,
        None => embedded::file(site.files(), &format!("npm/{path}"), &request),
        _ => assets::status(StatusCode::NOT_FOUND),
    }
}

/// Nothing in it comes from the network, and addresses have no character that HTML minds.
fn built_in_page(profile: &Profile) -> String {
    let items: String = profile
        .addresses
        .iter()
        .chain(&profile.stun)
        .map(|address| format!("<li><code>{address}</code></li>"))
        .collect();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Throughline relay</title>\
         <h1>Throughline relay</h1><p>Peer <code>{}</code></p><ul>{items}</ul>\
         <p><a href=\"{}\">All of it</a></p></html>",
        profile.peer_id,
        profile::PATH
    )
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::sync::watch;

    use super::*;
    use crate::{
        core::quota::Holder,
        server::{config::ServerConfig, fleet::Sisters, settings::Settings},
    };

    #[tokio::test]
    async fn readiness_says_which_pool_is_full_to_the_operator() {
        let mut config = ServerConfig::default();
        config.relay.reservations = 1.try_into().unwrap();
        let metrics = Metrics::new(&config);
        let (changes, settings) = Settings::new(config);
        let pools = Pools::new(&settings, &metrics);
        let site = Site {
            profiles: Profiles {
                peer: libp2p::PeerId::random(),
                addresses: watch::channel(Vec::new()).1,
                stun: Vec::new(),
                turn: None,
                protocols: Vec::new(),
                settings: pools.settings.clone(),
                sisters: Sisters::default(),
            },
            demo: Arc::default(),
            files: Arc::default(),
            metrics,
            www: None,
            npm: None,
            pools: pools.clone(),
            descriptors: Descriptors::unlimited(),
            usage: Usage::default(),
            heart: Heart::new(Instant::now()),
            tls: None,
            fleet: None,
        };
        let told = async |site: &Site| {
            (
                ready(State(site.clone())).await,
                ready_for_all(State(site.clone())).await,
            )
        };
        let (operator, anybody) = told(&site).await;
        assert_eq!(operator, (StatusCode::OK, "ok\n".into()));
        assert_eq!(anybody, (StatusCode::OK, "ok\n"));
        let ip = IpAddr::from([192, 0, 2, 1]);
        let place = pools.reservations.take(ip).unwrap();
        let (operator, anybody) = told(&site).await;
        let unready = StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(operator, (unready, "unready: reservations\n".into()));
        assert_eq!(anybody, (unready, "unready\n"));
        drop(place);
        let places: Vec<_> =
            std::iter::from_fn(|| pools.quic.proven().try_take(Holder::default()).ok()).collect();
        assert_eq!(told(&site).await.0.1, "unready: quic_handshakes\n");
        drop(places);
        let short = std::io::Error::from_raw_os_error(24);
        site.descriptors.failed("http", &short);
        assert_eq!(told(&site).await.0.1, "unready: descriptors\n");
        changes.drain();
        assert_eq!(told(&site).await.0.1, "unready: draining\n");
        let healthy = health(State(site)).await;
        assert_eq!(healthy, (StatusCode::OK, "ok\n".into()), "whatever is full");
    }
}
