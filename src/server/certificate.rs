//! The DTLS certificate of `/webrtc-direct`, kept so that its hash, and with it every
//! address and ticket that names it, outlives a restart.

use std::{fs, io, path::Path};

use libp2p_webrtc::tokio::Certificate;

use crate::{
    error::{Error, ErrorKind},
    native::identity,
};

/// Longest certificate file that is read.
const MAX_FILE_LEN: u64 = 64 * 1024;

/// A fresh certificate that is kept nowhere.
pub(crate) fn generate() -> Result<Certificate, io::Error> {
    Certificate::generate(&mut rand::rng()).map_err(io::Error::other)
}

/// Reads the certificate at `path`, or makes one there. It is written as an identity is:
/// whole or not at all, readable by its owner only.
pub(crate) fn load_or_create(path: &Path) -> Result<Certificate, Error> {
    let read = || -> io::Result<Option<Certificate>> {
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(metadata) if metadata.len() > MAX_FILE_LEN => {
                Err(io::Error::new(io::ErrorKind::InvalidData, "too long"))
            }
            Ok(_) => Certificate::from_pem(&fs::read_to_string(path)?)
                .map(Some)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
        }
    };
    let create = || {
        let certificate = generate()?;
        match identity::publish(path, certificate.serialize_pem().as_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                read()?.ok_or_else(|| io::ErrorKind::NotFound.into())
            }
            Err(error) => Err(error),
            Ok(()) => Ok(certificate),
        }
    };
    read()
        .and_then(|found| found.map_or_else(create, Ok))
        .map_err(|error| {
            let advice = match error.kind() {
                io::ErrorKind::InvalidData => {
                    "; delete it to get a new one (browsers then need the new addresses)"
                }
                _ => "",
            };
            let path = path.display();
            let message =
                format!("cannot use the /webrtc-direct certificate {path}: {error}{advice}");
            Error::new(ErrorKind::Io, message).with_source(error)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fingerprint_outlives_a_restart() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("data/webrtc.pem");
        let first = load_or_create(&path).unwrap().fingerprint();
        assert_eq!(load_or_create(&path).unwrap().fingerprint(), first);
        assert_ne!(generate().unwrap().fingerprint(), first);
    }

    #[test]
    fn a_malformed_file_is_named_and_kept() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("webrtc.pem");
        fs::write(&path, "not a certificate").unwrap();
        let error = load_or_create(&path).unwrap_err();
        assert!(error.to_string().contains("webrtc.pem"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"not a certificate");
    }
}
