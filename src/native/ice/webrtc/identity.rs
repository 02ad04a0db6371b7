//! The certificate of this peer, and the digests that stand for certificates.

use str0m::{config::DtlsCert, crypto::CryptoProvider};

use crate::{core::sdp::Fingerprint, webrtc::backend::BackendError};

/// The certificate of this peer. It is made once for all connections of a backend.
pub(super) struct Identity {
    pub(super) crypto: CryptoProvider,
    pub(super) certificate: DtlsCert,
}

impl Identity {
    /// Makes a fresh self-signed certificate.
    pub(super) fn generate() -> Result<Self, BackendError> {
        let crypto = str0m::crypto::from_feature_flags();
        let certificate = crypto
            .dtls_provider
            .generate_certificate()
            .ok_or_else(|| BackendError::Dtls("no certificate can be made".into()))?;
        Ok(Self {
            crypto,
            certificate,
        })
    }

    /// Takes a certificate that is kept.
    #[cfg(feature = "server")]
    pub(super) fn of(certificate: DtlsCert) -> Self {
        Self {
            crypto: str0m::crypto::from_feature_flags(),
            certificate,
        }
    }

    /// The digest of a certificate in DER.
    pub(super) fn fingerprint(&self, certificate: &[u8]) -> Fingerprint {
        Fingerprint {
            hash: "sha-256".into(),
            digest: self.crypto.sha256_provider.sha256(certificate).to_vec(),
        }
    }
}
