//! TLS 1.3 as libp2p specifies it (`specs/tls/tls.md`), with an own order of the ciphers.
//!
//! `libp2p-tls` makes and verifies certificates. Its own configurations prefer ChaCha20, which
//! takes a quarter of the time of a transfer where the CPU has instructions for AES.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex},
};

use libp2p::{PeerId, identity::Keypair};
use libp2p_tls::certificate;
use quinn::rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme,
    SupportedCipherSuite, SupportedProtocolVersion,
    client::Resumption,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{
        CryptoProvider,
        aws_lc_rs::{
            self,
            cipher_suite::{
                TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256,
            },
        },
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
    version::TLS13,
};

use super::link::lock;

/// The ciphers in the order of preference. libp2p has all three, so every peer has one of them. 128
/// bits suffice, because the keys of the handshake and of peers are worth no more.
const CIPHERS: [SupportedCipherSuite; 3] = [
    TLS13_AES_128_GCM_SHA256,
    TLS13_AES_256_GCM_SHA384,
    TLS13_CHACHA20_POLY1305_SHA256,
];

/// The specification says: "The libp2p handshake uses TLS 1.3 (and higher)."
const VERSIONS: &[&SupportedProtocolVersion] = &[&TLS13];

const ALPN: &[u8] = b"libp2p";

/// The most handshakes whose peer is remembered until it is asked for. The certificates of more are
/// parsed again.
const PROVED: usize = 64;

/// Makes the configurations of client and server, with a certificate for `keypair`, and the
/// verifier of peers' certificates.
pub(super) fn configs(
    keypair: &Keypair,
) -> io::Result<(ClientConfig, ServerConfig, Arc<Verifier>)> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = CIPHERS.to_vec();
    let provider = Arc::new(provider);
    let (certificate, key) = certificate::generate(keypair).map_err(io::Error::other)?;
    let key = provider.key_provider.load_private_key(key);
    let key = CertifiedKey::new(vec![certificate], key.map_err(io::Error::other)?);
    let key = Arc::new(SingleCertAndKey::from(key));
    let verifier = Arc::new(Verifier::new(provider.clone()));

    let client = ClientConfig::builder_with_provider(provider.clone());
    let client = client.with_protocol_versions(VERSIONS);
    let mut client = client
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_client_cert_resolver(key.clone());
    client.alpn_protocols = vec![ALPN.to_vec()];
    // All peers have one server name, so a ticket of one peer would be shown to the next.
    client.resumption = Resumption::disabled();

    let server = ServerConfig::builder_with_provider(provider);
    let server = server.with_protocol_versions(VERSIONS);
    let mut server = server
        .map_err(io::Error::other)?
        .with_client_cert_verifier(verifier.clone())
        .with_cert_resolver(key);
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.send_tls13_tickets = 0;
    // rust-libp2p prefers ChaCha20, whatever its CPU can do.
    server.ignore_client_order = true;
    Ok((client, server, verifier))
}

/// Accepts any certificate that binds its key to a peer id, and tells the peer id.
#[derive(Debug)]
pub(super) struct Verifier {
    provider: Arc<CryptoProvider>,
    /// The latest certificates of handshakes, and their peers.
    proved: Mutex<VecDeque<(CertificateDer<'static>, PeerId)>>,
}

impl Verifier {
    fn new(provider: Arc<CryptoProvider>) -> Self {
        Self {
            provider,
            proved: Mutex::default(),
        }
    }

    /// The peer of a certificate from a handshake. The first call takes the answer that the
    /// handshake left. Later calls parse the certificate again.
    pub(super) fn peer(&self, certificate: &CertificateDer<'_>) -> Result<PeerId, Error> {
        let mut proved = lock(&self.proved);
        if let Some(at) = proved.iter().position(|(known, _)| known == certificate)
            && let Some((_, peer)) = proved.remove(at)
        {
            return Ok(peer);
        }
        drop(proved);
        Ok(certificate::parse(certificate)?.peer_id())
    }

    /// The specification says: "Endpoints MUST abort the connection attempt if more than one
    /// certificate is received".
    fn alone(others: &[CertificateDer<'_>]) -> Result<(), Error> {
        if !others.is_empty() {
            return Err(Error::General("more than one certificate".into()));
        }
        Ok(())
    }

    /// The specification goes on: "… or if the certificate's self-signature is not valid." This is
    /// verified here, once, because every handshake comes here. Parsing a certificate verifies two
    /// more signatures.
    fn signed(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let parsed = certificate::parse(certificate)?;
        parsed.verify_signature(signature.scheme, message, signature.signature())?;
        let peer = parsed.peer_id();
        let mut proved = lock(&self.proved);
        if proved.len() == PROVED {
            proved.pop_front();
        }
        proved.push_back((certificate.clone().into_owned(), peer));
        Ok(HandshakeSignatureValid::assertion())
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// [`VERSIONS`] has no TLS 1.2, so this is never called.
fn tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2".into()))
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Self::alone(others).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

/// Clients have to show a certificate, too. This trait demands one by default.
impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Self::alone(others).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signed(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

#[cfg(test)]
mod tests {
    use quinn::rustls::{
        CipherSuite, ClientConnection, ServerConnection, server::danger::ClientCertVerifier as _,
    };

    use super::*;

    /// Passes messages on until neither end has anything to send.
    fn shake(
        client: ClientConfig,
        server: ServerConfig,
    ) -> Result<(ClientConnection, ServerConnection), Error> {
        let name = ServerName::try_from("l").unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        while client.wants_write() || server.wants_write() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes).unwrap();
            server.read_tls(&mut &bytes[..]).unwrap();
            server.process_new_packets()?;
            bytes.clear();
            server.write_tls(&mut bytes).unwrap();
            client.read_tls(&mut &bytes[..]).unwrap();
            client.process_new_packets()?;
        }
        Ok((client, server))
    }

    #[test]
    fn peers_agree_on_aes_and_on_who_they_are() {
        let keys = [(); 2].map(|()| Keypair::generate_ed25519());
        let [a, b] = keys.each_ref().map(|key| configs(key).unwrap());
        let (client, server) = shake(a.0, b.1).unwrap();
        let verifiers = [b.2, a.2];
        let suite = client.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
        let shown = [server.peer_certificates(), client.peer_certificates()];
        let keys = keys.map(|key| key.public().to_peer_id());
        for ((verifier, shown), key) in verifiers.iter().zip(shown).zip(keys) {
            let shown = &shown.unwrap()[0];
            assert_eq!(lock(&verifier.proved).len(), 1);
            assert_eq!(verifier.peer(shown).unwrap(), key);
            assert_eq!(lock(&verifier.proved).len(), 0);
            assert_eq!(verifier.peer(shown).unwrap(), key, "parsed again");
        }
    }

    #[test]
    fn stock_peers_are_understood_both_ways() {
        let key = Keypair::generate_ed25519();
        let ours = configs(&key).unwrap();
        let stock_server = libp2p_tls::make_server_config(&key).unwrap();
        let stock_client = libp2p_tls::make_client_config(&key, None).unwrap();
        shake(ours.0, stock_server).unwrap();
        let (client, _) = shake(stock_client, ours.1).unwrap();
        let suite = client.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
    }

    #[test]
    fn a_client_without_a_certificate_and_a_chain_of_two_are_refused() {
        let key = Keypair::generate_ed25519();
        let (_, server, _) = configs(&key).unwrap();
        let provider = server.crypto_provider().clone();
        let client = ClientConfig::builder_with_provider(provider.clone());
        let mut client = client
            .with_protocol_versions(VERSIONS)
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier::new(provider)))
            .with_no_client_auth();
        client.alpn_protocols = vec![ALPN.to_vec()];
        let error = shake(client, server).unwrap_err();
        assert_eq!(error, Error::NoCertificatesPresented);

        let (certificate, _) = certificate::generate(&key).unwrap();
        let verifier = Verifier::new(Arc::new(aws_lc_rs::default_provider()));
        let judge = |others: &[CertificateDer<'static>]| {
            verifier.verify_client_cert(&certificate, others, UnixTime::now())
        };
        judge(&[]).unwrap();
        judge(std::slice::from_ref(&certificate)).unwrap_err();
    }

    #[test]
    fn a_changed_certificate_is_refused() {
        let key = Keypair::generate_ed25519();
        let (certificate, signer) = certificate::generate(&key).unwrap();
        let signer = aws_lc_rs::default_provider()
            .key_provider
            .load_private_key(signer);
        let signer = signer.unwrap();
        let shown = |certificate: Vec<u8>| {
            let (mut client, server, _) = configs(&key).unwrap();
            let shown = CertifiedKey::new(vec![certificate.into()], signer.clone());
            client.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(shown));
            shake(client, server)
        };
        shown(certificate.to_vec()).unwrap();
        for at in (0..certificate.len()).step_by(7) {
            let mut bytes = certificate.to_vec();
            bytes[at] ^= 1;
            assert!(shown(bytes).is_err(), "byte {at}");
        }
    }
}
