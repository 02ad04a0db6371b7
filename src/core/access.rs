//! How a peer shows a relay that it may use it, and what the relay answers. One stream of
//! [`PROTOCOL`] carries one request and one answer.
//!
//! Each message is a proto3 message after its length, which is an unsigned varint. A request can
//! carry the token, ask for a reservation, and ask for TURN credentials. So the token and the
//! reservation take one round trip together.

use std::{fmt, time::Duration};

use multiaddr::Multiaddr;

use super::protobuf::{behind_length, field, skip_field, take_bytes, take_varint};

/// The protocol of the stream. A relay names it in identify if it admits only some peers, or if it
/// has TURN credentials for peers.
pub(crate) const PROTOCOL: &str = "/throughline/access/1";

/// The longest token. Those that the program makes have about 300 bytes.
pub(crate) const MAX_TOKEN: usize = 4096;
/// The longest time that counts, in seconds: a year. Longer ones mean the same, and would not fit into
/// the clocks of all systems.
const MAX_SECONDS: u64 = 366 * 24 * 60 * 60;
/// The longest user name for TURN, in bytes. STUN has room for 513, and browsers refuse more than 509.
pub(crate) const MAX_USERNAME: usize = 509;
/// The longest answer: a reservation and credentials.
pub(crate) const MAX_ANSWER: usize = 8192;

// Request { token = 1, reserve = 2, turn = 3 }
pub(crate) const TOKEN: u64 = 1 << 3 | 2;
pub(crate) const RESERVE: u64 = 2 << 3;
pub(crate) const WANTS_TURN: u64 = 3 << 3;

// Answer { status = 1, seconds = 2, reservation = 3, turn = 4 }. The seconds say how long the peer
// is admitted, or how long its quota stays used up. The reservation is the relay's HopMessage.
// Turn { udp = 1, tcp = 2, username = 3, credential = 4, seconds = 5 }; the first two are ports.
pub(crate) const STATUS: u64 = 1 << 3;
pub(crate) const SECONDS: u64 = 2 << 3;
pub(crate) const RESERVATION: u64 = 3 << 3 | 2;
pub(crate) const TURN: u64 = 4 << 3 | 2;
pub(crate) const UDP: u64 = 1 << 3;
pub(crate) const TCP: u64 = 2 << 3;
pub(crate) const USERNAME: u64 = 3 << 3 | 2;
pub(crate) const CREDENTIAL: u64 = 4 << 3 | 2;
pub(crate) const TURN_SECONDS: u64 = 5 << 3;

// The values of `status`. Every other value says that there is no room.
pub(crate) const ADMITTED: u64 = 0;
pub(crate) const DENIED: u64 = 1;
pub(crate) const QUOTA: u64 = 2;

/// Why a relay does not serve a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denial {
    /// The peer, or its token, is not admitted.
    Access,
    /// The quota is used up. It begins anew after this time.
    Quota(Duration),
    /// The relay has no room at the moment, or cannot find out whether the peer is admitted.
    Limit,
}

/// What a relay that admits a peer gives to it.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// How long the peer is admitted, or `None` if that has no end.
    pub(crate) lasts: Option<Duration>,
    /// The relay's answer to the request for a reservation.
    pub(crate) reservation: Option<Vec<u8>>,
    pub(crate) turn: Option<TurnAccess>,
}

/// Access to the TURN server of a relay. A port is 0 if it does not serve there.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct TurnAccess {
    pub(crate) udp: u16,
    pub(crate) tcp: u16,
    pub(crate) username: String,
    pub(crate) credential: String,
    /// How long the credentials may be used.
    pub(crate) lasts: Duration,
}

impl TurnAccess {
    /// Returns the URLs of the server, at the host to which the link leads.
    ///
    /// So a relay cannot point its peers at other machines. It need not know under which of its
    /// addresses it is reached, and often does not.
    pub(crate) fn urls(&self, link: &Multiaddr) -> Vec<String> {
        let link = link.to_string();
        let mut parts = link.split('/').skip(1);
        let (open, close) = match parts.next() {
            Some("ip4" | "dns" | "dns4" | "dns6") => ("", ""),
            Some("ip6") => ("[", "]"),
            _ => return Vec::new(),
        };
        let host = parts.next().unwrap_or_default();
        let ports = [(self.udp, ""), (self.tcp, "?transport=tcp")].into_iter();
        let ports = ports.filter(|(port, _)| *port != 0);
        ports
            .map(|(port, query)| format!("turn:{open}{host}{close}:{port}{query}"))
            .collect()
    }
}

/// Neither reservation nor credentials are worth a line in the log, and the latter are secret.
impl fmt::Debug for Admitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admitted")
            .field("lasts", &self.lasts)
            .finish_non_exhaustive()
    }
}

/// Encodes a request, as it stands on the stream.
pub(crate) fn request(token: Option<&str>, reserve: bool, turn: bool) -> Vec<u8> {
    let mut message = Vec::new();
    if let Some(token) = token {
        message.extend(field(TOKEN, token.as_bytes()));
    }
    for (tag, wanted) in [(RESERVE, reserve), (WANTS_TURN, turn)] {
        if wanted {
            message.extend([tag as u8, 1]);
        }
    }
    behind_length(&message)
}

/// Reads a relay's answer. Returns `None` if it is malformed.
pub(crate) fn answered(mut rest: &[u8]) -> Option<Result<Admitted, Denial>> {
    let (mut status, mut seconds, mut admitted) = (ADMITTED, None, Admitted::default());
    while !rest.is_empty() {
        match take_varint(&mut rest)? {
            STATUS => status = take_varint(&mut rest)?,
            SECONDS => seconds = Some(take_seconds(&mut rest)?),
            RESERVATION => admitted.reservation = Some(take_bytes(&mut rest)?.to_vec()),
            TURN => admitted.turn = Some(turn(take_bytes(&mut rest)?)?),
            tag => skip_field(tag, &mut rest)?,
        }
    }
    admitted.lasts = seconds;
    Some(match status {
        ADMITTED => Ok(admitted),
        DENIED => Err(Denial::Access),
        QUOTA => Err(Denial::Quota(seconds.unwrap_or_default())),
        _ => Err(Denial::Limit),
    })
}

fn turn(mut rest: &[u8]) -> Option<TurnAccess> {
    let mut turn = TurnAccess::default();
    while !rest.is_empty() {
        match take_varint(&mut rest)? {
            UDP => turn.udp = take_varint(&mut rest)?.try_into().ok()?,
            TCP => turn.tcp = take_varint(&mut rest)?.try_into().ok()?,
            USERNAME => turn.username = text(&mut rest)?,
            CREDENTIAL => turn.credential = text(&mut rest)?,
            TURN_SECONDS => turn.lasts = take_seconds(&mut rest)?,
            tag => skip_field(tag, &mut rest)?,
        }
    }
    (turn.username.len() <= MAX_USERNAME).then_some(turn)
}

fn take_seconds(rest: &mut &[u8]) -> Option<Duration> {
    let seconds = take_varint(rest)?;
    Some(Duration::from_secs(seconds.min(MAX_SECONDS)))
}

fn text(rest: &mut &[u8]) -> Option<String> {
    str::from_utf8(take_bytes(rest)?).ok().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_have_the_documented_bytes() {
        assert_eq!(request(None, false, false), [0]);
        assert_eq!(
            request(Some("ab"), true, true),
            [8, 10, 2, b'a', b'b', 16, 1, 24, 1]
        );
        let answer = [16, 60, 26, 1, 7, 0x22, 5, 8, 0xa5, 31, 40, 9];
        let admitted = answered(&answer).unwrap().unwrap();
        assert_eq!(admitted.lasts, Some(Duration::from_secs(60)));
        assert_eq!(admitted.reservation, Some(vec![7]));
        let turn = admitted.turn.unwrap();
        assert_eq!((turn.udp, turn.tcp, turn.lasts.as_secs()), (4005, 0, 9));
        assert_eq!((turn.username.as_str(), turn.credential.as_str()), ("", ""));
        let named = answered(&[0x22, 7, 0x1a, 1, b'u', 0x22, 2, b'p', b'w']);
        let turn = named.unwrap().unwrap().turn.unwrap();
        assert_eq!(
            (turn.username.as_str(), turn.credential.as_str()),
            ("u", "pw")
        );
        let for_ever = answered(&[16, 0xff, 0xff, 0xff, 0xff, 0x7f]);
        let year = Duration::from_secs(31_622_400);
        assert_eq!(for_ever.unwrap().unwrap().lasts, Some(year));
    }

    #[test]
    fn every_refusal_has_its_own_error() {
        assert_eq!(answered(&[8, 1]), Some(Err(Denial::Access)));
        let quota = Denial::Quota(Duration::from_secs(5));
        assert_eq!(answered(&[8, 2, 16, 5]), Some(Err(quota)));
        assert_eq!(answered(&[8, 3]), Some(Err(Denial::Limit)));
        assert_eq!(answered(&[8, 99]), Some(Err(Denial::Limit)), "unknown");
        assert_eq!(answered(&[]), Some(Ok(Admitted::default())));
        for malformed in [
            &[8][..],
            &[26, 9, 1],
            &[34, 3, 26, 1, 0xff],
            &[34, 4, 8, 0x80, 0x80, 4],
        ] {
            assert_eq!(answered(malformed), None, "{malformed:?}");
        }
    }

    #[test]
    fn a_turn_server_is_at_the_host_of_the_link() {
        let turn = TurnAccess {
            udp: 4005,
            tcp: 4006,
            ..TurnAccess::default()
        };
        let urls = |link: &str| turn.urls(&link.parse().unwrap());
        assert_eq!(
            urls("/ip4/192.0.2.1/udp/1/quic-v1"),
            ["turn:192.0.2.1:4005", "turn:192.0.2.1:4006?transport=tcp"]
        );
        assert_eq!(urls("/ip6/2001:db8::1/tcp/1")[0], "turn:[2001:db8::1]:4005");
        let named = urls("/dns4/relay.example/tcp/443/wss");
        assert_eq!(named[0], "turn:relay.example:4005");
        assert!(urls("/memory/1").is_empty());
        let link = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
        assert!(TurnAccess::default().urls(&link).is_empty());
    }

    #[test]
    fn debug_shows_no_credentials() {
        let turn = TurnAccess {
            credential: "hunter2".into(),
            ..TurnAccess::default()
        };
        let admitted = Admitted {
            turn: Some(turn),
            ..Admitted::default()
        };
        assert!(!format!("{admitted:?}").contains("hunter2"));
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = answered(&bytes);
        }
    }
}
