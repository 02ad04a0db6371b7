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

#[tokio::test]
async fn a_destination_without_a_way_is_told() {
    let sockets = Sockets::bind(Addresses::default()).unwrap();
    let unreachable = sockets.unreachable();
    // No interface of this machine has this source.
    let source = "203.0.113.7:0".parse().unwrap();
    let destination = "127.0.0.1:9".parse().unwrap();
    sockets.send(source, destination, b"?", 1).await;
    let told = tokio::time::timeout(crate::testing::PATIENCE, unreachable.notified());
    told.await.unwrap();
}

#[test]
fn a_buffer_that_is_full_or_a_port_that_is_closed_says_nothing_of_the_way() {
    assert!(is_unreachable(io::ErrorKind::NetworkUnreachable));
    assert!(!is_unreachable(io::ErrorKind::ConnectionRefused));
    assert!(!is_unreachable(io::ErrorKind::PermissionDenied));
}
