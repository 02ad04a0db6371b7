//! Users of the TURN server. Their names tell who was admitted, and by which token.

use std::{sync::Arc, time::SystemTime};

use libp2p::PeerId;

use super::{Access, Grant, Rule, meter::Meter};
use crate::{core::access::Denial, server::usage::Account};

/// The separator of a peer id and a token's id in the user names of TURN.
pub(super) const TURN_ID: char = '/';

impl Access {
    /// Returns the account of the user with this name at the TURN server. Credentials that the operator
    /// has made may name no peer.
    pub(crate) fn turn_account(&self, username: &str) -> Account {
        let (user, _) = turn_holder(username);
        match user.parse() {
            Ok(peer) => self.account(&peer),
            Err(_) => Account {
                token: String::new(),
                peer: format!("turn:{user}"),
            },
        }
    }

    /// Returns the name of `peer` in the user names of TURN. It tells what the peer was admitted by.
    pub(crate) fn turn_id(&self, peer: &PeerId, grant: &Grant) -> String {
        match &grant.id {
            Some(id) => format!("{peer}{TURN_ID}{id}"),
            None => peer.to_string(),
        }
    }

    /// Whether the user with this name at the TURN server, whose credentials are valid, was barred
    /// after it got them.
    pub(crate) fn bars_turn(&self, username: &str) -> bool {
        let (peer, token) = turn_holder(username);
        match &self.0.rule {
            Rule::Open | Rule::Hook(_) => false,
            // Other names are those of credentials that the operator has made.
            Rule::List(names) => peer.parse().is_ok_and(|peer| !names.hold(&peer)),
            Rule::Token(_, revoked) => revoked.hold(token),
        }
    }

    /// Returns what the user with this name at the TURN server was granted, and what counts the bytes
    /// that are relayed for it.
    ///
    /// # Errors
    /// What a token or the hook grants counts for peers whose link is up. So others get no new address,
    /// and none escapes its quota.
    pub(crate) fn turn_grant(&self, username: &str) -> Result<(Grant, Vec<Arc<Meter>>), Denial> {
        let grant = self.turn_holder_grant(username)?;
        let of_peer = self.peer_meter(&self.turn_account(username).peer, SystemTime::now())?;
        let meters = grant.meter.iter().cloned().chain(of_peer).collect();
        Ok((grant, meters))
    }

    fn turn_holder_grant(&self, username: &str) -> Result<Grant, Denial> {
        let (peer, token) = turn_holder(username);
        match (&self.0.rule, peer.parse::<PeerId>()) {
            (Rule::Token(..) | Rule::Hook(_), Ok(peer)) => {
                let grant = self.granted().get(&peer).cloned();
                let grant = grant.filter(|grant| grant.id.as_deref() == token && grant.has_turn());
                grant.ok_or(Denial::Access)
            }
            // Other names are those of credentials that the operator has made.
            _ => Ok(Grant::default()),
        }
    }
}

/// Returns the peer and the id of its token in the user name of TURN, if they stand there.
fn turn_holder(username: &str) -> (&str, Option<&str>) {
    let (_, id) = username.split_once(':').unwrap_or_default();
    match id.split_once(TURN_ID) {
        Some((peer, token)) => (peer, Some(token)),
        None => (id, None),
    }
}
