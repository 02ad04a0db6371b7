//! The event loop of a peer, compiled for both targets.
//!
//! | file | what it holds |
//! | --- | --- |
//! | `command` | the commands that handles send to the loop, and what they read directly |
//! | `engine` | the loop: it takes one input and performs effects until none is left |
//! | `effect`, `round` | what sessions and relays want done; what a session's methods know |
//! | `perform` | how effects and commands are performed |
//! | `session/` | everything about one peer: its paths, attempts and streams |
//! | `relays/` | links, reservations, and spare circuits |
//! | `network`, `behaviour` | the swarm with its open requests; its protocols |
//! | `connections`, `inbound` | events of the swarm, handed to relays and sessions |
//! | `directory` | our records in the directories of relays, and looking peers up there |
//! | `rooms` | the rooms that we are in |
//! | `own_addresses`, `online` | our addresses and the ticket; callers that wait for the ticket |
//! | `status` | whether others can reach us, told when it changes |
//! | `farewells` | closing on purpose, and the shutdown |
//! | `timers` | deadlines of sessions, relays and the loop |
//! | `start` | how a configuration becomes a running loop |
//!
//! # One turn
//! ```text
//! input ─▶ session or relays ─▶ effects ─▶ perform ─▶ swarm, timers, tasks
//!              ▲                              │
//!              └────── facts, plans ◀─────────┘
//! ```
//! The loop takes the most urgent input that is ready, and hands it to the session or the relays
//! that it is about. They change their own state and push effects. The loop performs the effects
//! one by one. If performing an effect pushes new effects, these come before the rest. When no
//! effect is left, each session that was touched gets a new plan, whose effects are performed in
//! the same way. Then the loop waits.
//!
//! The invariant is that the loop runs a method of one session, or of the relays, at a time. Such a
//! method pushes effects and never calls the loop, so nothing re-enters.

mod behaviour;
mod command;
mod connections;
mod directory;
mod effect;
mod engine;
mod farewells;
mod inbound;
mod network;
mod online;
mod own_addresses;
mod perform;
mod relays;
mod rooms;
mod round;
mod session;
mod start;
mod status;
mod timers;

pub(crate) use self::{
    command::{Command, Shared, closed},
    round::random,
    session::Incoming,
    start::start,
};
