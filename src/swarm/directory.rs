//! Asks the directory of a relay.

use std::time::Duration;

use futures::{
    AsyncRead, AsyncWrite, AsyncWriteExt as _, FutureExt as _,
    future::{Either, select},
};
use futures_timer::Delay;

use crate::{
    arriving::read_message,
    core::directory::{Answer, MAX_MESSAGE, Request},
};

/// Asks for one thing over `stream`. Returns `None` if there is no answer within `patience`, or if it
/// cannot be read.
pub(crate) async fn ask(
    mut stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    request: Request,
    patience: Duration,
) -> Option<Answer> {
    let asked = async {
        stream.write_all(&request.encode()).await.ok()?;
        stream.flush().await.ok()?;
        read_message(&mut stream, MAX_MESSAGE).await.ok()
    };
    match select(asked.boxed(), Delay::new(patience)).await {
        Either::Left((answer, _)) => Answer::decode(&answer?),
        Either::Right(_) => None,
    }
}
