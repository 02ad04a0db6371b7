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
    config::RelayTokens,
    core::{
        access::{self, Admitted},
        dial::Policy,
        profile::{self, Learnt},
        reservation::{self, MAX_MESSAGE, ReservationError},
    },
};

/// How long the message that announces a circuit may take, and how long the transport may take to
/// accept it.
const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(10);

/// What a relay is asked for.
pub(crate) enum Ask {
    /// A reservation, over a stream of [`HOP_PROTOCOL`](crate::core::circuit::HOP_PROTOCOL).
    Reservation,
    /// Access, over a stream of [`access::PROTOCOL`], with the token if there is one. It can bring
    /// a reservation and TURN credentials.
    Access {
        tokens: Option<RelayTokens>,
        reserve: bool,
        turn: bool,
    },
}

/// Asks a relay over `stream`. Nothing leaves for the relay before there is a token, because streams
/// are opened lazily.
///
/// # Errors
/// Returns why the relay does not serve us. After `patience`, this is [`ReservationError::NoAnswer`].
pub(crate) async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    how: Ask,
    patience: Duration,
) -> Result<Admitted, ReservationError> {
    let is_plain = matches!(how, Ask::Reservation);
    let asked = async {
        let (request, most) = match how {
            Ask::Reservation => (reservation::RESERVE.to_vec(), MAX_MESSAGE),
            Ask::Access {
                tokens,
                reserve,
                turn,
            } => {
                let token = match tokens {
                    Some(tokens) => Some(tokens.get().await?),
                    None => None,
                };
                let request = access::request(token.as_deref(), reserve, turn);
                (request, access::MAX_ANSWER)
            }
        };
        stream.write_all(&request).await?;
        stream.flush().await?;
        read_message(&mut stream, most).await
    };
    match select(asked.boxed(), Delay::new(patience)).await {
        Either::Left((Ok(answer), _)) if is_plain => Ok(Admitted {
            reservation: Some(answer),
            ..Admitted::default()
        }),
        Either::Left((Ok(answer), _)) => {
            let answer = access::answered(&answer).ok_or(ReservationError::Malformed)?;
            answer.map_err(ReservationError::from)
        }
        Either::Left((Err(error), _)) => Err(ReservationError::NoAnswer(error.to_string())),
        Either::Right(_) => Err(ReservationError::NoAnswer("it took too long".to_owned())),
    }
}

/// Asks a relay over `stream`, of [`profile::PROTOCOL`], what it says of itself.
///
/// # Errors
/// Says why nothing was learnt.
pub(crate) async fn ask_profile(
    mut stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    policy: &Policy,
    patience: Duration,
) -> Result<Learnt, String> {
    let asked = async {
        // The request is empty.
        stream.write_all(&[0]).await?;
        stream.flush().await?;
        read_message(&mut stream, profile::MAX_MESSAGE).await
    };
    match select(asked.boxed(), Delay::new(patience)).await {
        Either::Left((Ok(answer), _)) => profile::read(&answer, policy),
        Either::Left((Err(error), _)) => Err(error.to_string()),
        Either::Right(_) => Err("it took too long".to_owned()),
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
