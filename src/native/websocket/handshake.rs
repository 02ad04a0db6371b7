//! The opening handshake (RFC 6455 section 4).
//!
//! A head may be 8 KiB long, and is kept as it comes. Redirections are not followed: a server
//! would aim its client with them.

use std::{fmt, io, net::IpAddr};

use data_encoding::BASE64;
use futures::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use futures_rustls::rustls::pki_types::ServerName;
use httparse::{EMPTY_HEADER, Header, Request as RequestHead, Response as ResponseHead};
use sha1::{Digest as _, Sha1};

use super::{frame::Role, stream::Stream};
use crate::core::address::is_path;

/// As long as common servers let a head become, with a browser's cookies in it.
const MAX_HEAD_LEN: usize = 8 * 1024;
/// Browsers behind reverse proxies send some thirty.
const MAX_HEADERS: usize = 64;
/// RFC 6455 section 1.3.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Why a handshake failed.
#[derive(Debug)]
pub(crate) enum Error {
    Io(io::Error),
    TooLong,
    Http(httparse::Error),
    /// What the server answered instead of switching protocols.
    Status(u16),
    /// A header is missing or says something else than it must.
    Header(&'static str),
    Method,
    Version,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::TooLong => write!(f, "the head is longer than {MAX_HEAD_LEN} bytes"),
            Self::Http(error) => write!(f, "malformed HTTP: {error}"),
            Self::Status(code) => write!(f, "the server answered with status {code}"),
            Self::Header(name) => write!(f, "the header {name} is not as it must be"),
            Self::Method => f.write_str("the request is not a GET"),
            Self::Version => f.write_str("the version is not HTTP/1.1"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(error) => Some(error),
            Self::Http(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What a client asks for. It holds nothing that could end a line of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    host: String,
    path: String,
}

impl Target {
    /// `path` at `host`, or `None` if one of them is not what RFC 3986 calls so.
    ///
    /// Multiaddresses leave out the slash with which a path begins.
    pub(crate) fn new(host: &ServerName<'_>, port: u16, path: &str) -> Option<Self> {
        let host = match host {
            ServerName::DnsName(name) => format!("{}:{port}", name.as_ref()),
            ServerName::IpAddress(ip) => match IpAddr::from(*ip) {
                IpAddr::V4(ip) => format!("{ip}:{port}"),
                IpAddr::V6(ip) => format!("[{ip}]:{port}"),
            },
            _ => return None,
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let path = format!("{slash}{path}");
        is_path(&path).then_some(Self { host, path })
    }
}

/// Asks the server behind `stream` for `target`. The `nonce` is random.
pub(crate) async fn connect<S>(
    mut stream: S,
    target: &Target,
    nonce: [u8; 16],
) -> Result<Stream<S>, Error>
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
    Ok(Stream::new(stream, Role::Client, rest)?)
}

/// Answers the client behind `stream`, whatever it asks for and wherever it comes from: who the
/// peer is shows only when the connection is secured.
pub(crate) async fn accept<S>(mut stream: S) -> Result<Stream<S>, Error>
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
            Ok(Stream::new(stream, Role::Server, rest)?)
        }
        Err(error) => {
            // RFC 6455 sections 4.2.1 and 4.4.
            let status = match error {
                Error::Header("Sec-WebSocket-Version") => {
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

/// `Sec-WebSocket-Accept` for a client's key (RFC 6455 section 4.2.2).
pub(crate) fn accept_key(key: &[u8]) -> String {
    BASE64.encode(&Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

/// Reads a head and what came along behind it.
async fn read_head(stream: &mut (impl AsyncRead + Unpin)) -> Result<(Vec<u8>, Vec<u8>), Error> {
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
    Err(Error::TooLong)
}

/// The key of a client's request (RFC 6455 section 4.2.1).
fn check_request(head: &[u8]) -> Result<Vec<u8>, Error> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut request = RequestHead::new(&mut headers);
    request.parse(head).map_err(Error::Http)?;
    if request.method != Some("GET") {
        return Err(Error::Method);
    }
    if request.version != Some(1) {
        return Err(Error::Version);
    }
    let headers = &*request.headers;
    values(headers, "Host")
        .next()
        .ok_or(Error::Header("Host"))?;
    expect_token(headers, "Upgrade", "websocket")?;
    expect_token(headers, "Connection", "upgrade")?;
    expect_token(headers, "Sec-WebSocket-Version", "13")?;
    let key = values(headers, "Sec-WebSocket-Key")
        .next()
        .unwrap_or_default();
    match BASE64.decode(key) {
        Ok(nonce) if nonce.len() == 16 => Ok(key.to_vec()),
        _ => Err(Error::Header("Sec-WebSocket-Key")),
    }
}

/// Whether a server agrees (RFC 6455 section 4.1).
fn check_response(head: &[u8], key: &str) -> Result<(), Error> {
    let mut headers = [EMPTY_HEADER; MAX_HEADERS];
    let mut response = ResponseHead::new(&mut headers);
    response.parse(head).map_err(Error::Http)?;
    if response.code != Some(101) {
        return Err(Error::Status(response.code.unwrap_or_default()));
    }
    if response.version != Some(1) {
        return Err(Error::Version);
    }
    let headers = &*response.headers;
    expect_token(headers, "Upgrade", "websocket")?;
    expect_token(headers, "Connection", "upgrade")?;
    let accepted = values(headers, "Sec-WebSocket-Accept").next();
    if accepted != Some(accept_key(key.as_bytes()).as_bytes()) {
        return Err(Error::Header("Sec-WebSocket-Accept"));
    }
    for unasked in ["Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol"] {
        if values(headers, unasked).next().is_some() {
            return Err(Error::Header(unasked));
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

/// The header is a list that may come in several lines.
fn expect_token(headers: &[Header<'_>], name: &'static str, token: &str) -> Result<(), Error> {
    let mut tokens = values(headers, name).flat_map(|value| value.split(|byte| *byte == b','));
    let found = tokens.any(|value| value.trim_ascii().eq_ignore_ascii_case(token.as_bytes()));
    found.then_some(()).ok_or(Error::Header(name))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use futures::{executor::block_on, io::Cursor};
    use proptest::prelude::*;

    use super::*;

    fn name(text: &str) -> ServerName<'_> {
        text.try_into().unwrap()
    }

    #[test]
    fn a_target_begins_with_a_slash_and_names_its_host() {
        let target = |host: &str, path: &str| {
            let target = Target::new(&name(host), 80, path)?;
            Some((target.host, target.path))
        };
        assert_eq!(
            target("r.example", ""),
            Some(("r.example:80".into(), "/".into()))
        );
        assert_eq!(
            target("192.0.2.1", "a"),
            Some(("192.0.2.1:80".into(), "/a".into()))
        );
        assert_eq!(target("::1", "/a"), Some(("[::1]:80".into(), "/a".into())));
        assert_eq!(target("r.example", "/ HTTP/1.1\r\nX: y"), None);
    }

    /// RFC 6455 section 1.3.
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
            Err(Error::TooLong)
        ));
        let cut = &REQUEST.as_bytes()[..40];
        assert!(matches!(
            block_on(read_head(&mut Cursor::new(cut))),
            Err(Error::Io(_))
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
            // What is written goes behind what was read.
            let error = block_on(accept(Cursor::new(&mut bytes)));
            assert!(error.is_err());
            let answered = String::from_utf8_lossy(&bytes[asked..]);
            assert!(answered.starts_with(answer), "{answered}");
        }
    }

    proptest! {
        /// Whatever an address says, the request is one request.
        #[test]
        fn nothing_gets_into_the_lines_of_a_request(path in ".*", ip in any::<u128>()) {
            let host = ServerName::from(IpAddr::from(Ipv6Addr::from_bits(ip)));
            if let Some(Target { host, path }) = Target::new(&host, 1, &path) {
                let line = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
                prop_assert!(line(&host) && line(&path));
            }
        }

        #[test]
        fn no_head_is_too_odd(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = check_request(&bytes);
            let _ = check_response(&bytes, "");
        }
    }
}
