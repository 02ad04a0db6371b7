//! Policy without IO: plain data and state machines that take time and randomness as arguments.

pub(crate) mod access;
pub(crate) mod address;
#[allow(dead_code, reason = "only a server counts what it carries")]
pub(crate) mod allowance;
#[allow(dead_code, reason = "a browser cannot be dialled")]
pub(crate) mod autonat;
pub(crate) mod backoff;
#[allow(dead_code, reason = "a browser guesses no ports")]
pub(crate) mod birthday;
#[allow(dead_code, reason = "only a server announces addresses")]
pub(crate) mod bridges;
pub(crate) mod candidate;
pub(crate) mod circuit;
pub(crate) mod datagram;
pub(crate) mod delays;
#[allow(dead_code, reason = "a browser resolves names itself")]
pub(crate) mod dial;
#[allow(dead_code, reason = "only a server dials back")]
pub(crate) mod dial_back;
pub(crate) mod dial_order;
#[allow(dead_code, reason = "only a server has a directory")]
pub(crate) mod directory;
#[allow(dead_code, reason = "only a server drains")]
pub(crate) mod drain;
#[allow(dead_code, reason = "only a server divides its rates")]
pub(crate) mod fair;
#[allow(dead_code, reason = "only a server is spoken to by strangers")]
pub(crate) mod first_bytes;
#[allow(dead_code, reason = "only servers are a fleet")]
pub(crate) mod fleet;
pub(crate) mod frame;
#[allow(dead_code, reason = "a page asks nobody in its local network")]
pub(crate) mod lan;
#[allow(dead_code, reason = "only servers are a fleet")]
pub(crate) mod lease;
pub(crate) mod liveness;
pub(crate) mod loss;
#[allow(dead_code, reason = "a browser resolves mDNS names itself")]
pub(crate) mod mdns;
pub(crate) mod mesh;
#[allow(dead_code, reason = "a browser does not show what STUN servers saw")]
pub(crate) mod nat;
#[allow(
    dead_code,
    reason = "a browser leaves it to the system how an address is reached"
)]
pub(crate) mod nat64;
pub(crate) mod nearest;
#[allow(dead_code, reason = "only a server says what is left")]
pub(crate) mod notice;
#[allow(dead_code, reason = "a browser uses only a part of it")]
pub(crate) mod offer;
pub(crate) mod pace;
pub(crate) mod path;
#[allow(dead_code, reason = "only a server serves strangers")]
pub(crate) mod patience;
pub(crate) mod plan;
#[allow(dead_code, reason = "only a server stands behind proxies")]
pub(crate) mod prefix;
#[allow(dead_code, reason = "only a server writes one")]
pub(crate) mod profile;
pub(crate) mod protobuf;
#[allow(dead_code, reason = "only a server stands behind proxies")]
pub(crate) mod proxy;
#[allow(dead_code, reason = "a browser speaks no QUIC")]
pub(crate) mod quic;
#[allow(dead_code, reason = "a browser checks its pairs itself")]
pub(crate) mod quiet;
#[allow(dead_code, reason = "only a server divides its resources")]
pub(crate) mod quota;
pub(crate) mod race;
#[allow(dead_code, reason = "a browser cannot be dialled")]
pub(crate) mod reachability;
#[allow(dead_code, reason = "only a server announces addresses")]
pub(crate) mod reached;
pub(crate) mod record;
#[allow(dead_code, reason = "only a server has certificates")]
pub(crate) mod renewal;
#[allow(dead_code, reason = "only a server judges strangers")]
pub(crate) mod reputation;
pub(crate) mod reservation;
pub(crate) mod rest;
pub(crate) mod resume;
#[allow(dead_code, reason = "only a server has a directory")]
pub(crate) mod room;
pub(crate) mod scope;
#[allow(dead_code, reason = "a browser writes its own descriptions")]
pub(crate) mod sdp;
pub(crate) mod seconds;
pub(crate) mod server_url;
pub(crate) mod signalling;
#[allow(dead_code, reason = "a browser's TURN client is its own")]
pub(crate) mod silence;
#[allow(
    dead_code,
    reason = "a browser resolves names itself, and no ticket names a site yet"
)]
pub(crate) mod site;
#[allow(dead_code, reason = "only a server has certificates")]
pub(crate) mod subject;
#[allow(dead_code, reason = "only a server bounds what is unread")]
pub(crate) mod unread;
#[allow(dead_code, reason = "a browser asks no router")]
pub(crate) mod upnp;
#[allow(dead_code, reason = "only a browser makes up its server's answer")]
pub(crate) mod webrtc_direct;
pub(crate) mod websocket_address;
pub(crate) mod yamux;
