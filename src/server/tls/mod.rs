//! TLS of the one TCP port: the certificate that is served now, and the challenges of an authority that
//! issues one.
//!
//! A new certificate counts for the connections that come after it. Those that are there keep theirs.

mod acme;
mod certificate;
mod directory;
mod files;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
};

use rustls::{
    ServerConfig,
    crypto::ring,
    server::{Acceptor, ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;

pub(crate) use self::certificate::Certificate;
use self::{acme::Acme, files::Files};
use super::{
    config::{ServerConfig as Settings, TlsConfig},
    metrics::Metrics,
    socket::{Replayed, Secured},
};
use crate::{
    core::{first_bytes::ALPN, subject::Subject},
    error::{Error, ErrorKind},
};

/// The protocol by which an authority asks for the certificate of a challenge (RFC 8737 section 6.2).
const ACME_ALPN: &[u8] = b"acme-tls/1";

/// TLS of a server. Clones share it.
#[derive(Clone)]
pub(crate) struct Tls(Arc<Inner>);

struct Inner {
    served: Arc<Served>,
    challenges: Arc<Challenges>,
    clients: Arc<ServerConfig>,
    authorities: Arc<ServerConfig>,
    subjects: Vec<Subject>,
    source: Source,
}

/// Where certificates come from.
enum Source {
    Files(Files),
    Authority(Acme),
}

impl Tls {
    /// Sets TLS up as `config` says, if it says so. The files of a certificate are read. An authority
    /// is asked later.
    ///
    /// # Errors
    /// Fails if the files, or what the data directory has of an authority, cannot be used.
    pub(crate) fn new(config: &Settings, metrics: &Metrics) -> Result<Option<Self>, Error> {
        let (source, kept) = match &config.tls {
            TlsConfig {
                cert: Some(cert),
                key: Some(key),
                ..
            } => {
                let files = Files::new(cert, key);
                let certificate = files.read()?;
                (Source::Files(files), Some(certificate))
            }
            tls => {
                let Some(acme) = Acme::new(tls, config.data.as_deref())? else {
                    return Ok(None);
                };
                let kept = acme.kept()?.map(|(kept, _)| kept);
                (Source::Authority(acme), kept)
            }
        };
        let subjects = match (&source, &kept) {
            (Source::Authority(acme), _) => acme.subjects().to_vec(),
            (Source::Files(_), Some(certificate)) => certificate.subjects.clone(),
            (Source::Files(_), None) => Vec::new(),
        };
        let served = Arc::new(Served {
            current: RwLock::default(),
            is_stale: AtomicBool::new(false),
            metrics: metrics.clone(),
        });
        let challenges = Arc::<Challenges>::default();
        if let Some(certificate) = kept {
            served.set(certificate);
        }
        let clients = server_config(served.clone(), ALPN.map(<[u8]>::to_vec).to_vec())?;
        let authorities = server_config(challenges.clone(), vec![ACME_ALPN.to_vec()])?;
        Ok(Some(Self(Arc::new(Inner {
            served,
            challenges,
            clients,
            authorities,
            subjects,
            source,
        }))))
    }

    /// Whom the certificate is for, as of the start of the server.
    pub(crate) fn subjects(&self) -> &[Subject] {
        &self.0.subjects
    }

    /// Shakes hands with a client. Returns `None` after the challenge of an authority, which asks for
    /// nothing else.
    pub(crate) async fn accept(&self, stream: Replayed<TcpStream>) -> io::Result<Option<Secured>> {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
        let is_challenge = hello
            .client_hello()
            .alpn()
            .is_some_and(|mut names| names.any(|name| name == ACME_ALPN));
        if is_challenge {
            hello.into_stream(self.0.authorities.clone()).await?;
            return Ok(None);
        }
        hello.into_stream(self.0.clients.clone()).await.map(Some)
    }

    /// Reads the files of the certificate again. A certificate of an authority needs no reading.
    ///
    /// # Errors
    /// Fails if the files cannot be used. The old certificate is served on.
    pub(crate) async fn reload(&self) -> Result<(), Error> {
        let Source::Files(files) = &self.0.source else {
            return Ok(());
        };
        let files = files.clone();
        let read = tokio::task::spawn_blocking(move || files.read()).await;
        let read = read.map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))?;
        let read = read.inspect_err(|_| self.0.served.fail())?;
        self.0.served.set(read);
        tracing::info!("the certificate was read again");
        Ok(())
    }

    /// Whether the last try to get another certificate has failed.
    pub(crate) fn is_stale(&self) -> bool {
        self.0.served.is_stale.load(Ordering::Relaxed)
    }

    /// Keeps the certificate as its files are, or valid by the authority, until the future is dropped.
    pub(crate) async fn keep(self) {
        match &self.0.source {
            Source::Files(files) => files.follow(|| self.reload()).await,
            Source::Authority(acme) => acme.keep(&self.0.served, &self.0.challenges).await,
        }
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").finish_non_exhaustive()
    }
}

fn server_config(
    resolver: Arc<dyn ResolvesServerCert>,
    alpn: Vec<Vec<u8>>,
) -> Result<Arc<ServerConfig>, Error> {
    let failed = |error: rustls::Error| Error::new(ErrorKind::Internal, format!("tls: {error}"));
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&TLS13, &TLS12])
        .map_err(failed)?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.alpn_protocols = alpn;
    Ok(Arc::new(config))
}

/// The certificate that is served now, if there is one.
struct Served {
    current: RwLock<Option<Arc<CertifiedKey>>>,
    /// Whether the last try to get another one has failed.
    is_stale: AtomicBool,
    metrics: Metrics,
}

impl Served {
    fn set(&self, certificate: Certificate) {
        self.metrics.certificate(certificate.validity.until);
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = Some(certificate.key);
        self.is_stale.store(false, Ordering::Relaxed);
    }

    /// Notes that another certificate was due, and there is none. The old one is served on.
    fn fail(&self) {
        self.is_stale.store(true, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let current = self.current.read();
        current.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The certificates of the challenges under way, by the server name that the authority asks for.
#[derive(Debug, Default)]
struct Challenges(Mutex<HashMap<String, Arc<CertifiedKey>>>);

impl Challenges {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<CertifiedKey>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers the challenge for `subject` until the [`Challenge`] is dropped. `digest` proves that
    /// the owner of the account has asked for the certificate (RFC 8737 section 3).
    fn answer(&self, subject: &Subject, digest: &[u8]) -> io::Result<Challenge<'_>> {
        let name = subject.challenged_as();
        let key = certificate::of_challenge(subject, digest)?;
        self.lock().insert(name.clone(), key);
        Ok(Challenge {
            challenges: self,
            name,
        })
    }
}

impl ResolvesServerCert for Challenges {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.lock().get(hello.server_name()?).cloned()
    }
}

/// A challenge that is answered.
struct Challenge<'c> {
    challenges: &'c Challenges,
    name: String,
}

impl Drop for Challenge<'_> {
    fn drop(&mut self) {
        self.challenges.lock().remove(&self.name);
    }
}
