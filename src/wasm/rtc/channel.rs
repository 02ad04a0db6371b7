//! `RTCDataChannel` with back-pressure for sending and a bound for receiving.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use js_sys::{ArrayBuffer, Uint8Array};
use send_wrapper::SendWrapper;
use wasm_bindgen::{JsCast, JsValue};
use web_sys::{Event, MessageEvent, RtcDataChannel, RtcDataChannelState, RtcDataChannelType};

use crate::{
    wasm::listener::Listener,
    webrtc::backend::{BackendError, DataChannel, LANE_LABEL, LANE_MARKS},
};

/// The bytes queued in the browser above which sending waits, and below which it goes on.
///
/// The browser has about 2 MiB for all channels of a connection before it queues without bound.
/// Bytes that are queued here also delay the data of other streams.
const SEND_MARKS: (u32, u32) = (256 * 1024, 64 * 1024);

/// The bytes that are received and not yet taken, over all channels of a connection.
///
/// `RTCDataChannel` cannot make its sender wait. Peers of this library respect a window far below
/// this. Other peers lose the channel that exceeds it.
const MAX_INBOUND: usize = 16 * 1024 * 1024;

/// The bytes that are received and not yet taken on one connection.
pub(super) type Inbound = Rc<Cell<usize>>;

/// Whether a channel is for datagrams.
pub(super) fn is_lane(channel: &RtcDataChannel) -> bool {
    channel.label() == LANE_LABEL
}

/// A data channel of a page.
pub struct Channel(SendWrapper<Inner>);

struct Inner {
    channel: RtcDataChannel,
    /// The bytes queued in the browser above which sending waits.
    most_queued: u32,
    shared: Rc<RefCell<Shared>>,
    _listeners: [Listener; 6],
}

struct Shared {
    messages: VecDeque<Bytes>,
    connection: Inbound,
    /// The reason why nothing more arrives.
    ended: Option<Result<(), BackendError>>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Shared {
    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }

    fn receive(&mut self, data: JsValue) {
        if self.ended.is_some() {
            return;
        }
        let Ok(buffer) = data.dyn_into::<ArrayBuffer>() else {
            return self.end(Err(BackendError::Io("the peer sent text".to_owned())));
        };
        let message = Bytes::from(Uint8Array::new(&buffer).to_vec());
        let inbound = self.connection.get() + message.len();
        if inbound > MAX_INBOUND {
            return self.end(Err(BackendError::Overflow));
        }
        self.connection.set(inbound);
        self.messages.push_back(message);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn end(&mut self, why: Result<(), BackendError>) {
        self.ended.get_or_insert(why);
        self.wake();
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let left: usize = self.messages.iter().map(Bytes::len).sum();
        self.connection.set(self.connection.get() - left);
    }
}

impl Channel {
    /// Takes over `channel`, which must not have fired a `message` event yet.
    pub(super) fn new(channel: RtcDataChannel, connection: Inbound) -> Self {
        let marks = match is_lane(&channel) {
            true => LANE_MARKS,
            false => SEND_MARKS,
        };
        channel.set_binary_type(RtcDataChannelType::Arraybuffer);
        channel.set_buffered_amount_low_threshold(marks.1);
        let shared = Rc::new(RefCell::new(Shared {
            messages: VecDeque::new(),
            connection,
            ended: None,
            reader: None,
            writer: None,
        }));
        let on = |event, change: fn(&mut Shared)| {
            let shared = shared.clone();
            Listener::new(&channel, event, move |_: Event| {
                change(&mut shared.borrow_mut());
            })
        };
        let listeners = [
            on("open", Shared::wake),
            on("bufferedamountlow", Shared::wake),
            // The peer has reset its side. Everything that it sent before has been delivered.
            on("closing", |shared| shared.end(Ok(()))),
            on("close", |shared| shared.end(Ok(()))),
            // A `close` event follows.
            on("error", Shared::wake),
            {
                let shared = shared.clone();
                Listener::new(&channel, "message", move |event: MessageEvent| {
                    shared.borrow_mut().receive(event.data());
                })
            },
        ];
        Self(SendWrapper::new(Inner {
            channel,
            most_queued: marks.0,
            shared,
            _listeners: listeners,
        }))
    }

    fn state(&self) -> RtcDataChannelState {
        self.0.channel.ready_state()
    }
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel")
            .field("id", &self.0.channel.id())
            .field("state", &self.state())
            .finish()
    }
}

impl DataChannel for Channel {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BackendError>> {
        let waits = match self.state() {
            RtcDataChannelState::Connecting => true,
            RtcDataChannelState::Open => self.0.channel.buffered_amount() >= self.0.most_queued,
            _ => return Poll::Ready(Err(BackendError::Closed)),
        };
        if waits {
            self.0.shared.borrow_mut().writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }

    fn send(&mut self, message: &[u8]) -> Result<(), BackendError> {
        // The call throws when the channel is not open.
        self.0
            .channel
            .send_with_u8_array(message)
            .map_err(|_| BackendError::Closed)
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BackendError>>> {
        let mut shared = self.0.shared.borrow_mut();
        if let Some(message) = shared.messages.pop_front() {
            let connection = &shared.connection;
            connection.set(connection.get() - message.len());
            return Poll::Ready(Some(Ok(message)));
        }
        match &shared.ended {
            Some(Ok(())) => Poll::Ready(None),
            Some(Err(error)) => Poll::Ready(Some(Err(error.clone()))),
            None => {
                shared.reader = Some(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn close(&mut self) {
        self.0.channel.close();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // This does nothing when the channel is closed already.
        self.channel.close();
    }
}
