//! Links, and what they do to the frames that pass.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The round trip between a peer and the relay in every published figure.
pub const RELAY_ROUND_TRIP: Duration = Duration::from_millis(50);

/// The round trip between two peers in every published figure.
pub const PEER_ROUND_TRIP: Duration = Duration::from_millis(80);

/// The conditions of a link for each frame. They are the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Link {
    /// The one-way delay in milliseconds. Defaults to 0.
    #[serde(rename = "delay_ms", with = "crate::units::millis")]
    pub delay: Duration,
    /// How much the delay varies in either direction, evenly, in milliseconds. The order is kept.
    /// Defaults to 0.
    #[serde(rename = "jitter_ms", with = "crate::units::millis")]
    pub jitter: Duration,
    /// The share of frames that are lost, 0 to 1. Defaults to 0.
    pub loss: f64,
    /// The share of frames that are sent twice, 0 to 1. Defaults to 0.
    pub duplicate: f64,
    /// The share of frames that skip the delay and so overtake others, 0 to 1. Defaults to 0.
    pub reorder: f64,
    /// The rate in kilobits per second. Defaults to 0, which means unlimited.
    pub rate_kbit: u64,
    /// How long a frame may wait for its turn at that rate before it is dropped, in milliseconds.
    /// Defaults to 200.
    #[serde(rename = "queue_ms", with = "crate::units::millis")]
    pub queue: Duration,
    /// The largest IP packet that passes, in bytes. Larger packets vanish silently, as in a black
    /// hole of path MTU discovery. Defaults to 1500, which lets every packet pass.
    pub mtu: u16,
    /// Whether the link is cut, so that nothing passes. Defaults to `false`.
    pub cut: bool,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            rate_kbit: 0,
            queue: Duration::from_millis(200),
            mtu: 1_500,
            cut: false,
        }
    }
}

impl Link {
    /// Returns a link with a one-way delay and no other fault.
    pub fn delay(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }
}
