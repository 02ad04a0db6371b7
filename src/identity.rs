//! The identity of a peer: an ed25519 key pair, and the peer id that names its public key.

use std::{fmt, str::FromStr};

use libp2p::identity::Keypair;
use multibase::Base::Base64Url;

use crate::error::{Error, ErrorKind};

/// An ed25519 key pair. Every path of a connection is authenticated against it.
///
/// `Debug` prints only the peer id. Only [`Identity::to_secret`] returns the secret.
///
/// ```
/// use throughline::Identity;
///
/// let identity = Identity::generate();
/// let secret = identity.to_secret()?; // keep it where only this program can read it
/// assert_eq!(Identity::from_secret(&secret)?.peer_id(), identity.peer_id());
/// # Ok::<(), throughline::Error>(())
/// ```
#[derive(Clone)]
pub struct Identity(Keypair);

impl Identity {
    /// Makes a fresh identity from the system's randomness.
    pub fn generate() -> Self {
        Self(Keypair::generate_ed25519())
    }

    /// Returns the id by which peers know this identity.
    pub fn peer_id(&self) -> PeerId {
        PeerId(self.0.public().to_peer_id())
    }

    /// Returns the secret as text for storage. The text is libp2p's protobuf encoding of the key,
    /// in base64url without padding.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidIdentity`] if the key has no encoding.
    pub fn to_secret(&self) -> Result<String, Error> {
        let bytes = self.0.to_protobuf_encoding().map_err(|e| {
            Error::new(ErrorKind::InvalidIdentity, "the key has no encoding").with_source(e)
        })?;
        Ok(Base64Url.encode(bytes))
    }

    /// Makes the identity from the text that [`to_secret`](Self::to_secret) returned.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidIdentity`] if the text is no such key.
    pub fn from_secret(secret: &str) -> Result<Self, Error> {
        let invalid = |m: &str| Error::new(ErrorKind::InvalidIdentity, m);
        let bytes = Base64Url
            .decode(secret.trim())
            .map_err(|_| invalid("the identity is not base64url"))?;
        Keypair::from_protobuf_encoding(&bytes)
            .map(Self)
            .map_err(|_| invalid("the identity is not a libp2p private key"))
    }

    pub(crate) fn keypair(&self) -> &Keypair {
        &self.0
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.peer_id()).finish()
    }
}

/// The name of a peer. It is the hash of the peer's public key, or the key itself.
///
/// ```
/// use throughline::{Identity, PeerId};
///
/// let id = Identity::generate().peer_id();
/// assert_eq!(id.to_string().parse::<PeerId>()?, id);
/// # Ok::<(), throughline::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId(pub(crate) libp2p::PeerId);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({})", self.0)
    }
}

/// Parses a peer id: a base58 multihash or a CID. Any other text is [`ErrorKind::InvalidAddress`].
impl FromStr for PeerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        text.parse().map(Self).map_err(|_| {
            Error::new(
                ErrorKind::InvalidAddress,
                "not a peer id (base58 multihash or CID)",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_round_trip_keeps_the_peer_id_and_debug_hides_the_secret() {
        let identity = Identity::generate();
        let secret = identity.to_secret().unwrap();
        let back = Identity::from_secret(&secret).unwrap();
        assert_eq!(back.peer_id(), identity.peer_id());
        assert!(!format!("{identity:?}").contains(&secret));
    }

    #[test]
    fn malformed_secrets_are_typed_errors() {
        for text in ["", "%%%", "AAAA", &"A".repeat(5000)] {
            let error = Identity::from_secret(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidIdentity);
        }
    }
}
