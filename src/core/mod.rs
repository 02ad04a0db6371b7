//! Pure policy: plain data and state machines, with time and randomness as arguments.

pub(crate) mod address;
pub(crate) mod backoff;
pub(crate) mod candidate;
pub(crate) mod frame;
pub(crate) mod path;
pub(crate) mod resume;
pub(crate) mod sdp;
pub(crate) mod server_url;
pub(crate) mod signalling;
