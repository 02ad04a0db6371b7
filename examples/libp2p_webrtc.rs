//! A plain rust-libp2p program that speaks `/webrtc`, as js-libp2p does: two peers behind NATs
//! connect directly, with nothing but a circuit relay between them.
//!
//! With any relay (`throughline serve`, or a js-, go- or rust-libp2p one) at address R:
//!
//! ```text
//! cargo run --features libp2p --example libp2p_webrtc -- listen R
//! cargo run --features libp2p --example libp2p_webrtc -- dial R/p2p-circuit/webrtc/p2p/<the listener's peer id>
//! ```
//!
//! Both print the path that carries the connection, and pings over it.

use std::{error::Error, time::Duration};

use futures::{StreamExt, future::Either};
use libp2p::{
    Multiaddr, PeerId, Swarm, Transport,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, OrTransport},
        upgrade::Version,
    },
    identify,
    identity::Keypair,
    multiaddr::Protocol,
    noise, ping, quic, relay,
    swarm::{self, NetworkBehaviour, SwarmEvent},
    tcp, yamux,
};
use libp2p_websocket as websocket;
use throughline::rtc;

#[derive(NetworkBehaviour)]
struct Behaviour {
    relay: relay::client::Behaviour,
    /// Gets the signalling streams that the transport asks for.
    webrtc: rtc::Behaviour,
    identify: identify::Behaviour,
    ping: ping::Behaviour,
}

type Connection = (PeerId, StreamMuxerBox);

/// The order matters: `/webrtc` addresses contain `/p2p-circuit`, so the relay client, asked
/// first, would take them for its own.
fn transport(
    key: &Keypair,
    webrtc: rtc::Transport,
    circuit: relay::client::Transport,
) -> Result<Boxed<Connection>, Box<dyn Error>> {
    let webrtc = webrtc
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    let circuit = circuit
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(key)?)
        .multiplex(yamux::Config::default())
        .boxed();
    let quic = quic::tokio::Transport::new(quic::Config::new(key))
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    let tcp = || tcp::tokio::Transport::new(tcp::Config::default().nodelay(true));
    let tcp = websocket::Config::new(tcp())
        .or_transport(tcp())
        .upgrade(Version::V1Lazy)
        .authenticate(noise::Config::new(key)?)
        .multiplex(yamux::Config::default())
        .boxed();
    Ok(first(webrtc, first(circuit, first(quic, tcp))))
}

/// Joins two transports. The first one is asked first.
fn first(a: Boxed<Connection>, b: Boxed<Connection>) -> Boxed<Connection> {
    OrTransport::new(a, b)
        .map(|either, _| match either {
            Either::Left(connection) | Either::Right(connection) => connection,
        })
        .boxed()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: libp2p_webrtc listen RELAY | dial ADDRESS";
    let mut args = std::env::args().skip(1);
    let (Some(command), Some(address)) = (args.next(), args.next()) else {
        return Err(usage.into());
    };
    let address: Multiaddr = address.parse()?;

    let key = Keypair::generate_ed25519();
    let me = key.public().to_peer_id();
    let (webrtc, webrtc_behaviour) = rtc::new(me, rtc::Config::default())?;
    let (circuit, circuit_behaviour) = relay::client::new(me);
    let behaviour = Behaviour {
        relay: circuit_behaviour,
        webrtc: webrtc_behaviour,
        identify: identify::Behaviour::new(identify::Config::new(
            "/libp2p-webrtc-example/1".into(),
            key.public(),
        )),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(Duration::from_secs(1))),
    };
    let mut swarm = Swarm::new(
        transport(&key, webrtc, circuit)?,
        behaviour,
        me,
        swarm::Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(60)),
    );

    match command.as_str() {
        "listen" => {
            swarm.listen_on("/webrtc".parse()?)?;
            swarm.listen_on(address.with(Protocol::P2pCircuit))?;
        }
        "dial" => swarm.dial(address)?,
        _ => return Err(usage.into()),
    }

    loop {
        match swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { address, .. } => {
                println!("listening {address}/p2p/{me}");
            }
            SwarmEvent::ConnectionEstablished {
                peer_id, endpoint, ..
            } => println!("connected {peer_id} {}", endpoint.get_remote_address()),
            SwarmEvent::ConnectionClosed { peer_id, cause, .. } => {
                println!("closed {peer_id} {cause:?}");
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => println!("failed {error}"),
            SwarmEvent::IncomingConnectionError { error, .. } => println!("refused {error}"),
            SwarmEvent::Behaviour(BehaviourEvent::Webrtc(rtc::Event::Path {
                peer, pair, ..
            })) => {
                println!("path {peer} {pair:?}");
            }
            SwarmEvent::Behaviour(BehaviourEvent::Ping(ping)) => {
                println!("ping {} {} {:?}", ping.peer, ping.connection, ping.result);
            }
            _ => {}
        }
    }
}
