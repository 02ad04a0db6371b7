//! Starting a peer: what its configuration means for transports, behaviours and the race.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::channel::mpsc as futures_mpsc;
use libp2p::{
    Multiaddr, StreamProtocol, Swarm, Transport as _, core::muxing::StreamMuxerBox,
    multiaddr::Protocol, relay, swarm,
};
use tokio::sync::mpsc;

use super::{Node, nat_changed, raw_protocol};
use crate::{
    Config, backend, circuit,
    connection::Connection,
    core::{dial::Policy, offer::OFFER_PROTOCOL, plan::Rules, resume},
    error::{Error, ErrorKind},
    event::Strategy,
    identity::{Identity, PeerId as PublicPeerId},
    metrics::Metrics,
    node::{
        Command, Shared, behaviour::Behaviour, dials, opening::CLOSE_PROTOCOL, relays::Relays,
        spares::Spares, timers::Timers,
    },
    rtc,
    ticket::Ticket,
};

/// Commands that may wait; senders wait beyond.
const COMMANDS: usize = 256;
/// Connections that may wait to be accepted; more are refused.
const INCOMING: usize = 64;
/// Reports of pumps and of tasks of the node's own that may wait; senders wait beyond.
const REPORTS: usize = 256;
/// How long an answer to the last guess of a port may take, with what follows it.
const GUESS_GRACE: Duration = Duration::from_secs(5);

type Started = (
    mpsc::Sender<Command>,
    mpsc::Receiver<Connection>,
    Arc<Shared>,
);

/// Starts a peer; on native targets within a tokio runtime.
pub(crate) fn start(identity: Identity, config: Config) -> Result<Started, Error> {
    backend::check(&config)?;
    let relay_addrs = config.relay_addrs()?;
    let keypair = identity.keypair();
    let local = keypair.public().to_peer_id();
    let io = |e: std::io::Error| Error::new(ErrorKind::Io, e.to_string()).with_source(e);

    let rtc_config = rtc_config(&config);
    let (guesses_tx, guesses) = mpsc::channel(REPORTS);
    let policy = Policy::new(config.dial_private, relay_addrs.clone());
    let net = backend::Net::open(&config, &rtc_config, keypair, guesses_tx, &policy);
    let net = net.map_err(|e| match e {
        rtc::BackendError::Unavailable(why) => Error::new(ErrorKind::UnsupportedPlatform, why),
        other => Error::new(ErrorKind::Io, other.to_string()).with_source(other),
    })?;
    let (webrtc, webrtc_behaviour) = rtc::with_backend(local, rtc_config, net.rtc.clone());
    let webrtc = webrtc
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    let (circuits, circuit_requests) = circuit::new();
    let (circuits_in, relay_behaviour) = relay::client::new(local);
    let circuits = circuit::join(circuits, circuits_in);
    let patience = config.strategy_timeout.max(config.relay_timeout);
    let transport =
        backend::transports::peer(keypair, webrtc, circuits, &net, patience).map_err(io)?;
    let recorder = dials::Recorder::default();
    let transport = dials::Transport::new(transport, recorder.clone(), policy).boxed();

    let raw: HashMap<StreamProtocol, String> = config
        .protocols
        .iter()
        .map(|name| Ok((raw_protocol(name)?, name.clone())))
        .collect::<Result<_, Error>>()?;
    let sealer = backend::offer::Sealer::new(keypair);
    let inbound = [resume::PROTOCOL, CLOSE_PROTOCOL]
        .map(StreamProtocol::new)
        .into_iter()
        .chain(raw.keys().cloned())
        .chain(
            sealer
                .is_some()
                .then_some(OFFER_PROTOCOL)
                .map(StreamProtocol::new),
        );
    let stock = backend::stock::behaviour(local, &config);
    let behaviour = Behaviour::new(keypair, webrtc_behaviour, relay_behaviour, stock, inbound);
    let behaviour = backend::heap::on_heap(behaviour);
    // Closing what nobody needs is the node's decision, so libp2p's idle timer never makes it. A
    // browser's timers end at 2^31 ms, which is a little over 24 days.
    let swarm_config =
        swarm::Config::with_executor(|task: Pin<Box<dyn Future<Output = ()> + Send>>| {
            backend::runtime::spawn(task);
        })
        .with_substream_upgrade_protocol_override(libp2p::core::upgrade::Version::V1Lazy)
        .with_idle_connection_timeout(Duration::from_secs(24 * 86_400))
        // Happy eyeballs (RFC 8305 section 4 and 5) among the addresses of one dial: QUIC before
        // TCP, IPv6 before IPv4 and both families among the first two; the second starts 250 ms
        // after the first, the rest after 500 ms, TCP 250 ms after the last QUIC; private
        // addresses at their own pace of 30 ms. A circuit or an upgrade is one address, and starts
        // at once.
        .with_smart_dial();
    let swarm = Swarm::new(transport, behaviour, local, swarm_config);

    let (commands, command_rx) = mpsc::channel(COMMANDS);
    let (incoming, incoming_rx) = mpsc::channel(INCOMING);
    let (pump_tx, pump_rx) = futures_mpsc::channel(REPORTS);
    let (internal_tx, internal_rx) = mpsc::channel(REPORTS);
    let shared = Arc::new(Shared {
        peer_id: PublicPeerId(local),
        metrics: Metrics::new(),
        ticket: Mutex::new(Ticket::checked(PublicPeerId(local), true, vec![], vec![])?),
    });
    let rules = rules(&config, net.rtc.nat().is_some());
    let mut node = Node {
        relays: Relays::new(&relay_addrs, config.relay_reservations),
        sealer: sealer.clone(),
        swarm,
        nat_changed: nat_changed(&net),
        net,
        shared: shared.clone(),
        commands: commands.downgrade(),
        command_rx,
        incoming,
        pump_tx,
        pump_rx,
        internal_tx,
        internal_rx,
        circuit_requests,
        guesses,
        timers: Timers::new(),
        sessions: HashMap::new(),
        by_peer: HashMap::new(),
        next_session: 1,
        rules,
        recorder,
        dials: HashMap::new(),
        punches: HashMap::new(),
        opening: HashMap::new(),
        farewells: HashMap::new(),
        raw,
        online: Vec::new(),
        spares: Spares::default(),
        settling: false,
        listening: HashMap::new(),
        observed: Vec::new(),
        confirmed: Vec::new(),
        shutdown: Vec::new(),
        stopping: false,
        config,
    };
    node.listen()?;
    node.pursue_reservations();
    backend::runtime::spawn(node.run());
    Ok((commands, incoming_rx, shared))
}

/// What the race may do. A browser has no port to map, and guesses none.
fn rules(config: &Config, native: bool) -> Rules {
    let mut ice = Vec::new();
    if config.direct {
        ice.extend([Strategy::Direct, Strategy::Stun]);
        if config.port_mapping && native {
            ice.push(Strategy::Upnp);
        }
        if !config.turn.is_empty() {
            ice.push(Strategy::Turn);
        }
    }
    Rules {
        ice,
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

/// How much of the birthday method is allowed.
fn effort(config: &Config) -> Option<rtc::Effort> {
    config.birthday.then(|| rtc::Effort {
        delay: config.start_delays.birthday,
        sockets: config.birthday_sockets.into(),
        probes: config.birthday_probes,
        rate: config.birthday_rate,
    })
}

fn rtc_config(config: &Config) -> rtc::Config {
    let stun = config.stun.iter().map(|url| rtc::IceServer {
        urls: vec![url.clone()],
        ..Default::default()
    });
    let turn = config.turn.iter().map(|server| rtc::IceServer {
        urls: vec![server.url.clone()],
        username: Some(server.username.clone()),
        credential: Some(server.credential.clone()),
    });
    rtc::Config {
        ice_servers: stun.chain(turn).collect(),
        // A little less than the race gives it, so that it can say itself how far it came.
        timeout: config.strategy_timeout.mul_f32(0.95),
        stun_timeout: config.stun_timeout,
        port_mapping: config.port_mapping && config.direct,
        port_mapping_timeout: config.port_mapping_timeout,
        turn_ca: config.turn_ca.clone(),
        mdns: config.mdns,
        birthday: effort(config),
        dial_private: config.dial_private,
        ..rtc::Config::default()
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
            if let Err(error) = self.swarm.listen_on(addr.clone()) {
                // A machine without IPv6 is not an error; an address that the user gave is.
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
            self.swarm.listen_on(webrtc).map_err(|e| {
                Error::new(ErrorKind::Internal, "no /webrtc listener").with_source(e)
            })?;
        }
        Ok(())
    }
}
