//! Sealed offers and early data, which need no circuit. An offer of ICE or the first bytes of a
//! stream are sealed for one peer and go through the relay in one flight. The answer comes back in
//! the next flight.
//!
//! A circuit must be granted and authenticated before it can carry anything, which takes one and a
//! half round trips. A peer id holds the public key of its peer, so a message can be sealed for
//! that peer alone and sent at once. The relay passes both directions on as it does with a circuit,
//! and cannot read either.
//!
//! # Wire
//! The stream to the relay begins with the CONNECT message of the relay specification, which names
//! the peer. Then follow messages of `Noise_IK_25519_ChaChaPoly_SHA256` (Noise Protocol Framework,
//! section 7.5) from the offerer to the peer and back. Each stands behind its length as 16 bits,
//! big-endian. The static keys are the Montgomery forms of the Ed25519 keys in the peer ids. The
//! payload of the first message is a [`Prelude`], the offerer's Ed25519 signature of the
//! [`statement`], and then the bytes that a circuit would carry: signalling, or a resumable stream.
//! A message without a payload is the end. A stream that ends without such a message was given up.
//!
//! # Security
//! Both sides are authenticated. The peer is authenticated because nobody else can read the offer
//! and answer it. The offerer is authenticated to the peer by its signature, which cannot be forged
//! even with the key of the *peer*. The signature stands inside the seal, so a relay does not learn
//! who offers. To the peer, and to whoever holds its key, the signature proves that the offerer
//! wrote the first message.
//!
//! Whoever records the first message can send it again. [`Seen`] stops that. A peer that was
//! started anew remembers nothing, so an offer is sealed for one [`Incarnation`] of the peer, which
//! is in the peer's ticket. The first message has no forward secrecy: whoever records it can read
//! it if the peer's identity is stolen later. With signalling, it holds candidates, fingerprints
//! and a password for one try of ICE. The path that results is protected by QUIC or DTLS with keys
//! of its own. With a stream, the first message holds the first bytes of the application. For this
//! reason only [`Connector::open`](crate::Connector::open) sends any, and its documentation says
//! so.

mod sealed;

use std::{
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use futures::{AsyncRead, AsyncReadExt as _};
use libp2p::{
    PeerId,
    identity::{Keypair, PublicKey, ed25519},
};
use snow::Builder;
use web_time::{Instant, SystemTime, UNIX_EPOCH};

pub(crate) use self::sealed::Sealed;
use self::sealed::{LENGTH, Noise, checked};
use crate::core::{
    circuit,
    offer::{
        Content, Incarnation, KEY, Moment, OFFER_PROTOCOL, Prelude, SIGNATURE, Seen, statement,
    },
};

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_SHA256";

/// The reasons why sealed signalling fails. The peers can still use a circuit.
#[derive(Debug)]
pub(crate) enum OfferError {
    /// One of the peers has an identity that is not an Ed25519 key.
    Key,
    /// The stream broke.
    Io(io::Error),
    /// A message is longer or shorter than any may be.
    Length,
    /// A message was not sealed for this peer, or not by the other peer.
    Seal(snow::Error),
    /// The offer was not signed by the peer that it names.
    Signature,
    /// The offer was seen before, is too old, is from the future, or is for an earlier run of this
    /// peer.
    Stale,
}

impl fmt::Display for OfferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Key => "not an Ed25519 identity",
            Self::Io(error) => return write!(f, "the stream broke: {error}"),
            Self::Length => "a sealed message has an impossible length",
            Self::Seal(_) => "a sealed message does not open",
            Self::Signature => "an offer is not signed by the peer that it names",
            Self::Stale => {
                "an offer was seen before, is not for this run, or the clocks differ too much"
            }
        })
    }
}

impl std::error::Error for OfferError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Seal(error) => Some(error),
            Self::Key | Self::Length | Self::Signature | Self::Stale => None,
        }
    }
}

impl From<snow::Error> for OfferError {
    fn from(error: snow::Error) -> Self {
        Self::Seal(error)
    }
}

impl From<OfferError> for io::Error {
    fn from(error: OfferError) -> Self {
        match error {
            OfferError::Io(error) => error,
            error => Self::new(io::ErrorKind::InvalidData, error),
        }
    }
}

/// Whether offers can be sealed for `peer`.
pub(crate) fn is_sealable(peer: &PeerId) -> bool {
    identity_of(peer).is_some()
}

/// The Ed25519 key in the peer id `peer`.
fn identity_of(peer: &PeerId) -> Option<[u8; KEY]> {
    // The id is an identity multihash of the protobuf `PublicKey { type: Ed25519, data }`.
    let bytes = peer.to_bytes();
    let key = bytes.strip_prefix(&[0x00, 0x24, 0x08, 0x01, 0x12, 0x20])?;
    key.try_into().ok()
}

fn montgomery(identity: &[u8; KEY]) -> Option<[u8; KEY]> {
    let key = VerifyingKey::from_bytes(identity).ok()?;
    Some(key.to_montgomery().to_bytes())
}

/// Seals offers as this peer, and opens offers to it. Clones share the record of offers seen.
#[derive(Clone)]
pub(crate) struct Sealer {
    identity: Arc<SigningKey>,
    /// The Montgomery form of `identity`.
    secret: Arc<[u8; KEY]>,
    incarnation: Incarnation,
    started: Instant,
    seen: Arc<Mutex<Seen>>,
}

impl Sealer {
    /// Returns `None` for an identity that is not an Ed25519 key.
    pub(crate) fn new(keypair: &Keypair) -> Option<Self> {
        let keypair = keypair.clone().try_into_ed25519().ok()?;
        let mut incarnation = Incarnation::default();
        getrandom::fill(&mut incarnation).ok()?;
        let seed = keypair.secret();
        let key = SigningKey::from_bytes(seed.as_ref().try_into().ok()?);
        Some(Self {
            secret: Arc::new(key.to_scalar_bytes()),
            identity: Arc::new(key),
            incarnation,
            started: Instant::now(),
            seen: Arc::default(),
        })
    }

    /// The incarnation of this run. Offers to this peer must be sealed for it.
    pub(crate) fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// How long this run has lasted, by a clock that never jumps.
    pub(crate) fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    fn builder(&self) -> Result<Builder<'_>, OfferError> {
        Builder::new(PATTERN.parse()?)
            .local_private_key(&*self.secret)?
            .prologue(OFFER_PROTOCOL.as_bytes())
            .map_err(OfferError::from)
    }

    /// Begins an offer to the run `incarnation` of `peer` over `stream`, which leads to a relay of
    /// both peers. The first write is sent together with the request to the relay.
    pub(crate) fn offer<S>(
        &self,
        peer: &PeerId,
        incarnation: Incarnation,
        content: Content,
        stream: S,
    ) -> Result<Sealed<S>, OfferError> {
        let theirs = identity_of(peer).as_ref().and_then(montgomery);
        let theirs = theirs.ok_or(OfferError::Key)?;
        // The handshake would make its own ephemeral key too late to be signed. This key is as
        // random, and is used for this handshake alone.
        let ephemeral = self.builder()?.generate_keypair()?;
        let handshake = self
            .builder()?
            .remote_public_key(&theirs)?
            .fixed_ephemeral_key_for_testing_only(&ephemeral.private)
            .build_initiator()?;
        let prelude = Prelude {
            identity: self.identity.verifying_key().to_bytes(),
            at: wall(),
            incarnation,
            content,
        };
        let first = First {
            prelude,
            handshake: handshake.get_handshake_hash().to_vec(),
            ephemeral: ephemeral.public,
            identity: self.identity.clone(),
        };
        let mut sealed = Sealed::new(stream, handshake);
        sealed.outgoing = circuit::connect(peer);
        sealed.first = Some(Box::new(first));
        Ok(sealed)
    }

    /// Reads the first message of an offer. Returns the sender, the kind of content, and the
    /// stream.
    pub(crate) async fn open<S>(
        &self,
        stream: S,
    ) -> Result<(PeerId, Content, Sealed<S>), OfferError>
    where
        S: AsyncRead + Unpin,
    {
        let handshake = self.builder()?.build_responder()?;
        let hash = handshake.get_handshake_hash().to_vec();
        let mut sealed = Sealed::new(stream, handshake);
        let mut length = [0; LENGTH];
        let read = sealed.stream.read_exact(&mut length).await;
        read.map_err(OfferError::Io)?;
        let length = checked(length)?;
        let mut message = Vec::new();
        let mut arriving = (&mut sealed.stream).take(length as u64);
        let read = arriving.read_to_end(&mut message).await;
        if read.map_err(OfferError::Io)? < length {
            return Err(OfferError::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        let plain = sealed.unseal(&message)?;
        let (prelude, rest) = Prelude::take(&plain).ok_or(OfferError::Length)?;
        let (signature, said) = rest.split_first_chunk().ok_or(OfferError::Length)?;

        let proven = match &sealed.noise {
            Noise::Handshake(noise) => noise.get_remote_static().map(<[u8]>::to_vec),
            _ => None,
        };
        let claimed = montgomery(&prelude.identity);
        if claimed.is_none() || claimed.as_ref().map(|key| &key[..]) != proven.as_deref() {
            return Err(OfferError::Key);
        }
        if prelude.incarnation != self.incarnation {
            return Err(OfferError::Stale);
        }
        let ephemeral = message.first_chunk().ok_or(OfferError::Length)?;
        let signed = statement(&hash, ephemeral, &prelude, said);
        verify(&prelude.identity, &signed, signature)?;
        let now = Moment {
            uptime: self.uptime(),
            wall: wall(),
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if !seen.admit(now, prelude.at, *ephemeral) {
            return Err(OfferError::Stale);
        }
        drop(seen);
        sealed.incoming = said.to_vec();
        let identity = ed25519::PublicKey::try_from_bytes(&prelude.identity);
        let identity = identity.map_err(|_| OfferError::Key)?;
        let peer = PublicKey::from(identity).to_peer_id();
        Ok((peer, prelude.content, sealed))
    }
}

/// Verifies strictly: a key of small order is refused, because anybody can sign for it.
fn verify(
    identity: &[u8; KEY],
    signed: &[u8],
    signature: &[u8; SIGNATURE],
) -> Result<(), OfferError> {
    let key = VerifyingKey::from_bytes(identity).map_err(|_| OfferError::Key)?;
    let signature = Signature::from_bytes(signature);
    let verified = key.verify_strict(signed, &signature);
    verified.map_err(|_| OfferError::Signature)
}

/// The parts of the first message, except the bytes that the caller writes.
struct First {
    prelude: Prelude,
    /// The hash of the handshake before the message.
    handshake: Vec<u8>,
    ephemeral: Vec<u8>,
    identity: Arc<SigningKey>,
}

impl First {
    fn payload(&self, said: &[u8]) -> Vec<u8> {
        let signed = statement(&self.handshake, &self.ephemeral, &self.prelude, said);
        let signature = self.identity.sign(&signed).to_bytes();
        [&self.prelude.encode(), &signature[..], said].concat()
    }
}

fn wall() -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.unwrap_or_default()
}

#[cfg(test)]
mod tests;
