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

use super::{Change, Directory, Entry, Pool};
use crate::{
    arriving::read_message,
    core::{
        directory::{Answer, MAX_MESSAGE, Refusal, Request, Topic},
        pace::Pace,
        quota, room,
    },
    server::{access::Meter, bill::pay, fairness::Flow, pool::Place, usage::Tally},
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
/// In a room of more members, each is told less, so that all together are told no more per second than
/// the square of this. Nobody reads a thousand names that change all the time.
const CROWD: usize = 64;

/// What counts the bytes that a peer exchanges with the directory.
pub(in crate::server) struct Paid {
    /// Its quotas and rates.
    pub(in crate::server) meters: Vec<Arc<Meter>>,
    /// Its share in the rate of all.
    pub(in crate::server) flow: Flow,
    /// Its part of the record of usage.
    pub(in crate::server) tally: Tally,
}

impl Paid {
    /// Counts bytes that are about to be carried, and waits as long as their rate says.
    ///
    /// # Errors
    /// [`io::ErrorKind::QuotaExceeded`] if a quota is used up.
    pub(in crate::server) async fn carry(&self, bytes: usize) -> io::Result<()> {
        let bytes = bytes as u64;
        let wait = pay(&self.meters, bytes)?;
        self.tally.carried(bytes);
        let wait = wait.max(self.flow.carry(bytes));
        if !wait.is_zero() {
            sleep(wait).await;
        }
        Ok(())
    }
}

/// Tells a member of a room what changes there, and takes its records, until its stream ends. If it says
/// that it leaves, the others see that at once. Otherwise its record counts until it is over. `paid`
/// counts the bytes in both directions, and the stream ends when a quota is used up.
pub(in crate::server) async fn attend(
    stream: impl AsyncRead + AsyncWrite + Send,
    directory: Arc<dyn Directory>,
    topic: Topic,
    (peer, place, paid): (PeerId, Place, Paid),
) {
    let (read, write) = stream.split();
    let told = Box::pin(tell(write, &*directory, &topic, &paid));
    let heard = Box::pin(hear(read, &*directory, topic, (peer, &paid)));
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
    (peer, paid): (PeerId, &Paid),
) -> io::Result<()> {
    let (began, mut pace) = (Instant::now(), Pace::new(PER_SECOND, AT_ONCE));
    loop {
        // A member is asked for a new record in time, so whoever sends none only looks on.
        let message = timeout(room::LIFETIME, read_message(&mut stream, MAX_MESSAGE)).await??;
        paid.carry(message.len()).await?;
        match Request::decode(&message) {
            Some(Request::Put(envelope)) => {
                let entry = Entry::member(peer, &topic, envelope);
                let (entry, shown) = entry.map_err(|_| io::ErrorKind::InvalidData)?;
                // A member whose record was over comes again, by a new stream.
                let none = |_: &Pool| Err(quota::Refusal::Peer);
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
    paid: &Paid,
) -> io::Result<()> {
    let mut watch = directory.watch(topic);
    let (began, mut pace) = (Instant::now(), Pace::new(TOLD_PER_SECOND, TOLD_AT_ONCE));
    // A new record is due when all who were there have been shown, and from then on now and then.
    let (mut last, mut due) = (0, None::<Instant>);
    loop {
        let newest = *watch.borrow_and_update();
        let changes = directory.changes(topic, last, BATCH);
        let changes = changes.ok_or(io::ErrorKind::NotConnected)?;
        for (number, change) in &changes {
            let answer = match change {
                Change::Present(envelope) => Answer::Record(envelope.to_vec()),
                Change::Left(peer) => Answer::Left(*peer),
            };
            write(&mut stream, &answer, paid).await?;
            last = *number;
        }
        if changes.len() < BATCH {
            // What lies in between is not for this member.
            last = last.max(newest);
        }
        // Of a member that changes meanwhile, only the newest record is told.
        let crowd = due.map_or(1, |_| directory.size(topic));
        let wait = pace.take(began.elapsed(), cost(changes.len(), crowd), Duration::MAX);
        sleep(wait.unwrap_or_default()).await;
        let now = Instant::now();
        if due.map_or(changes.is_empty(), |due| due <= now) {
            write(&mut stream, &Answer::Done, paid).await?;
            due = Some(now + RENEW);
        }
        if !changes.is_empty() {
            continue;
        }
        timeout(TAKES, stream.flush()).await??;
        let rest = due.map_or(RENEW, |due| due.saturating_duration_since(Instant::now()));
        if let Ok(Err(_)) = timeout(rest, watch.changed()).await {
            return Err(io::ErrorKind::NotConnected.into());
        }
    }
}

/// What so many changes cost a member in a room of `size`, of all that it is told.
fn cost(changes: usize, size: usize) -> u32 {
    let cost = changes.saturating_mul(size.div_ceil(CROWD).max(1));
    u32::try_from(cost).unwrap_or(u32::MAX)
}

async fn write(
    stream: &mut (impl AsyncWrite + Unpin),
    answer: &Answer,
    paid: &Paid,
) -> io::Result<()> {
    let bytes = answer.encode();
    paid.carry(bytes.len()).await?;
    timeout(TAKES, stream.write_all(&bytes)).await?
}

// The record has to outlast two requests for a new one.
const _: () = assert!(RENEW.as_secs() * 3 <= room::LIFETIME.as_secs());

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_of_any_size_costs_the_server_a_limited_number_of_messages() {
        assert_eq!(cost(3, 0), 3);
        assert_eq!(cost(3, CROWD), 3, "a small room hears everything");
        assert_eq!(cost(3, CROWD + 1), 6);
        for size in 1..=room::MAX_MEMBERS {
            let each = f64::from(TOLD_PER_SECOND) / f64::from(cost(1, size));
            let all = each * size as f64;
            assert!(all <= (CROWD * CROWD) as f64, "{size}: {all}");
        }
        assert_eq!(cost(usize::MAX, 2), u32::MAX);
    }
}
