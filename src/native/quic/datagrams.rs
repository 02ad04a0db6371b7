//! The datagrams of a connection, as QUIC's own (RFC 9221).

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{self, BoxStream},
};
use quinn::{Connection, SendDatagramError};

use crate::{
    core::datagram::MAX_LEN,
    datagrams::{Carrier, Driver, Ended, Lane},
};

/// The bytes of datagrams that wait in QUIC to be sent. Others wait in the session's queue, which drops
/// the oldest.
pub(super) const UNSENT: usize = 16 * 1024;

/// The bytes of received datagrams that wait in QUIC for the connection's task: as many as arrive in
/// one call of the kernel.
pub(super) const UNREAD: usize = 64 * 1024;

/// Moves the datagrams of a connection.
pub(super) fn driver(connection: &Connection, lane: Arc<Lane>) -> Driver<QuicDatagrams> {
    let mut driver = Driver::new(lane, true);
    driver.opened(Some(QuicDatagrams {
        connection: connection.clone(),
        arrived: received(connection.clone()),
        waiting: None,
    }));
    driver
}

/// Returns the length of the longest datagram that the connection carries now. Returns `None` if the
/// peer takes none of the length that every path carries.
pub(super) fn max_len(connection: &Connection) -> Option<usize> {
    connection.max_datagram_size().filter(|max| *max >= MAX_LEN)
}

pub(super) struct QuicDatagrams {
    connection: Connection,
    arrived: BoxStream<'static, Bytes>,
    /// A datagram for which there was no room.
    waiting: Option<BoxFuture<'static, Result<(), SendDatagramError>>>,
}

fn received(connection: Connection) -> BoxStream<'static, Bytes> {
    stream::unfold(connection, |connection| async {
        let datagram = connection.read_datagram().await.ok()?;
        Some((datagram, connection))
    })
    .boxed()
}

impl Carrier for QuicDatagrams {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        if let Some(waiting) = &mut self.waiting {
            // A datagram that became too long for the path is lost. When the connection is lost,
            // all datagrams are.
            let _ = ready!(waiting.poll_unpin(cx));
            self.waiting = None;
        }
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, datagram: Vec<u8>) {
        let datagram = Bytes::from(datagram);
        if datagram.len() <= self.connection.datagram_send_buffer_space() {
            let _ = self.connection.send_datagram(datagram);
            return;
        }
        let connection = self.connection.clone();
        self.waiting = Some(async move { connection.send_datagram_wait(datagram).await }.boxed());
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<u8>, Ended>> {
        // The datagram is copied, because QUIC's bytes keep all that arrived with them.
        match ready!(self.arrived.poll_next_unpin(cx)) {
            Some(datagram) => Poll::Ready(Ok(datagram.to_vec())),
            None => Poll::Ready(Err(Ended)),
        }
    }
}
