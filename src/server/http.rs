//! HTTP: the demo page, `/config.json` that it reads, `/metrics`, `/health` and `/ready`.
//!
//! `/health` says whether the server works at all, so that a supervisor restarts one that hangs.
//! `/ready` says whether it takes new peers, so that a load balancer leaves out one that is full or
//! ends. `/metrics` can stand on an address of the operator's own. Then the reason why the server is
//! not ready is told only there.

mod connections;

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant, SystemTime},
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
use tokio::sync::watch;

use self::connections::Source;
pub(crate) use self::connections::{ACCEPT_PAUSE, Door, client, is_of_one_connection, serve};
use super::{
    assets,
    descriptors::Descriptors,
    embedded::{self, Files},
    heart::Heart,
    metrics::Metrics,
    pool::Pools,
    turn::Authority,
    usage::Usage,
};

/// `/config.json`: what a page needs to reach others through this server.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PageConfig {
    pub(crate) peer_id: String,
    pub(crate) relays: Vec<String>,
    pub(crate) stun: Vec<String>,
    pub(crate) turn: Vec<PageTurnServer>,
    pub(crate) demo: Option<DemoPeer>,
    /// The page that is part of the program.
    #[serde(skip)]
    pub(crate) files: Files,
}

/// A TURN server as `RTCIceServer` has it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PageTurnServer {
    urls: Arc<Vec<String>>,
    username: String,
    credential: String,
}

/// How long the credentials last that a page gets. It may be open for long before it connects.
const PAGE_CREDENTIALS: Duration = Duration::from_secs(24 * 60 * 60);

/// What pages get credentials from.
#[derive(Clone)]
pub(crate) struct PageTurn {
    pub(crate) urls: Arc<Vec<String>>,
    pub(crate) authority: Arc<Authority>,
}

impl PageTurn {
    /// Fresh credentials for a page at `source`, whose user is always the same: what it holds on the
    /// TURN server counts for one, however often it asks here.
    fn server(&self, source: IpAddr) -> PageTurnServer {
        let id = self.authority.page_user(source);
        let issued = self
            .authority
            .issue(&id, PAGE_CREDENTIALS, SystemTime::now());
        PageTurnServer {
            urls: self.urls.clone(),
            username: issued.username,
            credential: issued.credential,
        }
    }
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
    pub(crate) page: Arc<RwLock<PageConfig>>,
    /// The addresses of the relay.
    pub(crate) relays: watch::Receiver<Vec<String>>,
    pub(crate) turn: Option<PageTurn>,
    pub(crate) metrics: Metrics,
    pub(crate) www: Option<Arc<PathBuf>>,
    pub(crate) npm: Option<Arc<PathBuf>>,
    pub(crate) pools: Pools,
    pub(crate) descriptors: Descriptors,
    pub(crate) usage: Usage,
    pub(crate) heart: Heart,
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
        let page = self.page.read().unwrap_or_else(PoisonError::into_inner);
        page.files
    }

    fn page(&self) -> PageConfig {
        let page = self.page.read().unwrap_or_else(PoisonError::into_inner);
        PageConfig {
            relays: self.relays.borrow().clone(),
            ..page.clone()
        }
    }
}

/// What everybody gets. With an `admin` address the operator's part is left to that.
pub(crate) fn public(site: Site, admin: bool) -> Router {
    let pages = Router::new()
        .route("/config.json", get(config))
        .route("/npm/{*path}", get(npm))
        .route("/", get(index))
        .route("/{*path}", get(www));
    match admin {
        true => pages
            .route("/health", get(health))
            .route("/ready", get(ready_for_all))
            .with_state(site),
        false => pages.merge(operators()).with_state(site),
    }
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
async fn health(State(site): State<Site>) -> (StatusCode, &'static str) {
    match site.heart.beats(Instant::now()) {
        true if site.usage.fault().is_none() => (StatusCode::OK, "ok\n"),
        // The server goes on without the record.
        true => (StatusCode::OK, "ok, but usage is not written\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "hangs\n"),
    }
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

async fn config(
    State(site): State<Site>,
    Extension(Source(ip)): Extension<Source>,
) -> Response<Body> {
    let mut page = site.page();
    page.turn
        .extend(site.turn.as_ref().map(|turn| turn.server(ip)));
    match serde_json::to_string(&page) {
        Ok(json) => (
            [
                (header::CONTENT_TYPE, "application/json"),
                (header::CACHE_CONTROL, "no-cache"),
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
            built_in_page(&site.page()),
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
fn built_in_page(page: &PageConfig) -> String {
    let items: String = page
        .relays
        .iter()
        .chain(&page.stun)
        .map(|address| format!("<li><code>{address}</code></li>"))
        .collect();
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Throughline relay</title>\
         <h1>Throughline relay</h1><p>Peer <code>{}</code></p><ul>{items}</ul>\
         <p><a href=\"/config.json\">config.json</a></p></html>",
        page.peer_id
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        core::quota::Holder,
        server::{config::ServerConfig, settings::Settings},
    };

    #[tokio::test]
    async fn readiness_says_which_pool_is_full_to_the_operator() {
        let mut config = ServerConfig::default();
        config.relay.reservations = 1.try_into().unwrap();
        let metrics = Metrics::new(&config);
        let (changes, settings) = Settings::new(config);
        let pools = Pools::new(&settings, &metrics);
        let site = Site {
            page: Arc::new(RwLock::new(PageConfig {
                peer_id: String::new(),
                relays: Vec::new(),
                stun: Vec::new(),
                turn: Vec::new(),
                demo: None,
                files: &[],
            })),
            relays: watch::channel(Vec::new()).1,
            turn: None,
            metrics,
            www: None,
            npm: None,
            pools: pools.clone(),
            descriptors: Descriptors::unlimited(),
            usage: Usage::default(),
            heart: Heart::new(Instant::now()),
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
        assert_eq!(healthy, (StatusCode::OK, "ok\n"), "whatever is full");
    }
}
