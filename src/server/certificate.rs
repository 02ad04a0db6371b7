//! The DTLS certificate of `/webrtc-direct`. It is kept, so that its hash stays the same over a
//! restart, and with it every address and ticket that names the hash.

use std::{io, path::Path};

use libp2p_webrtc::tokio::Certificate;

use crate::{
    error::{Error, ErrorKind},
    native::secret::{self, Fault},
};

/// The longest certificate file that is read.
const MAX_FILE_LEN: u64 = 64 * 1024;

/// Makes a certificate that is not kept.
pub(crate) fn generate() -> Result<Certificate, io::Error> {
    Certificate::generate(&mut rand::rng()).map_err(io::Error::other)
}

/// Reads the certificate at `path`, or makes one there. The file is a [secret].
pub(crate) fn load_or_create(path: &Path) -> Result<Certificate, Error> {
    let failed = |what: String| {
        let message = format!("cannot use the /webrtc-direct certificate: {what}");
        Error::new(ErrorKind::Io, message)
    };
    let read = || -> Result<Option<Certificate>, Error> {
        let bytes = secret::read(path, MAX_FILE_LEN).map_err(|f| failed(f.describe(path)))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let malformed = |why: String| {
            failed(format!(
                "{}: {why}; delete the file to get a new one (browsers then need the new addresses)",
                path.display()
            ))
        };
        let pem = String::from_utf8(bytes).map_err(|error| malformed(error.to_string()))?;
        let certificate = Certificate::from_pem(&pem);
        certificate
            .map(Some)
            .map_err(|error| malformed(error.to_string()))
    };
    if let Some(certificate) = read()? {
        return Ok(certificate);
    }
    let io_failed = |error: io::Error| failed(Fault::Io(error).describe(path));
    let certificate = generate().map_err(io_failed)?;
    match secret::publish(path, certificate.serialize_pem().as_bytes()) {
        Ok(()) => Ok(certificate),
        // Another program was faster, so its certificate counts.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            read()?.ok_or_else(|| io_failed(io::ErrorKind::NotFound.into()))
        }
        Err(error) => Err(io_failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_fingerprint_stays_the_same_over_a_restart() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("data/webrtc.pem");
        let first = load_or_create(&path).unwrap().fingerprint();
        assert_eq!(load_or_create(&path).unwrap().fingerprint(), first);
        assert_ne!(generate().unwrap().fingerprint(), first);
    }

    #[test]
    fn a_malformed_file_is_named_in_the_error_and_kept() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("webrtc.pem");
        secret::publish(&path, b"not a certificate").unwrap();
        let error = load_or_create(&path).unwrap_err();
        assert!(error.to_string().contains("webrtc.pem"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"not a certificate");
    }

    #[cfg(unix)]
    #[test]
    fn a_certificate_that_others_can_read_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("webrtc.pem");
        load_or_create(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = load_or_create(&path).unwrap_err();
        assert!(error.message().contains("chmod 600"), "{error}");
    }
}
