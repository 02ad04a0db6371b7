//! Whom TLS trusts.

use std::{fmt, io, path::Path, sync::Arc};

use tokio::net::TcpStream;
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::ring,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
        version::{TLS12, TLS13},
    },
};

/// Certificate authorities: the public ones of the web, and those of a file.
#[derive(Clone)]
pub(crate) struct Roots(Arc<ClientConfig>);

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Roots").finish()
    }
}

impl Roots {
    /// The public ones, and those in a PEM file.
    ///
    /// # Errors
    /// When the file cannot be read, or holds no certificate.
    pub(crate) fn load(file: Option<&Path>) -> io::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        if let Some(file) = file {
            let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
            let before = roots.len();
            let all = CertificateDer::pem_slice_iter(&std::fs::read(file)?)
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| invalid(error.to_string()))?;
            for certificate in all {
                let added = roots.add(certificate);
                added.map_err(|error| invalid(error.to_string()))?;
            }
            if roots.len() == before {
                return Err(invalid("no certificate in it".to_owned()));
            }
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }

    /// TLS over `stream` with a server that proves to be `host`.
    pub(super) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        TlsConnector::from(self.0.clone())
            .connect(name, stream)
            .await
    }
}
