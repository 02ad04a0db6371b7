//! Who may use the server: everybody, the peers of a list, the holders of the operator's tokens, or
//! whom the operator's own program admits.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `messages` | the relay's end of `/throughline/access/1` |
//! | `names` | files of peers that are admitted, and of tokens that are revoked |
//! | `revoked` | the tokens that do not count any more, here and at other servers |
//! | `token` | tokens: how they are made and checked |
//! | `hook`, `answers` | questions to the operator's program, and its answers |
//! | `quotas` | whose quota counts what |
//! | `meter`, `amount` | quotas and rates |
//! | `turn` | users of the TURN server |

mod amount;
mod answers;
mod hook;
pub(crate) mod messages;
mod meter;
mod names;
mod quotas;
mod revoked;
mod token;
mod turn;

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use futures::{FutureExt as _, future::BoxFuture};
use libp2p::PeerId;
use tokio::time;

pub(crate) use self::revoked::Revoked;
pub use self::token::{NewToken, TokenKey};
pub(crate) use self::{
    amount::quota,
    meter::{Before, Limits, Meter, Payer},
    quotas::Sharing,
};
use self::{
    answers::{Answer, Question},
    hook::{Asked, Hook},
    meter::Meters,
    names::Names,
    token::Verifier,
};
use super::{
    config::{AccessConfig, AccessMode},
    pool::{Pools, Refusals},
    settings::Settings,
    usage::{Account, Calendar},
};
use crate::{
    core::access::Denial,
    error::{Error, ErrorKind},
};

/// How often files are looked at, and how often what has ended is removed.
const SWEEP: Duration = Duration::from_secs(1);

/// What a peer asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum What {
    Reservation,
    Circuit,
    Offer,
    Turn,
}

impl What {
    /// The word that the hook reads.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Reservation => "reservation",
            Self::Circuit => "circuit",
            Self::Offer => "offer",
            Self::Turn => "turn",
        }
    }
}

/// What a peer that is admitted has. It has no `Debug`, because the token is a secret.
#[derive(Clone, Default)]
pub(crate) struct Grant {
    /// The end of its admission, if that has one.
    pub(crate) ends: Option<SystemTime>,
    /// Counts what is carried for it, if that is limited.
    pub(crate) meter: Option<Arc<Meter>>,
    /// The id of its token, if it has one.
    id: Option<String>,
    /// The name in its token, or the one that the hook gave it. It is empty without a name.
    name: String,
    /// The token that the hook was shown. It is shown again when the peer asks for more.
    shown: Option<Arc<str>>,
    /// A digest of the token that was verified, so that it need not be again.
    verified: Option<Digest>,
    /// Whether it gets no credentials for TURN.
    no_turn: bool,
}

/// What tells tokens apart, without the tokens. Nobody else knows the keys.
type Digest = [u64; 2];

impl Grant {
    /// Whether the peer gets credentials for TURN.
    pub(crate) fn has_turn(&self) -> bool {
        !self.no_turn
    }

    /// Returns how long the admission lasts, if it has an end.
    pub(crate) fn lasts(&self) -> Option<Duration> {
        let left = |ends: SystemTime| ends.duration_since(SystemTime::now()).unwrap_or_default();
        self.ends.map(left)
    }
}

/// Whether a peer is admitted.
pub(crate) type Verdict = Result<Grant, Denial>;

/// A verdict, or a task that gets it.
pub(crate) enum Judgement {
    Now(Verdict),
    Later(BoxFuture<'static, Verdict>),
}

/// The rules of a server. Clones share them.
#[derive(Clone)]
pub(crate) struct Access(Arc<Inner>);

struct Inner {
    rule: Rule,
    /// Whether diallers have to be admitted, too.
    dialers: bool,
    refusals: Refusals,
    settings: Settings,
    /// What connected peers were granted by a token or by the hook.
    granted: Mutex<HashMap<PeerId, Grant>>,
    meters: Mutex<Meters>,
    digests: [RandomState; 2],
}

enum Rule {
    Open,
    List(Names<PeerId>),
    Token(Verifier, Revoked),
    Hook(Arc<Hook>),
}

impl Access {
    /// Reads the files that `config` names. `relay` is the server's own id, and quotas count by the
    /// days of `calendar`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] if a file, a key or a URL cannot be used.
    pub(crate) fn new(
        config: &AccessConfig,
        pools: &Pools,
        calendar: Calendar,
        relay: PeerId,
    ) -> Result<Self, Error> {
        let rule = match config.mode() {
            AccessMode::Open => Rule::Open,
            AccessMode::List => {
                let file = config.list.as_deref();
                let file = file.ok_or_else(|| missing("list", "a file of peer ids"))?;
                Rule::List(Names::load("access.list", file, |name| name.parse().ok())?)
            }
            AccessMode::Token => {
                if config.keys.is_empty() {
                    return Err(missing("keys", "what `throughline token key` prints"));
                }
                let revoked = Revoked::new(config.revoked.as_deref())?;
                Rule::Token(Verifier::new(&config.keys, relay)?, revoked)
            }
            AccessMode::Hook => Rule::Hook(Arc::new(Hook::new(&config.hook, pools)?)),
        };
        Ok(Self(Arc::new(Inner {
            rule,
            dialers: config.dialers,
            refusals: pools.refusals.clone(),
            settings: pools.settings.clone(),
            granted: Mutex::default(),
            meters: Mutex::new(Meters::new(calendar)),
            digests: Default::default(),
        })))
    }

    /// The rules of a server that is open to everybody.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn open(pools: &Pools) -> Self {
        Self(Arc::new(Inner {
            rule: Rule::Open,
            dialers: false,
            refusals: pools.refusals.clone(),
            settings: pools.settings.clone(),
            granted: Mutex::default(),
            meters: Mutex::default(),
            digests: Default::default(),
        }))
    }

    /// Whether everybody may use the server.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.0.rule, Rule::Open)
    }

    /// Whether a dialler has to be admitted itself. Otherwise it is enough that the peer is that it
    /// wants to reach.
    pub(crate) fn is_for_dialers(&self) -> bool {
        self.0.dialers && !self.is_open()
    }

    fn granted(&self) -> MutexGuard<'_, HashMap<PeerId, Grant>> {
        lock(&self.0.granted)
    }

    /// Whether an answer to `peer` with this token costs no signature.
    pub(crate) fn is_verified(&self, peer: &PeerId, token: Option<&str>) -> bool {
        let Some(token) = token.filter(|_| matches!(self.0.rule, Rule::Token(..))) else {
            return true;
        };
        let granted = self.granted();
        let verified = granted.get(peer).and_then(|grant| grant.verified);
        verified == Some(self.digest(token))
    }

    fn digest(&self, token: &str) -> Digest {
        self.0
            .digests
            .each_ref()
            .map(|digest| digest.hash_one(token))
    }

    /// Decides whether `peer`, which comes from `from`, may have what it asks for, and credentials for
    /// TURN, too, if it wants them.
    pub(crate) fn judge(
        &self,
        peer: PeerId,
        from: Option<IpAddr>,
        token: Option<&str>,
        (what, turn): (What, bool),
    ) -> Judgement {
        self.judge_at(peer, from, token, (what, turn), SystemTime::now())
    }

    fn judge_at(
        &self,
        peer: PeerId,
        from: Option<IpAddr>,
        token: Option<&str>,
        (what, turn): (What, bool),
        now: SystemTime,
    ) -> Judgement {
        if matches!(what, What::Reservation | What::Turn)
            && let Err(denial) = self.peer_meter(&peer.to_string(), now)
        {
            return Judgement::Now(Err(self.refuse(denial, "quota", from)));
        }
        let verdict = match &self.0.rule {
            Rule::Open => Ok(Grant::default()),
            Rule::List(names) if names.hold(&peer) => Ok(Grant::default()),
            Rule::List(_) => Err((Denial::Access, "unlisted")),
            Rule::Token(verifier, revoked) => match token {
                Some(token) if !self.is_verified(&peer, Some(token)) => {
                    self.present(verifier, revoked, token, peer, now)
                }
                _ => self.standing(revoked, &peer, now),
            },
            Rule::Hook(hook) => {
                let before = || self.granted().get(&peer)?.shown.clone();
                let question = Question {
                    peer,
                    address: from,
                    token: token.map(Arc::from).or_else(before),
                    what,
                    turn,
                };
                return match hook.ask(question.clone()) {
                    Asked::Known(answer) => Judgement::Now(self.take(question, answer, now)),
                    Asked::Under(answer) => {
                        let this = self.clone();
                        let verdict = async move {
                            let answer = answer.await;
                            this.take(question, answer, SystemTime::now())
                        };
                        Judgement::Later(verdict.boxed())
                    }
                };
            }
        };
        Judgement::Now(verdict.map_err(|(denial, why)| self.refuse(denial, why, from)))
    }

    fn refuse(&self, denial: Denial, why: &'static str, from: Option<IpAddr>) -> Denial {
        self.0.refusals.tell("access", why, from);
        denial
    }

    /// What a peer was granted before.
    fn standing(
        &self,
        revoked: &Revoked,
        peer: &PeerId,
        now: SystemTime,
    ) -> Result<Grant, (Denial, &'static str)> {
        let grant = self.granted().get(peer).cloned();
        let grant = grant.ok_or((Denial::Access, "no_token"))?;
        let fault = if grant.ends.is_some_and(|ends| ends <= now) {
            token::Fault::Expired
        } else if revoked.hold(grant.id.as_deref()) {
            token::Fault::Revoked
        } else {
            let meter = grant.meter.iter().try_for_each(|meter| meter.check(now));
            return meter.map(|()| grant).map_err(|denial| (denial, "quota"));
        };
        Err((Denial::Access, fault.name()))
    }

    /// A peer shows a token. What it had before does not count any more, unless there is no room at the
    /// moment.
    fn present(
        &self,
        verifier: &Verifier,
        revoked: &Revoked,
        token: &str,
        peer: PeerId,
        now: SystemTime,
    ) -> Result<Grant, (Denial, &'static str)> {
        let claims = verifier.verify(token, peer, now);
        let claims = claims.and_then(|claims| match revoked.hold(claims.id.as_deref()) {
            true => Err(token::Fault::Revoked),
            false => Ok(claims),
        });
        let checked = claims.map_err(|fault| (Denial::Access, fault.name()));
        let checked = checked.and_then(|claims| {
            let payer = Payer::Name(claims.name.clone());
            let meter = self.meter(payer, claims.limits, now);
            let meter = meter.map_err(|denial| (denial, "quota"))?;
            Ok((claims, meter))
        });
        let (claims, meter) = checked.inspect_err(|(denial, _)| {
            if *denial != Denial::Limit {
                self.granted().remove(&peer);
            }
        })?;
        let grant = Grant {
            ends: Some(claims.ends),
            meter,
            id: claims.id,
            name: claims.name,
            verified: Some(self.digest(token)),
            ..Grant::default()
        };
        self.granted().insert(peer, grant.clone());
        Ok(grant)
    }

    /// Takes the answer of the hook about a peer. If the peer may not reserve, it may nothing.
    fn take(&self, question: Question, answer: Answer, now: SystemTime) -> Verdict {
        let Question {
            peer,
            address,
            token,
            what,
            ..
        } = question;
        let verdict = match answer {
            Answer::Deny(denial) => Err((denial, "hook")),
            Answer::Allow { name, limits, turn } => {
                let payer = match &name {
                    Some(name) => Payer::Name(name.clone()),
                    None => Payer::Admitted(peer.to_string()),
                };
                let meter = self.meter(payer, limits, now);
                let meter = meter.map_err(|denial| (denial, "quota"));
                meter.map(|meter| (meter, name.unwrap_or_default(), turn))
            }
        };
        match verdict {
            Ok((meter, name, turn)) => {
                let grant = Grant {
                    meter,
                    name,
                    no_turn: !turn,
                    shown: token,
                    ..Grant::default()
                };
                self.granted().insert(peer, grant.clone());
                Ok(grant)
            }
            Err((denial, why)) => {
                // A hook that cannot be asked, or has no room, has not changed its mind.
                if what == What::Reservation && denial != Denial::Limit {
                    self.granted().remove(&peer);
                }
                Err(self.refuse(denial, why, address))
            }
        }
    }

    /// Returns the account of `peer` in the record of usage, with the name in its token.
    pub(crate) fn account(&self, peer: &PeerId) -> Account {
        let granted = self.granted();
        let name = granted.get(peer).map(|grant| grant.name.clone());
        Account {
            token: name.unwrap_or_default(),
            peer: peer.to_string(),
        }
    }

    /// Returns the peers that were granted something.
    pub(crate) fn peers(&self) -> Vec<PeerId> {
        self.granted().keys().copied().collect()
    }

    /// The last connection of a peer has ended.
    pub(crate) fn forget(&self, peer: &PeerId) {
        self.granted().remove(peer);
    }

    /// Whether `peer`, which was admitted, still is. The answer of a hook counts until the peer
    /// asks for something again.
    pub(crate) fn still_admits(&self, peer: &PeerId) -> bool {
        self.still_admits_at(peer, SystemTime::now())
    }

    fn still_admits_at(&self, peer: &PeerId, now: SystemTime) -> bool {
        match &self.0.rule {
            Rule::Open => true,
            Rule::List(names) => names.hold(peer),
            Rule::Token(_, revoked) => {
                let grant = self.granted().get(peer).cloned();
                grant.is_some_and(|grant| {
                    let ended = grant.ends.is_some_and(|ends| ends <= now);
                    !ended && !revoked.hold(grant.id.as_deref())
                })
            }
            Rule::Hook(_) => self.granted().contains_key(peer),
        }
    }

    /// Returns the tokens that do not count any more, if there are tokens.
    pub(crate) fn revoked(&self) -> Option<Revoked> {
        match &self.0.rule {
            Rule::Token(_, revoked) => Some(revoked.clone()),
            _ => None,
        }
    }

    /// Has the files read anew, although they may look the same. They are read within a second.
    pub(crate) fn reload(&self) {
        match &self.0.rule {
            Rule::List(names) => names.file.renew(),
            Rule::Token(_, revoked) => revoked.renew(),
            _ => {}
        }
    }

    /// Keeps up with the files, and removes what has ended. It never returns.
    pub(crate) async fn keep(self) {
        let mut sweep = time::interval(SWEEP);
        sweep.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
        loop {
            sweep.tick().await;
            match &self.0.rule {
                Rule::List(names) => names.follow().await,
                Rule::Token(_, revoked) => revoked.follow().await,
                Rule::Hook(hook) => hook.sweep(Instant::now()),
                _ => {}
            }
        }
    }
}

fn missing(field: &str, what: &str) -> Error {
    let message = format!("access.{field}: access.mode needs {what} here");
    Error::new(ErrorKind::InvalidConfig, message)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What it holds is consistent after every call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
