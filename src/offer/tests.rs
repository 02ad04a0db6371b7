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

/// Bytes in one direction, and the task that waits for them.
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
        // Small pieces imitate a slow stream.
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
    /// Starts one run of a peer.
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

    /// The prelude of an offer to the peer `to`.
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

/// The first message from `from` to `to`, without the request to the relay.
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
        .expect("the whole offer is there")
}

/// Both ends of an offer from `a` to `b`, as the relay passes it on. Its content is "offer".
fn opened(a: &Peer, b: &Peer) -> (Sealed<End>, Sealed<End>) {
    let (ours, mut theirs) = pair();
    let mut offered = a.offer(b, Content::Signalling, ours).unwrap();
    block_on(offered.write_all(b"offer")).unwrap();
    block_on(offered.flush()).unwrap();
    let mut request = vec![0; circuit::connect(&b.id).len()];
    block_on(theirs.read_exact(&mut request)).unwrap();
    assert_eq!(request, circuit::connect(&b.id));
    let opened = b.sealer.open(theirs).now_or_never();
    let (from, content, answering) = opened.expect("the whole offer is there").unwrap();
    assert_eq!((from, content), (a.id, Content::Signalling));
    (offered, answering)
}

#[test]
fn the_first_write_goes_in_one_flight_and_both_ends_are_authenticated() {
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
fn a_stream_without_an_end_message_is_an_error() {
    let (a, b) = (peer(), peer());
    let (mut offered, mut answering) = opened(&a, &b);
    // Without the answer, the offerer cannot send its end message.
    block_on(offered.close()).unwrap();
    let error = block_on(answering.read_to_end(&mut Vec::new())).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn only_its_peer_opens_an_offer() {
    let (a, b, eve) = (peer(), peer(), peer());
    let flight = first_flight(&a, &b, b"secret offer");
    assert!(!flight.windows(6).any(|bytes| bytes == b"secret"));
    assert!(matches!(open(&eve, &flight), Err(OfferError::Seal(_))));
}

#[test]
fn a_repeated_offer_is_refused() {
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
fn an_offer_with_the_identity_of_another_peer_is_refused() {
    let (mut a, b, victim) = (peer(), peer(), peer());
    a.sealer.identity = victim.sealer.identity;
    let flight = first_flight(&a, &b, b"offer");
    assert!(matches!(open(&b, &flight), Err(OfferError::Key)));
}

/// Forges the first message of `Noise_IK_25519_ChaChaPoly_SHA256` to `to`, from the peer that has
/// the static key `from`. The forger holds the key of `to`. The only secrets in the message are
/// `es` and `ss`, and that key computes both. `payload` is called with the hash before the message
/// and with the ephemeral key.
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
fn a_stolen_peer_key_does_not_forge_an_offer_of_another() {
    let (b, victim, eve) = (peer(), peer(), peer());
    let prelude = victim.prelude(&b);
    let payload =
        |signature: [u8; SIGNATURE]| [&prelude.encode(), &signature[..], b"order"].concat();
    let flight = forged(&victim.static_key(), &b, |hash, ephemeral| {
        let signed = statement(hash, ephemeral, &prelude, b"order");
        payload(eve.sealer.identity.sign(&signed).to_bytes())
    });
    assert!(matches!(open(&b, &flight), Err(OfferError::Signature)));
    // The same offer is taken when the victim signs it.
    let flight = forged(&victim.static_key(), &b, |hash, ephemeral| {
        let signed = statement(hash, ephemeral, &prelude, b"order");
        payload(victim.sealer.identity.sign(&signed).to_bytes())
    });
    assert_eq!(open(&b, &flight).unwrap().0, victim.id);
}

#[test]
fn a_stolen_peer_key_does_not_reseal_an_offer() {
    let (a, b) = (peer(), peer());
    let flight = flight_of(Content::Stream, &a, &b, b"order");
    let handshake = b.sealer.builder().unwrap().build_responder().unwrap();
    let mut stolen = Sealed::new((), handshake);
    let payload = stolen.unseal(&flight[LENGTH..]).unwrap();
    let again = forged(&a.static_key(), &b, |_, _| payload);
    assert!(matches!(open(&b, &again), Err(OfferError::Signature)));
    assert!(open(&b, &flight).is_ok());
}

/// Everybody can sign for the key that is the neutral point, because `R = s B` holds for any `s`.
#[test]
fn a_key_that_everybody_can_sign_for_is_refused() {
    let mut neutral = [0; KEY];
    neutral[0] = 1;
    let mut signature = [0; SIGNATURE];
    signature[..KEY].copy_from_slice(&neutral);
    assert!(verify(&neutral, b"order", &signature).is_err());
}

/// The message announces the greatest length, and none of its bytes arrive.
#[test]
fn memory_grows_with_the_bytes_that_arrive() {
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
fn a_changed_offer_does_not_open() {
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
fn an_answer_by_another_peer_is_an_error() {
    let (a, b, eve) = (peer(), peer(), peer());
    let (ours, theirs) = pair();
    let mut offered = a.offer(&b, Content::Signalling, ours).unwrap();
    block_on(offered.write_all(b"offer")).unwrap();
    // Eve answers an offer that was sealed for her.
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
    fn arbitrary_bytes_are_refused(flight in prop::collection::vec(any::<u8>(), 0..300)) {
        let b = peer();
        prop_assert!(b.sealer.open(&flight[..]).now_or_never().unwrap().is_err());
    }

    /// A payload that is sealed correctly is still refused unless it is signed correctly.
    #[test]
    fn arbitrary_sealed_bytes_are_refused(payload in prop::collection::vec(any::<u8>(), 0..300)) {
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
    assert!(!is_sealable(&PeerId::random()));
    assert!(is_sealable(&peer().id));
}
