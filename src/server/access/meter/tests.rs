use std::time::UNIX_EPOCH;

use futures::FutureExt as _;
use libp2p::PeerId;

use super::*;
use crate::core::{allowance::DAY, lease::Leases};

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn daily(bytes: u64) -> Limits {
    let quota = Quota {
        day: Some(bytes),
        month: None,
    };
    Limits {
        quota: Some(quota),
        rate: None,
    }
}

fn meter(limits: Limits) -> Meter {
    Meter::new(limits, None, Arc::default())
}

fn of(
    meters: &mut Meters,
    payer: Payer,
    limits: Limits,
    time: SystemTime,
) -> Result<Arc<Meter>, Denial> {
    meters.of(payer, limits, (time, Instant::now()))
}

fn name(name: impl ToString) -> Payer {
    Payer::Name(name.to_string())
}

#[test]
fn a_quota_is_used_up_and_begins_anew() {
    let (meter, now) = (meter(daily(100)), Instant::now());
    assert_eq!(meter.carry_at(9, at(0), now), Ok(Duration::ZERO));
    assert_eq!(meter.check(at(5)), Ok(()));
    let last = meter.carry_at(100, at(5), now);
    assert_eq!(last, Ok(Duration::ZERO), "the last");
    let over = Denial::Quota(Duration::from_secs(DAY - 6));
    assert_eq!(meter.check(at(6)), Err(over));
    assert_eq!(meter.carry_at(1, at(6), now), Err(over));
    assert!(!meter.allows_at(at(6), now));
    assert_eq!(meter.check(at(DAY)), Ok(()));
}

#[test]
fn a_clock_that_goes_back_gives_no_quota_twice() {
    let mut meters = Meters::default();
    let meter = of(&mut meters, name("a"), daily(100), at(DAY)).unwrap();
    let now = Instant::now();
    meter.carry_at(100, at(DAY + 5), now).unwrap();
    let left = |seconds| Err(Denial::Quota(Duration::from_secs(seconds)));
    assert_eq!(meter.check(at(DAY - 10)), left(DAY + 10));
    assert_eq!(meter.check(at(DAY + 6)), left(DAY - 6));
    assert_eq!(meter.check(at(2 * DAY)), Ok(()), "the next day");
    meter.carry_at(100, at(9 * DAY), now).unwrap();
    for day in 1..10 {
        assert!(meter.check(at(day * DAY)).is_err(), "{day}");
    }
    // Somebody who comes then is on the same day.
    let other = of(&mut meters, name("b"), daily(100), at(DAY)).unwrap();
    other.carry_at(100, at(DAY), now).unwrap();
    assert!(other.check(at(9 * DAY)).is_err());
    let told = meters.due(at(DAY));
    assert_eq!(told.len(), 2);
    let ends = told.iter().map(|(_, left)| left.ends.as_secs());
    assert!(ends.into_iter().all(|ends| ends == 9 * DAY));
}

#[test]
fn a_rate_makes_bytes_wait_and_datagrams_pass_or_not() {
    let meter = Meter::of_rate(1000).unwrap();
    let now = Instant::now() + Duration::from_secs(9);
    let carry = |bytes, now| meter.carry_at(bytes, at(0), now).unwrap().as_millis();
    assert_eq!(carry(250, now), 0, "the burst");
    assert_eq!(carry(500, now), 0);
    assert!(!meter.allows_at(at(0), now + Duration::from_millis(499)));
    assert!(meter.allows_at(at(0), now + Duration::from_millis(500)));
    assert_eq!(carry(100, now), 500);
    assert_eq!(carry(1, now + Duration::from_millis(600)), 0);
    let later = now + Duration::from_secs(60);
    assert_eq!(carry(1000, later), 0, "no more than the burst is saved");
    assert_eq!(carry(1, later), 750);
    assert!(Meter::of_rate(0).is_none());
}

#[test]
fn payers_have_their_own_meters_and_unused_ones_make_room() {
    let mut meters = Meters::default();
    let used = of(&mut meters, name("a"), daily(1), at(0)).unwrap();
    used.carry_at(1, at(0), Instant::now()).unwrap();
    drop(used);
    for number in 1..MOST {
        of(&mut meters, name(number), daily(1), at(0)).unwrap();
    }
    let held = of(&mut meters, name("one more"), daily(1), at(0)).unwrap();
    assert_eq!(meters.all.len(), 2, "the used one and the new one");
    assert!(held.check(at(0)).is_ok());
    let used = of(&mut meters, name("a"), daily(2), at(0)).unwrap();
    assert_eq!(used.check(at(0)), Ok(()), "the quota has grown");
    let other = of(&mut meters, Payer::Peer("a".into()), daily(1), at(0)).unwrap();
    assert!(other.check(at(0)).is_ok(), "a peer is no name");
}

/// Each has used a little, so the first look finds none that is not needed.
#[test]
fn many_newcomers_make_all_meters_be_looked_at_once() {
    let (mut meters, now) = (Meters::default(), Instant::now());
    let come = |meters: &mut Meters, number: usize, now| {
        let meter = meters.of(name(number), daily(1000), (at(0), now))?;
        meter.carry_at(1 + number as u64 % 900, at(0), now)?;
        Ok::<_, Denial>(meter)
    };
    for number in 0..MOST {
        come(&mut meters, number, now).unwrap();
    }
    let arrival = |number: usize| now + Duration::from_micros(number as u64);
    for number in MOST..MOST + SPARE {
        come(&mut meters, number, arrival(number)).unwrap();
        assert_eq!(meters.looked, Some(arrival(MOST)));
    }
    assert_eq!(meters.all.len(), MOST);
    assert!(!meters.all.contains_key(&name(0)), "it used the least");
    assert!(meters.all.contains_key(&name(899)), "it used the most");
    let denied = come(&mut meters, MOST + SPARE, now + LOOK_EVERY).unwrap_err();
    assert_eq!(denied, Denial::Limit);
    come(&mut meters, MOST + SPARE, now + 2 * LOOK_EVERY).unwrap();
    assert_eq!(meters.spare.len(), SPARE - 1);
}

#[test]
fn what_was_carried_before_a_restart_counts() {
    let mut meters = Meters::default();
    let early = of(&mut meters, name("a"), daily(100), at(0)).unwrap();
    early.carry_at(10, at(0), Instant::now()).unwrap();
    let sums = [
        ((true, "a".into()), [85, 85]),
        ((false, "b".into()), [100, 100]),
    ];
    meters.follow(Before {
        sums: sums.into(),
        then: Duration::ZERO,
    });
    let told = meters.due(at(0));
    assert_eq!(told.len(), 1);
    assert_eq!((&told[0].0, told[0].1.left), (&name("a"), 5));
    assert!(meters.due(at(0)).is_empty(), "it was told");
    let payers = HashSet::from([name("a")]);
    let known = meters.known(&payers, at(0));
    assert_eq!(known.map(|left| left.left), Some(5));
    let late = of(&mut meters, Payer::Peer("b".into()), daily(100), at(1));
    assert!(late.unwrap().check(at(1)).is_err());
    let other = of(&mut meters, name("b"), daily(100), at(1)).unwrap();
    assert!(other.check(at(1)).is_ok(), "a name is no peer");
    let admitted = Payer::Admitted("b".into());
    let next_day = of(&mut meters, admitted, daily(100), at(DAY)).unwrap();
    assert!(next_day.check(at(DAY)).is_ok(), "that was yesterday");
}

#[test]
fn a_shared_quota_asks_once_for_a_lease_and_gives_the_rest_back() {
    const MIB: u64 = 1 << 20;
    let mut meters = Meters::default();
    let wants = meters.share();
    let meter = of(&mut meters, name("a"), daily(640 * MIB), at(0)).unwrap();
    let carry = |mib, seconds| meter.carry_at(mib * MIB, at(seconds), Instant::now());
    let asked = || wants.next().now_or_never().map_or(0, |payers| payers.len());
    assert!(carry(4, 0).is_ok());
    assert_eq!(asked(), 0, "that is next to nothing");
    for second in [0, 0, 1, 2] {
        assert!(carry(1, second).is_ok(), "there is the slack");
    }
    assert_eq!(asked(), 1, "however often it is wanted");
    assert!(carry(0, 3).is_ok());
    assert_eq!(asked(), 0, "it was asked for a moment ago");
    assert!(carry(0, 4).is_ok());
    assert_eq!(asked(), 1, "none has come for two seconds");
    let mut leases = Leases::default();
    let relay = PeerId::random();
    let mut give = |meters: &Meters, rests| {
        let ask = meters.ask(&name("a"), rests, at(2)).unwrap();
        let given = leases.take(relay, &ask).unwrap();
        meters.given(&name("a"), &ask, given);
        given[0].bytes / MIB
    };
    assert_eq!(give(&meters, false), 8 + 632 / 8);
    assert!(carry(30, 4).is_ok());
    assert_eq!(asked(), 0);
    assert_eq!(meters.resting(false), [], "it has carried something");
    assert_eq!(meters.resting(false), [name("a")]);
    assert_eq!(give(&meters, true), 38);
    assert_eq!(meters.resting(true), [], "it has given all back");
    assert!(carry(9, 4).is_ok(), "the slack is there again");
    assert_eq!(asked(), 1);
    assert!(carry(2, 4).is_ok(), "the last of it");
    assert!(carry(1, 4).is_err());
    assert!(meters.ask(&name("b"), false, at(2)).is_none());
}
