//! The sites of relays: what each relay says of itself, over https or over its link.
//!
//! A site is asked when the connector starts, when what it said has grown old, when its relay is not
//! reached, and when the network may be another one. What is known stays until there is something
//! newer, so nothing waits for a site that is known.

use std::time::Duration;

use libp2p::{Multiaddr, PeerId, StreamProtocol};
use web_time::Instant;

use super::{RETRY_FIRST, RETRY_MOST, Relay, RelayLink, Relays};
use crate::{
    core::{
        backoff::Backoff,
        pace::Pace,
        profile::{self, Learnt, MAX_ADDRESSES},
        site::{By, Fault, Site},
    },
    node::{
        effect::{Effect, Effects},
        network::Purpose,
        timers::{Alarm, Timer},
    },
    stream::SessionId,
    webrtc::IceServer,
};

/// The shortest pause between two questions to a site that is known.
const SOONEST: Duration = Duration::from_secs(5);
/// The most sites that strangers have named.
const MAX_FOREIGN: usize = 32;
/// How often strangers may make us ask a site that is not known: a number at once, and a rate.
const FOREIGN: (u32, u32) = (8, 1);

/// What is known of a site that a ticket names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node) enum Sought {
    /// This relay is there.
    Known(PeerId),
    /// The site is being asked.
    Asked,
    /// It is not known, and it is not asked now.
    Nowhere,
}

/// Names a site in effects and timers. Numbers are not used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SiteId(u32);

/// A site, and what is known of it.
pub(super) struct KnownSite {
    id: SiteId,
    site: Site,
    by: By,
    /// Where its relay stands among those of the user.
    rank: usize,
    /// The relay that is there, if that is known.
    peer: Option<PeerId>,
    asking: bool,
    asked: Option<Instant>,
    /// Why it was not learnt the last time, if it was not.
    fault: Option<Fault>,
    backoff: Backoff,
    alarm: Alarm,
    /// The sessions that wait to learn what is there.
    waiting: Vec<SessionId>,
}

/// All sites.
pub(super) struct Sites {
    known: Vec<KnownSite>,
    next: u32,
    start: Instant,
    foreign: Pace,
}

impl Default for Sites {
    fn default() -> Self {
        let (burst, rate) = FOREIGN;
        Self {
            known: Vec::new(),
            next: 0,
            start: Instant::now(),
            foreign: Pace::new(rate, burst),
        }
    }
}

impl Sites {
    fn add(&mut self, site: Site, by: By, rank: usize) -> &mut KnownSite {
        let id = SiteId(self.next);
        self.next += 1;
        self.known.push(KnownSite {
            id,
            site,
            by,
            rank,
            peer: None,
            asking: false,
            asked: None,
            fault: None,
            backoff: Backoff::new(RETRY_FIRST, RETRY_MOST),
            alarm: Alarm::default(),
            waiting: Vec::new(),
        });
        let at = self.known.len() - 1;
        &mut self.known[at]
    }

    /// Makes room for a site that a stranger has named. One where no relay is known goes first. Returns
    /// `None` if all are being asked.
    fn add_foreign(&mut self, site: &Site) -> Option<&mut KnownSite> {
        let of_foreign = |known: &KnownSite| known.by == By::Stranger;
        let all = self.known.iter().filter(|known| of_foreign(known));
        if all.count() >= MAX_FOREIGN {
            let free = |known: &KnownSite| of_foreign(known) && !known.asking;
            let empty = |known: &KnownSite| free(known) && known.peer.is_none();
            let place = self.known.iter().position(empty);
            let place = place.or_else(|| self.known.iter().position(free))?;
            self.known.remove(place);
        }
        Some(self.add(site.clone(), By::Stranger, usize::MAX))
    }

    fn get_mut(&mut self, id: SiteId) -> Option<&mut KnownSite> {
        self.known.iter_mut().find(|known| known.id == id)
    }

    /// The sites that the user has named.
    pub(super) fn of_user(&self) -> impl Iterator<Item = &KnownSite> {
        self.known.iter().filter(|known| known.by == By::User)
    }

    /// Whether no site of the user can still bring a relay for now.
    pub(super) fn have_failed(&self) -> bool {
        self.of_user()
            .all(|known| known.peer.is_some() || known.is_unknown())
    }

    /// The text by which the user has named a relay, if it was by a site.
    pub(super) fn name_of(&self, peer: &PeerId) -> Option<String> {
        let named = self.of_user().find(|known| known.peer == Some(*peer));
        named.map(|known| known.site.to_string())
    }
}

impl KnownSite {
    /// Whether it is not known what is there, and nobody is asking.
    pub(super) fn is_unknown(&self) -> bool {
        self.peer.is_none() && !self.asking && self.fault.is_some()
    }

    /// The text that names it, whether its relay is known, and why it was not learnt the last time.
    pub(super) fn told(&self) -> (String, bool, Option<String>) {
        let fault = self.fault.as_ref();
        let fault = fault.map(|fault| format!("{}: {fault}", self.site.url()));
        (self.site.to_string(), self.peer.is_some(), fault)
    }

    fn ask(&mut self, effects: &mut Effects) {
        if !self.asking {
            self.asking = true;
            self.asked = Some(Instant::now());
            effects.push(Effect::AskSite(self.id, self.site.clone(), self.by));
        }
    }

    /// Asks anew, unless that was done a moment ago.
    fn doubt(&mut self, effects: &mut Effects) {
        let passed = self.asked.map(|asked| asked.elapsed());
        if passed.is_none_or(|passed| passed >= SOONEST) {
            self.ask(effects);
        }
    }

    fn ask_after(&mut self, pause: Duration, effects: &mut Effects) {
        let now = Instant::now();
        if let Some(pause) = self.alarm.set(Some(now + pause), now) {
            effects.push(Effect::After(pause, Timer::Site(self.id)));
        }
    }
}

impl Relays {
    /// Asks `sites` of the user for their relays, of which each has a rank among all relays.
    pub(crate) fn named(&mut self, sites: Vec<(usize, Site)>, effects: &mut Effects) {
        for (rank, site) in sites {
            self.sites.add(site, By::User, rank).ask(effects);
        }
    }

    /// Returns the relay at a site that a ticket names, if it is known. If the site is asked, the session is
    /// told what came of it, by [`Effect::Found`]. Strangers can make us ask few sites, and never one that
    /// [`Site::check`] refuses.
    pub(in crate::node) fn seek(
        &mut self,
        site: &Site,
        session: SessionId,
        effects: &mut Effects,
    ) -> Sought {
        let at = self
            .sites
            .known
            .iter()
            .position(|known| known.site == *site);
        // The addresses of a relay that no session uses any more are forgotten.
        let is_there = |peer: &PeerId| self.known.contains_key(peer);
        let known = at.map(|at| &self.sites.known[at]);
        let peer = known.and_then(|known| known.peer).filter(is_there);
        let is_old = |known: &KnownSite| {
            let age = known.asked.map(|asked| asked.elapsed());
            age.is_none_or(|age| age >= profile::MAX_AGE)
        };
        // A relay of the user is asked by a clock of its own, but a call that needs it does not wait for
        // that.
        let due = known.is_none_or(|known| {
            let by_clock = known.by == By::User && peer.is_some();
            !known.asking && !by_clock && (peer.is_none() || is_old(known))
        });
        let pays = known.is_none_or(|known| known.by == By::Stranger);
        if due && pays {
            let now = self.sites.start.elapsed();
            if self.sites.foreign.take(now, 1, Duration::ZERO).is_none() {
                return peer.map_or(Sought::Nowhere, Sought::Known);
            }
        }
        let known = match at {
            Some(at) => self.sites.known.get_mut(at),
            None => self.sites.add_foreign(site),
        };
        let Some(known) = known else {
            return Sought::Nowhere;
        };
        if due {
            known.ask(effects);
        }
        if peer.is_none() && known.asking {
            known.waiting.push(session);
            return Sought::Asked;
        }
        peer.map_or(Sought::Nowhere, Sought::Known)
    }

    /// A site has answered, or has not.
    pub(in crate::node) fn on_site(
        &mut self,
        id: SiteId,
        answer: Result<Learnt, Fault>,
        effects: &mut Effects,
    ) {
        let (random, local) = ((self.random)(), self.local);
        // Whoever says that it is this peer has not proved it.
        let answer = answer.and_then(|learnt| match learnt.peer == local {
            true => Err(Fault::WrongPeer(local)),
            false => Ok(learnt),
        });
        let Some(known) = self.sites.get_mut(id) else {
            return;
        };
        known.asking = false;
        let is_users = known.by == By::User;
        let waiting = std::mem::take(&mut known.waiting);
        match answer {
            Err(fault) => {
                tracing::debug!(site = %known.site, %fault, "a site says nothing");
                known.fault = Some(fault);
                let pause = known.backoff.fail(random);
                // What is known stays. A stranger's site is asked when it is needed.
                if is_users {
                    known.ask_after(pause, effects);
                }
                let told = waiting.into_iter();
                told.for_each(|session| effects.push(Effect::Found(session, None)));
            }
            Ok(learnt) => {
                known.fault = None;
                known.backoff.reset();
                let (peer, rank) = (learnt.peer, known.rank);
                let is_pinned = known.site.pin == Some(peer);
                let before = known.peer.replace(peer).filter(|before| *before != peer);
                if is_users {
                    let pause = learnt.age.mul_f64(0.75 + random / 4.0);
                    known.ask_after(pause, effects);
                    if let Some(before) = before {
                        self.drop_named(before, effects);
                    }
                    // A site may not speak for a relay that the user has named otherwise.
                    if is_pinned || !self.is_of_another(id, peer) {
                        self.take_named(learnt, rank, effects);
                    }
                } else {
                    for address in &learnt.addresses {
                        self.learn(peer, address, false);
                    }
                }
                for session in waiting {
                    effects.push(Effect::Found(session, Some(peer)));
                }
            }
        }
        effects.push(Effect::StatusChanged);
        if is_users {
            self.pursue(effects);
            if self.all_failed() {
                effects.push(Effect::NoRelay);
            }
        }
    }

    /// It is time to ask a site again.
    pub(in crate::node) fn on_site_due(&mut self, id: SiteId, effects: &mut Effects) {
        if let Some(known) = self.sites.get_mut(id)
            && known.alarm.rings(Instant::now())
        {
            known.ask(effects);
        }
    }

    /// What the user's sites have said may no longer be true: all of it, or where this relay is.
    pub(super) fn doubt_sites(&mut self, of: Option<PeerId>, effects: &mut Effects) {
        let sites = self
            .sites
            .known
            .iter_mut()
            .filter(|known| known.by == By::User);
        for known in sites.filter(|known| of.is_none() || known.peer == of) {
            known.doubt(effects);
        }
    }

    /// Whether the user has named this relay by a multiaddress, or by another site than this one.
    fn is_of_another(&self, id: SiteId, peer: PeerId) -> bool {
        let mut others = self.sites.of_user().filter(|other| other.id != id);
        others.any(|other| other.site.pin == Some(peer) || other.peer == Some(peer))
            || self.get(&peer).is_some_and(|relay| !relay.given.is_empty())
    }

    /// A relay that the user has named by a site says where it is, and what its servers are.
    fn take_named(&mut self, learnt: Learnt, rank: usize, effects: &mut Effects) {
        let Learnt {
            peer,
            addresses,
            stun,
            turn,
            ..
        } = learnt;
        let relay = self.entry(peer, true);
        relay.configured = true;
        relay.is_successor = false;
        relay.rank = relay.rank.min(rank);
        if relay.take_addresses(addresses) {
            // It has moved, so its failures at the old place do not count.
            relay.backoff.reset();
            relay.resting &= relay.is_barred();
        }
        let rank = relay.rank;
        self.order.retain(|known| *known != peer);
        let later = |known: &PeerId| self.known[known].rank > rank;
        let at = self.order.iter().position(later);
        self.order.insert(at.unwrap_or(self.order.len()), peer);
        let turn = turn.map(|turn| IceServer {
            urls: turn.urls,
            username: Some(turn.username),
            credential: Some(turn.credential),
        });
        effects.push(Effect::UseServers(peer, stun, turn));
    }

    /// Another relay is at the site where this one was.
    fn drop_named(&mut self, peer: PeerId, effects: &mut Effects) {
        if self.sites.of_user().any(|known| known.peer == Some(peer)) {
            return;
        }
        effects.push(Effect::ForgetServers(peer));
        let relay = self.get_mut(&peer);
        if let Some(relay) = relay.filter(|relay| relay.given.is_empty()) {
            relay.configured = false;
            relay.rank = usize::MAX;
            relay.forget_reservation(effects);
            effects.push(Effect::ReleaseRelays);
        }
    }

    /// Asks a relay of the user over its link what it says of itself, if the user has not named it by a
    /// site.
    pub(super) fn ask_profile(&self, peer: PeerId, names: bool, effects: &mut Effects) {
        let named = self.sites.of_user().any(|known| known.peer == Some(peer));
        let relay = self
            .get(&peer)
            .filter(|relay| relay.is_users() && !named && names);
        if let Some(RelayLink::Up(connection, _)) = relay.map(|relay| &relay.link) {
            effects.push(Effect::Open {
                peer,
                connection: *connection,
                protocol: StreamProtocol::new(profile::PROTOCOL),
                purpose: Purpose::Profile(peer),
            });
        }
    }

    /// A relay has said over its link what it is.
    pub(in crate::node) fn on_profile(
        &mut self,
        peer: PeerId,
        learnt: Learnt,
        effects: &mut Effects,
    ) {
        let relay = self.get_mut(&peer);
        if let Some(relay) = relay.filter(|relay| relay.is_users() && learnt.peer == peer) {
            relay.take_addresses(learnt.addresses);
            effects.push(Effect::UseServers(peer, learnt.stun, None));
        }
    }
}

impl Relay {
    /// Replaces the addresses that the relay has told. Those that the user has given stay. Returns
    /// whether this changed any.
    fn take_addresses(&mut self, told: Vec<Multiaddr>) -> bool {
        let before = std::mem::replace(&mut self.addresses, self.given.clone());
        for address in told {
            if self.addresses.len() < MAX_ADDRESSES && !self.addresses.contains(&address) {
                self.addresses.push(address);
            }
        }
        before != self.addresses
    }
}

#[cfg(test)]
mod tests;
