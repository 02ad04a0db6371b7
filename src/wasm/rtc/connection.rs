//! `RTCPeerConnection` with a polled interface.
//!
//! The browser runs its operations one after the other (RTCPeerConnection's operations chain). So
//! each method here starts its operation at once, and leaves only the waiting to
//! [`poll_event`](PeerConnectionTrait::poll_event).

use std::{
    cell::RefCell,
    collections::{HashSet, VecDeque},
    future::Future,
    net::SocketAddr,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures::{FutureExt, StreamExt, channel::oneshot, stream::FuturesUnordered};
use futures_timer::Delay;
use js_sys::{Function, JSON, Reflect};
use send_wrapper::SendWrapper;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::{
    Event, EventTarget, RtcDataChannel, RtcDataChannelEvent, RtcDataChannelInit, RtcIceCandidate,
    RtcIceConnectionState, RtcPeerConnection, RtcPeerConnectionIceEvent, RtcPeerConnectionState,
    RtcSdpType, RtcSessionDescriptionInit,
};

use super::{
    Made, Rtc,
    channel::{Channel, Inbound, is_lane},
    description::{Candidates, describe, description, wait},
    stats,
};
use crate::{
    core::{
        candidate::{Candidate, CandidateKind},
        sdp::{Description, Fingerprint},
        signalling::IceCandidate,
        webrtc_direct,
    },
    wasm::{listener::Listener, value},
    webrtc::backend::{
        BackendError, CandidatePair, INIT_LABEL, LANE_LABEL, PeerConnection as PeerConnectionTrait,
        PeerEvent, SpareTurn,
    },
};

/// The most channels that the peer opened and that nobody has taken yet. More are closed.
const MAX_WAITING_CHANNELS: usize = 64;

/// How long ICE may be without an answer before the connection is over.
///
/// Browsers report `disconnected` after some 5 s and `failed` after 15 to 30 s. There is another
/// path to fall back to, so waiting for `failed` would only stop data from moving.
const DISCONNECTED_GRACE: Duration = Duration::from_secs(5);

/// The most port mappings of a peer that are remembered. A real peer has one.
const MAX_MAPPED: usize = 16;

/// How often the selected pair is read. Not all browsers have an event for it.
const STATS_INTERVAL: Duration = Duration::from_secs(2);

/// An operation of the browser that is under way.
type Operation = Pin<Box<dyn Future<Output = Result<(), BackendError>>>>;

/// A peer connection of a page.
pub struct PeerConnection(SendWrapper<Inner>);

struct Inner {
    connection: RtcPeerConnection,
    shared: Rc<RefCell<Shared>>,
    operations: FuturesUnordered<Operation>,
    inbound: Inbound,
    init: Option<(RtcDataChannel, Listener)>,
    disconnected: Option<Delay>,
    path: Option<PathWatch>,
    /// The addresses that the peer calls port mappings. The browser does not keep this fact.
    mapped: HashSet<SocketAddr>,
    /// The servers for the browser.
    rtc: Rtc,
    /// What the browser has done or been given before.
    made: Made,
    /// How the peers leave TURN out, if they do.
    spare: Option<SpareTurn>,
    ended: bool,
    listeners: Vec<Listener>,
}

/// The state that the listeners share with the poller.
#[derive(Default)]
pub(super) struct Shared {
    events: VecDeque<PeerEvent<Channel>>,
    channels: usize,
    disconnected: bool,
    connected: bool,
    /// Whether candidates go into the description.
    pub(super) within: bool,
    /// Told of the first candidate from a STUN server, or of the last candidate.
    pub(super) reflexive: Option<oneshot::Sender<()>>,
    waker: Option<Waker>,
}

impl Shared {
    pub(super) fn emit(&mut self, event: PeerEvent<Channel>) {
        self.events.push_back(event);
        self.wake();
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn change_state(&mut self, state: RtcPeerConnectionState, ice: RtcIceConnectionState) {
        use RtcIceConnectionState as Ice;
        use RtcPeerConnectionState as State;

        self.disconnected = state == State::Disconnected;
        match (state, ice) {
            (State::Connected, _) if !self.connected => {
                self.connected = true;
                self.emit(PeerEvent::Connected);
            }
            (State::Failed, Ice::Connected | Ice::Completed) => {
                let why = "the handshake failed, or the certificate has another fingerprint";
                self.emit(PeerEvent::Failed(BackendError::Dtls(why.to_owned())));
            }
            (State::Failed, _) => self.emit(PeerEvent::Failed(BackendError::Ice)),
            (State::Closed, _) => self.emit(PeerEvent::Failed(BackendError::Closed)),
            _ => self.wake(),
        }
    }
}

/// Reads the selected pair again and again.
struct PathWatch {
    reading: Option<Pin<Box<dyn Future<Output = Option<CandidatePair>>>>>,
    pause: Delay,
    last: Option<CandidatePair>,
}

impl PeerConnection {
    /// `spare` says how the peers leave TURN out.
    pub(super) fn new(
        connection: RtcPeerConnection,
        rtc: Rtc,
        made: Made,
        spare: Option<SpareTurn>,
    ) -> Self {
        let shared = Rc::<RefCell<Shared>>::default();
        let inbound = Inbound::default();
        let listeners = vec![
            on_candidate(&connection, shared.clone()),
            on_state(&connection, shared.clone()),
            on_channel(&connection, shared.clone(), inbound.clone()),
        ];
        Self(SendWrapper::new(Inner {
            connection,
            shared,
            operations: FuturesUnordered::new(),
            inbound,
            init: None,
            disconnected: None,
            path: None,
            mapped: HashSet::new(),
            rtc,
            made,
            spare,
            ended: false,
            listeners,
        }))
    }
}

impl PeerConnection {
    /// Connects to a `/webrtc-direct` server, whose answer to a page is known beforehand: `answer`
    /// makes it from the server's credentials. The page takes `credentials` for both sides if the
    /// browser lets it, and else keeps those of the browser. Returns the channel with id 0, which
    /// exists on both sides without being announced.
    ///
    /// # Errors
    /// Fails with [`BackendError::Closed`] when the connection is closed.
    pub(crate) fn connect_to(
        &mut self,
        credentials: String,
        answer: impl Fn(&str) -> String + 'static,
    ) -> Result<Channel, BackendError> {
        let inner = &mut *self.0;
        let channel = inner.create_channel("", Some(0));
        let channel = channel.map_err(|_| BackendError::Closed)?;
        let connection = inner.connection.clone();
        let offer = connection.create_offer();
        inner.run(async move {
            let offer = wait(offer).await.map_err(BackendError::Io)?;
            let offer: RtcSessionDescriptionInit = offer.unchecked_into();
            let sdp = offer.get_sdp().unwrap_or_default();
            offer.set_sdp(&webrtc_direct::with_credentials(&sdp, &credentials));
            let munged = wait(connection.set_local_description(&offer)).await;
            let answer = match munged {
                Ok(_) => answer(&credentials),
                // This browser does not let a page choose credentials.
                Err(_) => {
                    let own = Description::parse(&sdp)
                        .map_err(|error| BackendError::Description(error.to_string()))?;
                    offer.set_sdp(&sdp);
                    wait(connection.set_local_description(&offer))
                        .await
                        .map_err(BackendError::Description)?;
                    answer(&webrtc_direct::credentials_for(&own.pwd))
                }
            };
            let answer = description(RtcSdpType::Answer, &answer);
            wait(connection.set_remote_description(&answer))
                .await
                .map_err(BackendError::Description)?;
            Ok(())
        });
        Ok(Channel::new(channel, inner.inbound.clone()))
    }

    /// The fingerprint of the local certificate, once there is a local description.
    pub(crate) fn fingerprint(&self) -> Option<Fingerprint> {
        let local = self.0.connection.local_description()?;
        let local = Description::parse(&local.sdp()).ok()?;
        Some(local.fingerprint)
    }
}

fn on_candidate(connection: &RtcPeerConnection, shared: Rc<RefCell<Shared>>) -> Listener {
    Listener::new(
        connection,
        "icecandidate",
        move |event: RtcPeerConnectionIceEvent| {
            let candidate = event.candidate();
            let mut shared = shared.borrow_mut();
            // After the last one, there is `None`.
            if candidate
                .as_ref()
                .is_none_or(|candidate| candidate.candidate().contains(" srflx "))
                && let Some(tell) = shared.reflexive.take()
            {
                let _ = tell.send(());
            }
            if !shared.within
                && let Some(candidate) = candidate.as_ref().and_then(read_candidate)
            {
                shared.emit(PeerEvent::Candidate(candidate));
            }
        },
    )
}

/// Reads the candidate as it is sent. Returns `None` for the end of a generation of candidates.
fn read_candidate(candidate: &RtcIceCandidate) -> Option<IceCandidate> {
    let json = JSON::stringify(candidate).ok()?.as_string()?;
    IceCandidate::from_json(&json).ok().flatten()
}

fn on_state(connection: &RtcPeerConnection, shared: Rc<RefCell<Shared>>) -> Listener {
    let source = connection.clone();
    Listener::new(connection, "connectionstatechange", move |_: Event| {
        shared
            .borrow_mut()
            .change_state(source.connection_state(), source.ice_connection_state());
    })
}

fn on_channel(
    connection: &RtcPeerConnection,
    shared: Rc<RefCell<Shared>>,
    inbound: Inbound,
) -> Listener {
    Listener::new(
        connection,
        "datachannel",
        move |event: RtcDataChannelEvent| {
            let channel = event.channel();
            let mut shared = shared.borrow_mut();
            // The offerer closes this channel, and js-libp2p waits until it has closed. If this
            // side closed it, that peer could miss that it was ever open.
            if channel.label() == INIT_LABEL {
                return;
            }
            if shared.channels >= MAX_WAITING_CHANNELS {
                return channel.close();
            }
            shared.channels += 1;
            // The channel listens from here on, because messages follow this event at once.
            let event = match is_lane(&channel) {
                true => PeerEvent::Lane,
                false => PeerEvent::Channel,
            };
            shared.emit(event(Channel::new(channel, inbound.clone())));
        },
    )
}

impl Inner {
    /// Runs `operation`. Its failure fails the connection.
    fn run(&mut self, operation: impl Future<Output = Result<(), BackendError>> + 'static) {
        self.operations.push(Box::pin(operation));
        self.shared.borrow_mut().wake();
    }

    /// Creates a channel. It is announced to the peer unless it has a `negotiated` id.
    fn create_channel(
        &self,
        label: &str,
        negotiated: Option<u16>,
    ) -> Result<RtcDataChannel, JsValue> {
        let options = RtcDataChannelInit::new();
        if let Some(id) = negotiated {
            options.set_negotiated(true);
            options.set_id(id);
        }
        if label == LANE_LABEL {
            options.set_ordered(false);
            options.set_max_retransmits(0);
        }
        // The method is called by name, because the generated binding does not catch what it
        // throws.
        let create: Function = Reflect::get(&self.connection, &"createDataChannel".into())?.into();
        create
            .call2(&self.connection, &label.into(), &options)
            .map(JsCast::unchecked_into)
    }

    /// Lets the browser gather candidates of TURN servers, or leave them out. A browser that has no
    /// such method only gathers in vain, because it was given all servers.
    fn use_turn(&mut self, turn: bool) {
        let turn = turn && self.rtc.has_turn();
        if turn == (self.made == Made::WithTurn) {
            return;
        }
        // This makes the browser forget what it has gathered.
        self.made = if turn {
            Made::WithTurn
        } else {
            Made::WithoutTurn
        };
        let connection = &self.connection;
        let set =
            value::get(connection, "setConfiguration").map(JsCast::unchecked_into::<Function>);
        let _ = set.map(|set| set.call1(connection, &self.rtc.configuration(turn)));
    }

    fn open_channel(&self, label: &str) -> Result<Channel, BackendError> {
        if self.ended {
            return Err(BackendError::Closed);
        }
        match self.create_channel(label, None) {
            Ok(channel) => Ok(Channel::new(channel, self.inbound.clone())),
            Err(error) if value::string(&error, "name").as_deref() == Some("OperationError") => {
                Err(BackendError::TooManyChannels)
            }
            Err(_) => Err(BackendError::Closed),
        }
    }

    /// Begins to watch the path and the transports. Called once ICE and DTLS are up.
    fn connected(&mut self) {
        self.path = Some(PathWatch {
            reading: None,
            pause: Delay::new(Duration::ZERO),
            last: None,
        });
        self.watch_for_goodbye();
    }

    /// Notices at once when the peer closes the connection. The browser then closes only the
    /// transports, and the connection stays `connected` until ICE gives up.
    fn watch_for_goodbye(&mut self) {
        let sctp = value::get(&self.connection, "sctp");
        let dtls = sctp.as_ref().and_then(|sctp| value::get(sctp, "transport"));
        for transport in [sctp, dtls].into_iter().flatten() {
            let Ok(target) = transport.dyn_into::<EventTarget>() else {
                continue;
            };
            let shared = self.shared.clone();
            let source = target.clone();
            let on_change = move |_: Event| {
                let state = value::string(&source, "state");
                if matches!(state.as_deref(), Some("closed" | "failed")) {
                    shared
                        .borrow_mut()
                        .emit(PeerEvent::Failed(BackendError::Closed));
                }
            };
            self.listeners
                .push(Listener::new(&target, "statechange", on_change));
        }
    }

    fn poll_path(&mut self, cx: &mut Context<'_>) -> Poll<CandidatePair> {
        let Some(watch) = &mut self.path else {
            return Poll::Pending;
        };
        loop {
            if let Some(reading) = &mut watch.reading {
                let Poll::Ready(pair) = reading.poll_unpin(cx) else {
                    return Poll::Pending;
                };
                watch.reading = None;
                watch.pause.reset(STATS_INTERVAL);
                let pair = pair.map(|mut pair| {
                    pair.remote.mapped = pair
                        .remote
                        .addr
                        .is_some_and(|addr| self.mapped.contains(&addr));
                    pair
                });
                if let Some(pair) = pair
                    && watch.last.as_ref().is_none_or(|last| differs(last, &pair))
                {
                    watch.last = Some(pair.clone());
                    return Poll::Ready(pair);
                }
            }
            if watch.pause.poll_unpin(cx).is_pending() {
                return Poll::Pending;
            }
            watch.reading = Some(Box::pin(stats::selected_pair(self.connection.clone())));
        }
    }

    fn poll_disconnected(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.shared.borrow().disconnected {
            self.disconnected = None;
            return Poll::Pending;
        }
        self.disconnected
            .get_or_insert_with(|| Delay::new(DISCONNECTED_GRACE))
            .poll_unpin(cx)
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<PeerEvent<Channel>> {
        while let Poll::Ready(Some(result)) = self.operations.poll_next_unpin(cx) {
            if let Err(error) = result {
                return Poll::Ready(PeerEvent::Failed(error));
            }
        }
        let event = self.shared.borrow_mut().events.pop_front();
        if let Some(event) = event {
            match event {
                PeerEvent::Connected => self.connected(),
                PeerEvent::Channel(_) | PeerEvent::Lane(_) => {
                    self.shared.borrow_mut().channels -= 1
                }
                _ => {}
            }
            return Poll::Ready(event);
        }
        if self.poll_disconnected(cx).is_ready() {
            return Poll::Ready(PeerEvent::Failed(BackendError::Ice));
        }
        if let Poll::Ready(pair) = self.poll_path(cx) {
            return Poll::Ready(PeerEvent::Path(pair));
        }
        self.shared.borrow_mut().waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Whether the pair is another one, or its round-trip time has become known.
fn differs(last: &CandidatePair, pair: &CandidatePair) -> bool {
    last.local != pair.local
        || last.remote != pair.remote
        || last.rtt.is_some() != pair.rtt.is_some()
}

impl PeerConnectionTrait for PeerConnection {
    type Channel = Channel;

    fn create_offer(&mut self, sealed: bool) {
        let inner = &mut *self.0;
        inner.use_turn(inner.spare.is_none());
        match inner.create_channel(INIT_LABEL, None) {
            Ok(init) => {
                let channel = init.clone();
                let close = Listener::new(&init, "open", move |_: Event| channel.close());
                inner.init = Some((init, close));
            }
            Err(error) => {
                let error = BackendError::Io(value::describe_error(&error));
                return inner.run(async { Err(error) });
            }
        }
        let connection = inner.connection.clone();
        let shared = inner.shared.clone();
        let offer = connection.create_offer();
        let candidates = match inner.made {
            Made::Gathered if sealed => Candidates::Within,
            _ => Candidates::Later,
        };
        inner.run(describe(connection, shared, offer, inner.spare, candidates));
    }

    fn accept_offer(&mut self, sdp: &str) {
        let inner = &mut *self.0;
        let connection = inner.connection.clone();
        let shared = inner.shared.clone();
        if let Ok(offer) = Description::parse(sdp)
            && (offer.no_turn || offer.late_turn)
        {
            inner.spare = Some(match offer.late_turn {
                true => SpareTurn::Late,
                false => SpareTurn::Never { may_guess: false },
            });
        }
        inner.use_turn(inner.spare.is_none());
        let candidates = match inner.made {
            Made::Gathered => Candidates::Gathered,
            _ => Candidates::Later,
        };
        let accepted = connection.set_remote_description(&description(RtcSdpType::Offer, sdp));
        inner.run(async move {
            wait(accepted).await.map_err(BackendError::Description)?;
            let answer = connection.create_answer();
            describe(connection, shared, answer, None, candidates).await
        });
    }

    fn accept_answer(&mut self, sdp: &str) {
        let inner = &mut *self.0;
        let answer = description(RtcSdpType::Answer, sdp);
        let accepted = inner.connection.set_remote_description(&answer);
        inner.run(async {
            let accepted = wait(accepted).await;
            accepted.map(drop).map_err(BackendError::Description)
        });
    }

    fn add_remote_candidate(&mut self, candidate: Option<&IceCandidate>) {
        let inner = &mut *self.0;
        let known = candidate.and_then(|candidate| candidate.candidate.parse().ok());
        if let Some(known) = known {
            let known: Candidate = known;
            // A stock peer may tell them although it was asked not to.
            if let Some(SpareTurn::Never { .. }) = inner.spare
                && known.kind == CandidateKind::Relayed
            {
                return;
            }
            let mapped = known.socket_addr().filter(|_| known.mapped);
            let room = inner.mapped.len() < MAX_MAPPED;
            inner.mapped.extend(mapped.filter(|_| room));
        }
        let candidate = candidate.and_then(|candidate| JSON::parse(&candidate.to_json()).ok());
        let candidate = candidate.as_ref().map(JsCast::unchecked_ref);
        let added = inner
            .connection
            .add_ice_candidate_with_opt_rtc_ice_candidate_init(candidate);
        inner.run(async {
            // The browser refuses candidates that it cannot use. There are others.
            let _ = wait(added).await;
            Ok(())
        });
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<PeerEvent<Channel>> {
        if self.0.ended {
            return Poll::Pending;
        }
        let event = self.0.poll_event(cx);
        if let Poll::Ready(PeerEvent::Failed(_)) = event {
            self.0.ended = true;
        }
        event
    }

    fn open_channel(&mut self) -> Result<Channel, BackendError> {
        self.0.open_channel("")
    }

    fn open_lane(&mut self) -> Result<Channel, BackendError> {
        self.0.open_channel(LANE_LABEL)
    }

    fn close(&mut self) {
        self.0.ended = true;
        self.0.connection.close();
    }

    fn poll_closed(&mut self, _: &mut Context<'_>) -> Poll<()> {
        // The browser tells the peer by itself.
        Poll::Ready(())
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.connection.close();
    }
}
