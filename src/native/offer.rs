//! What needs no circuit: an offer of ICE, or a stream's first bytes, sealed for its peer goes
//! through the relay in one flight, and the answer comes back in the next.
//!
//! A circuit must be granted and authenticated before anything can be said on it, which is one and
//! a half round trips. A peer id holds its peer's public key, so what is to be said can be sealed
//! for that peer alone and sent at once. The relay passes both directions on as it does with a
//! circuit, and reads neither.
//!
//! # Wire
//! On the stream to the relay: the CONNECT message of the relay specification, which names the
//! peer. Then, from the offerer to the peer and back, messages of `Noise_IK_25519_ChaChaPoly_SHA256`
//! (Noise Protocol Framework, section 7.5), each behind its length as 16 bits, big-endian. Static
//! keys are the Montgomery forms of the Ed25519 keys that are the peer ids. The payload of the
//! first message is a [`Prelude`], the offerer's Ed25519 signature of the [`statement`], and then
//! what a circuit would carry: signalling, or a resumable stream. A message without a payload is
//! the end; a stream that ends without one was given up.
//!
//! # Security
//! Both sides are authenticated: the peer, because nobody else reads the offer and answers it; the
//! offerer, to the peer, by its signature, which not even whoever holds the *peer's* key can forge.
//! The signature stands inside the seal, so that a relay does not learn who offers. To the peer,
//! and to whoever holds its key, it proves that the offerer wrote the first message.
//!
//! Whoever keeps the first message can send it again, which [`Seen`] stops; since a peer that has
//! been started anew remembers nothing, an offer is sealed for one [`Incarnation`] of it, which its
//! ticket tells. Whoever keeps the first message can also read it, should the peer's identity be
//! stolen later: it has no forward secrecy. Of signalling it holds candidates, fingerprints and a
//! password for one try of ICE; what is said on the path that comes of it is protected by QUIC or
//! DTLS with keys of their own. Of a stream it holds the application's first bytes, which is why
//! only [`Connector::open`](crate::Connector::open) sends any, and says so.

use std::{
    fmt, io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use libp2p::{
    PeerId,
    identity::{Keypair, PublicKey, ed25519},
};
use snow::{Builder, HandshakeState, TransportState};
use web_time::{Instant, SystemTime, UNIX_EPOCH};

use crate::circuit::{AsyncReadWrite, Duplex, poll_drain};
use crate::core::{
    circuit,
    offer::{
        Content, Incarnation, KEY, Moment, OFFER_PROTOCOL, Prelude, SIGNATURE, Seen, statement,
    },
    signalling::MAX_MESSAGE_LEN,
};

const PATTERN: &str = "Noise_IK_25519_ChaChaPoly_SHA256";

/// Bytes sealed into one message: a whole message of signalling and its length, since the answer
/// to the first is what opens the way for a second.
const MAX_PLAIN: usize = MAX_MESSAGE_LEN + 8;

/// What a handshake message has besides its payload: two keys and two tags at most.
const MAX_OVERHEAD: usize = 2 * KEY + 2 * TAG;
const TAG: usize = 16;

/// The longest sealed message, which is the first.
const MAX_SEALED: usize = Prelude::LEN + SIGNATURE + MAX_PLAIN + MAX_OVERHEAD;
const LENGTH: usize = 2;

/// Bytes of a message that are made room for at a time, so that memory grows with what arrives.
const PIECE: usize = 4096;

/// Why there is no signalling by this way. What is left is the circuit.
#[derive(Debug)]
pub(crate) enum OfferError {
    /// One of the peers has an identity of another kind than Ed25519.
    Key,
    /// The stream broke.
    Io(io::Error),
    /// A message is longer than any may be, or shorter.
    Length,
    /// A message was not sealed for us, or not by the peer.
    Seal(snow::Error),
    /// The offer was not signed by the peer that it names.
    Signature,
    /// It was offered before, or long ago, or in the future, or to an earlier run of ours.
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

/// That something can be sealed here. Where nothing can, there is no value of it, and what needs
/// one is not compiled.
#[derive(Clone, Copy)]
pub(crate) struct Sealing;

/// Whether something can be sealed for `peer`.
pub(crate) fn sealing(peer: &PeerId) -> Option<Sealing> {
    identity_of(peer).map(|_| Sealing)
}

/// What carries a resumable stream: a substream of a connection, or what is sealed.
pub(crate) type Carrier = Duplex;

pub(crate) fn carrier(substream: impl AsyncReadWrite + 'static) -> Carrier {
    Box::pin(substream)
}

/// The Ed25519 key that `peer` is the id of.
fn identity_of(peer: &PeerId) -> Option<[u8; KEY]> {
    // An identity multihash of the protobuf `PublicKey { type: Ed25519, data }`.
    let bytes = peer.to_bytes();
    let key = bytes.strip_prefix(&[0x00, 0x24, 0x08, 0x01, 0x12, 0x20])?;
    key.try_into().ok()
}

fn montgomery(identity: &[u8; KEY]) -> Option<[u8; KEY]> {
    let key = VerifyingKey::from_bytes(identity).ok()?;
    Some(key.to_montgomery().to_bytes())
}

/// Seals offers as this peer, and opens those for it. Clones share what was seen.
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
    /// `None` for an identity that is not an Ed25519 key.
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

    /// What offers for this run of ours are sealed for.
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

    /// Says something to the run `incarnation` of `peer` over `stream`, which leads to a relay of
    /// both. What is written first goes with the request.
    pub(crate) fn offer<S>(
        &self,
        peer: &PeerId,
        incarnation: Incarnation,
        content: Content,
        stream: S,
    ) -> Result<Sealed<S>, OfferError> {
        let theirs = identity_of(peer).as_ref().and_then(montgomery);
        let theirs = theirs.ok_or(OfferError::Key)?;
        // The handshake would make an ephemeral key of its own too late for it to be signed. This
        // one is as random, and for this handshake alone.
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

    /// Reads the first message of an offer; gives who sent it, and what follows.
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

/// Strictly: a key of small order, for which anybody can sign, is nobody's.
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

/// What the first message needs, but for what is said in it.
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

fn checked(length: [u8; LENGTH]) -> Result<usize, OfferError> {
    match usize::from(u16::from_be_bytes(length)) {
        length if (TAG..=MAX_SEALED).contains(&length) => Ok(length),
        _ => Err(OfferError::Length),
    }
}

enum Noise {
    Handshake(Box<HandshakeState>),
    Transport(Box<TransportState>),
    /// A message did not open.
    Broken,
}

/// A stream whose bytes are sealed between two peers. The offerer's second write waits for the
/// first bytes of the other.
pub(crate) struct Sealed<S> {
    stream: S,
    noise: Noise,
    /// Stands before what is written first.
    first: Option<Box<First>>,
    /// What is still to be written to the stream.
    outgoing: Vec<u8>,
    /// What was opened and not read.
    incoming: Vec<u8>,
    /// A message that has not come in whole, behind its length.
    partial: Vec<u8>,
    /// The end was said, by us and by the peer.
    closed: bool,
    ended: bool,
}

impl<S> Sealed<S> {
    fn new(stream: S, noise: HandshakeState) -> Self {
        Self {
            stream,
            noise: Noise::Handshake(Box::new(noise)),
            first: None,
            outgoing: Vec::new(),
            incoming: Vec::new(),
            partial: Vec::new(),
            closed: false,
            ended: false,
        }
    }

    fn is_writable(&self) -> bool {
        match &self.noise {
            Noise::Handshake(noise) => noise.is_my_turn(),
            Noise::Transport(_) | Noise::Broken => true,
        }
    }

    fn seal(&mut self, plain: &[u8]) -> Result<(), OfferError> {
        let mut message = vec![0; plain.len() + MAX_OVERHEAD];
        let length = match &mut self.noise {
            Noise::Handshake(noise) => noise.write_message(plain, &mut message)?,
            Noise::Transport(noise) => noise.write_message(plain, &mut message)?,
            Noise::Broken => return Err(OfferError::Length),
        };
        let prefix = u16::try_from(length).map_err(|_| OfferError::Length)?;
        self.outgoing.extend(prefix.to_be_bytes());
        self.outgoing.extend(&message[..length]);
        self.advance()
    }

    fn unseal(&mut self, message: &[u8]) -> Result<Vec<u8>, OfferError> {
        let mut plain = vec![0; message.len()];
        let length = match &mut self.noise {
            Noise::Handshake(noise) => noise.read_message(message, &mut plain)?,
            Noise::Transport(noise) => noise.read_message(message, &mut plain)?,
            Noise::Broken => return Err(OfferError::Length),
        };
        plain.truncate(length);
        self.advance()?;
        Ok(plain)
    }

    fn advance(&mut self) -> Result<(), OfferError> {
        self.noise = match std::mem::replace(&mut self.noise, Noise::Broken) {
            Noise::Handshake(noise) if noise.is_handshake_finished() => {
                Noise::Transport(Box::new(noise.into_transport_mode()?))
            }
            noise => noise,
        };
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Sealed<S> {
    fn poll_outgoing(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_drain(&mut self.stream, &mut self.outgoing, cx)
    }

    /// Reads one message.
    fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let wanted = match self.partial.first_chunk() {
                None => LENGTH,
                Some(length) => LENGTH + checked(*length)?,
            };
            let before = self.partial.len();
            if before == wanted {
                let message = std::mem::take(&mut self.partial);
                let turn = self.is_writable();
                self.incoming = self.unseal(&message[LENGTH..])?;
                self.ended = self.incoming.is_empty();
                if turn != self.is_writable() {
                    // Whoever waits to write does so in the task that reads.
                    cx.waker().wake_by_ref();
                }
                return Poll::Ready(Ok(()));
            }
            self.partial.resize(wanted.min(before + PIECE), 0);
            let read = Pin::new(&mut self.stream).poll_read(cx, &mut self.partial[before..]);
            let read = match read {
                Poll::Ready(Ok(read)) => read,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.partial.truncate(before);
                    return Poll::Pending;
                }
            };
            self.partial.truncate(before + read);
            if read == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Sealed<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        while this.incoming.is_empty() && !this.ended {
            ready!(this.poll_message(cx))?;
        }
        let length = buffer.len().min(this.incoming.len());
        buffer[..length].copy_from_slice(&this.incoming[..length]);
        this.incoming.drain(..length);
        Poll::Ready(Ok(length))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Sealed<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if !this.is_writable() {
            // The first message must go before the answer can come; that is read by the same task,
            // which `poll_message` wakes.
            ready!(Pin::new(&mut *this).poll_flush(cx))?;
            return Poll::Pending;
        }
        // One message at a time, but for what stands before the first.
        if this.first.is_none() {
            ready!(this.poll_outgoing(cx))?;
        }
        let length = buffer.len().min(MAX_PLAIN);
        let said = &buffer[..length];
        match this.first.take() {
            Some(first) => this.seal(&first.payload(said))?,
            None => this.seal(said)?,
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_outgoing(cx))?;
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closed && matches!(this.noise, Noise::Transport(_)) {
            this.closed = true;
            this.seal(&[])?;
        }
        ready!(this.poll_outgoing(cx))?;
        Pin::new(&mut this.stream).poll_close(cx)
    }
}

#[cfg(test)]
mod tests;
