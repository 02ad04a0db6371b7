//! One member of a room, from its first record to the end of its stream.

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
    future::{Either, select},
};
use libp2p::PeerId;
use tokio::time::{sleep, timeout};

use super::{Change, Directory, Entry};
use crate::{
    arriving::read_message,
    core::{
        directory::{Answer, MAX_MESSAGE, Refusal, Request, Topic},
        pace::Pace,
        quota, room,
    },
    server::pool::Place,
};

/// How often a member is asked for a new record. Two may be lost before its record is over.
const RENEW: Duration = Duration::from_secs(10);
/// How long a message to a member may take. A member that does not read hears nothing any more, and
/// comes again.
const TAKES: Duration = Duration::from_secs(10);
/// How many changes are looked up at once.
const BATCH: usize = 16;
/// How many records a member may send at once, and how many per second after that. It is slowed down to
/// this pace.
const AT_ONCE: u32 = 16;
const PER_SECOND: u32 = 2;
/// How many changes a member is told at once, which is a whole room, and how many per second after that.
const TOLD_AT_ONCE: u32 = room::MAX_MEMBERS as u32;
const TOLD_PER_SECOND: u32 = 64;

/// Tells a member of a room what changes there, and takes its records, until its stream ends. If it says
/// that it leaves, the others see that at once. Otherwise its record counts until it is over.
pub(in crate::server) async fn attend(
    stream: impl AsyncRead + AsyncWrite + Send,
    directory: Arc<dyn Directory>,
    topic: Topic,
    (peer, place): (PeerId, Place),
) {
    let (read, write) = stream.split();
    let told = Box::pin(tell(write, &*directory, &topic));
    let heard = Box::pin(hear(read, &*directory, topic, peer));
    if let Either::Right((Ok(()), _)) = select(told, heard).await {
        directory.leave(&topic, &peer, Instant::now());
    }
    drop(place);
}

/// Takes a member's records. Returns `Ok` when it leaves.
async fn hear(
    mut stream: impl AsyncRead + Unpin,
    directory: &dyn Directory,
    topic: Topic,
    peer: PeerId,
) -> io::Result<()> {
    let (began, mut pace) = (Instant::now(), Pace::new(PER_SECOND, AT_ONCE));
    loop {
        // A member is asked for a new record in time, so whoever sends none only looks on.
        let message = timeout(room::LIFETIME, read_message(&mut stream, MAX_MESSAGE)).await??;
        match Request::decode(&message) {
            Some(Request::Put(envelope)) => {
                let entry = Entry::member(peer, &topic, envelope);
                let (entry, shown) = entry.map_err(|_| io::ErrorKind::InvalidData)?;
                // A member whose record was over comes again, by a new stream.
                let none = || Err(quota::Refusal::Peer);
                let joined = directory.join(&topic, entry, shown, Instant::now(), &none);
                if joined == Err(Refusal::Limit) {
                    return Err(io::ErrorKind::TimedOut.into());
                }
            }
            Some(Request::Forget) => return Ok(()),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        let wait = pace.take(began.elapsed(), 1, Duration::MAX);
        sleep(wait.unwrap_or_default()).await;
    }
}

/// Tells a member who is there, and then what changes.
async fn tell(
    mut stream: impl AsyncWrite + Unpin,
    directory: &dyn Directory,
    topic: &Topic,
) -> io::Result<()> {
    let mut watch = directory.watch(topic);
    let mut last = 0;
    let (began, mut pace) = (Instant::now(), Pace::new(TOLD_PER_SECOND, TOLD_AT_ONCE));
    let mut due = Instant::now();
    loop {
        watch.mark_unchanged();
        let changes = directory.changes(topic, last, BATCH);
        for (number, change) in &changes {
            let answer = match change {
                Change::Present(envelope) => Answer::Record(envelope.to_vec()),
                Change::Left(peer) => Answer::Left(*peer),
            };
            write(&mut stream, &answer).await?;
            last = *number;
        }
        // Of a member that changes meanwhile, only the newest record is told.
        let told = u32::try_from(changes.len()).unwrap_or(u32::MAX);
        let wait = pace.take(began.elapsed(), told, Duration::MAX);
        sleep(wait.unwrap_or_default()).await;
        if !changes.is_empty() {
            continue;
        }
        if due <= Instant::now() {
            write(&mut stream, &Answer::Done).await?;
            due = Instant::now() + RENEW;
        }
        timeout(TAKES, stream.flush()).await??;
        let changed = timeout(
            due.saturating_duration_since(Instant::now()),
            watch.changed(),
        );
        if let Ok(Err(_)) = changed.await {
            return Err(io::ErrorKind::NotConnected.into());
        }
    }
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), answer: &Answer) -> io::Result<()> {
    timeout(TAKES, stream.write_all(&answer.encode())).await?
}

// The record has to outlast two requests for a new one.
const _: () = assert!(RENEW.as_secs() * 3 <= room::LIFETIME.as_secs());
