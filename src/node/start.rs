//! Starting a peer: its configuration becomes transports, behaviours, the rules of the race, and a
//! loop that runs.

use std::{collections::HashMap, num::NonZeroU8, pin::Pin, sync::Arc, time::Duration};

use futures::channel::mpsc as futures_mpsc;
use libp2p::{
    Multiaddr, StreamProtocol, Swarm, Transport as _, core::muxing::StreamMuxerBox,
    multiaddr::Protocol, swarm,
};
use tokio::sync::{broadcast, mpsc};

use super::{
    Command, Shared,
    behaviour::NodeBehaviour,
    directory::Records,
    effect::Effects,
    engine::{Inputs, Node, nat_changed},
    farewells::{CLOSE_PROTOCOL, Farewells, Shutdown},
    network::Network,
    online::Online,
    own_addresses::OwnAddresses,
    relays::{Relays, Spares, Wishes, rank_of_site},
    rooms::Rooms,
    round::{Outbox, random},
    session::{DOUBT_PROTOCOL, Sessions},
    status::Told,
    timers::Timers,
};
use crate::{
    Config, backend,
    connection::Connection,
    core::{
        dial::Policy,
        drain, notice,
        offer::OFFER_PROTOCOL,
        plan::Rules,
        reservation::STOP_PROTOCOL,
        resume,
        site::{RelayText, Site},
    },
    error::{Error, ErrorKind},
    event::Strategy,
    identity::{Identity, PeerId as PublicPeerId},
    offer::Sealer,
    swarm::{
        circuit,
        dials::{Recorded, Recorder},
    },
    ticket::Ticket,
    webrtc,
};

/// How many commands may wait. Beyond that, senders wait.
const COMMANDS: usize = 256;
/// How many connections may wait to be accepted. More are refused.
const INCOMING: usize = 64;
/// How many reports of pumps, and of the loop's tasks, may wait. Beyond that, senders wait.
const REPORTS: usize = 256;
/// How many events of the connector a slow reader may be behind.
const EVENTS: usize = 16;
/// How long after the last guess of a port a connection may still come up.
const GUESS_GRACE: Duration = Duration::from_secs(5);

/// How much longer a page waits until it uses TURN. A browser asks all servers at the beginning of ICE, so
/// ICE has to begin anew, and what was about to succeed is lost.
const REMAKING: Duration = Duration::from_secs(2);

type Started = (
    mpsc::Sender<Command>,
    mpsc::Receiver<Connection>,
    Arc<Shared>,
);

/// Starts a peer. Native targets need a tokio runtime around the call.
pub(crate) fn start(identity: Identity, mut config: Config) -> Result<Started, Error> {
    config.max_streams = config.max_streams.min(backend::transports::MOST_STREAMS);
    backend::check(&config)?;
    let (relay_addrs, sites) = relays(&config)?;
    let keypair = identity.keypair();
    let local = keypair.public().to_peer_id();
    let io = |e: std::io::Error| Error::new(ErrorKind::Io, e.to_string()).with_source(e);

    let rtc_config = rtc_config(&config);
    let policy = Policy::new(config.dial_private, relay_addrs.clone());
    let net = backend::Net::open(&config, &rtc_config, keypair, &policy);
    let net = net.map_err(|e| match e {
        webrtc::BackendError::Unavailable(why) => Error::new(ErrorKind::UnsupportedPlatform, why),
        other => Error::new(ErrorKind::Io, other.to_string()).with_source(other),
    })?;
    let (webrtc, webrtc_behaviour) = webrtc::with_backend(local, rtc_config, net.rtc.clone());
    let webrtc = webrtc
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    let (circuits, (circuit_requests, arrivals)) = circuit::new();
    let circuits = circuits.boxed();
    let patience = config.strategy_timeout.max(config.relay_timeout);
    let transport = backend::transports::peer(
        keypair,
        webrtc,
        circuits,
        &net,
        config.max_streams,
        patience,
    )
    .map_err(io)?;
    let recorder = Recorder::default();
    let shared_policy = Arc::new(policy.clone());
    let transport = Recorded::over(transport, recorder.clone(), policy).boxed();

    let raw: HashMap<StreamProtocol, String> = config
        .protocols
        .iter()
        .map(|name| Ok((raw_protocol(name)?, name.clone())))
        .collect::<Result<_, Error>>()?;
    let sealer = Sealer::new(keypair);
    let inbound = [
        resume::PROTOCOL,
        CLOSE_PROTOCOL,
        DOUBT_PROTOCOL,
        STOP_PROTOCOL,
        drain::PROTOCOL,
        notice::PROTOCOL,
    ]
    .map(StreamProtocol::new)
    .into_iter()
    .chain(raw.keys().cloned())
    .chain(
        sealer
            .is_some()
            .then_some(OFFER_PROTOCOL)
            .map(StreamProtocol::new),
    );
    let target = backend::behaviours::new(local, &config);
    let behaviour = NodeBehaviour::new(keypair, webrtc_behaviour, target, inbound);
    let behaviour = backend::behaviours::on_heap(behaviour);
    // The loop decides which connections to close, so libp2p's idle timer is as long as it can be.
    // A browser's timers end at 2^31 ms, which is a little over 24 days.
    let swarm_config =
        swarm::Config::with_executor(|task: Pin<Box<dyn Future<Output = ()> + Send>>| {
            backend::runtime::spawn(task);
        })
        .with_substream_upgrade_protocol_override(libp2p::core::upgrade::Version::V1Lazy)
        .with_idle_connection_timeout(Duration::from_secs(24 * 86_400))
        // Each address of a dial waits for its turn by itself (`core::dial_order`).
        .with_dial_concurrency_factor(NonZeroU8::MAX);
    let swarm = Swarm::new(transport, behaviour, local, swarm_config);

    let (commands, command_rx) = mpsc::channel(COMMANDS);
    let (incoming, incoming_rx) = mpsc::channel(INCOMING);
    let (pumps, pump_rx) = futures_mpsc::channel(REPORTS);
    let (internal, internal_rx) = mpsc::channel(REPORTS);
    let nothing = Ticket::checked(PublicPeerId(local), true, vec![], vec![])?;
    let (told, status) = Told::new(nothing.clone());
    let events = broadcast::Sender::new(EVENTS);
    let shared = Shared::new(PublicPeerId(local), nothing, events.downgrade(), status);
    let shared = Arc::new(shared);
    let inputs = Inputs {
        nat_changed: nat_changed(&net),
        commands: command_rx,
        pumps: pump_rx,
        internal: internal_rx,
        circuits: circuit_requests,
        signals: backend::Signals::new(&net),
    };
    let outbox = Outbox {
        commands: commands.downgrade(),
        incoming,
        pumps,
        internal,
        events,
    };
    let wanted = if config.reserve {
        config.relay_reservations
    } else {
        0
    };
    let mut node = Node {
        rules: rules(&config, net.rtc.nat().is_some()),
        relays: Relays::new(local, &relay_addrs, wanted, config.relay_timeout, random).wishing(
            Wishes {
                tokens: config.relay_tokens.is_some(),
                turn: config.asks_for_turn(),
            },
        ),
        network: Network::new(swarm, recorder, arrivals, raw),
        sealer,
        policy: shared_policy,
        key: keypair.clone(),
        records: Records::default(),
        rooms: Rooms::default(),
        net,
        shared: shared.clone(),
        inputs,
        outbox,
        timers: Timers::new(),
        sessions: Sessions::default(),
        farewells: Farewells::default(),
        spares: Spares::default(),
        own: OwnAddresses::default(),
        online: Online::default(),
        status: told,
        effects: Effects::default(),
        shutdown: Shutdown::default(),
        config,
    };
    node.listen()?;
    node.relays.named(sites, &mut node.effects);
    node.relays.pursue(&mut node.effects);
    backend::runtime::spawn(node.run());
    Ok((commands, incoming_rx, shared))
}

/// A site, and its rank among the relays.
type Ranked = (usize, Site);

/// Returns the addresses of the configured relays, and the sites with their ranks.
fn relays(config: &Config) -> Result<(Vec<Multiaddr>, Vec<Ranked>), Error> {
    let (mut addresses, mut sites) = (Vec::new(), Vec::new());
    for relay in config.relay_texts()? {
        match relay {
            RelayText::Address(address) => addresses.push(address),
            RelayText::Site(site) => {
                sites.push((rank_of_site(addresses.len(), sites.len()), site));
            }
        }
    }
    Ok((addresses, sites))
}

/// Returns the name on the wire of a protocol that stock peers speak. libp2p's names begin with a
/// slash.
pub(super) fn raw_protocol(name: &str) -> Result<StreamProtocol, Error> {
    let wire = if name.starts_with('/') {
        name.to_owned()
    } else {
        format!("/{name}")
    };
    StreamProtocol::try_from_owned(wire)
        .map_err(|_| Error::new(ErrorKind::InvalidProtocol, "not a libp2p protocol name"))
}

/// Returns what the race may do. A browser has no port to map, and guesses no ports.
fn rules(config: &Config, native: bool) -> Rules {
    let mut ice = Vec::new();
    if config.direct {
        ice.extend([Strategy::Direct, Strategy::Stun]);
        if config.port_mapping && native {
            ice.push(Strategy::Upnp);
        }
    }
    Rules {
        ice,
        turn: config.direct && !config.turn.is_empty(),
        anew: (!native).then_some(config.start_delays.turn + REMAKING),
        start: config.start_delays.clone(),
        timeout: config.strategy_timeout,
        guessing: match effort(config).filter(|_| native) {
            Some(effort) => effort.delay + effort.duration() + GUESS_GRACE,
            None => Duration::ZERO,
        },
        retries: config.upgrade_tries,
        backoff: config.upgrade_backoff,
    }
}

/// Returns how much the birthday method may do, or `None` if it is switched off.
fn effort(config: &Config) -> Option<webrtc::Effort> {
    config.birthday.then(|| webrtc::Effort {
        delay: config.start_delays.birthday,
        sockets: config.birthday_sockets.into(),
        probes: config.birthday_probes,
        rate: config.birthday_rate,
    })
}

fn rtc_config(config: &Config) -> webrtc::Config {
    let stun = config.stun.iter().map(|url| webrtc::IceServer {
        urls: vec![url.clone()],
        ..Default::default()
    });
    let turn = config.turn.iter().map(|server| webrtc::IceServer {
        urls: vec![server.url.clone()],
        username: Some(server.username.clone()),
        credential: Some(server.credential.clone()),
    });
    webrtc::Config {
        ice_servers: stun.chain(turn).collect(),
        // ICE gets a little less time than the race gives it, so that ICE itself can report how far
        // it came.
        timeout: config.strategy_timeout.mul_f32(0.95),
        stun_timeout: config.stun_timeout,
        port_mapping: config.port_mapping && config.direct,
        port_mapping_timeout: config.port_mapping_timeout,
        turn_ca: config.turn_ca.clone(),
        mdns: config.mdns,
        birthday: effort(config),
        turn_delay: config.start_delays.turn,
        dial_private: config.dial_private,
        ..webrtc::Config::default()
    }
}

impl Node {
    fn listen(&mut self) -> Result<(), Error> {
        let given = self.config.listen_addrs()?;
        let defaults = given.is_empty();
        let addrs = if defaults {
            backend::transports::default_listen_addresses()
        } else {
            given
        };
        for addr in addrs {
            if let Err(error) = self.network.swarm.listen_on(addr.clone()) {
                // A default address may fail, as on a machine without IPv6. One from the user may
                // not.
                if !defaults {
                    return Err(Error::new(
                        ErrorKind::Io,
                        format!("listen: cannot listen on {addr}"),
                    )
                    .with_source(error));
                }
                tracing::debug!(%addr, %error, "not listening");
            }
        }
        if self.config.direct {
            let webrtc = Multiaddr::from(Protocol::WebRTC);
            self.network.swarm.listen_on(webrtc).map_err(|e| {
                Error::new(ErrorKind::Internal, "no /webrtc listener").with_source(e)
            })?;
        }
        Ok(())
    }
}
