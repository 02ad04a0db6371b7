//! Stock rust-libp2p as a peer, with QUIC, circuit relay and DCUtR, written as its own example.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser as _;
use futures::{AsyncReadExt as _, FutureExt as _, StreamExt as _};
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, dcutr, identify, identity,
    multiaddr::Protocol,
    noise, ping, relay,
    swarm::{ConnectionId, NetworkBehaviour, SwarmEvent, behaviour::toggle::Toggle},
    yamux,
};
use serde_json::json;
use throughline_peers::{Cli, Command, Connect, Listen, Result, Serve, answer, event, ms};
use tokio::sync::oneshot;

const PROTOCOL: StreamProtocol = StreamProtocol::new("/bench/1");
/// The idle timeout. It is longer than any measurement, so that no connection without streams ends.
const IDLE: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let cli = Cli::parse();
    throughline_peers::run(async {
        match cli.command {
            Command::Serve(args) => serve(args).await,
            Command::Listen(args) => listen(args).await,
            Command::Connect(args) => connect(args).await,
        }
    })
}

#[derive(NetworkBehaviour)]
struct Behaviour {
    relay: relay::client::Behaviour,
    dcutr: Toggle<dcutr::Behaviour>,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    stream: libp2p_stream::Behaviour,
}

#[derive(NetworkBehaviour)]
struct RelayBehaviour {
    relay: relay::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

/// Runs libp2p's own relay, without its limits, which are for signalling and not for throughput.
async fn serve(args: Serve) -> Result<()> {
    let mut swarm = libp2p::SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_quic()
        .with_behaviour(|key| {
            let config = relay::Config {
                max_circuit_duration: IDLE,
                max_circuit_bytes: 0,
                ..relay::Config::default()
            };
            let identify = identify::Config::new("/bench".into(), key.public());
            RelayBehaviour {
                relay: relay::Behaviour::new(key.public().to_peer_id(), config),
                identify: identify::Behaviour::new(identify),
                ping: ping::Behaviour::default(),
            }
        })?
        .build();
    let address = Multiaddr::from(args.host)
        .with(Protocol::Udp(args.port))
        .with(Protocol::QuicV1);
    swarm.listen_on(address.clone())?;
    swarm.add_external_address(address.clone());
    let address = address.with(Protocol::P2p(*swarm.local_peer_id()));
    while !matches!(
        swarm.select_next_some().await,
        SwarmEvent::NewListenAddr { .. }
    ) {}
    event(json!({ "event": "ready", "address": address.to_string() }));
    loop {
        swarm.select_next_some().await;
    }
}

/// Makes a swarm that listens on QUIC. With a relay, it waits until the link is up and both ends
/// know the addresses that they are seen at.
async fn swarm(relay: Option<&Multiaddr>, punch: bool) -> Result<Swarm<Behaviour>> {
    let key = identity::Keypair::generate_ed25519();
    let mut swarm = libp2p::SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_quic()
        .with_relay_client(noise::Config::new, yamux::Config::default)?
        .with_behaviour(|key, relay| Behaviour {
            relay,
            dcutr: punch
                .then(|| dcutr::Behaviour::new(key.public().to_peer_id()))
                .into(),
            identify: identify::Behaviour::new(identify::Config::new(
                "/bench".into(),
                key.public(),
            )),
            ping: ping::Behaviour::default(),
            stream: libp2p_stream::Behaviour::new(),
        })?
        .with_swarm_config(|config| config.with_idle_connection_timeout(IDLE))
        .build();
    let any = if relay.is_some() {
        "0.0.0.0"
    } else {
        "127.0.0.1"
    };
    swarm.listen_on(format!("/ip4/{any}/udp/0/quic-v1").parse()?)?;
    while !matches!(
        swarm.select_next_some().await,
        SwarmEvent::NewListenAddr { .. }
    ) {}
    if let Some(relay) = relay {
        swarm.dial(relay.clone())?;
        let (mut told, mut learnt) = (false, false);
        while !(told && learnt) {
            match swarm.select_next_some().await {
                SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Sent {
                    ..
                })) => {
                    told = true;
                }
                SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                    ..
                })) => learnt = true,
                SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
                _ => {}
            }
        }
    }
    Ok(swarm)
}

async fn listen(args: Listen) -> Result<()> {
    let relay = args
        .relay
        .map(|relay| relay.parse::<Multiaddr>())
        .transpose()?;
    let mut swarm = swarm(relay.as_ref(), !args.relay_only).await?;
    let me = *swarm.local_peer_id();
    let address = match relay {
        None => swarm.listeners().next().cloned().ok_or("no address")?,
        Some(relay) => {
            let circuit = relay.with(Protocol::P2pCircuit);
            swarm.listen_on(circuit.clone())?;
            loop {
                match swarm.select_next_some().await {
                    SwarmEvent::Behaviour(BehaviourEvent::Relay(
                        relay::client::Event::ReservationReqAccepted { .. },
                    )) => break circuit,
                    SwarmEvent::ListenerClosed { reason, .. } => reason?,
                    _ => {}
                }
            }
        }
    };
    let ticket = address.with(Protocol::P2p(me)).to_string();
    event(json!({ "event": "ready", "peer_id": me.to_string(), "ticket": ticket }));
    let mut incoming = swarm.behaviour().stream.new_control().accept(PROTOCOL)?;
    loop {
        tokio::select! {
            _ = swarm.select_next_some() => {}
            Some((_, stream)) = incoming.next() => {
                let (reader, writer) = stream.split();
                tokio::spawn(answer(reader, writer));
            }
        }
    }
}

async fn connect(args: Connect) -> Result<()> {
    let ticket: Multiaddr = args.ticket.parse()?;
    let Some(Protocol::P2p(peer)) = ticket.iter().last() else {
        return Err("a ticket without a peer id".into());
    };
    let relay = args.relay.as_deref().map(str::parse).transpose()?;
    let mut swarm = swarm(relay.as_ref(), !args.relay_only).await?;
    let mut control = swarm.behaviour().stream.new_control();
    let start = Instant::now();
    swarm.dial(ticket)?;
    let (first, relayed) = established(&mut swarm, peer).await?;
    let path = if relayed { "relayed" } else { "direct" };
    event(json!({ "event": "connected", "path": path, "ms": ms(start) }));

    let (upgraded, direct) = oneshot::channel();
    let (leave_relay, left) = oneshot::channel();
    tokio::spawn(async move {
        if relayed {
            while established(&mut swarm, peer).await?.1 {}
            event(json!({ "event": "path", "path": "direct", "ms": ms(start) }));
        }
        // It is no error if nobody waits for this.
        let _ = upgraded.send(());
        let mut left = left.fuse();
        let mut leaving: Option<oneshot::Sender<()>> = None;
        loop {
            tokio::select! {
                event = swarm.select_next_some() => {
                    if matches!(event, SwarmEvent::ConnectionClosed { connection_id, .. } if connection_id == first) {
                        drop(leaving.take());
                    }
                }
                // Without this, new streams could go through either connection.
                Ok(done) = &mut left => {
                    leaving = Some(done);
                    swarm.close_connection(first);
                }
            }
        }
        #[expect(unreachable_code, reason = "names the error type")]
        Result::<()>::Ok(())
    });
    let (reader, writer) = control.open_stream(peer, PROTOCOL).await?.split();
    throughline_peers::first_byte(reader, writer).await?;
    event(json!({ "event": "first_byte", "ms": ms(start) }));
    if let Some(seconds) = args.wait_direct {
        tokio::time::timeout(Duration::from_secs_f64(seconds), direct).await??;
        if relayed && !args.hold {
            let (done, gone) = oneshot::channel();
            let _ = leave_relay.send(done);
            // The error says that the connection is gone.
            let _ = gone.await;
        }
    }
    if let Some(seconds) = args.bench {
        let (reader, writer) = control.open_stream(peer, PROTOCOL).await?.split();
        throughline_peers::upload(reader, writer, seconds).await?;
    }
    if args.hold {
        throughline_peers::held().await?;
    }
    Ok(())
}

/// Waits for the next connection to `peer`. Returns its id, and whether it goes through a relay.
async fn established(swarm: &mut Swarm<Behaviour>, peer: PeerId) -> Result<(ConnectionId, bool)> {
    loop {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionEstablished {
                peer_id,
                endpoint,
                connection_id,
                ..
            } if peer_id == peer => {
                return Ok((connection_id, endpoint.is_relayed()));
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. }
                if peer_id == Some(peer) && !swarm.is_connected(&peer) =>
            {
                return Err(error.into());
            }
            _ => {}
        }
    }
}
