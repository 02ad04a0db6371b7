//! The one TCP port, with and without TLS.

use std::{io, net::SocketAddr, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use throughline::{
    Connector, TurnServer,
    server::{Layout, Server, ServerConfig},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    PATIENCE, address,
    common::{self, echoed, echoing, peer},
    config, dial, direct, start,
};

/// A certificate and its key, in files.
pub(crate) struct Made {
    pub(crate) cert: String,
    pub(crate) key: String,
}

pub(crate) fn made(names: &[&str]) -> Made {
    let names: Vec<_> = names.iter().map(ToString::to_string).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    Made {
        cert: made.cert.pem(),
        key: made.signing_key.serialize_pem(),
    }
}

/// Writes a file as programs do that want no reader to see half of it.
pub(crate) fn put(folder: &Path, name: &str, text: &str) {
    let new = folder.join("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(new, folder.join(name)).unwrap();
}

impl Made {
    pub(crate) fn put(&self, folder: &Path) {
        put(folder, "cert.pem", &self.cert);
        put(folder, "key.pem", &self.key);
    }
}

/// A server that has one TCP port, and TURN.
pub(crate) fn one_port() -> ServerConfig {
    let mut config = config();
    config.layout = Layout::One;
    config.turn.secret = Some("secret".into());
    config.turn.allow_private_peers = true;
    config
}

pub(crate) fn secured(folder: &Path) -> ServerConfig {
    let mut config = one_port();
    config.tls.cert = Some(folder.join("cert.pem"));
    config.tls.key = Some(folder.join("key.pem"));
    config
}

/// The one TCP port of a server.
pub(crate) fn port(server: &Server) -> SocketAddr {
    let address = address(server, "/tcp/");
    let mut ports = address.iter().filter_map(|part| match part {
        libp2p::multiaddr::Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    ([127, 0, 0, 1], ports.next().unwrap()).into()
}

/// Shakes hands with whoever proves to be `name` to those who trust `root`.
pub(crate) async fn connect(
    to: SocketAddr,
    root: &str,
    name: &str,
    alpn: &[&str],
) -> io::Result<TlsStream<TcpStream>> {
    let stream = timeout(PATIENCE, TcpStream::connect(to)).await??;
    over(stream, root, name, alpn).await
}

/// Shakes hands over a connection, as [`connect`] does.
pub(crate) async fn over(
    stream: TcpStream,
    root: &str,
    name: &str,
    alpn: &[&str],
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(root.as_bytes()) {
        roots.add(root.unwrap()).unwrap();
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connector = TlsConnector::from(Arc::new(config));
    timeout(PATIENCE, connector.connect(name, stream)).await?
}

/// Asks for `path`, and returns the answer.
pub(crate) async fn get(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    path: &str,
) -> io::Result<String> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    let read = async {
        loop {
            let mut piece = [0; 4096];
            match stream.read(&mut piece).await? {
                0 => break,
                read => answer.extend_from_slice(&piece[..read]),
            }
            let text = String::from_utf8_lossy(&answer);
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let head = head.to_ascii_lowercase();
            let length = head.split_once("content-length: ");
            let length = length.and_then(|(_, rest)| rest.lines().next()?.parse().ok());
            if length.is_some_and(|length: usize| body.len() >= length) {
                break;
            }
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    timeout(PATIENCE, read).await?
}

/// A TURN server of `server` gives an address over TCP or TLS.
async fn relays(server: &Server, scheme: &str, ca: Option<&Path>) {
    let urls = server.turn_urls().iter();
    let url = urls.filter(|url| url.starts_with(scheme) && url.ends_with("tcp"));
    let credentials = server.turn_credentials().unwrap();
    let mut config = common::config();
    for url in url {
        config.turn.push(TurnServer {
            url: url.clone(),
            username: credentials.username.clone(),
            credential: credentials.credential.clone(),
        });
    }
    assert!(!config.turn.is_empty(), "{:?}", server.turn_urls());
    config.turn_ca = ca.map(Path::to_owned);
    for turn in config.check_turn().await.unwrap() {
        assert!(!turn.relayed.is_empty(), "{turn:?}");
    }
}

/// Two peers meet through `relay`, and through nothing else.
pub(crate) async fn meet(relay: String, ca: Option<&Path>) {
    let mut config = common::config();
    config.direct = false;
    config.relay_ca = ca.map(Path::to_owned);
    let mut at = config.clone();
    at.relays = vec![relay];
    let bob = echoing(at).await;
    let alice = peer(config).await;
    let connection = alice.connect(&bob.ticket()).await.unwrap();
    echoed(&connection).await;
    alice.close().await;
    bob.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_port_takes_every_protocol() {
    for layout in [Layout::One, Layout::Five] {
        let mut config = one_port();
        config.layout = layout;
        let server = start(config).await;
        let port = port(&server);
        let page = get(&mut TcpStream::connect(port).await.unwrap(), "/config.json").await;
        let page = page.unwrap();
        assert!(page.contains(&server.peer_id().to_string()), "{page}");
        for road in ["", "/ws"] {
            let relay = format!("/ip4/127.0.0.1/tcp/{}{road}", port.port());
            let relay = format!("{relay}/p2p/{}", server.peer_id());
            let mut stock = direct::listening().await;
            dial(&mut stock, relay.parse().unwrap()).await.unwrap();
            meet(relay, None).await;
        }
        relays(&server, "turn:", None).await;
        if layout == Layout::One {
            let tcp = server.addresses().iter().filter(|to| to.contains("/tcp/"));
            assert_eq!(tcp.count(), 2, "{:?}", server.addresses());
            assert_eq!(server.http_url(), format!("http://{port}"));
            let of_turn = format!("turn:{port}?transport=tcp");
            assert!(
                server.turn_urls().contains(&of_turn),
                "{:?}",
                server.turn_urls()
            );
        }
        let nonsense: [&[u8]; 3] = [b"SSH-2.0-x\r\n", b"\x16\x03\x01\x00\x05", b"\x80"];
        for bytes in nonsense {
            let mut stream = TcpStream::connect(port).await.unwrap();
            stream.write_all(bytes).await.unwrap();
            let ended = timeout(PATIENCE, stream.read(&mut [0])).await.unwrap();
            assert!(!matches!(ended, Ok(1..)), "{bytes:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_port_takes_every_protocol_within_tls() {
    let home = tempfile::tempdir().unwrap();
    let made = made(&["localhost", "127.0.0.1"]);
    made.put(home.path());
    let server = start(secured(home.path())).await;
    let port = port(&server);
    assert_eq!(
        server.http_url(),
        format!("https://localhost:{}", port.port())
    );
    for alpn in [&[][..], &["h2", "http/1.1"]] {
        let mut stream = connect(port, &made.cert, "localhost", alpn).await.unwrap();
        let page = get(&mut stream, "/config.json").await.unwrap();
        for part in ["/tls/ws/p2p/", "turns:localhost:", "turns:127.0.0.1:"] {
            assert!(page.contains(part), "{part}: {page}");
        }
    }
    // Whoever names a protocol has to speak it, and one that the server has.
    let mut stream = connect(port, &made.cert, "localhost", &["stun.turn"])
        .await
        .unwrap();
    assert!(get(&mut stream, "/").await.unwrap_or_default().is_empty());
    assert!(
        connect(port, &made.cert, "localhost", &["h2"])
            .await
            .is_err()
    );

    let ca = home.path().join("cert.pem");
    for road in ["/dns4/localhost/tcp/", "/ip4/127.0.0.1/tcp/"] {
        let ways = server.addresses().iter();
        let mut ways = ways.filter(|to| to.starts_with(road) && to.contains("/tls/ws"));
        meet(ways.next().expect(road).clone(), Some(&ca)).await;
    }
    relays(&server, "turns:", Some(&ca)).await;
    let metrics = server.metrics();
    for outcome in ["ok", "failed"] {
        let counted = format!("throughline_tls_handshakes_total{{outcome=\"{outcome}\"}}");
        assert!(metrics.contains(&counted), "{metrics}");
    }
    assert!(
        metrics.contains("\nthroughline_tls_certificate_days "),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_counts_for_new_connections_and_ends_no_old_one() {
    let home = tempfile::tempdir().unwrap();
    let (old, new) = (made(&["localhost"]), made(&["localhost"]));
    old.put(home.path());
    let server = start(secured(home.path())).await;
    let port = port(&server);
    let mut kept = connect(port, &old.cert, "localhost", &[]).await.unwrap();
    get(&mut kept, "/health").await.unwrap();

    // The key of another certificate is of no use, and neither is text.
    for (name, text) in [("cert.pem", &new.cert), ("key.pem", &"text".to_owned())] {
        put(home.path(), name, text);
        let error = server.reload_certificate().await.unwrap_err();
        assert!(error.message().contains("cert.pem"), "{error}");
        connect(port, &old.cert, "localhost", &[]).await.unwrap();
    }
    put(home.path(), "key.pem", &new.key);
    // The server notices by itself.
    let noticed = async {
        while connect(port, &new.cert, "localhost", &[]).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, noticed).await.unwrap();
    server.reload_certificate().await.unwrap();
    assert!(connect(port, &old.cert, "localhost", &[]).await.is_err());
    assert!(get(&mut kept, "/health").await.unwrap().ends_with("ok\n"));
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_at_the_start() {
    let home = tempfile::tempdir().unwrap();
    let none = Server::start(secured(home.path())).await.unwrap_err();
    assert!(none.message().starts_with("tls.cert: "), "{none}");
    let (one, other) = (made(&["localhost"]), made(&["localhost"]));
    put(home.path(), "cert.pem", &one.cert);
    put(home.path(), "key.pem", &other.key);
    let mixed = Server::start(secured(home.path())).await.unwrap_err();
    assert!(mixed.message().contains("private key"), "{mixed}");
}

/// The connector says it at once, and not when a relay fails.
#[tokio::test]
async fn a_file_of_authorities_that_cannot_be_used_is_named() {
    let mut config = common::config();
    config.relay_ca = Some("/nowhere/ca.pem".into());
    let refused = Connector::builder().config(config).bind().await;
    let error = refused.err().unwrap();
    assert!(error.message().starts_with("relay_ca: "), "{error}");
}

#[tokio::test]
async fn one_address_shakes_hands_no_more_often_than_it_may() {
    let home = tempfile::tempdir().unwrap();
    let own = made(&["localhost"]);
    own.put(home.path());
    let mut config = secured(home.path());
    config.tls.handshakes_per_source = 1.try_into().unwrap();
    let server = start(config).await;
    let to = port(&server);
    let mut refused = 0;
    for _ in 0..5 {
        refused += u32::from(connect(to, &own.cert, "localhost", &[]).await.is_err());
    }
    // Two may at once, and one more comes back in a second.
    assert!((1..=3).contains(&refused), "{refused}");
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 9], 0).into()).unwrap();
    let other = socket.connect(to).await.unwrap();
    over(other, &own.cert, "localhost", &[]).await.unwrap();
    let counted = "throughline_refused_total{what=\"tls_handshake\",reason=\"rate\"}";
    assert!(server.metrics().contains(counted));
    // Without TLS, nothing is in the way.
    let mut plain = TcpStream::connect(to).await.unwrap();
    assert!(get(&mut plain, "/health").await.unwrap().contains(" 200 "));
}
