//! A [`IceSession`] with its driver, and the handles on it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use libp2p::{PeerId, core::muxing::StreamMuxerBox};
use str0m::ice::StunMessage;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time,
};

use super::{
    LateSender,
    association::{Association, ChannelId},
    burst,
    session::{IceSession, Outgoing, SessionEvent},
};
#[cfg(feature = "server")]
use crate::core::sdp::Fingerprint;
use crate::{
    core::{
        birthday::Side,
        candidate::{Candidate, CandidateAddr},
        mdns::Name,
        plan::Late,
        signalling::IceCandidate,
    },
    native::{
        ice::{
            gather::{Gathered, Origin},
            mdns,
            turn::Hold,
        },
        quic::{PairLink, Quic, QuicConnection},
        runtime,
        udp::{Adopted, Receiver, Sockets},
    },
    report::NatReport,
    webrtc::backend::{self, BackendError, PeerEvent},
};

/// How long the driver sleeps when nothing is due. It is woken when there is work.
const IDLE: Duration = Duration::from_secs(60);

/// The state that the handles, the driver and the socket share.
pub(super) struct Shared {
    session: Mutex<IceSession>,
    /// The sockets that the birthday method has won.
    adopted: Mutex<Vec<Adopted>>,
    /// The receiver of what strategies report that join ICE by themselves, and the peer that they
    /// report for.
    told: Option<(PeerId, LateSender)>,
    /// The connection that the QUIC handshake gave.
    quic: Mutex<Option<QuicConnection>>,
    /// Wakes the driver.
    work: Notify,
    /// The end of the driver, and the task that waits for it.
    ended: Mutex<Ended>,
}

#[derive(Default)]
struct Ended {
    ended: bool,
    waker: Option<Waker>,
}

impl Shared {
    fn session(&self) -> MutexGuard<'_, IceSession> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a check for the peer, to be sent from a socket that the ICE agent does not know.
    /// Returns `None` once no check is needed.
    pub(super) fn guess_check(&self) -> Option<Vec<u8>> {
        self.session().guess_check()
    }

    /// Makes a local candidate of a socket that the peer has met.
    pub(super) fn adopt(&self, socket: Adopted) {
        self.session().adopt(socket.local());
        let mut adopted = self.adopted.lock().unwrap_or_else(PoisonError::into_inner);
        adopted.push(socket);
    }

    fn tell(&self, what: Late) {
        if let Some((peer, late)) = &self.told
            && let Err(error) = late.try_send((*peer, what))
        {
            // The report is lost. The strategy then ends with the attempt that it belongs to.
            tracing::debug!(%error, "the progress of a strategy cannot be reported");
        }
    }

    fn ended(&self) -> MutexGuard<'_, Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `act` with the association, and wakes the driver if that made work for it.
    fn with_association<T>(
        &self,
        act: impl FnOnce(&mut Association) -> T,
    ) -> Result<T, BackendError> {
        let mut session = self.session();
        let association = session.association.as_mut().ok_or(BackendError::Closed)?;
        let result = act(association);
        let work = association.is_dirty();
        drop(session);
        if work {
            self.work.notify_one();
        }
        Ok(result)
    }
}

impl Receiver for Shared {
    fn receive(&self, now: Instant, source: SocketAddr, destination: SocketAddr, data: &[u8]) {
        self.session().receive(now, source, destination, data);
    }

    fn received_all(&self) {
        self.work.notify_one();
    }

    fn accepts(&self, message: &StunMessage<'_>) -> bool {
        self.session().accepts(message)
    }

    fn receive_quic(
        &self,
        source: SocketAddr,
        destination: SocketAddr,
        data: &[u8],
        segment: usize,
    ) -> bool {
        self.session()
            .receive_quic(source, destination, data, segment)
    }
}

/// The facts about the network, as they are now and as they change.
pub(super) struct Network {
    pub(super) candidates: watch::Receiver<Gathered>,
    pub(super) nat: watch::Receiver<NatReport>,
    /// The demand for relayed addresses, if a TURN server may be asked.
    pub(super) relays: Option<Hold>,
    /// Whether names are asked for in the local network.
    pub(super) mdns: bool,
}

/// The parts that a QUIC handshake needs.
pub(super) struct Handshake {
    pub(super) quic: Quic,
    pub(super) link: Arc<PairLink>,
    pub(super) peer: PeerId,
}

impl Handshake {
    async fn run(self, shared: Arc<Shared>, client: bool) {
        let result = self.quic.over_pair(&self.link, self.peer, client).await;
        let result = match result {
            Ok(connection) => {
                let mut quic = shared.quic.lock().unwrap_or_else(PoisonError::into_inner);
                *quic = Some(connection);
                Ok(())
            }
            Err(error) => Err(BackendError::Quic(error.to_string())),
        };
        shared.session().quic_ended(result);
        shared.work.notify_one();
    }
}

/// One peer connection.
pub struct PeerConnection(Arc<Shared>);

impl fmt::Debug for PeerConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PeerConnection").finish()
    }
}

impl PeerConnection {
    /// Starts the driver of a session. The session may use QUIC through `quic`. What
    /// strategies report that join by themselves goes to `told`. Needs a Tokio runtime.
    pub(super) fn start(
        session: IceSession,
        sockets: Sockets,
        network: Network,
        quic: Option<Handshake>,
        told: Option<(PeerId, LateSender)>,
    ) -> Self {
        let shared = Arc::new(Shared {
            session: Mutex::new(session),
            adopted: Mutex::default(),
            told,
            quic: Mutex::default(),
            work: Notify::new(),
            ended: Mutex::default(),
        });
        // The route is there before the task runs, because the client of a server sends at once.
        let receiver: Arc<dyn Receiver> = shared.clone();
        let fragment = shared.session().fragment();
        sockets.route_fragment(&fragment, &receiver);
        let routed = (fragment, receiver);
        runtime::task(drive(shared.clone(), routed, sockets, network, quic));
        Self(shared)
    }

    /// Hands over a datagram that came before the session did.
    #[cfg(feature = "server")]
    pub(super) fn receive(
        &self,
        now: Instant,
        source: SocketAddr,
        destination: SocketAddr,
        data: &[u8],
    ) {
        self.0.receive(now, source, destination, data);
        self.0.received_all();
    }

    /// The fingerprint of the certificate of a `/webrtc-direct` client, and the channel of its
    /// handshake, once DTLS is up.
    #[cfg(feature = "server")]
    pub(super) fn client(&self) -> Option<(Fingerprint, Channel)> {
        let session = self.0.session();
        let (fingerprint, id) = (session.client()?.clone(), session.handshake_channel()?);
        drop(session);
        Some((fingerprint, self.channel(id)))
    }

    fn channel(&self, id: ChannelId) -> Channel {
        Channel {
            shared: self.0.clone(),
            id,
        }
    }

    fn act(&self, act: impl FnOnce(&mut IceSession)) {
        act(&mut self.0.session());
        self.0.work.notify_one();
    }
}

impl Drop for PeerConnection {
    fn drop(&mut self) {
        self.act(IceSession::close);
    }
}

impl backend::PeerConnection for PeerConnection {
    type Channel = Channel;

    fn create_offer(&mut self, sealed: bool) {
        self.act(|session| session.create_offer(sealed));
    }

    fn accept_offer(&mut self, sdp: &str) {
        self.act(|session| session.accept_offer(sdp));
    }

    fn accept_answer(&mut self, sdp: &str) {
        self.act(|session| session.accept_answer(sdp));
    }

    fn add_remote_candidate(&mut self, candidate: Option<&IceCandidate>) {
        if let Some(candidate) = candidate {
            self.act(|session| session.add_remote_candidate(candidate));
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<PeerEvent<Channel>> {
        loop {
            let Some(event) = self.0.session().poll_event(cx.waker()) else {
                return Poll::Pending;
            };
            return Poll::Ready(match event {
                SessionEvent::Description(sdp) => PeerEvent::Description(sdp),
                SessionEvent::Candidate(candidate) => PeerEvent::Candidate(candidate),
                SessionEvent::Connected => PeerEvent::Connected,
                SessionEvent::Path(pair) => PeerEvent::Path(pair),
                SessionEvent::Channel(id) => PeerEvent::Channel(self.channel(id)),
                SessionEvent::Lane(id) => PeerEvent::Lane(self.channel(id)),
                SessionEvent::MoreTime(time) => PeerEvent::MoreTime(time),
                SessionEvent::Late(what) => {
                    self.0.tell(what);
                    continue;
                }
                SessionEvent::Failed(error) => PeerEvent::Failed(error),
            });
        }
    }

    fn open_channel(&mut self) -> Result<Channel, BackendError> {
        let id = self.0.with_association(Association::open)??;
        Ok(self.channel(id))
    }

    fn open_lane(&mut self) -> Result<Channel, BackendError> {
        let id = self.0.with_association(Association::open_lane)??;
        Ok(self.channel(id))
    }

    fn take_streams(&mut self) -> Option<StreamMuxerBox> {
        let mut quic = self.0.quic.lock().unwrap_or_else(PoisonError::into_inner);
        quic.take().map(StreamMuxerBox::new)
    }

    fn close(&mut self) {
        self.act(|session| session.shutdown(Instant::now()));
    }

    fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut ended = self.0.ended();
        if ended.ended {
            return Poll::Ready(());
        }
        ended.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// One data channel.
pub struct Channel {
    shared: Arc<Shared>,
    id: ChannelId,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Channel").field("id", &self.id).finish()
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // Without an association, there is nothing left to close.
        let _ = self.shared.with_association(|all| all.detach(self.id));
    }
}

impl backend::DataChannel for Channel {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BackendError>> {
        match self
            .shared
            .with_association(|all| all.poll_ready(self.id, cx))
        {
            Ok(ready) => ready,
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn send(&mut self, message: &[u8]) -> Result<(), BackendError> {
        self.shared
            .with_association(|all| all.send(self.id, message))?
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BackendError>>> {
        match self
            .shared
            .with_association(|all| all.poll_next(self.id, cx))
        {
            Ok(next) => next.map(|message| message.map(Ok)),
            Err(_) => Poll::Ready(None),
        }
    }

    fn close(&mut self) {
        let _ = self.shared.with_association(|all| all.close(self.id));
    }
}

/// Aborts a task when its owner is dropped.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Datagrams that are collected under the session's lock, and sent without it.
#[derive(Default)]
struct Batch {
    data: Vec<u8>,
    runs: Vec<Run>,
}

/// Datagrams of equal length between the same addresses. The last one may be shorter.
struct Run {
    source: SocketAddr,
    destination: SocketAddr,
    segment: usize,
    end: usize,
    complete: bool,
}

impl Batch {
    fn push(&mut self, datagram: Outgoing<'_>) {
        let len = datagram.data.len();
        self.data.extend_from_slice(datagram.data);
        let end = self.data.len();
        match self.runs.last_mut() {
            Some(run)
                if !run.complete
                    && len <= run.segment
                    && run.source == datagram.source
                    && run.destination == datagram.destination =>
            {
                run.end = end;
                run.complete = len < run.segment;
            }
            _ => self.runs.push(Run {
                source: datagram.source,
                destination: datagram.destination,
                segment: len,
                end,
                complete: false,
            }),
        }
    }

    async fn send(&mut self, sockets: &Sockets) {
        let mut start = 0;
        for run in self.runs.drain(..) {
            let data = &self.data[start..run.end];
            start = run.end;
            sockets
                .send(run.source, run.destination, data, run.segment)
                .await;
        }
        self.data.clear();
    }
}

fn interfaces(known: &Gathered) -> Vec<IpAddr> {
    let interfaces = known.of(Origin::Interface);
    interfaces.map(|local| local.addr.ip()).collect()
}

/// Asks the networks of the addresses `hosts` for the name of a candidate.
async fn resolve(candidate: Candidate, hosts: Vec<IpAddr>, shared: Arc<Shared>) {
    let CandidateAddr::Name(name, _) = &candidate.addr else {
        return;
    };
    let Some(name) = Name::parse(name) else {
        return;
    };
    let found = mdns::resolve(&name, &hosts).await;
    tracing::debug!(found = found.len(), "the name of a candidate was looked up");
    for ip in found {
        shared.session().resolved(&candidate, ip);
    }
    shared.work.notify_one();
}

/// Drives a session until it is closed: sends its datagrams, keeps its timers, gives it local
/// candidates, and routes datagrams of its sources to it.
async fn drive(
    shared: Arc<Shared>,
    (fragment, receiver): (String, Arc<dyn Receiver>),
    sockets: Sockets,
    network: Network,
    mut quic: Option<Handshake>,
) {
    let Network {
        mut candidates,
        nat,
        mut relays,
        mdns,
    } = network;
    let mut batch = Batch::default();
    let sleep = time::sleep(IDLE);
    tokio::pin!(sleep);
    let mut gathered = true;
    let mut offered = false;
    // These tasks end with this function.
    let mut tasks = Vec::new();
    loop {
        let now = Instant::now();
        let (sources, timeout, closed, begin, burst, named) = {
            let mut session = shared.session();
            session.know_turn(relays.as_ref().is_some_and(Hold::has_servers));
            if session.poll_timeout().is_some_and(|timeout| timeout <= now) {
                session.handle_timeout(now);
            }
            let offers = session.offers_relayed();
            gathered |= std::mem::replace(&mut offered, offers) != offers;
            if gathered || session.wants_candidates() {
                let known = candidates.borrow_and_update();
                let side = {
                    let nat = nat.borrow();
                    Side::of(nat.mapping, nat.one_server)
                };
                session.set_side(side);
                if known.ready {
                    session.set_local_candidates(&known.candidates);
                }
                gathered = false;
            }
            session.poll_transmit(now, |datagram| batch.push(datagram));
            if let Some(relays) = &mut relays {
                relays.set(session.needs_relayed());
            }
            let timeout = session.poll_timeout();
            let begin = session.take_handshake();
            let sources = session.take_new_sources();
            let burst = session.take_burst();
            // Names wait until the local networks are known.
            let named = match candidates.borrow().ready {
                true => session.take_named(),
                false => Vec::new(),
            };
            (sources, timeout, session.is_closed(), begin, burst, named)
        };
        if let Some(client) = begin
            && let Some(quic) = quic.take()
        {
            let task = runtime::task(quic.run(shared.clone(), client));
            tasks.push(AbortOnDrop(task.abort_handle()));
        }
        if let Some(burst) = burst {
            let task = runtime::task(burst::run(burst, shared.clone(), sockets.clone()));
            tasks.push(AbortOnDrop(task.abort_handle()));
        }
        for candidate in named.into_iter().filter(|_| mdns) {
            let hosts = interfaces(&candidates.borrow());
            let task = runtime::task(resolve(candidate, hosts, shared.clone()));
            tasks.push(AbortOnDrop(task.abort_handle()));
        }
        for source in sources {
            sockets.route_source(source, &receiver);
        }
        batch.send(&sockets).await;
        if closed {
            break;
        }
        let deadline = timeout.unwrap_or(now + IDLE);
        sleep.as_mut().reset(deadline.into());
        tokio::select! {
            () = shared.work.notified() => {}
            () = &mut sleep => {}
            changed = candidates.changed() => {
                if changed.is_err() {
                    // The backend is gone. Its sockets live as long as this task.
                    shared.session().close();
                }
                gathered = true;
            }
        }
    }
    drop(tasks);
    let adopted = std::mem::take(
        &mut *shared
            .adopted
            .lock()
            .unwrap_or_else(PoisonError::into_inner),
    );
    drop(adopted);
    let sources = shared.session().sources();
    sockets.unroute(&fragment, sources, &receiver);
    let waker = {
        let mut ended = shared.ended();
        ended.ended = true;
        ended.waker.take()
    };
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(all(test, feature = "server"))]
mod tests;
