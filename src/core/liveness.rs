//! Whether a path is alive. Each path has its own [`Liveness`], on both ends.
//!
//! A path is judged by what it leaves unanswered, and not by how long it was silent. A probe asks
//! for an answer. While an application's bytes are under way, probes follow each other closely, so
//! that a path that dies is noticed within about a second. An idle path is probed now and then.
//! Every sign that the network has changed brings a probe at once.
//!
//! A path that leaves a probe unanswered is suspect. It is still asked, and counts as sound as soon
//! as it answers. A path that was suspect before has to be sound for some time until it is trusted
//! again, so that traffic does not flap between two paths.

use std::time::Duration;

use web_time::Instant;

use super::path::Standing;

/// How long the first answer may take. It includes the negotiation of the protocol, and the
/// round-trip time is not known yet.
const FIRST_PATIENCE: Duration = Duration::from_secs(3);
/// The longest time that an answer may take, however slow the path has been.
const MOST_PATIENCE: Duration = Duration::from_secs(5);
/// A suspect path that still does not answer after this time is given up.
const GIVE_UP: Duration = Duration::from_secs(10);
/// How often a busy path is probed, and a path with a probe under way is looked at, within the time
/// that an answer may take.
const CHECKS: u32 = 4;
/// How long a path that was suspect for the second time has to be sound until it is trusted. The time
/// doubles with each further time.
const FIRST_PENALTY: Duration = Duration::from_secs(1);
/// The longest such time.
const MOST_PENALTY: Duration = Duration::from_secs(60);
/// A path that was trusted for this long starts without a record.
const FORGIVEN: Duration = Duration::from_secs(60);

/// A sign that paths may have changed. Each path is probed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hint {
    /// The network may be another one, so what has failed before may work now.
    Network,
    /// The system has no way to some address.
    #[allow(dead_code, reason = "a page sends no packets itself")]
    Unreachable,
}

/// How a path is to be probed: a method of [`Liveness`].
pub(crate) type Probe = fn(&mut Liveness, Instant);

impl Hint {
    /// Returns how a path is to be probed.
    pub(crate) fn probes(self) -> Probe {
        match self {
            Self::Network => Liveness::hint,
            // Most such addresses are candidates that were never of use, so silence means no more
            // than at other times.
            Self::Unreachable => Liveness::probe,
        }
    }
}

/// How paths are probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Probing {
    /// The pause between two probes of an idle path.
    pub(crate) idle: Duration,
    /// The shortest time after which a path that leaves a probe unanswered is suspect.
    pub(crate) patience: Duration,
}

/// The steps that are to be taken now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Send a probe. It replaces one that is under way.
    pub(crate) probe: bool,
    /// The answer takes long. It is time to probe what may have ended with the path.
    pub(crate) late: bool,
    /// Whether the path is trusted has changed.
    pub(crate) changed: bool,
    /// The path is dead.
    pub(crate) dead: bool,
}

/// The state of one path. See the module's documentation.
#[derive(Clone, Debug)]
pub(crate) struct Liveness {
    probing: Probing,
    /// The smoothed round-trip time, and how much it varies (RFC 6298).
    rtt: Option<(Duration, Duration)>,
    /// Whether that time is of the first answer, which the negotiation of the protocol delays.
    rough: bool,
    /// Since when an answer is missing, and nothing else has come over the path.
    asked: Option<Instant>,
    /// Whether a second probe was sent, because the answer took long.
    asked_again: bool,
    /// Whether the network has changed since the last answer. Then silence means more, and the path
    /// is suspect sooner.
    hinted: bool,
    /// The last count of what the streams have received, and when it was taken.
    heard: u32,
    checked: Instant,
    /// The pause until the probe after the next one. It doubles up to that of an idle path, because a
    /// path that has just been in use is likely to be used again.
    pause: Duration,
    /// When the next probe is due, if none is under way. It is `None` if the peer answers none.
    next: Option<Instant>,
    /// Since when the path has been suspect.
    suspect: Option<Instant>,
    /// How often the path was suspect, and since when it has been sound.
    failures: u32,
    sound_since: Instant,
    /// Whether the path counted as trusted when somebody last asked.
    trusted: bool,
}

impl Liveness {
    /// Makes the state of a path that came up at `now`. Its first probe is due at once.
    pub(crate) fn new(now: Instant, probing: Probing) -> Self {
        Self {
            probing,
            rtt: None,
            rough: false,
            asked: None,
            asked_again: false,
            hinted: false,
            heard: 0,
            checked: now,
            pause: probing.idle,
            next: Some(now),
            suspect: None,
            failures: 0,
            sound_since: now,
            trusted: true,
        }
    }

    /// Returns how long an answer may take: three probe timeouts (RFC 9002 section 6.2.1), within
    /// bounds.
    fn patience(&self) -> Duration {
        let Some(timeouts) = self.timeouts() else {
            return FIRST_PATIENCE.max(self.probing.patience);
        };
        let least = match self.hinted {
            true => self.probing.patience / CHECKS,
            false => self.probing.patience,
        };
        timeouts.clamp(least, MOST_PATIENCE.max(least))
    }

    /// Returns three probe timeouts, once a round-trip time is known.
    pub(crate) fn timeouts(&self) -> Option<Duration> {
        let (smoothed, variation) = self.rtt?;
        Some((smoothed + variation * 4) * 3)
    }

    /// Returns the time until which the path is not trusted although it is sound.
    fn trusted_from(&self) -> Instant {
        let penalty = match self.failures {
            0 | 1 => Duration::ZERO,
            n => FIRST_PENALTY * (1 << (n - 2).min(6)),
        };
        self.sound_since + penalty.min(MOST_PENALTY)
    }

    pub(crate) fn standing(&self) -> Standing {
        match (self.is_suspect(), self.trusted) {
            (true, _) => Standing::Suspect,
            (false, true) => Standing::Trusted,
            (false, false) => Standing::Sound,
        }
    }

    /// Whether an answer has been missing for too long.
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.is_some()
    }

    /// Whether the path is sound, and has been for long enough.
    pub(crate) fn is_trusted(&self) -> bool {
        self.trusted
    }

    /// When [`tick`](Self::tick) is due next.
    pub(crate) fn wake(&self) -> Option<Instant> {
        let trusted = self.suspect.is_none() && !self.trusted;
        let trusted = trusted.then(|| self.trusted_from());
        let given_up = self.suspect.map(|since| since + GIVE_UP);
        let probe = match self.asked {
            Some(_) if given_up.is_some() => None,
            Some(asked) => {
                let patience = self.patience();
                Some((asked + patience).min(self.checked + patience / CHECKS))
            }
            None => self.next,
        };
        [trusted, given_up, probe].into_iter().flatten().min()
    }

    /// Notes that time has passed. `heard` counts what the application's streams have received over
    /// the path. Only a count that has grown tells of news.
    pub(crate) fn tick(&mut self, now: Instant, heard: u32) -> Verdict {
        self.checked = now;
        let news = heard > std::mem::replace(&mut self.heard, heard);
        if news && self.suspect.is_none() && self.asked.is_some() {
            // The answer is behind other bytes. As long as these arrive, the path is alive.
            self.asked = Some(now);
        }
        let (mut probe, mut late) = (false, false);
        if let Some(asked) = self.asked
            && self.suspect.is_none()
            && now >= asked + self.patience()
        {
            self.fail(now);
            probe = true;
        }
        match self.asked {
            None if self.next.is_some_and(|next| now >= next) => {
                self.asked = Some(now);
                self.asked_again = false;
                probe = true;
            }
            // Stock peers over QUIC look for a second probe on a stream only when something else
            // happens on the connection. Each further probe has a stream of its own.
            Some(asked) if !self.asked_again && now >= asked + self.patience() / 2 => {
                self.asked_again = true;
                (probe, late) = (true, true);
            }
            _ => {}
        }
        let dead = self.suspect.is_some_and(|since| now >= since + GIVE_UP);
        Verdict {
            probe,
            late,
            changed: self.judge(now),
            dead,
        }
    }

    /// Notes that bytes are sent on the path, so that the next probe is due soon. The caller has to
    /// note this again after each answer.
    pub(crate) fn busy(&mut self, now: Instant) {
        self.pause = self.probing.idle.min(self.patience() / CHECKS);
        let soon = now + self.pause;
        self.next = self.next.map(|next| next.min(soon));
    }

    /// Notes that the path may have changed, so that a probe is due at once.
    pub(crate) fn hint(&mut self, now: Instant) {
        self.probe(now);
        self.hinted = true;
    }

    /// Notes that a probe is due at once. A path that is suspect is asked anew, because the transport
    /// repeats what was lost only after ever longer pauses.
    pub(crate) fn probe(&mut self, now: Instant) {
        self.next = self.next.map(|_| now);
        if self.is_suspect() {
            self.asked = None;
        }
    }

    /// Returns for how long the path has been suspect.
    #[cfg_attr(not(feature = "server"), allow(dead_code, reason = "a server's"))]
    pub(crate) fn suspect_for(&self, now: Instant) -> Option<Duration> {
        Some(now.saturating_duration_since(self.suspect?))
    }

    /// Notes that the peer doubts the path.
    pub(crate) fn doubt(&mut self, now: Instant) -> Verdict {
        if self.suspect.is_some() || self.next.is_none() {
            return Verdict::default();
        }
        self.asked.get_or_insert(now);
        self.fail(now);
        Verdict {
            probe: true,
            changed: self.judge(now),
            ..Verdict::default()
        }
    }

    fn fail(&mut self, now: Instant) {
        if now >= self.trusted_from() + FORGIVEN {
            self.failures = 0;
        }
        self.failures += 1;
        self.suspect = Some(now);
    }

    /// Notes that the answer to a probe has come, `rtt` after the probe was sent.
    pub(crate) fn answered(&mut self, now: Instant, rtt: Duration) -> Verdict {
        let is_first = self.rtt.is_none();
        let was_rough = std::mem::replace(&mut self.rough, is_first);
        let known = self.rtt.filter(|_| !was_rough);
        let (smoothed, variation) = known.unwrap_or((rtt, rtt / 2));
        self.rtt = Some((
            (smoothed * 7 + rtt) / 8,
            (variation * 3 + smoothed.abs_diff(rtt)) / 4,
        ));
        self.asked = None;
        self.hinted = false;
        // The second probe follows at once, so that a path that dies young is noticed in time.
        self.next = Some(if is_first { now } else { now + self.pause });
        self.pause = (self.pause * 2).min(self.probing.idle);
        if self.suspect.take().is_some() {
            self.sound_since = now;
        }
        Verdict {
            changed: self.judge(now),
            ..Verdict::default()
        }
    }

    /// Forgets the answer that is missing. The path counts as sound, and is probed again later.
    pub(crate) fn excuse(&mut self, now: Instant) {
        self.asked = None;
        self.suspect = None;
        self.failures = 0;
        self.trusted = true;
        self.next = Some(now + self.probing.idle);
    }

    /// Notes that the peer does not answer probes. The path is not judged any more.
    pub(crate) fn mute(&mut self) {
        self.asked = None;
        self.suspect = None;
        self.trusted = true;
        self.next = None;
    }

    fn judge(&mut self, now: Instant) -> bool {
        let trusted = self.suspect.is_none() && now >= self.trusted_from();
        std::mem::replace(&mut self.trusted, trusted) != trusted
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PROBING: Probing = Probing {
        idle: Duration::from_secs(5),
        patience: Duration::from_secs(1),
    };

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A path with a round-trip time of 20 ms whose second probe was answered, and when that was, less
    /// the round-trip time.
    fn path() -> (Liveness, Instant) {
        let mut start = Instant::now();
        let mut path = Liveness::new(start, PROBING);
        for rtt in [ms(200), ms(20)] {
            start = path.wake().unwrap();
            assert!(path.tick(start, 0).probe);
            assert_eq!(path.answered(start + rtt, rtt), Verdict::default());
        }
        (path, start)
    }

    /// Lets time pass until the path is suspect. Returns when that is.
    fn until_suspect(path: &mut Liveness, from: Instant) -> Instant {
        let mut now = from;
        while !path.is_suspect() {
            now = path.wake().unwrap().max(now);
            path.tick(now, 0);
        }
        now
    }

    #[test]
    fn an_idle_path_is_probed_now_and_then() {
        let (mut path, start) = path();
        assert_eq!(path.wake().unwrap(), start + ms(5_020));
        assert!(path.tick(start + ms(5_020), 0).probe);
        assert_eq!(path.suspect_for(start), None);
        let suspect = until_suspect(&mut path, start);
        assert_eq!(suspect, start + ms(6_020));
        assert_eq!(path.suspect_for(suspect + ms(7)), Some(ms(7)));
    }

    #[test]
    fn a_busy_path_that_dies_is_suspect_within_a_quarter_and_a_third() {
        let (mut path, start) = path();
        path.busy(start + ms(1_000));
        let suspect = until_suspect(&mut path, start + ms(1_000));
        assert!(suspect <= start + ms(2_250));
        assert!(!path.is_trusted());
    }

    #[test]
    fn a_path_that_falls_idle_is_probed_less_and_less() {
        let (mut path, start) = path();
        path.busy(start + ms(20));
        let mut pauses = Vec::new();
        let mut last = start + ms(20);
        for _ in 0..7 {
            let now = path.wake().unwrap();
            assert!(path.tick(now, 0).probe);
            pauses.push((now - last).as_millis());
            path.answered(now, ms(20));
            last = now;
        }
        assert_eq!(pauses, [250, 250, 500, 1_000, 2_000, 4_000, 5_000]);
    }

    #[test]
    fn a_change_of_the_network_brings_a_probe_at_once() {
        let (mut path, start) = path();
        path.hint(start + ms(1_000));
        assert!(path.tick(path.wake().unwrap(), 0).probe);
        // Each answer took 20 ms, so 250 ms are long.
        assert_eq!(
            until_suspect(&mut path, start + ms(1_000)),
            start + ms(1_250)
        );
    }

    /// The first answer includes the negotiation of the protocol, so it says little of later ones.
    #[test]
    fn a_young_path_is_suspect_as_soon_as_any_other() {
        let start = Instant::now();
        let mut path = Liveness::new(start, PROBING);
        assert!(path.tick(start, 0).probe);
        path.answered(start + ms(400), ms(400));
        assert!(path.tick(path.wake().unwrap(), 0).probe);
        path.answered(start + ms(450), ms(50));
        assert_eq!(path.wake().unwrap(), start + ms(5_450));
        path.hint(start + ms(1_000));
        let suspect = until_suspect(&mut path, start + ms(1_000));
        assert!(suspect <= start + ms(1_400));
    }

    #[test]
    fn a_slow_path_has_more_time() {
        let (mut path, start) = path();
        for n in 1..20 {
            path.answered(start + ms(10_000 * n), ms(800));
        }
        let asked = path.wake().unwrap();
        assert!(until_suspect(&mut path, asked) >= asked + ms(2_400));
        for n in 20..40 {
            path.answered(start + ms(10_000 * n), ms(9_000));
        }
        assert_eq!(path.patience(), MOST_PATIENCE);
    }

    #[test]
    fn an_answer_behind_other_bytes_is_waited_for() {
        let (mut path, start) = path();
        path.busy(start);
        assert!(path.tick(start + ms(250), 0).probe);
        for quarter in 1..40 {
            let verdict = path.tick(start + ms(250 + 240 * quarter), quarter as u32);
            assert!(!verdict.changed);
        }
        let silent = start + ms(250 + 240 * 39);
        while path.is_trusted() {
            path.tick(path.wake().unwrap(), 39);
        }
        assert_eq!(path.suspect, Some(silent + ms(1_000)));
    }

    #[test]
    fn a_path_that_answers_again_is_trusted_later_each_time() {
        let (mut path, start) = path();
        let mut now = start + ms(20);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            path.hint(now);
            now = until_suspect(&mut path, now);
            now += ms(10);
            let answered = now;
            if !path.answered(now, ms(20)).changed {
                while !path.tick(now, 0).changed {
                    now = path.wake().unwrap();
                    if path.asked.is_some() {
                        path.answered(now, ms(20));
                    }
                }
            }
            pauses.push((now - answered).as_secs());
        }
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }

    #[test]
    fn a_path_that_was_trusted_for_long_starts_without_a_record() {
        let (mut path, start) = path();
        let mut now = start + ms(20);
        for _ in 0..3 {
            path.hint(now);
            now = until_suspect(&mut path, now);
            path.answered(now, ms(20));
        }
        assert!(!path.is_trusted());
        now = path.trusted_from() + FORGIVEN;
        assert!(path.tick(now, 0).changed);
        path.hint(now);
        now = until_suspect(&mut path, now);
        assert!(path.answered(now, ms(20)).changed && path.is_trusted());
    }

    #[test]
    fn a_suspect_path_is_asked_anew_when_the_network_changes() {
        let (mut path, start) = path();
        path.hint(start + ms(1_000));
        let suspect = until_suspect(&mut path, start + ms(1_000));
        let back = suspect + ms(3_000);
        assert!(!path.tick(back, 0).probe, "it was asked already");
        path.hint(back);
        assert_eq!(path.wake().unwrap(), back);
        assert!(path.tick(back, 0).probe && path.is_suspect());
        assert_eq!(path.wake().unwrap(), suspect + GIVE_UP);
        assert!(path.answered(back + ms(20), ms(20)).changed && path.is_trusted());
    }

    #[test]
    fn a_path_that_does_not_come_back_is_dead() {
        let (mut path, start) = path();
        path.hint(start + ms(1_000));
        let suspect = until_suspect(&mut path, start + ms(1_000));
        assert_eq!(path.wake().unwrap(), suspect + GIVE_UP);
        assert!(path.tick(path.wake().unwrap(), 0).dead);
    }

    #[test]
    fn a_path_that_the_peer_doubts_is_suspect_until_it_answers() {
        let (mut path, start) = path();
        let verdict = path.doubt(start + ms(500));
        assert!(verdict.probe && verdict.changed && !path.is_trusted());
        assert!(path.answered(start + ms(520), ms(20)).changed && path.is_trusted());
    }

    #[test]
    fn a_path_that_is_excused_is_sound_until_its_next_probe_fails() {
        let (mut path, start) = path();
        path.hint(start);
        let suspect = until_suspect(&mut path, start);
        path.excuse(suspect);
        assert!(path.is_trusted() && !path.is_suspect());
        assert_eq!(path.wake().unwrap(), suspect + PROBING.idle);
    }

    #[test]
    fn a_peer_that_answers_no_probes_is_left_in_peace() {
        let start = Instant::now();
        let mut path = Liveness::new(start, PROBING);
        path.tick(start, 0);
        path.mute();
        assert_eq!(path.wake(), None);
        assert!(path.is_trusted());
    }

    proptest! {
        /// Whatever happens, a path that answers each probe at once is never suspect, and one that
        /// answers none is suspect in time.
        #[test]
        fn only_silence_makes_a_path_suspect(
            steps in prop::collection::vec((1u64..3_000, any::<bool>(), any::<bool>()), 1..100),
        ) {
            let (mut alive, start) = path();
            let mut silent = alive.clone();
            let mut now = start + ms(20);
            for (pause, busy, hint) in steps {
                now += ms(pause);
                if hint {
                    alive.hint(now);
                }
                if busy {
                    alive.busy(now);
                }
                if alive.tick(now, 0).probe {
                    alive.answered(now, ms(20));
                }
                prop_assert!(alive.is_trusted());
                silent.tick(now, 0);
            }
            let limit = start + ms(20) + PROBING.idle + PROBING.patience + ms(3_000);
            prop_assert!(now < limit || !silent.is_trusted());
        }
    }
}
