//! The relays that are known, from the configuration or from tickets.
//!
//! - `links`: the connections to relays.
//! - `directory`: what the directories of relays know of us.
//! - `drains`: relays that are about to end.
//! - `reservations`: which relays hold a reservation for us.
//! - `access`: the token for relays that admit only some peers, and what admitted peers get.
//! - `sites`: what relays say of themselves.
//! - `spares`: when spare circuits start.
//!
//! Events of the swarm and of timers come in through methods of [`Relays`], which push effects.
//! Sessions only read the relays, and take and leave places in [`Spares`]. A session that needs a
//! link waits in its relay's list, and gets the answer as an effect.

mod access;
mod directory;
mod drains;
mod links;
mod reservations;
mod sites;
mod spares;

use std::{collections::HashMap, sync::Arc, time::Duration};

use libp2p::{Multiaddr, PeerId, swarm::ConnectionId};
use web_time::Instant;

use self::{
    access::RelayAccess,
    directory::RelayDirectory,
    sites::{KnownSite, Sites},
};
pub(super) use self::{
    access::Wishes,
    sites::{SiteId, Sought},
    spares::Spares,
};
use super::{session::keep_newest, timers::Alarm};
use crate::{
    core::{
        backoff::Backoff, liveness::Liveness, loss::Loss, offer, pace::Pace,
        profile::MAX_ADDRESSES, reservation::Refusal,
    },
    datagrams::Lane,
    error::ErrorKind,
    report::RelayReport,
    stream::SessionId,
    ticket::relay_id,
};

/// The pause after a relay's first failure.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// The longest pause.
const RETRY_MOST: Duration = Duration::from_secs(30);
/// How many pauses are no longer than [`EAGER_MOST`]. They take about 35 s together. A relay that is
/// restarted meanwhile is found again within two seconds.
const EAGER: u32 = 20;
/// The pause after a relay has said that it does not admit us. Only its operator or another token can
/// change that.
const BARRED: Duration = Duration::from_secs(5 * 60);
/// The longest pause while our quota is used up. The operator may raise it.
const MOST_BARRED: Duration = Duration::from_secs(60 * 60);
/// A link that was up for this long and is lost is made anew without a pause.
const SETTLED: Duration = Duration::from_secs(5);
/// See [`EAGER`].
const EAGER_MOST: Duration = Duration::from_millis(1600);
/// How often a relay may say at once what is left of a quota. After that, it is once a second.
const NOTICES: u32 = 4;
/// The most sites that a user names.
const MAX_SITES: usize = 16;

/// Everything that we have with one relay.
pub(crate) struct Relay {
    /// Whether the user configured the relay. No other relay may hold our reservation.
    pub(crate) configured: bool,
    /// Where it stands among the user's relays.
    rank: usize,
    /// The addresses that the user has given. Each ends in `/p2p/<relay>`.
    given: Vec<Multiaddr>,
    /// These, and those that the relay or a ticket has told.
    pub(crate) addresses: Vec<Multiaddr>,
    /// The addresses that the relay announced with the reservation. They go into the ticket.
    pub(crate) announced: Vec<Multiaddr>,
    pub(crate) link: RelayLink,
    pub(crate) reservation: Reservation,
    /// When the reservation was granted or renewed last, and when it is renewed next.
    granted: Option<Instant>,
    renewal: Alarm,
    /// Why the relay has refused the last reservation, if it did.
    refused: Option<Refusal>,
    access: RelayAccess,
    directory: RelayDirectory,
    /// Its clones count the circuits that the relay brings and that the transport has not accepted.
    arriving: Arc<()>,
    pub(crate) last_error: Option<String>,
    pub(crate) rtt: Option<Duration>,
    /// When the link came up. If it is down, when the last one came up.
    up_since: Option<Instant>,
    /// The liveness of the link, if that is up.
    liveness: Option<Liveness>,
    /// The lane of the link, which counts sent and lost packets if the transport can.
    lane: Option<Arc<Lane>>,
    loss: Loss,
    /// Whether another link is being dialled, because this one is suspect.
    replacing: bool,
    /// When the relays are told the time next for `liveness`.
    alarm: Alarm,
    /// Whether the relay forwards early data on circuits, and sealed offers. The relay itself has
    /// said so by identify, or a ticket has and the relay has not said anything yet.
    pub(crate) forwards: bool,
    /// Whether the relay has said what it serves.
    identified: bool,
    /// Bounds how fast the relay may bring sealed offers.
    pub(crate) offers: Pace,
    /// Bounds how often the relay may say what is left of a quota.
    notices: Pace,
    /// Whether it has said over this link that it is about to end.
    has_told: bool,
    /// Whether it is about to end, and another relay takes its place.
    leaving: bool,
    /// The relays that it has named in its place.
    successors: Vec<Multiaddr>,
    /// Whether a relay that was about to end has named it, and not the user.
    is_successor: bool,
    /// The sessions that wait for the link, to dial a circuit.
    waiting: Vec<SessionId>,
    pub(crate) backoff: Backoff,
    /// Whether the pause after a failure is not over yet.
    pub(crate) resting: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum RelayLink {
    Down,
    Dialling(ConnectionId),
    /// The link is up. The address is where the relay was reached, and ends in `/p2p/<relay>`.
    Up(ConnectionId, Multiaddr),
}

/// A reservation, from the request to its end. Renewals do not change the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReservationId(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reservation {
    None,
    Requested(ReservationId),
    Held(ReservationId),
}

impl Reservation {
    pub(crate) fn id(self) -> Option<ReservationId> {
        match self {
            Self::None => None,
            Self::Requested(id) | Self::Held(id) => Some(id),
        }
    }
}

impl Relay {
    fn new(configured: bool) -> Self {
        Self {
            configured,
            rank: usize::MAX,
            given: Vec::new(),
            addresses: Vec::new(),
            announced: Vec::new(),
            link: RelayLink::Down,
            reservation: Reservation::None,
            granted: None,
            renewal: Alarm::default(),
            refused: None,
            access: RelayAccess::default(),
            directory: RelayDirectory::default(),
            arriving: Arc::default(),
            last_error: None,
            rtt: None,
            up_since: None,
            liveness: None,
            lane: None,
            loss: Loss::default(),
            replacing: false,
            alarm: Alarm::default(),
            forwards: false,
            identified: false,
            offers: Pace::new(offer::PER_SECOND, offer::AT_ONCE),
            notices: Pace::new(1, NOTICES),
            has_told: false,
            leaving: false,
            successors: Vec::new(),
            is_successor: false,
            waiting: Vec::new(),
            backoff: Backoff::new(RETRY_FIRST, RETRY_MOST),
            resting: false,
        }
    }

    /// Whether `conn` is the link to this relay.
    fn is_linked_by(&self, conn: ConnectionId) -> bool {
        matches!(&self.link, RelayLink::Up(id, _) if *id == conn)
    }

    /// Whether it does not serve us, although it works and has room.
    fn is_barred(&self) -> bool {
        let refused = self.refused;
        refused.is_some_and(|refused| refused.kind != ErrorKind::LimitExceeded)
    }

    fn is_pursued(&self) -> bool {
        self.reservation != Reservation::None || matches!(self.link, RelayLink::Dialling(_))
    }
}

/// All relays that are known, in the user's order.
pub(crate) struct Relays {
    /// This peer, which is no relay of its own.
    local: PeerId,
    order: Vec<PeerId>,
    known: HashMap<PeerId, Relay>,
    sites: Sites,
    /// How many relays are to hold a reservation at a time.
    wanted: usize,
    wishes: Wishes,
    /// How long a relay may take to grant a reservation.
    patience: Duration,
    /// How many reservations were asked for.
    requests: u64,
    /// Returns a number that is uniform in `0.0..1.0`, for jitter.
    random: fn() -> f64,
    begun: Instant,
}

impl Relays {
    /// Makes the relays of the peer `local`. Each address in `configured` ends in `/p2p/<relay>`. Up to
    /// `wanted` relays are to hold a reservation at a time, and each has `patience` to grant it.
    pub(crate) fn new(
        local: PeerId,
        configured: &[Multiaddr],
        wanted: usize,
        patience: Duration,
        random: fn() -> f64,
    ) -> Self {
        let mut relays = Self {
            local,
            order: Vec::new(),
            known: HashMap::new(),
            sites: Sites::default(),
            wanted,
            wishes: Wishes::default(),
            patience,
            requests: 0,
            random,
            begun: Instant::now(),
        };
        for (at, address) in configured.iter().enumerate() {
            if let Some(peer) = relay_id(address) {
                relays.learn(peer, address, true);
                if let Some(relay) = relays.get_mut(&peer) {
                    relay.given.clone_from(&relay.addresses);
                    relay.rank = relay.rank.min(rank(at));
                }
            }
        }
        relays
    }

    /// A ticket says that `peer` forwards. If the link is up, what the relay says itself counts.
    pub(crate) fn trust(&mut self, peer: &PeerId) {
        if let Some(relay) = self.known.get_mut(peer)
            && !matches!(relay.link, RelayLink::Up(..))
        {
            relay.forwards = true;
        }
    }

    /// Notes an address of a relay. A configured relay is dialled again and again, so a ticket adds
    /// no address to it. For any other relay, the newest addresses are kept, so that an older
    /// ticket does not hide them.
    pub(crate) fn learn(&mut self, peer: PeerId, address: &Multiaddr, configured: bool) {
        if peer == self.local && !configured {
            return;
        }
        let relay = self.entry(peer, configured);
        if relay.configured == configured {
            keep_newest(&mut relay.addresses, address.clone(), MAX_ADDRESSES);
        }
    }

    fn entry(&mut self, peer: PeerId, configured: bool) -> &mut Relay {
        self.known.entry(peer).or_insert_with(|| {
            self.order.push(peer);
            Relay::new(configured)
        })
    }

    pub(crate) fn get_mut(&mut self, peer: &PeerId) -> Option<&mut Relay> {
        self.known.get_mut(peer)
    }

    pub(crate) fn get(&self, peer: &PeerId) -> Option<&Relay> {
        self.known.get(peer)
    }

    /// Returns the relays to reserve on next. They are the first configured relays that are neither
    /// pursued nor resting, and as many as are missing from `wanted`.
    pub(crate) fn to_pursue(&self) -> Vec<PeerId> {
        let configured = || self.order.iter().filter(|p| self.known[*p].configured);
        let counts = |relay: &Relay| relay.is_pursued() && !relay.is_leaving();
        let pursued = configured().filter(|p| counts(&self.known[*p])).count();
        configured()
            .filter(|p| !self.known[*p].is_pursued() && !self.known[*p].resting)
            .filter(|p| !self.known[*p].is_leaving())
            .take(self.wanted.saturating_sub(pursued))
            .copied()
            .collect()
    }

    /// Returns the relays whose links are up.
    pub(crate) fn linked(&self) -> Vec<PeerId> {
        let up = |(_, relay): &(&PeerId, &Relay)| matches!(relay.link, RelayLink::Up(..));
        self.known
            .iter()
            .filter(up)
            .map(|(peer, _)| *peer)
            .collect()
    }

    /// Whether fewer relays than wanted hold a reservation or are asked for one.
    pub(crate) fn wants_more(&self) -> bool {
        let reserved = |r: &&Relay| r.reservation != Reservation::None && !r.is_leaving();
        self.known.values().filter(reserved).count() < self.wanted
    }

    /// Whether every configured relay has failed and rests, and no site brings another one, so that waiting for a first reservation
    /// is in vain.
    pub(crate) fn all_failed(&self) -> bool {
        let mut configured = self.known.values().filter(|r| r.configured);
        configured.all(|r| r.resting && !r.is_pursued()) && self.sites.have_failed()
    }

    /// Returns why the first of the relays that have failed has refused a reservation. Returns `None`
    /// if one of them has failed otherwise.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        let mut first = None;
        if self.sites.of_user().any(KnownSite::is_unknown) {
            return None;
        }
        for peer in &self.order {
            let relay = &self.known[peer];
            if relay.configured && relay.resting {
                let refused = relay.refused?;
                first = first.or(Some(refused));
            }
        }
        first
    }

    pub(crate) fn held(&self) -> usize {
        let held = |r: &&Relay| matches!(r.reservation, Reservation::Held(_));
        self.known.values().filter(held).count()
    }

    /// Whether a relay holds a reservation, and whether each that does has said what it serves. If
    /// one has not, a ticket lacks what it says about the relays.
    pub(crate) fn are_known(&self) -> bool {
        let held = |relay: &&Relay| matches!(relay.reservation, Reservation::Held(_));
        self.held() > 0
            && self
                .known
                .values()
                .filter(held)
                .all(|relay| relay.identified)
    }

    /// Returns the addresses of the relays that hold a reservation, and whether all of these relays
    /// forward early data. A relay that is about to end is among them only if there is no other.
    pub(crate) fn for_ticket(&self) -> (Vec<Multiaddr>, bool) {
        let known = self.order.iter().map(|peer| &self.known[peer]);
        let held = |relay: &&Relay| matches!(relay.reservation, Reservation::Held(_));
        let lasting = self.has_lasting();
        let held = known.filter(held);
        let held: Vec<_> = held.filter(|relay| !lasting || !relay.leaving).collect();
        let forwarding = held.iter().all(|relay| relay.forwards);
        let addresses = held.into_iter().flat_map(|relay| &relay.announced);
        (addresses.cloned().collect(), forwarding)
    }

    pub(crate) fn errors(&self) -> Vec<String> {
        let of_sites = self.sites.of_user().filter_map(|site| {
            let (name, _, error) = site.told();
            Some(format!("relay {name}: {}", error?))
        });
        let of_relays = self.order.iter().filter_map(|peer| {
            let error = self.known[peer].last_error.as_ref()?;
            Some(format!("relay {peer}: {error}"))
        });
        of_sites.chain(of_relays).collect()
    }

    pub(crate) fn report(&self) -> Vec<RelayReport> {
        let unknown = self.sites.of_user().map(KnownSite::told);
        let unknown = unknown.filter(|(_, is_known, _)| !is_known);
        let unknown = unknown.map(|(name, _, error)| RelayReport {
            name: Some(name),
            last_error: error,
            ..RelayReport::default()
        });
        let known = self.order.iter().map(|peer| {
            let relay = &self.known[peer];
            RelayReport {
                peer_id: peer.to_string(),
                name: self.sites.name_of(peer),
                connected: matches!(relay.link, RelayLink::Up(..)),
                reserved: matches!(relay.reservation, Reservation::Held(_)),
                forwards: relay.forwards,
                last_error: relay.last_error.clone(),
                rtt: relay.rtt,
            }
        });
        known.chain(unknown).collect()
    }
}

/// The rank of the configured address at this place. There is room before it for every site.
fn rank(at: usize) -> usize {
    at * (MAX_SITES + 1) + MAX_SITES
}

/// The rank of the site that stands at this place among the sites, behind so many addresses.
pub(super) fn rank_of_site(addresses: usize, at: usize) -> usize {
    addresses * (MAX_SITES + 1) + at.min(MAX_SITES - 1)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::node) fn peers(n: usize) -> Vec<PeerId> {
        (0..n).map(|_| PeerId::random()).collect()
    }

    pub(in crate::node) fn configured(peers: &[PeerId], wanted: usize) -> Relays {
        let addresses: Vec<_> = peers
            .iter()
            .map(|p| format!("/ip4/192.0.2.1/tcp/1/p2p/{p}").parse().unwrap())
            .collect();
        Relays::new(
            PeerId::random(),
            &addresses,
            wanted,
            Duration::from_secs(10),
            || 0.5,
        )
    }

    #[test]
    fn the_first_relays_are_pursued_and_a_standby_replaces_one_that_fails() {
        let peers = peers(3);
        let mut relays = configured(&peers, 2);
        assert_eq!(relays.to_pursue(), peers[..2]);
        relays.get_mut(&peers[0]).unwrap().reservation = Reservation::Held(ReservationId(1));
        relays.get_mut(&peers[1]).unwrap().resting = true;
        assert_eq!(relays.to_pursue(), peers[2..]);
        relays.get_mut(&peers[2]).unwrap().link =
            RelayLink::Dialling(ConnectionId::new_unchecked(1));
        assert!(relays.to_pursue().is_empty());
        assert!(!relays.all_failed());
    }

    #[test]
    fn waiting_ends_only_when_all_relays_have_failed() {
        let peers = peers(2);
        let mut relays = configured(&peers, 1);
        for peer in &peers {
            assert!(!relays.all_failed());
            relays.get_mut(peer).unwrap().resting = true;
        }
        assert!(relays.all_failed());
    }

    #[test]
    fn a_ticket_adds_no_address_to_a_configured_relay() {
        let peers = peers(1);
        let mut relays = configured(&peers, 1);
        let aimed = |port: usize| format!("/ip4/192.0.2.9/tcp/{port}/p2p/{}", peers[0]);
        relays.learn(peers[0], &aimed(1).parse().unwrap(), false);
        assert_eq!(relays.get(&peers[0]).unwrap().addresses.len(), 1);
        let mut foreign = configured(&[], 1);
        for port in 1..=MAX_ADDRESSES + 1 {
            foreign.learn(peers[0], &aimed(port).parse().unwrap(), false);
        }
        let known = &foreign.get(&peers[0]).unwrap().addresses;
        assert_eq!(known.len(), MAX_ADDRESSES);
        assert_eq!(known.last().unwrap().to_string(), aimed(MAX_ADDRESSES + 1));
    }

    #[test]
    fn relays_of_tickets_are_not_reserved_on() {
        let mut relays = configured(&[], 2);
        let foreign = PeerId::random();
        relays.learn(foreign, &"/ip4/192.0.2.1/tcp/1".parse().unwrap(), false);
        assert!(relays.to_pursue().is_empty());
    }
}
