//! Messages between a client and an AutoNAT v2 server that is asked to dial it (libp2p
//! specification `autonat/autonat-v2.md`). Both sides are here.
//!
//! Each message is a proto3 message after its length, which is an unsigned varint. The functions
//! that read get a message without its length.

use super::protobuf::{behind_length, field, skip_field, take_bytes, take_varint, varint};

/// The protocol of the stream on which a client sends its request.
pub(crate) const DIAL_REQUEST: &str = "/libp2p/autonat/2/dial-request";
/// The protocol of the stream on which a server proves that it reached the client.
pub(crate) const DIAL_BACK: &str = "/libp2p/autonat/2/dial-back";

/// The longest request that is read, as in libp2p. It has room for some hundred addresses.
pub(crate) const MAX_REQUEST: usize = 4104;
/// The longest answer that is read. Known answers have a few bytes.
pub(crate) const MAX_ANSWER: usize = 256;
/// The longest proof: one field of 8 bytes.
pub(crate) const MAX_PROOF: usize = 9;
/// `DialBackResponse { status = OK }` with its length. The message is empty because proto3 leaves
/// out a value of 0.
pub(crate) const PROOF_TAKEN: [u8; 1] = [0];

/// The longest answer to a proof that is read. It has room for a field of two bytes and for unknown
/// fields.
pub(crate) const MAX_PROOF_ANSWER: usize = 16;

/// How many bytes a server may ask a client to send before it dials. The specification names 30,000
/// to 100,000 bytes. The limit keeps others from using a server to make clients send floods.
const MAX_DATA: u64 = 100_000;
/// The most bytes of such data in one message.
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
// DialResponse { status = 1, addrIdx = 2, dialStatus = 3 }, DialBackResponse { status = 1 }
const STATUS: u64 = 1 << 3;
const INDEX: u64 = 2 << 3;
const DIAL_STATUS: u64 = 3 << 3;
// DialBack { nonce = 1 }
const PROOF: u64 = 1 << 3 | 1;

const OK: u64 = 200;
const REJECTED: u64 = 100;
const REFUSED: u64 = 101;
const DIAL_ERROR: u64 = 100;
const DIAL_BACK_ERROR: u64 = 101;

/// The result of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The server says that it reached us.
    Reached,
    /// The server dialled and did not reach us.
    Unreached,
    /// The server did not dial, or the result is not known.
    Unknown,
}

/// A server's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The server wants this many bytes first.
    Wants(usize),
    /// The test is done.
    Done(Outcome),
}

/// A client's request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    /// The addresses, the most important one first. They may be any bytes.
    pub(crate) addresses: Vec<&'a [u8]>,
    pub(crate) nonce: u64,
}

/// A server's answer to a request, as the server makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Response {
    /// The server does not handle the request now, or cannot read it.
    Rejected,
    /// The server dials none of the addresses.
    Refused,
    /// The server has dialled the address with this index.
    Tested(usize, Dialled),
}

/// The result of a dial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dialled {
    /// The client has accepted the proof.
    Reached,
    /// There was no connection.
    Unreached,
    /// There was a connection, but the client did not accept the proof on it.
    Unproven,
}

/// Encodes a request to dial `address` and to send `nonce` there.
pub(crate) fn request(address: &[u8], nonce: u64) -> Vec<u8> {
    let mut request = field(BYTES, address);
    request.push(NONCE as u8);
    request.extend(nonce.to_le_bytes());
    behind_length(&field(REQUEST, &request))
}

/// Encodes the data that a server wants before it dials.
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

/// Decodes a server's answer.
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

/// Decodes the proof that a server reached us, and returns its nonce.
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

/// Decodes a request.
pub(crate) fn read_request(mut rest: &[u8]) -> Option<Request<'_>> {
    let mut request = None;
    while !rest.is_empty() {
        match take_varint(&mut rest)? {
            REQUEST => request = Some(dial_request(take_bytes(&mut rest)?)?),
            tag => skip_field(tag, &mut rest)?,
        }
    }
    request
}

fn dial_request(mut rest: &[u8]) -> Option<Request<'_>> {
    let mut request = Request {
        addresses: Vec::new(),
        nonce: 0,
    };
    while !rest.is_empty() {
        match take_varint(&mut rest)? {
            BYTES => request.addresses.push(take_bytes(&mut rest)?),
            NONCE => {
                let (bytes, behind) = rest.split_first_chunk()?;
                request.nonce = u64::from_le_bytes(*bytes);
                rest = behind;
            }
            tag => skip_field(tag, &mut rest)?,
        }
    }
    Some(request)
}

/// Encodes the answer to a request.
pub(crate) fn response(response: Response) -> Vec<u8> {
    let number = |tag: u64, value: u64| [varint(tag), varint(value)].concat();
    let fields = match response {
        Response::Rejected => number(STATUS, REJECTED),
        Response::Refused => number(STATUS, REFUSED),
        Response::Tested(index, dialled) => {
            let dialled = match dialled {
                Dialled::Reached => OK,
                Dialled::Unreached => DIAL_ERROR,
                Dialled::Unproven => DIAL_BACK_ERROR,
            };
            let (status, index) = (number(STATUS, OK), number(INDEX, index as u64));
            [status, index, number(DIAL_STATUS, dialled)].concat()
        }
    };
    behind_length(&field(RESPONSE, &fields))
}

/// Encodes the proof that a client was reached.
pub(crate) fn dial_back(nonce: u64) -> Vec<u8> {
    let mut message = vec![PROOF as u8];
    message.extend(nonce.to_le_bytes());
    behind_length(&message)
}

/// Whether the client's answer says that it has accepted the proof.
pub(crate) fn is_taken(answer: &[u8]) -> bool {
    last(answer, &[STATUS]) == Some([0])
}

/// Returns the last value of each varint field. A field that is not there has the value 0, because
/// proto3 leaves a 0 out.
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
    fn a_request_has_the_specified_bytes() {
        let expected = [
            16, 0x0a, 14, 0x0a, 3, 7, 8, 9, 0x11, 0xef, 0xcd, 0xab, 0x89, 0x67, 0x45, 0x23, 0x01,
        ];
        assert_eq!(request(&[7, 8, 9], 0x0123_4567_89ab_cdef), expected);
    }

    #[test]
    fn every_answer_is_decoded() {
        let done = |fields: &[u8]| answer(&field(0x12, fields));
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
        let wants = |bytes: &[u8]| answer(&field(0x1a, bytes));
        assert_eq!(wants(&[0x10, 0xb0, 0xea, 1]), Some(Answer::Wants(30_000)));
        assert_eq!(wants(&[0x10, 0xa1, 0x8d, 6]), None, "100,001");
        assert_eq!(answer(&[]), None);
    }

    #[test]
    fn a_proof_is_decoded_to_its_nonce() {
        assert_eq!(
            proof(&[9, 1, 0, 0, 0, 0, 0, 0, 2]),
            Some(0x0200_0000_0000_0001)
        );
        assert_eq!(proof(&[9, 1]), None);
        assert_eq!(proof(&[]), None);
    }

    #[test]
    fn a_response_has_the_specified_bytes() {
        assert_eq!(response(Response::Rejected), [4, 0x12, 2, 8, 100]);
        assert_eq!(response(Response::Refused), [4, 0x12, 2, 8, 101]);
        let reached = response(Response::Tested(1, Dialled::Reached));
        assert_eq!(reached, [10, 0x12, 8, 8, 0xc8, 1, 0x10, 1, 0x18, 0xc8, 1]);
        let unreached = response(Response::Tested(0, Dialled::Unreached));
        assert_eq!(unreached, [9, 0x12, 7, 8, 0xc8, 1, 0x10, 0, 0x18, 100]);
        for (said, outcome) in [
            (Response::Rejected, Outcome::Unknown),
            (Response::Refused, Outcome::Unknown),
            (Response::Tested(3, Dialled::Reached), Outcome::Reached),
            (
                Response::Tested(200, Dialled::Unreached),
                Outcome::Unreached,
            ),
            (Response::Tested(0, Dialled::Unproven), Outcome::Unreached),
        ] {
            assert_eq!(answer(&response(said)[1..]), Some(Answer::Done(outcome)));
        }
    }

    #[test]
    fn malformed_requests_are_refused() {
        assert_eq!(read_request(&[]), None);
        assert_eq!(read_request(&data(7)[1..]), None, "data before any request");
        let empty = field(REQUEST, &[]);
        let empty = read_request(&empty).unwrap();
        assert_eq!((empty.addresses.len(), empty.nonce), (0, 0));
        assert_eq!(read_request(&[0x0a, 4, 0x0a, 3, 7, 8]), None, "cut off");
        assert_eq!(read_request(&[0x0a, 3, 0x11, 1, 2]), None, "half a nonce");
    }

    #[test]
    fn answers_to_a_proof_are_decoded() {
        assert!(is_taken(&PROOF_TAKEN[1..]) && is_taken(&[8, 0]) && is_taken(&[0x10, 9]));
        assert!(!is_taken(&[8, 1]) && !is_taken(&[8]));
        assert!(dial_back(u64::MAX).len() <= MAX_PROOF + 1);
    }

    proptest! {
        #[test]
        fn a_decoded_request_has_the_encoded_fields(
            addresses in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..20),
            nonce: u64,
        ) {
            let fields = addresses.iter().map(|address| field(BYTES, address));
            let nonce_field = [&[NONCE as u8][..], &nonce.to_le_bytes()].concat();
            let fields: Vec<_> = fields.chain([nonce_field]).flatten().collect();
            let message = field(REQUEST, &fields);
            let expected = Request {
                addresses: addresses.iter().map(Vec::as_slice).collect(),
                nonce,
            };
            prop_assert_eq!(read_request(&message), Some(expected));
        }

        #[test]
        fn each_side_decodes_what_the_other_encodes(address: [u8; 9], nonce: u64) {
            let asked = request(&address, nonce);
            let read = read_request(&asked[1..]).unwrap();
            prop_assert_eq!((read.addresses, read.nonce), (vec![&address[..]], nonce));
            prop_assert_eq!(proof(&dial_back(nonce)[1..]), Some(nonce));
        }

        #[test]
        fn data_has_the_length_that_was_asked_for(wanted in 0usize..100_001) {
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
            let _ = (answer(&noise), proof(&noise), is_taken(&noise));
            if let Some(request) = read_request(&noise) {
                prop_assert!(request.addresses.len() <= noise.len());
            }
        }
    }
}
