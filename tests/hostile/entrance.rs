//! Who comes to the one TCP port and never says what they speak.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Instant, interval},
};
use tokio_rustls::TlsConnector;

use super::{
    measure::at_a_pace,
    server::{ATTACKER, Attack, Served},
    *,
};

/// As src/server/entrance.rs has it: from when a connection is there until its protocol is known.
const DEADLINE: Duration = Duration::from_secs(10);

/// A server with a certificate for `localhost`, and how its clients shake hands.
fn secured() -> (Served, Arc<ClientConfig>, tempfile::TempDir) {
    let home = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let (cert, key) = (home.path().join("cert.pem"), home.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(&cert).unwrap())
        .unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    // Honest peers come over TCP from one address, to the same port.
    let bursts = "[relay]\nreservation_burst = 100000\ncircuit_burst = 100000\n";
    let mut served = Served::start(&format!("{bursts}[tls]\ncert = {cert:?}\nkey = {key:?}\n"));
    served.way = "/tcp/";
    (served, Arc::new(client), home)
}

/// The ways not to say what one speaks.
#[derive(Clone, Copy, Debug)]
enum Silence {
    Silent,
    HalfAHello,
    DrippingHttp,
    DrippingWithinTls,
}

const SILENCES: [Silence; 4] = [
    Silence::Silent,
    Silence::HalfAHello,
    Silence::DrippingHttp,
    Silence::DrippingWithinTls,
];

/// Writes a request that never ends, until the server ends the connection.
async fn drip(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let mut pace = interval(Duration::from_millis(100));
    let mut request = b"GET / HTTP/1.1\r\nX: "
        .iter()
        .chain(std::iter::repeat(&b'a'));
    loop {
        pace.tick().await;
        let byte = [*request.next().unwrap()];
        if stream.write_all(&byte).await.is_err() || stream.flush().await.is_err() {
            return;
        }
    }
}

impl Silence {
    /// Connects, and holds on until the server ends it.
    async fn hold(self, to: SocketAddr, client: Arc<ClientConfig>) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((ATTACKER, 0).into()).unwrap();
        let Ok(mut stream) = socket.connect(to).await else {
            return;
        };
        let name = ServerName::try_from("localhost").unwrap();
        match self {
            Self::Silent => until_ended(stream).await,
            Self::HalfAHello => {
                let mut hello = Vec::new();
                let mut tls = ClientConnection::new(client, name).unwrap();
                tls.write_tls(&mut hello).unwrap();
                // An error says that the server has ended it, which is seen below.
                let _ = stream.write_all(&hello[..hello.len() / 2]).await;
                until_ended(stream).await;
            }
            Self::DrippingHttp => drip(stream).await,
            Self::DrippingWithinTls => {
                if let Ok(stream) = TlsConnector::from(client).connect(name, stream).await {
                    drip(stream).await;
                }
            }
        }
    }
}

async fn until_ended(mut stream: TcpStream) {
    // Both an end and an error are an end.
    let _ = stream.read(&mut [0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_does_not_say_what_they_speak_is_sent_away_in_time() {
    let (served, client, _home) = secured();
    let to = served.socket("/tcp/");
    let held = SILENCES.map(|silence| {
        let client = client.clone();
        async move {
            let start = Instant::now();
            let held = timeout(DEADLINE + SOON, silence.hold(to, client)).await;
            assert!(held.is_ok(), "{silence:?} goes on");
            assert!(
                start.elapsed() > DEADLINE / 2,
                "{silence:?} is sent away at once"
            );
        }
    });
    join_all(held).await;
    assert_eq!(
        served.refused("first_bytes", "deadline"),
        SILENCES.len() as u64
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_who_do_not_say_what_they_speak_take_the_share_of_their_address() {
    let (served, client, _home) = secured();
    let to = served.socket("/tcp/");
    let attack = async {
        let began = Arc::new(AtomicUsize::new(0));
        let attack = Attack::of(1000, |n| {
            let (began, client) = (began.clone(), client.clone());
            async move {
                let held = at_a_pace(Duration::from_millis(100), || {
                    began.fetch_add(1, Ordering::Relaxed);
                    SILENCES[n % SILENCES.len()].hold(to, client.clone())
                });
                held.await;
                future::pending().await
            }
        });
        until_polled(|| began.load(Ordering::Relaxed) > 2000).await;
        assert!(served.refused("handshake", "address") > 500);
        attack
    };
    served
        .withstands("row 17, no protocol at the one port", attack)
        .await;
}
