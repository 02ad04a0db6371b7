//! Watches what the system tells about this machine's network and its sleep. The addresses of the
//! interfaces are left out, because the listeners report them.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::{
    sync::{Notify, watch},
    time::{self, Sleep as Rest},
};

use super::{Net, nat64::Nat64};
use crate::core::{liveness::Hint, nat64::Prefix};

/// The pause after a datagram that could not be sent. A path that is gone has many.
const UNREACHABLE_PAUSE: Duration = Duration::from_secs(1);

/// Watches the default routes on Linux. Other systems change an address along with the route, or say
/// nothing. Then a path is suspect when it leaves a probe unanswered. Also sees that the machine has
/// slept, and that it has no way to an address.
pub(crate) struct Signals {
    #[cfg(target_os = "linux")]
    routes: Option<linux::Routes>,
    sleep: Sleep,
    unreachable: Unreachable,
    reached: Reached,
}

impl Signals {
    /// If the system does not allow it, the routes are not watched.
    pub(crate) fn new(net: &Net) -> Self {
        Self {
            #[cfg(target_os = "linux")]
            routes: linux::Routes::watch()
                .inspect_err(|error| tracing::debug!(%error, "routes are not watched"))
                .ok(),
            sleep: Sleep::new(clocks()),
            unreachable: Unreachable::new(net.quic.sockets().unreachable()),
            reached: Reached::new(net.quic.sockets().nat64()),
        }
    }

    /// Resolves when paths may have changed.
    pub(crate) fn poll_hint(&mut self, cx: &mut Context<'_>) -> Poll<Hint> {
        if self.sleep.has_been(clocks()) {
            tracing::debug!("this machine has slept");
            return Poll::Ready(Hint::Network);
        }
        #[cfg(target_os = "linux")]
        if let Some(routes) = &mut self.routes {
            match routes.poll_changed(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(Hint::Network),
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "routes are no longer watched");
                    self.routes = None;
                }
                Poll::Pending => {}
            }
        }
        if self.reached.poll(cx).is_ready() {
            tracing::debug!("IPv4 addresses are reached in another way");
            return Poll::Ready(Hint::Network);
        }
        self.unreachable.poll(cx).map(|()| Hint::Unreachable)
    }
}

/// Waits for a change of the way in which IPv4 addresses are reached. Dials from before may have gone
/// nowhere.
struct Reached(BoxFuture<'static, watch::Receiver<Option<Prefix>>>);

impl Reached {
    fn new(nat64: &Nat64) -> Self {
        Self(Self::changed(nat64.watch()))
    }

    fn changed(
        mut watch: watch::Receiver<Option<Prefix>>,
    ) -> BoxFuture<'static, watch::Receiver<Option<Prefix>>> {
        async move {
            // The sender is gone when the sockets are, and then there is nothing to wait for.
            if watch.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            watch
        }
        .boxed()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let watch = std::task::ready!(self.0.poll_unpin(cx));
        self.0 = Self::changed(watch);
        Poll::Ready(())
    }
}

/// Waits for addresses that the system has no way to, and pauses after each of them.
struct Unreachable {
    notify: Arc<Notify>,
    next: BoxFuture<'static, ()>,
    rest: Option<Pin<Box<Rest>>>,
}

impl Unreachable {
    fn new(notify: Arc<Notify>) -> Self {
        Self {
            next: notify.clone().notified_owned().boxed(),
            notify,
            rest: None,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(rest) = &mut self.rest {
            std::task::ready!(rest.as_mut().poll(cx));
            self.rest = None;
        }
        std::task::ready!(self.next.poll_unpin(cx));
        self.next = self.notify.clone().notified_owned().boxed();
        self.rest = Some(Box::pin(time::sleep(UNREACHABLE_PAUSE)));
        Poll::Ready(())
    }
}

/// The times of two clocks. `awake` stands still while the machine sleeps, and `all` does not.
#[derive(Clone, Copy, Debug)]
struct Clocks {
    awake: Instant,
    all: Duration,
}

/// Sees from two clocks that the machine has slept. The event loop looks at them whenever it wakes, and
/// something wakes it soon after the machine does. A wall clock that is set looks the same, and brings
/// no more than a probe.
struct Sleep(Clocks);

impl Sleep {
    /// The two clocks differ by less than this over the time between two looks.
    const DRIFT: Duration = Duration::from_secs(2);

    fn new(now: Clocks) -> Self {
        Self(now)
    }

    /// Whether the machine has slept since the last look.
    fn has_been(&mut self, now: Clocks) -> bool {
        let last = std::mem::replace(&mut self.0, now);
        let awake = now.awake.saturating_duration_since(last.awake);
        now.all.saturating_sub(last.all) > awake + Self::DRIFT
    }
}

#[cfg(target_os = "linux")]
fn clocks() -> Clocks {
    use rustix::time::{ClockId, clock_gettime};

    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(now.tv_nsec).unwrap_or_default();
    Clocks {
        awake: Instant::now(),
        all: Duration::new(seconds, nanos),
    }
}

#[cfg(not(target_os = "linux"))]
fn clocks() -> Clocks {
    let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
    Clocks {
        awake: Instant::now(),
        all: since.unwrap_or_default(),
    }
}

/// Routes by rtnetlink (rtnetlink(7)).
#[cfg(target_os = "linux")]
mod linux {
    use std::{
        collections::HashSet,
        io,
        pin::Pin,
        task::{Context, Poll, ready},
        time::Duration,
    };

    use netlink_sys::{AsyncSocket as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
    use tokio::time::{Sleep, sleep};

    /// `RTMGRP_IPV4_ROUTE` and `RTMGRP_IPV6_ROUTE`.
    const GROUPS: u32 = 0x40 | 0x400;
    const RTM_NEWROUTE: u16 = 24;
    const RTM_DELROUTE: u16 = 25;
    /// The route replaces others like it (`nlmsg_flags`).
    const NLM_F_REPLACE: u16 = 0x100;
    /// The bytes of `nlmsghdr`, of `rtmsg` and of `rtattr`.
    const HEADER: usize = 16;
    const ROUTE: usize = 12;
    const ATTRIBUTE: usize = 4;
    /// Besides the table, the priority tells a route from others to the same destination.
    const RTA_PRIORITY: u16 = 6;
    /// The attributes that say where a route leads: interface, gateway, source, next hops, and a gateway
    /// of another family.
    const WAY: [u16; 5] = [4, 5, 7, 9, 18];
    /// The most bytes that the kernel sends at a time (netlink(7)).
    const BUFFER: usize = 8192;

    /// The pause after a change. Changes that come meanwhile are told after it.
    const PAUSE: Duration = Duration::from_millis(250);
    /// How many default routes are remembered. A machine has a handful. When there are more, all are
    /// forgotten, and a route that is written again counts as new once.
    const MAX_ROUTES: usize = 64;

    pub(super) struct Routes {
        socket: TokioSocket,
        known: Known,
        rest: Option<Pin<Box<Sleep>>>,
    }

    impl Routes {
        pub(super) fn watch() -> io::Result<Self> {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
            Ok(Self {
                socket,
                known: Known::default(),
                rest: None,
            })
        }

        /// Resolves when a default route has come, gone, or leads elsewhere.
        pub(super) fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            if let Some(rest) = &mut self.rest {
                ready!(rest.as_mut().poll(cx));
                self.rest = None;
            }
            let told = ready!(self.poll_told(cx));
            self.rest = Some(Box::pin(sleep(PAUSE)));
            Poll::Ready(told)
        }

        fn poll_told(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            loop {
                let mut messages = Vec::with_capacity(BUFFER);
                let source = match ready!(self.socket.poll_recv_from(cx, &mut messages)) {
                    Ok(source) => source,
                    // Messages were lost, and a default route may be among them.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        self.known = Known::default();
                        return Poll::Ready(Ok(()));
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                };
                // Only the kernel has port 0.
                if source.port_number() == 0 && self.known.learn(&messages) {
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// The default routes that were told of. Some systems write a default route anew with each
    /// advertisement of the router, which changes nothing but its lifetime.
    #[derive(Default)]
    struct Known(HashSet<Route>);

    /// A route to everywhere.
    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    struct Route {
        /// The family, the table and the priority of the route. The kernel has other routes like it
        /// for other routers.
        place: (u8, u8, Vec<u8>),
        /// Where the route leads.
        way: Vec<u8>,
    }

    impl Known {
        /// Learns from messages of the kernel. Returns whether one of them is news about a default
        /// route.
        fn learn(&mut self, mut messages: &[u8]) -> bool {
            let mut news = false;
            while let Some((header, _)) = messages.split_at_checked(HEADER) {
                let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]);
                let kind = u16::from_ne_bytes([header[4], header[5]]);
                let flags = u16::from_ne_bytes([header[6], header[7]]);
                let Some(message) = messages.get(HEADER..length as usize) else {
                    break;
                };
                if let Some(route) = Route::read(message) {
                    news |= match kind {
                        RTM_NEWROUTE => self.add(route, flags & NLM_F_REPLACE != 0),
                        RTM_DELROUTE => {
                            self.0.remove(&route);
                            true
                        }
                        _ => false,
                    };
                }
                let next = (length as usize).next_multiple_of(4);
                messages = messages.get(next..).unwrap_or(&[]);
            }
            news
        }

        fn add(&mut self, route: Route, replaces: bool) -> bool {
            if replaces {
                self.0
                    .retain(|known| known.place != route.place || *known == route);
            }
            if self.0.len() >= MAX_ROUTES {
                self.0.clear();
            }
            self.0.insert(route)
        }
    }

    impl Route {
        /// Reads a route (`rtmsg` and its attributes) if its destination has a prefix of no bits.
        fn read(message: &[u8]) -> Option<Self> {
            let (route, mut attributes) = message.split_at_checked(ROUTE)?;
            if route[1] != 0 {
                return None;
            }
            let mut place = (route[0], route[4], Vec::new());
            let mut way = Vec::new();
            while let Some((head, _)) = attributes.split_at_checked(ATTRIBUTE) {
                let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
                let kind = u16::from_ne_bytes([head[2], head[3]]);
                let Some(attribute) = attributes.get(..length).filter(|_| length >= ATTRIBUTE)
                else {
                    break;
                };
                if kind == RTA_PRIORITY {
                    place.2.extend_from_slice(attribute);
                } else if WAY.contains(&kind) {
                    way.extend_from_slice(attribute);
                }
                let next = length.next_multiple_of(4);
                attributes = attributes.get(next..).unwrap_or(&[]);
            }
            Some(Self { place, way })
        }
    }

    #[cfg(test)]
    mod tests {
        use proptest::prelude::*;

        use super::*;

        const REPLACE: u16 = NLM_F_REPLACE;
        /// `RTA_GATEWAY` and `RTA_CACHEINFO`, which has the lifetime.
        const GATEWAY: u16 = 5;
        const LIFETIME: u16 = 12;

        /// A message about a route whose destination has a prefix of `bits`.
        fn message(kind: u16, flags: u16, bits: u8, attributes: &[(u16, u8)]) -> Vec<u8> {
            let mut message = vec![0; HEADER + ROUTE];
            message[4..6].copy_from_slice(&kind.to_ne_bytes());
            message[6..8].copy_from_slice(&flags.to_ne_bytes());
            message[HEADER + 1] = bits;
            for (kind, value) in attributes {
                message.extend(5u16.to_ne_bytes());
                message.extend(kind.to_ne_bytes());
                message.extend([*value, 0, 0, 0]);
            }
            let length = message.len() as u32;
            message[..4].copy_from_slice(&length.to_ne_bytes());
            message
        }

        #[test]
        fn only_default_routes_count() {
            let mut known = Known::default();
            let other = message(RTM_NEWROUTE, 0, 24, &[]);
            let gone = message(RTM_DELROUTE, 0, 0, &[]);
            assert!(!known.learn(&other));
            assert!(!known.learn(&message(RTM_NEWROUTE + 4, 0, 0, &[])));
            assert!(!known.learn(&gone[..HEADER + 8]));
            assert!(known.learn(&[other, gone].concat()));
        }

        #[test]
        fn a_route_that_is_written_anew_is_no_news_unless_it_leads_elsewhere() {
            let mut known = Known::default();
            let mut learn = |kind, flags, gateway, lifetime| {
                let attributes = [(GATEWAY, gateway), (LIFETIME, lifetime)];
                known.learn(&message(kind, flags, 0, &attributes))
            };
            assert!(learn(RTM_NEWROUTE, REPLACE, 1, 90));
            assert!(!learn(RTM_NEWROUTE, REPLACE, 1, 80));
            assert!(learn(RTM_NEWROUTE, REPLACE, 2, 90));
            // The first one was replaced.
            assert!(learn(RTM_NEWROUTE, REPLACE, 1, 90));
            assert!(learn(RTM_NEWROUTE, 0, 2, 90), "a second router");
            assert!(!learn(RTM_NEWROUTE, 0, 1, 90));
            assert!(learn(RTM_DELROUTE, 0, 1, 90));
            assert!(learn(RTM_NEWROUTE, 0, 1, 90));
        }

        #[test]
        fn routes_that_are_remembered_are_bounded() {
            let mut known = Known::default();
            for gateway in 0..=u8::MAX {
                known.learn(&message(RTM_NEWROUTE, 0, 0, &[(GATEWAY, gateway)]));
                assert!(known.0.len() <= MAX_ROUTES);
            }
        }

        proptest! {
            #[test]
            fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
                let _ = Known::default().learn(&bytes);
                let _ = Route::read(&bytes);
            }
        }

        #[tokio::test]
        async fn the_kernel_lets_us_watch() {
            let mut routes = Routes::watch().unwrap();
            let now = std::future::poll_fn(|cx| Poll::Ready(routes.poll_changed(cx)));
            // A change may come at any time, but no error.
            assert!(!matches!(now.await, Poll::Ready(Err(_))));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_ahead_of_the_other_one_is_a_sleep_and_is_told_once() {
        let start = clocks();
        let later = |awake: u64, all: u64| Clocks {
            awake: start.awake + Duration::from_millis(awake),
            all: start.all + Duration::from_millis(all),
        };
        let mut sleep = Sleep::new(start);
        assert!(!sleep.has_been(later(60_000, 62_000)));
        assert!(sleep.has_been(later(61_000, 65_001)));
        assert!(!sleep.has_been(later(61_000, 65_001)));
        // A wall clock that is set back says nothing.
        assert!(!sleep.has_been(later(70_000, 1_000)));
        assert!(!sleep.has_been(later(71_000, 2_000)));
    }

    #[tokio::test(start_paused = true)]
    async fn many_datagrams_that_cannot_be_sent_are_told_once_a_second() {
        let notify = Arc::<Notify>::default();
        let mut unreachable = Unreachable::new(notify.clone());
        let mut next = async || {
            let told = std::future::poll_fn(|cx| unreachable.poll(cx));
            let start = time::Instant::now();
            told.await;
            start.elapsed()
        };
        notify.notify_one();
        assert_eq!(next().await, Duration::ZERO);
        notify.notify_one();
        notify.notify_one();
        assert!(next().await >= UNREACHABLE_PAUSE);
    }

    #[test]
    fn the_clocks_of_this_machine_run() {
        let first = clocks();
        assert!(first.all > Duration::ZERO);
        assert!(!Sleep::new(first).has_been(clocks()));
    }
}
