//! WebSocket as a libp2p transport over the browser's own `WebSocket`. It only dials, because a
//! page cannot listen.
//!
//! Written bytes go to the browser at once, so a flush has nothing to wait for.
//! [`poll_write`](AsyncWrite::poll_write) waits only when the reader at the other end falls behind.

use std::{
    cell::RefCell,
    collections::VecDeque,
    fmt,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use futures::{AsyncRead, AsyncWrite, FutureExt, future::BoxFuture};
use futures_timer::Delay;
use js_sys::{ArrayBuffer, Uint8Array};
use libp2p::core::transport::{
    DialOpts, ListenerId, Transport as Libp2pTransport, TransportError, TransportEvent,
};
use multiaddr::Multiaddr;
use send_wrapper::SendWrapper;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::{BinaryType, CloseEvent, Event, MessageEvent, WebSocket};

use super::{listener::Listener, value};
use crate::core::websocket_address::WebSocketAddress;

/// The bytes that the browser has and that are not yet on the network, above which writing waits.
///
/// The kernel has its own buffer behind this one, so a higher mark would add delay and no
/// throughput.
const HIGH_WATER_MARK: u32 = 256 * 1024;

/// The longest message that is sent. One write can exceed the mark by this much.
const MAX_MESSAGE: usize = 64 * 1024;

/// The bytes that are received and not yet read, above which the connection is given up.
///
/// A WebSocket cannot ask its peer to wait. Yamux above it grants the peer a window and reads all
/// the time, so only a peer that ignores its window gets here.
const MAX_INBOUND: usize = 16 * 1024 * 1024;

/// The least and the greatest pause before the next look at the bytes that the browser still has.
/// The browser has no event for this.
///
/// Every look that finds no room doubles the pause.
const DRAIN_PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(32));

/// Dials WebSockets.
#[derive(Debug, Default)]
pub(crate) struct WebSocketTransport(());

impl Libp2pTransport for WebSocketTransport {
    type Output = WebSocketConnection;
    type Error = WebSocketError;
    type ListenerUpgrade = futures::future::Pending<Result<WebSocketConnection, WebSocketError>>;
    type Dial = BoxFuture<'static, Result<WebSocketConnection, WebSocketError>>;

    fn listen_on(
        &mut self,
        _: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        Err(TransportError::MultiaddrNotSupported(address))
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        false
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        match WebSocketAddress::parse(&address) {
            Some(parsed) if options.role.is_dialer() => {
                Ok(SendWrapper::new(WebSocketConnection::open(parsed.to_string())).boxed())
            }
            _ => Err(TransportError::MultiaddrNotSupported(address)),
        }
    }

    fn poll(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Poll::Pending
    }
}

/// The reasons why a WebSocket did not open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WebSocketError {
    /// The browser refused to try, for instance `ws:` from a page that came over `https:`.
    Refused {
        /// The URL that was dialled.
        url: String,
        /// The browser's words.
        reason: String,
    },
    /// The attempt failed. Browsers hide the cause from pages.
    Failed {
        /// The URL that was dialled.
        url: String,
    },
}

impl fmt::Display for WebSocketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused { url, reason } => {
                write!(f, "the browser refuses to open {url}: {reason}")
            }
            Self::Failed { url } => {
                write!(f, "{url} did not open: is it up and reachable")?;
                if url.starts_with("wss:") {
                    f.write_str(", and is its certificate valid for that name")?;
                }
                f.write_str("? (browsers do not tell pages why)")
            }
        }
    }
}

impl std::error::Error for WebSocketError {}

/// An open WebSocket as a stream of bytes.
///
/// Dropping it closes the WebSocket. Bytes that were written before are still sent.
pub(crate) struct WebSocketConnection(SendWrapper<Inner>);

struct Inner {
    socket: WebSocket,
    shared: Rc<RefCell<Shared>>,
    drain: Option<Delay>,
    pause: Duration,
    _listeners: [Listener; 4],
}

/// The state that the listeners and the stream share.
#[derive(Default)]
struct Shared {
    phase: Phase,
    inbound: VecDeque<Bytes>,
    inbound_bytes: usize,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    #[default]
    Connecting,
    Open,
    /// One of the two ends has closed the connection in order.
    Closed,
    /// The connection broke, or the peer broke the rules.
    Broken(&'static str),
}

impl Shared {
    /// Enters `phase` unless the connection is over already. Wakes reader and writer.
    fn enter(&mut self, phase: Phase) {
        if matches!(self.phase, Phase::Connecting | Phase::Open) {
            self.phase = phase;
        }
        self.wake();
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }

    fn receive(&mut self, data: JsValue) {
        let Ok(buffer) = data.dyn_into::<ArrayBuffer>() else {
            return self.enter(Phase::Broken("the peer sent text"));
        };
        let bytes = Uint8Array::new(&buffer).to_vec();
        if self.inbound_bytes + bytes.len() > MAX_INBOUND {
            return self.enter(Phase::Broken("the peer sends faster than it may"));
        }
        if !bytes.is_empty() {
            self.inbound_bytes += bytes.len();
            self.inbound.push_back(bytes.into());
        }
        // The writer is woken too, because data from the peer usually means that the peer has read.
        self.wake();
    }

    fn read(&mut self, out: &mut [u8]) -> usize {
        let mut read = 0;
        while let Some(front) = self.inbound.front_mut() {
            let count = front.len().min(out.len() - read);
            if count == 0 {
                break;
            }
            front.copy_to_slice(&mut out[read..read + count]);
            read += count;
            if front.is_empty() {
                self.inbound.pop_front();
            }
        }
        self.inbound_bytes -= read;
        read
    }
}

impl WebSocketConnection {
    async fn open(url: String) -> Result<Self, WebSocketError> {
        let socket = WebSocket::new(&url).map_err(|error| WebSocketError::Refused {
            url: url.clone(),
            reason: value::describe_error(&error),
        })?;
        let inner = Inner::new(socket);
        let opened = poll_fn(|cx| {
            let mut shared = inner.shared.borrow_mut();
            match shared.phase {
                Phase::Connecting => {
                    shared.writer = Some(cx.waker().clone());
                    Poll::Pending
                }
                Phase::Open => Poll::Ready(true),
                Phase::Closed | Phase::Broken(_) => Poll::Ready(false),
            }
        });
        if opened.await {
            Ok(Self(SendWrapper::new(inner)))
        } else {
            Err(WebSocketError::Failed { url })
        }
    }
}

impl Inner {
    fn new(socket: WebSocket) -> Self {
        socket.set_binary_type(BinaryType::Arraybuffer);
        let shared = Rc::<RefCell<Shared>>::default();
        let on = |event, change: fn(&mut Shared)| {
            let shared = shared.clone();
            Listener::new(&socket, event, move |_: Event| {
                change(&mut shared.borrow_mut());
            })
        };
        let listeners = [
            on("open", |shared| shared.enter(Phase::Open)),
            on("error", |shared| {
                shared.enter(Phase::Broken("the connection broke"));
            }),
            {
                let shared = shared.clone();
                Listener::new(&socket, "close", move |event: CloseEvent| {
                    shared.borrow_mut().enter(if event.was_clean() {
                        Phase::Closed
                    } else {
                        Phase::Broken("the connection broke")
                    });
                })
            },
            {
                let shared = shared.clone();
                Listener::new(&socket, "message", move |event: MessageEvent| {
                    shared.borrow_mut().receive(event.data());
                })
            },
        ];
        Self {
            socket,
            shared,
            drain: None,
            pause: DRAIN_PAUSE.0,
            _listeners: listeners,
        }
    }

    /// Becomes ready when the browser has few enough bytes to take more.
    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.socket.buffered_amount() > HIGH_WATER_MARK {
            let pause = self.pause;
            let drain = self.drain.get_or_insert_with(|| Delay::new(pause));
            ready!(drain.poll_unpin(cx));
            self.drain = None;
            self.pause = (pause * 2).min(DRAIN_PAUSE.1);
        }
        self.drain = None;
        self.pause = DRAIN_PAUSE.0;
        Poll::Ready(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // This does nothing when the socket is closed already.
        let _ = self.socket.close();
    }
}

impl AsyncRead for WebSocketConnection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut shared = self.0.shared.borrow_mut();
        let read = shared.read(out);
        if read > 0 || out.is_empty() {
            return Poll::Ready(Ok(read));
        }
        match shared.phase {
            Phase::Connecting | Phase::Open => {
                shared.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            Phase::Closed => Poll::Ready(Ok(0)),
            Phase::Broken(reason) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, reason)))
            }
        }
    }
}

impl AsyncWrite for WebSocketConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let inner = &mut *self.0;
        let phase = inner.shared.borrow().phase;
        if let Phase::Broken(reason) = phase {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, reason)));
        }
        // `send` drops data silently from the moment the socket begins to close.
        if phase != Phase::Open || inner.socket.ready_state() != WebSocket::OPEN {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if inner.poll_drained(cx).is_pending() {
            inner.shared.borrow_mut().writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let data = &data[..data.len().min(MAX_MESSAGE)];
        match inner.socket.send_with_u8_array(data) {
            Ok(()) => Poll::Ready(Ok(data.len())),
            Err(error) => Poll::Ready(Err(io::Error::other(value::describe_error(&error)))),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Starts the closing handshake. The browser completes it on its own after sending the rest.
    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _ = self.0.socket.close();
        self.0.shared.borrow_mut().enter(Phase::Closed);
        Poll::Ready(Ok(()))
    }
}
