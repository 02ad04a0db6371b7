//! Conversion of values between Rust and JavaScript. They cross as JSON, which keeps the names and
//! forms of the command line's output and refuses unknown options.

use std::{future::Future, pin::Pin};

use js_sys::{Array, Error as JsError, Function, JSON, Object, Promise, Reflect};
use send_wrapper::SendWrapper;
use serde::Serialize;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::{JsFuture, future_to_promise};

use crate::{Config, Error, ErrorKind, RelayTokens, wasm::value};

/// Converts `work` to a promise. The future is boxed, because each type of future would add code
/// for its own task.
pub(super) fn promise(work: impl Future<Output = Result<JsValue, JsValue>> + 'static) -> Promise {
    let work: Pin<Box<dyn Future<Output = Result<JsValue, JsValue>>>> = Box::pin(work);
    future_to_promise(work)
}

/// Converts `value` to a plain object.
pub(super) fn to_js(value: &impl Serialize) -> JsValue {
    serde_json::to_string(value)
        .ok()
        .and_then(|json| JSON::parse(&json).ok())
        .unwrap_or(JsValue::UNDEFINED)
}

/// Reads a configuration. Options that are missing or `undefined` have their default.
///
/// # Errors
/// Fails with [`ErrorKind::InvalidConfig`]. The error names the option that is unknown or of the
/// wrong type.
pub(super) fn config(options: &JsValue) -> Result<Config, Error> {
    let invalid = |message| Error::new(ErrorKind::InvalidConfig, message);
    if options.is_undefined() {
        return Ok(Config::default());
    }
    let Some(object) = options.dyn_ref::<Object>() else {
        return Err(invalid("options: not an object".to_owned()));
    };
    // Each option is parsed alone first, because the parser tells the place of an error, but not
    // always its option.
    for entry in Object::entries(object).iter() {
        let option = Object::from_entries(&Array::of1(&entry));
        let parsed = option.map_err(|error| value::describe_error(&error));
        if let Err(why) = parsed.and_then(|option| parse(&option)) {
            let name = Array::from(&entry).get(0).as_string();
            return Err(invalid(format!("{}: {why}", name.unwrap_or_default())));
        }
    }
    parse(object).map_err(invalid)
}

fn parse(options: &Object) -> Result<Config, String> {
    let json = JSON::stringify(options).map_err(|error| value::describe_error(&error))?;
    let json = String::from(json);
    serde_json::from_str(&json).map_err(|error| error.to_string())
}

/// Gets the tokens for relays from a function that gives a promise of a string.
pub(super) fn tokens(fetch: Function) -> RelayTokens {
    let fetch = SendWrapper::new(fetch);
    RelayTokens::from_fn(move || {
        let fetched = fetch.call0(&JsValue::UNDEFINED).map(Promise::from);
        SendWrapper::new(async move {
            let token = match fetched {
                Ok(fetched) => JsFuture::from(fetched).await,
                Err(error) => Err(error),
            };
            let token = token.map(|token| token.as_string().unwrap_or_default());
            token.map_err(|error| Error::new(ErrorKind::Io, value::describe_error(&error)))
        })
    })
}

/// An `Error` with `code` and `attempts`, and with `resetCode` and `cause` where there is one.
pub(super) fn error(error: Error) -> JsValue {
    let thrown = JsError::new(error.message());
    thrown.set_name("ThroughlineError");
    let attempts = error.attempts().iter().map(to_js).collect::<Array>();
    set(&thrown, "code", &error.code().into());
    set(&thrown, "attempts", &attempts);
    if let Some(code) = error.reset_code() {
        set(&thrown, "resetCode", &code.0.into());
    }
    if let Some(time) = error.retry_after() {
        set(&thrown, "retryAfterMs", &(time.as_millis() as f64).into());
    }
    if let Some(cause) = cause(&error) {
        thrown.set_cause(&cause);
    }
    thrown.into()
}

/// Converts the sources of `error`. Each becomes the cause of the one before.
fn cause(error: &dyn std::error::Error) -> Option<JsValue> {
    let source = error.source()?;
    let thrown = JsError::new(&source.to_string());
    if let Some(cause) = cause(source) {
        thrown.set_cause(&cause);
    }
    Some(thrown.unchecked_into())
}

fn set(object: &JsValue, name: &str, value: &JsValue) {
    // This cannot fail, because a fresh Error is not frozen.
    let _ = Reflect::set(object, &name.into(), value);
}
