use std::{collections::VecDeque, task::Waker};

use futures::{AsyncWriteExt as _, FutureExt as _, executor::block_on, future::join};
use libp2p::identity::Keypair;

use super::*;

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

fn peer() -> Peer {
    let keypair = Keypair::generate_ed25519();
    Peer {
        id: keypair.public().to_peer_id(),
        sealer: Sealer::new(&keypair).unwrap(),
    }
}

/// What `from` sends to `to` first, without the request to the relay.
fn first_flight(from: &Peer, to: &Peer, said: &[u8]) -> Vec<u8> {
    flight_of(Content::Signalling, from, to, said)
}

fn flight_of(content: Content, from: &Peer, to: &Peer, said: &[u8]) -> Vec<u8> {
    let (ours, theirs) = pair();
    let mut sealed = from.sealer.offer(&to.id, content, ours).unwrap();
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
    let mut offered = a.sealer.offer(&b.id, Content::Signalling, ours).unwrap();
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
fn early_data_is_for_one_run_of_the_peer() {
    let keypair = Keypair::generate_ed25519();
    let run = || Peer {
        id: keypair.public().to_peer_id(),
        sealer: Sealer::new(&keypair).unwrap(),
    };
    let (a, b, again) = (peer(), run(), run());
    let content = Content::Stream(b.sealer.incarnation());
    let flight = flight_of(content, &a, &b, b"order");
    assert!(matches!(open(&again, &flight), Err(OfferError::Stale)));
    let (from, told, _) = open(&b, &flight).unwrap();
    assert_eq!((from, told), (a.id, content));
    assert!(matches!(open(&b, &flight), Err(OfferError::Stale)));
}

#[test]
fn nobody_offers_in_the_name_of_another() {
    let (mut a, b, victim) = (peer(), peer(), peer());
    a.sealer.identity = victim.sealer.identity;
    let flight = first_flight(&a, &b, b"offer");
    assert!(matches!(open(&b, &flight), Err(OfferError::Key)));
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
    let mut offered = a.sealer.offer(&b.id, Content::Signalling, ours).unwrap();
    block_on(offered.write_all(b"offer")).unwrap();
    // Eve answers an offer of her own making.
    let (_, _, mut answering) = open(&eve, &first_flight(&a, &eve, b"offer")).unwrap();
    answering.stream = theirs;
    block_on(answering.write_all(b"answer")).unwrap();
    block_on(answering.flush()).unwrap();
    let error = block_on(offered.read(&mut [0; 6])).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
}

#[test]
fn identities_of_other_kinds_have_no_offers() {
    assert!(sealing(&PeerId::random()).is_none());
    assert!(sealing(&peer().id).is_some());
}
