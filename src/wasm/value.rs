//! Functions that read JavaScript values.

use js_sys::{Error, Reflect};
use wasm_bindgen::{JsCast, JsValue};

/// The property `name` of `object`, unless it is missing, `undefined` or `null`.
pub(crate) fn get(object: &JsValue, name: &str) -> Option<JsValue> {
    Reflect::get(object, &name.into())
        .ok()
        .filter(|value| !value.is_undefined() && !value.is_null())
}

/// The property `name` of `object`, if it is a string.
pub(crate) fn string(object: &JsValue, name: &str) -> Option<String> {
    get(object, name)?.as_string()
}

/// Whether the property `name` of `object` is truthy.
pub(crate) fn is_true(object: &JsValue, name: &str) -> bool {
    get(object, name).is_some_and(|value| value.is_truthy())
}

/// Describes a thrown value in words.
pub(crate) fn describe_error(thrown: &JsValue) -> String {
    match thrown.dyn_ref::<Error>() {
        Some(error) => format!("{}: {}", error.name(), error.message()),
        None => thrown
            .as_string()
            .unwrap_or_else(|| "the thrown value is not an error".to_owned()),
    }
}
