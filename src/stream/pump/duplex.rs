//! A substream in memory that can be cut after any number of bytes.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, Waker},
};

use futures::{AsyncRead, AsyncWrite};

/// The most bytes on their way, so that writes meet back-pressure.
const CAPACITY: usize = 96 * 1024;

/// One end of the substream. Dropping it resets the other end.
pub(super) struct Duplex {
    read: Pipe,
    write: Pipe,
}

#[derive(Clone)]
struct Pipe(Arc<Mutex<Flow>>);

struct Flow {
    bytes: VecDeque<u8>,
    /// How many bytes may still go in before the substream dies.
    budget: usize,
    closed: bool,
    dead: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Kills a substream while its ends are in use elsewhere.
pub(super) struct Scissors([Pipe; 2]);

/// Makes a substream that dies when it has carried as many bytes as one of `budgets` in that
/// direction.
pub(super) fn duplex(budgets: [usize; 2]) -> (Duplex, Duplex, Scissors) {
    let [a, b] = budgets.map(|budget| {
        Pipe(Arc::new(Mutex::new(Flow {
            bytes: VecDeque::new(),
            budget,
            closed: false,
            dead: false,
            reader: None,
            writer: None,
        })))
    });
    let scissors = Scissors([a.clone(), b.clone()]);
    let near = Duplex {
        read: b.clone(),
        write: a.clone(),
    };
    (near, Duplex { read: a, write: b }, scissors)
}

impl Scissors {
    pub(super) fn cut(&self) {
        self.0.iter().for_each(Pipe::kill);
    }
}

impl Pipe {
    fn lock(&self) -> MutexGuard<'_, Flow> {
        self.0.lock().unwrap()
    }

    fn kill(&self) {
        let mut flow = self.lock();
        flow.dead = true;
        flow.wake();
    }
}

impl Flow {
    fn wake(&mut self) {
        let waiting = [self.reader.take(), self.writer.take()];
        waiting.into_iter().flatten().for_each(Waker::wake);
    }
}

impl AsyncRead for Duplex {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut flow = self.read.lock();
        let count = io::Read::read(&mut flow.bytes, out)?;
        if count > 0 {
            flow.wake();
            return Poll::Ready(Ok(count));
        }
        if flow.dead {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if flow.closed {
            return Poll::Ready(Ok(0));
        }
        flow.reader = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for Duplex {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut flow = self.write.lock();
        if flow.dead || flow.closed {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let room = CAPACITY - flow.bytes.len();
        if room == 0 {
            flow.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = bytes.len().min(room).min(flow.budget);
        flow.bytes.extend(&bytes[..count]);
        flow.budget -= count;
        flow.wake();
        if flow.budget == 0 {
            drop(flow);
            self.write.kill();
            self.read.kill();
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut flow = self.write.lock();
        flow.closed = true;
        flow.wake();
        Poll::Ready(Ok(()))
    }
}

impl Drop for Duplex {
    fn drop(&mut self) {
        if !self.write.lock().closed {
            self.write.kill();
        }
        self.read.kill();
    }
}
