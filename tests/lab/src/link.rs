//! What a link does to the frames that pass.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Round trip between a peer and the relay in every published figure.
pub const RELAY_ROUND_TRIP: Duration = Duration::from_millis(50);

/// Round trip between two peers in every published figure.
pub const PEER_ROUND_TRIP: Duration = Duration::from_millis(80);

/// What a link does to each frame, the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Link {
    /// One-way delay in milliseconds. Default 0.
    #[serde(rename = "delay_ms", with = "crate::units::millis")]
    pub delay: Duration,
    /// The delay varies evenly by up to this much either way, in milliseconds; order is kept. Default 0.
    #[serde(rename = "jitter_ms", with = "crate::units::millis")]
    pub jitter: Duration,
    /// Share of frames lost, 0 to 1. Default 0.
    pub loss: f64,
    /// Share of frames sent twice, 0 to 1. Default 0.
    pub duplicate: f64,
    /// Share of frames that skip the delay and so overtake others, 0 to 1. Default 0.
    pub reorder: f64,
    /// Rate in kilobits a second; 0, the default, means unlimited.
    pub rate_kbit: u64,
    /// How long a frame may wait for its turn at that rate before it is dropped, in milliseconds. Default 200.
    #[serde(rename = "queue_ms", with = "crate::units::millis")]
    pub queue: Duration,
    /// Largest IP packet that passes, in bytes; larger ones vanish without a word, as in a black hole for path MTU
    /// discovery. Default 1500, which every packet passes.
    pub mtu: u16,
    /// Nothing passes. Default `false`.
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
    /// A link with a one-way delay and no other fault.
    pub fn delay(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }
}
