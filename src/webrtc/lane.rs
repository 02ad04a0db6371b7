//! Datagrams on a data channel that is neither ordered nor reliable.

use std::task::{Context, Poll, ready};

use super::backend::{DataChannel, PeerConnection};
use crate::{
    core::datagram::MAX_LEN,
    datagrams::{Carrier, Driver, Ended, claim},
};

/// A channel as [`PeerConnection::open_lane`] makes it.
#[derive(Debug)]
pub(super) struct Unreliable<C>(pub(super) C);

impl<C: DataChannel> Carrier for Unreliable<C> {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        self.0.poll_ready(cx).map_err(|_| Ended)
    }

    fn send(&mut self, datagram: Vec<u8>) {
        // If the channel has ended, the next `poll_ready` says so.
        let _ = self.0.send(&datagram);
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Vec<u8>, Ended>> {
        match ready!(self.0.poll_next(cx)) {
            // A channel would carry more, and each datagram may wait in memory.
            Some(Ok(datagram)) if datagram.len() <= MAX_LEN => Poll::Ready(Ok(datagram.into())),
            _ => Poll::Ready(Err(Ended)),
        }
    }
}

/// The driver of a connection's lane. It is `None` until the connection's handler has left a lane,
/// and stays so if the handler leaves none.
pub(super) type LaneDriver<C> = Option<Driver<Unreliable<C>>>;

/// Takes the lane if the handler has left it.
pub(super) fn find<C: DataChannel>(driver: &mut LaneDriver<C>, cx: &Context<'_>) {
    if driver.is_none()
        && let Some(lane) = claim(cx)
    {
        lane.carry(MAX_LEN);
        *driver = Some(Driver::new(lane, true));
    }
}

/// Moves the datagrams of `connection`.
pub(super) fn poll<P: PeerConnection>(
    driver: &mut LaneDriver<P::Channel>,
    connection: &mut P,
    cx: &mut Context<'_>,
) {
    let Some(driver) = driver else {
        return;
    };
    // The second turn sends what waits for the new channel. If none could be opened, there may be one
    // at the next turn of the connection.
    for _ in 0..2 {
        if !driver.poll(cx) {
            return;
        }
        driver.opened(connection.open_lane().ok().map(Unreliable));
    }
}
