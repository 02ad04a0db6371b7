//! HTTP connections: who gets one, how long each wait of it may last, and how much it may ask.

use std::{
    convert::Infallible,
    io::{self, IoSlice},
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    http::{HeaderValue, Request, Response, StatusCode, header},
};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    task::JoinSet,
    time::{Sleep, sleep, timeout},
};
use tracing::Instrument as _;

use super::finish;
use crate::{
    core::{
        patience::Patience,
        prefix::{self, Prefix},
        quota::{Holder, Refusal},
    },
    server::{
        assets,
        descriptors::Descriptors,
        pool::{Place, Pool, Pools, Refusals},
        rate_limiter::{RateLimiter, Refill},
        socket::{Socket, reset},
    },
};

/// Bytes that a connection may buffer each way: no request of ours has more.
const BUFFER: usize = 16 * 1024;

/// Bytes of a response that wait in the kernel, each counted twice by it. Without a bound it takes
/// some megabytes, for everybody who acknowledges and does not read.
const SEND_BUFFER: usize = 128 * 1024;

/// What proxies append the address to that they see. It has no specification but its use.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// How long to wait before the next accept when the system refuses one.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What each wait of a connection may last. None of them is put off by a byte.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// From when a request may begin (the connection is there, or the last response is sent) to
    /// the end of its head. A page asks for its files within a second.
    head: Duration,
    /// How long whoever takes a response may pause.
    grace: Duration,
    /// Bytes a second that it has to take on average: less than the slowest mobile network gives.
    rate: u32,
    /// The longest life of a connection; what is not sent by then is fetched by range.
    life: Duration,
    /// Requests on one connection.
    requests: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(10),
            grace: Duration::from_secs(20),
            rate: 4 * 1024,
            life: Duration::from_secs(10 * 60),
            requests: 256,
        }
    }
}

/// Where connections come in. A clone shares the places and the rate.
#[derive(Clone)]
pub(crate) struct Door {
    pool: Pool,
    rate: Arc<Mutex<RateLimiter>>,
    refusals: Refusals,
    descriptors: Descriptors,
    bounds: Bounds,
    /// Proxies that say for whom they ask.
    trusted: Arc<[Prefix]>,
}

impl Door {
    /// A door to the places of `pool`, which is one of `pools`.
    pub(crate) fn new(pool: &Pool, pools: &Pools, descriptors: &Descriptors) -> Self {
        let settings = pools.settings.clone();
        let rates = move || {
            let config = &settings.now().http;
            Refill::new(config.requests_per_source.get(), config.requests.get())
        };
        let rate = RateLimiter::following(rates, Instant::now());
        // Validation of the configuration has already refused texts that are not prefixes.
        let trusted = pools.settings.now().trusted_proxies().unwrap_or_default();
        Self {
            pool: pool.clone(),
            rate: Arc::new(Mutex::new(rate)),
            refusals: pools.refusals.clone(),
            descriptors: descriptors.clone(),
            bounds: Bounds::default(),
            trusted: trusted.into(),
        }
    }

    fn is_proxy(&self, ip: IpAddr) -> bool {
        self.trusted.iter().any(|prefix| prefix.contains(ip))
    }

    /// The place of a connection from `ip`. That of a proxy counts for nobody until it says for whom
    /// it asks.
    fn enter(&self, ip: IpAddr) -> Result<Place, Refusal> {
        match self.is_proxy(ip) {
            true => self.pool.take(Holder::default()),
            false => self.pool.take(ip),
        }
    }

    /// Whether `ip` may ask once more. A refusal is counted and logged.
    fn lets_ask(&self, ip: IpAddr) -> bool {
        let mut rate = self.rate.lock().unwrap_or_else(PoisonError::into_inner);
        let may = rate.allow(ip, Instant::now());
        drop(rate);
        if !may {
            self.refusals.tell("http_request", "rate", Some(ip));
        }
        may
    }
}

/// Where a request comes from, for the handlers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source(pub(crate) IpAddr);

/// Serves `router` on `listener` until the future is dropped, and every connection with it.
pub(crate) async fn serve(listener: TcpListener, router: Router, door: Door) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, from)) => {
                let ip = from.ip().to_canonical();
                // Whoever has no place is closed at once: one that waited in the kernel's queue
                // would keep those behind it out.
                if let Ok(place) = door.enter(ip) {
                    let stream = Socket::from(stream);
                    let served = connection(stream, ip, router.clone(), door.clone(), place);
                    connections.spawn(served.in_current_span());
                }
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                door.descriptors.failed("http", &error);
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves `router` to a client that came in elsewhere, unless it gets no place.
pub(crate) async fn client(stream: Socket, ip: IpAddr, router: Router, door: Door) {
    match door.enter(ip) {
        Ok(place) => connection(stream, ip, router, door, place).await,
        Err(_) => reset(stream.tcp()),
    }
}

/// Whether the one who connected has gone already, which says nothing of the next.
pub(crate) fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::ConnectionReset
    )
}

async fn connection(stream: Socket, ip: IpAddr, router: Router, door: Door, place: Place) {
    let bounds = door.bounds;
    let asked = AtomicU32::new(0);
    let place = Mutex::new(Some(place));
    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request: Request<Incoming>| {
        let last = asked.fetch_add(1, Ordering::Relaxed) + 1 >= bounds.requests;
        let (client, has_place) = match door.is_proxy(ip) {
            true => forwarded(&request, &door, ip, &place),
            false => (ip, true),
        };
        request.extensions_mut().insert(Source(client));
        let refused = match has_place {
            true => refusal(&request, &door, client),
            false => Some(assets::status(StatusCode::SERVICE_UNAVAILABLE)),
        };
        let (router, door) = (&router, &door);
        async move {
            let (mut response, last) = match refused {
                Some(refused) => (refused, true),
                None => (router.call(request).await?, last),
            };
            if last {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, Infallible>(finish(&door.refusals.metrics, response))
        }
    });
    // A small answer goes at once. Err means that the connection has ended.
    let _ = stream.tcp().set_nodelay(true);
    let _ = socket2::SockRef::from(stream.tcp()).set_send_buffer_size(SEND_BUFFER);
    let io = TokioIo::new(Paced::new(stream, bounds));
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head)
        .max_buf_size(BUFFER)
        .serve_connection(io, service);
    match timeout(bounds.life, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "an HTTP connection failed"),
        Err(_) => tracing::debug!("an HTTP connection has lived for long enough"),
    }
    drop(place);
}

/// Whom a proxy at `ip` asks for, and whether there is a place for that client: the connection's is
/// its from now on.
fn forwarded(
    request: &Request<Incoming>,
    door: &Door,
    ip: IpAddr,
    place: &Mutex<Option<Place>>,
) -> (IpAddr, bool) {
    let values = request.headers().get_all(FORWARDED_FOR).iter();
    // A client may have written any bytes before what the proxy has appended.
    let values: Vec<_> = values
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .collect();
    let values = values.iter().map(AsRef::as_ref);
    let client = prefix::client(ip, &door.trusted, values);
    let mut place = place.lock().unwrap_or_else(PoisonError::into_inner);
    // The old one first, so that a connection never has two.
    *place = None;
    *place = door.pool.take(client).ok();
    (client, place.is_some())
}

/// The answer to a request that nothing is done for.
fn refusal(request: &Request<Incoming>, door: &Door, ip: IpAddr) -> Option<Response<Body>> {
    if !door.lets_ask(ip) {
        let mut response = assets::status(StatusCode::TOO_MANY_REQUESTS);
        let soon = HeaderValue::from_static("1");
        response.headers_mut().insert(header::RETRY_AFTER, soon);
        return Some(response);
    }
    // Nothing here takes a body, so nobody has to wait for one.
    (!request.body().is_end_stream()).then(|| assets::status(StatusCode::PAYLOAD_TOO_LARGE))
}

/// A connection that ends when its receiver is too slow.
struct Paced {
    stream: Socket,
    patience: Patience,
    deadline: Pin<Box<Sleep>>,
    waits: bool,
}

impl Paced {
    fn new(stream: Socket, bounds: Bounds) -> Self {
        Self {
            stream,
            patience: Patience::new(bounds.grace, bounds.rate),
            deadline: Box::pin(sleep(bounds.grace)),
            waits: false,
        }
    }

    /// What `poll` gives, or an error once the receiver's time is over.
    fn within_pace(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut Socket>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match poll(Pin::new(&mut self.stream), cx) {
            Poll::Ready(sent) => {
                self.waits = false;
                let bytes = *sent.as_ref().unwrap_or(&0);
                self.patience.sent(Instant::now(), bytes);
                Poll::Ready(sent)
            }
            Poll::Pending => {
                if !self.waits {
                    self.waits = true;
                    let until = self.patience.wait(Instant::now());
                    self.deadline.as_mut().reset(until.into());
                }
                ready!(self.deadline.as_mut().poll(cx));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Paced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.within_pace(cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.within_pace(cx, |stream, cx| stream.poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // TLS sends what it keeps when it is flushed or shut down.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.within_pace(cx, |stream, cx| stream.poll_flush(cx).map_ok(|()| 0));
        flushed.map_ok(drop)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = self.within_pace(cx, |stream, cx| stream.poll_shutdown(cx).map_ok(|()| 0));
        shut.map_ok(drop)
    }
}

#[cfg(test)]
mod tests;
