//! The parts of a quota that the servers of a fleet have.
//!
//! A server has a lease of so many bytes of each quota. It carries them without asking anybody, and asks
//! for more before they are used up. The leases of all servers of one quota are one value. A server that
//! changes it names the revision that it knows, so all leases together are never more than the quota.
//! Beyond its lease, a server carries [`slack`] bytes. So nobody waits for a first lease, and a server that
//! cannot ask goes on for a while.

use std::collections::BTreeMap;

use multiaddr::PeerId;

use super::{
    allowance::Quota,
    protobuf::{field, skip_field, take_bytes, take_varint, varint},
};

/// The most servers that have a part of one quota.
const MOST: usize = 256;
/// The longest value: that of [`MOST`] servers.
pub(crate) const MAX_VALUE: usize = MOST * 128;

/// A server takes this part of what is free, but no less than [`slack`]. So many servers find something, and
/// each asks seldom.
const PART: u64 = 8;

// Leases { lease = 1 }; Lease { server = 1, day = 2, of day = 3, month = 4, of month = 5 }
const LEASE: u64 = 1 << 3 | 2;
const SERVER: u64 = 1 << 3 | 2;
const NUMBERS: [(u64, u64); 2] = [(2 << 3, 3 << 3), (4 << 3, 5 << 3)];

/// Returns how many bytes a server may carry beyond its lease of a quota of `all` bytes.
pub(crate) fn slack(all: u64) -> u64 {
    (all / 64).clamp(64 << 10, 16 << 20).min(all)
}

/// What a server asks for. The first of two is that of the day, and the second that of the month.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ask {
    pub(crate) quota: Quota,
    /// The numbers of the present periods.
    pub(crate) periods: [u64; 2],
    /// The bytes that the server has carried in them.
    pub(crate) spent: [u64; 2],
    /// Whether nothing is carried at present, so that the rest of the lease is given back.
    pub(crate) rests: bool,
}

/// What a server may carry in one period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) bytes: u64,
    /// After how many bytes the server asks for more.
    pub(crate) ask_at: u64,
    /// The bytes that other servers have.
    pub(crate) elsewhere: u64,
}

/// What one server has, in the periods of these numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Part {
    periods: [u64; 2],
    bytes: [u64; 2],
}

/// The leases of one quota.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leases(BTreeMap<PeerId, Part>);

impl Leases {
    /// Gives `server` what it asks for, in the place of what it had. Returns `None` if too many servers have
    /// a part.
    pub(crate) fn take(&mut self, server: PeerId, ask: &Ask) -> Option<[Lease; 2]> {
        let is_present = |part: &Part| (0..2).any(|at| part.periods[at] >= ask.periods[at]);
        self.0.retain(|_, part| is_present(part));
        self.0.remove(&server);
        if self.0.len() >= MOST {
            return None;
        }
        let limits = [ask.quota.day, ask.quota.month];
        let leases = [0, 1].map(|at| {
            let present = self.0.values().filter(|p| p.periods[at] == ask.periods[at]);
            let elsewhere = present.fold(0u64, |sum, part| sum.saturating_add(part.bytes[at]));
            let (spent, all) = (ask.spent[at], limits[at].unwrap_or(u64::MAX));
            let free = all.saturating_sub(elsewhere).saturating_sub(spent);
            let more = match (ask.rests, limits[at]) {
                (false, Some(_)) => (free / PART).max(slack(all)).min(free),
                _ => 0,
            };
            Lease {
                bytes: spent.saturating_add(more),
                ask_at: spent.saturating_add(more / 2),
                elsewhere,
            }
        });
        let part = Part {
            periods: ask.periods,
            bytes: leases.map(|lease| lease.bytes),
        };
        self.0.insert(server, part);
        Some(leases)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let lease = |(server, part): (&PeerId, &Part)| {
            let mut bytes = field(SERVER, &server.to_bytes());
            for (at, (period, of_period)) in NUMBERS.into_iter().enumerate() {
                for (tag, value) in [(period, part.periods[at]), (of_period, part.bytes[at])] {
                    bytes.extend([varint(tag), varint(value)].concat());
                }
            }
            field(LEASE, &bytes)
        };
        self.0.iter().flat_map(lease).collect()
    }

    /// Reads a value. Returns `None` if it is malformed or too long.
    pub(crate) fn decode(mut rest: &[u8]) -> Option<Self> {
        if rest.len() > MAX_VALUE {
            return None;
        }
        let mut leases = BTreeMap::new();
        while !rest.is_empty() {
            match take_varint(&mut rest)? {
                LEASE => {
                    let (server, part) = decode_lease(take_bytes(&mut rest)?)?;
                    leases.insert(server, part);
                }
                tag => skip_field(tag, &mut rest)?,
            }
        }
        (leases.len() <= MOST).then_some(Self(leases))
    }
}

fn decode_lease(mut rest: &[u8]) -> Option<(PeerId, Part)> {
    let (mut server, mut part) = (None, Part::default());
    while !rest.is_empty() {
        let tag = take_varint(&mut rest)?;
        let [day, month] = NUMBERS;
        let field = match tag {
            SERVER => {
                server = PeerId::from_bytes(take_bytes(&mut rest)?).ok();
                continue;
            }
            tag if tag == day.0 => &mut part.periods[0],
            tag if tag == day.1 => &mut part.bytes[0],
            tag if tag == month.0 => &mut part.periods[1],
            tag if tag == month.1 => &mut part.bytes[1],
            tag => {
                skip_field(tag, &mut rest)?;
                continue;
            }
        };
        *field = take_varint(&mut rest)?;
    }
    Some((server?, part))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn ask(day: u64, spent: u64) -> Ask {
        let quota = Quota {
            day: Some(day),
            month: None,
        };
        Ask {
            quota,
            periods: [7, 1],
            spent: [spent; 2],
            rests: false,
        }
    }

    #[test]
    fn a_server_takes_an_eighth_of_what_is_free_and_gives_the_rest_back() {
        let [a, b] = [(); 2].map(|()| PeerId::random());
        let mut leases = Leases::default();
        let [day, month] = leases.take(a, &ask(800 * MIB, 0)).unwrap();
        let expected = Lease {
            bytes: 100 * MIB,
            ask_at: 50 * MIB,
            elsewhere: 0,
        };
        assert_eq!(day, expected);
        assert_eq!(month.bytes, 0, "nothing limits the month");
        let [other, _] = leases.take(b, &ask(800 * MIB, 0)).unwrap();
        assert_eq!((other.bytes, other.elsewhere), (700 * MIB / 8, 100 * MIB));
        let resting = Ask {
            rests: true,
            ..ask(800 * MIB, 30 * MIB)
        };
        let [rest, _] = leases.take(a, &resting).unwrap();
        assert_eq!((rest.bytes, rest.ask_at), (30 * MIB, 30 * MIB));
        let [other, _] = leases.take(b, &ask(800 * MIB, 0)).unwrap();
        assert_eq!(other.elsewhere, 30 * MIB);
        let [small, _] = leases.take(b, &ask(33 * MIB, 0)).unwrap();
        assert_eq!(small.bytes, slack(33 * MIB));
        let [last, _] = leases.take(b, &ask(33 * MIB, 3 * MIB - 5)).unwrap();
        assert_eq!(last.bytes, 3 * MIB, "all that is left");
    }

    #[test]
    fn another_period_begins_with_nothing() {
        let [a, b] = [(); 2].map(|()| PeerId::random());
        let mut leases = Leases::default();
        leases.take(a, &ask(80 * MIB, 80 * MIB)).unwrap();
        let next_day = Ask {
            periods: [8, 1],
            ..ask(80 * MIB, 0)
        };
        let [day, _] = leases.take(b, &next_day).unwrap();
        assert_eq!((day.bytes, day.elsewhere), (10 * MIB, 0));
        assert_eq!(leases.0.len(), 2, "the month goes on");
        let next_month = Ask {
            periods: [40, 2],
            ..ask(80 * MIB, 0)
        };
        leases.take(b, &next_month).unwrap();
        assert_eq!(leases.0.len(), 1);
        for _ in 1..MOST {
            let other = PeerId::random();
            leases.take(other, &next_month).unwrap();
        }
        assert!(leases.encode().len() <= MAX_VALUE);
        assert_eq!(leases.take(a, &next_month), None);
        assert!(leases.take(b, &next_month).is_some(), "it has a part");
    }

    proptest! {
        /// However servers ask and carry, the leases of a period are no more than its quota, unless more was
        /// carried as slack.
        #[test]
        fn all_leases_together_are_no_more_than_the_quota(
            asks in prop::collection::vec((0usize..4, 0u64..20 * MIB, any::<bool>()), 1..60),
        ) {
            let all = 100 * MIB;
            let servers = [(); 4].map(|()| PeerId::random());
            let mut leases = Leases::default();
            let (mut had, mut spent) = ([0u64; 4], [0u64; 4]);
            for (at, more, rests) in asks {
                spent[at] = (spent[at] + more).min(had[at]);
                let ask = Ask { rests, ..ask(all, spent[at]) };
                let [day, _] = leases.take(servers[at], &ask).unwrap();
                prop_assert!(day.bytes >= spent[at] && day.ask_at <= day.bytes);
                had[at] = day.bytes;
                prop_assert_eq!(day.elsewhere, had.iter().sum::<u64>() - had[at]);
                prop_assert!(had.iter().sum::<u64>() <= all);
                prop_assert_eq!(Leases::decode(&leases.encode()), Some(leases.clone()));
            }
        }

        #[test]
        fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(leases) = Leases::decode(&bytes) {
                prop_assert_eq!(Leases::decode(&leases.encode()), Some(leases.clone()));
            }
        }
    }
}
