//! A certificate with its key, and what it says.

use std::{io, net::IpAddr, sync::Arc, time::Duration};

use rustls::{
    crypto::ring::{self, sign::any_ecdsa_type},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};

use crate::core::{renewal::Validity, subject::Subject};

/// A certificate that can be served.
#[derive(Debug)]
pub(crate) struct Certificate {
    pub(crate) key: Arc<CertifiedKey>,
    /// Whom it is for, without wildcards.
    pub(crate) subjects: Vec<Subject>,
    pub(crate) validity: Validity,
}

impl Certificate {
    /// Reads a chain, of which the first certificate is that of the key, and the key.
    ///
    /// # Errors
    /// Fails if there is none, or if the key belongs to another certificate.
    pub(crate) fn from_pem(chain: &[u8], key: &[u8]) -> io::Result<Self> {
        let chain = CertificateDer::pem_slice_iter(chain).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(|error| invalid(format!("certificate: {error}")))?;
        let first = chain.first();
        let first = first.ok_or_else(|| invalid("certificate: there is none".to_owned()))?;
        let (subjects, validity) = said(first)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| invalid(format!("private key: {error}")))?;
        let key = CertifiedKey::from_der(chain, key, &ring::default_provider())
            .map_err(|error| invalid(format!("private key: {error}")))?;
        Ok(Self {
            key: Arc::new(key),
            subjects,
            validity,
        })
    }
}

/// Reads whom a certificate is for, and how long.
fn said(der: &[u8]) -> io::Result<(Vec<Subject>, Validity)> {
    let malformed = |error: String| invalid(format!("certificate: {error}"));
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(der)
        .map_err(|error| malformed(error.to_string()))?;
    let names = parsed.subject_alternative_name();
    let names = names.map_err(|error| malformed(error.to_string()))?;
    let names = names.map_or(&[][..], |extension| &extension.value.general_names);
    let subject = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => name.parse().ok(),
        GeneralName::IPAddress(bytes) => ip(bytes).map(Subject::Ip),
        _ => None,
    };
    let since_epoch = |time: x509_parser::time::ASN1Time| {
        Duration::from_secs(u64::try_from(time.timestamp()).unwrap_or_default())
    };
    let validity = Validity {
        from: since_epoch(parsed.validity().not_before),
        until: since_epoch(parsed.validity().not_after),
    };
    Ok((names.iter().filter_map(subject).collect(), validity))
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Some(v4.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// Makes the certificate that answers a challenge (RFC 8737 section 3, RFC 8738 section 4).
pub(super) fn of_challenge(subject: &Subject, digest: &[u8]) -> io::Result<Arc<CertifiedKey>> {
    let key = rcgen::KeyPair::generate().map_err(io::Error::other)?;
    let mut params = params(std::slice::from_ref(subject))?;
    let proof = rcgen::CustomExtension::new_acme_identifier(digest);
    params.custom_extensions.push(proof);
    let certificate = params.self_signed(&key).map_err(io::Error::other)?;
    let der = PrivateKeyDer::try_from(key.serialize_der()).map_err(io::Error::other)?;
    let chain = vec![certificate.der().clone()];
    // `CertifiedKey::from_der` refuses the extension, which is critical.
    let key = any_ecdsa_type(&der).map_err(io::Error::other)?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

/// What a certificate for `subjects` says.
pub(super) fn params(subjects: &[Subject]) -> io::Result<rcgen::CertificateParams> {
    let subjects: Vec<_> = subjects.iter().map(Subject::to_string).collect();
    let mut params = rcgen::CertificateParams::new(subjects).map_err(io::Error::other)?;
    // The names are in the extension. An authority may refuse a subject that is none of them.
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params)
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
