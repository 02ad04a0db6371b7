//! The stream muxer. It presents the data channels, or the QUIC streams, of one peer connection as
//! libp2p streams.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use futures::{StreamExt, channel::mpsc, future::Either, stream::FuturesUnordered};
use futures_timer::Delay;
use libp2p::{
    PeerId,
    core::muxing::{StreamMuxer, StreamMuxerBox, StreamMuxerEvent, SubstreamBox},
    multiaddr::{Multiaddr, Protocol},
};

use super::{
    backend::{BackendError, CandidatePair, PeerConnection, PeerEvent},
    lane::{self, LaneDriver, Unreliable},
    negotiation::{Conversation, Established},
    stream::{FinAck, Stream, WindUp},
};
use crate::stream::BoxedStream;

/// How many channels of the peer may wait to be accepted. Further channels are reset. libp2p
/// negotiates at most 128 incoming streams at a time, and a peer may open all that it has ids for at
/// once.
const MAX_UNACCEPTED: usize = 512;

/// How long an offerer keeps the signalling stream after connecting. js-libp2p stops waiting for
/// its own side when the stream ends, so it must have had time to connect, too.
const OFFERER_LINGER: Duration = Duration::from_secs(1);

/// How long an answerer waits for the offerer to end the signalling stream.
const ANSWERER_LINGER: Duration = Duration::from_secs(5);

/// A change of the path of a connection, on its way from the muxer to the behaviour.
#[derive(Debug)]
pub(crate) struct PathUpdate {
    pub(crate) peer: PeerId,
    /// The address that the swarm reports for the same change.
    pub(crate) address: Multiaddr,
    pub(crate) pair: CandidatePair,
}

/// A `/webrtc` connection. Every libp2p stream is a data channel, or a QUIC stream if both peers
/// offered QUIC.
///
/// Dropping it closes the peer connection at once, with all its streams.
///
/// ```no_run
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use libp2p::{Transport as _, core::muxing::StreamMuxerBox, identity};
/// use throughline::rtc;
///
/// let me = identity::Keypair::generate_ed25519().public().to_peer_id();
/// let (transport, _behaviour) = rtc::new(me, rtc::Config::default())?;
/// // The transport's dials return a muxer, which a swarm needs in a box.
/// let transport = transport.map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
/// # drop(transport);
/// # Ok(()) }
/// ```
pub struct Muxer<P: PeerConnection> {
    peer: PeerId,
    /// The beginning of the reported addresses: the circuit that was dialled, if one was.
    circuit: Multiaddr,
    connection: P,
    /// The connection's own streams, which are used instead of data channels.
    streams: Option<StreamMuxerBox>,
    /// The events that came before the muxer existed.
    early: VecDeque<PeerEvent<P::Channel>>,
    linger: Option<(Conversation<BoxedStream>, Delay)>,
    fin_ack: FinAck,
    unaccepted: VecDeque<P::Channel>,
    winding_up: FuturesUnordered<WindUp<P::Channel>>,
    dropped: mpsc::UnboundedReceiver<WindUp<P::Channel>>,
    on_drop: mpsc::UnboundedSender<WindUp<P::Channel>>,
    /// Where path updates go, or `None` if nobody wants them.
    paths: Option<mpsc::Sender<PathUpdate>>,
    /// The waker of a task that waits for a free stream id.
    blocked: Option<Waker>,
    lane: LaneDriver<P::Channel>,
    closing: bool,
}

impl<P: PeerConnection> Muxer<P> {
    pub(crate) fn new(
        peer: PeerId,
        established: Established<BoxedStream, P>,
        paths: mpsc::Sender<PathUpdate>,
    ) -> Self {
        let Established {
            mut connection,
            events,
            conversation,
        } = established;
        let linger = match conversation.is_offerer() {
            true => OFFERER_LINGER,
            false => ANSWERER_LINGER,
        };
        let streams = connection.take_streams();
        Self {
            streams,
            linger: Some((conversation, Delay::new(linger))),
            paths: Some(paths),
            ..Self::direct(peer, connection, events, FinAck::known())
        }
    }

    /// Makes a muxer over a connection of `/webrtc-direct`, which needs no signalling.
    pub(crate) fn direct(
        peer: PeerId,
        connection: P,
        early: VecDeque<PeerEvent<P::Channel>>,
        fin_ack: FinAck,
    ) -> Self {
        let (on_drop, dropped) = mpsc::unbounded();
        Self {
            peer,
            circuit: Multiaddr::empty(),
            connection,
            streams: None,
            early,
            linger: None,
            fin_ack,
            unaccepted: VecDeque::new(),
            winding_up: FuturesUnordered::new(),
            dropped,
            on_drop,
            paths: None,
            blocked: None,
            lane: None,
            closing: false,
        }
    }

    fn stream(&self, channel: P::Channel) -> Stream<P::Channel> {
        Stream::new(channel, self.fin_ack.clone(), self.on_drop.clone())
    }

    /// Notes that the connection was dialled through `circuit`.
    ///
    /// The relay client counts connections by whether their address contains a circuit. It panics
    /// when a connection that had a circuit is closed with an address that has none.
    pub(crate) fn dialled_through(mut self, circuit: Option<Multiaddr>) -> Self {
        if let Some(mut circuit) = circuit {
            if let Some(Protocol::P2p(_)) = circuit.iter().last() {
                circuit.pop();
            }
            self.circuit = circuit;
        }
        self
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<PeerEvent<P::Channel>> {
        match self.early.pop_front() {
            Some(event) => Poll::Ready(event),
            None => self.connection.poll_event(cx),
        }
    }

    /// Drives the streams that were dropped.
    fn poll_wind_up(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Some(stream)) = self.dropped.poll_next_unpin(cx) {
            self.winding_up.push(stream);
        }
        while let Poll::Ready(Some(())) = self.winding_up.poll_next_unpin(cx) {
            if let Some(waker) = self.blocked.take() {
                waker.wake();
            }
        }
    }

    fn address(&self, pair: &CandidatePair) -> Multiaddr {
        let mut address = self.circuit.clone();
        if let Some(addr) = pair.remote.addr {
            address.push(addr.ip().into());
            address.push(Protocol::Udp(addr.port()));
        }
        address
            .with(Protocol::WebRTC)
            .with(Protocol::P2p(self.peer))
    }
}

impl<P: PeerConnection> StreamMuxer for Muxer<P> {
    type Substream = Either<Stream<P::Channel>, SubstreamBox>;
    type Error = BackendError;

    fn poll_inbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let this = self.get_mut();
        if let Some(streams) = &mut this.streams {
            let stream = ready!(Pin::new(streams).poll_inbound(cx));
            return Poll::Ready(stream.map(Either::Right).map_err(lost));
        }
        // `poll` fills this queue, and the same task always polls it.
        match this.unaccepted.pop_front() {
            Some(channel) => Poll::Ready(Ok(Either::Left(this.stream(channel)))),
            None => Poll::Pending,
        }
    }

    fn poll_outbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let this = self.get_mut();
        if let Some(streams) = &mut this.streams {
            let stream = ready!(Pin::new(streams).poll_outbound(cx));
            return Poll::Ready(stream.map(Either::Right).map_err(lost));
        }
        match this.connection.open_channel() {
            Ok(channel) => Poll::Ready(Ok(Either::Left(this.stream(channel)))),
            Err(BackendError::TooManyChannels) => {
                this.blocked = Some(cx.waker().clone());
                Poll::Pending
            }
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let this = self.get_mut();
        if let Some(streams) = &mut this.streams
            && !this.closing
        {
            // Whatever the result is, the connection below is closed next.
            let _ = ready!(Pin::new(streams).poll_close(cx));
        }
        if !this.closing {
            this.closing = true;
            this.connection.close();
        }
        ready!(this.connection.poll_closed(cx));
        Poll::Ready(Ok(()))
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        let this = self.get_mut();
        if let Some(streams) = &mut this.streams
            && let Poll::Ready(Err(error)) = Pin::new(streams).poll(cx)
        {
            return Poll::Ready(Err(lost(error)));
        }
        this.poll_wind_up(cx);
        if let Some((conversation, timeout)) = &mut this.linger
            && conversation
                .poll_linger(&mut this.connection, cx, timeout)
                .is_ready()
        {
            this.linger = None;
        }
        // The streams carry their own datagrams, and a server takes none.
        if this.streams.is_none() && this.paths.is_some() {
            lane::find(&mut this.lane, cx);
        }
        loop {
            let Poll::Ready(event) = this.poll_event(cx) else {
                lane::poll(&mut this.lane, &mut this.connection, cx);
                return Poll::Pending;
            };
            match event {
                PeerEvent::Channel(channel) if this.unaccepted.len() < MAX_UNACCEPTED => {
                    this.unaccepted.push_back(channel);
                    // `poll_inbound` takes the channel in the same turn of the swarm's loop.
                }
                PeerEvent::Lane(channel) => {
                    if let Some(lane) = &mut this.lane {
                        lane.accept(Unreliable(channel));
                    }
                }
                PeerEvent::Channel(_) => tracing::debug!("a channel was reset: too many wait"),
                PeerEvent::Path(pair) => {
                    let address = this.address(&pair);
                    let Some(paths) = &mut this.paths else {
                        continue;
                    };
                    let update = PathUpdate {
                        peer: this.peer,
                        address: address.clone(),
                        pair,
                    };
                    // A full queue loses one update of a path that will soon have another.
                    if paths.try_send(update).is_err() {
                        tracing::debug!("a path update was dropped");
                        continue;
                    }
                    return Poll::Ready(Ok(StreamMuxerEvent::AddressChange(address)));
                }
                PeerEvent::Failed(error) => return Poll::Ready(Err(error)),
                // These events belong to the negotiation, which is over.
                PeerEvent::Description(_)
                | PeerEvent::Candidate(_)
                | PeerEvent::MoreTime(_)
                | PeerEvent::Connected => {}
            }
        }
    }
}

fn lost(error: io::Error) -> BackendError {
    BackendError::Quic(error.to_string())
}
