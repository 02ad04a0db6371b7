//! What STUN servers see of us: asked of all at once, kept current and kept alive.

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
use tokio::{
    net::lookup_host,
    sync::{Notify, watch},
    time::{self, MissedTickBehavior},
};

use super::{Gathered, LocalCandidate, Origin, Settings};
use crate::{
    core::nat::{self, NatFiltering, Verdict},
    native::{
        socket::Sockets,
        stun::{Answer, StunClient, StunError, discovery},
    },
    report::{NatReport, StunReport},
};

/// How often each STUN server is asked again: the shortest NAT mapping timeouts in the field are
/// 30 s, and a mapping that has changed must be seen before a peer is told of the old one.
const REFRESH: Duration = Duration::from_secs(20);

/// An answer is forgotten when so many rounds brought no new one: a packet may be lost, an address
/// that is gone must not be offered.
const MAX_MISSED: u64 = 2;

/// Most reflexive candidates offered of each address family; behind a symmetric NAT each server
/// gives another one, and one is as good as the next.
const MAX_REFLEXIVE: usize = 4;

/// When a connection begins and the newest port of a sequence is known for longer than this, it is
/// asked for anew: any packet to a new destination, ours or a neighbour's, moves the sequence on.
const PREDICTION_AGE: Duration = Duration::from_millis(500);

/// One server, over one address family.
struct Server {
    name: usize,
    v6: bool,
    last: Option<Seen>,
    error: Option<String>,
}

/// The last answer of a server.
struct Seen {
    answer: Answer,
    round: u64,
    /// Since when the mapped address is this one.
    since: Instant,
}

enum Event {
    /// `None` when the server, or this machine, has no address of the family.
    Answered(usize, Option<Result<Answer, StunError>>),
    Filtering(NatFiltering),
    Newest(Option<SocketAddr>),
}

pub(super) struct Reflexive {
    sockets: Sockets,
    names: Vec<String>,
    timeout: Duration,
    client: Arc<StunClient>,
    current: Arc<watch::Sender<Gathered>>,
    nat: Arc<watch::Sender<NatReport>>,
    servers: Vec<Server>,
    round: u64,
    /// Servers that have not answered in this round, nor been given up.
    open: usize,
    filtering: Option<NatFiltering>,
    /// The newest port of a sequence that was asked for on purpose.
    newest: Option<(SocketAddr, Instant)>,
    running: FuturesUnordered<BoxFuture<'static, Event>>,
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
            servers: families
                .map(|(name, v6)| Server {
                    name,
                    v6,
                    last: None,
                    error: None,
                })
                .collect(),
            sockets,
            names: settings.stun,
            timeout: settings.stun_timeout,
            client,
            current,
            nat,
            round: 0,
            open: 0,
            filtering: None,
            newest: None,
            running: FuturesUnordered::new(),
        }
    }

    /// Asks every server over and over, which also keeps the mapping alive, and at once when the
    /// machine's addresses change.
    pub(super) async fn keep(mut self, attempts: Arc<Notify>) {
        let mut gathered = self.current.subscribe();
        if gathered.wait_for(|gathered| gathered.ready).await.is_err() {
            return;
        }
        let mut hosts = hosts(&gathered.borrow_and_update());
        self.publish();
        if self.names.is_empty() {
            return;
        }
        let mut tick = time::interval(REFRESH);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => self.ask_all(),
                Some(event) = self.running.next(), if !self.running.is_terminated() => {
                    self.on_event(event);
                }
                () = attempts.notified() => self.attempt_begins(),
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

    fn ask_all(&mut self) {
        self.round += 1;
        self.open = self.servers.len();
        let lookups: Vec<_> = self
            .names
            .iter()
            .map(|name| {
                let name = name.clone();
                let found = async move {
                    match lookup_host(name).await {
                        Ok(found) => found.collect::<Vec<_>>(),
                        Err(error) => {
                            tracing::debug!(%error, "a STUN server's name does not resolve");
                            Vec::new()
                        }
                    }
                };
                found.boxed().shared()
            })
            .collect();
        for (i, server) in self.servers.iter().enumerate() {
            let (sockets, client) = (self.sockets.clone(), self.client.clone());
            let Some(lookup) = lookups.get(server.name).cloned() else {
                continue;
            };
            let (v6, timeout) = (server.v6, self.timeout);
            let ask = async move {
                let ask = async {
                    let found: Vec<SocketAddr> = lookup.await;
                    let mut usable = found.into_iter().filter(|addr| addr.is_ipv6() == v6);
                    let server = usable.next().filter(|a| sockets.port(a.ip()).is_some())?;
                    Some(client.ask(&sockets, server).await)
                };
                let answer = time::timeout(timeout, ask).await;
                Event::Answered(i, answer.unwrap_or(Some(Err(StunError::Silent))))
            };
            self.running.push(ask.boxed());
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Answered(i, answer) => self.on_answer(i, answer),
            Event::Filtering(filtering) => self.filtering = Some(filtering),
            Event::Newest(Some(newest)) => self.newest = Some((newest, Instant::now())),
            Event::Newest(None) => {}
        }
        self.publish();
    }

    fn on_answer(&mut self, i: usize, answer: Option<Result<Answer, StunError>>) {
        let Some(server) = self.servers.get_mut(i) else {
            return;
        };
        server.error = None;
        match answer {
            Some(Ok(answer)) => {
                let now = Instant::now();
                let same = |last: &&Seen| last.answer.seen.mapped == answer.seen.mapped;
                let since = server.last.as_ref().filter(same).map_or(now, |l| l.since);
                server.last = Some(Seen {
                    answer,
                    round: self.round,
                    since,
                });
            }
            Some(Err(error)) => {
                tracing::debug!(server = %self.names[server.name], %error, "STUN");
                server.error = Some(error.to_string());
            }
            None => {}
        }
        self.open = self.open.saturating_sub(1);
        if self.open == 0 {
            let round = self.round;
            for server in &mut self.servers {
                let fresh = |last: &Seen| round - last.round < MAX_MISSED;
                server.last = server.last.take().filter(fresh);
            }
            self.discover_filtering();
        }
    }

    /// Once for each network, by the server that can say most.
    fn discover_filtering(&mut self) {
        if self.filtering.is_some() {
            return;
        }
        let able = self.answers().filter(|answer| answer.discovers);
        let best = able.max_by_key(|a| (a.seen.server.is_ipv4(), a.other.is_some()));
        let Some(best) = best.copied() else {
            self.filtering = Some(NatFiltering::Unknown);
            return;
        };
        let discover = discovery::filtering(best.seen.server, best.other).map(Event::Filtering);
        self.running.push(discover.boxed());
    }

    fn network_changed(&mut self, hosts: &[SocketAddr]) {
        // What was asked before would be answered to addresses that are gone.
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
        let fastest = self.answers().filter(|answer| answer.seen.server.is_ipv4());
        let fastest = fastest.min_by_key(|answer| answer.rtt);
        let old = self
            .newest()
            .is_some_and(|(_, at)| at.elapsed() > PREDICTION_AGE);
        if let Some(server) = fastest.map(|answer| answer.seen.server)
            && old
            && self.verdict().step != 0
        {
            let newest = discovery::newest_port(server).map(Event::Newest);
            self.running.push(newest.boxed());
        }
    }

    fn answers(&self) -> impl Iterator<Item = &Answer> {
        let seen = self.servers.iter().filter_map(|s| s.last.as_ref());
        seen.map(|seen| &seen.answer)
    }

    /// About the address that IPv4 goes out from, or where there is none, IPv6.
    fn verdict(&self) -> Verdict {
        let seen = || self.answers().map(|answer| answer.seen);
        let newest = seen().max_by_key(|o| (o.server.is_ipv4(), o.order));
        let of_one = seen().filter(|o| newest.is_some_and(|newest| newest.local == o.local));
        nat::classify(&of_one.collect::<Vec<_>>())
    }

    /// The external IPv4 address that a NAT gave out last, as far as we know, and since when we do.
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
