//! Certificates from pebble, the test server of ACME.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustls::pki_types::CertificateDer;
use serde_json::json;
use throughline::server::{Layout, Server, ServerConfig};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::{
    PATIENCE,
    common::{free_ports, until, until_polled, warned},
    config,
    secured::{connect, get, made, meet, port, put},
    start,
};

/// Pebble resolves it to loopback, by its own DNS server.
const NAME: &str = "relay.example.com";

/// What `/health` says while there is no new certificate.
const NOT_RENEWED: &str = "ok, but the certificate is not renewed\n";

/// A running pebble with a DNS server of its own. Dropping it ends both.
struct Pebble {
    children: [Child; 2],
    /// The port where the names that its DNS server knows are changed.
    names: u16,
    home: tempfile::TempDir,
    directory: u16,
    management: SocketAddr,
    ca: String,
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.end();
    }
}

/// How a pebble behaves.
struct Behaviour {
    /// The port that it checks.
    checks: u16,
    /// How many percent of good nonces it rejects.
    rejects: u8,
    /// How long certificates last.
    seconds: u32,
}

impl Pebble {
    async fn start(behaviour: Behaviour) -> Self {
        let home = tempfile::tempdir().unwrap();
        let own = made(&["localhost", "127.0.0.1"]);
        put(home.path(), "cert.pem", &own.cert);
        put(home.path(), "key.pem", &own.key);
        let first = free_ports();
        let [listens, manages, dns, manages_dns] = [0, 1, 2, 3].map(|n| first + n);
        let at = |port: u16| format!("127.0.0.1:{port}");
        let settings = json!({"pebble": {
            "listenAddress": at(listens),
            "managementListenAddress": at(manages),
            "certificate": home.path().join("cert.pem"),
            "privateKey": home.path().join("key.pem"),
            "httpPort": 1,
            "tlsPort": behaviour.checks,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
            "certificateValidityPeriod": behaviour.seconds,
        }});
        put(home.path(), "pebble.json", &settings.to_string());
        let run = |command: &mut Command| {
            let quiet = command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .stdin(Stdio::null());
            quiet.spawn().expect("pebble is there; see scripts/setup")
        };
        let names = run(Command::new("pebble-challtestsrv")
            .args(["-defaultIPv4", "127.0.0.1", "-defaultIPv6", ""])
            .args(["-dns01", &at(dns), "-management", &at(manages_dns)])
            .args(["-http01", "", "-https01", "", "-tlsalpn01", ""]));
        let pebble = run(Command::new("pebble")
            .args(["-dnsserver", &at(dns), "-config"])
            .arg(home.path().join("pebble.json"))
            .env("PEBBLE_VA_NOSLEEP", "1")
            .env("PEBBLE_AUTHZREUSE", "0")
            .env("PEBBLE_WFE_NONCEREJECT", behaviour.rejects.to_string()));
        for port in [listens, manages, manages_dns] {
            until_polled(|| std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok())
                .await;
        }
        Self {
            children: [pebble, names],
            names: manages_dns,
            directory: listens,
            management: (Ipv4Addr::LOCALHOST, manages).into(),
            ca: own.cert,
            home,
        }
    }

    fn end(&mut self) {
        for child in &mut self.children {
            // An error says that it has ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Has the names lead to another address from now on.
    async fn move_names(&self, to: Ipv4Addr) {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.names));
        let mut stream = stream.await.unwrap();
        let body = json!({ "ip": to }).to_string();
        let head = format!(
            "POST /set-default-ipv4 HTTP/1.1\r\nHost: x\r\nContent-Length: {}",
            body.len()
        );
        let request = format!("{head}\r\nConnection: close\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }

    /// The certificate of the authority, in PEM.
    async fn root(&self) -> String {
        let mut stream = connect(self.management, &self.ca, "localhost", &[])
            .await
            .unwrap();
        let answer = get(&mut stream, "/roots/0").await.unwrap();
        let (_, pem) = answer.split_once("\r\n\r\n").unwrap();
        pem.to_owned()
    }

    /// Has a server get its certificate here.
    fn serve(&self, config: &mut ServerConfig, domains: &[&str]) {
        config.tls.domains = domains.iter().map(ToString::to_string).collect();
        config.tls.contact = Some("admin@example.org".into());
        config.tls.directory = format!("https://localhost:{}/dir", self.directory);
        config.tls.directory_ca = Some(self.home.path().join("cert.pem"));
    }
}

/// A server at a port that is known before it starts, as an authority knows it.
fn at(port: u16, data: &Path) -> ServerConfig {
    let mut config = config();
    config.layout = Layout::One;
    config.port = port;
    config.data = Some(data.to_owned());
    config
}

/// How long certificates last that are not to be renewed while a test runs.
const DAYS: u32 = 6 * 24 * 60 * 60;

/// A server that has just got its first certificate.
struct Certified {
    server: Server,
    config: ServerConfig,
    /// The authority, and its own certificate in PEM.
    pebble: Pebble,
    root: String,
    data: tempfile::TempDir,
}

/// Starts a server for these domains. Its certificates last `seconds`.
async fn certified(domains: &[&str], seconds: u32) -> Certified {
    let (checks, data) = (free_ports(), tempfile::tempdir().unwrap());
    let pebble = Pebble::start(Behaviour {
        checks,
        rejects: 0,
        seconds,
    })
    .await;
    let mut config = at(checks, data.path());
    pebble.serve(&mut config, domains);
    let server = start(config.clone()).await;
    orders(&server, "issued", 1).await;
    let root = pebble.root().await;
    Certified {
        server,
        config,
        pebble,
        root,
        data,
    }
}

async fn orders(server: &Server, outcome: &str, count: usize) {
    let line =
        format!("throughline_tls_certificate_orders_total{{outcome=\"{outcome}\"}} {count}\n");
    until(|| server.metrics().contains(&line)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_and_an_address_get_a_certificate_that_is_kept() {
    let Certified {
        server,
        mut config,
        mut pebble,
        root,
        data,
    } = certified(&[NAME, "127.0.0.1"], DAYS).await;
    let first = config.port;
    assert_eq!(server.http_url(), format!("https://{NAME}:{first}"));
    for name in [NAME, "127.0.0.1"] {
        let mut stream = connect(port(&server), &root, name, &[]).await.unwrap();
        let page = get(&mut stream, "/config.json").await.unwrap();
        assert!(
            page.contains(&format!("/dns4/{NAME}/tcp/{first}/tls/ws/p2p/")),
            "{page}"
        );
    }
    let ca = data.path().join("ca.pem");
    fs::write(&ca, &root).unwrap();
    let by_name = format!(
        "/ip4/127.0.0.1/tcp/{first}/tls/sni/{NAME}/ws/p2p/{}",
        server.peer_id()
    );
    meet(by_name, Some(&ca)).await;
    let metrics = server.metrics();
    let days = metrics
        .lines()
        .find_map(|line| line.strip_prefix("throughline_tls_certificate_days "));
    let days: f64 = days.unwrap().parse().unwrap();
    assert!((5.9..6.1).contains(&days), "{days}");
    for name in ["acme-account.json", "acme-certificate.pem"] {
        let mode = fs::metadata(data.path().join(name))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }

    // After a restart, at other ports, the certificate is there at once, whatever the authority does.
    server.shutdown().await;
    config.port = free_ports();
    pebble.end();
    let server = start(config).await;
    connect(port(&server), &root, NAME, &[]).await.unwrap();
    assert!(!server.metrics().contains("certificate_orders_total{"));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_ends_at_a_renewal() {
    let first = certified(&[NAME], 12).await;
    let (server, root) = (&first.server, &first.root);
    let mut old = connect(port(server), root, NAME, &[]).await.unwrap();
    // A request now and then, as a client makes it that stays.
    let mut pace = tokio::time::interval(Duration::from_millis(200));
    let mut requests = 0;
    let renewed = async {
        loop {
            assert!(get(&mut old, "/health").await.unwrap().ends_with("ok\n"));
            let new = connect(port(server), root, NAME, &[]).await.unwrap();
            if served(&new) != served(&old) {
                return;
            }
            requests += 1;
            pace.tick().await;
        }
    };
    timeout(PATIENCE, renewed).await.expect("a new certificate");
    assert!(requests > 0, "the first certificate was served for a while");
    assert!(get(&mut old, "/health").await.unwrap().ends_with("ok\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_refuses_or_is_gone_leaves_the_server_as_it_is() {
    // Nobody listens there.
    let nobody = free_ports();
    for (rejects, wrong_port, gone) in [(100, false, false), (0, true, false), (0, false, true)] {
        let (first, data) = (free_ports(), tempfile::tempdir().unwrap());
        let mut pebble = Pebble::start(Behaviour {
            checks: if wrong_port { nobody } else { first },
            rejects,
            seconds: 60,
        })
        .await;
        if gone {
            pebble.directory = nobody;
        }
        let mut config = at(first, data.path());
        pebble.serve(&mut config, &[NAME]);
        let server = start(config).await;
        orders(&server, "failed", 1).await;
        let plain = TcpStream::connect(port(&server)).await;
        let health = get(&mut plain.unwrap(), "/health").await.unwrap();
        assert!(health.ends_with(NOT_RENEWED), "{health}");
        let root = pebble.root().await;
        assert!(connect(port(&server), &root, NAME, &[]).await.is_err());
    }
}

fn served(stream: &tokio_rustls::client::TlsStream<TcpStream>) -> &CertificateDer<'_> {
    &stream.get_ref().1.peer_certificates().unwrap()[0]
}

/// Checks that clients are still served with this certificate, and that the operator hears why.
async fn served_on(server: &Server, root: &str, old: &CertificateDer<'_>) {
    orders(server, "failed", 1).await;
    let mut stream = connect(port(server), root, NAME, &[]).await.unwrap();
    assert_eq!(served(&stream), old);
    let health = get(&mut stream, "/health").await.unwrap();
    assert!(health.ends_with(NOT_RENEWED), "{health}");
    assert!(warned("no certificate was issued"));
    // It is not asked again before minutes have passed.
    let failed = "certificate_orders_total{outcome=\"failed\"} 1\n";
    assert!(server.metrics().contains(failed), "{}", server.metrics());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_hangs_leaves_the_old_certificate() {
    let Certified {
        server,
        mut config,
        root,
        pebble: _pebble,
        data: _data,
    } = certified(&[NAME], DAYS).await;
    let stream = connect(port(&server), &root, NAME, &[]).await.unwrap();
    let old = served(&stream).clone().into_owned();
    server.shutdown().await;

    // The next authority takes connections and never says a word, so its first certificate is due.
    let silent = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    config.tls.directory = format!("https://localhost:{silent_port}/dir");
    config.port = free_ports();
    let server = start(config).await;
    let accepted = timeout(PATIENCE, silent.accept()).await;
    let (mut asking, _) = accepted.expect("it is asked").unwrap();
    let mut stream = connect(port(&server), &root, NAME, &[]).await.unwrap();
    assert_eq!(*served(&stream), old);
    let health = get(&mut stream, "/health").await.unwrap();
    assert!(health.ends_with("ok\n"), "it may still answer: {health}");
    let mut heard = Vec::new();
    // The server waits as long as a test does for anything else.
    let given_up = timeout(2 * PATIENCE, asking.read_to_end(&mut heard)).await;
    _ = given_up.expect("the server gives it up");
    served_on(&server, &root, &old).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authority_that_refuses_a_renewal_leaves_the_old_certificate() {
    let first = certified(&[NAME], 27).await;
    let stream = connect(port(&first.server), &first.root, NAME, &[]);
    let stream = stream.await.unwrap();
    let old = served(&stream).clone().into_owned();
    // The name leads to somebody else now, so the authority finds no proof.
    first.pebble.move_names(Ipv4Addr::new(127, 9, 9, 9)).await;
    served_on(&first.server, &first.root, &old).await;
}
