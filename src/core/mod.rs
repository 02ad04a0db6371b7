//! Pure policy: plain data and state machines, with time and randomness as arguments.

pub(crate) mod address;
#[allow(dead_code, reason = "nobody dials a browser")]
pub(crate) mod autonat;
pub(crate) mod backoff;
#[allow(dead_code, reason = "a browser guesses no ports")]
pub(crate) mod birthday;
pub(crate) mod candidate;
pub(crate) mod circuit;
#[allow(dead_code, reason = "a browser resolves names itself")]
pub(crate) mod dial;
#[allow(dead_code, reason = "only a server dials back")]
pub(crate) mod dial_back;
pub(crate) mod frame;
#[allow(dead_code, reason = "a browser resolves such names itself")]
pub(crate) mod mdns;
#[allow(dead_code, reason = "a browser does not tell what it sees")]
pub(crate) mod nat;
#[allow(dead_code, reason = "a browser seals no offers")]
pub(crate) mod offer;
pub(crate) mod pace;
pub(crate) mod path;
#[allow(dead_code, reason = "only a server serves strangers")]
pub(crate) mod patience;
pub(crate) mod plan;
pub(crate) mod protobuf;
#[allow(dead_code, reason = "a browser speaks no QUIC")]
pub(crate) mod quic;
#[allow(dead_code, reason = "only a server shares what it has")]
pub(crate) mod quota;
pub(crate) mod race;
#[allow(dead_code, reason = "nobody dials a browser")]
pub(crate) mod reachability;
pub(crate) mod resume;
pub(crate) mod scope;
#[allow(dead_code, reason = "a browser writes its own descriptions")]
pub(crate) mod sdp;
pub(crate) mod seconds;
pub(crate) mod server_url;
pub(crate) mod signalling;
pub(crate) mod yamux;
