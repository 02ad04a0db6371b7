//! WebSocket as a libp2p transport over one that makes TCP connections and resolves names.
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
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures::{AsyncRead, AsyncWrite, FutureExt as _, future::BoxFuture};
use futures_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        version::{TLS12, TLS13},
    },
};
use libp2p::{
    Multiaddr,
    core::transport::{DialOpts, ListenerId, TransportError, TransportEvent},
    multiaddr::Protocol,
};

use self::address::Dial;
#[cfg(test)]
pub(crate) use self::handshake::accept_key;
pub(crate) use self::stream::Stream;

/// A connection, secured by TLS or not, as the WebSocket sees it.
pub(crate) type MaybeTls<S> = futures::future::Either<TlsStream<S>, S>;

/// Dials WebSockets, and listens for those without TLS.
pub(crate) struct Transport<T> {
    inner: T,
    tls: TlsConnector,
    /// What stands at the end of the addresses of each listener: `/ws`, and the path it was given.
    suffixes: HashMap<ListenerId, Protocol<'static>>,
}

impl<T> fmt::Debug for Transport<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").finish_non_exhaustive()
    }
}

impl<T> Transport<T> {
    /// A transport over `inner`. TLS trusts the public authorities of the web.
    ///
    /// # Errors
    /// When TLS cannot be set up.
    pub(crate) fn new(inner: T) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self {
            inner,
            tls: Arc::new(config).into(),
            suffixes: HashMap::new(),
        })
    }

    /// The address of a listener as others know it.
    fn outer(&self, listener: ListenerId, inner: Multiaddr) -> Multiaddr {
        match self.suffixes.get(&listener) {
            Some(suffix) => inner.with(suffix.clone()),
            None => inner,
        }
    }
}

/// Why a connection was not made. `E` is an error of the transport below.
#[derive(Debug)]
pub(crate) enum Error<E> {
    Transport(E),
    Tls(io::Error),
    Handshake(handshake::Error),
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Transport(error) => error.fmt(f),
            Self::Tls(error) => write!(f, "TLS: {error}"),
            Self::Handshake(error) => write!(f, "WebSocket handshake: {error}"),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for Error<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Transport(error) => Some(error),
            Self::Tls(error) => Some(error),
            Self::Handshake(error) => Some(error),
        }
    }
}

impl<T> libp2p::Transport for Transport<T>
where
    T: libp2p::Transport + Send + Unpin + 'static,
    T::Output: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    T::Error: Send + 'static,
    T::Dial: Send + 'static,
    T::ListenerUpgrade: Send + 'static,
{
    type Output = Stream<MaybeTls<T::Output>>;
    type Error = Error<T::Error>;
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
        listening.map_err(|error| error.map(Error::Transport))?;
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
            Err(error) => return Err(error.map(Error::Transport)),
        };
        let tls = tls.map(|name| (self.tls.clone(), name));
        let connect = async move {
            let stream = dial.await.map_err(Error::Transport)?;
            let stream = match tls {
                Some((tls, name)) => {
                    let stream = tls.connect(name, stream).await.map_err(Error::Tls)?;
                    MaybeTls::Left(stream)
                }
                None => MaybeTls::Right(stream),
            };
            let connected = handshake::connect(stream, &target, rand::random()).await;
            connected.map_err(Error::Handshake)
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
            } => TransportEvent::Incoming {
                listener_id,
                upgrade: async move {
                    let stream = upgrade.await.map_err(Error::Transport)?;
                    let accepted = handshake::accept(MaybeTls::Right(stream)).await;
                    accepted.map_err(Error::Handshake)
                }
                .boxed(),
                local_addr: this.outer(listener_id, local_addr),
                send_back_addr: this.outer(listener_id, send_back_addr),
            },
            TransportEvent::ListenerClosed {
                listener_id,
                reason,
            } => {
                this.suffixes.remove(&listener_id);
                TransportEvent::ListenerClosed {
                    listener_id,
                    reason: reason.map_err(Error::Transport),
                }
            }
            TransportEvent::ListenerError { listener_id, error } => TransportEvent::ListenerError {
                listener_id,
                error: Error::Transport(error),
            },
        })
    }
}

#[cfg(test)]
mod tests;
