//! Reads the session descriptions of peers, and writes ours. They describe data channels.
//!
//! They hold only what `/webrtc` needs of RFC 8866, 8839, 8842 and 8841: one `m=application`
//! section with ICE credentials, a certificate fingerprint, the DTLS role and candidates.

use std::fmt;

use super::{birthday::Side, candidate::Candidate};

/// The longest description that is read, in bytes.
pub(crate) const MAX_SDP_LEN: usize = 16 * 1024;

/// The most candidates that are read from one description.
pub(crate) const MAX_CANDIDATES: usize = 64;

/// In an offer, this attribute says that the writer can speak QUIC over the candidate pair as well.
/// In an answer, it says that the writer does so.
///
/// The attributes of this library begin with the `ice-ufrag` of their writer, and count only in a
/// description with that `ice-ufrag`. Other peers should skip them (RFC 8866 section 5.13), but
/// libdatachannel copies what it does not know from an offer into its answer.
const QUIC: &str = "x-throughline-quic";

/// This attribute says how the writer's NAT maps, for the birthday method.
const NAT: &str = "x-throughline-nat";

/// This attribute says when there are relayed candidates, of either side: [`NEVER`] or [`LATE`].
const TURN: &str = "x-throughline-turn";

/// The peers leave TURN out.
const NEVER: &str = "never";

/// Relayed candidates come only if the peers turn out to need one. Whoever can ask a TURN server after a
/// while does so, and an answerer that would ask it at once does not.
const LATE: &str = "late";

/// The first chunk of the SCTP handshake. If both descriptions have one, the handshake is over with them, which
/// saves its two round trips (draft-hancke-tsvwg-snap).
const SCTP_INIT: &str = "sctp-init";

/// The longest one that is read, in characters.
const MAX_SCTP_INIT: usize = 2048;

/// The message size that a peer accepts when it names none (RFC 8841 section 6.1).
pub(crate) const DEFAULT_MAX_MESSAGE_SIZE: u32 = 64 * 1024;

/// The `setup` attribute (RFC 8842 section 5.2), which decides who is the DTLS client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setup {
    /// The answerer chooses.
    ActPass,
    /// The writer is the client.
    Active,
    /// The writer is the server.
    Passive,
}

impl Setup {
    fn as_str(self) -> &'static str {
        match self {
            Self::ActPass => "actpass",
            Self::Active => "active",
            Self::Passive => "passive",
        }
    }
}

/// The digest of a certificate (RFC 8122 section 5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint {
    /// The hash function by its SDP name, in lower case.
    pub hash: String,
    /// The digest.
    pub digest: Vec<u8>,
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hash)?;
        for (i, byte) in self.digest.iter().enumerate() {
            let separator = if i == 0 { ' ' } else { ':' };
            write!(f, "{separator}{byte:02X}")?;
        }
        Ok(())
    }
}

/// The contents of a session description for its one data section.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Description {
    /// `ice-ufrag`, 4 to 256 characters.
    pub ufrag: String,
    /// `ice-pwd`, 22 to 256 characters.
    pub pwd: String,
    /// Whether libdatachannel wrote the description, as its origin says.
    pub libdatachannel: bool,
    /// Whether Firefox wrote the description, as its origin says.
    pub firefox: bool,
    /// `ice-lite`: the writer answers checks and sends none.
    pub ice_lite: bool,
    /// The digest of the writer's certificate.
    pub fingerprint: Fingerprint,
    /// The DTLS role.
    pub setup: Setup,
    /// The name of the section.
    pub mid: String,
    /// The largest message that the writer accepts, in bytes. 0 means any size.
    pub max_message_size: u32,
    /// In an offer, whether QUIC may be spoken instead of DTLS and SCTP. In an answer, whether it
    /// is spoken.
    pub quic: bool,
    /// What the writer knows of its NAT, if ports have to be guessed.
    pub side: Option<Side>,
    /// Whether the peers leave TURN out.
    pub no_turn: bool,
    /// Whether the writer asks a TURN server when the peers turn out to need one.
    pub late_turn: bool,
    /// The first chunk of the writer's SCTP handshake, in base64.
    pub sctp_init: Option<String>,
    /// The candidates that were known when the description was written. Unreadable ones are left
    /// out.
    pub candidates: Vec<Candidate>,
}

/// Why a description was refused. The error names the field.
///
/// ```
/// use throughline::rtc::SdpError;
///
/// assert_eq!(SdpError::Missing("a=fingerprint").to_string(), "a=fingerprint is missing");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SdpError {
    /// The description is longer than 16 KiB.
    TooLong,
    /// The field is missing.
    Missing(&'static str),
    /// The field is there and not valid.
    Invalid(&'static str),
}

impl fmt::Display for SdpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "it is over {MAX_SDP_LEN} bytes"),
            Self::Missing(field) => write!(f, "{field} is missing"),
            Self::Invalid(field) => write!(f, "{field} is invalid"),
        }
    }
}

impl std::error::Error for SdpError {}

/// The attributes that were found. Those of the section replace those of the session.
#[derive(Default)]
struct Attributes<'a> {
    ufrag: Option<&'a str>,
    pwd: Option<&'a str>,
    setup: Option<&'a str>,
    mid: Option<&'a str>,
    max_message_size: Option<&'a str>,
    fingerprint: Option<&'a str>,
    quic: Option<&'a str>,
    nat: Option<&'a str>,
    turn: Option<&'a str>,
    sctp_init: Option<&'a str>,
    candidates: Vec<&'a str>,
}

impl Description {
    /// Reads an offer or an answer.
    ///
    /// # Errors
    /// [`SdpError`] names the first field that is missing or not valid. A candidate line is never
    /// an error, because `.local` names and unknown transports are normal there.
    pub(crate) fn parse(sdp: &str) -> Result<Self, SdpError> {
        use SdpError::{Invalid, Missing};

        if sdp.len() > MAX_SDP_LEN {
            return Err(SdpError::TooLong);
        }
        if !sdp.starts_with("v=0") {
            return Err(Missing("v"));
        }
        let (mut libdatachannel, mut firefox) = (false, false);
        let mut ice_lite = false;
        let mut sections = 0;
        let mut found = Attributes::default();
        for line in sdp.lines().map(str::trim_end) {
            if let Some(media) = line.strip_prefix("m=") {
                sections += 1;
                let mut parts = media.split_ascii_whitespace();
                let kind = parts.next();
                let (_port, protocol) = (parts.next(), parts.next());
                if kind != Some("application") || !protocol.is_some_and(|p| p.ends_with("SCTP")) {
                    return Err(Invalid("m"));
                }
                continue;
            }
            libdatachannel |= line.starts_with("o=rtc ");
            firefox |= line.starts_with("o=mozilla");
            let Some(attribute) = line.strip_prefix("a=") else {
                continue;
            };
            let (name, value) = attribute.split_once(':').unwrap_or((attribute, ""));
            match name {
                "ice-lite" => ice_lite = true,
                QUIC => found.quic = Some(value),
                NAT => found.nat = Some(value),
                TURN => found.turn = Some(value),
                SCTP_INIT if value.len() <= MAX_SCTP_INIT => found.sctp_init = Some(value),
                "ice-ufrag" => found.ufrag = Some(value),
                "ice-pwd" => found.pwd = Some(value),
                "setup" => found.setup = Some(value),
                "mid" => found.mid = Some(value),
                "max-message-size" => found.max_message_size = Some(value),
                // One certificate may have several fingerprints. All peers can compute sha-256.
                "fingerprint" if found.fingerprint.is_none() || is_sha256(value) => {
                    found.fingerprint = Some(value);
                }
                "candidate" if found.candidates.len() < MAX_CANDIDATES => {
                    found.candidates.push(value);
                }
                _ => {}
            }
        }
        match sections {
            0 => return Err(Missing("m")),
            1 => {}
            _ => return Err(Invalid("m")),
        }

        let ufrag = found.ufrag.ok_or(Missing("ice-ufrag"))?;
        let pwd = found.pwd.ok_or(Missing("ice-pwd"))?;
        let turn = found.turn.and_then(|value| own(value, ufrag));
        Ok(Self {
            ufrag: ice_chars(ufrag, 4).ok_or(Invalid("ice-ufrag"))?,
            pwd: ice_chars(pwd, 22).ok_or(Invalid("ice-pwd"))?,
            libdatachannel,
            firefox,
            ice_lite,
            fingerprint: parse_fingerprint(found.fingerprint.ok_or(Missing("fingerprint"))?)
                .ok_or(Invalid("fingerprint"))?,
            setup: match found.setup.ok_or(Missing("setup"))? {
                "actpass" => Setup::ActPass,
                "active" => Setup::Active,
                "passive" => Setup::Passive,
                _ => return Err(Invalid("setup")),
            },
            mid: match found.mid.unwrap_or("0") {
                mid if mid.len() <= 16 && mid.bytes().all(|b| b.is_ascii_graphic()) => {
                    mid.to_owned()
                }
                _ => return Err(Invalid("mid")),
            },
            max_message_size: match found.max_message_size {
                None => DEFAULT_MAX_MESSAGE_SIZE,
                Some(size) => size.parse().map_err(|_| Invalid("max-message-size"))?,
            },
            quic: found.quic.and_then(|value| own(value, ufrag)) == Some(""),
            side: found
                .nat
                .and_then(|value| own(value, ufrag))
                .and_then(Side::parse),
            no_turn: turn == Some(NEVER),
            late_turn: turn == Some(LATE),
            sctp_init: found.sctp_init.map(str::to_owned),
            candidates: found
                .candidates
                .into_iter()
                .filter_map(|line| line.parse().ok())
                .collect(),
        })
    }

    /// Writes the description. `session` makes the `o=` line unique.
    pub(crate) fn to_sdp(&self, session: u64) -> String {
        use fmt::Write;

        // RFC 8866 section 5.2: the session id fits a signed 64-bit number.
        let session = session >> 1;
        let mut sdp = format!(
            "v=0\r\n\
             o=- {session} 2 IN IP4 127.0.0.1\r\n\
             s=-\r\n\
             t=0 0\r\n\
             a=group:BUNDLE {mid}\r\n\
             m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n\
             c=IN IP4 0.0.0.0\r\n\
             a=mid:{mid}\r\n\
             a=ice-ufrag:{ufrag}\r\n\
             a=ice-pwd:{pwd}\r\n\
             a=ice-options:trickle\r\n\
             a=fingerprint:{fingerprint}\r\n\
             a=setup:{setup}\r\n\
             a=sctp-port:5000\r\n\
             a=max-message-size:{size}\r\n",
            mid = self.mid,
            ufrag = self.ufrag,
            pwd = self.pwd,
            fingerprint = self.fingerprint,
            setup = self.setup.as_str(),
            size = self.max_message_size,
        );
        // Writing to a String cannot fail.
        let ufrag = &self.ufrag;
        if self.quic {
            let _ = write!(sdp, "a={QUIC}:{ufrag}\r\n");
        }
        if let Some(side) = self.side {
            let _ = write!(sdp, "a={NAT}:{ufrag} {}\r\n", side.as_str());
        }
        if self.no_turn || self.late_turn {
            sdp.push_str(&no_turn(ufrag, !self.no_turn));
        }
        if let Some(init) = &self.sctp_init {
            let _ = write!(sdp, "a={SCTP_INIT}:{init}\r\n");
        }
        for candidate in &self.candidates {
            let _ = write!(sdp, "a={candidate}\r\n");
        }
        sdp
    }
}

/// Returns the line by which the writer of a description with this `ufrag` leaves TURN out, or wants it
/// `late`.
pub(crate) fn no_turn(ufrag: &str, late: bool) -> String {
    format!("a={TURN}:{ufrag} {}\r\n", if late { LATE } else { NEVER })
}

/// Returns what an attribute of this library says in the description with this `ufrag`, or `None` if
/// somebody else wrote the attribute.
fn own<'a>(value: &'a str, ufrag: &str) -> Option<&'a str> {
    let (writer, said) = value.split_once(' ').unwrap_or((value, ""));
    (writer == ufrag).then_some(said)
}

fn is_sha256(fingerprint: &str) -> bool {
    fingerprint
        .get(..7)
        .is_some_and(|hash| hash.eq_ignore_ascii_case("sha-256"))
}

/// Returns `value` if it has between `min` and 256 characters of the `ice-char` set (RFC 8839
/// section 5.4). The hyphen, underscore and equals sign are not in this set, but are allowed,
/// because some peers use them.
fn ice_chars(value: &str, min: usize) -> Option<String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"+/-_=".contains(&b);
    ((min..=256).contains(&value.len()) && value.bytes().all(allowed)).then(|| value.to_owned())
}

fn parse_fingerprint(value: &str) -> Option<Fingerprint> {
    let (hash, digest) = value.split_once(' ')?;
    let digest = digest
        .trim()
        .split(':')
        .map(|byte| match byte.len() {
            2 => u8::from_str_radix(byte, 16).ok(),
            _ => None,
        })
        .collect::<Option<Vec<u8>>>()?;
    let hash = hash.to_ascii_lowercase();
    let expected = match hash.as_str() {
        "sha-1" => 20,
        "sha-224" => 28,
        "sha-256" => 32,
        "sha-384" => 48,
        "sha-512" => 64,
        _ => return None,
    };
    (digest.len() == expected).then_some(Fingerprint { hash, digest })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) const CHROMIUM_OFFER: &str = "v=0\r\no=- 4215775240449105457 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\na=extmap-allow-mixed\r\na=msid-semantic: WMS\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=candidate:1 1 udp 2113937151 0c8a7c2e-1b1d-4e62-9a1e-2f5c5e6ad0b1.local 51000 typ host generation 0\r\na=ice-ufrag:EsAw\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\na=ice-options:trickle\r\na=fingerprint:sha-256 D2:FA:0E:C3:22:59:5E:14:95:69:92:3D:13:B4:84:24:2C:C2:A2:C0:3E:FD:34:8E:5E:EA:6F:AF:52:CE:E6:0F\r\na=setup:actpass\r\na=mid:0\r\na=sctp-port:5000\r\na=max-message-size:262144\r\n";

    #[test]
    fn reads_what_chromium_writes() {
        let description = Description::parse(CHROMIUM_OFFER).unwrap();
        assert_eq!(description.ufrag, "EsAw");
        assert_eq!(description.setup, Setup::ActPass);
        assert_eq!(description.mid, "0");
        assert_eq!(description.max_message_size, 262_144);
        assert_eq!(description.fingerprint.digest[..2], [0xd2, 0xfa]);
        assert_eq!(description.candidates.len(), 1);
        assert_eq!(description.candidates[0].socket_addr(), None);
    }

    #[test]
    fn a_session_level_fingerprint_counts() {
        // Firefox writes the fingerprint above the section.
        let line = CHROMIUM_OFFER
            .lines()
            .find(|line| line.starts_with("a=fingerprint"))
            .unwrap();
        let moved = CHROMIUM_OFFER
            .replace(&format!("{line}\r\n"), "")
            .replace("t=0 0\r\n", &format!("t=0 0\r\n{line}\r\n"));
        assert_eq!(
            Description::parse(&moved).unwrap(),
            Description::parse(CHROMIUM_OFFER).unwrap()
        );
    }

    #[test]
    fn errors_name_the_field() {
        let without = |start: &str| {
            let sdp: String = CHROMIUM_OFFER
                .split_inclusive("\r\n")
                .filter(|line| !line.starts_with(start))
                .collect();
            Description::parse(&sdp).unwrap_err()
        };
        assert_eq!(without("v="), SdpError::Missing("v"));
        assert_eq!(without("m="), SdpError::Missing("m"));
        for field in ["ice-ufrag", "ice-pwd", "fingerprint", "setup"] {
            assert_eq!(without(&format!("a={field}")), SdpError::Missing(field));
        }
        let replaced = |from: &str, to: &str| {
            Description::parse(&CHROMIUM_OFFER.replace(from, to)).unwrap_err()
        };
        assert_eq!(replaced("EsAw", "x"), SdpError::Invalid("ice-ufrag"));
        assert_eq!(replaced("actpass", "maybe"), SdpError::Invalid("setup"));
        assert_eq!(replaced("D2:FA", "D2FA"), SdpError::Invalid("fingerprint"));
        assert_eq!(replaced("m=application", "m=audio"), SdpError::Invalid("m"));
        assert_eq!(
            replaced("262144", "many"),
            SdpError::Invalid("max-message-size")
        );
    }

    fn with_lines(lines: &str) -> Result<Description, SdpError> {
        Description::parse(&format!("{CHROMIUM_OFFER}{lines}"))
    }

    #[test]
    fn descriptions_are_bounded() {
        let filled = |length: usize| {
            let line = "a=x-filler:";
            let left = length - CHROMIUM_OFFER.len() - line.len();
            with_lines(&format!("{line}{}", "x".repeat(left)))
        };
        assert!(filled(16_384).is_ok());
        assert_eq!(filled(16_385), Err(SdpError::TooLong));
        let candidate = "a=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n";
        let many = with_lines(&candidate.repeat(MAX_CANDIDATES + 5)).unwrap();
        assert_eq!(many.candidates.len(), MAX_CANDIDATES);
    }

    #[test]
    fn attributes_that_may_be_absent() {
        let plain = Description::parse(CHROMIUM_OFFER).unwrap();
        assert!(!plain.ice_lite && !plain.quic);
        assert!(with_lines("a=ice-lite\r\n").unwrap().ice_lite);
        let line = "a=max-message-size:262144\r\n";
        let silent = Description::parse(&CHROMIUM_OFFER.replace(line, "")).unwrap();
        assert_eq!(silent.max_message_size, 65_536);
        let unnamed = Description::parse(&CHROMIUM_OFFER.replace("a=mid:0\r\n", "")).unwrap();
        assert_eq!(unnamed.mid, "0");
    }

    /// libdatachannel copies the attributes that it does not know from an offer into its answer.
    #[test]
    fn an_echo_of_our_attributes_says_nothing() {
        let ours = Description {
            ufrag: "ours".into(),
            quic: true,
            side: Some(Side::Hard),
            no_turn: true,
            sctp_init: Some("AQAAFA==".into()),
            ..Description::parse(CHROMIUM_OFFER).unwrap()
        };
        let offer = ours.to_sdp(1);
        assert_eq!(Description::parse(&offer), Ok(ours));
        let echoed: String = offer
            .split_inclusive("\r\n")
            .filter(|line| line.starts_with("a=x-"))
            .collect();
        assert_eq!(echoed.lines().count(), 3);
        let answer = with_lines(&echoed).unwrap();
        assert!(!answer.quic && answer.side.is_none() && !answer.no_turn);
        let late = Description {
            no_turn: false,
            late_turn: true,
            ..Description::parse(&offer).unwrap()
        };
        assert_eq!(Description::parse(&late.to_sdp(1)), Ok(late));
        // The answerer's own attributes count, wherever the echo stands.
        let own = "a=x-throughline-quic:EsAw\r\na=x-throughline-nat:EsAw easy\r\n";
        let answer = with_lines(&format!("{echoed}{own}")).unwrap();
        assert!(answer.quic && answer.side == Some(Side::Easy));
    }

    #[test]
    fn the_first_chunk_of_sctp_is_read_unless_it_is_too_long() {
        let read = |length| {
            let init = "A".repeat(length);
            let read = with_lines(&format!("a=sctp-init:{init}\r\n")).unwrap();
            read.sctp_init.map(|read| read == init)
        };
        assert_eq!(read(MAX_SCTP_INIT), Some(true));
        assert_eq!(read(MAX_SCTP_INIT + 1), None);
    }

    #[test]
    fn roles_and_names_are_read() {
        let replaced = |from: &str, to: &str| Description::parse(&CHROMIUM_OFFER.replace(from, to));
        for (text, setup) in [("active", Setup::Active), ("passive", Setup::Passive)] {
            assert_eq!(replaced("actpass", text).unwrap().setup, setup);
        }
        let named = |mid: &str| replaced("a=mid:0", &format!("a=mid:{mid}")).map(|read| read.mid);
        let longest = "d".repeat(16);
        assert_eq!(named(&longest), Ok(longest));
        for mid in ["d".repeat(17), "a b".to_owned(), "a\u{7f}".to_owned()] {
            assert_eq!(named(&mid), Err(SdpError::Invalid("mid")), "{mid:?}");
        }
    }

    #[test]
    fn of_several_fingerprints_the_one_that_all_compute_counts() {
        let line = CHROMIUM_OFFER
            .lines()
            .find(|line| line.starts_with("a=fingerprint"))
            .unwrap();
        let of = |hash: &str, length| {
            let digest = vec![7; length];
            let hash = hash.to_owned();
            Fingerprint { hash, digest }
        };
        for (hash, length) in [
            ("sha-1", 20),
            ("sha-224", 28),
            ("sha-256", 32),
            ("sha-384", 48),
            ("sha-512", 64),
        ] {
            let own = format!("a=fingerprint:{}", of(hash, length));
            let read = Description::parse(&CHROMIUM_OFFER.replace(line, &own)).unwrap();
            assert_eq!(read.fingerprint, of(hash, length));
            let short = format!("a=fingerprint:{}", of(hash, length - 1));
            let read = Description::parse(&CHROMIUM_OFFER.replace(line, &short));
            assert_eq!(read, Err(SdpError::Invalid("fingerprint")));
            // The order of the two and the letter case do not matter.
            let other = line.replace("sha-256", "SHA-256");
            for both in [format!("{own}\r\n{other}"), format!("{other}\r\n{own}")] {
                let read = Description::parse(&CHROMIUM_OFFER.replace(line, &both)).unwrap();
                let last_of_two = hash == "sha-256" && both.ends_with(&own);
                assert_eq!(read.fingerprint.hash, "sha-256");
                assert_eq!(read.fingerprint == of("sha-256", 32), last_of_two, "{both}");
            }
        }
    }

    #[test]
    fn a_session_id_is_positive() {
        let written = Description::parse(CHROMIUM_OFFER).unwrap().to_sdp(u64::MAX);
        assert!(
            written.contains(&format!("o=- {} 2 ", i64::MAX)),
            "{written}"
        );
    }

    proptest! {
        #[test]
        fn never_panics(text in "(v=0\r\n)?([am]=[ -~]{0,60}\r?\n){0,12}") {
            let _ = Description::parse(&text);
        }

        #[test]
        fn a_written_description_is_read_back(
            ufrag in "[a-zA-Z0-9+/]{4,32}",
            pwd in "[a-zA-Z0-9+/]{22,64}",
            digest in proptest::collection::vec(any::<u8>(), 32),
            session in any::<u64>(),
            quic in any::<bool>(),
            side in prop::sample::select(&[None, Some(Side::Easy), Some(Side::Unsure), Some(Side::Hard)]),
        ) {
            let description = Description {
                ufrag,
                pwd,
                ..Description::parse(CHROMIUM_OFFER).unwrap()
            };
            let description = Description {
                fingerprint: Fingerprint { hash: "sha-256".into(), digest },
                quic,
                side,
                ..description
            };
            prop_assert_eq!(Description::parse(&description.to_sdp(session)).unwrap(), description);
        }
    }
}
