//! Says what the kinds of two NATs allow to any software.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::nat::{Behaviour, Filtering, Mapping, NatKind, Ports};

/// The best path that two peers can hope for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Theory {
    /// The peers can connect through a relay or a TURN server only.
    Relay,
    /// A direct path needs guessed ports: prediction of a sequence, or the birthday method.
    Guess,
    /// A direct path is possible.
    Direct,
}

impl fmt::Display for Theory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Relay => "relay only",
            Self::Guess => "direct by guessing ports",
            Self::Direct => "direct",
        })
    }
}

/// The software at one end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// The `throughline` program.
    Native,
    /// The npm package in Chromium.
    Browser,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Native => "native",
            Self::Browser => "browser",
        })
    }
}

/// One end, as the other sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The software at this end.
    pub peer: Peer,
    /// The NAT that the peer is behind.
    pub nat: NatKind,
    /// The carrier NAT in front of that NAT, if there is one.
    pub carrier: Option<NatKind>,
    /// Whether the router grants port mappings that work. A native peer asks for them.
    pub mapped: bool,
}

impl End {
    /// Returns the UDP behaviour as seen from the internet, or `None` if no UDP passes.
    fn behaviour(self) -> Option<Behaviour> {
        let home = self.nat.behaviour()?;
        // A mapped port is open to everybody and the same for everybody, unless a carrier's NAT
        // hides the router.
        if self.mapped && self.peer == Peer::Native && self.carrier.is_none() {
            return NatKind::FullCone.behaviour();
        }
        match self.carrier {
            None => Some(home),
            Some(carrier) => Some(home.behind(carrier.behaviour()?)),
        }
    }

    /// Whether others can open TCP connections to this end.
    fn accepts_tcp(self) -> bool {
        self.peer == Peer::Native && self.nat == NatKind::None && self.carrier.is_none()
    }

    /// Whether this end can open TCP connections to any port.
    fn dials_tcp(self) -> bool {
        self.nat != NatKind::Tcp443 && self.carrier != Some(NatKind::Tcp443)
    }
}

/// Returns the best that `a` and `b` can do across the internet.
///
/// The rules are those of RFC 5128 section 3.3 and of the birthday method. An endpoint-independent
/// mapping is known in advance. Other mappings must be guessed, unless the filter of the other end
/// ignores ports. A browser has one socket and tries few candidates, so it can follow a sequence,
/// but it cannot succeed by many guesses.
pub fn theory(a: End, b: End) -> Theory {
    let (Some(x), Some(y)) = (a.behaviour(), b.behaviour()) else {
        let tcp = (a.accepts_tcp() && b.dials_tcp()) || (b.accepts_tcp() && a.dials_tcp());
        return if tcp { Theory::Direct } else { Theory::Relay };
    };
    let known = |end: Behaviour| end.mapping == Mapping::EndpointIndependent;
    // The end whose port is known must let the other end in from an unknown port.
    let guess = |ports: Ports| match ports {
        Ports::Sequential => Theory::Guess,
        _ if a.peer == Peer::Native && b.peer == Peer::Native => Theory::Guess,
        _ => Theory::Relay,
    };
    match (known(x), known(y)) {
        (true, true) => Theory::Direct,
        (true, false) if x.filtering != Filtering::AddressAndPortDependent => Theory::Direct,
        (false, true) if y.filtering != Filtering::AddressAndPortDependent => Theory::Direct,
        (true, false) => guess(y.ports),
        (false, true) => guess(x.ports),
        // Both ends must guess right at the same time. Only two sequences leave so few choices.
        (false, false) if x.ports == Ports::Sequential && y.ports == Ports::Sequential => {
            Theory::Guess
        }
        (false, false) => Theory::Relay,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn end(nat: NatKind) -> End {
        End {
            peer: Peer::Native,
            nat,
            carrier: None,
            mapped: false,
        }
    }

    #[test]
    fn theory_follows_the_known_table_of_nat_pairs() {
        use NatKind::*;
        for (a, b, expected) in [
            (FullCone, SymmetricRandom, Theory::Direct),
            (AddressRestricted, SymmetricRandom, Theory::Direct),
            (PortRestricted, PortRestricted, Theory::Direct),
            (PortRestricted, SymmetricSequential, Theory::Guess),
            (PortRestricted, SymmetricRandom, Theory::Guess),
            (Firewall, SymmetricRandom, Theory::Guess),
            (SymmetricSequential, SymmetricSequential, Theory::Guess),
            (SymmetricSequential, SymmetricRandom, Theory::Relay),
            (SymmetricRandom, SymmetricRandom, Theory::Relay),
            (UdpBlocked, PortRestricted, Theory::Relay),
            (UdpBlocked, None, Theory::Direct),
            (Tcp443, None, Theory::Relay),
        ] {
            assert_eq!(theory(end(a), end(b)), expected, "{a} and {b}");
            assert_eq!(theory(end(b), end(a)), expected, "{b} and {a}");
        }
    }

    #[test]
    fn browsers_follow_a_sequence_but_do_not_succeed_by_many_guesses() {
        let browser = |nat| End {
            peer: Peer::Browser,
            ..end(nat)
        };
        let restricted = end(NatKind::PortRestricted);
        assert_eq!(
            theory(browser(NatKind::SymmetricSequential), restricted),
            Theory::Guess
        );
        assert_eq!(
            theory(browser(NatKind::SymmetricRandom), restricted),
            Theory::Relay
        );
        assert_eq!(
            theory(browser(NatKind::None), end(NatKind::UdpBlocked)),
            Theory::Relay
        );
    }

    #[test]
    fn a_mapping_opens_a_symmetric_nat_but_not_behind_a_carrier() {
        let mapped = End {
            mapped: true,
            ..end(NatKind::SymmetricRandom)
        };
        let other = end(NatKind::SymmetricRandom);
        assert_eq!(theory(mapped, other), Theory::Direct);
        let behind = End {
            carrier: Some(NatKind::SymmetricRandom),
            ..mapped
        };
        assert_eq!(theory(behind, other), Theory::Relay);
        assert_eq!(
            theory(
                End {
                    peer: Peer::Browser,
                    ..mapped
                },
                other
            ),
            Theory::Relay
        );
    }
}
