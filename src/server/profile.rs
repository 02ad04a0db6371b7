//! What this server says of itself, over HTTP and over the links of peers.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use libp2p::PeerId;
use tokio::sync::watch;

use super::{fleet::Sisters, settings::Settings, turn::Authority};
use crate::core::profile::{MAX_ADDRESSES, Profile, Turn};

/// How long the credentials last that a visitor gets. A page may be open for long before it connects.
const CREDENTIALS: Duration = Duration::from_secs(24 * 60 * 60);

/// The TURN server, as it is told.
#[derive(Clone)]
pub(crate) struct TurnProfile {
    pub(crate) urls: Vec<String>,
    /// What credentials are made from, if everybody gets some.
    pub(crate) authority: Option<Arc<Authority>>,
}

/// Makes the profile of this server. Clones make the same one.
#[derive(Clone)]
pub(crate) struct Profiles {
    pub(crate) peer: PeerId,
    /// The addresses of the relay, which may change while it serves.
    pub(crate) addresses: watch::Receiver<Vec<String>>,
    pub(crate) stun: Vec<String>,
    pub(crate) turn: Option<TurnProfile>,
    pub(crate) protocols: Vec<String>,
    pub(crate) settings: Settings,
    pub(super) sisters: Sisters,
}

impl Profiles {
    /// The profile as everybody gets it.
    pub(crate) fn public(&self) -> Profile {
        let turn = self.turn.iter().map(|turn| Turn {
            urls: turn.urls.clone(),
            ..Turn::default()
        });
        let addresses = self.addresses.borrow();
        Profile {
            addresses: addresses.iter().take(MAX_ADDRESSES).cloned().collect(),
            stun: self.stun.clone(),
            turn: turn.collect(),
            protocols: self.protocols.clone(),
            sisters: self.sisters(),
            ..Profile::new(self.peer)
        }
    }

    /// The other relays of the operator that go on: those of the configuration, or else those of the fleet.
    fn sisters(&self) -> Vec<String> {
        // Validation of the configuration has already refused texts that are no addresses.
        let configured = self.settings.now().successors().unwrap_or_default();
        let sisters = self.sisters.successors(configured, Instant::now());
        sisters.iter().map(ToString::to_string).collect()
    }

    /// The profile for a visitor at `source`. If the server is open to everybody, it has fresh
    /// credentials, whose user is always the same: what it holds on the TURN server counts for one,
    /// however often it asks here.
    pub(crate) fn of_visitor(&self, source: IpAddr) -> Profile {
        let mut profile = self.public();
        let authority = self.turn.as_ref().and_then(|turn| turn.authority.as_ref());
        if let Some(authority) = authority {
            let id = authority.page_user(source);
            let issued = authority.issue(&id, CREDENTIALS, SystemTime::now());
            for turn in &mut profile.turn {
                turn.username.clone_from(&issued.username);
                turn.credential.clone_from(&issued.credential);
            }
        }
        profile
    }
}
