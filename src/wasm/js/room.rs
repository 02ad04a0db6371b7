//! [`Room`] in JavaScript.

use js_sys::{Array, Promise, Uint8Array};
use wasm_bindgen::{JsValue, prelude::wasm_bindgen};

use super::{abort, connection::RawConnection, convert};
use crate::{Member, PeerId, Room, RoomEvent};

/// A room that this peer is in.
#[wasm_bindgen]
#[derive(Debug)]
pub struct RawRoom(Room);

impl RawRoom {
    pub(super) fn new(room: Room) -> Self {
        Self(room)
    }
}

fn member(kind: &str, member: &Member) -> JsValue {
    let data = Uint8Array::from(&member.data[..]);
    Array::of3(&kind.into(), &member.id.to_string().into(), &data).into()
}

#[wasm_bindgen]
impl RawRoom {
    /// The other members, each as a kind, an id and data.
    #[wasm_bindgen(unchecked_return_type = "[string, string, Uint8Array][]")]
    pub fn members(&self) -> Array {
        let members = self.0.members();
        members
            .iter()
            .map(|known| member("joined", known))
            .collect()
    }

    /// The next change as a kind, an id and data, or `undefined` once this peer has left.
    #[wasm_bindgen(unchecked_return_type = "Promise<[string, string, Uint8Array] | undefined>")]
    pub fn next(&self) -> Promise {
        let room = self.0.clone();
        convert::promise(async move {
            Ok(match room.next().await {
                None => JsValue::UNDEFINED,
                Some(RoomEvent::Joined(known)) => member("joined", &known),
                Some(RoomEvent::Changed(known)) => member("changed", &known),
                Some(RoomEvent::Left(peer)) => {
                    Array::of2(&"left".into(), &peer.to_string().into()).into()
                }
            })
        })
    }

    /// Shows the others something else, or throws.
    pub fn show(&self, data: &[u8]) -> Result<(), JsValue> {
        self.0.show(data).map_err(convert::error)
    }

    /// Connects to a member.
    #[wasm_bindgen(unchecked_return_type = "Promise<RawConnection>")]
    pub fn connect(
        &self,
        member: String,
        #[wasm_bindgen(unchecked_param_type = "AbortSignal | undefined")] signal: JsValue,
    ) -> Promise {
        let room = self.0.clone();
        abort::promise(signal, async move {
            let connection = room.connect(member.parse::<PeerId>()?).await?;
            Ok(RawConnection::new(connection).into())
        })
    }

    /// Leaves the room.
    pub fn leave(&self) {
        self.0.leave();
    }
}
