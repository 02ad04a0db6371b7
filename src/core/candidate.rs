//! ICE candidates in the form that peers write: the `candidate` attribute of SDP and its parts.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

/// The longest candidate line that is read, in bytes. Real lines stay below 200 bytes.
pub(crate) const MAX_CANDIDATE_LEN: usize = 1024;

/// How a candidate's address was learned (RFC 8445 section 5.1.1).
///
/// ```
/// use throughline::rtc::CandidateKind;
///
/// assert_eq!(CandidateKind::PeerReflexive.to_string(), "prflx");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CandidateKind {
    /// An address of a local interface.
    Host,
    /// The address that a STUN server saw, or the external address of a port mapping.
    ServerReflexive,
    /// An address learned from a connectivity check of the peer.
    PeerReflexive,
    /// An address allocated on a TURN server.
    Relayed,
}

impl CandidateKind {
    /// Returns the `cand-type` token of RFC 8839 section 5.1.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::ServerReflexive => "srflx",
            Self::PeerReflexive => "prflx",
            Self::Relayed => "relay",
        }
    }
}

impl fmt::Display for CandidateKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An extension attribute and its value. They tell a peer of this library that a candidate is a
/// port mapping. Other peers skip them (RFC 8839 section 5.1).
const ORIGIN_ATTRIBUTE: &str = "tl-origin";
const ORIGIN_MAPPING: &str = "upnp";

/// The address in a candidate.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CandidateAddr {
    /// A transport address.
    Ip(SocketAddr),
    /// A name instead of an address, as browsers write host candidates (`<uuid>.local`, RFC 8828
    /// section 3.1). A native peer may ask its network for the address. Otherwise the pair forms by
    /// peer-reflexive discovery.
    Name(String, u16),
}

/// The transport protocol of a candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CandidateTransport {
    Udp,
    /// TCP (RFC 6544).
    Tcp,
}

/// One `candidate` attribute (RFC 8839 section 5.1), without the extensions that this library does
/// not use.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Candidate {
    /// The foundation. It is equal for candidates of the same kind, base and server (RFC 8445
    /// section 5.1.1.3).
    pub foundation: String,
    /// The component, which is 1 for everything that data channels use.
    pub component: u16,
    pub transport: CandidateTransport,
    /// The priority, from 1 to 2^31 - 1. Higher is preferred.
    pub priority: u32,
    /// The address of the candidate.
    pub addr: CandidateAddr,
    /// How the address was learned.
    pub kind: CandidateKind,
    /// The base of a reflexive or relayed candidate, if the peer names it.
    pub related: Option<SocketAddr>,
    /// Whether the peer says that its router forwards the address to it.
    pub mapped: bool,
}

/// Why a candidate line was refused. The error names the part that is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum CandidateError {
    /// The line is longer than [`MAX_CANDIDATE_LEN`].
    TooLong,
    /// A part is missing.
    Missing(&'static str),
    /// A part is there and not valid.
    Invalid(&'static str),
}

impl fmt::Display for CandidateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "the candidate is over {MAX_CANDIDATE_LEN} bytes"),
            Self::Missing(part) => write!(f, "the candidate has no {part}"),
            Self::Invalid(part) => write!(f, "the candidate's {part} is invalid"),
        }
    }
}

impl std::error::Error for CandidateError {}

impl Candidate {
    /// Returns the transport address, or `None` if the candidate has a name.
    pub(crate) fn socket_addr(&self) -> Option<SocketAddr> {
        match self.addr {
            CandidateAddr::Ip(addr) => Some(addr),
            CandidateAddr::Name(..) => None,
        }
    }
}

impl fmt::Display for Candidate {
    /// Writes the attribute's value with its `candidate:` prefix, as browsers do in JSON.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            CandidateTransport::Udp => "udp",
            CandidateTransport::Tcp => "tcp",
        };
        write!(
            f,
            "candidate:{} {} {transport} {} ",
            self.foundation, self.component, self.priority
        )?;
        match &self.addr {
            CandidateAddr::Ip(addr) => write!(f, "{} {}", addr.ip(), addr.port())?,
            CandidateAddr::Name(name, port) => write!(f, "{name} {port}")?,
        }
        write!(f, " typ {}", self.kind)?;
        if let Some(related) = self.related {
            write!(f, " raddr {} rport {}", related.ip(), related.port())?;
        }
        if self.mapped {
            write!(f, " {ORIGIN_ATTRIBUTE} {ORIGIN_MAPPING}")?;
        }
        Ok(())
    }
}

impl FromStr for Candidate {
    type Err = CandidateError;

    /// Reads an attribute value with or without `a=` and `candidate:` in front. Unknown extensions
    /// are skipped, as RFC 8839 section 5.1 demands.
    fn from_str(line: &str) -> Result<Self, CandidateError> {
        use CandidateError::{Invalid, Missing};

        if line.len() > MAX_CANDIDATE_LEN {
            return Err(CandidateError::TooLong);
        }
        let line = line.trim();
        let line = line.strip_prefix("a=").unwrap_or(line);
        let line = line.strip_prefix("candidate:").unwrap_or(line);
        let mut parts = line.split_ascii_whitespace();
        let mut next = |name| parts.next().ok_or(Missing(name));

        let foundation = next("foundation")?;
        let ice_char = |c: char| c.is_ascii_alphanumeric() || c == '+' || c == '/' || c == '-';
        if foundation.len() > 32 || !foundation.chars().all(ice_char) {
            return Err(Invalid("foundation"));
        }
        let component: u16 = next("component")?
            .parse()
            .map_err(|_| Invalid("component"))?;
        let transport = match next("transport")? {
            t if t.eq_ignore_ascii_case("udp") => CandidateTransport::Udp,
            t if t.eq_ignore_ascii_case("tcp") => CandidateTransport::Tcp,
            _ => return Err(Invalid("transport")),
        };
        let priority = next("priority")?.parse().map_err(|_| Invalid("priority"))?;
        let host = next("address")?;
        let port: u16 = next("port")?.parse().map_err(|_| Invalid("port"))?;
        let addr = match host.parse::<IpAddr>() {
            Ok(ip) => CandidateAddr::Ip(SocketAddr::new(ip, port)),
            Err(_) if is_host_name(host) => CandidateAddr::Name(host.to_owned(), port),
            Err(_) => return Err(Invalid("address")),
        };
        if next("typ")? != "typ" {
            return Err(Missing("typ"));
        }
        let kind = match next("type")? {
            "host" => CandidateKind::Host,
            "srflx" => CandidateKind::ServerReflexive,
            "prflx" => CandidateKind::PeerReflexive,
            "relay" => CandidateKind::Relayed,
            _ => return Err(Invalid("type")),
        };

        let mut related_ip = None;
        let mut related_port = None;
        let mut mapped = false;
        while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
            match name {
                // A browser that hides its addresses writes 0.0.0.0 or a name here.
                "raddr" => related_ip = value.parse::<IpAddr>().ok(),
                "rport" => related_port = value.parse::<u16>().ok(),
                ORIGIN_ATTRIBUTE => mapped = value == ORIGIN_MAPPING,
                _ => {}
            }
        }
        let related = related_ip
            .zip(related_port)
            .map(|(ip, port)| SocketAddr::new(ip, port));

        Ok(Self {
            foundation: foundation.to_owned(),
            component,
            transport,
            priority,
            addr,
            kind,
            related,
            mapped,
        })
    }
}

/// Whether `host` can be a DNS or mDNS name: letters, digits, hyphens and dots, with at least one
/// letter.
fn is_host_name(host: &str) -> bool {
    host.len() <= 253
        && host.chars().any(|c| c.is_ascii_alphabetic())
        && host
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_chromium_writes() {
        let line = "candidate:842163049 1 udp 1677729535 203.0.113.7 46154 typ srflx raddr 10.0.0.2 rport 50000 generation 0 ufrag EsAw network-cost 999";
        let candidate: Candidate = line.parse().unwrap();
        assert_eq!(candidate.kind, CandidateKind::ServerReflexive);
        assert_eq!(
            candidate.socket_addr(),
            Some("203.0.113.7:46154".parse().unwrap())
        );
        assert_eq!(candidate.related, Some("10.0.0.2:50000".parse().unwrap()));
    }

    #[test]
    fn a_local_name_is_read_and_has_no_address() {
        let line = "candidate:1 1 udp 2113937151 0c8a7c2e-1b1d-4e62-9a1e-2f5c5e6ad0b1.local 51000 typ host generation 0";
        let candidate: Candidate = line.parse().unwrap();
        assert_eq!(candidate.socket_addr(), None);
    }

    #[test]
    fn an_extension_attribute_marks_a_port_mapping() {
        let line =
            "candidate:1 1 udp 1677729535 203.0.113.7 46154 typ srflx raddr 10.0.0.2 rport 5";
        assert!(!line.parse::<Candidate>().unwrap().mapped);
        let mapped: Candidate = format!("{line} generation 0 tl-origin upnp ufrag x")
            .parse()
            .unwrap();
        assert!(mapped.mapped);
        assert!(mapped.to_string().ends_with(" tl-origin upnp"));
        let other: Candidate = format!("{line} tl-origin moon").parse().unwrap();
        assert!(!other.mapped);
    }

    #[test]
    fn errors_name_the_part() {
        let error = |line: &str| line.parse::<Candidate>().unwrap_err();
        assert_eq!(error(""), CandidateError::Missing("foundation"));
        let founded = |length| format!("{} 1 udp 5 1.2.3.4 5 typ host", "f".repeat(length));
        assert!(founded(32).parse::<Candidate>().is_ok());
        assert_eq!(error(&founded(33)), CandidateError::Invalid("foundation"));
        assert!(
            "a+b/c-1 1 udp 5 1.2.3.4 5 typ host"
                .parse::<Candidate>()
                .is_ok()
        );
        assert_eq!(
            error("a_b 1 udp 5 1.2.3.4 5 typ host"),
            CandidateError::Invalid("foundation")
        );
        assert_eq!(
            error("1 1 sctp 5 1.2.3.4 5 typ host"),
            CandidateError::Invalid("transport")
        );
        assert_eq!(
            error("1 1 udp 5 1.2.3.999 5 typ host"),
            CandidateError::Invalid("address")
        );
        assert_eq!(
            error("1 1 udp 5 1.2.3.4 70000 typ host"),
            CandidateError::Invalid("port")
        );
        assert_eq!(
            error("1 1 udp 5 1.2.3.4 5 host"),
            CandidateError::Missing("typ")
        );
        assert_eq!(error(&"x".repeat(2000)), CandidateError::TooLong);
    }

    proptest! {
        #[test]
        fn never_panics(line in ".{0,300}") {
            let _ = line.parse::<Candidate>();
        }

        #[test]
        fn a_written_candidate_is_read_back(
            ip in any::<IpAddr>(),
            port in any::<u16>(),
            priority in any::<u32>(),
            kind in prop_oneof![
                Just(CandidateKind::Host),
                Just(CandidateKind::ServerReflexive),
                Just(CandidateKind::PeerReflexive),
                Just(CandidateKind::Relayed),
            ],
            related in proptest::option::of(any::<std::net::SocketAddrV4>()),
            mapped in any::<bool>(),
        ) {
            let candidate = Candidate {
                foundation: "7".into(),
                component: 1,
                transport: CandidateTransport::Udp,
                priority,
                addr: CandidateAddr::Ip(SocketAddr::new(ip, port)),
                kind,
                related: related.map(SocketAddr::V4),
                mapped,
            };
            prop_assert_eq!(candidate.to_string().parse::<Candidate>().unwrap(), candidate);
        }
    }
}
