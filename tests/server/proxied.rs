//! Clients that come through a proxy that names them by PROXY protocol.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
};

use throughline::server::Server;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpSocket, TcpStream},
    time::timeout,
};

use super::{
    PATIENCE,
    common::{self, peer, until_some},
    secured::{get, made, one_port, over, port, secured},
    start,
};

/// Where the proxy connects from.
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

fn client(last: u8) -> SocketAddr {
    ([198, 51, 100, last], 50_000).into()
}

/// The header of version 2 for a client over TCP and IPv4, with a field that nobody knows.
fn header(client: SocketAddr) -> Vec<u8> {
    let SocketAddr::V4(client) = client else {
        panic!("{client} is not IPv4");
    };
    let start = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x10";
    let port = client.port().to_be_bytes();
    let ips = [client.ip().octets(), [127, 0, 0, 1]].concat();
    [&start[..], &ips, &port, &[1, 0xbb], &[0xee, 0, 1, 7]].concat()
}

async fn from(ip: Ipv4Addr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((ip, 0).into()).unwrap();
    socket.connect(to).await.unwrap()
}

/// A connection that the proxy makes for `client`.
async fn named(server: &Server, client: SocketAddr) -> TcpStream {
    let mut stream = from(PROXY, port(server)).await;
    stream.write_all(&header(client)).await.unwrap();
    stream
}

/// Asks who the server sees, by a Binding request of STUN.
async fn mapped(mut stream: TcpStream) -> SocketAddr {
    let request = b"\x00\x01\x00\x00\x21\x12\xa4\x42 twelve char";
    stream.write_all(&request[..20]).await.unwrap();
    let mut head = [0; 20];
    timeout(PATIENCE, stream.read_exact(&mut head))
        .await
        .unwrap()
        .unwrap();
    let mut body = vec![0; usize::from(u16::from_be_bytes([head[2], head[3]]))];
    stream.read_exact(&mut body).await.unwrap();
    let mut rest = &body[..];
    while let [a, b, c, d, value @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*c, *d]));
        if [*a, *b] == [0, 0x20] {
            let port = u16::from_be_bytes([value[2] ^ 0x21, value[3] ^ 0x12]);
            let ip = [
                value[4] ^ 0x21,
                value[5] ^ 0x12,
                value[6] ^ 0xa4,
                value[7] ^ 0x42,
            ];
            return (ip, port).into();
        }
        rest = &value[length.next_multiple_of(4)..];
    }
    panic!("no mapped address: {body:?}");
}

/// Whether the server ends the connection without a byte.
async fn is_refused(mut stream: TcpStream) -> bool {
    let read = timeout(PATIENCE, stream.read(&mut [0])).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

/// Passes connections on, and names a client for each.
async fn proxy(to: SocketAddr, client: SocketAddr) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut from_client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut to_server = from(PROXY, to).await;
                to_server.write_all(&header(client)).await?;
                copy_bidirectional(&mut from_client, &mut to_server).await
            });
        }
    });
    Ok(address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_names_its_clients_whatever_they_speak() {
    let home = tempfile::tempdir().unwrap();
    let own = made(&["localhost"]);
    own.put(home.path());
    let mut config = secured(home.path());
    config.proxy_protocol = vec![format!("{PROXY}/32")];
    config.http.requests_per_source = 1.try_into().unwrap();
    let server = start(config).await;
    // TURN, and STUN at its port.
    assert_eq!(mapped(named(&server, client(1)).await).await, client(1));
    // HTTP: the limit is that of the client.
    let mut statuses = Vec::new();
    for from in [1, 1, 1, 1, 2] {
        let mut stream = named(&server, client(from)).await;
        let answer = get(&mut stream, "/config.json").await.unwrap();
        statuses.push(answer.split(' ').nth(1).unwrap().to_owned());
    }
    assert!(statuses[..4].contains(&"429".to_owned()), "{statuses:?}");
    assert_eq!(statuses[4], "200", "another client");
    // TLS comes after the header.
    let stream = named(&server, client(3)).await;
    let mut secured = over(stream, &own.cert, "localhost", &[]).await.unwrap();
    let answer = get(&mut secured, "/health").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // libp2p: a peer hears of its address.
    let proxy = proxy(port(&server), client(4)).await.unwrap();
    let mut config = common::config();
    config.relays = vec![format!(
        "/ip4/127.0.0.1/tcp/{}/p2p/{}",
        proxy.port(),
        server.peer_id()
    )];
    let me = peer(config).await;
    until_some(async || {
        let report = me.report().await.unwrap();
        let mut observed = report.observed.iter();
        observed
            .any(|seen| seen.contains("198.51.100.4"))
            .then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_header_counts_from_a_trusted_proxy_only_and_is_needed_there() {
    let mut config = one_port();
    config.proxy_protocol = vec![PROXY.to_string()];
    let server = start(config).await;
    let to = port(&server);
    let request = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    for (ip, start) in [
        (Ipv4Addr::LOCALHOST, &header(client(1))[..]),
        (PROXY, &b""[..]),
        (
            PROXY,
            &b"PROXY TCP4 198.51.100.1 127.0.0.1 50000 443\r\n"[..],
        ),
        (PROXY, &b"\r\n\r\n\0\r\nQUIT\n\x21\x11\xff\xff"[..]),
    ] {
        let mut stream = from(ip, to).await;
        stream.write_all(&[start, request].concat()).await.unwrap();
        assert!(is_refused(stream).await, "{ip} {start:?}");
    }
    let refused = "throughline_refused_total{what=\"proxy_header\",reason=\"invalid\"} 3";
    assert!(server.metrics().contains(refused), "{}", server.metrics());
    // Others need no header, and a proxy may ask for itself.
    let mut direct = from(Ipv4Addr::LOCALHOST, to).await;
    assert!(get(&mut direct, "/health").await.unwrap().contains(" 200 "));
    let mut itself = from(PROXY, to).await;
    let local = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00";
    itself.write_all(local).await.unwrap();
    assert!(get(&mut itself, "/health").await.unwrap().contains(" 200 "));
    // However it arrives, no byte of the client is lost.
    let mut slow = from(PROXY, to).await;
    slow.set_nodelay(true).unwrap();
    for byte in [&header(client(1))[..], request].concat() {
        slow.write_all(&[byte]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = [0; 12];
    timeout(PATIENCE, slow.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}
