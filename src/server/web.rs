//! Questions to the operator's own programs, over HTTP or HTTPS, without redirections.

use std::{io, path::Path};

use axum::body::{Body, Bytes, to_bytes};
use hyper::{
    HeaderMap, Method, Request, StatusCode, Uri,
    client::conn::http1,
    header::{self, HeaderName, HeaderValue},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
};

use crate::native::roots::Roots;

/// What stands for a secret.
const HIDDEN: &str = "(hidden)";

/// Returns `url` without a user, a query and a fragment, which may be secrets.
pub(crate) fn shown(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let (url, rest) = url.split_at(end);
    let start = url.find("://").map_or(0, |at| at + 3);
    let (scheme, rest_of_url) = url.split_at(start);
    let path = rest_of_url.find('/').unwrap_or(rest_of_url.len());
    let (authority, path) = rest_of_url.split_at(path);
    let (user, host) = match authority.rsplit_once('@') {
        Some((_, host)) => (format!("{HIDDEN}@"), host),
        None => (String::new(), authority),
    };
    let rest = if rest.is_empty() { "" } else { "?(hidden)" };
    format!("{scheme}{user}{host}{path}{rest}")
}

/// A program that is asked at one URL.
pub(crate) struct Web {
    target: Target,
    roots: Roots,
}

/// Where it is.
struct Target {
    uri: Uri,
    host: String,
    port: u16,
    is_secure: bool,
}

/// A question.
pub(crate) struct Question {
    pub(crate) method: Method,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: String,
}

/// An answer, of whatever status.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Target {
    fn parse(url: &str) -> Option<Self> {
        let uri: Uri = url.parse().ok()?;
        let is_secure = match uri.scheme_str()? {
            "http" => false,
            "https" => true,
            _ => return None,
        };
        let authority = uri.authority().filter(|all| !all.as_str().contains('@'))?;
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let port = authority
            .port_u16()
            .unwrap_or(if is_secure { 443 } else { 80 });
        Some(Self {
            host,
            port,
            is_secure,
            uri,
        })
    }
}

impl Web {
    /// # Errors
    /// The field that cannot be used, `url` or `ca`, and why.
    pub(crate) fn new(
        url: Option<&str>,
        ca: Option<&Path>,
    ) -> Result<Self, (&'static str, String)> {
        let target = url.and_then(Target::parse);
        let invalid = || ("url", "must be an http or https URL".to_owned());
        Ok(Self {
            target: target.ok_or_else(invalid)?,
            roots: Roots::load(ca).map_err(|error| ("ca", error.to_string()))?,
        })
    }

    /// Whether nobody between can change what the program answers.
    pub(crate) fn is_secure(&self) -> bool {
        let host = self.target.host.parse::<std::net::IpAddr>();
        self.target.is_secure || host.is_ok_and(|ip| ip.is_loopback())
    }

    /// Asks, and reads an answer of at most `most` bytes. The caller has a deadline.
    pub(crate) async fn ask(&self, question: Question, most: usize) -> io::Result<Answer> {
        let Target {
            uri,
            host,
            port,
            is_secure,
        } = &self.target;
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        let stream: Box<dyn Stream> = match is_secure {
            true => Box::new(self.roots.connect(host, stream).await?),
            false => Box::new(stream),
        };
        let connected = http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = connected.map_err(io::Error::other)?;
        // The connection ends with this function.
        let mut connections = JoinSet::new();
        connections.spawn(connection);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(question.method)
            .uri(path)
            .header(header::HOST, uri.authority().map_or("", |all| all.as_str()));
        for (name, value) in question.headers {
            request = request.header(name, value);
        }
        let request = request.body(Body::from(question.body));
        let request = request.map_err(io::Error::other)?;
        let answer = sender.send_request(request).await;
        let (parts, body) = answer.map_err(io::Error::other)?.into_parts();
        let body = to_bytes(Body::new(body), most).await;
        Ok(Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.map_err(io::Error::other)?,
        })
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_of_a_url_has_no_secret() {
        for (url, text) in [
            ("https://a.example/may-use", "https://a.example/may-use"),
            ("http://[::1]:9000", "http://[::1]:9000"),
            (
                "https://a.example/x?key=s3cret#s3cret",
                "https://a.example/x?(hidden)",
            ),
            (
                "https://u:s3cret@a.example/x",
                "https://(hidden)@a.example/x",
            ),
            ("https://u:s3@cret@a.example", "https://(hidden)@a.example"),
            (
                "https://a.example?s3cret=a@b/c",
                "https://a.example?(hidden)",
            ),
            ("s3cret@a.example", "(hidden)@a.example"),
            ("", ""),
        ] {
            assert_eq!(shown(url), text);
        }
    }

    #[test]
    fn urls_are_http_or_https_without_a_user() {
        let target = |url: &str| {
            let target = Target::parse(url)?;
            Some((target.host, target.port, target.is_secure))
        };
        let local = ("127.0.0.1".to_owned(), 80, false);
        assert_eq!(target("http://127.0.0.1/may-use?key=1"), Some(local));
        let named = ("auth.example".to_owned(), 443, true);
        assert_eq!(target("https://auth.example"), Some(named));
        assert_eq!(
            target("http://[::1]:9000/"),
            Some(("::1".to_owned(), 9000, false))
        );
        for wrong in [
            "",
            "auth.example",
            "ftp://auth.example",
            "http://user:pass@auth.example/",
        ] {
            assert_eq!(target(wrong), None, "{wrong}");
        }
        let is_secure = |url| Web::new(Some(url), None).ok().unwrap().is_secure();
        assert!(is_secure("https://a.example") && is_secure("http://[::1]/"));
        assert!(!is_secure("http://a.example"));
    }
}
