//! Exports what `throughline::wasm` binds; there is nothing here to call from Rust.

extern crate throughline as _;
