//! WebSocket as a libp2p transport, over a transport that makes TCP connections and resolves names.
//!
//! It listens at `/ws`, and dials `/ws`, `/wss`, `/tls/ws` and `/tls/sni/<name>/ws`.

mod address;
pub(crate) mod frame;
mod handshake;
mod stream;

use std::{
    collections::HashMap,
    fmt, io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite, FutureExt as _, future::BoxFuture};
use futures_rustls::{TlsConnector, client::TlsStream};
use libp2p::{
    Multiaddr,
    core::transport::{DialOpts, ListenerId, TransportError, TransportEvent},
    multiaddr::Protocol,
};

use self::address::Dial;
#[cfg(test)]
pub(crate) use self::handshake::accept_key;
pub(crate) use self::stream::WebSocketStream;
use crate::native::{behaviours::forwarded::Forwarded, roots::Roots};
#[cfg(feature = "server")]
use crate::stream::BoxedStream;

/// A connection below a WebSocket, with or without TLS.
pub(crate) type MaybeTls<S> = futures::future::Either<TlsStream<S>, S>;

/// Dials WebSockets, and listens for WebSockets without TLS.
pub(crate) struct WebSocketTransport<T> {
    inner: T,
    roots: Roots,
    forwarded: Forwarded,
    /// The end of the addresses of each listener: `/ws` and the path that it was given.
    suffixes: HashMap<ListenerId, Protocol<'static>>,
}

impl<T> fmt::Debug for WebSocketTransport<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

impl<T> WebSocketTransport<T> {
    /// Makes a transport over `inner`, which tells `forwarded` the clients that proxies name. TLS
    /// trusts `roots`.
    pub(crate) fn new(inner: T, roots: Roots, forwarded: Forwarded) -> Self {
        Self {
            inner,
            roots,
            forwarded,
            suffixes: HashMap::new(),
        }
    }

    /// The address of a listener as others know it.
    fn outer(&self, listener: ListenerId, inner: Multiaddr) -> Multiaddr {
        match self.suffixes.get(&listener) {
            Some(suffix) => inner.with(suffix.clone()),
            None => inner,
        }
    }
}

/// The reasons why a connection was not made. `E` is an error of the transport below.
#[derive(Debug)]
pub(crate) enum WebSocketError<E> {
    Transport(E),
    Tls(io::Error),
    Handshake(handshake::HandshakeError),
}

impl<E: fmt::Display> fmt::Display for WebSocketError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Handshake(error) => write!(f, "WebSocket handshake: {error}"),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for WebSocketError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Transport(error) => Some(error),
            Self::Tls(error) => Some(error),
            Self::Handshake(error) => Some(error),
        }
    }
}

impl<T> libp2p::Transport for WebSocketTransport<T>
where
    T: libp2p::Transport + Send + Unpin + 'static,
    T::Output: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    T::Error: Send + 'static,
    T::Dial: Send + 'static,
    T::ListenerUpgrade: Send + 'static,
{
    type Output = WebSocketStream<MaybeTls<T::Output>>;
    type Error = WebSocketError<T::Error>;
    type ListenerUpgrade = BoxFuture<'static, Result<Self::Output, Self::Error>>;
    type Dial = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        let Some((inner, suffix)) = address::listener(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let listening = self.inner.listen_on(id, inner);
        listening.map_err(|error| error.map(WebSocketError::Transport))?;
        self.suffixes.insert(id, suffix);
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        let Some(Dial { inner, target, tls }) = Dial::parse(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let dial = match self.inner.dial(inner, options) {
            Ok(dial) => dial,
            Err(TransportError::MultiaddrNotSupported(_)) => {
                return Err(TransportError::MultiaddrNotSupported(address));
            }
            Err(error) => return Err(error.map(WebSocketError::Transport)),
        };
        let tls = tls.map(|name| (self.roots.clone(), name));
        let connect = async move {
            let stream = dial.await.map_err(WebSocketError::Transport)?;
            let stream = match tls {
                Some((roots, name)) => {
                    let stream = TlsConnector::from(roots.config().await)
                        .connect(name, stream)
                        .await
                        .map_err(WebSocketError::Tls)?;
                    MaybeTls::Left(stream)
                }
                None => MaybeTls::Right(stream),
            };
            let connected = handshake::connect(stream, &target, rand::random()).await;
            connected.map_err(WebSocketError::Handshake)
        };
        Ok(connect.boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let this = self.get_mut();
        Poll::Ready(match ready!(Pin::new(&mut this.inner).poll(cx)) {
            TransportEvent::NewAddress {
                listener_id,
                listen_addr,
            } => TransportEvent::NewAddress {
                listener_id,
                listen_addr: this.outer(listener_id, listen_addr),
            },
            TransportEvent::AddressExpired {
                listener_id,
                listen_addr,
            } => TransportEvent::AddressExpired {
                listener_id,
                listen_addr: this.outer(listener_id, listen_addr),
            },
            TransportEvent::Incoming {
                listener_id,
                upgrade,
                local_addr,
                send_back_addr,
            } => {
                let forwarded = this.forwarded.clone();
                let send_back_addr = this.outer(listener_id, send_back_addr);
                let remote = send_back_addr.clone();
                let upgrade = async move {
                    let stream = upgrade.await.map_err(WebSocketError::Transport)?;
                    let note = |values: &[&str]| forwarded.note(&remote, values.iter().copied());
                    let accepted = handshake::accept(MaybeTls::Right(stream), note).await;
                    accepted.map_err(WebSocketError::Handshake)
                };
                TransportEvent::Incoming {
                    listener_id,
                    upgrade: upgrade.boxed(),
                    local_addr: this.outer(listener_id, local_addr),
                    send_back_addr,
                }
            }
            TransportEvent::ListenerClosed {
                listener_id,
                reason,
            } => {
                this.suffixes.remove(&listener_id);
                TransportEvent::ListenerClosed {
                    listener_id,
                    reason: reason.map_err(WebSocketError::Transport),
                }
            }
            TransportEvent::ListenerError { listener_id, error } => TransportEvent::ListenerError {
                listener_id,
                error: WebSocketError::Transport(error),
            },
        })
    }
}

/// Answers a client that has come from `remote` and asks for a WebSocket, over a stream that was
/// accepted elsewhere.
#[cfg(feature = "server")]
pub(crate) async fn accept(
    stream: BoxedStream,
    remote: Multiaddr,
    forwarded: Forwarded,
) -> io::Result<BoxedStream> {
    let note = |values: &[&str]| forwarded.note(&remote, values.iter().copied());
    let accepted = handshake::accept(stream, note).await;
    Ok(Box::pin(accepted.map_err(io::Error::other)?))
}

#[cfg(test)]
mod tests;
