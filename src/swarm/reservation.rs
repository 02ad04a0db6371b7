//! Asks relays for reservations, and takes in the circuits that they bring.

use std::{io, time::Duration};

use futures::{
    AsyncRead, AsyncWrite, AsyncWriteExt as _, FutureExt as _, SinkExt as _,
    future::{Either, ready, select},
};
use futures_timer::Delay;
use libp2p::{Multiaddr, PeerId};

use super::circuit::{Arrival, Arrivals};
use crate::{
    arriving::read_message,
    config::RelayTokens,
    core::{
        access::{self, Admitted},
        reservation::{self, MAX_MESSAGE, ReservationError},
    },
};

/// How long the message that announces a circuit may take, and how long the transport may take to
/// accept it.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks for a reservation over `stream`, whose protocol is
/// [`HOP_PROTOCOL`](crate::core::circuit::HOP_PROTOCOL). Returns the addresses that the relay
/// announces for itself.
///
/// # Errors
/// Why there is no reservation. After `patience`, it is [`ReservationError::NoAnswer`].
pub(crate) async fn ask(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    patience: Duration,
) -> Result<Vec<Multiaddr>, ReservationError> {
    let request = ready(Ok(reservation::RESERVE.to_vec()));
    let answer = exchange(stream, request, MAX_MESSAGE, patience).await?;
    reservation::granted(&answer)
}

/// Asks for access over `stream`, whose protocol is [`access::PROTOCOL`]. `tokens` gives the token to
/// show. The other wishes are a reservation and TURN credentials.
///
/// Nothing leaves for the relay before there is a token, because the stream is opened lazily.
///
/// # Errors
/// Why there is no access, as of [`ask`].
pub(crate) async fn ask_access(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    tokens: Option<RelayTokens>,
    (reserve, turn): (bool, bool),
    patience: Duration,
) -> Result<Admitted, ReservationError> {
    let request = async move {
        let token = match tokens {
            Some(tokens) => Some(tokens.get().await.map_err(io::Error::other)?),
            None => None,
        };
        Ok(access::request(token.as_deref(), reserve, turn))
    };
    let answer = exchange(stream, request, access::MAX_ANSWER, patience).await?;
    let answer = access::answered(&answer).ok_or(ReservationError::Malformed)?;
    answer.map_err(ReservationError::from)
}

/// Sends a request and reads the answer.
async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    request: impl Future<Output = io::Result<Vec<u8>>> + Send,
    most: usize,
    patience: Duration,
) -> Result<Vec<u8>, ReservationError> {
    let asked = async {
        stream.write_all(&request.await?).await?;
        stream.flush().await?;
        read_message(&mut stream, most).await
    };
    match select(asked.boxed(), Delay::new(patience)).await {
        Either::Left((Ok(answer), _)) => Ok(answer),
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
