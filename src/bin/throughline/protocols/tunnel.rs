//! `forward/1` and `forward-listen/1`: TCP connections through a peer.
//!
//! `forward/1` carries one TCP connection. The opener sends a header as JSON after its length (four
//! bytes, network order, at most 4096): `{"to":"localhost:80"}`. Its bytes may follow at once. The other
//! side connects and answers in the same form, with `{"ok":true}` or
//! `{"ok":false,"code":"..","message":".."}`. The codes are `not_allowed`, `bad_request`, `busy`, `refused`,
//! `unreachable`, `timeout` and `failed`. From then on, both directions carry the bytes of the
//! connection. The end of a direction is that of the TCP connection, and so is a reset.
//!
//! `forward-listen/1` asks the other side to listen: `{"bind":"127.0.0.1:9000","to":"localhost:80"}`.
//! The answer has the same form, with the address in `bind` if it is `ok`. For each connection that
//! comes, the listening side opens a stream of `forward/1` with the same `to`. It listens until the
//! opener ends its stream, and the connection with it.

use std::{io, net::SocketAddr, time::Duration};

use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use serde::{Deserialize, Serialize};
use throughline::{Error, ErrorKind, RecvStream, ResetCode, SendStream, Stream};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, tcp},
    time::timeout,
};

use super::{printable, read_json, write_json};
use crate::{args::Target, output::io_error};

pub(crate) const PROTOCOL: &str = "forward/1";
pub(crate) const LISTEN: &str = "forward-listen/1";

/// How long the other side may take to say what it wants, and a host to take a connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long whoever was refused may take to read it.
const DRAIN: Duration = Duration::from_secs(1);

/// How many bytes are moved at a time.
const CHUNK: usize = 32 * 1024;

/// The code of a stream whose TCP connection was reset.
const TCP_RESET: ResetCode = ResetCode(104);

/// The first message of `forward/1`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) to: String,
}

/// The first message of `forward-listen/1`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ListenRequest {
    pub(crate) bind: SocketAddr,
    pub(crate) to: String,
}

/// The answer to both.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Answer {
    ok: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bind: Option<SocketAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// Why the other side gets no connection: the code and the message of the protocol.
#[derive(Debug)]
pub(crate) struct Refusal {
    code: &'static str,
    message: String,
}

impl Refusal {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { code, message }
    }

    /// The answer when others have all places.
    pub(crate) fn busy() -> Self {
        Self::new("busy", "the peer serves as many as it can: try again later")
    }

    /// The answer to whoever asks for what nobody has allowed.
    pub(crate) fn not_allowed(what: &str) -> Self {
        Self::new("not_allowed", format!("{what} is not on the peer's list"))
    }

    fn of(to: &Target, error: &io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::ConnectionRefused => "refused",
            io::ErrorKind::TimedOut => "timeout",
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => "unreachable",
            _ => "failed",
        };
        Self::new(code, format!("{to}: {error}"))
    }
}

impl From<&Refusal> for Answer {
    fn from(refusal: &Refusal) -> Self {
        Self {
            code: Some(refusal.code.to_owned()),
            message: Some(refusal.message.clone()),
            ..Self::default()
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        refused(refusal.code, &refusal.message)
    }
}

impl Answer {
    pub(crate) fn accepted(bind: Option<SocketAddr>) -> Self {
        Self {
            ok: true,
            bind,
            ..Self::default()
        }
    }

    /// Returns the answer, if it is not a refusal.
    fn checked(self) -> Result<Self, Error> {
        if self.ok {
            return Ok(self);
        }
        let said = |text: Option<String>| printable(&text.unwrap_or_default());
        Err(refused(&said(self.code), &said(self.message)))
    }
}

fn refused(code: &str, message: &str) -> Error {
    let kind = match code {
        "not_allowed" | "bad_request" => ErrorKind::AccessDenied,
        "busy" => ErrorKind::LimitExceeded,
        "timeout" => ErrorKind::Timeout,
        "refused" | "unreachable" => ErrorKind::Unreachable,
        _ => ErrorKind::Io,
    };
    Error::new(kind, format!("{code}: {message}"))
}

/// Reads the first message of a stream.
pub(crate) async fn request<T: serde::de::DeserializeOwned>(
    reader: &mut (impl AsyncRead + Unpin),
) -> Result<T, Refusal> {
    let bad = |why: &str| Refusal::new("bad_request", why);
    match timeout(PATIENCE, read_json(reader, "forward")).await {
        Ok(request) => request.map_err(|error| bad(error.message())),
        Err(_) => Err(bad("nothing was asked for in time")),
    }
}

/// Connects to `to`, and resolves its name before.
pub(crate) async fn dial(to: &Target) -> Result<TcpStream, Refusal> {
    let dialled = timeout(PATIENCE, TcpStream::connect((to.host.as_str(), to.port))).await;
    let dialled = dialled.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    dialled.map_err(|error| Refusal::of(to, &error))
}

/// Sends the answer, and tells a sender whose request was refused that nobody reads on.
pub(crate) async fn answer(
    writer: &mut (impl AsyncWrite + Unpin),
    answer: &Answer,
) -> io::Result<()> {
    write_json(writer, answer).await?;
    match answer.ok {
        true => Ok(()),
        false => writer.close().await,
    }
}

/// Waits until the other side has ended its stream. What it sends is thrown away.
pub(crate) async fn ended(reader: &mut (impl AsyncRead + Unpin)) {
    let mut rest = [0; 1024];
    while matches!(reader.read(&mut rest).await, Ok(1..)) {}
}

/// Lets a sender that was refused read why, before its writes fail.
pub(crate) async fn drain(reader: &mut (impl AsyncRead + Unpin)) {
    let _ = timeout(DRAIN, ended(reader)).await;
}

/// Asks the other side for something, and waits for its answer.
pub(crate) async fn ask(stream: &mut Stream, request: &impl Serialize) -> Result<Answer, Error> {
    write_json(stream, request).await?;
    answered(stream).await
}

async fn answered(reader: &mut (impl AsyncRead + Unpin)) -> Result<Answer, Error> {
    read_json::<Answer>(reader, "forward").await?.checked()
}

/// How many bytes a tunnel has carried.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Carried {
    /// From the TCP connection to the peer.
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

/// Carries a TCP connection to `to` at the other side. The first bytes do not wait for the answer.
pub(crate) async fn open(socket: TcpStream, stream: Stream, to: &str) -> Result<Carried, Error> {
    let (mut writer, mut reader) = stream.split();
    let to = to.to_owned();
    write_json(&mut writer, &Request { to }).await?;
    carry(socket, (writer, &mut reader), true).await
}

/// Carries a TCP connection that the other side has asked for.
pub(crate) async fn accept(
    socket: TcpStream,
    mut writer: SendStream,
    mut reader: RecvStream,
) -> Result<Carried, Error> {
    answer(&mut writer, &Answer::accepted(None)).await?;
    carry(socket, (writer, &mut reader), false).await
}

/// Moves bytes until both directions have ended, each by itself. With `asked`, an answer comes before the
/// bytes of the other side. If either end is reset, so is the other.
async fn carry(
    socket: TcpStream,
    (mut writer, reader): (SendStream, &mut RecvStream),
    asked: bool,
) -> Result<Carried, Error> {
    // A keystroke does not wait for the next one. If this fails, it does.
    let _ = socket.set_nodelay(true);
    let (mut from, mut to) = socket.into_split();
    let upload = up(&mut from, &mut writer);
    let download = async {
        if asked {
            answered(reader).await?;
        }
        down(reader, &mut to).await
    };
    let carried = futures::future::try_join(upload, download).await;
    match carried {
        Ok((sent, received)) => Ok(Carried { sent, received }),
        Err(error) => {
            writer.reset(TCP_RESET);
            reset(from, to);
            Err(error)
        }
    }
}

async fn up(
    from: &mut tcp::OwnedReadHalf,
    writer: &mut (impl AsyncWrite + Unpin),
) -> Result<u64, Error> {
    let mut buffer = vec![0; CHUNK];
    let mut moved = 0;
    loop {
        let length = from.read(&mut buffer).await.map_err(of_tcp)?;
        if length == 0 {
            writer.close().await?;
            return Ok(moved);
        }
        writer.write_all(&buffer[..length]).await?;
        moved += length as u64;
    }
}

async fn down(
    reader: &mut (impl AsyncRead + Unpin),
    to: &mut tcp::OwnedWriteHalf,
) -> Result<u64, Error> {
    let mut buffer = vec![0; CHUNK];
    let mut moved = 0;
    loop {
        let length = reader.read(&mut buffer).await?;
        if length == 0 {
            // A connection that is gone already needs no end.
            let _ = to.shutdown().await;
            return Ok(moved);
        }
        to.write_all(&buffer[..length]).await.map_err(of_tcp)?;
        moved += length as u64;
    }
}

fn of_tcp(error: io::Error) -> Error {
    io_error("TCP", error)
}

/// Ends a TCP connection so that its other end sees a reset, and no end of the data.
fn reset(from: tcp::OwnedReadHalf, to: tcp::OwnedWriteHalf) {
    if let Ok(socket) = from.reunite(to) {
        // If this fails, the end looks like any other.
        let _ = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO));
    }
}
