//! The candidate pair below a connection.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, TokioRuntime};
use tracing::Instrument as _;

use super::link::lock;

tokio::task_local! {
    /// The path of the connection that sends.
    static PATH: Arc<Path>;
}

/// The local and the remote address, once they are known. They may change at any time.
#[derive(Debug, Default)]
pub(super) struct Path {
    pair: Mutex<Option<(SocketAddr, SocketAddr)>>,
    sent: AtomicU64,
}

impl Path {
    pub(super) fn set(&self, source: SocketAddr, destination: SocketAddr) {
        *lock(&self.pair) = Some((source, destination));
    }

    pub(super) fn get(&self) -> Option<(SocketAddr, SocketAddr)> {
        *lock(&self.pair)
    }

    /// Begins a connection that uses this path.
    pub(super) fn begin<R>(self: &Arc<Self>, begin: impl FnOnce() -> R) -> R {
        PATH.sync_scope(self.clone(), begin)
    }

    /// How many datagrams, or batches of them, were sent.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// The path of the connection that sends, which counts what it sends.
    pub(super) fn current() -> Option<(SocketAddr, SocketAddr)> {
        PATH.try_with(|path| {
            path.sent.fetch_add(1, Ordering::Relaxed);
            path.get()
        })
        .ok()
        .flatten()
    }
}

/// The Tokio runtime, with tasks that know the path of their connection. Quinn has one task for
/// each connection, which sends everything that the connection sends.
#[derive(Debug)]
pub(super) struct OnPaths;

impl Runtime for OnPaths {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        match PATH.try_with(Arc::clone) {
            Ok(path) => TokioRuntime.spawn(Box::pin(PATH.scope(path, task.in_current_span()))),
            Err(_) => TokioRuntime.spawn(Box::pin(task.in_current_span())),
        }
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        TokioRuntime.wrap_udp_socket(socket)
    }
}
