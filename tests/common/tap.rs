//! A relay that keeps the offers of peers, and passes them on whenever a test wants it.

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use libp2p::{
    PeerId, Stream, StreamProtocol, SwarmBuilder, identify,
    multiaddr::Protocol,
    relay,
    swarm::{NetworkBehaviour, SwarmEvent},
};
use libp2p_stream::{Behaviour as Streams, Control, IncomingStreams};
use tokio::{sync::oneshot, time::timeout};

use super::common::PATIENCE;

/// The same names as in src/core/offer.rs and src/core/circuit.rs.
const OFFER: StreamProtocol = StreamProtocol::new("/throughline/offer/1");
const EARLY: StreamProtocol = StreamProtocol::new("/throughline/circuit/1");

#[derive(NetworkBehaviour)]
struct Behaviour {
    identify: identify::Behaviour,
    relay: relay::Behaviour,
    streams: Streams,
}

/// Without circuits, peers reach each other only by what the tap passes on.
fn no_circuits() -> relay::Config {
    relay::Config {
        max_circuits: 0,
        ..relay::Config::default()
    }
}

pub(crate) struct Tap {
    pub(crate) address: String,
    control: Control,
    offers: IncomingStreams,
    /// Without this, the tap would not claim to carry circuits as our own relay does.
    _circuits: IncomingStreams,
}

impl Tap {
    pub(crate) async fn start() -> Self {
        let mut swarm = SwarmBuilder::with_new_identity()
            .with_tokio()
            .with_quic()
            .with_behaviour(|key| Behaviour {
                identify: identify::Behaviour::new(identify::Config::new(
                    "/ipfs/id/1.0.0".to_owned(),
                    key.public(),
                )),
                relay: relay::Behaviour::new(key.public().to_peer_id(), no_circuits()),
                streams: Streams::new(),
            })
            .unwrap()
            .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE * 10))
            .build();
        let id = *swarm.local_peer_id();
        let mut control = swarm.behaviour().streams.new_control();
        let (offers, circuits) = (control.accept(OFFER), control.accept(EARLY));
        swarm
            .listen_on("/ip4/127.0.0.1/udp/0/quic-v1".parse().unwrap())
            .unwrap();
        let (listening, address) = oneshot::channel();
        tokio::spawn(async move {
            let mut listening = Some(listening);
            loop {
                if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                    swarm.add_external_address(address.clone());
                    let address = address.with(Protocol::P2p(id)).to_string();
                    listening.take().map(|listening| listening.send(address));
                }
            }
        });
        let address = timeout(PATIENCE, address).await.expect("it listens");
        Self {
            address: address.unwrap(),
            control,
            offers: offers.unwrap(),
            _circuits: circuits.unwrap(),
        }
    }

    /// Returns the first flight of the next offer that somebody wants to be passed on.
    pub(crate) async fn offered(&mut self) -> Vec<u8> {
        let flight = async {
            let (_, mut stream) = self.offers.next().await.unwrap();
            // The message to the relay comes first, and is short. Then comes one message to the
            // peer, after its length.
            let mut length = [0];
            stream.read_exact(&mut length).await.unwrap();
            stream
                .read_exact(&mut vec![0; length[0].into()])
                .await
                .unwrap();
            let mut length = [0; 2];
            stream.read_exact(&mut length).await.unwrap();
            let mut message = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut message).await.unwrap();
            [&length[..], &message].concat()
        };
        timeout(PATIENCE, flight).await.expect("an offer")
    }

    /// Opens a stream to `peer`, as if somebody had made an offer.
    pub(crate) async fn open(&mut self, peer: PeerId) -> Stream {
        // A connection of an earlier run of the peer may be about to end.
        let opened = timeout(PATIENCE, async {
            loop {
                if let Ok(stream) = self.control.open_stream(peer, OFFER).await {
                    return stream;
                }
            }
        });
        opened.await.expect("the peer is there")
    }

    /// Whether `peer` answers the offer `flight`.
    pub(crate) async fn is_answered(&mut self, peer: PeerId, flight: &[u8]) -> bool {
        let mut stream = self.open(peer).await;
        let answer = async {
            stream.write_all(flight).await?;
            stream.flush().await?;
            stream.read(&mut [0]).await
        };
        let answered = timeout(PATIENCE, answer).await;
        matches!(answered.expect("an answer, or the end"), Ok(1))
    }
}
