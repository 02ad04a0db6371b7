//! Guesses the port of a NAT that uses a random port for each destination, by the birthday method.
//!
//! The side behind such a NAT opens many sockets towards the one address of the other side. The
//! other side probes many ports of the NAT. With `n` sockets and `m` probes of different ports out
//! of `p`, the chance that no probe meets a socket is about `(1 - n / p)^m`. So 256 sockets and
//! 1,024 probes meet in 98 of 100 cases, and in half of the cases after 174 probes.

use std::{collections::HashSet, time::Duration};

use super::nat::NatMapping;

/// The ports that a NAT may use: all but the well-known ones. RFC 4787 REQ-3 lets a NAT keep 0 to
/// 1023 apart.
const FIRST_PORT: u32 = 1024;
const PORTS: u32 = 1 << 16;

/// What a side knows of its NAT, and tells the other side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The NAT of this side has the same mapping for every destination, so the other side can be
    /// told the address.
    Easy,
    /// It looks like that, but all servers that saw the mapping have one address. The NAT may have
    /// another mapping for each address.
    Unsure,
    /// The NAT of this side has a random mapping for each destination.
    Hard,
}

/// What a side does in a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// It probes ports of the other side's NAT.
    Probe,
    /// It opens sockets towards the address of the other side.
    Open,
}

impl Part {
    pub(crate) fn other(self) -> Self {
        match self {
            Self::Probe => Self::Open,
            Self::Open => Self::Probe,
        }
    }
}

/// How a side takes part in a guess.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Role {
    pub(crate) part: Part,
    /// Whether the guess rests on a doubt: both NATs look easy, and yet no check comes through. Then
    /// ordinary checks have twice the time.
    pub(crate) is_doubtful: bool,
    /// Whether the sides change their parts if the guess is in vain, because neither knows whose NAT is the
    /// hard one.
    pub(crate) takes_turns: bool,
}

impl Side {
    /// Returns what a peer behind a NAT with this mapping is, or `None` while the mapping is not known.
    /// `one_server` says that all servers which saw the mapping have one IP address.
    pub(crate) fn of(mapping: NatMapping, one_server: bool) -> Option<Self> {
        match mapping {
            NatMapping::Unknown => None,
            NatMapping::EndpointIndependent if one_server => Some(Self::Unsure),
            NatMapping::None | NatMapping::EndpointIndependent => Some(Self::Easy),
            NatMapping::AddressDependent | NatMapping::AddressAndPortDependent => Some(Self::Hard),
        }
    }

    /// Returns the role of this side, if a guess can help. Of two sides that are unsure, the `first` one
    /// opens sockets before the other one does.
    pub(crate) fn role(self, theirs: Self, first: bool) -> Option<Role> {
        let (part, is_doubtful) = match (self, theirs) {
            (Self::Hard, Self::Hard) | (Self::Easy, Self::Easy) => return None,
            (Self::Hard, _) => (Part::Open, false),
            (_, Self::Hard) => (Part::Probe, false),
            (Self::Unsure, Self::Unsure) if !first => (Part::Probe, true),
            (Self::Unsure, _) => (Part::Open, true),
            (Self::Easy, Self::Unsure) => (Part::Probe, true),
        };
        Some(Role {
            part,
            is_doubtful,
            takes_turns: self == theirs,
        })
    }

    /// Returns the word for it in a session description.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Easy => "easy",
            Self::Unsure => "unsure",
            Self::Hard => "hard",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Easy, Self::Unsure, Self::Hard]
            .into_iter()
            .find(|side| side.as_str() == text)
    }
}

/// How much effort goes into guessing a port. This is native only. Each socket and each probe takes
/// a place in the table of a router. So the defaults are a few hundred of each, at a slow rate, and
/// the guessing begins only if nothing else works.
///
/// ```
/// use throughline::rtc::{Config, Effort};
///
/// let mut config = Config::default();
/// // Half of the sockets, for a router with a small table.
/// config.birthday = Some(Effort { sockets: 128, ..Effort::default() });
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// How long ordinary checks have before the guessing begins. If one of the NATs filters less
    /// strictly than most, they succeed within two round trips. They have twice as long if the guess
    /// rests on a doubt, because all STUN servers of a side have one address. Default 1 s.
    pub delay: Duration,
    /// The number of sockets that a side opens when its NAT uses another port for each destination.
    /// Default 256.
    pub sockets: u32,
    /// The number of ports that the other side probes. Default 1,024: with 256 sockets, 98 of 100
    /// attempts meet.
    pub probes: u32,
    /// The number of probes per second. Default 100, which is 10 kB/s: half of the attempts meet
    /// within 2 s.
    pub rate: u32,
}

impl Default for Effort {
    fn default() -> Self {
        Self {
            delay: Duration::from_secs(1),
            sockets: 256,
            probes: 1024,
            rate: 100,
        }
    }
}

impl Effort {
    /// Returns how long the guessing takes at most.
    pub(crate) fn duration(&self) -> Duration {
        Duration::from_secs_f64(f64::from(self.probes) / f64::from(self.rate.max(1)))
    }
}

/// The ports to probe, each once, at a steady rate.
#[derive(Clone, Debug)]
pub(crate) struct Prober {
    effort: Effort,
    sent: HashSet<u16>,
    /// A generator whose period holds every port once (theorem of Hull and Dobell): the increment
    /// is odd, and the factor is 1 more than a multiple of 4.
    state: u32,
    factor: u32,
    increment: u32,
}

impl Prober {
    /// `random` decides the order of the ports.
    pub(crate) fn new(effort: Effort, random: u64) -> Self {
        let [a, b, c] = [random, random >> 16, random >> 32].map(|part| part as u32 % PORTS);
        Self {
            effort,
            sent: HashSet::new(),
            state: a,
            factor: (b & !3) | 1,
            increment: c | 1,
        }
    }

    /// Returns when the next probe is due, counted from the start, or `None` when all were sent.
    pub(crate) fn next_at(&self) -> Option<Duration> {
        let all = self.effort.probes.min(PORTS - FIRST_PORT);
        let rate = f64::from(self.effort.rate.max(1));
        let sent = u32::try_from(self.sent.len()).unwrap_or(all);
        (sent < all).then(|| Duration::from_secs_f64(f64::from(sent) / rate))
    }

    pub(crate) fn has_probed(&self, port: u16) -> bool {
        self.sent.contains(&port)
    }

    /// Returns the port to probe now, if a probe is due.
    pub(crate) fn poll(&mut self, elapsed: Duration) -> Option<u16> {
        self.next_at().filter(|at| *at <= elapsed)?;
        loop {
            self.state = self
                .state
                .wrapping_mul(self.factor)
                .wrapping_add(self.increment)
                % PORTS;
            if self.state >= FIRST_PORT {
                let port = u16::try_from(self.state).ok()?;
                self.sent.insert(port);
                return Some(port);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const EFFORT: Effort = Effort {
        delay: Duration::from_secs(1),
        sockets: 256,
        probes: 1024,
        rate: 100,
    };

    #[test]
    fn the_mapping_decides_the_side() {
        use NatMapping as M;
        for one_server in [false, true] {
            assert_eq!(Side::of(M::Unknown, one_server), None);
            assert_eq!(Side::of(M::None, one_server), Some(Side::Easy));
            for hard in [M::AddressDependent, M::AddressAndPortDependent] {
                assert_eq!(Side::of(hard, one_server), Some(Side::Hard));
            }
        }
        assert_eq!(Side::of(M::EndpointIndependent, false), Some(Side::Easy));
        assert_eq!(Side::of(M::EndpointIndependent, true), Some(Side::Unsure));
        assert_eq!(Effort::default(), EFFORT);
    }

    #[test]
    fn one_side_probes_and_the_other_one_opens_sockets() {
        use Side::{Easy, Hard, Unsure};
        let sides = [Easy, Unsure, Hard];
        for (ours, theirs) in sides.iter().flat_map(|a| sides.map(|b| (*a, b))) {
            let roles = [ours.role(theirs, true), theirs.role(ours, false)];
            let is_alike = ours == theirs && ours != Unsure;
            let [Some(one), Some(other)] = roles else {
                assert!(is_alike && roles == [None, None], "{ours:?} {theirs:?}");
                continue;
            };
            assert_ne!(one.part, other.part, "{ours:?} {theirs:?}");
            let is_doubtful = ours != Hard && theirs != Hard;
            assert_eq!([one, other].map(|role| role.is_doubtful), [is_doubtful; 2]);
            let takes_turns = ours == theirs;
            assert_eq!([one, other].map(|role| role.takes_turns), [takes_turns; 2]);
            assert_eq!(one.part, other.part.other());
        }
        assert_eq!(Hard.role(Unsure, false).unwrap().part, Part::Open);
        assert_eq!(Easy.role(Unsure, false).unwrap().part, Part::Probe);
        for side in sides {
            assert_eq!(Side::parse(side.as_str()), Some(side));
        }
    }

    #[test]
    fn probes_keep_the_rate_exactly() {
        let mut prober = Prober::new(EFFORT, 7);
        let due = |prober: &mut Prober, millis| {
            let elapsed = Duration::from_millis(millis);
            std::iter::from_fn(|| prober.poll(elapsed)).count()
        };
        assert_eq!(due(&mut prober, 0), 1);
        assert_eq!(due(&mut prober, 9), 0);
        assert_eq!(due(&mut prober, 10), 1);
        assert_eq!(due(&mut prober, 1000), 99);
        assert_eq!(due(&mut prober, 60_000), 1024 - 101);
        assert_eq!(prober.next_at(), None);
        assert_eq!(EFFORT.duration(), Duration::from_millis(10_240));
    }

    /// The mean over many NATs and orders has the chance that the birthday method predicts.
    #[test]
    fn the_chance_is_as_predicted() {
        let mut met = 0;
        for round in 0..400u64 {
            let mut random = round.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut port = || {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                1024 + (random % 64_512) as u16
            };
            let open: HashSet<u16> = (0..EFFORT.sockets).map(|_| port()).collect();
            let mut prober = Prober::new(EFFORT, random);
            let hour = Duration::from_secs(3600);
            met += u32::from(std::iter::from_fn(|| prober.poll(hour)).any(|p| open.contains(&p)));
        }
        assert!((380..=400).contains(&met), "{met} of 400");
    }

    proptest! {
        #[test]
        fn no_port_comes_twice_and_none_is_well_known(random in any::<u64>()) {
            let effort = Effort { probes: u32::MAX, ..EFFORT };
            let mut prober = Prober::new(effort, random);
            let day = Duration::from_secs(86_400);
            let ports: Vec<u16> = std::iter::from_fn(|| prober.poll(day)).collect();
            prop_assert_eq!(ports.len(), 64_512);
            prop_assert!(ports.iter().all(|port| prober.has_probed(*port)));
            prop_assert!(!prober.has_probed(1023));
            prop_assert!(ports.iter().all(|port| *port >= 1024));
            prop_assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 64_512);
        }
    }
}
