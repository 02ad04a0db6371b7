//! What the system tells of this machine's network, besides the addresses of its interfaces, which
//! come with the listeners.

use std::task::{Context, Poll};

/// Watches the routes on Linux. Other systems change an address along with the route, or say
/// nothing. Then a path is suspect when it leaves a probe unanswered.
#[derive(Default)]
pub(crate) struct Signals {
    #[cfg(target_os = "linux")]
    routes: Option<linux::Routes>,
}

impl Signals {
    /// Without the system's leave, there are no signals.
    #[cfg_attr(
        not(target_os = "linux"),
        expect(clippy::missing_const_for_fn, reason = "Linux")
    )]
    pub(crate) fn new() -> Self {
        #[cfg(target_os = "linux")]
        return Self {
            routes: linux::Routes::watch()
                .inspect_err(|error| tracing::debug!(%error, "routes are not watched"))
                .ok(),
        };
        #[cfg(not(target_os = "linux"))]
        Self::default()
    }

    /// Resolves when the network may have changed.
    pub(crate) fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        #[cfg(target_os = "linux")]
        if let Some(routes) = &mut self.routes {
            match routes.poll_changed(cx) {
                Poll::Ready(Ok(())) => return Poll::Ready(()),
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "routes are no longer watched");
                    self.routes = None;
                }
                Poll::Pending => {}
            }
        }
        let _ = cx;
        Poll::Pending
    }
}

/// Routes by rtnetlink (rtnetlink(7)).
#[cfg(target_os = "linux")]
mod linux {
    use std::{
        io,
        task::{Context, Poll, ready},
        time::{Duration, Instant},
    };

    use netlink_sys::{AsyncSocket as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};

    /// `RTMGRP_IPV4_ROUTE` and `RTMGRP_IPV6_ROUTE`.
    const GROUPS: u32 = 0x40 | 0x400;
    const RTM_NEWROUTE: u16 = 24;
    const RTM_DELROUTE: u16 = 25;
    /// The bytes of `nlmsghdr`.
    const HEADER: usize = 16;
    /// The most bytes that the kernel sends at a time (netlink(7)).
    const BUFFER: usize = 8192;

    /// The pause in which further changes say nothing new. Some systems write the default route anew
    /// with each advertisement of the router.
    const PAUSE: Duration = Duration::from_secs(2);

    pub(super) struct Routes {
        socket: TokioSocket,
        told: Option<Instant>,
    }

    impl Routes {
        pub(super) fn watch() -> io::Result<Self> {
            let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
            socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
            Ok(Self { socket, told: None })
        }

        /// Resolves when a default route was added or removed, and this was not told just now.
        pub(super) fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            loop {
                ready!(self.poll_named(cx))?;
                if self.told.is_none_or(|told| told.elapsed() >= PAUSE) {
                    self.told = Some(Instant::now());
                    return Poll::Ready(Ok(()));
                }
            }
        }

        fn poll_named(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            loop {
                let mut messages = Vec::with_capacity(BUFFER);
                let source = match ready!(self.socket.poll_recv_from(cx, &mut messages)) {
                    Ok(source) => source,
                    // Messages were lost, and a default route may be among them.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                        return Poll::Ready(Ok(()));
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                };
                // Only the kernel has port 0.
                if source.port_number() == 0 && names_a_default_route(&messages) {
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }

    /// Whether one of the messages is about a route to everywhere: the prefix of its destination has
    /// no bits (`rtm_dst_len` in `rtmsg`).
    fn names_a_default_route(mut messages: &[u8]) -> bool {
        while let Some((header, _)) = messages.split_at_checked(HEADER) {
            let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let kind = u16::from_ne_bytes([header[4], header[5]]);
            let Some(message) = messages.get(HEADER..length) else {
                return false;
            };
            if matches!(kind, RTM_NEWROUTE | RTM_DELROUTE) && message.get(1) == Some(&0) {
                return true;
            }
            messages = messages.get(length.next_multiple_of(4)..).unwrap_or(&[]);
        }
        false
    }

    #[cfg(test)]
    mod tests {
        use proptest::prelude::*;

        use super::*;

        /// A message of this kind about a route whose destination has a prefix of `bits`.
        fn message(kind: u16, bits: u8) -> Vec<u8> {
            let mut message = vec![0; HEADER + 13];
            let length = message.len() as u32;
            message[..4].copy_from_slice(&length.to_ne_bytes());
            message[4..6].copy_from_slice(&kind.to_ne_bytes());
            message[HEADER + 1] = bits;
            message.extend([0; 3]);
            message
        }

        #[test]
        fn only_default_routes_count() {
            let [other, removed] = [message(RTM_NEWROUTE, 24), message(RTM_DELROUTE, 0)];
            assert!(names_a_default_route(&message(RTM_NEWROUTE, 0)));
            assert!(names_a_default_route(
                &[other.clone(), removed.clone()].concat()
            ));
            assert!(!names_a_default_route(&other));
            assert!(!names_a_default_route(&message(RTM_NEWROUTE + 4, 0)));
            assert!(!names_a_default_route(&removed[..HEADER + 8]));
        }

        proptest! {
            #[test]
            fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
                let _ = names_a_default_route(&bytes);
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
