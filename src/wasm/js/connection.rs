//! [`Connection`] and its events in JavaScript.

use std::{fmt, rc::Rc, time::Duration};

use futures::{Stream, StreamExt, lock::Mutex, stream::LocalBoxStream};
use js_sys::{Array, Promise, Uint8Array};
use serde::Serialize;
use wasm_bindgen::{JsValue, prelude::wasm_bindgen};

use super::{abort, convert, stream::RawStream};
use crate::Connection;

/// The longest time that is waited, in milliseconds. A browser's timers end at 2^31 ms.
const MOST_WAITED: u64 = 1 << 30;

/// A connection to one peer.
#[wasm_bindgen]
#[derive(Debug)]
pub struct RawConnection(Connection);

impl RawConnection {
    pub(super) fn new(connection: Connection) -> Self {
        Self(connection)
    }
}

#[wasm_bindgen]
impl RawConnection {
    /// The peer at the other end.
    #[wasm_bindgen(js_name = peerId)]
    pub fn peer_id(&self) -> String {
        self.0.peer_id().to_string()
    }

    /// The path in use, or `undefined` while there is none.
    #[wasm_bindgen(unchecked_return_type = "object | undefined")]
    pub fn path(&self) -> JsValue {
        self.0
            .path()
            .map_or(JsValue::UNDEFINED, |path| convert::to_js(&path))
    }

    /// The attempts so far.
    #[wasm_bindgen(unchecked_return_type = "object[]")]
    pub fn attempts(&self) -> Array {
        self.0.attempts().iter().map(convert::to_js).collect()
    }

    /// Resolves to the path once it is direct.
    #[wasm_bindgen(js_name = waitDirect, unchecked_return_type = "Promise<object>")]
    pub fn wait_direct(
        &self,
        ms: f64,
        #[wasm_bindgen(unchecked_param_type = "AbortSignal | undefined")] signal: JsValue,
    ) -> Promise {
        let connection = self.0.clone();
        abort::promise(signal, async move {
            let within = Duration::from_millis((ms as u64).min(MOST_WAITED));
            let path = connection.wait_direct(within).await?;
            Ok(convert::to_js(&path))
        })
    }

    /// Reports every change of path and every attempt from now on.
    #[wasm_bindgen(js_name = pathEvents)]
    pub fn path_events(&self) -> RawEvents {
        RawEvents::new(self.0.path_events())
    }

    /// Opens a stream.
    #[wasm_bindgen(unchecked_return_type = "Promise<RawStream>")]
    pub fn open(
        &self,
        protocol: String,
        #[wasm_bindgen(unchecked_param_type = "AbortSignal | undefined")] signal: JsValue,
    ) -> Promise {
        let connection = self.0.clone();
        abort::promise(signal, async move {
            Ok(RawStream::new(connection.open(&protocol).await?).into())
        })
    }

    /// The next stream of the peer, or `undefined` once the connection is closed.
    #[wasm_bindgen(js_name = acceptStream, unchecked_return_type = "Promise<RawStream | undefined>")]
    pub fn accept_stream(
        &self,
        #[wasm_bindgen(unchecked_param_type = "AbortSignal | undefined")] signal: JsValue,
    ) -> Promise {
        let connection = self.0.clone();
        abort::promise(signal, async move {
            let accepted = connection.accept_stream().await;
            Ok(accepted.map(|(_, stream)| RawStream::new(stream)).into())
        })
    }

    /// Sends a datagram, or throws.
    #[wasm_bindgen(js_name = sendDatagram)]
    pub fn send_datagram(&self, datagram: &[u8]) -> Result<(), JsValue> {
        self.0.send_datagram(datagram).map_err(convert::error)
    }

    /// The next datagram of the peer, or `undefined` once the connection is closed.
    #[wasm_bindgen(js_name = receiveDatagram, unchecked_return_type = "Promise<Uint8Array | undefined>")]
    pub fn receive_datagram(
        &self,
        #[wasm_bindgen(unchecked_param_type = "AbortSignal | undefined")] signal: JsValue,
    ) -> Promise {
        let mut datagrams = self.0.datagrams();
        abort::promise(signal, async move {
            Ok(datagrams
                .next()
                .await
                .map(|datagram| Uint8Array::from(&datagram[..]))
                .into())
        })
    }

    /// Resolves to the code of the reason once the connection is closed. Never rejects.
    #[wasm_bindgen(unchecked_return_type = "Promise<string>")]
    pub fn closed(&self) -> Promise {
        let connection = self.0.clone();
        convert::promise(async move { Ok(connection.closed().await.code().into()) })
    }

    /// Closes the connection and tells the peer.
    #[wasm_bindgen(unchecked_return_type = "Promise<void>")]
    pub fn close(&self) -> Promise {
        let connection = self.0.clone();
        convert::promise(async move {
            connection.close().await;
            Ok(JsValue::UNDEFINED)
        })
    }
}

/// The events of a connection's path, or of a connector.
#[wasm_bindgen]
pub struct RawEvents(Rc<Mutex<LocalBoxStream<'static, JsValue>>>);

impl RawEvents {
    pub(super) fn new<E: Serialize>(events: impl Stream<Item = E> + 'static) -> Self {
        let events = events.map(|event| convert::to_js(&event));
        Self(Rc::new(Mutex::new(events.boxed_local())))
    }
}

impl fmt::Debug for RawEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawEvents").finish_non_exhaustive()
    }
}

#[wasm_bindgen]
impl RawEvents {
    /// The next event, or `undefined` when there are no more.
    #[wasm_bindgen(unchecked_return_type = "Promise<object | undefined>")]
    pub fn next(&self) -> Promise {
        let events = self.0.clone();
        convert::promise(async move {
            let event = events.lock().await.next().await;
            Ok(event.unwrap_or(JsValue::UNDEFINED))
        })
    }
}
