//! The ports of relayed addresses (RFC 8656 section 7.2).

use std::{
    collections::HashMap,
    io,
    net::UdpSocket,
    ops::RangeInclusive,
    time::{Duration, Instant},
};

use super::addresses::RelayAddress;
use crate::server::pool::Place;

/// How many ports are tried before the range counts as full.
const TRIES: usize = 64;

/// How long a port is kept for a second allocation. RFC 8656 section 7.2 wants at least 30 s.
const KEPT: Duration = Duration::from_secs(30);

/// A bound port, with its place among the relayed addresses.
pub(super) struct Port {
    pub(super) socket: UdpSocket,
    pub(super) address: RelayAddress,
    pub(super) place: Place,
}

impl Port {
    /// Binds a port of `ports`, which is even if `even` says so. The port is random, so that others
    /// cannot guess it.
    ///
    /// # Errors
    /// Fails if no port is free.
    pub(super) fn bind(
        address: RelayAddress,
        ports: &RangeInclusive<u16>,
        even: bool,
        place: Place,
    ) -> io::Result<Self> {
        let socket = find(ports, even, |port| bind(address, port))?;
        Ok(Self {
            socket,
            address,
            place,
        })
    }

    /// Binds an even port of `ports` and the next one.
    ///
    /// # Errors
    /// Fails if no two such ports are free.
    pub(super) fn bind_pair(
        address: RelayAddress,
        ports: &RangeInclusive<u16>,
        places: [Place; 2],
    ) -> io::Result<[Self; 2]> {
        let sockets = find(ports, true, |port| {
            let next = port.checked_add(1).filter(|next| ports.contains(next));
            let next = next.ok_or(io::ErrorKind::AddrInUse)?;
            Ok([bind(address, port)?, bind(address, next)?])
        })?;
        let ([first, second], [place, next]) = (sockets, places);
        let port = |socket, place| Self {
            socket,
            address,
            place,
        };
        Ok([port(first, place), port(second, next)])
    }
}

fn bind(address: RelayAddress, port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((address.bound, port))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Returns what `bind` makes of the first random port that is free.
fn find<T>(
    ports: &RangeInclusive<u16>,
    even: bool,
    bind: impl Fn(u16) -> io::Result<T>,
) -> io::Result<T> {
    let mut found = Err(io::ErrorKind::AddrInUse.into());
    for _ in 0..TRIES {
        let port = rand::random_range(ports.clone());
        if even && !port.is_multiple_of(2) {
            continue;
        }
        found = bind(port);
        if found.is_ok() {
            break;
        }
    }
    found
}

/// The ports that are kept for a second allocation of the same user, by their tokens. Each holds a
/// place, so there are no more of them than of relayed addresses.
#[derive(Default)]
pub(super) struct Kept(HashMap<u64, (Port, String, Instant)>);

impl Kept {
    /// Keeps a port for `user`. Returns the token for it.
    pub(super) fn keep(&mut self, port: Port, user: &str, now: Instant) -> u64 {
        let token = rand::random();
        self.0.insert(token, (port, user.to_owned(), now + KEPT));
        token
    }

    /// Takes the port of a token, if it is kept for `user`.
    pub(super) fn take(&mut self, token: u64, user: &str, now: Instant) -> Option<Port> {
        self.expire(now);
        if self.0.get(&token)?.1 != user {
            return None;
        }
        self.0.remove(&token).map(|(port, ..)| port)
    }

    /// Returns how many ports are kept for `user`.
    pub(super) fn of(&self, user: &str) -> usize {
        self.0
            .values()
            .filter(|(_, holder, _)| holder == user)
            .count()
    }

    /// Gives back what was kept for long enough.
    pub(super) fn expire(&mut self, now: Instant) {
        self.0.retain(|_, (_, _, until)| *until > now);
    }
}
