//! What nobody has read of channels whose streams carry other channels now.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

use super::ChannelId;

/// The unread messages of channels whose streams carry other channels now.
#[derive(Debug)]
pub(super) struct Leftovers {
    channels: HashMap<ChannelId, Leftover>,
    /// The bytes for which there is room.
    room: usize,
}

#[derive(Debug, Default)]
struct Leftover {
    messages: VecDeque<Bytes>,
    /// There was no room for a message. The channel ends before it.
    cut: bool,
}

/// What a kept message counts for. Small messages cost more than their bytes.
fn cost(message: &Bytes) -> usize {
    message.len() + 64
}

impl Leftovers {
    /// Makes room for `room` bytes over all channels.
    pub(super) fn new(room: u32) -> Self {
        Self {
            channels: HashMap::new(),
            room: room as usize,
        }
    }

    /// Keeps the next message of a channel, if there is room.
    pub(super) fn keep(&mut self, id: ChannelId, message: Bytes) {
        let leftover = self.channels.entry(id).or_default();
        match self.room.checked_sub(cost(&message)) {
            Some(room) if !leftover.cut => {
                self.room = room;
                leftover.messages.push_back(message);
            }
            _ => leftover.cut = true,
        }
    }

    /// Takes the oldest message of a channel.
    pub(super) fn take(&mut self, id: ChannelId) -> Option<Bytes> {
        let message = self.channels.get_mut(&id)?.messages.pop_front();
        self.room += message.as_ref().map_or(0, cost);
        message
    }

    /// Drops the messages of a channel.
    pub(super) fn forget(&mut self, id: ChannelId) {
        let leftover = self.channels.remove(&id).unwrap_or_default();
        self.room += leftover.messages.iter().map(cost).sum::<usize>();
    }
}
