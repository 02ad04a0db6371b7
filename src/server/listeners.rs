//! The sockets that the server listens on. Each is bound so that nobody shares its port, unless it was
//! passed on to the program.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
};

use super::config::{Layout, ServerConfig};
use crate::{
    error::{Error, ErrorKind},
    native::inherited,
};

/// How many connections may wait in the kernel until they are accepted.
const BACKLOG: i32 = 1024;

/// Binds the one TCP port of each host.
pub(super) fn bind_entrance(config: &ServerConfig) -> Result<Bound, Error> {
    bind_tcp("tcp", config, 0)
}

/// The listeners of a service, with the addresses that were asked for.
pub(super) type Bound = Vec<(SocketAddr, TcpListener)>;

/// Checks that nobody listens on the ports that libp2p is going to bind.
///
/// libp2p binds a TCP port so that another program may listen there too and get some of the
/// connections. If a port is taken, its error does not say for which service.
pub(super) fn check_exclusive(config: &ServerConfig) -> Result<(), Error> {
    use socket2::Type;
    if config.port == 0 {
        return Ok(());
    }
    for host in &config.hosts {
        for (service, kind, n) in [
            ("quic", Type::DGRAM, 0),
            ("websocket", Type::STREAM, 1),
            ("webrtc-direct", Type::DGRAM, 1),
        ] {
            if kind == Type::STREAM && config.layout == Layout::One {
                continue;
            }
            let address = SocketAddr::new(*host, offset(config.port, n));
            if inherited::has(address, kind) {
                continue;
            }
            bind(address, kind).map_err(|source| bind_error(service, address, source))?;
        }
    }
    Ok(())
}

/// Binds the page to the third port of each host, if it has one.
pub(super) fn bind_http(config: &ServerConfig) -> Result<Bound, Error> {
    match config.layout {
        Layout::Five => bind_tcp("http", config, 2),
        Layout::One => Ok(Vec::new()),
    }
}

fn bind_tcp(service: &str, config: &ServerConfig, n: u16) -> Result<Bound, Error> {
    config
        .hosts
        .iter()
        .map(|host| {
            let address = SocketAddr::new(*host, offset(config.port, n));
            Ok((address, bind_tcp_at(service, address)?))
        })
        .collect()
}

pub(super) fn bind_tcp_at(service: &str, address: SocketAddr) -> Result<TcpListener, Error> {
    if let Some(listener) = inherited::take(address, socket2::Type::STREAM) {
        return Ok(listener.into());
    }
    bind(address, socket2::Type::STREAM)
        .and_then(|socket| socket.listen(BACKLOG).map(|()| socket.into()))
        .map_err(|source| bind_error(service, address, source))
}

/// Binds STUN to the third and the fourth port of each host. With two ports, a client sees whether
/// its NAT's mapping depends on the destination port, and whether its NAT lets in an answer from
/// the other port.
pub(super) fn bind_stun(config: &ServerConfig) -> Result<Vec<(SocketAddr, UdpSocket)>, Error> {
    bind_udp("stun", config, &[2, 3])
}

type TurnListeners = (Vec<(SocketAddr, UdpSocket)>, Bound);

/// Binds TURN to the fifth port of each host, over TCP if it has one.
pub(super) fn bind_turn(config: &ServerConfig) -> Result<TurnListeners, Error> {
    let tcp = match config.layout {
        Layout::Five => bind_tcp("turn", config, 4)?,
        Layout::One => Vec::new(),
    };
    Ok((bind_udp("turn", config, &[4])?, tcp))
}

fn bind_udp(
    service: &str,
    config: &ServerConfig,
    offsets: &[u16],
) -> Result<Vec<(SocketAddr, UdpSocket)>, Error> {
    let at = |host: &IpAddr, n: &u16| SocketAddr::new(*host, offset(config.port, *n));
    config
        .hosts
        .iter()
        .flat_map(|host| offsets.iter().map(move |n| at(host, n)))
        .map(|address| {
            let passed = inherited::take(address, socket2::Type::DGRAM);
            let socket = passed.map_or_else(|| bind(address, socket2::Type::DGRAM), Ok);
            let socket = socket.map_err(|source| bind_error(service, address, source))?;
            Ok((address, socket.into()))
        })
        .collect()
}

fn offset(port: u16, n: u16) -> u16 {
    if port == 0 { 0 } else { port.saturating_add(n) }
}

fn bind(address: SocketAddr, kind: socket2::Type) -> io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), kind, None)?;
    if address.is_ipv6() {
        // `0.0.0.0` and `::` can then be bound to the same port.
        socket.set_only_v6(true)?;
    }
    if kind == socket2::Type::STREAM {
        // A restart must not wait for the TIME-WAIT of old connections.
        socket.set_reuse_address(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

pub(super) fn bind_error(service: &str, address: SocketAddr, error: io::Error) -> Error {
    Error::new(
        ErrorKind::Io,
        format!("cannot bind {service} to {address}: {error}"),
    )
    .with_source(error)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::testing::free_ports;

    /// A listener that lets others listen on its port, as libp2p's does.
    fn shared(port: u16) -> TcpListener {
        let address: SocketAddr = (Ipv4Addr::LOCALHOST, port).into();
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
        let socket = socket.unwrap();
        socket.set_reuse_address(true).unwrap();
        #[cfg(unix)]
        socket.set_reuse_port(true).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(1).unwrap();
        socket.into()
    }

    #[test]
    fn no_port_is_shared() {
        for (service, n) in [("tcp", 0), ("websocket", 1), ("http", 2), ("turn", 4)] {
            let first = free_ports();
            let port = first + n;
            let _other = shared(port);
            let config = ServerConfig {
                hosts: vec!["127.0.0.1".parse().unwrap()],
                port: first,
                ..ServerConfig::default()
            };
            let error = match service {
                "http" => bind_http(&config).unwrap_err(),
                "turn" => bind_turn(&config).unwrap_err(),
                "tcp" => bind_entrance(&config).unwrap_err(),
                _ => check_exclusive(&config).unwrap_err(),
            };
            let named = format!("cannot bind {service} to 127.0.0.1:{port}: ");
            assert!(error.message().starts_with(&named), "{error}");
        }
    }
}
