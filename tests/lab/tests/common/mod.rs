//! Shared by the lab's tests. Each test file uses its own part of it.
#![allow(dead_code)]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use throughline_lab::{Browsers, Host, Lab, Parts};
use tokio::{net::UdpSocket, time::timeout};

/// `None` where no lab can run, said aloud; a failure where one must, as in CI.
pub(crate) fn lab_or_skip() -> Option<()> {
    match Lab::available() {
        Ok(()) => Some(()),
        Err(missing) if std::env::var_os("CI").is_some() => panic!("{missing}"),
        Err(missing) => {
            eprintln!("SKIPPED: {missing}");
            None
        }
    }
}

/// Long enough for anything in a lab without delays.
pub(crate) const SOON: Duration = Duration::from_millis(400);

/// The port of [`echo`].
pub(crate) const ECHO: u16 = 7;

/// Answers every datagram on port 7 of `host` with the sender's address as seen there, from now on.
pub(crate) fn echo(host: &Host) -> SocketAddr {
    let address = SocketAddr::new(host.ip().unwrap(), ECHO);
    let (ready, started) = std::sync::mpsc::channel();
    host.spawn(async move || {
        let socket = UdpSocket::bind(address).await.unwrap();
        ready.send(()).unwrap();
        let mut buffer = [0; 2_048];
        loop {
            let (_, from) = socket.recv_from(&mut buffer).await.unwrap();
            let _ = socket.send_to(from.to_string().as_bytes(), from).await;
        }
    })
    .unwrap();
    started.recv().unwrap();
    address
}

/// What [`echo`] at `server` sees of `socket`.
pub(crate) async fn seen_by(socket: &UdpSocket, server: SocketAddr) -> Option<SocketAddr> {
    socket.send_to(b"?", server).await.ok()?;
    let deadline = Instant::now() + SOON;
    let mut buffer = [0; 64];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let (length, from) = timeout(left, socket.recv_from(&mut buffer))
            .await
            .ok()?
            .ok()?;
        if from == server {
            return std::str::from_utf8(&buffer[..length]).ok()?.parse().ok();
        }
    }
}

/// The sender of the next datagram, if one arrives soon.
pub(crate) async fn receives(socket: &UdpSocket) -> Option<SocketAddr> {
    timeout(SOON, socket.recv_from(&mut [0; 64]))
        .await
        .ok()?
        .ok()
        .map(|(_, from)| from)
}

/// The parts under test, or `None` where they or the lab cannot be had, said aloud; a failure in CI. With
/// `browsers` also what drives them must be there.
pub(crate) fn parts_or_skip(browsers: bool) -> Option<Parts> {
    lab_or_skip()?;
    let parts = Parts::find(None)
        .map_err(|error| error.to_string())
        .and_then(|parts| match browsers {
            true => Browsers::available(&parts.repository).map(|()| parts),
            false => Ok(parts),
        });
    match parts {
        Ok(parts) => Some(parts),
        Err(missing) if std::env::var_os("CI").is_some() => panic!("{missing}"),
        Err(missing) => {
            eprintln!("SKIPPED: {missing}");
            None
        }
    }
}
