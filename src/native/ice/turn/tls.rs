//! The certificate authorities that TLS to TURN servers trusts.

use std::{fmt, fs, io, path::Path, sync::Arc};

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

use crate::native::environment::FromFile;

/// Certificate authorities: the public ones of the web, and those in a file.
#[derive(Clone)]
pub(crate) enum Roots {
    Public(Arc<ClientConfig>),
    AndThoseOf(Arc<FromFile<Arc<ClientConfig>>>),
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Roots").finish()
    }
}

impl Roots {
    /// Loads the public authorities, and those in a PEM file. The file is read again when it has
    /// changed.
    ///
    /// # Errors
    /// Fails when the file cannot be read, or holds no certificate.
    pub(crate) fn load(file: Option<&Path>) -> io::Result<Self> {
        Ok(match file {
            None => Self::Public(config(Vec::new())?),
            Some(file) => Self::AndThoseOf(FromFile::load(file, |file| {
                let all = CertificateDer::pem_slice_iter(&fs::read(file)?)
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|error| invalid(error.to_string()))?;
                match all.is_empty() {
                    true => Err(invalid("the file holds no certificate".to_owned())),
                    false => config(all),
                }
            })?),
        })
    }

    /// Starts TLS over `stream`, with a server that proves to be `host`.
    pub(crate) async fn connect(
        &self,
        host: &str,
        stream: TcpStream,
    ) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let config = match self {
            Self::Public(config) => config.clone(),
            Self::AndThoseOf(file) => file.current().await,
        };
        TlsConnector::from(config).connect(name, stream).await
    }
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Trusts the public authorities and `others`.
fn config(others: Vec<CertificateDer<'_>>) -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    for certificate in others {
        let added = roots.add(certificate.into_owned());
        added.map_err(|error| invalid(error.to_string()))?;
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(all(test, feature = "server"))]
mod tests;
