//! [`Stream`] in JavaScript.

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use futures::{AsyncRead, AsyncWrite, lock::Mutex};
use js_sys::{Promise, Uint8Array};
use wasm_bindgen::{JsValue, prelude::wasm_bindgen};

use super::convert;
use crate::{Error, RecvStream, SendStream, Stream};

/// The most bytes that one `read` returns.
const MAX_READ: u32 = 1024 * 1024;

/// A stream. Its two directions work independently. Calls of one direction wait for their turn.
#[wasm_bindgen]
#[derive(Debug)]
pub struct RawStream(Rc<Inner>);

#[derive(Debug)]
struct Inner {
    protocol: String,
    early: bool,
    // Both are borrowed within one poll only.
    send: RefCell<SendStream>,
    recv: RefCell<Receiver>,
    reading: Mutex<()>,
    writing: Mutex<()>,
}

#[derive(Debug)]
struct Receiver {
    /// `None` once the reader has stopped.
    stream: Option<RecvStream>,
    waiting: Option<Waker>,
}

impl Receiver {
    fn poll_read(&mut self, cx: &mut Context<'_>, out: &mut [u8]) -> Poll<io::Result<usize>> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Ok(0));
        };
        let read = Pin::new(stream).poll_read(cx, out);
        self.waiting = read.is_pending().then(|| cx.waker().clone());
        read
    }
}

impl RawStream {
    pub(super) fn new(stream: Stream) -> Self {
        let protocol = stream.protocol().to_owned();
        let early = stream.is_early();
        let (send, recv) = stream.split();
        Self(Rc::new(Inner {
            protocol,
            early,
            send: RefCell::new(send),
            recv: RefCell::new(Receiver {
                stream: Some(recv),
                waiting: None,
            }),
            reading: Mutex::new(()),
            writing: Mutex::new(()),
        }))
    }
}

#[wasm_bindgen]
impl RawStream {
    /// The protocol that the stream was opened for.
    pub fn protocol(&self) -> String {
        self.0.protocol.clone()
    }

    /// Whether the peer opened the stream with early data.
    #[wasm_bindgen(js_name = isEarly)]
    pub fn is_early(&self) -> bool {
        self.0.early
    }

    /// Reads up to `max` bytes, at least one. Resolves to `undefined` when the peer has finished.
    #[wasm_bindgen(unchecked_return_type = "Promise<Uint8Array | undefined>")]
    pub fn read(&self, max: u32) -> Promise {
        let inner = self.0.clone();
        convert::promise(async move {
            let _turn = inner.reading.lock().await;
            let mut bytes = vec![0; max.clamp(1, MAX_READ) as usize];
            let read = poll_fn(|cx| inner.recv.borrow_mut().poll_read(cx, &mut bytes));
            match read.await.map_err(error)? {
                0 => Ok(JsValue::UNDEFINED),
                read => Ok(Uint8Array::from(&bytes[..read]).into()),
            }
        })
    }

    /// Writes all of `bytes`. Settles when the stream has taken them, which is the back-pressure.
    #[wasm_bindgen(unchecked_return_type = "Promise<void>")]
    pub fn write(&self, bytes: Vec<u8>) -> Promise {
        let inner = self.0.clone();
        convert::promise(async move {
            let _turn = inner.writing.lock().await;
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let written = inner
                    .poll_send(|send, cx| send.poll_write(cx, rest))
                    .await
                    .map_err(error)?;
                if written == 0 {
                    return Err(error(io::ErrorKind::WriteZero.into()));
                }
                rest = &rest[written..];
            }
            let flushed = inner.poll_send(|send, cx| send.poll_flush(cx)).await;
            flushed.map_err(error).map(|()| JsValue::UNDEFINED)
        })
    }

    /// Ends this direction after the bytes that were written. Settles when the peer's library has
    /// them all.
    #[wasm_bindgen(unchecked_return_type = "Promise<void>")]
    pub fn finish(&self) -> Promise {
        let inner = self.0.clone();
        convert::promise(async move {
            let _turn = inner.writing.lock().await;
            let closed = inner.poll_send(|send, cx| send.poll_close(cx)).await;
            closed.map_err(error).map(|()| JsValue::UNDEFINED)
        })
    }

    /// Tells the peer that nobody reads any more, and why; a pending read ends.
    pub fn stop(&self, code: u32) {
        let mut recv = self.0.recv.borrow_mut();
        if let Some(stream) = recv.stream.take() {
            stream.stop(code);
        }
        if let Some(waiting) = recv.waiting.take() {
            waiting.wake();
        }
    }

    /// Ends both directions at once, with a code for the peer.
    pub fn reset(&self, code: u32) {
        self.0.send.borrow_mut().reset(code);
    }

    /// Ends both directions at once and tells the peer that nobody serves the protocol here.
    pub fn refuse(&self) {
        self.0.send.borrow().refuse();
    }
}

impl Inner {
    async fn poll_send<T>(
        &self,
        mut poll: impl FnMut(Pin<&mut SendStream>, &mut Context<'_>) -> Poll<T>,
    ) -> T {
        poll_fn(|cx| poll(Pin::new(&mut *self.send.borrow_mut()), cx)).await
    }
}

fn error(error: io::Error) -> JsValue {
    convert::error(Error::from(error))
}
