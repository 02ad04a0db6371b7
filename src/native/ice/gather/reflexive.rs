//! Server-reflexive candidates. All STUN servers are asked at once and again and again, which keeps
//! the addresses current and the mappings alive.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{FusedStream as _, FuturesUnordered},
};
use libp2p::PeerId;
use tokio::{
    net::lookup_host,
    sync::{Notify, watch},
    time::{self, MissedTickBehavior},
};

use super::{Gathered, LocalCandidate, Origin, Settings};
use crate::{
    core::{
        dial::Policy,
        nat::{self, NatFiltering, Verdict},
    },
    native::{
        ice::stun::{Answer, StunClient, StunError, discovery},
        udp::Sockets,
    },
    report::{NatReport, StunReport},
};

/// How often each STUN server is asked again. The shortest NAT mapping timeouts in the field are 30
/// s, and a changed mapping must be seen before a peer is told of the old one.
const REFRESH: Duration = Duration::from_secs(20);

/// The shortest pause between two rounds if the mapping is doubted. Many paths may die at once, and a
/// round takes about as long where an answer is lost.
const DOUBTED: Duration = Duration::from_secs(1);

/// An answer is forgotten after so many requests without a new one. One packet may be lost, but an
/// address that is gone must not be offered.
const MAX_MISSED: u32 = 2;

/// The most reflexive candidates that are offered of each address family. Behind a symmetric NAT
/// each server sees another address, and all of them are equally good.
const MAX_REFLEXIVE: usize = 4;

/// The age at which the newest port of a sequence is asked for anew when a connection begins. Any
/// packet to a new destination moves the sequence on, also one of a neighbour.
const PREDICTION_AGE: Duration = Duration::from_millis(500);

/// The most STUN servers, with those that relays name.
const MAX_SERVERS: usize = 16;

/// One server, over one address family.
struct Server {
    name: usize,
    v6: bool,
    last: Option<Seen>,
    error: Option<String>,
    /// Whether its answer is waited for.
    asked: bool,
}

/// The last answer of a server.
struct Seen {
    answer: Answer,
    /// How many requests have had no answer since.
    missed: u32,
    /// The time at which the mapped address was first seen.
    since: Instant,
}

enum ReflexiveEvent {
    /// A server answered. `None` means that the server, or this machine, has no address of the
    /// family.
    Answered(usize, Option<Result<Answer, StunError>>),
    Filtering(NatFiltering),
    Newest(Option<SocketAddr>),
}

pub(super) struct Reflexive {
    sockets: Sockets,
    names: Vec<String>,
    /// How many of the names are those of the configuration. They come first.
    configured: usize,
    /// Which addresses the others may have.
    policy: Policy,
    timeout: Duration,
    client: Arc<StunClient>,
    current: Arc<watch::Sender<Gathered>>,
    nat: Arc<watch::Sender<NatReport>>,
    servers: Vec<Server>,
    filtering: Option<NatFiltering>,
    /// The newest port of a sequence, from a request that was made to learn it.
    newest: Option<(SocketAddr, Instant)>,
    /// The requests whose answers are waited for.
    asking: FuturesUnordered<BoxFuture<'static, ReflexiveEvent>>,
    /// The other measurements.
    running: FuturesUnordered<BoxFuture<'static, ReflexiveEvent>>,
}

impl Server {
    fn new(name: usize, v6: bool) -> Self {
        Self {
            name,
            v6,
            last: None,
            error: None,
            asked: false,
        }
    }

    /// Notes that a request had no answer.
    fn miss(&mut self) {
        self.last.take_if(|last| {
            last.missed += 1;
            last.missed >= MAX_MISSED
        });
    }
}

impl Reflexive {
    pub(super) fn new(
        sockets: Sockets,
        settings: Settings,
        client: Arc<StunClient>,
        current: Arc<watch::Sender<Gathered>>,
        nat: Arc<watch::Sender<NatReport>>,
    ) -> Self {
        let families = (0..settings.stun.len()).flat_map(|name| [(name, false), (name, true)]);
        Self {
            servers: families.map(|(name, v6)| Server::new(name, v6)).collect(),
            sockets,
            configured: settings.stun.len(),
            policy: settings.policy,
            names: settings.stun,
            timeout: settings.stun_timeout,
            client,
            current,
            nat,
            filtering: None,
            newest: None,
            asking: FuturesUnordered::new(),
            running: FuturesUnordered::new(),
        }
    }

    /// Asks every server again and again, which also keeps the mapping alive. Asks at once when the
    /// addresses of the machine change.
    /// A doubt of the mapping also brings the next round forward.
    /// Servers that relays have `named` are asked besides those of the configuration.
    pub(super) async fn keep(
        mut self,
        attempts: Arc<Notify>,
        doubts: Arc<Notify>,
        mut named: watch::Receiver<Vec<(PeerId, Vec<String>)>>,
    ) {
        let mut gathered = self.current.subscribe();
        let mut nat64 = self.sockets.nat64().watch();
        if gathered.wait_for(|gathered| gathered.ready).await.is_err() {
            return;
        }
        let mut hosts = hosts(&gathered.borrow_and_update());
        self.publish();
        let mut tick = time::interval(REFRESH);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut asked = Instant::now();
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    asked = Instant::now();
                    self.ask_all();
                }
                () = doubts.notified() => {
                    tick.reset_after(DOUBTED.saturating_sub(asked.elapsed()));
                }
                Some(event) = self.asking.next(), if !self.asking.is_terminated() => {
                    self.on_event(event);
                }
                Some(event) = self.running.next(), if !self.running.is_terminated() => {
                    self.on_event(event);
                }
                Ok(()) = nat64.changed() => {
                    // What is asked now has gone to addresses that lead nowhere.
                    self.network_changed(&hosts);
                    tick.reset_immediately();
                }
                () = attempts.notified() => self.attempt_begins(),
                changed = named.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.take_named(&named.borrow_and_update());
                    tick.reset_immediately();
                }
                changed = gathered.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let now = self::hosts(&gathered.borrow_and_update());
                    if now != hosts {
                        hosts = now;
                        self.network_changed(&hosts);
                        tick.reset_immediately();
                    }
                }
            }
        }
    }

    /// Asks the servers that relays have named, besides those of the configuration.
    fn take_named(&mut self, named: &[(PeerId, Vec<String>)]) {
        let mut names = self.names[..self.configured].to_vec();
        for name in named.iter().flat_map(|(_, servers)| servers) {
            if names.len() < MAX_SERVERS && !names.contains(name) {
                names.push(name.clone());
            }
        }
        let mut before = std::mem::take(&mut self.servers);
        for (at, name) in names.iter().enumerate() {
            for v6 in [false, true] {
                let known = before
                    .iter()
                    .position(|s| s.v6 == v6 && self.names[s.name] == *name);
                let known = known.map(|known| before.swap_remove(known));
                self.servers.push(Server {
                    name: at,
                    // Answers that are under way would be taken for those of others.
                    asked: false,
                    ..known.unwrap_or_else(|| Server::new(at, v6))
                });
            }
        }
        self.asking.clear();
        self.filtering = None;
        self.names = names;
        self.publish();
    }

    /// Asks every server that is not being asked. A request that is under way is repeated, and its
    /// answer has the mapping of that moment. If it were begun anew with each doubt, nobody would learn
    /// that the server is silent.
    fn ask_all(&mut self) {
        let lookups: Vec<_> = self
            .names
            .iter()
            .map(|name| {
                let name = name.clone();
                let found = async move {
                    match lookup_host(name).await {
                        Ok(found) => found.collect::<Vec<_>>(),
                        Err(error) => {
                            tracing::debug!(%error, "the name of a STUN server cannot be resolved");
                            Vec::new()
                        }
                    }
                };
                found.boxed().shared()
            })
            .collect();
        let servers = self.servers.iter_mut().enumerate();
        for (i, server) in servers.filter(|(_, server)| !server.asked) {
            let (sockets, client) = (self.sockets.clone(), self.client.clone());
            let Some(lookup) = lookups.get(server.name).cloned() else {
                continue;
            };
            server.asked = true;
            let (v6, timeout) = (server.v6, self.timeout);
            let policy = (server.name >= self.configured).then(|| self.policy.clone());
            let nat64 = self.sockets.nat64().clone();
            let ask = async move {
                let ask = async {
                    let found: Vec<SocketAddr> = lookup.await;
                    let allowed = found.into_iter().filter(|addr| {
                        let allows = |policy: &Policy| policy.allows(*addr).is_ok();
                        addr.is_ipv6() == v6 && policy.as_ref().is_none_or(allows)
                    });
                    let mut usable = nat64.routes(allowed).into_iter();
                    let server = usable.next().filter(|a| sockets.port(a.ip()).is_some())?;
                    Some(client.ask(&sockets, server).await)
                };
                let answer = time::timeout(timeout, ask).await;
                ReflexiveEvent::Answered(i, answer.unwrap_or(Some(Err(StunError::Silent))))
            };
            self.asking.push(ask.boxed());
        }
    }

    fn on_event(&mut self, event: ReflexiveEvent) {
        match event {
            ReflexiveEvent::Answered(i, answer) => self.on_answer(i, answer),
            ReflexiveEvent::Filtering(filtering) => self.filtering = Some(filtering),
            ReflexiveEvent::Newest(Some(newest)) => self.newest = Some((newest, Instant::now())),
            ReflexiveEvent::Newest(None) => {}
        }
        self.publish();
    }

    fn on_answer(&mut self, i: usize, answer: Option<Result<Answer, StunError>>) {
        let Some(server) = self.servers.get_mut(i) else {
            return;
        };
        server.error = None;
        server.asked = false;
        match answer {
            Some(Ok(answer)) => {
                let now = Instant::now();
                let same = |last: &&Seen| last.answer.seen.mapped == answer.seen.mapped;
                let since = server.last.as_ref().filter(same).map_or(now, |l| l.since);
                server.last = Some(Seen {
                    answer,
                    missed: 0,
                    since,
                });
            }
            Some(Err(error)) => {
                server.miss();
                tracing::debug!(server = %self.names[server.name], %error, "STUN gave no address");
                server.error = Some(error.to_string());
            }
            None => server.miss(),
        }
        if !self.servers.iter().any(|server| server.asked) {
            self.discover_filtering();
        }
    }

    /// Discovers the filtering once for each network, with the server that can tell most.
    fn discover_filtering(&mut self) {
        if self.filtering.is_some() {
            return;
        }
        let able = self.answers().filter(|answer| answer.discovers);
        let best = able.max_by_key(|a| (a.seen.mapped.is_ipv4(), a.other.is_some()));
        let Some(best) = best.copied() else {
            self.filtering = Some(NatFiltering::Unknown);
            return;
        };
        let other = best
            .other
            .and_then(|other| self.sockets.nat64().route(other));
        let discover = discovery::filtering(best.seen.server, other).map(ReflexiveEvent::Filtering);
        self.running.push(discover.boxed());
    }

    fn network_changed(&mut self, hosts: &[SocketAddr]) {
        // Answers to earlier requests would go to addresses that are gone.
        self.asking.clear();
        for server in &mut self.servers {
            server.asked = false;
        }
        self.running.clear();
        self.filtering = None;
        self.newest = None;
        for server in &mut self.servers {
            let stays = |last: &Seen| hosts.contains(&last.answer.seen.local);
            server.last = server.last.take().filter(stays);
        }
        self.publish();
    }

    fn attempt_begins(&mut self) {
        let fastest = self.answers().filter(|answer| answer.seen.mapped.is_ipv4());
        let fastest = fastest.min_by_key(|answer| answer.rtt);
        let old = self
            .newest()
            .is_some_and(|(_, at)| at.elapsed() > PREDICTION_AGE);
        if let Some(server) = fastest.map(|answer| answer.seen.server)
            && old
            && self.verdict().step != 0
        {
            let newest = discovery::newest_port(server).map(ReflexiveEvent::Newest);
            self.running.push(newest.boxed());
        }
    }

    fn answers(&self) -> impl Iterator<Item = &Answer> {
        let seen = self.servers.iter().filter_map(|s| s.last.as_ref());
        seen.map(|seen| &seen.answer)
    }

    /// The behaviour of the NAT for the address that IPv4 goes out from, or IPv6 if there is no
    /// IPv4.
    fn verdict(&self) -> Verdict {
        let seen = || self.answers().map(|answer| answer.seen);
        let newest = seen().max_by_key(|o| (o.mapped.is_ipv4(), o.order));
        // Behind a NAT64, one local address has mappings of both families.
        let of_one = seen().filter(|o| {
            newest.is_some_and(|newest| {
                newest.local == o.local && newest.mapped.is_ipv4() == o.mapped.is_ipv4()
            })
        });
        nat::classify(&of_one.collect::<Vec<_>>())
    }

    /// The external IPv4 address that the NAT gave out last, as far as is known, and the time since
    /// when it is known.
    fn newest(&self) -> Option<(SocketAddr, Instant)> {
        let seen = self
            .servers
            .iter()
            .filter_map(|server| server.last.as_ref());
        let seen = seen.map(|seen| (seen.answer.seen.mapped, seen.since));
        let seen = seen.chain(self.newest);
        seen.filter(|(mapped, _)| mapped.is_ipv4())
            .max_by_key(|(_, since)| *since)
    }

    fn publish(&self) {
        let mut seen: Vec<_> = self.answers().map(|answer| answer.seen).collect();
        seen.sort_unstable_by_key(|seen| std::cmp::Reverse(seen.order));
        let candidate = |origin, addr, base| LocalCandidate { origin, addr, base };
        let mut stun: Vec<LocalCandidate> = Vec::new();
        for seen in seen.iter().filter(|seen| seen.mapped != seen.local) {
            let found = candidate(Origin::Stun, seen.mapped, seen.local);
            let of_family = |other: &&LocalCandidate| other.addr.is_ipv4() == found.addr.is_ipv4();
            let is_new = !stun.iter().any(|other| other.addr == found.addr);
            if is_new && stun.iter().filter(of_family).count() < MAX_REFLEXIVE {
                stun.push(found);
            }
        }
        let verdict = self.verdict();
        let base = stun.iter().find(|c| c.addr.is_ipv4()).map(|c| c.base);
        let next: Vec<_> = self
            .newest()
            .zip(base)
            .into_iter()
            .flat_map(|((newest, _), base)| {
                let next = nat::predict(newest, verdict.step);
                next.map(move |addr| candidate(Origin::Prediction, addr, base))
            })
            .filter(|next| !stun.iter().any(|known| known.addr == next.addr))
            .collect();
        self.current.send_if_modified(|gathered| {
            let reflexive = gathered.replace(Origin::Stun, &stun);
            let predicted = gathered.replace(Origin::Prediction, &next);
            reflexive || predicted
        });
        self.report(verdict);
    }

    fn report(&self, verdict: Verdict) {
        let mut external: Vec<String> = Vec::new();
        for seen in self.answers().map(|answer| answer.seen) {
            let ip = seen.mapped.ip().to_string();
            if !external.contains(&ip) {
                external.push(ip);
            }
        }
        let of_server = |name: usize| self.servers.iter().filter(move |s| s.name == name);
        let stun = self.names.iter().enumerate().map(|(name, server)| {
            let answer = of_server(name).find_map(|s| s.last.as_ref().map(|seen| seen.answer));
            StunReport {
                server: server.clone(),
                mapped: answer.map(|answer| answer.seen.mapped.to_string()),
                rtt: answer.map(|answer| answer.rtt),
                error: match answer {
                    Some(_) => None,
                    None => of_server(name).find_map(|s| s.error.clone()),
                },
            }
        });
        let stun: Vec<_> = stun.collect();
        let pending = !self.names.is_empty() && self.filtering.is_none();
        self.nat.send_if_modified(|report| {
            let mut new = report.clone();
            new.mapping = verdict.mapping;
            new.ports = verdict.ports;
            new.port_step = (verdict.step != 0).then_some(verdict.step);
            new.filtering = self.filtering.unwrap_or_default();
            new.external = external;
            new.stun = stun;
            new.stun_pending = pending;
            new.one_server = verdict.one_server;
            let changed = *report != new;
            *report = new;
            changed
        });
    }
}

/// The addresses of the interfaces.
fn hosts(gathered: &Gathered) -> Vec<SocketAddr> {
    gathered.of(Origin::Interface).map(|c| c.addr).collect()
}
