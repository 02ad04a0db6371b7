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
pub(crate) mod tests;
