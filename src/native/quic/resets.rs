//! Stateless resets after a restart (RFC 9000 section 10.3).
//!
//! A server that was restarted knows none of the connections that its peers still have. It answers
//! their packets with a reset, whose token proves that it comes from the same server. Both the token
//! and the tag in the connection ids follow from the identity key, so every run has the same. A peer
//! has another tag at each start, because a constant one would show observers where the peer has
//! moved to.

use libp2p::identity::Keypair;
use quinn::crypto::{CryptoError, HmacKey};

use crate::core::quic::Tag;

/// The bytes of a token.
const TOKEN: usize = 16;

/// Makes the tokens of one server.
#[derive(Clone)]
pub(super) struct Resets(Keypair);

impl Resets {
    #[cfg_attr(not(feature = "server"), allow(dead_code, reason = "a server's"))]
    pub(super) fn new(keypair: &Keypair) -> Self {
        Self(keypair.clone())
    }

    /// Returns the tag of the endpoint's connection ids.
    pub(super) fn tag(&self) -> Tag {
        self.secret(b"tag", b"")
    }

    fn secret<const N: usize>(&self, what: &[u8], of: &[u8]) -> [u8; N] {
        let domain = [b"throughline quic ", what, b" ", of].concat();
        // libp2p derives no secret from an RSA key. Without a secret, everybody would know the
        // tokens and could end the server's connections, so the tokens are random then.
        let secret = self.0.derive_secret(&domain);
        let mut taken = [0; N];
        match secret {
            Some(secret) => taken.copy_from_slice(&secret[..N]),
            None => _ = getrandom::fill(&mut taken),
        }
        taken
    }
}

impl HmacKey for Resets {
    fn sign(&self, id: &[u8], token: &mut [u8]) {
        token.copy_from_slice(&self.secret::<TOKEN>(b"reset", id));
    }

    fn signature_len(&self) -> usize {
        TOKEN
    }

    fn verify(&self, id: &[u8], token: &[u8]) -> Result<(), CryptoError> {
        let expected = self.secret::<TOKEN>(b"reset", id);
        match expected[..] == *token {
            true => Ok(()),
            false => Err(CryptoError),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_of_one_server_has_the_same_tokens_and_no_other_server_has() {
        let keypair = Keypair::generate_ed25519();
        let [before, after] = [&keypair, &keypair].map(Resets::new);
        let other = Resets::new(&Keypair::generate_ed25519());
        let token = |resets: &Resets, id: &[u8]| {
            let mut token = vec![0; resets.signature_len()];
            resets.sign(id, &mut token);
            token
        };
        assert_eq!(before.tag(), after.tag());
        assert_ne!(before.tag(), other.tag());
        assert_eq!(token(&before, b"id"), token(&after, b"id"));
        assert_ne!(token(&before, b"id"), token(&before, b"di"));
        assert_ne!(token(&before, b"id"), token(&other, b"id"));
        assert!(after.verify(b"id", &token(&before, b"id")).is_ok());
        assert!(after.verify(b"id", &token(&other, b"id")).is_err());
    }
}
