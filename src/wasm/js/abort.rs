//! An `AbortSignal` that ends a future.

use std::future::Future;

use futures::{
    channel::oneshot,
    future::{Either, select},
};
use wasm_bindgen::{JsCast, JsValue};
use web_sys::{Event, EventTarget};

use crate::{
    Error, ErrorKind,
    wasm::{listener::Listener, value},
};

/// Runs `work` until it ends or `signal` fires. `signal` is an `AbortSignal` or `undefined`.
///
/// # Errors
/// Returns the errors of `work`, and [`ErrorKind::Aborted`].
pub(super) async fn until_aborted<T>(
    signal: JsValue,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let aborted = || Error::new(ErrorKind::Aborted, "the caller's AbortSignal fired");
    if value::is_true(&signal, "aborted") {
        return Err(aborted());
    }
    if signal.is_undefined() {
        return work.await;
    }
    // JavaScript has checked its members. It may come from another window, and then it is no
    // instance of this window's `EventTarget`.
    let signal = signal.unchecked_into::<EventTarget>();
    let (fire, fired) = oneshot::channel();
    let mut fire = Some(fire);
    let _listener = Listener::new(&signal, "abort", move |_: Event| {
        if let Some(fire) = fire.take() {
            let _ = fire.send(());
        }
    });
    match select(Box::pin(work), fired).await {
        Either::Left((result, _)) => result,
        Either::Right(_) => Err(aborted()),
    }
}
