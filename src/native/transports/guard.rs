//! Guards the sockets. No dial goes to an address that the [`Policy`] bars, whoever named it. No
//! more dials go out than a connector may make.
//!
//! The guard is below the resolver, because a name does not tell where it leads.

use std::{
    fmt, io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use libp2p::{
    Multiaddr, Transport as _,
    core::transport::{self, Boxed, DialOpts, ListenerId, TransportError, TransportEvent},
};
use tokio::time;

use super::names::Names;
use crate::core::{
    address,
    dial::{Barred, Policy, endpoint},
    pace::Pace,
};

/// The dials to addresses that others have named, for one connector, in each second. A thousand
/// connects at once to peers with four addresses each are within this and [`DIALS_AT_ONCE`].
/// Whoever wants to flood a host by tickets has better means.
const DIALS_PER_SECOND: u32 = 1024;
/// The dials that may be made at once before [`DIALS_PER_SECOND`] counts.
const DIALS_AT_ONCE: u32 = 4096;
/// How long a dial waits for its turn. It is half of the default time of a strategy.
const PATIENCE: Duration = Duration::from_secs(5);

/// The state that all transports of a connector share.
#[derive(Clone)]
pub(crate) struct Guard(Arc<Inner>);

struct Inner {
    policy: Policy,
    pace: Mutex<Pace>,
    start: Instant,
}

/// The error of a dial that the limit has refused.
#[derive(Debug)]
pub(crate) struct TooMany;

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not dialled: over {DIALS_PER_SECOND} dials in a second")
    }
}

impl std::error::Error for TooMany {}

impl Guard {
    pub(crate) fn new(policy: Policy) -> Self {
        Self(Arc::new(Inner {
            policy,
            pace: Mutex::new(Pace::new(DIALS_PER_SECOND, DIALS_AT_ONCE)),
            start: Instant::now(),
        }))
    }

    /// Guards `inner`. Nobody else can choose the first bytes of its connections.
    pub(crate) fn over<T>(&self, inner: T) -> Guarded<T> {
        Guarded {
            inner,
            guard: self.clone(),
            allows: Policy::allows,
        }
    }

    /// Guards `tcp`, and resolves names, for connections that tell the name by which they came.
    pub(crate) fn named<T>(&self, names: &Names, tcp: impl Fn() -> T) -> Boxed<T::Output>
    where
        T: transport::Transport<Error = io::Error> + Send + Unpin + 'static,
        T::Dial: Send + 'static,
        T::ListenerUpgrade: Send + 'static,
        T::Output: 'static,
    {
        let known = Known(self.over(tcp()));
        let resolved = names.over(Guarded {
            inner: tcp(),
            guard: self.clone(),
            allows: Policy::allows_named,
        });
        let either = known.or_transport(resolved);
        either
            .map(|either, _| either.into_inner())
            .map_err(|either| either.into_inner())
            .boxed()
    }

    /// Returns how long a dial of `to` has to wait.
    fn turn(&self, to: SocketAddr) -> io::Result<Duration> {
        if self.0.policy.is_trusted(to) {
            return Ok(Duration::ZERO);
        }
        let now = self.0.start.elapsed();
        let mut pace = self.0.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let turn = pace.take(now, 1, PATIENCE);
        turn.ok_or_else(|| io::Error::other(TooMany))
    }
}

type Allows = fn(&Policy, SocketAddr) -> Result<(), Barred>;

/// A guarded transport, which dials IP addresses.
pub(crate) struct Guarded<T> {
    inner: T,
    guard: Guard,
    allows: Allows,
}

impl<T> Guarded<T> {
    fn check(&self, address: &Multiaddr, to: SocketAddr) -> Result<(), Barred> {
        // An address that a resolver gave has not been checked before.
        match address::fault(address) {
            Some(why) => Err(Barred::Malformed(why)),
            None => (self.allows)(&self.guard.0.policy, to),
        }
    }
}

impl<T> transport::Transport for Guarded<T>
where
    T: transport::Transport<Error = io::Error> + Unpin,
    T::Dial: Send + 'static,
{
    type Output = T::Output;
    type Error = io::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = BoxFuture<'static, io::Result<T::Output>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        addr: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.inner.listen_on(id, addr)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        addr: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        // Transports differ in what they read as an IP address. An address that is not clearly one
        // is not dialled.
        let Some(to) = endpoint(&addr) else {
            return Err(TransportError::MultiaddrNotSupported(addr));
        };
        if let Err(barred) = self.check(&addr, to) {
            return Err(TransportError::Other(io::Error::other(barred)));
        }
        let guard = self.guard.clone();
        let dial = self.inner.dial(addr, opts)?;
        Ok(async move {
            // The turn is taken here, because most of several addresses of a peer are dialled
            // later, if at all.
            let turn = guard.turn(to)?;
            if !turn.is_zero() {
                time::sleep(turn).await;
            }
            dial.await
        }
        .boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

/// Dials addresses that need no resolver, and `localhost`, which RFC 6761 section 6.3 keeps from
/// the resolver.
struct Known<T>(Guarded<T>);

impl<T> transport::Transport for Known<T>
where
    T: transport::Transport<Error = io::Error> + Unpin,
    T::Dial: Send + 'static,
{
    type Output = T::Output;
    type Error = io::Error;
    type ListenerUpgrade = T::ListenerUpgrade;
    type Dial = BoxFuture<'static, io::Result<T::Output>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        addr: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        self.0.listen_on(id, addr)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.0.remove_listener(id)
    }

    fn dial(
        &mut self,
        addr: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        match endpoint(&addr) {
            Some(to) => {
                let ip = Multiaddr::from(to.ip());
                let rest = addr.iter().skip(1);
                self.0.dial(rest.fold(ip, Multiaddr::with), opts)
            }
            None => Err(TransportError::MultiaddrNotSupported(addr)),
        }
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Pin::new(&mut self.0).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use libp2p::core::{
        Endpoint,
        transport::{PortUse, Transport as _, dummy::DummyTransport},
    };

    use super::*;

    /// Returns whether a dial reaches the transport below, which knows no address.
    fn passes(guarded: &mut Guarded<Boxed<()>>, address: &str) -> bool {
        let opts = DialOpts {
            role: Endpoint::Dialer,
            port_use: PortUse::Reuse,
        };
        match guarded.dial(address.parse().unwrap(), opts) {
            Err(TransportError::Other(error)) => {
                assert!(error.get_ref().is_some_and(|inner| inner.is::<Barred>()));
                false
            }
            Err(TransportError::MultiaddrNotSupported(_)) => true,
            Ok(_) => unreachable!("the transport below knows no address"),
        }
    }

    #[test]
    fn resolved_addresses_are_checked() {
        let guard = Guard::new(Policy::new(true, Vec::new()));
        let mut own = guard.over(DummyTransport::<()>::new().boxed());
        assert!(passes(&mut own, "/ip4/127.0.0.1/tcp/1"));
        assert!(passes(&mut own, "/ip4/10.0.0.1/udp/1/quic-v1"));
        assert!(!passes(&mut own, "/ip4/169.254.169.254/tcp/1"));
        assert!(!passes(
            &mut own,
            "/ip4/192.0.2.1/tcp/1/ip4/127.0.0.1/tcp/1"
        ));
        let mut named = guard.over(DummyTransport::<()>::new().boxed());
        named.allows = Policy::allows_named;
        assert!(passes(&mut named, "/ip4/10.0.0.1/tcp/1"));
        assert!(!passes(&mut named, "/ip4/127.0.0.1/tcp/1"));
        let guard = Guard::new(Policy::new(false, Vec::new()));
        let mut server = guard.over(DummyTransport::<()>::new().boxed());
        assert!(passes(&mut server, "/ip4/192.0.2.1/tcp/1"));
        assert!(!passes(&mut server, "/ip4/10.0.0.1/tcp/1"));
        assert!(!passes(&mut server, "/ip4/127.0.0.1/udp/1/quic-v1"));
    }

    #[test]
    fn a_flood_of_dials_is_refused_except_to_the_users_own_relay() {
        let relay = "/ip4/192.0.2.9/tcp/1".parse().unwrap();
        let guard = Guard::new(Policy::new(true, vec![relay]));
        let to: SocketAddr = "192.0.2.1:1".parse().unwrap();
        let most = DIALS_AT_ONCE + DIALS_PER_SECOND * PATIENCE.as_secs() as u32;
        let taken = (0..most * 2).take_while(|_| guard.turn(to).is_ok()).count();
        // Time passes during the loop, so more dials may be taken.
        assert!(
            (most as usize..most as usize * 2).contains(&taken),
            "{taken}"
        );
        let refused = guard.turn(to).unwrap_err();
        assert!(refused.get_ref().is_some_and(|inner| inner.is::<TooMany>()));
        let own = guard.turn("192.0.2.9:1".parse().unwrap()).unwrap();
        assert_eq!(own, Duration::ZERO);
    }
}
