//! The additions of this library to libp2p's swarm on every target. The backends, the event loop
//! and the server are built on it.
//!
//! - `substreams` opens substreams on a chosen connection, and hands over substreams that peers
//!   open.
//! - `circuit` dials relay circuits without waiting for the relay's answer, and accepts circuits.
//! - `reservation` asks relays for reservations, and takes in the circuits that they bring.
//! - `datagrams` carries datagrams on a substream.
//! - `directory` asks the directory of a relay.
//! - `dial_layer` is a transport that changes only how addresses are dialled.
//! - `dials` can take back single dials, and refuses forbidden addresses.
//! - `causes` explains why a dial failed.
//! - `muxer` is a yamux that allocates memory only for bytes that have arrived.
//! - `ping` watches connections.
//! - `queue` holds the events of a behaviour or a handler for libp2p.

pub(crate) mod causes;
pub(crate) mod circuit;
mod datagrams;
pub(crate) mod dial_layer;
pub(crate) mod dials;
pub(crate) mod directory;
pub(crate) mod muxer;
pub(crate) mod ping;
pub(crate) mod queue;
pub(crate) mod reservation;
pub(crate) mod substreams;
