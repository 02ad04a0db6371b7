//! Connect two peers that sit behind NATs and firewalls, whether each is a web page or a native
//! program, through one [`Connector`].
//!
//! ```no_run
//! # async fn demo(relay: &str, ticket: &str) -> Result<(), throughline::Error> {
//! use futures::AsyncWriteExt as _;
//! use throughline::Connector;
//!
//! let me = Connector::builder().relay(relay).bind().await?;
//! println!("reach me with {}", me.ticket());
//!
//! let conn = me.connect(&ticket.parse()?).await?; // usable over the first authenticated path
//! let mut stream = conn.open("chat/1").await?;
//! stream.write_all(b"hello").await?;
//! # Ok(()) }
//! ```
//!
//! # How a connection comes about
//! 1. Each peer keeps a reservation on a relay (libp2p circuit relay v2). The relay sees
//!    ciphertext only: a circuit is secured end to end with noise before a byte crosses it.
//! 2. [`Connector::connect`] starts every way it knows at the same moment and returns on the first
//!    authenticated path, which usually is a circuit.
//! 3. In the background, ICE runs over that circuit (libp2p's `/webrtc` protocol, RFC 8445). When
//!    a better path is up, open streams move to it; when it dies, they move back.
//!    No byte is lost or repeated by a move: see [`Stream`].
//!
//! # Targets
//! The API is the same on native targets and on `wasm32-unknown-unknown` in a browser page. What
//! differs is which transports exist: a browser has WebSocket and WebRTC, a native program also has
//! QUIC and TCP.
//!
//! # Inside
//! Arrows only point down this list: the public types at the crate root; `node`, the event loop;
//! [`rtc`], libp2p's `/webrtc` as a transport and behaviour, and `circuit`, the dialler of relay
//! circuits; `native` and `wasm`, the thin
//! backends; `core`, pure policy without IO.

#![warn(missing_docs, unreachable_pub, unused_qualifications)]
#![forbid(unsafe_code)]

mod arriving;
mod circuit;
mod config;
mod connection;
mod connector;
pub(crate) mod core;
mod error;
mod event;
#[cfg(all(feature = "server", any(test, feature = "fuzzing")))]
#[doc(hidden)]
pub mod fuzzing;
mod identity;
mod metrics;
mod muxer;
mod node;
mod report;
pub mod rtc;
mod stream;
mod tasks;
mod ticket;

#[cfg(not(target_arch = "wasm32"))]
mod native;
#[cfg(feature = "server")]
pub mod server;
#[cfg(target_arch = "wasm32")]
mod wasm;

#[cfg(not(target_arch = "wasm32"))]
use native as backend;
#[cfg(target_arch = "wasm32")]
use wasm as backend;

pub use config::{Config, StartDelays, TurnServer};
pub use connection::Connection;
pub use connector::{Builder, Connector};
pub use error::{Error, ErrorKind};
pub use event::{Attempt, Cause, Outcome, Path, PathEvent, PathEvents, PathKind, Strategy};
pub use identity::{Identity, PeerId};
pub use report::{
    MappingProtocols, NatFiltering, NatMapping, NatPorts, NatReport, PortMappingState, RelayReport,
    Report, StunReport, TurnReport,
};
pub use stream::{RecvStream, SendStream, Stream};
pub use ticket::Ticket;
