//! The start of a server: everything that may fail comes first, and what serves comes last.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::{Arc, RwLock},
    time::{Duration, SystemTime},
};

use libp2p::Multiaddr;
use tokio::{
    sync::{mpsc, oneshot},
    time,
};

use super::{
    IDENTITY_FILE, Server,
    access::Access,
    config::{AccessConfig, Layout, ServerConfig},
    descriptors,
    directory::{Directory, Memory},
    embedded::Files,
    entrance::{self, Entrance},
    fleet::{Elsewhere, Fleet, Own},
    http::{self, DemoPeer, Door, Operators, Site},
    listeners::{self, bind_entrance, bind_error, bind_http, bind_tcp_at, bind_turn, bind_udp},
    metrics::Metrics,
    pool::{Pool, Pools},
    profile::{Profiles, TurnProfile},
    reputation::ScoreSource,
    settings::Settings,
    stun::StunServer,
    swarm::{Bound, Relay, RelayParts},
    tls::Tls,
    turn::{self, Authority, TurnOffer, TurnServer},
    udp::serve_udp,
    urls::{
        announced_ips, http_url, https_url, secured, stun_layout, stun_urls, tcp_addresses,
        turn_urls, udp_addresses, udp_ports,
    },
    usage::Usage,
};
use crate::{
    core::scope::{Scope, scope},
    error::{Error, ErrorKind},
    identity::Identity,
    native::{
        inherited, runtime, secret, trace,
        transports::handed::{Arrivals, Way},
    },
};

/// How long a start waits until it is known what was carried before. If that takes longer, quotas are
/// a little too large until then.
const BEFORE: Duration = Duration::from_secs(1);

impl Server {
    pub(super) async fn start_with(
        mut config: ServerConfig,
        scores: Option<Arc<dyn ScoreSource>>,
    ) -> Result<Self, Error> {
        check_folders(&config)?;
        if let Some(directory) = &config.data {
            secret::check_directory(directory)
                .map_err(|fault| Error::new(ErrorKind::Io, fault.describe(directory)))?;
        }
        let descriptors = descriptors::prepare(&mut config);
        let identity = match &config.data {
            Some(directory) => Identity::load_or_create(directory.join(IDENTITY_FILE))?,
            None => Identity::generate(),
        };
        let metrics = Metrics::new(&config);
        let usage = Usage::start(config.data.as_deref(), &config.usage, metrics.clone())?;
        let tls = Tls::new(&config, &metrics)?;
        // Sockets that may fail at once are bound first, when nothing has to be undone yet.
        listeners::check_exclusive(&config)?;
        let entrances = bind_entrance(&config)?;
        let entered = tcp_addresses("tcp", &entrances)?;
        let subjects = tls.as_ref().map_or(&[][..], Tls::subjects);
        let secured = secured(subjects, &entered);
        config.announce.extend(secured.iter().cloned());
        let (changes, settings) = Settings::new(config);
        let pools = Pools::new(&settings, &metrics);
        let config = settings.now();
        let http_listeners = bind_http(&config)?;
        let admin_listener = match config.http.admin {
            Some(address) => Some((address, bind_tcp_at("http.admin", address)?)),
            None => None,
        };
        let datagrams = bind_udp(&config)?;
        let stun_bound = udp_addresses(&datagrams.stun);
        let turn_bound = udp_addresses(&datagrams.turn);
        let authority = match &config.turn.secret {
            Some(secret) => Some(Arc::new(Authority::new(secret)?)),
            None => None,
        };
        let turn_tcp = match authority {
            Some(_) => bind_turn(&config)?,
            None => Vec::new(),
        };
        let turn_entered = match config.layout {
            Layout::Five => tcp_addresses("turn", &turn_tcp)?,
            Layout::One => entered.clone(),
        };
        let http_bound = tcp_addresses("http", &http_listeners)?;
        let udp = stun_bound.iter().chain(&turn_bound);
        let tcp = entered.iter().chain(&http_bound).chain(&turn_entered);
        let own = udp.chain(tcp).copied().collect();
        let (peers, queue) = mpsc::channel(entrance::ARRIVALS);
        let arrivals = Arrivals {
            queue,
            bound: entered.clone(),
            ways: match config.layout {
                // WebSocket has another port, which is announced.
                Layout::Five => vec![Way::Tcp],
                Layout::One => vec![Way::Tcp, Way::WebSocket],
            },
            forwarded: pools.limits.forwarded.clone(),
        };
        let peer_id = identity.peer_id();
        let access = Access::new(&config.access, &pools, usage.calendar(), peer_id.0)?;
        let quotas = (!config.fleet.servers.is_empty()).then(|| access.share());
        count_what_was_carried(&access, &usage).await;
        let memory = Memory::new(pools.rooms());
        let (fleet, directory): (_, Arc<dyn Directory>) = match config.fleet.servers.is_empty() {
            true => (None, Arc::new(memory)),
            false => {
                let elsewhere = Elsewhere {
                    all: pools.elsewhere.clone(),
                    room: Box::new(pools.rooms_elsewhere()),
                };
                let known = (memory, elsewhere);
                let fleet = Fleet::new(&config.fleet, peer_id.0, known, &metrics)?;
                (Some(fleet.clone()), Arc::new(fleet))
            }
        };
        let sisters = fleet.as_ref().map(Fleet::sisters).unwrap_or_default();
        let parts = RelayParts {
            metrics: metrics.clone(),
            pools: pools.clone(),
            access: access.clone(),
            descriptors: descriptors.clone(),
            usage: usage.clone(),
            directory,
            sisters: sisters.clone(),
        };
        let (quic, direct) = (datagrams.quic, datagrams.direct);
        let bound = Bound {
            arrivals,
            quic,
            direct,
        };
        let mut relay = Relay::start(identity.keypair(), bound, own, parts).await?;

        let addresses = relay.addresses();
        let ips = announced_ips(&config.hosts, config.external_ip, &addresses);
        for address in relay.hidden() {
            tracing::info!(%address, "not announced: only containers of this machine are there");
        }
        warn_of_external_ip(&config, &ips);
        warn_of_everybody(&config.access, &ips);
        let stun = stun_urls(&stun_bound, &ips);
        let stun_layout = stun_layout(&stun_bound, config.hosts.len(), &ips);
        let turn = match authority {
            Some(_) => turn_urls(&turn_bound, &turn_entered, subjects, &entered, &ips),
            None => Vec::new(),
        };
        let turn_addresses =
            turn::RelayAddresses::new(config.hosts.clone(), ips.clone(), config.relayed_ip());
        let own = Arc::new(turn::Own::new(
            udp_ports(relay.listening(), stun_bound.iter().chain(&turn_bound)),
            turn_addresses.told(),
        ));
        let http = match (subjects.first(), config.layout) {
            (Some(subject), _) => https_url(subject, &entered),
            (None, Layout::Five) => http_url(&http_bound, &ips),
            (None, Layout::One) => http_url(&entered, &ips),
        };
        // All tasks of the server carry it.
        let span = trace::peer(&peer_id.0);
        let ports = [&turn_bound, &turn_entered];
        let ports = ports.map(|bound| bound.first().map_or(0, SocketAddr::port));
        relay.offer_turn(
            authority
                .clone()
                .map(|authority| TurnOffer { ports, authority }),
        );
        let for_pages = authority.clone().filter(|_| access.is_open());
        let profiles = Profiles {
            peer: peer_id.0,
            addresses: relay.announced(),
            stun: stun.clone(),
            turn: authority.as_ref().map(|_| TurnProfile {
                urls: turn.clone(),
                authority: for_pages,
            }),
            protocols: relay.protocols(),
            settings: settings.clone(),
            sisters,
        };
        relay.show(profiles.clone());
        let demo = Arc::<RwLock<Option<DemoPeer>>>::default();
        let files = Arc::<RwLock<Files>>::default();
        let site = Site {
            profiles,
            demo: demo.clone(),
            files: files.clone(),
            metrics: metrics.clone(),
            www: config.http.www.clone().map(Arc::new),
            npm: config.http.npm.clone().map(Arc::new),
            pools: pools.clone(),
            descriptors: descriptors.clone(),
            usage: usage.clone(),
            heart: relay.heart(),
            tls: tls.clone(),
            fleet: fleet.clone(),
        };
        let heart = relay.heart();
        let mut services = vec![span.in_scope(|| runtime::task(access.clone().keep()))];
        if let Some(source) = scores {
            let keep = pools.reputation.clone().keep(source);
            services.push(span.in_scope(|| runtime::task(keep)));
        }
        if let Some((fleet, quotas)) = fleet.clone().zip(quotas) {
            let own = Own {
                key: identity.keypair().clone(),
                addresses: relay.announced(),
                settings: settings.clone(),
                revoked: access.revoked(),
                usage: usage.clone(),
            };
            let keep = fleet.keep(own, quotas);
            services.push(span.in_scope(|| runtime::task(keep)));
        }
        let door = |pool: &Pool| Door::new(pool, &pools, &descriptors);
        let has_admin = admin_listener.is_some();
        let public = http::public(
            site.clone(),
            match has_admin {
                true => Operators::Elsewhere,
                false => Operators::Here,
            },
        );
        // Whoever finds the first port need not learn what the operator sees.
        let first = http::public(
            site.clone(),
            match has_admin {
                true => Operators::Elsewhere,
                false => Operators::Nearby,
            },
        );
        let (pages, operators) = (door(&pools.http), door(&pools.admin));
        let admin = match &admin_listener {
            Some((address, listener)) => {
                let bound = listener.local_addr();
                let bound = bound.map_err(|source| bind_error("http.admin", *address, source))?;
                Some(format!("http://{bound}"))
            }
            None => None,
        };
        let turn_server = authority.clone().map(|authority| {
            TurnServer::new(turn::Setup {
                authority,
                addresses: turn_addresses,
                access: access.clone(),
                own,
                pools: pools.clone(),
                usage: usage.clone(),
                metrics: metrics.clone(),
            })
        });
        let entrance = Arc::new(Entrance {
            peers,
            pages: (first, pages.clone()),
            turn: turn_server.clone(),
            tls: tls.clone(),
            pools: pools.clone(),
            handshake_rate: entrance::handshake_rate(&settings),
            trusted_proxies: config.trusted_proxies()?,
            naming_proxies: config.naming_proxies()?,
            metrics: metrics.clone(),
            descriptors: descriptors.clone(),
        });
        let mut entered = Vec::new();
        for (address, listener) in entrances {
            let listener = tokio::net::TcpListener::from_std(listener)
                .map_err(|source| bind_error("tcp", address, source))?;
            let served = entrance::serve(listener, entrance.clone());
            entered.push(span.in_scope(|| runtime::task(served)));
        }
        if let Some(tls) = tls.clone() {
            services.push(span.in_scope(|| runtime::task(tls.keep())));
        }
        let public = http_listeners
            .into_iter()
            .map(|listener| (listener, public.clone(), pages.clone()));
        let private = admin_listener
            .into_iter()
            .map(|listener| (listener, http::admin(site.clone()), operators.clone()));
        for ((address, listener), router, door) in public.chain(private) {
            let listener = tokio::net::TcpListener::from_std(listener)
                .map_err(|source| bind_error("http", address, source))?;
            services.push(span.in_scope(|| runtime::task(http::serve(listener, router, door))));
        }
        let stun_server = StunServer::new(
            datagrams.stun.clone(),
            stun_layout,
            &settings,
            metrics.clone(),
        );
        let receivers = serve_udp(
            (datagrams.stun, Arc::new(stun_server)),
            (datagrams.turn, turn_server.clone()),
        );
        let mut turn_credentials = None;
        if let Some((authority, turn_server)) = authority.zip(turn_server) {
            let lifetime = Duration::from_secs(config.turn.credential_seconds);
            turn_credentials = Some(authority.issue("peer", lifetime, SystemTime::now()));
            let from_std = |error| Error::new(ErrorKind::Io, format!("turn: {error}"));
            let tcp = turn_tcp.into_iter().map(|(_, socket)| socket);
            let tcp = tcp.map(tokio::net::TcpListener::from_std);
            let listeners = tcp.collect::<io::Result<_>>().map_err(from_std)?;
            services.push(span.in_scope(|| runtime::task(turn_server.serve(listeners))));
        }
        for address in inherited::close_rest() {
            tracing::warn!(%address, "no service uses this socket, which was passed on");
        }
        let (stop, stopped) = oneshot::channel();
        Ok(Self {
            peer_id,
            addresses: addresses.iter().map(Multiaddr::to_string).collect(),
            stun,
            turn,
            turn_credentials,
            http,
            admin,
            demo,
            files,
            access,
            metrics,
            usage,
            fleet,
            tls,
            secured,
            settings: changes,
            pools,
            descriptors,
            heart,
            stop: Some(stop),
            relay: span.in_scope(|| runtime::task(relay.run(stopped))),
            entrances: entered,
            services,
            _receivers: receivers,
        })
    }
}

/// Fails if a folder does not exist, because its name is probably mistyped.
pub(super) fn check_folders(config: &ServerConfig) -> Result<(), Error> {
    check_folder("http.www", config.http.www.as_deref())?;
    check_folder("http.npm", config.http.npm.as_deref())
}

fn check_folder(field: &str, folder: Option<&Path>) -> Result<(), Error> {
    match folder {
        Some(folder) if !folder.is_dir() => Err(Error::new(
            ErrorKind::InvalidConfig,
            format!("{field}: {} is not a folder", folder.display()),
        )),
        _ => Ok(()),
    }
}

/// Has quotas count what was carried before the start.
async fn count_what_was_carried(access: &Access, usage: &Usage) {
    if let Some(before) = usage.before() {
        let access = access.clone();
        let follow = async move {
            if let Ok(carried) = before.await {
                access.follow(carried);
            }
        };
        let _ = time::timeout(BEFORE, runtime::task(follow)).await;
    }
}

/// Warns of a private external address, because clients on the internet cannot reach it.
fn warn_of_external_ip(config: &ServerConfig, ips: &[IpAddr]) {
    let is_global = |ip: &IpAddr| scope(*ip) == Scope::Global;
    if let Some(external) = config.relayed_ip()
        && config.turn.secret.is_some()
        && !is_global(&external)
        && ips.iter().any(is_global)
    {
        tracing::warn!(
            %external,
            "external_ip is no public address, but this host has one, so others cannot reach \
             the relayed addresses that clients are told; set it to the public address"
        );
    }
}

/// Warns that anybody may use a public server whose operator has not said so.
fn warn_of_everybody(access: &AccessConfig, ips: &[IpAddr]) {
    let is_global = |ip: &IpAddr| scope(*ip) == Scope::Global;
    if access.mode.is_none() && ips.iter().any(is_global) {
        tracing::warn!(
            "anybody on the internet may use this server; set access.mode to \"list\", \"token\" or \
             \"hook\" to choose who may, or to \"open\" to keep it so"
        );
    }
}
