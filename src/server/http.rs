//! HTTP: the demo page, `/config.json` that it reads, `/metrics` and `/health`.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock},
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Path, State, connect_info::Connected},
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep},
};

use super::{assets, metrics::Metrics, turn::Authority};

/// A connection on which nothing is read or written for this long is closed, so that those who
/// send nothing cannot keep the others out.
const IDLE: Duration = Duration::from_secs(30);

/// `/config.json`: what a page needs to reach others through this server.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct PageConfig {
    pub(crate) peer_id: String,
    pub(crate) relays: Vec<String>,
    pub(crate) stun: Vec<String>,
    pub(crate) turn: Vec<PageTurnServer>,
    pub(crate) demo: Option<DemoPeer>,
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
    pub(crate) turn: Option<PageTurn>,
    pub(crate) metrics: Metrics,
    pub(crate) www: Option<Arc<PathBuf>>,
    pub(crate) npm: Option<Arc<PathBuf>>,
}

impl Site {
    fn page(&self) -> PageConfig {
        self.page
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Serves `site` on `listener` until the future is dropped.
pub(crate) async fn serve(listener: TcpListener, site: Site, max_connections: usize) {
    let listener = BoundedListener {
        listener,
        permits: Arc::new(Semaphore::new(max_connections)),
    };
    // Returns only on an error of the listener, and then there is nothing left to serve.
    let service = router(site).into_make_service_with_connect_info::<Source>();
    if let Err(error) = axum::serve(listener, service).await {
        tracing::error!(%error, "HTTP");
    }
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
struct Source(IpAddr);

impl Connected<axum::serve::IncomingStream<'_, BoundedListener>> for Source {
    fn connect_info(stream: axum::serve::IncomingStream<'_, BoundedListener>) -> Self {
        Self(stream.remote_addr().ip())
    }
}

fn router(site: Site) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/config.json", get(config))
        .route("/npm/{*path}", get(npm))
        .route("/", get(index))
        .route("/{*path}", get(www))
        .layer(axum::middleware::map_response_with_state(
            site.clone(),
            finish,
        ))
        .with_state(site)
}

/// Counts the response and sets the headers that every one has.
async fn finish(State(site): State<Site>, mut response: Response<Body>) -> Response<Body> {
    site.metrics.http(match response.status().as_u16() {
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

async fn health() -> &'static str {
    "ok\n"
}

async fn metrics(State(site): State<Site>) -> Response<Body> {
    match site.metrics.encode() {
        Ok(text) => (
            [(
                header::CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        )
            .into_response(),
        Err(_) => assets::status(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

async fn config(
    State(site): State<Site>,
    ConnectInfo(Source(ip)): ConnectInfo<Source>,
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

async fn index(State(site): State<Site>) -> Response<Body> {
    match &site.www {
        Some(www) => assets::file(www, "").await,
        None => (
            [(header::CONTENT_TYPE, "text/html; charset=utf-8")],
            built_in_page(&site.page()),
        )
            .into_response(),
    }
}

async fn www(State(site): State<Site>, Path(path): Path<String>) -> Response<Body> {
    match &site.www {
        Some(www) => assets::file(www, &path).await,
        None => assets::status(StatusCode::NOT_FOUND),
    }
}

/// The npm package's loader and wasm, as a visitor of a package mirror would load them.
async fn npm(State(site): State<Site>, Path(path): Path<String>) -> Response<Body> {
    let published = ["dist/", "pkg/"]
        .iter()
        .any(|folder| path.starts_with(folder));
    match &site.npm {
        Some(npm) if published => assets::file(npm, &path).await,
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
         <p><a href=\"/metrics\">metrics</a> · <a href=\"/config.json\">config.json</a></p></html>",
        page.peer_id
    )
}

/// Accepts no more connections than there are permits; the others wait in the kernel.
struct BoundedListener {
    listener: TcpListener,
    permits: Arc<Semaphore>,
}

impl axum::serve::Listener for BoundedListener {
    type Io = BoundedStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (BoundedStream, SocketAddr) {
        // The semaphore is never closed; without a permit the bound would be gone.
        let permit = match Arc::clone(&self.permits).acquire_owned().await {
            Ok(permit) => permit,
            Err(_) => std::future::pending().await,
        };
        let (stream, address) = axum::serve::Listener::accept(&mut self.listener).await;
        (BoundedStream::new(stream, permit, IDLE), address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that ends when it is idle, and gives its permit back when it is dropped.
struct BoundedStream {
    stream: TcpStream,
    idle: Duration,
    deadline: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl BoundedStream {
    fn new(stream: TcpStream, permit: OwnedSemaphorePermit, idle: Duration) -> Self {
        Self {
            stream,
            idle,
            deadline: Box::pin(sleep(idle)),
            _permit: permit,
        }
    }

    /// What `poll` gives, or an error once nothing has moved for too long.
    fn unless_idle<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if let Poll::Ready(result) = poll(Pin::new(&mut self.stream), cx) {
            let deadline = Instant::now() + self.idle;
            self.deadline.as_mut().reset(deadline);
            return Poll::Ready(result);
        }
        ready!(self.deadline.as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for BoundedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.unless_idle(cx, |stream, cx| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for BoundedStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.unless_idle(cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn a_silent_connection_ends_and_frees_its_place() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let permits = Arc::new(Semaphore::new(1));
        let permit = Arc::clone(&permits).acquire_owned().await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BoundedStream::new(stream, permit, Duration::from_millis(100));
        client.write_all(b"a").await.unwrap();
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        let error = stream.read_exact(&mut byte).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(permits.available_permits(), 0);
        drop(stream);
        assert_eq!(permits.available_permits(), 1);
    }
}
