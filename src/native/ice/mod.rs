//! ICE (RFC 8445) and the parts that it needs. Candidates are gathered from interfaces, STUN, port
//! mapping and TURN. A WebRTC connection runs over the pair that works.
//!
//! `gather` asks `stun`, `port_mapping` and `turn`, and hands its candidates to `webrtc`, which
//! holds one agent for each connection. `mdns` resolves the names behind which browsers hide their
//! addresses.

pub(crate) mod gather;
pub(crate) mod mdns;
pub(crate) mod port_mapping;
pub(crate) mod stun;
pub(crate) mod turn;
pub(crate) mod webrtc;
