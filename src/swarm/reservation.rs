//! Asks relays for reservations, and takes in the circuits that they bring.

use std::time::Duration;

use futures::{
    AsyncRead, AsyncWrite, AsyncWriteExt as _, FutureExt as _, SinkExt as _,
    future::{Either, select},
};
use futures_timer::Delay;
use libp2p::{Multiaddr, PeerId};

use super::circuit::{Arrival, Arrivals};
use crate::{
    arriving::read_message,
    core::reservation::{self, MAX_MESSAGE, ReservationError},
};

/// How long the message that announces a circuit may take, and how long the transport may take to
/// accept it.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks for a reservation over `stream`, whose protocol is
/// [`HOP_PROTOCOL`](crate::core::circuit::HOP_PROTOCOL). Returns the addresses that the relay
/// announces for itself.
///
/// # Errors
/// Returns why there is no reservation. After `patience`, this is [`ReservationError::NoAnswer`].
pub(crate) async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    patience: Duration,
) -> Result<Vec<Multiaddr>, ReservationError> {
    let asked = async {
        stream.write_all(&reservation::RESERVE).await?;
        stream.flush().await?;
        read_message(&mut stream, MAX_MESSAGE).await
    };
    match select(asked.boxed(), Delay::new(patience)).await {
        Either::Left((Ok(answer), _)) => reservation::granted(&answer),
        Either::Left((Err(error), _)) => Err(ReservationError::NoAnswer(error.to_string())),
        Either::Right(_) => Err(ReservationError::NoAnswer("it took too long".to_owned())),
    }
}

/// Takes in the circuit that `relay` brings over `stream`, and hands it to the transport. A circuit
/// that takes too long, or that is not announced as specified, is reset.
pub(crate) async fn take_in<S>(mut stream: S, relay: Multiaddr, mut arrivals: Arrivals<S>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let taken = async {
        let announced = read_message(&mut stream, MAX_MESSAGE).await;
        let source: Option<PeerId> = announced.ok().and_then(|a| reservation::source(&a));
        let Some(source) = source else {
            tracing::debug!(%relay, "a circuit is not announced as specified");
            return;
        };
        let _ = arrivals.send(Arrival::new(stream, source, &relay)).await;
    };
    select(taken.boxed(), Delay::new(ARRIVAL_TIMEOUT)).await;
}
