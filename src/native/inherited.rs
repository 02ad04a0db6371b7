//! Sockets that a service manager has bound and passes on to the program (`sd_listen_fds(3)`).
//!
//! The manager keeps them while the program is restarted. So clients that come meanwhile wait for the
//! next program, and are not refused.

use std::{
    io,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
};

use listenfd::ListenFd;
use socket2::{Socket, Type};

/// The sockets that nobody has taken yet. A process gets them once.
static SOCKETS: Mutex<Vec<Socket>> = Mutex::new(Vec::new());

fn sockets() -> MutexGuard<'static, Vec<Socket>> {
    // A list is consistent after every call.
    SOCKETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes over the sockets that the environment names.
pub(crate) fn take_over() -> io::Result<()> {
    let mut passed = ListenFd::from_env();
    for at in 0..passed.len() {
        let socket: Option<Socket> = match passed.take_tcp_listener(at) {
            Ok(listener) => listener.map(Into::into),
            // It is no TCP listener.
            Err(_) => passed.take_udp_socket(at)?.map(Into::into),
        };
        if let Some(socket) = socket {
            socket.set_nonblocking(true)?;
            sockets().push(socket);
        }
    }
    Ok(())
}

fn is_at(socket: &Socket, address: SocketAddr, kind: Type) -> bool {
    let bound = socket.local_addr().ok().and_then(|bound| bound.as_socket());
    bound == Some(address) && socket.r#type().is_ok_and(|found| found == kind)
}

/// Whether a socket for `address` was passed on.
pub(crate) fn has(address: SocketAddr, kind: Type) -> bool {
    sockets().iter().any(|socket| is_at(socket, address, kind))
}

/// Returns the socket that was passed on for `address`. A listener listens already.
pub(crate) fn take(address: SocketAddr, kind: Type) -> Option<Socket> {
    let mut sockets = sockets();
    let at = sockets
        .iter()
        .position(|socket| is_at(socket, address, kind))?;
    Some(sockets.swap_remove(at))
}

/// Closes the sockets that nobody has taken. Returns their addresses.
pub(crate) fn close_rest() -> Vec<SocketAddr> {
    let rest = std::mem::take(&mut *sockets()).into_iter();
    let bound = rest.filter_map(|socket| socket.local_addr().ok()?.as_socket());
    bound.collect()
}
