//! Moves the bytes of circuits and offers, within their bounds.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _};
use tokio::time::{sleep, timeout};

use super::{access::Meter, usage::Tally};

/// The most bytes that are moved at a time.
const CHUNK: usize = 16 * 1024;
/// How long a peer may take to accept [`CHUNK`] bytes before the circuit ends. Peers read at once
/// what arrives, and apply their own flow control to each other. So a peer that reads nothing
/// is gone or means harm. Its unread bytes fill the relay, and stop all other data from
/// the peer at the other end.
const STALL: Duration = Duration::from_secs(30);

/// What bounds the bytes in both directions together.
#[derive(Clone, Copy)]
pub(crate) struct Bounds<'a> {
    pub(crate) carried: &'a AtomicU64,
    pub(crate) most: u64,
    pub(crate) meters: &'a [Arc<Meter>],
    /// Counts what is carried for the record of usage.
    pub(crate) tally: &'a Tally,
}

impl Bounds<'_> {
    /// Counts bytes that are about to be carried, and waits as long as their rate says.
    async fn carry(self, bytes: u64) -> io::Result<()> {
        let before = self.carried.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.most {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let mut wait = Duration::ZERO;
        for meter in self.meters {
            let cost = meter.carry(bytes);
            let cost = cost.map_err(|_| io::Error::from(io::ErrorKind::QuotaExceeded))?;
            wait = wait.max(cost);
        }
        self.tally.carried(bytes);
        if !wait.is_zero() {
            sleep(wait).await;
        }
        Ok(())
    }
}

/// Moves bytes until `from` ends. It flushes `to` whenever `from` has no more bytes at the moment.
pub(crate) async fn pump(
    from: &mut (impl futures::AsyncRead + Unpin),
    to: &mut (impl futures::AsyncWrite + Unpin),
    bounds: Bounds<'_>,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let read = match from.read(&mut chunk).now_or_never() {
            Some(read) => read?,
            None => {
                timeout(STALL, to.flush()).await??;
                from.read(&mut chunk).await?
            }
        };
        if read == 0 {
            return timeout(STALL, to.close()).await?;
        }
        bounds.carry(read as u64).await?;
        timeout(STALL, to.write_all(&chunk[..read])).await??;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        task::{Context, Poll},
    };

    use tokio::time;

    use super::*;

    /// A writer that accepts nothing.
    struct Stalled;

    impl futures::AsyncWrite for Stalled {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn bounds<'a>(carried: &'a AtomicU64, most: u64, tally: &'a Tally) -> Bounds<'a> {
        Bounds {
            carried,
            most,
            meters: &[],
            tally,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_circuit_whose_receiver_takes_nothing_ends() {
        let begun = time::Instant::now();
        let carried = AtomicU64::new(0);
        let pumped = pump(
            &mut &[7; 100][..],
            &mut Stalled,
            bounds(&carried, 1000, &Tally::default()),
        )
        .await;
        assert_eq!(pumped.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), STALL);
    }

    #[tokio::test]
    async fn a_circuit_is_worn_out() {
        let carried = AtomicU64::new(0);
        let pumped = |most| {
            let (mut from, mut to) = (&[7; 100][..], Vec::new());
            let carried = &carried;
            async move { pump(&mut from, &mut to, bounds(carried, most, &Tally::default())).await }
        };
        pumped(100).await.unwrap();
        assert_eq!(
            pumped(150).await.unwrap_err().kind(),
            io::ErrorKind::QuotaExceeded
        );
    }
}
