//! A certificate in files of the operator's, as certbot and others keep it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{task, time};

use super::Certificate;
use crate::{
    error::{Error, ErrorKind},
    native::{
        environment::{Stamp, stamp},
        secret,
    },
};

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// The longest file. A chain has some KiB.
const MAX_FILE_LEN: u64 = 256 * 1024;

/// The files of a certificate and of its key.
#[derive(Clone, Debug)]
pub(super) struct Files {
    cert: PathBuf,
    key: PathBuf,
    /// The files before they were first read.
    first: (Stamp, Stamp),
}

impl Files {
    pub(super) fn new(cert: &Path, key: &Path) -> Self {
        Self {
            cert: cert.to_owned(),
            key: key.to_owned(),
            first: (stamp(cert), stamp(key)),
        }
    }

    /// Reads the files.
    ///
    /// # Errors
    /// Fails if one of them cannot be read, or if they do not belong together.
    pub(super) fn read(&self) -> Result<Certificate, Error> {
        let (cert, key) = (text("tls.cert", &self.cert)?, text("tls.key", &self.key)?);
        Certificate::from_pem(&cert, &key).map_err(|error| {
            let (cert, key) = (self.cert.display(), self.key.display());
            Error::new(ErrorKind::Io, format!("tls: {cert} and {key}: {error}"))
        })
    }

    /// Calls `reload` whenever the files have changed. Programs write one file after the other, so a
    /// certificate without its key is only told of, and read again when the key is there.
    pub(super) async fn follow<F: Future<Output = Result<(), Error>>>(
        &self,
        reload: impl Fn() -> F,
    ) {
        let mut seen = Some(self.first);
        let mut look = time::interval(LOOK);
        look.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let now = self.stamps().await;
            if now == seen {
                continue;
            }
            seen = now;
            if let Err(error) = reload().await {
                tracing::warn!(%error, "the old certificate is served on");
            }
        }
    }

    /// What changes when a file does. `None` says that the disk could not be asked.
    async fn stamps(&self) -> Option<(Stamp, Stamp)> {
        let Self { cert, key, .. } = self.clone();
        let stamps = task::spawn_blocking(move || (stamp(&cert), stamp(&key)));
        stamps.await.ok()
    }
}

fn text(field: &str, path: &Path) -> Result<Vec<u8>, Error> {
    secret::read_shared(path, MAX_FILE_LEN).map_err(|fault| {
        let why = fault.describe(path);
        Error::new(ErrorKind::Io, format!("{field}: {why}"))
    })
}
