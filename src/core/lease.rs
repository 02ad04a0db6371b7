//! The parts of a quota that the servers of a fleet have.
//!
//! A server has a lease of so many bytes of each quota. It carries them without asking anybody, and asks
//! for more before they are used up. The leases of all servers of one quota are one value. A server that
//! changes it names the revision that it knows, so all leases together are never more than the quota.
//! Beyond its lease, a server carries [`slack`] bytes. So nobody waits for a first lease, and a server that
//! cannot ask goes on for a while. It asks only when half of the slack or of the lease is used, so what
//! carries next to nothing costs nothing.

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

// Leases { lease = 1 }; Lease { server = 1, day = 2, leased = 3, spent = 4, month = 5, leased = 6, spent = 7 }
const LEASE: u64 = 1 << 3 | 2;
const SERVER: u64 = 1 << 3 | 2;
const NUMBERS: [[u64; 3]; 2] = [[2 << 3, 3 << 3, 4 << 3], [5 << 3, 6 << 3, 7 << 3]];

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) bytes: u64,
    /// After how many bytes the server asks for more.
    pub(crate) ask_at: u64,
    /// What the server has spent. This is more than it has named if it has forgotten something, as after a
    /// restart.
    pub(crate) spent: u64,
    /// What others have leased.
    pub(crate) elsewhere: u64,
    /// What of that they had spent when they asked last.
    pub(crate) spent_elsewhere: u64,
}

/// What one server has in a period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Part {
    /// The number of the period.
    period: u64,
    leased: u64,
    spent: u64,
}

/// The leases of one quota.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Leases(BTreeMap<PeerId, [Part; 2]>);

impl Leases {
    /// Gives `server` what it asks for, in the place of what it had. Returns `None` if too many servers have
    /// a part.
    pub(crate) fn take(&mut self, server: PeerId, ask: &Ask) -> Option<[Lease; 2]> {
        let had = self.0.remove(&server).unwrap_or_default();
        self.make_room(ask)?;
        let limits = [ask.quota.day, ask.quota.month];
        let leases = [0, 1].map(|at| {
            let is_present = |part: &Part| part.period == ask.periods[at];
            let sum = |of: fn(&Part) -> u64| {
                let others = self.0.values().map(|parts| &parts[at]);
                let present = others.filter(|part| is_present(part));
                present.map(of).fold(0, u64::saturating_add)
            };
            let had = Some(had[at]).filter(is_present).unwrap_or_default();
            let elsewhere = sum(|part| part.leased);
            let spent = ask.spent[at].max(had.spent);
            let all = limits[at].unwrap_or(u64::MAX);
            let free = all.saturating_sub(elsewhere).saturating_sub(spent);
            let more = match (ask.rests, limits[at]) {
                (false, Some(_)) => (free / PART).max(slack(all)).min(free),
                _ => 0,
            };
            let mut bytes = spent.saturating_add(more);
            if !ask.rests {
                // The server may be spending what it had at this moment.
                bytes = bytes.max(had.leased);
            }
            let half = match ask.rests {
                true => slack(all) / 2,
                false => (bytes - spent) / 2,
            };
            Lease {
                bytes,
                ask_at: spent.saturating_add(half),
                spent,
                elsewhere,
                spent_elsewhere: sum(|part| part.spent),
            }
        });
        let parts = [0, 1].map(|at| Part {
            period: ask.periods[at],
            leased: leases[at].bytes,
            spent: leases[at].spent,
        });
        if parts.iter().any(|part| part.leased > 0) {
            self.0.insert(server, parts);
        }
        Some(leases)
    }

    /// Makes room for another server, in the place of one whose periods are over. Parts are not forgotten before,
    /// because the clock of the server that asks may be ahead.
    fn make_room(&mut self, ask: &Ask) -> Option<()> {
        if self.0.len() < MOST {
            return Some(());
        }
        let is_over = |parts: &[Part; 2]| (0..2).all(|at| parts[at].period < ask.periods[at]);
        let over = self.0.iter().filter(|(_, parts)| is_over(parts));
        let (oldest, _) = over.min_by_key(|(_, parts)| parts[0].period)?;
        let oldest = *oldest;
        self.0.remove(&oldest).map(drop)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let lease = |(server, parts): (&PeerId, &[Part; 2])| {
            let mut bytes = field(SERVER, &server.to_bytes());
            for (numbers, part) in NUMBERS.into_iter().zip(parts) {
                let values = [part.period, part.leased, part.spent];
                let fields = numbers.into_iter().zip(values);
                bytes.extend(fields.flat_map(|(tag, value)| [varint(tag), varint(value)].concat()));
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

fn decode_lease(mut rest: &[u8]) -> Option<(PeerId, [Part; 2])> {
    let (mut server, mut values) = (None, [[0; 3]; 2]);
    while !rest.is_empty() {
        let tag = take_varint(&mut rest)?;
        let known = NUMBERS
            .as_flattened()
            .iter()
            .position(|number| *number == tag);
        match known {
            Some(at) => values.as_flattened_mut()[at] = take_varint(&mut rest)?,
            None if tag == SERVER => server = PeerId::from_bytes(take_bytes(&mut rest)?).ok(),
            None => skip_field(tag, &mut rest)?,
        }
    }
    let parts = values.map(|[period, leased, spent]| Part {
        period,
        leased,
        spent,
    });
    Some((server?, parts))
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
            ..Lease::default()
        };
        assert_eq!(day, expected);
        assert_eq!(month.bytes, 0, "nothing limits the month");
        let [later, _] = Leases::default()
            .take(a, &ask(800 * MIB, 40 * MIB))
            .unwrap();
        assert_eq!((later.bytes, later.ask_at), (135 * MIB, 175 * MIB / 2));
        let [other, _] = leases.take(b, &ask(800 * MIB, 0)).unwrap();
        assert_eq!((other.bytes, other.elsewhere), (700 * MIB / 8, 100 * MIB));
        let resting = Ask {
            rests: true,
            ..ask(800 * MIB, 30 * MIB)
        };
        let [rest, _] = leases.take(a, &resting).unwrap();
        assert_eq!(rest.bytes, 30 * MIB);
        assert_eq!(rest.ask_at, rest.bytes + slack(800 * MIB) / 2);
        let [other, _] = leases.take(b, &ask(800 * MIB, 0)).unwrap();
        assert_eq!(other.bytes, 770 * MIB / 8, "more is free");
        assert_eq!(
            (other.elsewhere, other.spent_elsewhere),
            (30 * MIB, 30 * MIB)
        );
        let c = PeerId::random();
        let [small, _] = leases.take(c, &ask(129 * MIB, 0)).unwrap();
        assert_eq!(small.bytes, slack(129 * MIB));
        let nearly = 129 * MIB - other.bytes - 31 * MIB;
        let [last, _] = leases.take(c, &ask(129 * MIB, nearly)).unwrap();
        assert_eq!(last.bytes, nearly + MIB, "all that is left");
    }

    #[test]
    fn what_a_server_has_forgotten_it_hears_again() {
        let a = PeerId::random();
        let mut leases = Leases::default();
        let [before, _] = leases.take(a, &ask(800 * MIB, 100 * MIB)).unwrap();
        let [after, month] = leases.take(a, &ask(800 * MIB, 5)).unwrap();
        assert_eq!(after, before);
        assert_eq!((after.spent, month.spent), (100 * MIB, 100 * MIB));
        let next_day = Ask {
            periods: [8, 1],
            ..ask(800 * MIB, 5)
        };
        let [day, month] = leases.take(a, &next_day).unwrap();
        assert_eq!((day.spent, month.spent), (5, 100 * MIB));
    }

    #[test]
    fn another_period_begins_with_nothing_and_what_is_over_makes_room() {
        let [a, b] = [(); 2].map(|()| PeerId::random());
        let mut leases = Leases::default();
        leases.take(a, &ask(80 * MIB, 80 * MIB)).unwrap();
        let next_month = Ask {
            periods: [40, 2],
            ..ask(80 * MIB, 0)
        };
        let [day, _] = leases.take(b, &next_month).unwrap();
        assert_eq!((day.bytes, day.elsewhere), (10 * MIB, 0));
        let [late, _] = leases.take(PeerId::random(), &ask(80 * MIB, 1)).unwrap();
        assert_eq!(
            late.elsewhere,
            80 * MIB,
            "a clock that is ahead takes nothing away"
        );
        let small = Ask {
            periods: [40, 2],
            ..ask(1 << 50, 1)
        };
        while leases.0.len() < MOST {
            leases.take(PeerId::random(), &small).unwrap();
        }
        assert!(leases.encode().len() <= MAX_VALUE);
        for _ in 0..2 {
            leases.take(PeerId::random(), &small).unwrap();
        }
        assert!(!leases.0.contains_key(&a));
        assert_eq!(leases.take(a, &small), None);
        let none = Ask {
            rests: true,
            ..next_month
        };
        assert!(leases.take(b, &none).is_some(), "it has a part");
        assert_eq!(leases.0.len(), MOST - 1, "who has nothing needs no place");
    }

    #[test]
    fn a_value_has_the_documented_bytes() {
        let part = |period, leased, spent| Part {
            period,
            leased,
            spent,
        };
        let server = PeerId::random();
        let leases = Leases(BTreeMap::from([(server, [part(7, 5, 3), part(1, 4, 2)])]));
        let id = server.to_bytes();
        let numbers = [16, 7, 24, 5, 32, 3, 40, 1, 48, 4, 56, 2];
        let head = [10, 14 + id.len() as u8, 10, id.len() as u8];
        assert_eq!(leases.encode(), [&head[..], &id, &numbers].concat());
    }

    proptest! {
        /// However servers ask and carry, together they carry no more than the quota and the slack of each.
        #[test]
        fn servers_carry_no_more_than_the_quota_and_their_slack(
            asks in prop::collection::vec((0usize..4, 0u64..20 * MIB, any::<bool>()), 1..60),
        ) {
            let all = 100 * MIB;
            let servers = [(); 4].map(|()| PeerId::random());
            let mut leases = Leases::default();
            let (mut had, mut elsewhere, mut spent) = ([0u64; 4], [0u64; 4], [0u64; 4]);
            for (at, more, rests) in asks {
                let of_lease = (had[at] + slack(all)).saturating_sub(spent[at]);
                let of_quota = all.saturating_sub(spent[at] + elsewhere[at]);
                spent[at] += more.min(of_lease).min(of_quota);
                let ask = Ask { rests, ..ask(all, spent[at]) };
                let [day, _] = leases.take(servers[at], &ask).unwrap();
                prop_assert!(day.bytes >= spent[at] && day.ask_at >= spent[at]);
                prop_assert!(rests || day.bytes >= had[at]);
                (had[at], elsewhere[at]) = (day.bytes, day.elsewhere);
                prop_assert_eq!(day.elsewhere, had.iter().sum::<u64>() - had[at]);
                prop_assert!(spent.iter().sum::<u64>() <= all + 4 * slack(all));
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
