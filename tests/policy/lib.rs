//! The policy of throughline, without all that does IO. See `Cargo.toml` beside this file.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    rustdoc::broken_intra_doc_links,
    reason = "what uses it is in the whole crate"
)]

#[path = "../../src"]
mod src {
    pub(crate) mod core;
    pub(crate) mod error;
    pub(crate) mod event;
    pub(crate) mod identity;
    pub(crate) mod server {
        mod rate_limiter;
    }
    pub(crate) mod ticket;
}

pub(crate) use src::{core, error, event, identity, ticket};
pub use src::{error::*, event::*, identity::*, ticket::*};
