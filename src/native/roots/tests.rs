use libp2p_webrtc::tokio::Certificate;
use tokio::net::TcpListener;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{ServerConfig, pki_types::PrivateKeyDer},
};

use super::*;
use crate::{native::environment::replace, testing::PATIENCE};

/// A server with a certificate of its own, and the certificate in PEM. The certificate names nobody,
/// so the error of a client that trusts it is about the name.
fn server() -> (TlsAcceptor, String) {
    let made = Certificate::generate(&mut rand::rng()).unwrap();
    let pem = made.serialize_pem().replace("PRIVATE_KEY", "PRIVATE KEY");
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>();
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain.unwrap(), key)
        .unwrap();
    (Arc::new(config).into(), pem)
}

async fn trusts(roots: &Roots, server: &TlsAcceptor) -> bool {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap());
    let accepted = async {
        let (stream, _) = listener.accept().await.unwrap();
        server.accept(stream).await
    };
    let connected = async { roots.connect("turn.example", stream.await.unwrap()).await };
    let (connected, _) = tokio::join!(connected, accepted);
    let error = connected.unwrap_err().to_string();
    assert!(error.contains("certificate"), "{error}");
    error.contains("not valid for name") || error.contains("NotValidForName")
}

#[tokio::test]
async fn a_certificate_that_was_replaced_counts() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("ca.pem");
    let ((old, old_pem), (new, new_pem)) = (server(), server());
    replace(&file, &old_pem);
    let roots = Roots::load(Some(&file)).unwrap();
    assert!(trusts(&roots, &old).await && !trusts(&roots, &new).await);
    replace(&file, &new_pem);
    let replaced = async { while !trusts(&roots, &new).await {} };
    tokio::time::timeout(PATIENCE, replaced).await.unwrap();
    assert!(!trusts(&roots, &old).await);
}

#[test]
fn a_file_without_a_certificate_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("ca.pem");
    assert!(Roots::load(Some(&file)).is_err());
    replace(&file, "nothing");
    assert!(Roots::load(Some(&file)).is_err());
}
