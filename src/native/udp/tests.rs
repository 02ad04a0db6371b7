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

/// Counts what it gets.
#[derive(Default)]
struct Counted {
    others: Mutex<Vec<u8>>,
    quic: Mutex<Vec<u8>>,
    channels: bool,
}

impl Receiver for Counted {
    fn receive(&self, _: Instant, _: SocketAddr, _: SocketAddr, data: &[u8]) {
        self.others.lock().unwrap().push(data[0]);
    }

    fn receive_quic(&self, _: SocketAddr, _: SocketAddr, data: &[u8], segment: usize) -> bool {
        let firsts = data.chunks(segment).map(|datagram| datagram[0]);
        self.quic.lock().unwrap().extend(firsts);
        true
    }

    fn has_channels(&self, _: SocketAddr, _: SocketAddr) -> bool {
        self.channels
    }
}

impl Counted {
    /// What it got as QUIC, and what else.
    fn take(&self) -> (Vec<u8>, Vec<u8>) {
        let [quic, others] = [&self.quic, &self.others].map(|all| all.lock().unwrap().split_off(0));
        (quic, others)
    }
}

/// The datagrams come in one run, as the kernel joins those of one source.
#[cfg(feature = "server")]
#[tokio::test]
async fn a_server_tells_channels_from_quic_and_turn_from_checks() {
    let tag = [1, 2, 3, 4];
    let at: SocketAddr = "127.0.0.1:9".parse().unwrap();
    let short = |first: u8| [&[first], &tag[..], &[0; 11]].concat();
    let channel = |first: u8| [&[first, 1, 0, 12][..], &[0; 12]].concat();
    for channels in [true, false] {
        let sockets = Sockets::bind_one(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let quic = Arc::new(Counted::default());
        let service = Arc::new(Counted {
            channels,
            ..Counted::default()
        });
        let (to_quic, to_service): (Handle, Handle) = (quic.clone(), service.clone());
        sockets.route_tag(tag, &to_quic);
        sockets.route_quic_listener(&to_quic);
        sockets.route_service(&to_service);
        let run: Vec<u8> = [0x40, 0x7f]
            .iter()
            .flat_map(|first| [short(*first), channel(*first)].concat())
            .collect();
        let mut touched = Vec::new();
        let now = Instant::now();
        routes::dispatch(&sockets.0.routes, now, at, at, (&run, 16), &mut touched);
        match channels {
            true => {
                assert_eq!(quic.take(), (vec![0x40, 0x7f], vec![]));
                assert_eq!(service.take(), (vec![], vec![0x40, 0x7f]));
            }
            // It may be QUIC that the server has forgotten.
            false => assert_eq!(quic.take().0, [0x40, 0x40, 0x7f, 0x7f]),
        }
        let allocate = [
            0, 3, 0, 0, 0x21, 0x12, 0xa4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,
        ];
        let mut binding = allocate;
        binding[1] = 1;
        for message in [allocate, binding] {
            // A shorter datagram ends a run of the kernel.
            let run = [&[&[0x40][..], &tag[..], &[0; 20]].concat()[..], &message].concat();
            routes::dispatch(&sockets.0.routes, now, at, at, (&run, 25), &mut touched);
            assert_eq!(quic.take().0, [0x40]);
            assert_eq!(service.take(), (vec![], vec![0]));
        }
    }
}
