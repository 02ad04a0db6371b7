//! The message by which a relay that is about to end tells its clients to move to other relays.
//!
//! The relay opens a stream of [`PROTOCOL`] to each peer that holds a reservation, and sends one
//! proto3 message after its length, which is an unsigned varint. Stock peers refuse the stream.

use std::time::Duration;

use multiaddr::Multiaddr;

use super::protobuf::{behind_length, field, skip_field, take_bytes, take_varint, varint};

pub(crate) const PROTOCOL: &str = "/throughline/drain/1";

/// The longest message that is read.
pub(crate) const MAX_MESSAGE: usize = 4096;

/// The most relays that a message names.
pub(crate) const MAX_RELAYS: usize = 4;

// Drain { seconds = 1, relays = 2 }
const SECONDS: u64 = 1 << 3;
const RELAYS: u64 = 2 << 3 | 2;

/// What a relay says before it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Drain {
    /// How long the relay goes on at most.
    pub(crate) time: Duration,
    /// Other relays, for peers that know none. Each address ends in `/p2p/` and the relay's peer id.
    pub(crate) relays: Vec<Multiaddr>,
}

impl Drain {
    /// Returns the message as it stands on the stream.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut message = [vec![SECONDS as u8], varint(self.time.as_secs())].concat();
        for relay in &self.relays {
            message.extend(field(RELAYS, relay.as_ref()));
        }
        behind_length(&message)
    }

    /// Reads a message without its length. Addresses that cannot be read, and those beyond
    /// [`MAX_RELAYS`], are left out.
    pub(crate) fn decode(mut rest: &[u8]) -> Option<Self> {
        let (mut seconds, mut relays) = (None, Vec::new());
        while !rest.is_empty() {
            match take_varint(&mut rest)? {
                SECONDS => seconds = Some(take_varint(&mut rest)?),
                RELAYS => {
                    let address = Multiaddr::try_from(take_bytes(&mut rest)?.to_vec());
                    if relays.len() < MAX_RELAYS {
                        relays.extend(address);
                    }
                }
                tag => skip_field(tag, &mut rest)?,
            }
        }
        Some(Self {
            time: Duration::from_secs(seconds?),
            relays,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_has_the_specified_bytes() {
        let address: Multiaddr = "/ip4/1.2.3.4/tcp/1".parse().unwrap();
        let drain = Drain {
            time: Duration::from_secs(30),
            relays: vec![address.clone()],
        };
        let relays = field(0x12, &address.to_vec());
        assert_eq!(
            drain.encode(),
            behind_length(&[&[8, 30][..], &relays].concat())
        );
        let unknown = field(0x1a, b"later");
        let unreadable = field(RELAYS, &[0xff]);
        let message = [&unknown, &unreadable, &[8, 30][..], &relays].concat();
        assert_eq!(Drain::decode(&message), Some(drain));
        for other in [&[][..], &relays, &[8], &[8, 30, 0x12, 9, 1]] {
            assert_eq!(Drain::decode(other), None, "{other:?}");
        }
        let many = [&[8, 30][..], &relays.repeat(MAX_RELAYS + 1)].concat();
        assert_eq!(Drain::decode(&many).unwrap().relays.len(), MAX_RELAYS);
    }

    proptest! {
        #[test]
        fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Drain::decode(&bytes);
        }
    }
}
