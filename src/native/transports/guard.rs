//! Guards the sockets. No dial goes to an address that the [`Policy`] bars, whoever named it. No
//! more dials go out than a connector may make.
//!
//! The guard is below the resolver, because a name does not tell where it leads.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures::FutureExt as _;
use libp2p::{
    Multiaddr,
    core::transport::{Boxed, DialOpts, Transport, TransportError},
};
use tokio::time;

use super::names::Names;
use crate::{
    core::{
        address,
        dial::{Barred, Policy, endpoint},
        pace::Pace,
        scope::Scope,
    },
    native::nat64::Nat64,
    swarm::dial_layer::{Begun, DialLayer, Dials},
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
    nat64: Nat64,
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
        Self::with(policy, Nat64::default())
    }

    /// Makes IPv4 addresses reached as `nat64` says.
    pub(crate) fn through(&self, nat64: Nat64) -> Self {
        Self::with(self.0.policy.clone(), nat64)
    }

    fn with(policy: Policy, nat64: Nat64) -> Self {
        Self(Arc::new(Inner {
            policy,
            nat64,
            pace: Mutex::new(Pace::new(DIALS_PER_SECOND, DIALS_AT_ONCE)),
            start: Instant::now(),
        }))
    }

    /// Guards `inner`. Nobody else can choose the first bytes of its connections.
    pub(crate) fn over<T>(&self, below: T) -> DialLayer<T, Guarded> {
        self.allowing(below, Policy::allows)
    }

    fn allowing<T>(&self, below: T, allows: Allows) -> DialLayer<T, Guarded> {
        let guard = self.clone();
        DialLayer::new(below, Guarded { guard, allows })
    }

    /// Guards `tcp`, and resolves names, for connections that tell the name by which they came.
    pub(crate) fn named<T>(&self, names: &Names, tcp: impl Fn() -> T) -> Boxed<T::Output>
    where
        T: Transport<Error = io::Error> + Send + Unpin + 'static,
        T::Dial: Send + 'static,
        T::ListenerUpgrade: Send + 'static,
        T::Output: 'static,
    {
        let known = DialLayer::new(self.over(tcp()), Known);
        let resolved = names.over(self.allowing(tcp(), Policy::allows_named));
        let either = known.or_transport(resolved);
        either
            .map(|either, _| either.into_inner())
            .map_err(|either| either.into_inner())
            .boxed()
    }

    /// Returns the address by which `to` is reached from here. It stands for one that may be dialled.
    fn route(&self, to: SocketAddr) -> Result<SocketAddr, Barred> {
        match self.0.nat64.route(to) {
            Some(to) => Ok(to),
            None if self.0.policy.is_trusted(to) => Ok(to),
            None => Err(Barred::Place(Scope::Private)),
        }
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

/// The layer that guards a transport. It dials IP addresses.
pub(crate) struct Guarded {
    guard: Guard,
    allows: Allows,
}

impl Guarded {
    fn check(&self, address: &Multiaddr, to: SocketAddr) -> Result<(), Barred> {
        // An address that a resolver gave has not been checked before.
        match address::fault(address) {
            Some(why) => Err(Barred::Malformed(why)),
            None => (self.allows)(&self.guard.0.policy, to),
        }
    }
}

impl<T> Dials<T> for Guarded
where
    T: Transport<Error = io::Error>,
    T::Dial: Send + 'static,
{
    fn dial(&mut self, below: &mut T, address: Multiaddr, options: DialOpts) -> Begun<T::Output> {
        // Transports differ in what they read as an IP address. An address that is not clearly one
        // is not dialled.
        let Some(to) = endpoint(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let barred = |barred| TransportError::Other(io::Error::other::<Barred>(barred));
        self.check(&address, to).map_err(barred)?;
        let reached = self.guard.route(to).map_err(barred)?.ip();
        let guard = self.guard.clone();
        let dial = below.dial(with_ip(address, reached), options)?;
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
}

/// Replaces the IP address at the beginning of `address`.
fn with_ip(address: Multiaddr, ip: IpAddr) -> Multiaddr {
    let rest = address.iter().skip(1);
    rest.fold(Multiaddr::from(ip), Multiaddr::with)
}

/// The layer that dials addresses that need no resolver, and `localhost`, which RFC 6761 section 6.3
/// keeps from the resolver.
struct Known;

impl<T> Dials<T> for Known
where
    T: Transport<Error = io::Error>,
    T::Dial: Send + 'static,
{
    fn dial(&mut self, below: &mut T, address: Multiaddr, options: DialOpts) -> Begun<T::Output> {
        let Some(to) = endpoint(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        Ok(below.dial(with_ip(address, to.ip()), options)?.boxed())
    }
}

#[cfg(test)]
mod tests {
    use libp2p::core::{
        Endpoint,
        transport::{PortUse, dummy::DummyTransport},
    };

    use super::*;

    /// Returns whether a dial reaches the transport below, which knows no address.
    fn passes(guarded: &mut DialLayer<Boxed<()>, Guarded>, address: &str) -> bool {
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
        let below = DummyTransport::<()>::new().boxed();
        let mut named = guard.allowing(below, Policy::allows_named);
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
