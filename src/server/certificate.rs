//! The DTLS certificate of `/webrtc-direct`. It is kept, so that its hash stays the same over a
//! restart, and with it every address and ticket that names the hash.

use std::{io, path::Path};

use data_encoding::BASE64;
use rustls::{
    crypto::ring::sign::any_ecdsa_type,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem::PemObject as _},
};

use crate::{
    error::{Error, ErrorKind},
    native::{
        ice::webrtc::direct::Certificate,
        secret::{self, Fault},
    },
};

/// The longest certificate file that is read.
const MAX_FILE_LEN: u64 = 64 * 1024;

/// Makes a certificate that is not kept.
pub(crate) fn generate() -> Result<Certificate, io::Error> {
    parse(&fresh()?).map_err(io::Error::other)
}

/// Makes a certificate and its private key, in PEM. It is valid for centuries, because its hash is in
/// the addresses of the server.
fn fresh() -> Result<String, io::Error> {
    let key = rcgen::KeyPair::generate().map_err(io::Error::other)?;
    let certificate = rcgen::CertificateParams::default()
        .self_signed(&key)
        .map_err(io::Error::other)?;
    Ok([
        pem("PRIVATE KEY", key.serialized_der()),
        pem("CERTIFICATE", certificate.der()),
    ]
    .concat())
}

/// Writes a section as RFC 7468 has it.
fn pem(label: &str, der: &[u8]) -> String {
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in BASE64.encode(der).as_bytes().chunks(64) {
        text.extend(line.iter().map(|byte| char::from(*byte)));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

/// Reads a certificate and its private key.
fn parse(pem: &str) -> Result<Certificate, String> {
    // Files of older versions call the key so.
    let pem = pem.replace("PRIVATE_KEY", "PRIVATE KEY");
    let certificate =
        CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| format!("certificate: {e}"))?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| format!("private key: {error}"))?;
    let der = key.secret_pkcs8_der().to_vec();
    // DTLS would take any key, and fail at the first handshake.
    let key = any_ecdsa_type(&PrivateKeyDer::Pkcs8(key))
        .map_err(|error| format!("private key: {error}"))?;
    let public = key
        .public_key()
        .ok_or("private key: it has no public key")?;
    let fits = certificate
        .windows(public.len())
        .any(|part| part == public.as_ref());
    if !fits {
        return Err("the private key belongs to another certificate".to_owned());
    }
    Certificate::new(certificate.to_vec(), der)
        .ok_or_else(|| "certificate: it has no hash".to_owned())
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
        parse(&pem).map(Some).map_err(malformed)
    };
    if let Some(certificate) = read()? {
        return Ok(certificate);
    }
    let io_failed = |error: io::Error| failed(Fault::Io(error).describe(path));
    let pem = fresh().map_err(io_failed)?;
    match secret::publish(path, pem.as_bytes()) {
        Ok(()) => parse(&pem).map_err(failed),
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
        let first = load_or_create(&path).unwrap().hash();
        assert_eq!(load_or_create(&path).unwrap().hash(), first);
        assert_ne!(generate().unwrap().hash(), first);
    }

    /// Servers made such files before this library had its own listener.
    #[test]
    fn a_certificate_of_an_older_version_keeps_its_hash() {
        let older = libp2p_webrtc::tokio::Certificate::generate(&mut rand::rng()).unwrap();
        let read = parse(&older.serialize_pem()).unwrap();
        assert_eq!(read.hash(), older.fingerprint().to_multihash());
    }

    #[test]
    fn keys_that_dtls_cannot_use_are_refused() {
        let [one, other] = [(); 2].map(|()| fresh().unwrap());
        let (key, certificate) = one.split_at(one.find("-----BEGIN CERT").unwrap());
        let of_other = &other[other.find("-----BEGIN CERT").unwrap()..];
        assert!(parse(&one).is_ok());
        for (pem, why) in [
            (key.to_owned(), "certificate"),
            (certificate.to_owned(), "private key"),
            ([key, of_other].concat(), "another certificate"),
        ] {
            let error = parse(&pem).err().unwrap();
            assert!(error.contains(why), "{error}");
        }
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let error = parse(&[&pem("PRIVATE KEY", key.serialized_der()), certificate].concat())
            .err()
            .unwrap();
        assert!(error.contains("private key"), "{error}");
    }

    #[test]
    fn a_malformed_file_is_named_in_the_error_and_kept() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("webrtc.pem");
        secret::publish(&path, b"not a certificate").unwrap();
        let error = load_or_create(&path).err().unwrap();
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
        let error = load_or_create(&path).err().unwrap();
        assert!(error.message().contains("chmod 600"), "{error}");
    }
}
