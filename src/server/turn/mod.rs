//! A TURN server (RFC 8656) over UDP and TCP, for UDP peers.
//!
//! It keeps no list of users: see [`credentials`]. A request without proof costs it nothing that
//! lasts. What a client may reach through it is the internet, not the networks that the server
//! itself is in.

mod allocation;
mod credentials;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod requests;
#[cfg(test)]
pub(crate) mod testing;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time,
};

pub use self::credentials::{TurnCredentials, turn_secret};
use self::{
    allocation::{MAX_DATAGRAM, Reply},
    requests::{Client, Requests},
};
pub(crate) use self::{credentials::Authority, requests::RelayIps};
use super::{config::TurnConfig, metrics::Metrics};
use crate::{
    core::scope::{Scope, scope},
    native::turn::frame,
};

/// How often what has expired is looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// A TCP connection without an allocation may be silent for this long.
const IDLE: Duration = Duration::from_secs(30);

/// Frames that wait for a slow TCP client at most; more are lost.
const QUEUE: usize = 128;

/// Room for a frame that carries the longest datagram, with its attributes, and the next one.
const BUFFER: usize = 2 * (MAX_DATAGRAM + 128);

/// The bound sockets of a server.
pub(crate) struct Listeners {
    pub(crate) udp: Vec<UdpSocket>,
    pub(crate) tcp: Vec<TcpListener>,
}

/// Serves `listeners` until the future is dropped, which ends every allocation.
pub(crate) async fn serve(
    listeners: Listeners,
    config: TurnConfig,
    authority: Arc<Authority>,
    ips: RelayIps,
    metrics: Metrics,
) {
    let requests = Arc::new(Requests::new(&config, authority, ips, metrics));
    let connections = Arc::new(Semaphore::new(config.connections.get()));
    let first_tcp = listeners.udp.len();
    let mut tasks = JoinSet::new();
    for (listener, socket) in listeners.udp.into_iter().enumerate() {
        tasks.spawn(serve_datagrams(
            listener,
            Arc::new(socket),
            requests.clone(),
        ));
    }
    for (n, socket) in listeners.tcp.into_iter().enumerate() {
        let (listener, requests) = (first_tcp + n, requests.clone());
        tasks.spawn(serve_streams(
            listener,
            socket,
            requests,
            connections.clone(),
        ));
    }
    let mut sweep = time::interval(SWEEP);
    loop {
        sweep.tick().await;
        requests.expire(Instant::now());
    }
}

async fn serve_datagrams(listener: usize, socket: Arc<UdpSocket>, requests: Arc<Requests>) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let (len, address) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "TURN socket");
                time::sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        // Port 0 cannot be answered.
        if address.port() != 0 {
            let client = Client { listener, address };
            let reply = Reply::Datagrams(socket.clone(), address);
            requests.receive(client, &reply, &buffer[..len]);
        }
    }
}

async fn serve_streams(
    listener: usize,
    socket: TcpListener,
    requests: Arc<Requests>,
    connections: Arc<Semaphore>,
) {
    let mut tasks = JoinSet::new();
    loop {
        let Ok(permit) = connections.clone().acquire_owned().await else {
            return;
        };
        match socket.accept().await {
            Ok((stream, address)) => {
                let (requests, client) = (requests.clone(), Client { listener, address });
                tasks.spawn(async move {
                    serve_stream(stream, client, &requests).await;
                    requests.close(client);
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::debug!(%error, "TURN listener");
                time::sleep(Duration::from_millis(10)).await;
            }
        }
        while tasks.try_join_next().is_some() {}
    }
}

async fn serve_stream(stream: TcpStream, client: Client, requests: &Requests) {
    let _ = stream.set_nodelay(true);
    let (mut reader, mut writer) = stream.into_split();
    let (sender, mut queue) = mpsc::channel::<Vec<u8>>(QUEUE);
    let reply = Reply::Stream(sender);
    let write = async {
        while let Some(frame) = queue.recv().await {
            if writer.write_all(&frame).await.is_err() {
                return;
            }
        }
    };
    let read = async {
        let mut buffer = vec![0; BUFFER];
        let mut filled = 0;
        // A frame that does not fit into the buffer leaves no room to read.
        while filled < buffer.len() {
            match time::timeout(IDLE, reader.read(&mut buffer[filled..])).await {
                Ok(Ok(0) | Err(_)) => return,
                Ok(Ok(read)) => filled += read,
                Err(_) if requests.has_allocation(client) => continue,
                Err(_) => return,
            }
            let mut at = 0;
            loop {
                match frame::first(&buffer[at..filled]) {
                    Ok(Some(frame)) => {
                        requests.receive(client, &reply, &buffer[at..at + frame.len]);
                        at += frame.end;
                    }
                    Ok(None) => break,
                    Err(frame::NotTurn) => return,
                }
            }
            buffer.copy_within(at..filled, 0);
            filled -= at;
        }
    };
    tokio::select! {
        () = write => {}
        () = read => {}
    }
}

/// Whether no client may reach `peer`: what nobody may be sent to, and, unless allowed, what has a
/// meaning only in a network of the server's own (RFC 8656 section 21.1).
fn is_forbidden(peer: IpAddr, allow_private: bool) -> bool {
    match scope(peer) {
        Scope::Global => false,
        Scope::Private | Scope::Loopback => !allow_private,
        Scope::Forbidden => true,
    }
}

/// The addresses to relay on: of each family the first host's, told as `external` where that is
/// of the family, and as one of `announced` where the host is a wildcard.
pub(crate) fn relay_ips(
    hosts: &[IpAddr],
    announced: &[IpAddr],
    external: Option<IpAddr>,
) -> RelayIps {
    [true, false]
        .into_iter()
        .filter_map(|v4| {
            let host = hosts.iter().find(|host| host.is_ipv4() == v4)?;
            let external = external.filter(|ip| ip.is_ipv4() == v4);
            let announced = announced.iter().find(|ip| ip.is_ipv4() == v4).copied();
            let own = match host.is_unspecified() {
                true => announced,
                false => Some(*host),
            };
            Some((*host, external.or(own)?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_servers_own_networks_are_out_of_reach() {
        for private in [
            "10.0.0.1",
            "127.0.0.1",
            "::1",
            "fd00::1",
            "64:ff9b::10.0.0.1",
        ]
        .map(ip)
        {
            assert!(is_forbidden(private, false), "{private}");
            assert!(!is_forbidden(private, true), "{private}");
        }
        for forbidden in ["169.254.169.254", "224.0.0.1", "::", "2002:a9fe:a9fe::1"].map(ip) {
            assert!(is_forbidden(forbidden, true), "{forbidden}");
        }
        for global in ["192.0.2.1", "100.128.0.1", "2001:db8::1"].map(ip) {
            assert!(!is_forbidden(global, false), "{global}");
        }
    }

    #[test]
    fn clients_are_told_addresses_that_peers_reach() {
        let [v4, any, v6] = ["192.0.2.1", "0.0.0.0", "2001:db8::1"].map(ip);
        assert_eq!(relay_ips(&[v4, v6], &[], None), [(v4, v4), (v6, v6)]);
        assert_eq!(relay_ips(&[any], &[v6, v4], None), [(any, v4)]);
        assert_eq!(relay_ips(&[any], &[v6], None), []);
        let external = ip("198.51.100.1");
        assert_eq!(
            relay_ips(&[v4, v6], &[], Some(external)),
            [(v4, external), (v6, v6)]
        );
    }
}
