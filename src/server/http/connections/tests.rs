use std::net::SocketAddr;

use axum::routing::get;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    time::interval,
};

use super::*;
use crate::{
    server::{config::ServerConfig, metrics::Metrics, settings::Settings},
    testing::{PATIENCE, until},
};

const MILLIS: Duration = Duration::from_millis(1);
const REQUEST: &[u8] = b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n";

fn bounds() -> Bounds {
    Bounds {
        head: 200 * MILLIS,
        grace: 200 * MILLIS,
        rate: 1 << 20,
        life: 10 * PATIENCE,
        requests: 3,
    }
}

/// What is served, and a door that lets one address have three of four places.
fn door(bounds: Bounds) -> Door {
    let mut config = ServerConfig::default();
    config.connections.http = 4.try_into().unwrap();
    config.connections.share_per_address = 50;
    config.http.requests_per_source = 2.try_into().unwrap();
    let metrics = Metrics::new(&config);
    let pools = Pools::new(&Settings::fixed(config), &metrics);
    Door {
        bounds,
        ..Door::new(&pools.http, &pools, &Descriptors::unlimited())
    }
}

async fn served(door: &Door) -> SocketAddr {
    let router = Router::new()
        .route("/small", get(|| async { "small" }))
        .route("/large", get(|| async { vec![b'a'; 64 << 20] }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, router, door.clone()));
    address
}

async fn connect(from: &str, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
    socket.connect(to).await.unwrap()
}

/// What comes until the connection ends, cleanly or not.
async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    let end = async {
        while let Ok(read @ 1..) = stream.read(&mut piece).await {
            all.extend_from_slice(&piece[..read]);
        }
    };
    timeout(PATIENCE, end).await.expect("the connection ends");
    all
}

#[tokio::test]
async fn bytes_now_and_then_do_not_keep_a_connection() {
    let door = door(bounds());
    let address = served(&door).await;
    for head in [&b""[..], b"GET / HTTP/1.1\r\nX: "] {
        let stream = connect("127.0.0.2", address).await;
        let (mut read, mut write) = stream.into_split();
        let start = Instant::now();
        let drip = tokio::spawn(async move {
            write.write_all(head).await.unwrap();
            let mut tick = interval(20 * MILLIS);
            while !head.is_empty() && write.write_all(b"a").await.is_ok() {
                tick.tick().await;
            }
            write
        });
        rest(&mut read).await;
        assert!(start.elapsed() >= 150 * MILLIS, "not before its time");
        drip.abort();
    }
    assert_eq!(door.pool.taken(), 0);
}

#[tokio::test]
async fn a_connection_that_asks_nothing_more_ends() {
    let door = door(bounds());
    let mut stream = connect("127.0.0.2", served(&door).await).await;
    stream.write_all(REQUEST).await.unwrap();
    assert!(rest(&mut stream).await.ends_with(b"small"));
}

#[tokio::test]
async fn whoever_takes_nothing_is_given_up() {
    let door = door(bounds());
    let mut stream = connect("127.0.0.2", served(&door).await).await;
    stream
        .write_all(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    // The place is free when it is over, and only then.
    stream.readable().await.unwrap();
    until(|| door.pool.taken() == 0).await;
    assert!(rest(&mut stream).await.len() < 64 << 20);
}

#[tokio::test]
async fn no_connection_lives_for_ever() {
    let bounds = Bounds {
        head: PATIENCE,
        life: 200 * MILLIS,
        ..bounds()
    };
    let mut stream = connect("127.0.0.2", served(&door(bounds)).await).await;
    assert_eq!(rest(&mut stream).await, b"");
}

#[tokio::test]
async fn beyond_its_share_an_address_is_closed_at_once_and_others_are_not() {
    let bounds = Bounds {
        head: PATIENCE,
        ..bounds()
    };
    let door = door(bounds);
    let address = served(&door).await;
    let first = connect("127.0.0.2", address).await;
    let _others = [
        connect("127.0.0.2", address).await,
        connect("127.0.0.2", address).await,
    ];
    for _ in 0..20 {
        assert_eq!(rest(&mut connect("127.0.0.2", address).await).await, b"");
    }
    let mut other = connect("127.0.0.3", address).await;
    other.write_all(REQUEST).await.unwrap();
    other.readable().await.unwrap();
    drop(first);
    let text = door.refusals.metrics.encode().unwrap();
    let line = "throughline_refused_total{what=\"http\",reason=\"address\"} 20\n";
    assert!(text.contains(line), "{text}");
}

#[tokio::test]
async fn requests_are_bounded_by_rate_and_by_connection() {
    let door = door(bounds());
    let address = served(&door).await;
    let mut stream = connect("127.0.0.2", address).await;
    stream.write_all(&REQUEST.repeat(5)).await.unwrap();
    let text = String::from_utf8(rest(&mut stream).await).unwrap();
    assert_eq!(text.matches("HTTP/1.1 200").count(), 3, "{text}");
    assert_eq!(text.matches("connection: close").count(), 1, "{text}");

    let mut stream = connect("127.0.0.2", address).await;
    stream.write_all(&REQUEST.repeat(5)).await.unwrap();
    let text = String::from_utf8(rest(&mut stream).await).unwrap();
    assert!(
        text.contains("HTTP/1.1 429") && text.contains("retry-after: 1"),
        "{text}"
    );
    let mut other = connect("127.0.0.3", address).await;
    other.write_all(REQUEST).await.unwrap();
    assert!(rest(&mut other).await.starts_with(b"HTTP/1.1 200"));
    let text = door.refusals.metrics.encode().unwrap();
    assert!(
        text.contains("what=\"http_request\",reason=\"rate\""),
        "{text}"
    );
}

#[tokio::test]
async fn a_body_is_not_waited_for() {
    for field in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
        let door = door(Bounds {
            head: PATIENCE,
            ..bounds()
        });
        let mut stream = connect("127.0.0.2", served(&door).await).await;
        let head = format!("POST /small HTTP/1.1\r\nHost: x\r\n{field}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        assert!(rest(&mut stream).await.starts_with(b"HTTP/1.1 413"));
    }
}

#[tokio::test]
async fn whom_a_trusted_proxy_asks_for_counts() {
    let mut door = door(Bounds {
        requests: 100,
        ..Bounds::default()
    });
    door.trusted = Arc::new(["127.0.0.9".parse().unwrap()]);
    let address = served(&door).await;
    let ask = async |from: &str, client: &str| {
        let mut stream = connect(from, address).await;
        let request =
            format!("GET /small HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {client}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = vec![0; 12];
        let code = match stream.read_exact(&mut head).await {
            Ok(_) => String::from_utf8(head.split_off(9)).unwrap(),
            Err(_) => String::from("none"),
        };
        (stream, code)
    };
    // Two of the four places of one client, however many connections its proxy has.
    let (_first, code) = ask("127.0.0.9", "203.0.113.1, 192.0.2.1").await;
    assert_eq!(code, "200");
    let (_second, code) = ask("127.0.0.9", "192.0.2.1").await;
    assert_eq!(code, "200");
    let (_third, code) = ask("127.0.0.9", "192.0.2.1").await;
    assert_eq!(code, "200");
    let (refused, code) = ask("127.0.0.9", "192.0.2.1").await;
    assert_eq!(code, "503", "its share");
    drop(refused);
    let (mut other, code) = ask("127.0.0.9", "192.0.2.2").await;
    assert_eq!(code, "200", "another client of the proxy");
    // A connection is its client's until the next request of it.
    let request = b"GET /small HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n";
    other.write_all(request).await.unwrap();
    let all = String::from_utf8(rest(&mut other).await).unwrap();
    assert!(all.contains("503 Service Unavailable"), "{all}");
    // Whoever is no proxy is itself.
    let (_stranger, code) = ask("127.0.0.3", "192.0.2.1").await;
    assert_eq!(code, "200");
}
