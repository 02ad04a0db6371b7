//! The opening handshake (RFC 6455 section 4).
//!
//! A head may be 8 KiB long, and is kept as it comes. Redirections are not followed, because a
//! server could use them to make its client attack others.

use std::{borrow::Cow, fmt, io};

use data_encoding::BASE64;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use httparse::{EMPTY_HEADER, Header, Request as RequestHead, Response as ResponseHead};
use sha1::{Digest as _, Sha1};

use super::{frame::Role, stream::WebSocketStream};
use crate::{
    core::websocket_address::{WebSocketAddress, authority},
    native::behaviours::forwarded::Noted,
};

/// The longest head. Common servers have the same limit, which leaves room for a browser's cookies.
const MAX_HEAD_LEN: usize = 8 * 1024;
/// The most headers. Browsers behind reverse proxies send some thirty.
const MAX_HEADERS: usize = 64;
/// The constant of RFC 6455 section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The reasons why a handshake failed.
#[derive(Debug)]
pub(crate) enum HandshakeError {
    Io(io::Error),
    TooLong,
    Http(httparse::Error),
    /// The server answered with this status instead of switching protocols.
    Status(u16),
    /// A header is missing or has a wrong value.
    Header(&'static str),
    Method,
    Version,
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::TooLong => write!(f, "the head is longer than {MAX_HEAD_LEN} bytes"),
            Self::Http(error) => write!(f, "malformed HTTP: {error}"),
            Self::Status(code) => write!(f, "the server answered with status {code}"),
            Self::Header(name) => write!(f, "the header {name} is missing or wrong"),
            Self::Method => f.write_str("the request is not a GET"),
            Self::Version => f.write_str("the version is not HTTP/1.1"),
        }
    }
}

impl std::error::Error for HandshakeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Http(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for HandshakeError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// The target of a client's request. It holds no character that could end a line of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    host: String,
    path: String,
}

impl Target {
    /// Returns the target of a request to `address`. Its host may differ from the name for TLS.
    pub(crate) fn new(address: &WebSocketAddress) -> Self {
        Self {
            host: authority(&address.host, address.port),
            path: address.path.clone(),
        }
    }
}

/// Requests `target` from the server behind `stream`. The `nonce` is random.
pub(crate) async fn connect<S>(
    mut stream: S,
    target: &Target,
    nonce: [u8; 16],
) -> Result<WebSocketStream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let key = BASE64.encode(&nonce);
    let Target { host, path } = target;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let (head, rest) = read_head(&mut stream).await?;
    check_response(&head, &key)?;
    Ok(WebSocketStream::new(stream, Role::Client, rest)?)
}

/// Answers the client behind `stream`, for any target and from any origin. The identity of the peer
/// is known only when the connection is secured. What `note` makes of the request's values of
/// `X-Forwarded-For` lasts as long as the stream.
pub(crate) async fn accept<S>(
    mut stream: S,
    note: impl FnOnce(&[&str]) -> Option<Noted>,
) -> Result<WebSocketStream<S>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (head, rest) = read_head(&mut stream).await?;
    match check_request(&head) {
        Ok(key) => {
            let response = format!(
                "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                 Sec-WebSocket-Accept: {}\r\n\r\n",
                accept_key(&key)
            );
            stream.write_all(response.as_bytes()).await?;
            stream.flush().await?;
            let values = forwarded(&head);
            let values: Vec<&str> = values.iter().map(AsRef::as_ref).collect();
            let noted = note(&values);
            Ok(WebSocketStream::new(stream, Role::Server, rest)?.keep(noted))
        }
        Err(error) => {
            // The answers follow RFC 6455 sections 4.2.1 and 4.4.
            let status = match error {
                HandshakeError::Header("Sec-WebSocket-Version") => {
                    "426 Upgrade Required\r\nSec-WebSocket-Version: 13"
                }
                _ => "400 Bad Request",
            };
            let response =
                format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(response.as_bytes()).await?;
            stream.close().await?;
            Err(error)
        }
    }
}

/// The value of `Sec-WebSocket-Accept` for a client's key (RFC 6455 section 4.2.2).
pub(crate) fn accept_key(key: &[u8]) -> String {
    BASE64.encode(&Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

/// Reads a head, and returns it with the bytes that came behind it.
async fn read_head(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<(Vec<u8>, Vec<u8>), HandshakeError> {
    const END: &[u8] = b"\r\n\r\n";
    let (mut head, mut chunk) = (Vec::new(), [0; 1024]);
    while head.len() < MAX_HEAD_LEN {
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let fresh = head.len().saturating_sub(END.len() - 1);
        head.extend_from_slice(&chunk[..read]);
        let found = head[fresh..]
            .windows(END.len())
            .position(|bytes| bytes == END);
        if let Some(at) = found {
            let rest = head.split_off(fresh + at + END.len());
            return Ok((head, rest));
        }
    }
    Err(HandshakeError::TooLong)
}

/// Checks a client's request and returns its key (RFC 6455 section 4.2.1).
fn check_request(head: &[u8]) -> Result<Vec<u8>, HandshakeError> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = RequestHead::new(&mut headers);
    request.parse(head).map_err(HandshakeError::Http)?;
    if request.method != Some("GET") {
        return Err(HandshakeError::Method);
    }
    if request.version != Some(1) {
        return Err(HandshakeError::Version);
    }
    let headers = &*request.headers;
    values(headers, "Host")
        .next()
        .ok_or(HandshakeError::Header("Host"))?;
    expect_token(headers, "Upgrade", "websocket")?;
    expect_token(headers, "Connection", "upgrade")?;
    expect_token(headers, "Sec-WebSocket-Version", "13")?;
    let key = values(headers, "Sec-WebSocket-Key")
        .next()
        .unwrap_or_default();
    match BASE64.decode(key) {
        Ok(nonce) if nonce.len() == 16 => Ok(key.to_vec()),
        _ => Err(HandshakeError::Header("Sec-WebSocket-Key")),
    }
}

/// Returns the values of `X-Forwarded-For` in a request that was accepted.
fn forwarded(head: &[u8]) -> Vec<Cow<'_, str>> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = RequestHead::new(&mut headers);
    if request.parse(head).is_err() {
        return Vec::new();
    }
    let headers = request.headers.iter();
    let named = headers.filter(|header| header.name.eq_ignore_ascii_case("X-Forwarded-For"));
    // A client may have written any bytes before what the proxy has appended.
    named
        .map(|header| String::from_utf8_lossy(header.value))
        .collect()
}

/// Checks that a server agrees (RFC 6455 section 4.1).
fn check_response(head: &[u8], key: &str) -> Result<(), HandshakeError> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut response = ResponseHead::new(&mut headers);
    response.parse(head).map_err(HandshakeError::Http)?;
    if response.code != Some(101) {
        return Err(HandshakeError::Status(response.code.unwrap_or_default()));
    }
    if response.version != Some(1) {
        return Err(HandshakeError::Version);
    }
    let headers = &*response.headers;
    expect_token(headers, "Upgrade", "websocket")?;
    expect_token(headers, "Connection", "upgrade")?;
    let accepted = values(headers, "Sec-WebSocket-Accept").next();
    if accepted != Some(accept_key(key.as_bytes()).as_bytes()) {
        return Err(HandshakeError::Header("Sec-WebSocket-Accept"));
    }
    for unasked in ["Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol"] {
        if values(headers, unasked).next().is_some() {
            return Err(HandshakeError::Header(unasked));
        }
    }
    Ok(())
}

fn values<'h>(headers: &'h [Header<'h>], name: &'static str) -> impl Iterator<Item = &'h [u8]> {
    let named = headers
        .iter()
        .filter(move |header| header.name.eq_ignore_ascii_case(name));
    named.map(|header| header.value.trim_ascii())
}

/// Checks that a header contains `token`. The header is a list, which may come in several lines.
fn expect_token(
    headers: &[Header<'_>],
    name: &'static str,
    token: &str,
) -> Result<(), HandshakeError> {
    let mut tokens = values(headers, name).flat_map(|value| value.split(|byte| *byte == b','));
    let found = tokens.any(|value| value.trim_ascii().eq_ignore_ascii_case(token.as_bytes()));
    found.then_some(()).ok_or(HandshakeError::Header(name))
}

#[cfg(test)]
mod tests {
    use futures::{executor::block_on, io::Cursor};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_target_names_its_host() {
        let address = WebSocketAddress {
            host: "::1".into(),
            port: 80,
            tls: Some("r.example".into()),
            path: "/a".into(),
        };
        let Target { host, path } = Target::new(&address);
        assert_eq!((&*host, &*path), ("[::1]:80", "/a"));
    }

    /// The example is from RFC 6455 section 1.3.
    #[test]
    fn the_example_of_the_rfc() {
        let accepted = accept_key(b"dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accepted, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    const REQUEST: &str = "GET /chat HTTP/1.1\r\nHost: s.example\r\nUpgrade: WebSocket\r\n\
        Connection: keep-alive, Upgrade\r\nOrigin: http://e.example\r\n\
        Sec-WebSocket-Protocol: chat\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";

    const RESPONSE: &str = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\n\
        connection: upgrade\r\nsec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

    #[test]
    fn requests() {
        assert_eq!(
            check_request(REQUEST.as_bytes()).unwrap(),
            b"dGhlIHNhbXBsZSBub25jZQ=="
        );
        for (from, to) in [
            ("GET", "POST"),
            ("HTTP/1.1", "HTTP/1.0"),
            ("Host", "Hoost"),
            ("WebSocket\r", "h2c\r"),
            ("keep-alive, Upgrade", "keep-alive"),
            (": 13", ": 8"),
            ("dGhl", "dGh"),
            ("dGhl", "dGhldGhl"),
            ("/chat", "/ch at"),
        ] {
            let request = REQUEST.replacen(from, to, 1);
            assert!(check_request(request.as_bytes()).is_err(), "{request}");
        }
    }

    #[test]
    fn whom_proxies_name_is_read_in_their_order() {
        let request = REQUEST.replace(
            "Origin",
            "x-forwarded-for: a, b\r\nX-Forwarded-For: c\r\nOrigin",
        );
        assert_eq!(forwarded(request.as_bytes()), ["a, b", "c"]);
        assert!(forwarded(REQUEST.as_bytes()).is_empty());
    }

    #[test]
    fn responses() {
        let key = "dGhlIHNhbXBsZSBub25jZQ==";
        check_response(RESPONSE.as_bytes(), key).unwrap();
        for (from, to) in [
            ("101 Switching Protocols", "200 OK"),
            (
                "101 Switching Protocols",
                "302 Found\r\nlocation: http://127.0.0.1/",
            ),
            ("1.1", "1.0"),
            ("upgrade: websocket", "upgrade: h2c"),
            ("connection: upgrade", "connection: close"),
            ("s3pP", "S3pP"),
            ("connection", "sec-websocket-protocol: chat\r\nconnection"),
            ("connection", "sec-websocket-extensions: x\r\nconnection"),
        ] {
            let response = RESPONSE.replacen(from, to, 1);
            assert!(
                check_response(response.as_bytes(), key).is_err(),
                "{response}"
            );
        }
    }

    #[test]
    fn heads_end_and_are_bounded() {
        let mut bytes = Cursor::new([REQUEST.as_bytes(), b"rest"].concat());
        let (head, rest) = block_on(read_head(&mut bytes)).unwrap();
        assert_eq!((&head[..], &rest[..]), (REQUEST.as_bytes(), &b"rest"[..]));
        let mut endless = futures::io::repeat(b'a');
        assert!(matches!(
            block_on(read_head(&mut endless)),
            Err(HandshakeError::TooLong)
        ));
        let cut = &REQUEST.as_bytes()[..40];
        assert!(matches!(
            block_on(read_head(&mut Cursor::new(cut))),
            Err(HandshakeError::Io(_))
        ));
    }

    #[test]
    fn a_bad_request_is_answered() {
        for (request, answer) in [
            (REQUEST.replace(": 13", ": 8"), "HTTP/1.1 426 "),
            (REQUEST.replace("GET", "PUT"), "HTTP/1.1 400 "),
        ] {
            let mut bytes = request.into_bytes();
            let asked = bytes.len();
            // The cursor writes the answer behind the request.
            let error = block_on(accept(Cursor::new(&mut bytes), |_| None));
            assert!(error.is_err());
            let answered = String::from_utf8_lossy(&bytes[asked..]);
            assert!(answered.starts_with(answer), "{answered}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_heads_do_not_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = check_request(&bytes);
            let _ = check_response(&bytes, "");
        }
    }
}
