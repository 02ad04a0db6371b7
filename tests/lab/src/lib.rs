//! Real kernel NATs in network namespaces, for tests and benchmarks.
//!
//! A [`Spec`] describes [`Site`]s behind [`Nat`]s, optional carrier NATs and [`Link`] conditions as
//! data. [`Lab::up`] builds the lab in about a tenth of a second. [`Host::command`] runs a program
//! inside, and [`Host::run`] runs async code. [`Lab::set_nat`], [`Lab::set_link`] and [`Lab::cut`]
//! change the lab while it runs. Dropping the lab removes it.
//!
//! ```no_run
//! use throughline_lab::{Lab, NatKind, Spec};
//!
//! let lab = Lab::up(Spec::pair(NatKind::PortRestricted, NatKind::SymmetricRandom).figure_delays())?;
//! let out = lab.host("a")?.command("ip").arg("address").output()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! ```text
//!      relay (two addresses)   other          servers, public
//!                  \           /
//!                    internet
//!                  /           \   <- shaped links (a site's uplink, a server's)
//!            a-router         b-router        NAT or firewall; or behind a carrier NAT
//!             /    \             |
//!            a     a2            b            hosts
//! ```
//!
//! # How it works
//! Every machine is a network namespace without a name, which a descriptor of this process keeps
//! alive. So a killed run leaves nothing behind, and labs run side by side. NATs are nftables rules
//! over the kernel's own connection tracker. No interface leads out of the lab. A thread of this
//! process makes delay, loss and rate between two TAP devices, because not every kernel has
//! `netem`.
//!
//! The lab runs on Linux as root. [`Lab::available`] says what is missing.

mod arena;
mod available;
mod browser;
pub mod classify;
mod compare;
mod conntrack;
mod directory;
mod error;
mod host;
mod lab;
mod lifetime;
mod link;
mod matrix;
mod mobility;
mod namespace;
mod nat;
mod nat64;
mod port_mapping;
mod program;
mod queue;
mod report;
mod rules;
mod run;
mod scenario;
mod servers;
mod spec;
mod stage;
mod tap;
mod theory;
mod topology;
mod units;

pub use browser::Browsers;
pub use compare::{Comparison, Contender, Contest, Score, compare};
pub use error::{LabError, Result};
pub use host::Host;
pub use lab::Lab;
pub use link::{Link, PEER_ROUND_TRIP, RELAY_ROUND_TRIP};
pub use matrix::{Cell, Matrix, Plan, Times, matrix};
pub use mobility::{CHANGES, Change, Cost, Mobility, Tour, mobility};
pub use nat::{
    Behaviour, DEFAULT_IDLE_TIMEOUT, Filtering, Mapping, Nat, NatKind, Ports,
    SEQUENTIAL_FIRST_PORT, SEQUENTIAL_PORTS,
};
pub use program::Program;
pub use run::{Run, Verdict};
pub use scenario::{Pairing, Scenario};
pub use servers::{Coturn, Serve};
pub use spec::{CarrierNat, PortMapping, Site, Spec};
pub use stage::{Listener, Parts, Stage};
pub use theory::{End, Peer, Theory, theory};
