//! Pure policy: plain data and state machines, with time and randomness as arguments.

pub(crate) mod address;
pub(crate) mod backoff;
pub(crate) mod candidate;
pub(crate) mod frame;
pub(crate) mod path;
pub(crate) mod plan;
pub(crate) mod race;
pub(crate) mod resume;
pub(crate) mod sdp;
pub(crate) mod signalling;
