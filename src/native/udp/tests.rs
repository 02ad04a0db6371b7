use socket2::SockRef;

use super::*;

#[cfg(feature = "server")]
#[tokio::test]
async fn a_socket_has_larger_buffers_than_the_default_of_the_system() {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let plain = std::net::UdpSocket::bind(loopback).unwrap();
    let plain = SockRef::from(&plain).recv_buffer_size().unwrap();
    let sockets = Sockets::bind_one(loopback).unwrap();
    let port = sockets.of(loopback.ip()).unwrap();
    let room = SockRef::from(&port.socket).recv_buffer_size().unwrap();
    assert!(room > plain, "{room} bytes, the default has {plain}");
    assert!(sockets.of(Ipv6Addr::LOCALHOST.into()).is_none());
}
