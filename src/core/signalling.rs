//! The messages of two peers on a `/webrtc-signaling/0.0.1` stream, and their order.
//!
//! The offerer sends its offer, the answerer sends its answer, and then both trickle candidates.
//! The order matters: js-libp2p takes anything but an answer after its offer for an error, and a
//! candidate cannot be applied before the description to which it belongs. [`Negotiation`] keeps
//! this order for both roles and both backends.

use std::{collections::VecDeque, fmt};

use serde::{Deserialize, Serialize};

use super::{
    candidate::MAX_CANDIDATE_LEN,
    protobuf::{field, skip_field, take_bytes, take_varint},
    sdp,
};

/// The protocol name of the signalling stream.
pub(crate) const PROTOCOL: &str = "/webrtc-signaling/0.0.1";

/// The longest message that is read or written, in bytes without its length prefix. A description
/// with 30 candidates stays below 6 KiB.
pub const MAX_MESSAGE_LEN: usize = 32 * 1024;

/// The most messages that are taken from one peer in one negotiation. This is enough for its
/// description and for more candidates than any host gathers.
pub(crate) const MAX_MESSAGES: usize = 128;

/// The most candidates that are kept until the description arrives to which they belong.
pub(crate) const MAX_HELD_CANDIDATES: usize = 64;

/// The longest candidate that is read, in bytes of its JSON: the attribute and the text around it.
/// Without this limit, each of the many kept candidates could be as long as a message.
const MAX_CANDIDATE_JSON: usize = 2 * MAX_CANDIDATE_LEN;

/// A candidate as `RTCIceCandidate.toJSON()` writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IceCandidate {
    /// The candidate attribute with its `candidate:` prefix.
    pub candidate: String,
    /// The name of the media section. Node.js peers drop candidates whose name is longer than 3
    /// characters, so ours never is.
    pub sdp_mid: Option<String>,
    /// The position of the media section. Node.js peers leave it out.
    #[serde(rename = "sdpMLineIndex")]
    pub sdp_m_line_index: Option<u16>,
    /// The `ice-ufrag` to which the candidate belongs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username_fragment: Option<String>,
}

/// One message of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// A session description that asks for a connection.
    Offer(String),
    /// The description that accepts it.
    Answer(String),
    /// A candidate of the sender, or `None` when there are no more.
    Candidate(Option<IceCandidate>),
    /// The sender takes no offer, because it keeps to its relay. Only peers of this library say so, and
    /// a stock peer fails at it as at a stream that is reset.
    Refusal,
}

/// Why a message or its place in the conversation was refused.
///
/// ```
/// use throughline::rtc::{Error, SignallingError};
///
/// let error = Error::Signalling(SignallingError::TooMany);
/// assert_eq!(error, Error::Signalling(SignallingError::TooMany));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SignallingError {
    /// The message is longer than [`MAX_MESSAGE_LEN`], or a candidate is longer than 2 KiB.
    TooLong(usize),
    /// The message is not the protocol's protobuf. The value names the field.
    Malformed(&'static str),
    /// A candidate is not the JSON of an `RTCIceCandidate`.
    Candidate(String),
    /// A field of the session description is missing or not valid.
    Description(sdp::SdpError),
    /// The message is not allowed at this point, for example a second offer.
    Unexpected(&'static str),
    /// The peer sent more than 128 messages, or more than 64 candidates before its description.
    TooMany,
    /// The peer takes no offer, because it keeps to its relay.
    Refused,
}

impl fmt::Display for SignallingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong(len) => write!(f, "{len} bytes are too many"),
            Self::Malformed(field) => write!(f, "the message is malformed: {field}"),
            Self::Candidate(why) => write!(f, "the candidate is not an RTCIceCandidate: {why}"),
            Self::Description(error) => write!(f, "the session description is not valid: {error}"),
            Self::Unexpected(what) => write!(f, "the peer sent an unexpected {what}"),
            Self::TooMany => f.write_str("the peer sent too many messages"),
            Self::Refused => f.write_str("the peer keeps to its relay"),
        }
    }
}

impl std::error::Error for SignallingError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Description(error) => Some(error),
            _ => None,
        }
    }
}

/// The type of [`Message::Refusal`]. libp2p's types end at 2.
const REFUSAL: u8 = 16;

const FIELD_TYPE: u64 = 1 << 3;
const FIELD_DATA: u64 = 2 << 3 | 2;

impl Message {
    /// Encodes the message as protobuf, without the length prefix of the stream.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let (kind, data) = match self {
            Self::Offer(sdp) => (0, Some(sdp.clone())),
            Self::Answer(sdp) => (1, Some(sdp.clone())),
            // An empty string would make js-libp2p stop reading, so the end of candidates has no
            // data.
            Self::Candidate(None) => (2, None),
            Self::Candidate(Some(candidate)) => (2, Some(candidate.to_json())),
            Self::Refusal => (REFUSAL, None),
        };
        let data = data.unwrap_or_default();
        // The type is written even when it is 0, because the field has explicit presence.
        let mut out = vec![FIELD_TYPE as u8, kind];
        if !data.is_empty() {
            out.extend(field(FIELD_DATA, data.as_bytes()));
        }
        out
    }

    /// Reads a message that [`encode`](Self::encode) or a js-libp2p peer wrote. Unknown fields are
    /// skipped.
    pub(crate) fn decode(mut bytes: &[u8]) -> Result<Self, SignallingError> {
        use SignallingError::Malformed;

        if bytes.len() > MAX_MESSAGE_LEN {
            return Err(SignallingError::TooLong(bytes.len()));
        }
        let mut kind = None;
        let mut data = None;
        while !bytes.is_empty() {
            let tag = take_varint(&mut bytes).ok_or(Malformed("tag"))?;
            match tag {
                FIELD_TYPE => {
                    let value = take_varint(&mut bytes).ok_or(Malformed("type"))?;
                    kind = Some(value);
                }
                FIELD_DATA => {
                    let value = take_bytes(&mut bytes).ok_or(Malformed("data"))?;
                    data = Some(std::str::from_utf8(value).map_err(|_| Malformed("data"))?);
                }
                tag => skip_field(tag, &mut bytes).ok_or(Malformed("unknown field"))?,
            }
        }
        match (kind, data) {
            (None, _) => Err(Malformed("type is missing")),
            (Some(0), Some(sdp)) => Ok(Self::Offer(sdp.to_owned())),
            (Some(1), Some(sdp)) => Ok(Self::Answer(sdp.to_owned())),
            (Some(0 | 1), None) => Err(Malformed("data is missing")),
            (Some(2), data) => Ok(Self::Candidate(IceCandidate::from_json(
                data.unwrap_or_default(),
            )?)),
            (Some(kind), _) if kind == u64::from(REFUSAL) => Ok(Self::Refusal),
            (Some(_), _) => Err(Malformed("type")),
        }
    }
}

impl IceCandidate {
    /// Returns the JSON that is sent. One of the two section fields is always set, because a
    /// browser refuses a candidate that has neither.
    pub fn to_json(&self) -> String {
        let mut candidate = self.clone();
        if candidate.sdp_mid.is_none() && candidate.sdp_m_line_index.is_none() {
            candidate.sdp_m_line_index = Some(0);
        }
        // Strings and numbers can always be serialised.
        serde_json::to_string(&candidate).unwrap_or_default()
    }

    /// Reads a candidate. An empty text, `null`, `""` and a candidate with an empty attribute all
    /// mean that the peer has no more candidates.
    ///
    /// # Errors
    /// [`SignallingError::TooLong`] for a text of more than 2 KiB, and
    /// [`SignallingError::Candidate`] for one that is not the JSON of a candidate.
    pub fn from_json(json: &str) -> Result<Option<Self>, SignallingError> {
        if matches!(json.trim(), "" | "null" | "\"\"") {
            return Ok(None);
        }
        if json.len() > MAX_CANDIDATE_JSON {
            return Err(SignallingError::TooLong(json.len()));
        }
        let candidate: Self = serde_json::from_str(json)
            .map_err(|error| SignallingError::Candidate(error.to_string()))?;
        Ok((!candidate.candidate.is_empty()).then_some(candidate))
    }
}

/// The role of a peer in the negotiation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The peer that opened the signalling stream. It is the controlling agent of ICE.
    Offerer,
    /// The peer that accepted the signalling stream.
    Answerer,
}

/// A step that [`Negotiation`] wants done. The steps come in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Send this message to the peer.
    Send(Message),
    /// Give the backend the peer's offer.
    AcceptOffer(String),
    /// Give the backend the peer's answer.
    AcceptAnswer(String),
    /// Give the backend a candidate of the peer, or `None` at the end of the candidates.
    AddCandidate(Option<IceCandidate>),
}

/// One offer/answer exchange with trickled candidates, seen from one side.
///
/// There is no IO here. Inputs go in by methods, and [`poll`](Self::poll) returns the actions that
/// follow from them.
#[derive(Debug)]
pub(crate) struct Negotiation {
    role: Role,
    described: bool,
    peer_described: bool,
    received: usize,
    held_local: Vec<IceCandidate>,
    held_remote: Vec<Option<IceCandidate>>,
    actions: VecDeque<Action>,
}

impl Negotiation {
    /// Makes a negotiation in which nothing has been said yet.
    pub(crate) fn new(role: Role) -> Self {
        Self {
            role,
            described: false,
            peer_described: false,
            received: 0,
            held_local: Vec::new(),
            held_remote: Vec::new(),
            actions: VecDeque::new(),
        }
    }

    /// Takes the local offer or answer that the backend made.
    pub(crate) fn local_description(&mut self, sdp: String) {
        if self.described {
            return;
        }
        self.described = true;
        let message = match self.role {
            Role::Offerer => Message::Offer(sdp),
            Role::Answerer => Message::Answer(sdp),
        };
        self.actions.push_back(Action::Send(message));
        for candidate in self.held_local.drain(..) {
            let message = Message::Candidate(Some(candidate));
            self.actions.push_back(Action::Send(message));
        }
    }

    /// Takes a local candidate that the backend found.
    pub(crate) fn local_candidate(&mut self, candidate: IceCandidate) {
        if self.described {
            let message = Message::Candidate(Some(candidate));
            self.actions.push_back(Action::Send(message));
        } else if self.held_local.len() < MAX_HELD_CANDIDATES {
            self.held_local.push(candidate);
        }
    }

    /// Takes a message of the peer.
    ///
    /// # Errors
    /// Returns an error when the message is not allowed at this point. The negotiation is over
    /// then.
    pub(crate) fn received(&mut self, message: Message) -> Result<(), SignallingError> {
        self.received += 1;
        if self.received > MAX_MESSAGES {
            return Err(SignallingError::TooMany);
        }
        match (message, self.role) {
            (Message::Candidate(candidate), _) if self.peer_described => {
                self.actions.push_back(Action::AddCandidate(candidate));
            }
            (Message::Candidate(candidate), _) => {
                if self.held_remote.len() == MAX_HELD_CANDIDATES {
                    return Err(SignallingError::TooMany);
                }
                self.held_remote.push(candidate);
            }
            (Message::Offer(sdp), Role::Answerer) if !self.peer_described => {
                self.describe_peer(&sdp)?;
                self.actions.push_back(Action::AcceptOffer(sdp));
                self.release_remote();
            }
            (Message::Answer(sdp), Role::Offerer) if self.described && !self.peer_described => {
                self.describe_peer(&sdp)?;
                self.actions.push_back(Action::AcceptAnswer(sdp));
                self.release_remote();
            }
            (Message::Refusal, Role::Offerer) if !self.peer_described => {
                return Err(SignallingError::Refused);
            }
            (Message::Offer(_), _) => return Err(SignallingError::Unexpected("offer")),
            (Message::Answer(_), _) => return Err(SignallingError::Unexpected("answer")),
            (Message::Refusal, _) => return Err(SignallingError::Unexpected("refusal")),
        }
        Ok(())
    }

    /// Returns the next action.
    pub(crate) fn poll(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    fn describe_peer(&mut self, sdp: &str) -> Result<(), SignallingError> {
        sdp::Description::parse(sdp).map_err(SignallingError::Description)?;
        self.peer_described = true;
        Ok(())
    }

    fn release_remote(&mut self) {
        let held = self.held_remote.drain(..).map(Action::AddCandidate);
        self.actions.extend(held);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(n: u16) -> IceCandidate {
        IceCandidate {
            candidate: format!("candidate:1 1 udp 2130706431 192.0.2.1 {n} typ host"),
            sdp_mid: Some("0".into()),
            sdp_m_line_index: Some(0),
            username_fragment: None,
        }
    }

    fn sdp() -> String {
        sdp::tests::CHROMIUM_OFFER.to_owned()
    }

    fn drain(negotiation: &mut Negotiation) -> Vec<Action> {
        std::iter::from_fn(|| negotiation.poll()).collect()
    }

    #[test]
    fn an_offer_has_its_type_although_it_is_0() {
        let bytes = Message::Offer("v=0".into()).encode();
        assert_eq!(bytes, b"\x08\x00\x12\x03v=0");
        assert_eq!(
            Message::decode(&bytes),
            Ok(Message::Offer("v=0".to_owned()))
        );
    }

    #[test]
    fn a_missing_type_is_named() {
        assert_eq!(
            Message::decode(b"\x12\x03v=0"),
            Err(SignallingError::Malformed("type is missing"))
        );
        assert_eq!(
            Message::decode(b"\x08\x00"),
            Err(SignallingError::Malformed("data is missing"))
        );
    }

    #[test]
    fn the_end_of_candidates_is_read_in_every_form_and_sent_without_data() {
        for json in ["", "null", "\"\"", r#"{"candidate":"","sdpMid":"0"}"#] {
            assert_eq!(IceCandidate::from_json(json), Ok(None), "{json}");
        }
        assert_eq!(Message::Candidate(None).encode(), b"\x08\x02");
        assert_eq!(Message::decode(b"\x08\x02"), Ok(Message::Candidate(None)));
    }

    #[test]
    fn candidates_of_browsers_and_node_are_read() {
        let browser = r#"{"candidate":"candidate:1 1 udp 1 192.0.2.1 5 typ host","sdpMid":"0","sdpMLineIndex":0,"usernameFragment":"abcd"}"#;
        let node = r#"{"candidate":"candidate:1 1 udp 1 192.0.2.1 5 typ host","sdpMid":"0","sdpMLineIndex":null}"#;
        let read = |json| IceCandidate::from_json(json).unwrap().unwrap();
        assert_eq!(read(browser).username_fragment.as_deref(), Some("abcd"));
        assert_eq!(read(node).sdp_m_line_index, None);
        assert!(IceCandidate::from_json("{").is_err());
    }

    #[test]
    fn a_candidate_without_a_section_gets_the_first() {
        let candidate = IceCandidate {
            sdp_mid: None,
            sdp_m_line_index: None,
            ..candidate(1)
        };
        assert!(candidate.to_json().contains(r#""sdpMLineIndex":0"#));
    }

    #[test]
    fn an_answer_goes_before_the_candidates() {
        let mut answerer = Negotiation::new(Role::Answerer);
        answerer.local_candidate(candidate(1));
        answerer.received(Message::Offer(sdp())).unwrap();
        assert_eq!(drain(&mut answerer), [Action::AcceptOffer(sdp())]);
        answerer.local_description("answer".into());
        assert_eq!(
            drain(&mut answerer),
            [
                Action::Send(Message::Answer("answer".into())),
                Action::Send(Message::Candidate(Some(candidate(1)))),
            ]
        );
    }

    #[test]
    fn early_candidates_wait_for_the_description() {
        let mut offerer = Negotiation::new(Role::Offerer);
        offerer.local_description("offer".into());
        offerer
            .received(Message::Candidate(Some(candidate(7))))
            .unwrap();
        assert_eq!(
            drain(&mut offerer),
            [Action::Send(Message::Offer("offer".into()))]
        );
        offerer.received(Message::Answer(sdp())).unwrap();
        assert_eq!(
            drain(&mut offerer),
            [
                Action::AcceptAnswer(sdp()),
                Action::AddCandidate(Some(candidate(7))),
            ]
        );
    }

    #[test]
    fn messages_out_of_order_are_refused() {
        let mut answerer = Negotiation::new(Role::Answerer);
        assert_eq!(
            answerer.received(Message::Answer(sdp())),
            Err(SignallingError::Unexpected("answer"))
        );
        answerer.received(Message::Offer(sdp())).unwrap();
        assert_eq!(
            answerer.received(Message::Offer(sdp())),
            Err(SignallingError::Unexpected("offer"))
        );
        let mut offerer = Negotiation::new(Role::Offerer);
        assert!(matches!(
            offerer.received(Message::Answer(sdp())),
            Err(SignallingError::Unexpected("answer"))
        ));
    }

    #[test]
    fn only_an_offer_is_refused() {
        assert_eq!(Message::Refusal.encode(), b"\x08\x10");
        assert_eq!(Message::decode(b"\x08\x10"), Ok(Message::Refusal));
        let mut offerer = Negotiation::new(Role::Offerer);
        offerer.local_description("offer".into());
        let refused = offerer.received(Message::Refusal);
        assert_eq!(refused, Err(SignallingError::Refused));
        offerer.received(Message::Answer(sdp())).unwrap();
        let mut answerer = Negotiation::new(Role::Answerer);
        for negotiation in [&mut offerer, &mut answerer] {
            let late = negotiation.received(Message::Refusal);
            assert_eq!(late, Err(SignallingError::Unexpected("refusal")));
        }
    }

    #[test]
    fn too_many_candidates_are_refused() {
        let mut answerer = Negotiation::new(Role::Answerer);
        for n in 0..MAX_HELD_CANDIDATES {
            answerer
                .received(Message::Candidate(Some(candidate(n as u16))))
                .unwrap();
        }
        assert_eq!(
            answerer.received(Message::Candidate(None)),
            Err(SignallingError::TooMany)
        );
    }

    #[test]
    fn too_many_messages_are_refused() {
        let mut answerer = Negotiation::new(Role::Answerer);
        answerer.received(Message::Offer(sdp())).unwrap();
        for _ in 1..128 {
            answerer.received(Message::Candidate(None)).unwrap();
        }
        let over = answerer.received(Message::Candidate(None));
        assert_eq!(over, Err(SignallingError::TooMany));
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Message::decode(&bytes);
        }

        #[test]
        fn an_encoded_message_is_decoded(data in ".{1,200}", kind in 0..3) {
            let message = match kind {
                0 => Message::Offer(data),
                1 => Message::Answer(data),
                _ => Message::Candidate(Some(IceCandidate {
                    candidate: data,
                    sdp_mid: Some("0".into()),
                    sdp_m_line_index: None,
                    username_fragment: None,
                })),
            };
            prop_assert_eq!(Message::decode(&message.encode()), Ok(message));
        }

        /// Whatever arrives, in whatever order, a peer's candidate is never applied before its
        /// description, and our candidates are never sent before our description.
        #[test]
        fn descriptions_always_come_before_candidates(
            offerer in any::<bool>(),
            steps in proptest::collection::vec(0u8..5, 0..40),
        ) {
            let role = if offerer { Role::Offerer } else { Role::Answerer };
            let mut negotiation = Negotiation::new(role);
            let (mut described, mut applied) = (false, false);
            for step in steps {
                let result = match step {
                    0 => { negotiation.local_description("mine".into()); Ok(()) }
                    1 => { negotiation.local_candidate(candidate(1)); Ok(()) }
                    2 => negotiation.received(Message::Offer(sdp())),
                    3 => negotiation.received(Message::Answer(sdp())),
                    _ => negotiation.received(Message::Candidate(Some(candidate(2)))),
                };
                for action in drain(&mut negotiation) {
                    match action {
                        Action::Send(Message::Candidate(_)) => prop_assert!(described),
                        Action::Send(_) => { prop_assert!(!described); described = true; }
                        Action::AcceptOffer(_) | Action::AcceptAnswer(_) => {
                            prop_assert!(!applied);
                            applied = true;
                        }
                        Action::AddCandidate(_) => prop_assert!(applied),
                    }
                }
                if result.is_err() { break; }
            }
        }
    }
}
