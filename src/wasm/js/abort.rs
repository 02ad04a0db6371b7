//! An `AbortSignal` that ends a future.

use std::future::Future;

use futures::{
    channel::oneshot,
    future::{Either, LocalBoxFuture, select},
};
use js_sys::Promise;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::{Event, EventTarget};

use super::convert;
use crate::{
    Error, ErrorKind,
    wasm::{listener::Listener, value},
};

/// Converts `work` to a promise that rejects when `signal` fires. `signal` is an `AbortSignal` or `undefined`.
/// The future is boxed, because each type of future would add code of its own.
pub(super) fn promise(
    signal: JsValue,
    work: impl Future<Output = Result<JsValue, Error>> + 'static,
) -> Promise {
    let work: LocalBoxFuture<'static, _> = Box::pin(work);
    convert::promise(async move { until_aborted(signal, work).await.map_err(convert::error) })
}

async fn until_aborted(
    signal: JsValue,
    work: LocalBoxFuture<'static, Result<JsValue, Error>>,
) -> Result<JsValue, Error> {
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
    // Whoever has fired it wants no result, so what waits for this call is left for the next one.
    match select(fired, work).await {
        Either::Left(_) => Err(aborted()),
        Either::Right((result, _)) => result,
    }
}
