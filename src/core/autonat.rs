//! What a client says to an AutoNAT v2 server that is to dial it, and what the server answers
//! (libp2p specification `autonat/autonat-v2.md`).
//!
//! Each message is a proto3 message behind its length as an unsigned varint.

use super::protobuf::{behind_length, field, skip_field, take_bytes, take_varint};

/// The protocol a server is asked with.
pub(crate) const DIAL_REQUEST: &str = "/libp2p/autonat/2/dial-request";
/// The protocol of the stream that proves that the server reached us.
pub(crate) const DIAL_BACK: &str = "/libp2p/autonat/2/dial-back";

/// Longest answer taken; those there are have a few bytes.
pub(crate) const MAX_ANSWER: usize = 256;
/// Longest proof: a field of 8 bytes.
pub(crate) const MAX_PROOF: usize = 9;
/// `DialBackResponse { status = OK }`, which is what proto3 leaves out.
pub(crate) const PROOF_TAKEN: [u8; 1] = [0];

/// How much a server may ask us to send before it dials, so that nobody can use it to flood
/// others: the specification has 30,000 to 100,000 bytes.
const MAX_DATA: u64 = 100_000;
/// The most of that in one message.
const MAX_PIECE: usize = 4096;

// Message { dialRequest = 1, dialResponse = 2, dialDataRequest = 3, dialDataResponse = 4 }
const REQUEST: u64 = 1 << 3 | 2;
const RESPONSE: u64 = 2 << 3 | 2;
const DATA_REQUEST: u64 = 3 << 3 | 2;
const DATA_RESPONSE: u64 = 4 << 3 | 2;
// DialRequest { addrs = 1, nonce = 2 }, DialDataResponse { data = 1 }
const BYTES: u64 = 1 << 3 | 2;
const NONCE: u64 = 2 << 3 | 1;
// DialDataRequest { addrIdx = 1, numBytes = 2 }
const NUM_BYTES: u64 = 2 << 3;
// DialResponse { status = 1, addrIdx = 2, dialStatus = 3 }
const STATUS: u64 = 1 << 3;
const DIAL_STATUS: u64 = 3 << 3;
// DialBack { nonce = 1 }
const PROOF: u64 = 1 << 3 | 1;

const OK: u64 = 200;
const DIAL_ERROR: u64 = 100;
const DIAL_BACK_ERROR: u64 = 101;

/// What became of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The server says that it reached us.
    Reached,
    /// It tried and did not.
    Unreached,
    /// It did not try, or nobody knows.
    Unknown,
}

/// What a server answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It wants so many bytes first.
    Wants(usize),
    /// It is done.
    Done(Outcome),
}

/// Asks a server to dial `address` and to say `nonce` there.
pub(crate) fn request(address: &[u8], nonce: u64) -> Vec<u8> {
    let mut request = field(BYTES, address);
    request.push(NONCE as u8);
    request.extend(nonce.to_le_bytes());
    behind_length(&field(REQUEST, &request))
}

/// As much as a server wants before it dials.
pub(crate) fn data(wanted: usize) -> Vec<u8> {
    let mut messages = Vec::new();
    let mut left = wanted;
    while left > 0 {
        let piece = left.min(MAX_PIECE);
        let message = field(DATA_RESPONSE, &field(BYTES, &vec![0; piece]));
        messages.extend(behind_length(&message));
        left -= piece;
    }
    messages
}

/// Reads an answer, without its length.
pub(crate) fn answer(mut rest: &[u8]) -> Option<Answer> {
    let mut answer = None;
    while !rest.is_empty() {
        match take_varint(&mut rest)? {
            RESPONSE => answer = Some(Answer::Done(outcome(take_bytes(&mut rest)?)?)),
            DATA_REQUEST => {
                let wanted = last(take_bytes(&mut rest)?, &[NUM_BYTES])?[0];
                let wanted = (wanted <= MAX_DATA).then_some(wanted)?;
                answer = Some(Answer::Wants(usize::try_from(wanted).ok()?));
            }
            tag => skip_field(tag, &mut rest)?,
        }
    }
    answer
}

fn outcome(response: &[u8]) -> Option<Outcome> {
    let [status, dial] = last(response, &[STATUS, DIAL_STATUS])?;
    Some(match (status, dial) {
        (OK, OK) => Outcome::Reached,
        (OK, DIAL_ERROR | DIAL_BACK_ERROR) => Outcome::Unreached,
        _ => Outcome::Unknown,
    })
}

/// Reads what proves that a server reached us, without its length.
pub(crate) fn proof(mut rest: &[u8]) -> Option<u64> {
    let mut nonce = None;
    while !rest.is_empty() {
        match take_varint(&mut rest)? {
            PROOF => {
                let (bytes, behind) = rest.split_first_chunk()?;
                nonce = Some(u64::from_le_bytes(*bytes));
                rest = behind;
            }
            tag => skip_field(tag, &mut rest)?,
        }
    }
    nonce
}

/// The last values of varint fields; 0, which proto3 leaves out, for those that are not there.
fn last<const N: usize>(mut rest: &[u8], tags: &[u64; N]) -> Option<[u64; N]> {
    let mut values = [0; N];
    while !rest.is_empty() {
        let tag = take_varint(&mut rest)?;
        match tags.iter().position(|t| *t == tag) {
            Some(at) => values[at] = take_varint(&mut rest)?,
            None => skip_field(tag, &mut rest)?,
        }
    }
    Some(values)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_is_as_the_specification_has_it() {
        let expected = [
            16, 0x0a, 14, 0x0a, 3, 7, 8, 9, 0x11, 0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01,
        ];
        assert_eq!(request(&[7, 8, 9], 0x0123_4567_89ab_cdef), expected);
    }

    #[test]
    fn each_answer_is_told_apart() {
        let done = |fields: &[u8]| answer(&field(RESPONSE, fields));
        let outcome = |outcome| Some(Answer::Done(outcome));
        assert_eq!(
            done(&[8, 0xc8, 1, 0x18, 0xc8, 1]),
            outcome(Outcome::Reached)
        );
        assert_eq!(done(&[8, 0xc8, 1, 0x18, 100]), outcome(Outcome::Unreached));
        assert_eq!(done(&[8, 0xc8, 1, 0x18, 101]), outcome(Outcome::Unreached));
        assert_eq!(done(&[8, 0xc8, 1]), outcome(Outcome::Unknown));
        assert_eq!(done(&[8, 100]), outcome(Outcome::Unknown));
        assert_eq!(done(&[]), outcome(Outcome::Unknown));
        let wants = |bytes: &[u8]| answer(&field(DATA_REQUEST, bytes));
        assert_eq!(wants(&[0x10, 0xb0, 0xea, 1]), Some(Answer::Wants(30_000)));
        assert_eq!(wants(&[0x10, 0xa1, 0x8d, 6]), None, "100,001");
        assert_eq!(answer(&[]), None);
    }

    #[test]
    fn a_proof_is_its_nonce() {
        assert_eq!(
            proof(&[9, 1, 0, 0, 0, 0, 0, 0, 2]),
            Some(0x0200_0000_0000_0001)
        );
        assert_eq!(proof(&[9, 1]), None);
        assert_eq!(proof(&[]), None);
    }

    proptest! {
        #[test]
        fn data_is_as_much_as_was_asked_for(wanted in 0usize..100_001) {
            let data = data(wanted);
            let (mut rest, mut sent) = (&data[..], 0);
            while !rest.is_empty() {
                let mut message = take_bytes(&mut rest).unwrap();
                prop_assert_eq!(take_varint(&mut message), Some(DATA_RESPONSE));
                let mut response = take_bytes(&mut message).unwrap();
                prop_assert_eq!(take_varint(&mut response), Some(BYTES));
                let piece = take_bytes(&mut response).unwrap();
                prop_assert!(piece.len() <= MAX_PIECE && response.is_empty());
                sent += piece.len();
            }
            prop_assert_eq!(sent, wanted);
        }

        #[test]
        fn noise_never_panics(noise in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = (answer(&noise), proof(&noise));
        }
    }
}
