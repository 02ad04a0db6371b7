use std::{
    collections::VecDeque,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use futures::{AsyncWrite, AsyncWriteExt as _, FutureExt as _, executor::block_on, future::join};
use libp2p::identity::Keypair;
use proptest::prelude::*;
use snow::{
    params::NoiseParams,
    resolvers::{CryptoResolver as _, DefaultResolver},
};

use super::{
    sealed::{MAX_SEALED, PIECE, TAG},
    *,
};

/// Bytes on their way, and who waits for them.
#[derive(Default)]
struct Way {
    bytes: VecDeque<u8>,
    ended: bool,
    reader: Option<Waker>,
}

/// One end of a stream between two peers.
#[derive(Clone, Default)]
struct End {
    from: Arc<Mutex<Way>>,
    to: Arc<Mutex<Way>>,
}

fn pair() -> (End, End) {
    let a = End::default();
    let b = End {
        from: a.to.clone(),
        to: a.from.clone(),
    };
    (a, b)
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut way = self.from.lock().unwrap();
        if way.bytes.is_empty() && !way.ended {
            way.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        // In small pieces, as a slow stream gives them.
        let length = buffer.len().min(way.bytes.len()).min(7);
        for (place, byte) in buffer.iter_mut().zip(way.bytes.drain(..length)) {
            *place = byte;
        }
        Poll::Ready(Ok(length))
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut way = self.to.lock().unwrap();
        let length = buffer.len().min(11);
        way.bytes.extend(&buffer[..length]);
        if let Some(reader) = way.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut way = self.to.lock().unwrap();
        way.ended = true;
        if let Some(reader) = way.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(()))
    }
}

struct Peer {
    id: PeerId,
    sealer: Sealer,
}

impl Peer {
    /// One run of it.
    fn run(keypair: &Keypair) -> Self {
        Self {
            id: keypair.public().to_peer_id(),
            sealer: Sealer::new(keypair).unwrap(),
        }
    }

    fn offer(&self, to: &Self, content: Content, stream: End) -> Result<Sealed<End>, OfferError> {
        let run = to.sealer.incarnation();
        self.sealer.offer(&to.id, run, content, stream)
    }

    fn identity(&self) -> [u8; KEY] {
        self.sealer.identity.verifying_key().to_bytes()
    }

    fn static_key(&self) -> [u8; KEY] {
        montgomery(&self.identity()).unwrap()
    }

    /// What it says first to a peer.
    fn prelude(&self, to: &Self) -> Prelude {
        Prelude {
            identity: self.identity(),
            at: wall(),
            incarnation: to.sealer.incarnation(),
            content: Content::Stream,
        }
    }
}

fn peer() -> Peer {
    Peer::run(&Keypair::generate_ed25519())
}

/// What `from` sends to `to` first, without the request to the relay.
fn first_flight(from: &Peer, to: &Peer, said: &[u8]) -> Vec<u8> {
    flight_of(Content::Signalling, from, to, said)
}

fn flight_of(content: Content, from: &Peer, to: &Peer, said: &[u8]) -> Vec<u8> {
    let (ours, theirs) = pair();
    let mut sealed = from.offer(to, content, ours).unwrap();
    block_on(sealed.write_all(said)).unwrap();
    block_on(sealed.flush()).unwrap();
    let sent: Vec<u8> = theirs.from.lock().unwrap().bytes.drain(..).collect();
    let request = circuit::connect(&to.id);
    sent.strip_prefix(&request[..]).unwrap().to_vec()
}

fn open(peer: &Peer, flight: &[u8]) -> Result<(PeerId, Content, Sealed<End>), OfferError> {
    let (end, other) = pair();
    other.to.lock().unwrap().bytes.extend(flight);
    peer.sealer
        .open(end)
        .now_or_never()
        .expect("it is all there")
}

/// Both ends of an offer of `a` to `b`, which says "offer", as the relay passes it on.
fn opened(a: &Peer, b: &Peer) -> (Sealed<End>, Sealed<End>) {
    let (ours, mut theirs) = pair();
    let mut offered = a.offer(b, Content::Signalling, ours).unwrap();
    block_on(offered.write_all(b"offer")).unwrap();
    block_on(offered.flush()).unwrap();
    let mut request = vec![0; circuit::connect(&b.id).len()];
    block_on(theirs.read_exact(&mut request)).unwrap();
    assert_eq!(request, circuit::connect(&b.id));
    let opened = b.sealer.open(theirs).now_or_never();
    let (from, content, answering) = opened.expect("it is all there").unwrap();
    assert_eq!((from, content), (a.id, Content::Signalling));
    (offered, answering)
}

#[test]
fn what_is_written_first_goes_in_one_flight_and_both_know_the_other() {
    let (a, b) = (peer(), peer());
    let (mut offered, mut answering) = opened(&a, &b);

    let offerer = async {
        let mut answer = [0; 6];
        offered.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"answer");
        offered.write_all(&[7; 100_000]).await.unwrap();
        offered.close().await.unwrap();
    };
    let answerer = async {
        let mut offer = [0; 5];
        answering.read_exact(&mut offer).await.unwrap();
        assert_eq!(&offer, b"offer");
        answering.write_all(b"answer").await.unwrap();
        answering.flush().await.unwrap();
        let mut rest = Vec::new();
        answering.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, [7; 100_000]);
    };
    block_on(join(offerer, answerer));
}

#[test]
fn an_end_that_was_not_said_is_an_error() {
    let (a, b) = (peer(), peer());
    let (mut offered, mut answering) = opened(&a, &b);
    // Without the answer the offerer cannot say it.
    block_on(offered.close()).unwrap();
    let error = block_on(answering.read_to_end(&mut Vec::new())).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn nobody_else_reads_an_offer() {
    let (a, b, eve) = (peer(), peer(), peer());
    let flight = first_flight(&a, &b, b"secret offer");
    assert!(!flight.windows(6).any(|bytes| bytes == b"secret"));
    assert!(matches!(open(&eve, &flight), Err(OfferError::Seal(_))));
}

#[test]
fn an_offer_counts_once() {
    let (a, b) = (peer(), peer());
    let flight = first_flight(&a, &b, b"offer");
    assert!(open(&b, &flight).is_ok());
    assert!(matches!(open(&b, &flight), Err(OfferError::Stale)));
}

#[test]
fn an_offer_is_for_one_run_of_the_peer() {
    let keypair = Keypair::generate_ed25519();
    let (a, b, again) = (peer(), Peer::run(&keypair), Peer::run(&keypair));
    for content in [Content::Signalling, Content::Stream] {
        let flight = flight_of(content, &a, &b, b"order");
        assert!(matches!(open(&again, &flight), Err(OfferError::Stale)));
        let (from, told, _) = open(&b, &flight).unwrap();
        assert_eq!((from, told), (a.id, content));
        assert!(matches!(open(&b, &flight), Err(OfferError::Stale)));
    }
}

#[test]
fn nobody_offers_in_the_name_of_another() {
    let (mut a, b, victim) = (peer(), peer(), peer());
    a.sealer.identity = victim.sealer.identity;
    let flight = first_flight(&a, &b, b"offer");
    assert!(matches!(open(&b, &flight), Err(OfferError::Key)));
}

/// The first message of `Noise_IK_25519_ChaChaPoly_SHA256` from the peer that has the static key
/// `from` to `to`, written by whoever holds the key of `to`: `es` and `ss` are all the secrets in
/// it, and that key computes both. `payload` is told the hash before the message and the ephemeral
/// key.
fn forged(from: &[u8; KEY], to: &Peer, payload: impl FnOnce(&[u8], &[u8]) -> Vec<u8>) -> Vec<u8> {
    let params: NoiseParams = PATTERN.parse().unwrap();
    let resolver = DefaultResolver;
    let mut hasher = resolver.resolve_hash(&params.hash).unwrap();
    let mut cipher = resolver.resolve_cipher(&params.cipher).unwrap();
    let mut stolen = resolver.resolve_dh(&params.dh).unwrap();
    stolen.set(&*to.sealer.secret);
    let ephemeral = to.sealer.builder().unwrap().generate_keypair().unwrap();
    let (mut hash, mut chain) = ([0; 32], [0; 32]);
    hash.copy_from_slice(PATTERN.as_bytes());
    chain.copy_from_slice(PATTERN.as_bytes());
    let mut mix = |hash: &mut [u8; 32], bytes: &[u8]| {
        hasher.reset();
        hasher.input(&*hash);
        hasher.input(bytes);
        hasher.result(hash);
    };
    mix(&mut hash, OFFER_PROTOCOL.as_bytes());
    mix(&mut hash, &to.static_key());
    let before = hash;
    mix(&mut hash, &ephemeral.public);
    let mut message = ephemeral.public.clone();
    let payload = payload(&before, &ephemeral.public);
    let mut keys = resolver.resolve_hash(&params.hash).unwrap();
    for (with, plain) in [(&ephemeral.public[..], &from[..]), (from, &payload)] {
        let (mut secret, mut key) = ([0; 32], [0; 32]);
        stolen.dh(with, &mut secret).unwrap();
        let old = chain;
        keys.hkdf(&old, &secret, 2, &mut chain, &mut key, &mut []);
        cipher.set(&key);
        let mut sealed = vec![0; plain.len() + TAG];
        let length = cipher.encrypt(0, &hash, plain, &mut sealed);
        mix(&mut hash, &sealed[..length]);
        message.extend(&sealed[..length]);
    }
    [&(message.len() as u16).to_be_bytes(), &message[..]].concat()
}

#[test]
fn whoever_holds_the_peers_key_offers_in_nobody_elses_name() {
    let (b, victim, eve) = (peer(), peer(), peer());
    let prelude = victim.prelude(&b);
    let payload =
        |signature: [u8; SIGNATURE]| [&prelude.encode(), &signature[..], b"order"].concat();
    let flight = forged(&victim.static_key(), &b, |hash, ephemeral| {
        let signed = statement(hash, ephemeral, &prelude, b"order");
        payload(eve.sealer.identity.sign(&signed).to_bytes())
    });
    assert!(matches!(open(&b, &flight), Err(OfferError::Signature)));
    // All else is as the victim would do it.
    let flight = forged(&victim.static_key(), &b, |hash, ephemeral| {
        let signed = statement(hash, ephemeral, &prelude, b"order");
        payload(victim.sealer.identity.sign(&signed).to_bytes())
    });
    assert_eq!(open(&b, &flight).unwrap().0, victim.id);
}

#[test]
fn whoever_holds_the_peers_key_seals_no_offer_anew() {
    let (a, b) = (peer(), peer());
    let flight = flight_of(Content::Stream, &a, &b, b"order");
    let handshake = b.sealer.builder().unwrap().build_responder().unwrap();
    let mut stolen = Sealed::new((), handshake);
    let payload = stolen.unseal(&flight[LENGTH..]).unwrap();
    let again = forged(&a.static_key(), &b, |_, _| payload);
    assert!(matches!(open(&b, &again), Err(OfferError::Signature)));
    assert!(open(&b, &flight).is_ok());
}

/// Everybody can sign for the key that is the neutral point: `R = s B` for any `s`.
#[test]
fn a_key_that_everybody_can_sign_for_is_nobodys() {
    let mut neutral = [0; KEY];
    neutral[0] = 1;
    let mut signature = [0; SIGNATURE];
    signature[..KEY].copy_from_slice(&neutral);
    assert!(verify(&neutral, b"order", &signature).is_err());
}

/// A message that announces the most there may be, and brings little of it.
#[test]
fn memory_grows_with_what_has_arrived() {
    let (a, b) = (peer(), peer());
    let (_, mut answering) = opened(&a, &b);
    let announced = u16::try_from(MAX_SEALED).unwrap().to_be_bytes();
    let (end, _other) = pair();
    end.from.lock().unwrap().bytes.extend(announced);
    answering.incoming.clear();
    answering.stream = end;
    assert!(answering.read(&mut [0]).now_or_never().is_none());
    assert!(answering.partial.capacity() <= 2 * PIECE);
}

#[test]
fn an_offer_that_was_changed_does_not_open() {
    let (a, b) = (peer(), peer());
    let flight = first_flight(&a, &b, b"offer");
    for at in 0..flight.len() {
        let mut changed = flight.clone();
        changed[at] ^= 1;
        let opened = b.sealer.open(&changed[..]).now_or_never().unwrap();
        assert!(opened.is_err(), "byte {at}");
    }
}

#[test]
fn an_answer_of_somebody_else_is_an_error() {
    let (a, b, eve) = (peer(), peer(), peer());
    let (ours, theirs) = pair();
    let mut offered = a.offer(&b, Content::Signalling, ours).unwrap();
    block_on(offered.write_all(b"offer")).unwrap();
    // Eve answers an offer of her own making.
    let (_, _, mut answering) = open(&eve, &first_flight(&a, &eve, b"offer")).unwrap();
    answering.stream = theirs;
    block_on(answering.write_all(b"answer")).unwrap();
    block_on(answering.flush()).unwrap();
    let error = block_on(offered.read(&mut [0; 6])).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_that_arrives_panics(flight in prop::collection::vec(any::<u8>(), 0..300)) {
        let b = peer();
        prop_assert!(b.sealer.open(&flight[..]).now_or_never().unwrap().is_err());
    }

    /// Of what was sealed as it should be, only what was signed as it should be is taken.
    #[test]
    fn nothing_that_was_sealed_panics(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let (a, b) = (peer(), peer());
        let whole = [&a.prelude(&b).encode(), &payload[..]].concat();
        for payload in [payload, whole] {
            let flight = forged(&a.static_key(), &b, |_, _| payload);
            prop_assert!(open(&b, &flight).is_err());
        }
    }
}

#[test]
fn identities_of_other_kinds_have_no_offers() {
    assert!(sealing(&PeerId::random()).is_none());
    assert!(sealing(&peer().id).is_some());
}
