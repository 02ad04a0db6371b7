//! A stock rust-libp2p peer with nothing of ours in it: relay client, identify and DCUtR. Peers of
//! this library get a direct connection to it all the same.
//!
//! ```text
//! cargo run --example libp2p_dcutr -- listen RELAY      # prints a ticket for `throughline connect`
//! cargo run --example libp2p_dcutr -- dial RELAY PEER   # a peer of ours, by its peer id
//! ```
//!
//! Both print each connection to another peer as a JSON line, with its path.

use std::{error::Error, time::Duration};

use futures::StreamExt as _;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder, dcutr, identify,
    multiaddr::Protocol,
    noise, ping, relay,
    swarm::{NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};

#[derive(NetworkBehaviour)]
pub struct Behaviour {
    relay: relay::client::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
    dcutr: dcutr::Behaviour,
}

/// Makes a peer that listens at `host` over QUIC and TCP, on any port.
pub fn peer(host: &str) -> Result<Swarm<Behaviour>, Box<dyn Error>> {
    let mut swarm = SwarmBuilder::with_new_identity()
        .with_tokio()
        .with_tcp(
            tcp::Config::default().nodelay(true),
            noise::Config::new,
            yamux::Config::default,
        )?
        .with_quic()
        .with_relay_client(noise::Config::new, yamux::Config::default)?
        .with_behaviour(|key, relay| Behaviour {
            relay,
            identify: identify::Behaviour::new(identify::Config::new(
                "/stock/1".into(),
                key.public(),
            )),
            ping: ping::Behaviour::default(),
            dcutr: dcutr::Behaviour::new(key.public().to_peer_id()),
        })?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(60)))
        .build();
    swarm.listen_on(format!("/ip4/{host}/udp/0/quic-v1").parse()?)?;
    swarm.listen_on(format!("/ip4/{host}/tcp/0").parse()?)?;
    Ok(swarm)
}

/// Connects to the relay, and waits until it has said at which address it sees this peer. The other
/// end of a hole punch is told this address.
pub async fn meet_relay(
    swarm: &mut Swarm<Behaviour>,
    relay: &Multiaddr,
) -> Result<(), Box<dyn Error>> {
    let mut listening = 0;
    while listening < 2 {
        if let SwarmEvent::NewListenAddr { .. } = swarm.select_next_some().await {
            listening += 1;
        }
    }
    swarm.dial(relay.clone())?;
    let (mut told, mut learned) = (false, false);
    while !(told && learned) {
        match swarm.select_next_some().await {
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Sent { .. })) => {
                told = true;
            }
            SwarmEvent::Behaviour(BehaviourEvent::Identify(identify::Event::Received {
                ..
            })) => learned = true,
            SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

/// Asks the relay for a reservation and waits until it is granted.
pub async fn reserve(
    swarm: &mut Swarm<Behaviour>,
    relay: &Multiaddr,
) -> Result<(), Box<dyn Error>> {
    swarm.listen_on(relay.clone().with(Protocol::P2pCircuit))?;
    loop {
        if let SwarmEvent::Behaviour(BehaviourEvent::Relay(
            relay::client::Event::ReservationReqAccepted { .. },
        )) = swarm.select_next_some().await
        {
            return Ok(());
        }
    }
}

/// Waits for the next connection to another peer than `relay`. Returns the peer, and whether the
/// connection is direct.
pub async fn connection(swarm: &mut Swarm<Behaviour>, relay: &Multiaddr) -> (PeerId, bool) {
    loop {
        if let SwarmEvent::ConnectionEstablished {
            peer_id, endpoint, ..
        } = swarm.select_next_some().await
            && relay.iter().last() != Some(Protocol::P2p(peer_id))
        {
            return (peer_id, !endpoint.is_relayed());
        }
    }
}

#[tokio::main]
#[allow(dead_code, reason = "a test takes the peer without the program")]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let (relay, other): (Multiaddr, Option<PeerId>) = match args.as_slice() {
        [command, relay] if command == "listen" => (relay.parse()?, None),
        [command, relay, peer] if command == "dial" => (relay.parse()?, Some(peer.parse()?)),
        _ => return Err("usage: libp2p_dcutr listen RELAY | dial RELAY PEER".into()),
    };
    let mut swarm = peer("0.0.0.0")?;
    meet_relay(&mut swarm, &relay).await?;
    match other {
        None => {
            reserve(&mut swarm, &relay).await?;
            let me = swarm.local_peer_id().to_string().parse()?;
            let ticket = throughline::Ticket::from_parts(me, [relay.to_string()], [])?;
            println!(r#"{{"event":"ready","peer_id":"{me}","ticket":"{ticket}"}}"#);
        }
        Some(peer) => {
            let circuit = relay.clone().with(Protocol::P2pCircuit);
            swarm.dial(circuit.with(Protocol::P2p(peer)))?;
        }
    }
    loop {
        let (peer, direct) = connection(&mut swarm, &relay).await;
        let path = if direct { "direct" } else { "relayed" };
        println!(r#"{{"event":"connection","peer_id":"{peer}","path":"{path}"}}"#);
    }
}
