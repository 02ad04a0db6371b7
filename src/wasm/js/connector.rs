//! [`Connector`] in JavaScript.

use std::rc::Rc;

use futures::{StreamExt, lock::Mutex};
use js_sys::{Array, Function, Promise};
use wasm_bindgen::{JsValue, prelude::wasm_bindgen};

use super::{
    abort,
    connection::{RawConnection, RawEvents},
    convert,
    room::RawRoom,
    stream::RawStream,
};
use crate::{Connector, Identity, RoomOptions, StatusChanges, Ticket};

/// Makes a fresh identity in the form that `RawConnector.create` takes. It is a secret.
#[allow(unreachable_pub, reason = "wasm-bindgen exports public functions only")]
#[wasm_bindgen(js_name = generateIdentity)]
pub fn generate_identity() -> Result<String, JsValue> {
    Identity::generate().to_secret().map_err(convert::error)
}

/// Says that there is no option `name`, and which of `known`, names between spaces, may be meant.
#[allow(unreachable_pub, reason = "wasm-bindgen exports public functions only")]
#[wasm_bindgen(js_name = unknownOption)]
pub fn unknown_option(name: &str, known: &str) -> String {
    crate::unknown_option(name, known.split(' '))
}

/// A peer.
#[wasm_bindgen]
#[derive(Debug)]
pub struct RawConnector(Connector);

#[wasm_bindgen]
impl RawConnector {
    /// Starts a peer. `identity` is a secret of `generateIdentity`, or nothing for a fresh
    /// identity. `tokens` gives a promise of the token for relays, if there is no fixed one in the
    /// options. `signal` is an `AbortSignal` or nothing.
    #[wasm_bindgen(unchecked_return_type = "Promise<RawConnector>")]
    pub fn create(
        #[wasm_bindgen(unchecked_param_type = "object | undefined")] options: JsValue,
        identity: Option<String>,
        tokens: Option<Function>,
        #[wasm_bindgen(unchecked_param_type = "AbortSignal | undefined")] signal: JsValue,
    ) -> Promise {
        abort::promise(signal, async move {
            let mut config = convert::config(&options)?;
            if let Some(fetch) = tokens {
                config.relay_tokens = Some(convert::tokens(fetch));
            }
            let mut builder = Connector::builder().config(config);
            if let Some(secret) = identity {
                builder = builder.identity(Identity::from_secret(&secret)?);
            }
            Ok(Self(builder.bind().await?).into())
        })
    }

    /// This peer's id.
    #[wasm_bindgen(js_name = peerId)]
    pub fn peer_id(&self) -> String {
        self.0.peer_id().to_string()
    }

    /// A ticket, by which others can reach this peer now.
    pub fn ticket(&self) -> String {
        self.0.ticket().to_string()
    }

    /// A ticket with this peer's id and the names of its relays only.
    #[wasm_bindgen(js_name = shortTicket)]
    pub fn short_ticket(&self) -> String {
        self.0.short_ticket().to_string()
    }

    /// Enters a room.
    #[wasm_bindgen(unchecked_return_type = "Promise<RawRoom>")]
    pub fn join(
        &self,
        name: String,
        application: String,
        secret: String,
        data: Vec<u8>,
        #[wasm_bindgen(unchecked_param_type = "AbortSignal | undefined")] signal: JsValue,
    ) -> Promise {
        let connector = self.0.clone();
        abort::promise(signal, async move {
            let options = RoomOptions {
                application,
                secret,
                data,
            };
            Ok(RawRoom::new(connector.join(&name, options).await?).into())
        })
    }

    /// Connects to the peer of a ticket.
    #[wasm_bindgen(unchecked_return_type = "Promise<RawConnection>")]
    pub fn connect(
        &self,
        ticket: String,
        #[wasm_bindgen(unchecked_param_type = "AbortSignal | undefined")] signal: JsValue,
    ) -> Promise {
        let connector = self.0.clone();
        abort::promise(signal, async move {
            let connection = connector.connect(&ticket.parse::<Ticket>()?).await?;
            Ok(RawConnection::new(connection).into())
        })
    }

    /// Opens a stream to the peer of a ticket without waiting for a path.
    #[wasm_bindgen(unchecked_return_type = "Promise<[RawConnection, RawStream]>")]
    pub fn open(
        &self,
        ticket: String,
        protocol: String,
        #[wasm_bindgen(unchecked_param_type = "AbortSignal | undefined")] signal: JsValue,
    ) -> Promise {
        let connector = self.0.clone();
        abort::promise(signal, async move {
            let ticket = ticket.parse::<Ticket>()?;
            let opened = connector.open(&ticket, &protocol).await?;
            let (connection, stream) = (RawConnection::new(opened.0), RawStream::new(opened.1));
            Ok(Array::of2(&connection.into(), &stream.into()).into())
        })
    }

    /// The next connection that another peer made, or `undefined` once the connector is closed.
    #[wasm_bindgen(unchecked_return_type = "Promise<RawConnection | undefined>")]
    pub fn accept(
        &self,
        #[wasm_bindgen(unchecked_param_type = "AbortSignal | undefined")] signal: JsValue,
    ) -> Promise {
        let connector = self.0.clone();
        abort::promise(signal, async move {
            let connection = connector.accept().await;
            Ok(connection.map(RawConnection::new).into())
        })
    }

    /// The facts that this peer knows about its network position.
    #[wasm_bindgen(unchecked_return_type = "Promise<object>")]
    pub fn report(&self) -> Promise {
        let connector = self.0.clone();
        convert::promise(async move {
            let report = connector.report().await.map_err(convert::error)?;
            Ok(convert::to_js(&report))
        })
    }

    /// Reports what concerns no single connection from now on.
    pub fn events(&self) -> RawEvents {
        RawEvents::new(self.0.events())
    }

    /// Whether others can reach this peer now, and why not.
    #[wasm_bindgen(unchecked_return_type = "object")]
    pub fn status(&self) -> JsValue {
        convert::to_js(&self.0.status())
    }

    /// The present status, and then each new one.
    #[wasm_bindgen(js_name = statusChanges)]
    pub fn status_changes(&self) -> RawStatusChanges {
        RawStatusChanges(Rc::new(Mutex::new(self.0.status_changes())))
    }

    /// Counters and gauges in the OpenMetrics text format.
    pub fn metrics(&self) -> String {
        self.0.metrics()
    }

    /// Closes every connection and stops.
    #[wasm_bindgen(unchecked_return_type = "Promise<void>")]
    pub fn close(&self) -> Promise {
        let connector = self.0.clone();
        convert::promise(async move {
            connector.close().await;
            Ok(JsValue::UNDEFINED)
        })
    }
}

/// The changes of a connector's status.
#[wasm_bindgen]
#[derive(Debug)]
pub struct RawStatusChanges(Rc<Mutex<StatusChanges>>);

#[wasm_bindgen]
impl RawStatusChanges {
    /// The next status, or `undefined` when the connector is closed.
    #[wasm_bindgen(unchecked_return_type = "Promise<object | undefined>")]
    pub fn next(&self) -> Promise {
        let changes = self.0.clone();
        convert::promise(async move {
            let status = changes.lock().await.next().await;
            Ok(status.map_or(JsValue::UNDEFINED, |status| convert::to_js(&status)))
        })
    }
}
