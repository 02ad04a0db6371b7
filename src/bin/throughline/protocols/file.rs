//! `file/1` and `file/2`: one file, checked by its hash.
//!
//! With `file/1`, the opener sends, in this order:
//! 1. a header as JSON after its length (four bytes, network order, at most 4096):
//!    `{"name":"a.bin","size":123}`
//! 2. the bytes, as many as `size` says
//! 3. their SHA-256, 32 bytes
//!
//! Then it half-closes. The other side answers, again as JSON after its length, with
//! `{"ok":true,"sha256":"<hex>"}` or `{"ok":false,"code":"..","message":".."}`, and half-closes. A
//! refusal may come at any time, and the sender then stops.
//!
//! With `file/2`, the header also has `folders`, below which the receiver stores the file, and `id`, 64
//! hex digits that tell the file from others of its name (see [`source::fingerprint`]). Before the bytes,
//! the two agree on where to begin:
//! - The receiver says how many bytes it has, `{"have":100}`. It says so only if the `id` fits.
//! - The sender says where it goes on, `{"from":100,"sha256":"<hex>"}`, with the hash of the bytes before.
//!   If `from` is 0, there is no hash.
//!
//! If the hash is not that of the receiver's bytes, the receiver forgets them and refuses with the code
//! `changed`, and the sender begins again. The bytes from there follow, and the hash of the whole file.

pub(crate) mod active;
pub(crate) mod names;
pub(crate) mod partial;
pub(crate) mod receive;
pub(crate) mod send;
pub(crate) mod source;

use std::io;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use throughline::{Error, ErrorKind};

pub(crate) use self::{
    receive::{Inbox, receive, turn_away},
    send::{Version, send},
    source::{Skipped, Source},
};
use super::{
    CHUNK, printable, read_json, read_json_in_time, unless_stalled, violation, write_json,
};

pub(crate) const PROTOCOL: &str = "file/1";
pub(crate) const RESUMED: &str = "file/2";

/// The first message of the sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) name: String,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) folders: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) id: Option<String>,
}

/// The last answer of the receiver.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Reply {
    ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// How much the receiver has, or its refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
enum Offer {
    Have { have: u64 },
    Refused(Reply),
}

/// Where the sender goes on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Start {
    from: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

/// A file that arrived completely, as either end sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Transferred {
    pub(crate) bytes: u64,
    /// How many of them had arrived before.
    pub(crate) resumed: u64,
    pub(crate) sha256: String,
}

/// Why a file is not received: the code and the message of the protocol.
#[derive(Debug)]
struct Refusal {
    code: &'static str,
    message: String,
}

/// The code of a refusal after which the sender begins again.
const CHANGED: &str = "changed";

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        let kind = match refusal.code {
            "too_large" | "busy" => ErrorKind::LimitExceeded,
            "disk" => ErrorKind::Io,
            "cancelled" => ErrorKind::StreamReset,
            _ => ErrorKind::ProtocolViolation,
        };
        Self::new(kind, format!("{}: {}", refusal.code, refusal.message))
    }
}

impl From<&Refusal> for Reply {
    fn from(refusal: &Refusal) -> Self {
        Self {
            code: Some(refusal.code.to_owned()),
            message: Some(refusal.message.clone()),
            ..Self::default()
        }
    }
}

fn hex(hash: Sha256) -> String {
    HEXLOWER.encode(&hash.finalize())
}

/// Runs work on files that may take long, and keeps tasks free of it.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(io::Error::other)?
}

#[cfg(test)]
mod tests;
