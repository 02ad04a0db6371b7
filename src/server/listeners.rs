//! The sockets that the server listens on. Each is bound so that nobody shares its port, unless it was
//! passed on to the program.

use std::{
    io,
    net::{SocketAddr, TcpListener},
};

use super::config::{Layout, ServerConfig};
use crate::{
    error::{Error, ErrorKind},
    native::{inherited, udp::Sockets},
};

/// How many connections may wait in the kernel until they are accepted.
const BACKLOG: i32 = 1024;

/// Binds the one TCP port of each host.
pub(super) fn bind_entrance(config: &ServerConfig) -> Result<Bound, Error> {
    bind_tcp("tcp", config, 0)
}

/// The listeners of a service, with the addresses that were asked for.
pub(super) type Bound = Vec<(SocketAddr, TcpListener)>;

/// Checks that nobody listens on the port that libp2p is going to bind.
///
/// libp2p binds a TCP port so that another program may listen there too and get some of the
/// connections. If a port is taken, its error does not say for which service.
pub(super) fn check_exclusive(config: &ServerConfig) -> Result<(), Error> {
    if config.port == 0 || config.layout == Layout::One {
        return Ok(());
    }
    for host in &config.hosts {
        let address = SocketAddr::new(*host, offset(config.port, 1));
        if !inherited::has(address, socket2::Type::STREAM) {
            bind(address, socket2::Type::STREAM)
                .map_err(|source| bind_error("websocket", address, source))?;
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

/// Binds TURN over TCP to the fifth port of each host, if it has one.
pub(super) fn bind_turn(config: &ServerConfig) -> Result<Bound, Error> {
    match config.layout {
        Layout::Five => bind_tcp("turn", config, 4),
        Layout::One => Ok(Vec::new()),
    }
}

/// The UDP sockets of each service, in the order of the hosts. Services may share a socket.
pub(super) struct Datagrams {
    pub(super) quic: Vec<Sockets>,
    /// Those of `/webrtc-direct`.
    pub(super) direct: Vec<Sockets>,
    /// Those of STUN: as many for each host as the configuration has STUN ports.
    pub(super) stun: Vec<Sockets>,
    /// Those of TURN, if there is a TURN server.
    pub(super) turn: Vec<Sockets>,
}

/// Binds the UDP sockets. With two STUN ports, a client sees whether its NAT's mapping depends on the
/// destination port, and whether its NAT lets in an answer from the other port.
pub(super) fn bind_udp(config: &ServerConfig) -> Result<Datagrams, Error> {
    let bind = |service: &str, port: u16| {
        let of_hosts = config.hosts.iter().map(|host| {
            let address = SocketAddr::new(*host, port);
            Sockets::bind_one(address).map_err(|source| bind_error(service, address, source))
        });
        of_hosts.collect::<Result<Vec<_>, _>>()
    };
    let port = |n| offset(config.port, n);
    let has_turn = config.turn.secret.is_some();
    let quic = bind("quic", config.port)?;
    let other = match config.stun_alternate() {
        Some(port) => bind("stun", port)?,
        None => Vec::new(),
    };
    let (direct, first, turn) = match config.layout {
        Layout::One => {
            let turn = if has_turn { quic.clone() } else { Vec::new() };
            (quic.clone(), quic.clone(), turn)
        }
        Layout::Five => {
            let direct = bind("webrtc-direct", port(1))?;
            let first = bind("stun", port(2))?;
            let turn = if has_turn {
                bind("turn", port(4))?
            } else {
                Vec::new()
            };
            (direct, first, turn)
        }
    };
    let mut stun = Vec::new();
    for (at, first) in first.into_iter().enumerate() {
        stun.push(first);
        stun.extend(other.get(at).cloned());
    }
    Ok(Datagrams {
        quic,
        direct,
        stun,
        turn,
    })
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
                layout: Layout::Five,
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
