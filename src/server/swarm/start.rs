//! The start of a relay: its behaviours and its listeners.

use std::{collections::HashMap, io, net::SocketAddr, time::Instant};

use futures::{FutureExt as _, StreamExt as _, future::BoxFuture};
use libp2p::{
    Multiaddr, StreamProtocol, Swarm,
    core::{transport::ListenerId, upgrade::Version},
    identify, identity,
    swarm::{self, SwarmEvent},
};
use tokio::sync::watch;

use super::{
    Bound, Relay, RelayParts, ServerBehaviour,
    addresses::{Announcements, listen_addresses},
    journal::Journal,
    traffic::Traffic,
    transport::transport,
};
use crate::{
    core::reached::Reached,
    error::{Error, ErrorKind, innermost},
    native::{behaviours::limits, runtime},
    server::{
        autonat,
        circuits::{Carried, Circuits},
        clients::Clients,
        config::ServerConfig,
        heart::Heart,
        pool::Pools,
        relay_rates::Rates,
        watch::Watch,
    },
    swarm::{ping::Ping, substreams::Substreams},
};

impl Relay {
    /// Opens every listener that the settings ask for, and waits until their addresses are known.
    /// `own` are the addresses of the other services, which nobody may aim the relay at.
    pub(crate) async fn start(
        keypair: &identity::Keypair,
        bound: Bound,
        mut own: Vec<SocketAddr>,
        parts: RelayParts,
    ) -> Result<Self, Error> {
        let RelayParts {
            metrics,
            pools,
            access,
            descriptors,
            usage,
            directory,
            sisters,
        } = parts;
        let settings = pools.settings.clone();
        let config = &*settings.now();
        let announced = config.announced()?;
        own.extend(announced.iter().filter_map(autonat::socket));
        let external = [config.external_ip, config.turn.external_ip];
        own.extend(
            external
                .into_iter()
                .flatten()
                .map(|ip| SocketAddr::new(ip, 0)),
        );
        let autonat = autonat::AutonatServer::new(own, &pools, metrics.clone());
        let gives_access = !access.is_open() || config.turn.secret.is_some();
        let protocols = Carried::protocols(gives_access);
        let behaviour = behaviour(keypair, &pools, autonat, protocols);
        let traffic = Traffic::default();
        let transport = transport(config, bound, keypair, &metrics, &pools, &traffic)?;
        // `Clients` decides which connections nobody needs, because it knows more about them than
        // libp2p.
        let swarm_config =
            swarm::Config::with_executor(|task: BoxFuture<'static, ()>| runtime::spawn(task))
                .with_substream_upgrade_protocol_override(Version::V1Lazy);
        let peer = keypair.public().to_peer_id();
        let mut relay = Self {
            listeners: Vec::new(),
            swarm: Swarm::new(transport, behaviour, peer, swarm_config),
            announce: Announcements::new(announced, config.external_ip),
            metrics,
            rates: Rates::new(&config.relay),
            clients: Clients::new(&pools),
            watch: Watch::default(),
            circuits: Circuits::new(&pools, usage.clone()),
            access,
            gives_access,
            turn: None,
            profiles: None,
            pools,
            settings: settings.clone(),
            announced: watch::Sender::default(),
            descriptors,
            usage,
            directory,
            sisters,
            room_rates: HashMap::new(),
            heart: Heart::new(Instant::now()),
            journal: Journal::new(traffic, settings.clone()),
            reached: Reached::default(),
            drains: false,
            telling: HashMap::new(),
        };
        relay.listen(config).await?;
        Ok(relay)
    }

    /// Opens the listeners. Returns once each of them has an address.
    async fn listen(&mut self, config: &ServerConfig) -> Result<(), Error> {
        let mut pending = HashMap::new();
        for address in listen_addresses(&config.hosts, config.port, config.layout) {
            let listener = self
                .swarm
                .listen_on(address.clone())
                .map_err(|error| listen_error(&address, io::Error::other(error)))?;
            pending.insert(listener, address);
            self.listeners.push(listener);
        }
        while !pending.is_empty() {
            let event = self.swarm.select_next_some().await;
            match &event {
                SwarmEvent::NewListenAddr { listener_id, .. } => {
                    pending.remove(listener_id);
                }
                SwarmEvent::ListenerClosed {
                    listener_id,
                    reason,
                    ..
                } => fail(&pending, listener_id, reason.as_ref().err())?,
                SwarmEvent::ListenerError { listener_id, error } => {
                    fail(&pending, listener_id, Some(error))?;
                }
                _ => {}
            }
            self.on_event(event);
        }
        // A wildcard listener reports its interfaces one after the other. This takes all reports
        // that are ready.
        while let Some(Some(event)) = self.swarm.next().now_or_never() {
            self.on_event(event);
        }
        Ok(())
    }
}

fn behaviour(
    keypair: &identity::Keypair,
    pools: &Pools,
    autonat: autonat::AutonatServer,
    protocols: Vec<StreamProtocol>,
) -> ServerBehaviour {
    let agent = concat!("throughline/", env!("CARGO_PKG_VERSION"));
    ServerBehaviour {
        limits: limits::LimitsBehaviour::new(pools.limits.clone()),
        identify: identify::Behaviour::new(
            identify::Config::new(String::from("ipfs/0.1.0"), keypair.public())
                .with_agent_version(agent.to_owned())
                // The addresses of a server's interfaces are private. Only its announced addresses
                // are public.
                .with_hide_listen_addrs(true),
        ),
        ping: Ping::default(),
        autonat,
        requests: Substreams::new(protocols, true),
    }
}

/// Fails if `listener` is one of those that must open.
fn fail(
    pending: &HashMap<ListenerId, Multiaddr>,
    listener: &ListenerId,
    reason: Option<&io::Error>,
) -> Result<(), Error> {
    let Some(address) = pending.get(listener) else {
        return Ok(());
    };
    let source = reason.map_or_else(
        || io::Error::other("the listener closed"),
        |error| io::Error::new(error.kind(), innermost(error)),
    );
    Err(listen_error(address, source))
}

fn listen_error(address: &Multiaddr, error: io::Error) -> Error {
    let reason = io::Error::new(error.kind(), innermost(&error));
    io_error(&format!("cannot listen on {address}"), reason)
}

pub(super) fn io_error(what: &str, error: io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("{what}: {error}")).with_source(error)
}
