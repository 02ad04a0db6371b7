//! Moves the bytes of circuits and offers, within their bounds.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _};
use tokio::time::{sleep, timeout};

use super::bill::Bill;

/// The most bytes that are moved at a time.
const CHUNK: usize = 16 * 1024;
/// How long a peer may take to accept [`CHUNK`] bytes before the circuit ends. Peers read at once
/// what arrives, and apply their own flow control to each other. So a peer that reads nothing
/// is gone or means harm. Its unread bytes fill the relay, and stop all other data from
/// the peer at the other end.
const STALL: Duration = Duration::from_secs(30);

/// How long a peer may take to accept the last bytes of one that has vanished.
const LAST: Duration = Duration::from_secs(5);

/// What bounds the bytes in both directions together.
#[derive(Clone, Copy)]
pub(crate) struct Bounds<'a> {
    pub(crate) carried: &'a AtomicU64,
    pub(crate) most: u64,
    pub(crate) bill: &'a Bill,
}

impl Bounds<'_> {
    /// Counts bytes that are about to be carried, and waits as long as their rate says.
    ///
    /// # Errors
    /// [`io::ErrorKind::QuotaExceeded`] if a quota or the bound of the circuit is used up.
    pub(crate) async fn carry(self, bytes: u64) -> io::Result<()> {
        let before = self.carried.fetch_add(bytes, Ordering::Relaxed);
        if before.saturating_add(bytes) > self.most {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let wait = self.bill.carry(bytes).await?;
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
            Some(read) => read,
            None => {
                timeout(STALL, to.flush()).await??;
                from.read(&mut chunk).await
            }
        };
        let read = match read {
            Ok(0) => return timeout(STALL, to.close()).await?,
            Ok(read) => read,
            Err(error) => {
                // What came before the end arrives: a page that is closed says goodbye and is gone at once.
                let _ = timeout(LAST, to.close()).await;
                return Err(error);
            }
        };
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

    use futures::io::BufWriter;
    use tokio::time;

    use super::*;
    use crate::server::{
        bill::Party,
        fairness::Fairness,
        usage::{Account, Amounts, Usage},
    };

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

    /// The bill of peers that have agreed, with this rate of all.
    fn bill(rate: u64) -> Bill {
        let party = |peer| Party {
            account: Account::of(peer),
            meters: Vec::new(),
            weight: 4,
        };
        let bill = Bill::new(
            (party("dialler"), party("peer")),
            &Fairness::new(rate),
            &Usage::default(),
            Amounts::default(),
        );
        bill.agree().unwrap();
        bill
    }

    /// Pumps `from` with these bounds.
    async fn pumped(
        mut from: &[u8],
        to: &mut (impl futures::AsyncWrite + Unpin),
        carried: &AtomicU64,
        (most, rate): (u64, u64),
    ) -> io::Result<()> {
        let bill = bill(rate);
        let bounds = Bounds {
            carried,
            most,
            bill: &bill,
        };
        pump(&mut from, to, bounds).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_circuit_whose_receiver_takes_nothing_ends() {
        let begun = time::Instant::now();
        let carried = AtomicU64::new(0);
        let pumped = pumped(&[7; 100], &mut Stalled, &carried, (1000, 0)).await;
        assert_eq!(pumped.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), STALL);
    }

    /// A reader that has some bytes and then fails, as the link of a page that was closed.
    struct Vanishes(Option<&'static [u8]>);

    impl futures::AsyncRead for Vanishes {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let Some(bytes) = self.0.take() else {
                return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
            };
            buffer[..bytes.len()].copy_from_slice(bytes);
            Poll::Ready(Ok(bytes.len()))
        }
    }

    #[tokio::test]
    async fn what_came_before_its_sender_vanished_is_delivered() {
        let (carried, mut to) = (
            AtomicU64::new(0),
            BufWriter::new(futures::io::Cursor::new(Vec::new())),
        );
        let bill = bill(0);
        let bounds = Bounds {
            carried: &carried,
            most: 1000,
            bill: &bill,
        };
        let pumped = pump(&mut Vanishes(Some(b"goodbye")), &mut to, bounds).await;
        assert_eq!(pumped.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(to.get_ref().get_ref(), b"goodbye");
    }

    #[tokio::test]
    async fn a_circuit_is_worn_out() {
        let (carried, mut to) = (AtomicU64::new(0), Vec::new());
        let carry = pumped(&[7; 100], &mut to, &carried, (100, 0));
        carry.await.unwrap();
        let worn_out = pumped(&[7; 100], &mut to, &carried, (150, 0)).await;
        assert_eq!(worn_out.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_wait_for_the_rate_of_all() {
        let begun = time::Instant::now();
        let (carried, mut to) = (AtomicU64::new(0), Vec::new());
        let carry = pumped(&[7; 100_000], &mut to, &carried, (u64::MAX, 50_000));
        carry.await.unwrap();
        assert_eq!(to.len(), 100_000);
        // The clock of the rate is a real one, which hardly moves in this test.
        assert!(
            begun.elapsed() > Duration::from_secs(1),
            "{:?}",
            begun.elapsed()
        );
    }
}
