//! Sends a lost flight again at the pace of the acknowledgements.
//!
//! When a whole flight is lost, the retransmission timeout (T3) lets one packet be sent, and each
//! acknowledgement lets some more be sent (RFC 9260 sections 6.3.3 and 7.2.1). The library gives a
//! congestion window of packets at each poll, without regard to those under way. So the whole flight
//! of up to 2 MiB would go out at once. It would fill the socket buffer of a browser, which has room
//! for about 90 packets, and be lost again at each timeout.

use std::collections::VecDeque;

use bytes::Bytes;

use super::{DATA, SACK, chunks};

/// How many packets are sent at a timeout. An acknowledgement of two packets is sent at once (RFC
/// 9260 section 6.2).
const AT_TIMEOUT: usize = 2;
/// How many packets each acknowledgement lets be sent. Peers acknowledge every second packet, or
/// every packet while some are missing. So the rate grows by half to threefold each round trip.
const FOR_EACH: usize = 3;
/// How many packets are sent at once, although more were acknowledged.
const AT_ONCE: usize = 64;

/// Which packets wait for acknowledgements after a timeout.
#[derive(Debug, Default)]
pub(super) struct Recovery {
    /// The timeouts that the library has counted.
    timeouts: u64,
    /// The highest TSN that was sent.
    highest: Option<u32>,
    /// The highest TSN of the flight that was lost. All up to it is sent again, in order.
    until: Option<u32>,
    /// The packets that wait. The library counts them as sent, so they are at most a flight.
    waiting: VecDeque<Bytes>,
    /// How many packets may be sent.
    allowance: usize,
}

/// The TSNs of the DATA chunks of a packet.
fn tsns(packet: &[u8]) -> impl Iterator<Item = u32> {
    chunks(packet)
        .filter(|(kind, _)| *kind == DATA)
        .filter_map(|(_, chunk)| Some(u32::from_be_bytes(*chunk.get(4..)?.first_chunk()?)))
}

/// Whether `tsn` follows `other` in the arithmetic of serial numbers (RFC 1982).
fn follows(tsn: u32, other: u32) -> bool {
    (tsn.wrapping_sub(other) as i32) > 0
}

impl Recovery {
    /// Notes how many timeouts there were so far. After one more, the library sends all again that was
    /// not acknowledged, so what waits is forgotten.
    pub(super) fn timeouts(&mut self, timeouts: u64) {
        if timeouts != self.timeouts {
            self.timeouts = timeouts;
            self.until = self.highest;
            self.waiting.clear();
            self.allowance = AT_TIMEOUT;
        }
    }

    /// Notes a packet of the peer.
    pub(super) fn received(&mut self, packet: &[u8]) {
        if self.until.is_some() && chunks(packet).any(|(kind, _)| kind == SACK) {
            self.allowance = AT_ONCE.min(self.allowance + FOR_EACH);
        }
    }

    /// Takes the packets that the library gives, and leaves those that may be sent now. Packets
    /// without DATA never wait.
    pub(super) fn hold(&mut self, packets: &mut Vec<Bytes>) {
        packets.retain(|packet| {
            let Some(last) = tsns(packet).last() else {
                return true;
            };
            if self.highest.is_none_or(|highest| follows(last, highest)) {
                self.highest = Some(last);
            }
            let held = self.until.is_some();
            if held {
                self.waiting.push_back(packet.clone());
            }
            !held
        });
    }

    /// Returns the packets whose turn has come. New data ends the recovery, because it follows the
    /// flight.
    pub(super) fn due(&mut self) -> Vec<Bytes> {
        let mut due = Vec::new();
        while self.until.is_none() || self.allowance > 0 {
            let Some(packet) = self.waiting.pop_front() else {
                break;
            };
            self.allowance = self.allowance.saturating_sub(1);
            if tsns(&packet).any(|tsn| self.until.is_some_and(|until| follows(tsn, until))) {
                self.until = None;
            }
            due.push(packet);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::{super::COMMON_HEADER, *};

    fn packet(kind: u8, tsn: u32) -> Bytes {
        let mut packet = vec![0; COMMON_HEADER];
        packet.extend([kind, 3, 0, 16]);
        packet.extend(tsn.to_be_bytes());
        packet.extend([0; 8]);
        packet.into()
    }

    fn sent(recovery: &mut Recovery, tsns: impl Iterator<Item = u32>) -> usize {
        let mut packets: Vec<_> = tsns.map(|tsn| packet(DATA, tsn)).collect();
        recovery.hold(&mut packets);
        packets.len() + recovery.due().len()
    }

    #[test]
    fn acknowledgements_let_a_lost_flight_be_sent_again() {
        // The TSNs of the flight pass zero.
        let flight = || (0..180).map(|i| (u32::MAX - 99).wrapping_add(i));
        let new = || (0..50).map(|i| 80 + i);
        let mut recovery = Recovery::default();
        assert_eq!(sent(&mut recovery, flight()), 180);
        recovery.received(&packet(SACK, 0));
        recovery.timeouts(1);
        assert_eq!(sent(&mut recovery, flight()), AT_TIMEOUT);
        recovery.received(&packet(DATA, 7));
        assert_eq!(recovery.due().len(), 0);
        // A second timeout takes the place of the first.
        recovery.timeouts(2);
        recovery.timeouts(2);
        assert_eq!(sent(&mut recovery, flight()), AT_TIMEOUT);
        recovery.received(&packet(SACK, 0));
        assert_eq!(recovery.due().len(), FOR_EACH);
        for _ in 0..100 {
            recovery.received(&packet(SACK, 0));
        }
        assert_eq!(recovery.due().len(), AT_ONCE);
        let mut other = vec![packet(SACK, 0)];
        recovery.hold(&mut other);
        assert_eq!(other.len(), 1);
        // The rest of the flight, and the first new packet, which ends the recovery.
        for _ in 0..100 {
            recovery.received(&packet(SACK, 0));
        }
        assert_eq!(recovery.due().len(), AT_ONCE);
        for _ in 0..100 {
            recovery.received(&packet(SACK, 0));
        }
        assert_eq!(
            recovery.due().len(),
            180 - AT_TIMEOUT - FOR_EACH - 2 * AT_ONCE
        );
        assert_eq!(sent(&mut recovery, new()), 50);
        assert_eq!(sent(&mut recovery, new().map(|tsn| tsn + 50)), 50);
    }
}
