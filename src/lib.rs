//! Connects two peers that sit behind NATs and firewalls. Each peer is a web page or a native
//! program, and both use one type: [`Connector`].
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
//! 1. Each peer keeps a reservation on a relay (libp2p circuit relay v2). The relay sees only
//!    ciphertext, because noise secures a circuit from end to end before a byte crosses it.
//! 2. [`Connector::connect`] starts every way it knows at the same moment. It returns on the first
//!    authenticated path, which usually is a circuit.
//! 3. In the background, the peers run ICE (RFC 8445), with libp2p's `/webrtc` protocol over that
//!    circuit. When a better path is up, open streams move to it. When that path dies, they move
//!    back. A move neither loses nor repeats a byte: see [`Stream`].
//!
//! # Features
//! No feature is on by default. A page can use only `libp2p` and `tokio`.
//! - `libp2p`: the module [`rtc`], for programs that use libp2p themselves.
//! - `tokio`: `AsyncRead` and `AsyncWrite` of tokio for [`Stream`], [`SendStream`] and
//!   [`RecvStream`], in addition to those of `futures`.
//! - `server`: the module [`server`], which has the relay, STUN and TURN server.
//! - `cli`: the program. `cargo install throughline --features cli` installs it.
//!
//! # Targets
//! The API is the same on native targets and on `wasm32-unknown-unknown` in a browser page. The
//! transports differ: a browser has WebSocket and WebRTC, and a native program also has QUIC and
//! TCP.
//!
//! # Layers
//! Each module imports only from its own line and from lines below it.
//!
//! - `connector`, `room`, `mesh`, `rtc`, `server`: the things that a program starts.
//! - `node`, `connection`: the event loop, and the handle that talks to it.
//! - `native`, `wasm`: the thin backends. A target has one of them, called `backend`.
//! - `swarm`: our additions to libp2p's swarm on every target.
//! - `webrtc`: libp2p's `/webrtc` as a transport and a behaviour.
//! - `attendance`: this peer as a member of a room.
//! - `offer`, `envelope`: offers and early data, sealed for one peer; what a peer has signed.
//! - `stream`, `datagrams`: what moves from path to path: byte streams, and datagrams.
//! - `config`, `ticket`, `identity`, `report`, `status`, `metrics`: values that users give and read.
//! - `core`: pure policy and codecs without IO.
//! - `event`, `error`, `arriving`: words and tools for all other layers.

#![warn(missing_docs, unused_qualifications)]
// Without the feature, the public items of `rtc` are not public.
#![cfg_attr(feature = "libp2p", warn(unreachable_pub))]
#![forbid(unsafe_code)]

#[cfg(all(feature = "server", target_arch = "wasm32"))]
compile_error!(
    "the features `server` and `cli` need a native target: build for wasm32 without them"
);

mod arriving;
mod attendance;
mod config;
mod connection;
mod connector;
pub(crate) mod core;
mod datagrams;
mod envelope;
mod error;
mod event;
#[cfg(all(
    feature = "server",
    any(test, feature = "fuzzing"),
    not(target_arch = "wasm32")
))]
#[doc(hidden)]
pub mod fuzzing;
mod identity;
mod mesh;
mod metrics;
mod node;
mod offer;
mod report;
mod room;
#[cfg(feature = "libp2p")]
pub mod rtc;
mod status;
mod stream;
mod swarm;
#[cfg(test)]
mod testing;
mod ticket;
#[cfg_attr(
    not(feature = "libp2p"),
    allow(
        dead_code,
        unused_imports,
        unreachable_pub,
        reason = "some of it is for `rtc`"
    )
)]
mod webrtc;

#[cfg(not(target_arch = "wasm32"))]
mod native;
#[cfg(all(feature = "server", not(target_arch = "wasm32")))]
pub mod server;
#[cfg(target_arch = "wasm32")]
mod wasm;

#[cfg(not(target_arch = "wasm32"))]
use native as backend;
#[cfg(target_arch = "wasm32")]
use wasm as backend;

/// The program and the bindings use this with option names of their own. It is not part of the API.
#[doc(hidden)]
pub use crate::core::nearest::unknown_option;

pub use config::{Config, RelayTokens, StartDelays, TurnServer};
pub use connection::Connection;
pub use connector::{Builder, Connector};
pub use error::{Error, ErrorKind, ResetCode};
pub use event::{
    Attempt, Cause, ChangeReason, ConnectorEvent, ConnectorEvents, Datagrams, Outcome, Path,
    PathEvent, PathEvents, PathKind, QuotaPeriod, Strategy,
};
pub use identity::{Identity, PeerId};
pub use mesh::{Mesh, MeshEvent};
pub use report::{
    MappingProtocols, NatFiltering, NatMapping, NatPorts, NatReport, PortMappingState, RelayReport,
    Report, StunReport, TurnReport,
};
pub use room::{Member, Room, RoomEvent, RoomOptions};
pub use status::{Reachability, Status, StatusChanges};
pub use stream::{RecvStream, SendStream, Stream};
pub use ticket::Ticket;

/// The Rust in the documents is compiled by the tests of the documentation.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../README.md")]
    struct Readme;
    #[doc = include_str!("../docs/start.md")]
    struct Start;
    #[doc = include_str!("../docs/guides/game.md")]
    struct Game;
    #[doc = include_str!("../docs/guides/rooms.md")]
    struct Rooms;
    #[doc = include_str!("../docs/guides/service.md")]
    struct Service;
}
