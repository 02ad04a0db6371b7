//! The transport: dials and listeners for `/webrtc` addresses.

use std::{
    collections::VecDeque,
    pin::{Pin, pin},
    task::{Context, Poll},
};

use futures::{
    FutureExt, StreamExt,
    channel::{mpsc, oneshot},
    future::{BoxFuture, Either, select},
};
use libp2p::{
    Multiaddr, PeerId,
    core::transport::{self, DialOpts, ListenerId, TransportError, TransportEvent},
    multiaddr::Protocol,
};
use web_time::Instant;

use super::{
    Config,
    address::{self, NotATarget, Target},
    answers::{Answers, Place},
    attempt::{Attempt, Offered, until},
    backend::Backend,
    behaviour::{Notice, Request},
    dials::{Answering, Dials},
    error::Error,
    muxer::{Muxer, PathUpdate},
    negotiation::Negotiating,
};

type Output<B> = (PeerId, Muxer<<B as Backend>::Connection>);
type Upgrade<B> = BoxFuture<'static, Result<Output<B>, Error>>;

/// Dials `<relay>/p2p/R/p2p-circuit/webrtc/p2p/B` and `/webrtc/p2p/B`. Listens on `/webrtc` (for
/// every circuit) and on `<circuit>/webrtc` (for that circuit).
///
/// Put it before the relay client in the `or_transport` chain, because the relay client takes
/// `/p2p-circuit/webrtc` addresses for its own. It needs no security upgrade and no muxer upgrade:
/// the signalling connection authenticates the peer, and the fingerprint in the peer's session
/// description binds the certificate to the peer.
///
/// Dropping the future of a dial takes everything back that the dial began.
pub struct Transport<B: Backend> {
    shared: Shared<B>,
    notices: mpsc::Receiver<Notice>,
    /// The offers that lost against a dial which then succeeded.
    handed_back: mpsc::Receiver<(PeerId, Offered)>,
    listeners: Vec<Listener>,
    circuits: Vec<Multiaddr>,
    events: VecDeque<TransportEvent<Upgrade<B>, Error>>,
    answers: Answers,
    /// The offers that are being refused.
    refusals: Vec<BoxFuture<'static, ()>>,
}

/// How many offers are refused at once. The streams of further ones are reset.
const MAX_REFUSALS: usize = 16;

#[derive(Debug)]
struct Listener {
    id: ListenerId,
    /// The circuit that the listener is for, or `None` for all circuits.
    only: Option<Multiaddr>,
}

impl Listener {
    fn covers(&self, advertised: &Multiaddr) -> bool {
        self.only
            .as_ref()
            .is_none_or(|only| only.clone().with(Protocol::WebRTC) == *advertised)
    }
}

/// The state that dials and answers share.
struct Shared<B: Backend> {
    local: PeerId,
    config: Config,
    backend: B,
    dials: Dials<Output<B>>,
    requests: mpsc::Sender<Request>,
    paths: mpsc::Sender<PathUpdate>,
    hand_back: mpsc::Sender<(PeerId, Offered)>,
}

impl<B: Backend> Clone for Shared<B> {
    fn clone(&self) -> Self {
        Self {
            local: self.local,
            config: self.config.clone(),
            backend: self.backend.clone(),
            dials: self.dials.clone(),
            requests: self.requests.clone(),
            paths: self.paths.clone(),
            hand_back: self.hand_back.clone(),
        }
    }
}

impl<B: Backend> Transport<B> {
    pub(crate) fn new(
        local: PeerId,
        config: Config,
        backend: B,
        requests: mpsc::Sender<Request>,
        paths: mpsc::Sender<PathUpdate>,
        notices: mpsc::Receiver<Notice>,
    ) -> Self {
        let (hand_back, handed_back) = mpsc::channel(1);
        let answers = Answers::new(config.max_inbound);
        Self {
            shared: Shared {
                local,
                config,
                backend,
                dials: Dials::default(),
                requests,
                paths,
                hand_back,
            },
            notices,
            handed_back,
            listeners: Vec::new(),
            circuits: Vec::new(),
            events: VecDeque::new(),
            answers,
            refusals: Vec::new(),
        }
    }

    fn notice(&mut self, notice: Notice) {
        match notice {
            Notice::Signalling(peer, stream) => {
                if let Some(stream) = self.shared.dials.hand_to_dial(peer, stream) {
                    self.offered(peer, Offered::new(stream));
                }
            }
            Notice::CircuitAdded(listen_addr) => {
                if !self.circuits.contains(&listen_addr) {
                    self.circuits.push(listen_addr.clone());
                    for listener in self.listeners.iter().filter(|l| l.covers(&listen_addr)) {
                        self.events.push_back(TransportEvent::NewAddress {
                            listener_id: listener.id,
                            listen_addr: listen_addr.clone(),
                        });
                    }
                }
            }
            Notice::CircuitRemoved(listen_addr) => {
                self.circuits.retain(|circuit| *circuit != listen_addr);
                for listener in self.listeners.iter().filter(|l| l.covers(&listen_addr)) {
                    self.events.push_back(TransportEvent::AddressExpired {
                        listener_id: listener.id,
                        listen_addr: listen_addr.clone(),
                    });
                }
            }
        }
    }

    /// Answers an offer that no dial takes. If there is no place for it, it is dropped, which resets
    /// its stream. Without a listener, the peer is told that it need not ask again.
    fn offered(&mut self, peer: PeerId, offered: Offered) {
        let Some(listener) = self.listeners.first() else {
            tracing::debug!(%peer, "an offer was refused: there is no listener");
            if self.refusals.len() < MAX_REFUSALS {
                self.refusals.push(offered.signalling.refuse().boxed());
            }
            return;
        };
        // The peer's own share is checked first, so that nobody gives way to a peer that has used
        // up its share.
        let Some(answering) = self.shared.dials.answering(peer) else {
            tracing::debug!(%peer, "an offer was refused: the peer has too many answers under way");
            return;
        };
        let Some(place) = self.answers.place(Instant::now()) else {
            tracing::debug!(%peer, "an offer was refused: too many answers are under way");
            return;
        };
        let places = (place, answering);
        self.events.push_back(TransportEvent::Incoming {
            listener_id: listener.id,
            upgrade: answer(self.shared.clone(), places, peer, offered).boxed(),
            local_addr: Multiaddr::empty().with(Protocol::WebRTC),
            send_back_addr: address::label(peer),
        });
    }
}

async fn dial<B: Backend>(mut shared: Shared<B>, target: Target) -> Result<Output<B>, Error> {
    let deadline = Instant::now() + shared.config.timeout;
    let peer = target.peer;
    let circuit = target.circuit.clone();
    let (_dialling, offers) = shared.dials.dialling(peer);
    if let Some(answer) = shared.dials.wait_for_answer(peer)
        && let Ok((peer, muxer)) = answer.await
    {
        return Ok((peer, muxer.dialled_through(circuit)));
    }
    let mut requests = shared.requests.clone();
    let mut next = target;
    let request = move || {
        let (reply, stream) = oneshot::channel();
        let target = next.clone();
        // A second stream is only requested over a circuit that is up, or is coming up by another
        // dial.
        next.circuit = None;
        // The queue is full only when the behaviour is gone or far behind. Both make the attempt
        // fail.
        let _ = requests.try_send(Request { target, reply });
        stream
    };
    let ids = (shared.local, peer);
    let won = Attempt::new(shared.backend.clone(), ids, deadline, request, offers).await?;
    if let Some(offered) = won.offered {
        // The queue is full only while another offer is being handed back, and that offer is
        // enough.
        let _ = shared.hand_back.try_send((peer, offered));
    }
    let muxer = Muxer::new(peer, won.established, shared.paths);
    Ok((peer, muxer.dialled_through(circuit)))
}

/// Answers while there is a place for it.
async fn answer<B: Backend>(
    shared: Shared<B>,
    (mut place, answering): (Place, Answering<Output<B>>),
    peer: PeerId,
    offered: Offered,
) -> Result<Output<B>, Error> {
    let lost = pin!(place.lost());
    let answered = pin!(answer_in_place(shared, answering, peer, offered));
    match select(answered, lost).await {
        Either::Left((answered, _)) => answered,
        Either::Right(((), _)) => Err(Error::Crowded),
    }
}

async fn answer_in_place<B: Backend>(
    shared: Shared<B>,
    answering: Answering<Output<B>>,
    peer: PeerId,
    offered: Offered,
) -> Result<Output<B>, Error> {
    let deadline = Instant::now() + shared.config.timeout;
    let connection = shared.backend.connect(peer)?;
    let established = Negotiating::answer(
        connection,
        offered.signalling,
        offered.messages,
        until(deadline),
    )?
    .await?;
    let muxer = Muxer::new(peer, established, shared.paths);
    answering.finish((peer, muxer)).ok_or(Error::Superseded)
}

impl<B: Backend> transport::Transport for Transport<B> {
    type Output = Output<B>;
    type Error = Error;
    type ListenerUpgrade = Upgrade<B>;
    type Dial = Upgrade<B>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        addr: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        let Some(only) = address::parse_listener(&addr) else {
            return Err(TransportError::MultiaddrNotSupported(addr));
        };
        let listener = Listener { id, only };
        for circuit in self.circuits.iter().filter(|c| listener.covers(c)) {
            self.events.push_back(TransportEvent::NewAddress {
                listener_id: id,
                listen_addr: circuit.clone(),
            });
        }
        self.listeners.push(listener);
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let before = self.listeners.len();
        self.listeners.retain(|listener| listener.id != id);
        let removed = self.listeners.len() < before;
        if removed {
            self.events.push_back(TransportEvent::ListenerClosed {
                listener_id: id,
                reason: Ok(()),
            });
        }
        removed
    }

    fn dial(
        &mut self,
        addr: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        let target = match address::parse_target(&addr) {
            Ok(target) if !opts.role.is_listener() => target,
            Ok(_) | Err(NotATarget::Foreign) => {
                return Err(TransportError::MultiaddrNotSupported(addr));
            }
            Err(NotATarget::NoPeer) => return Err(TransportError::Other(Error::NoPeer)),
        };
        Ok(dial(self.shared.clone(), target).boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let this = self.get_mut();
        loop {
            if let Some(event) = this.events.pop_front() {
                return Poll::Ready(event);
            }
            if let Poll::Ready(Some(notice)) = this.notices.poll_next_unpin(cx) {
                this.notice(notice);
                continue;
            }
            if let Poll::Ready(Some((peer, offered))) = this.handed_back.poll_next_unpin(cx) {
                this.offered(peer, offered);
                continue;
            }
            this.refusals
                .retain_mut(|refusal| refusal.poll_unpin(cx).is_pending());
            return Poll::Pending;
        }
    }
}
