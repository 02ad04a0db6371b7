//! What one member of a room has with its relays: what it shows, whom it sees, and the streams over
//! which it does.

use std::{
    future::poll_fn,
    sync::{Arc, Mutex, PoisonError},
    task::{Poll, Waker},
    time::Duration,
};

use futures::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, StreamExt as _,
    channel::mpsc,
    future::{Either, select},
};
use futures_timer::Delay;
use libp2p::{PeerId, identity::Keypair};
use web_time::Instant;

use crate::{
    arriving::read_message,
    core::{
        directory::{Answer, MAX_MESSAGE, Refusal, Request},
        pace::Pace,
        record::Sequence,
        room::{Change, LIFETIME, MAX_MEMBERS, Member, Members, RoomKeys, SALT, Source},
    },
    envelope,
    error::{Error, ErrorKind},
};

/// The shortest pause between two records that a relay asks for.
const SOONEST: Duration = Duration::from_secs(5);
/// How many members a relay shows at once, which is a whole room, and how many per second after that,
/// which is twice as many as a relay of this library does. Each costs the check of a signature.
const SHOWN_AT_ONCE: u32 = MAX_MEMBERS as u32;
const SHOWN_PER_SECOND: u32 = 128;
/// How long a relay may take to take a message.
const TAKES: Duration = Duration::from_secs(10);
/// How long a relay may take to hear that this member leaves.
const FAREWELL: Duration = Duration::from_millis(500);

/// The handle on what a member has with its relays. Dropping it leaves the room.
pub(crate) struct Seat(pub(crate) Arc<Attendance>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.leave();
    }
}

/// One member of a room: this peer.
pub(crate) struct Attendance {
    key: Keypair,
    keys: RoomKeys,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    members: Members,
    sequence: Sequence,
    /// What this member shows, sealed, and how often that has changed.
    sealed: Vec<u8>,
    version: u64,
    /// Whether a relay has let this member in, or why none has.
    joined: Option<Result<(), Error>>,
    /// Why a relay has not let this member in, while others still may.
    refused: Option<Error>,
    over: bool,
    wakers: Vec<Waker>,
}

impl Attendance {
    /// Begins to attend a room as the peer of `key`, and shows `data` there.
    pub(crate) fn new(key: Keypair, keys: RoomKeys, data: &[u8]) -> Self {
        let room = Self {
            key,
            keys,
            state: Mutex::default(),
        };
        room.show(data);
        room
    }

    /// Shows other data from now on.
    pub(crate) fn show(&self, data: &[u8]) {
        let mut salt = [0; SALT];
        // Without randomness, the connector has no identity to begin with.
        let _ = getrandom::fill(&mut salt);
        let sealed = self.keys.seal(&self.key.public().to_peer_id(), data, salt);
        self.change(|state| {
            state.sealed = sealed;
            state.version += 1;
        });
    }

    /// Leaves the room. The relays are told.
    pub(crate) fn leave(&self) {
        self.change(|state| state.over = true);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.look(|state| state.over)
    }

    /// Nobody has let this member in.
    pub(crate) fn refuse(&self, kind: ErrorKind, why: &str) {
        self.change(|state| {
            if state.joined.is_none() {
                state.joined = Some(Err(Error::new(kind, why)));
                state.over = true;
            }
        });
    }

    /// No relay that was asked has let this member in. Returns whether that is so.
    pub(crate) fn settle_refused(&self) -> bool {
        let refused = self.look(|state| state.refused.take().filter(|_| state.joined.is_none()));
        refused.is_some_and(|refused| {
            self.change(|state| {
                state.joined = Some(Err(refused));
                state.over = true;
            });
            true
        })
    }

    /// Waits until a relay has let this member in and has shown the others.
    pub(crate) async fn joined(&self) -> Result<(), Error> {
        let closed = || Error::new(ErrorKind::ConnectorClosed, "the connector is closed");
        self.until(|state| {
            let joined = state.joined.clone();
            joined.or_else(|| state.over.then(|| Err(closed())))
        })
        .await
    }

    /// Waits for the next change. Returns `None` when this member has left.
    pub(crate) async fn next(&self) -> Option<Change> {
        self.until(|state| match state.over {
            true => Some(None),
            false => state.members.next().map(Some),
        })
        .await
    }

    /// Returns the other members, with what they show.
    pub(crate) fn members(&self) -> Vec<(PeerId, Vec<u8>)> {
        self.look(|state| state.members.list())
    }

    /// Forgets whom streams to `relay` before the one with this number have shown.
    pub(crate) fn settle(&self, relay: &PeerId, number: u64) {
        self.change(|state| state.members.settle(relay, number));
    }

    fn look<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        // Each change is done when the lock is given back.
        look(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let wakers = self.look(|state| {
            change(state);
            std::mem::take(&mut state.wakers)
        });
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Waits until `look` returns something.
    async fn until<T>(&self, mut look: impl FnMut(&mut State) -> Option<T>) -> T {
        poll_fn(|cx| {
            self.look(|state| match look(state) {
                Some(found) => Poll::Ready(found),
                None => {
                    if !state.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                        state.wakers.push(cx.waker().clone());
                    }
                    Poll::Pending
                }
            })
        })
        .await
    }

    /// Signs what this member shows now.
    fn record(&self) -> Option<Vec<u8>> {
        let now = envelope::now();
        let member = self.look(|state| Member {
            topic: self.keys.topic,
            seq: state.sequence.next(now),
            expires: now + LIFETIME,
            sealed: state.sealed.clone(),
        });
        envelope::sign_member(&self.key, &member)
    }

    /// Takes what a relay says. It cannot make up members, because each has signed its record, and what
    /// it shows is sealed.
    fn hear(&self, source: Source, answer: Answer) -> Result<(), Refusal> {
        match answer {
            // A relay that was restarted shows members only as they come back to it, so whom it does not
            // show is kept for as long as a record counts.
            Answer::Done => self.change(|state| _ = state.joined.get_or_insert(Ok(()))),
            Answer::Record(envelope) => {
                let now = envelope::now();
                let opened = envelope::open_member(&envelope, now);
                let opened = opened.filter(|(_, member)| member.topic == self.keys.topic);
                if let Some((peer, member)) = opened
                    && peer != self.key.public().to_peer_id()
                    && let Some(data) = self.keys.open(&peer, &member.sealed)
                {
                    let number = (member.seq, member.expires);
                    self.change(|state| state.members.show(source, peer, number, data, now));
                }
            }
            Answer::Left(peer) => self.change(|state| state.members.hide(&source.relay, &peer)),
            Answer::Refused(refusal) => return Err(refusal),
        }
        Ok(())
    }

    /// A relay has not let this member in.
    fn on_refused(&self, refusal: Refusal) {
        match refusal {
            // The next record has a greater number, and is sent soon.
            Refusal::Stale(known) => self.look(|state| state.sequence.pass(known, envelope::now())),
            Refusal::Denied => self.note_refused(
                ErrorKind::AccessDenied,
                "the relay lets only peers with a reservation into rooms",
            ),
            Refusal::Limit => {
                self.note_refused(ErrorKind::LimitExceeded, "the relay or the room is full");
            }
            Refusal::Unsound => self.note_refused(
                ErrorKind::InvalidConfig,
                "the relay refuses our record: is the clock of this machine right?",
            ),
        }
    }

    fn note_refused(&self, kind: ErrorKind, why: &str) {
        self.look(|state| _ = state.refused.get_or_insert_with(|| Error::new(kind, why)));
    }
}

/// Attends a room over a stream to a relay, until the stream ends or this member leaves. The relay asks
/// for each renewal, so pages whose timers are slow stay in their rooms. A relay that says nothing has
/// lost its link, which ends the stream.
pub(crate) async fn attend(
    stream: impl AsyncRead + AsyncWrite + Send,
    room: Arc<Attendance>,
    source: Source,
) {
    let (mut read, mut write) = stream.split();
    let (due, asked) = mpsc::channel(1);
    let hear = Box::pin(hear(&mut read, &room, source, due));
    let tell = Box::pin(tell(&mut write, &room, asked));
    match select(hear, tell).await {
        Either::Left((Some(refusal), _)) => room.on_refused(refusal),
        // The relay ends the stream when it knows.
        Either::Right((true, hear)) => _ = select(hear, Delay::new(FAREWELL)).await,
        _ => {}
    }
}

/// Returns why the relay does not serve this member, or `None` at the end of the stream.
async fn hear(
    stream: &mut (impl AsyncRead + Unpin),
    room: &Attendance,
    source: Source,
    mut due: mpsc::Sender<()>,
) -> Option<Refusal> {
    let (began, mut pace) = (Instant::now(), Pace::new(SHOWN_PER_SECOND, SHOWN_AT_ONCE));
    loop {
        let message = read_message(stream, MAX_MESSAGE).await.ok()?;
        let wait = pace.take(began.elapsed(), 1, Duration::MAX)?;
        if !wait.is_zero() {
            Delay::new(wait).await;
        }
        let answer = Answer::decode(&message)?;
        if answer == Answer::Done {
            // If it is asked already, it need not be asked again.
            let _ = due.try_send(());
        }
        if let Err(refusal) = room.hear(source, answer) {
            return Some(refusal);
        }
    }
}

/// Returns whether the relay was told that this member leaves.
async fn tell(
    stream: &mut (impl AsyncWrite + Unpin),
    room: &Attendance,
    mut asked: mpsc::Receiver<()>,
) -> bool {
    let mut told = room.look(|state| state.version);
    let mut last = Instant::now();
    let mut request = room
        .record()
        .map(|record| Request::Join(room.keys.topic, record));
    while let Some(next) = request.take() {
        let leaves = next == Request::Forget;
        let sent = async {
            stream.write_all(&next.encode()).await?;
            match leaves {
                true => stream.close().await,
                false => stream.flush().await,
            }
        };
        // A relay that reads nothing is left, and asked again later.
        match select(Box::pin(sent), Delay::new(TAKES)).await {
            Either::Left((Ok(()), _)) if !leaves => {}
            Either::Left((_, _)) => return leaves,
            Either::Right(_) => return false,
        }
        while request.is_none() {
            let known = told;
            let changed = Box::pin(room.until(move |state| {
                let changed = state.over || state.version != known;
                changed.then_some((state.over, state.version))
            }));
            match select(asked.next(), changed).await {
                Either::Left((None, _)) => return false,
                Either::Left((Some(()), _)) if last.elapsed() < SOONEST => continue,
                Either::Left((Some(()), _)) => {}
                Either::Right(((true, _), _)) => {
                    request = Some(Request::Forget);
                    break;
                }
                Either::Right(((false, version), _)) => told = version,
            }
            last = Instant::now();
            request = Some(Request::Put(room.record().unwrap_or_default()));
        }
    }
    false
}
