//! The relay's end of [`access`]: it reads requests and writes answers.

use crate::core::{
    access::{
        ADMITTED, Admitted, CREDENTIAL, DENIED, Denial, MAX_TOKEN, QUOTA, RESERVATION, RESERVE,
        SECONDS, STATUS, TCP, TOKEN, TURN, TURN_SECONDS, TurnAccess, UDP, USERNAME, WANTS_TURN,
    },
    protobuf::{behind_length, field, skip_field, take_bytes, take_varint, varint},
};

/// The longest request: the longest token and what stands around it.
pub(crate) const MAX_REQUEST: usize = MAX_TOKEN + 64;

/// The status of an answer for which there is no room.
const LIMIT: u64 = 3;

/// What a peer asks for. It has no `Debug`, because the token is a secret.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) token: Option<String>,
    pub(crate) reserve: bool,
    pub(crate) turn: bool,
}

impl Request {
    /// Reads a request. Returns `None` if it is malformed, or if its token is too long.
    pub(crate) fn decode(mut rest: &[u8]) -> Option<Self> {
        let mut request = Self::default();
        while !rest.is_empty() {
            match take_varint(&mut rest)? {
                TOKEN => {
                    let token = take_bytes(&mut rest)?;
                    let token = str::from_utf8(token).ok()?;
                    request.token = Some((token.len() <= MAX_TOKEN).then(|| token.to_owned())?);
                }
                RESERVE => request.reserve = take_varint(&mut rest)? != 0,
                WANTS_TURN => request.turn = take_varint(&mut rest)? != 0,
                tag => skip_field(tag, &mut rest)?,
            }
        }
        Some(request)
    }
}

/// Encodes an answer, as it stands on the stream.
pub(crate) fn answer(outcome: &Result<Admitted, Denial>) -> Vec<u8> {
    let (status, seconds) = match outcome {
        Ok(admitted) => (ADMITTED, admitted.lasts),
        Err(Denial::Access) => (DENIED, None),
        Err(Denial::Quota(ends)) => (QUOTA, Some(*ends)),
        Err(Denial::Limit) => (LIMIT, None),
    };
    let mut message = number(STATUS, status);
    if let Some(seconds) = seconds {
        message.extend(number(SECONDS, seconds.as_secs()));
    }
    if let Ok(admitted) = outcome {
        if let Some(reservation) = &admitted.reservation {
            message.extend(field(RESERVATION, reservation));
        }
        if let Some(turn) = &admitted.turn {
            message.extend(field(TURN, &credentials(turn)));
        }
    }
    behind_length(&message)
}

fn credentials(turn: &TurnAccess) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(number(UDP, turn.udp.into()));
    message.extend(number(TCP, turn.tcp.into()));
    message.extend(field(USERNAME, turn.username.as_bytes()));
    message.extend(field(CREDENTIAL, turn.credential.as_bytes()));
    message.extend(number(TURN_SECONDS, turn.lasts.as_secs()));
    message
}

fn number(tag: u64, value: u64) -> Vec<u8> {
    [vec![tag as u8], varint(value)].concat()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::core::access;

    /// A message without the length in front of it.
    fn message(framed: &[u8]) -> &[u8] {
        let mut rest = framed;
        take_bytes(&mut rest).filter(|_| rest.is_empty()).unwrap()
    }

    fn is_read_back(outcome: &Result<Admitted, Denial>) -> bool {
        access::answered(message(&answer(outcome))).as_ref() == Some(outcome)
    }

    #[test]
    fn a_token_that_is_too_long_is_malformed() {
        let ask = |token: &str| access::request(Some(token), true, false);
        let longest = "x".repeat(MAX_TOKEN);
        assert!(Request::decode(message(&ask(&longest))).is_some());
        assert!(message(&ask(&longest)).len() <= MAX_REQUEST);
        assert!(Request::decode(message(&ask(&(longest + "x")))).is_none());
        assert!(Request::decode(&[TOKEN as u8, 1, 0xff]).is_none());
    }

    proptest! {
        #[test]
        fn a_request_is_read_as_it_was_written(
            token in prop::option::of(".{0,64}"), reserve: bool, turn: bool,
        ) {
            let bytes = access::request(token.as_deref(), reserve, turn);
            let request = Request { token, reserve, turn };
            prop_assert!(Request::decode(message(&bytes)) == Some(request));
        }

        #[test]
        fn an_answer_is_read_as_it_was_written(
            // A client counts no more than a year.
            lasts in prop::option::of(0..31_000_000_u32),
            reservation in prop::option::of(prop::collection::vec(any::<u8>(), 0..300)),
            ports: (u16, u16),
            seconds in 0..31_000_000_u32,
            texts in (".{0,40}", ".{0,40}"),
        ) {
            let span = |seconds: u32| Duration::from_secs(seconds.into());
            let turn = TurnAccess {
                udp: ports.0,
                tcp: ports.1,
                username: texts.0,
                credential: texts.1,
                lasts: span(seconds),
            };
            let admitted = Admitted { lasts: lasts.map(span), reservation, turn: Some(turn) };
            prop_assert!(is_read_back(&Ok(admitted)));
            for denial in [Denial::Access, Denial::Quota(span(seconds)), Denial::Limit] {
                prop_assert!(is_read_back(&Err(denial)));
            }
        }

        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Request::decode(&bytes);
        }
    }
}
