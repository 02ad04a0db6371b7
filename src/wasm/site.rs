//! Asks the site of a relay for its profile by the browser's `fetch`.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use js_sys::{Function, JSON, Promise, Reflect, Uint8Array, global};
use send_wrapper::SendWrapper;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;

use super::value;
use crate::core::{
    dial::Policy,
    profile::{self, Learnt},
    site::{By, Fault, LONGEST, Site},
};

/// Nothing of the page goes along. A redirection is not followed, because a server could use it to make
/// its client attack others. An answer of the past says nothing of the present.
const OPTIONS: &str = r#"{"redirect":"manual","credentials":"omit","cache":"no-cache","referrerPolicy":"no-referrer"}"#;

/// What is needed to ask. Clones share it.
#[derive(Clone)]
pub(crate) struct Asker(pub(crate) Arc<Policy>);

impl Asker {
    /// Asks `site`, which `by` has named, for at most `patience`.
    ///
    /// # Errors
    /// Says why nothing was learnt.
    pub(crate) fn ask(
        &self,
        site: Site,
        by: By,
        patience: Duration,
    ) -> BoxFuture<'static, Result<Learnt, Fault>> {
        let policy = self.0.clone();
        Box::pin(SendWrapper::new(async move {
            site.check(by, &policy)?;
            let patience = patience.min(LONGEST).as_millis() as f64;
            let json =
                get(&site.url(), patience)
                    .await
                    .map_err(|thrown| match thrown.as_f64() {
                        Some(0.0) => Fault::Redirected,
                        Some(-1.0) => Fault::TooLong,
                        Some(status) => Fault::Status(status as u16),
                        None if is_timeout(&thrown) => Fault::TimedOut,
                        None => Fault::Failed(value::describe_error(&thrown)),
                    })?;
            site.read(&json, &policy)
        }))
    }
}

/// Returns the body at `url`.
///
/// # Errors
/// What was thrown, the status of the answer, 0 for a redirection, or -1 if it is too long.
async fn get(url: &str, patience: f64) -> Result<Vec<u8>, JsValue> {
    let global = JsValue::from(global());
    let options = JSON::parse(OPTIONS)?;
    let signals = Reflect::get(&global, &"AbortSignal".into())?;
    let signal = call(&signals, "timeout", &patience.into())?;
    Reflect::set(&options, &"signal".into(), &signal)?;
    let fetch: Function = Reflect::get(&global, &"fetch".into())?.unchecked_into();
    let asked: Promise = fetch
        .call2(&global, &url.into(), &options)?
        .unchecked_into();
    let answer = JsFuture::from(asked).await?;
    if !value::is_true(&answer, "ok") {
        return Err(Reflect::get(&answer, &"status".into())?);
    }
    let body = Reflect::get(&answer, &"body".into())?;
    let reader = call(&body, "getReader", &JsValue::UNDEFINED)?;
    let mut bytes = Vec::new();
    loop {
        let read: Promise = call(&reader, "read", &JsValue::UNDEFINED)?.unchecked_into();
        let read = JsFuture::from(read).await?;
        let Some(piece) = value::get(&read, "value") else {
            return Ok(bytes);
        };
        let piece: Uint8Array = piece.unchecked_into();
        if bytes.len() + piece.length() as usize > profile::MAX_BYTES {
            // An error says that there is nothing left to cancel.
            let _ = call(&reader, "cancel", &JsValue::UNDEFINED);
            return Err((-1).into());
        }
        bytes.extend(piece.to_vec());
    }
}

fn is_timeout(thrown: &JsValue) -> bool {
    value::string(thrown, "name").is_some_and(|name| name == "TimeoutError")
}

/// Calls a method.
fn call(of: &JsValue, name: &str, argument: &JsValue) -> Result<JsValue, JsValue> {
    let method: Function = Reflect::get(of, &name.into())?.unchecked_into();
    method.call1(of, argument)
}
