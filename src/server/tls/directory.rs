//! HTTPS to the directory of an authority, without redirections and with a deadline for each request.

use std::{io, pin::Pin, time::Duration};

use axum::{body::Bytes, http::Request};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{BodyWrapper, BytesResponse, Error, HttpClient};
use tokio::{net::TcpStream, time::timeout};

use crate::native::roots::Roots;

/// How long one request may take, from the name of the server to the end of the answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// The longest answer. A chain of certificates has some KiB.
const MAX_ANSWER: usize = 256 * 1024;
/// The port of https.
const PORT: u16 = 443;

/// A client that trusts `roots`.
pub(super) struct Https {
    pub(super) roots: Roots,
}

impl HttpClient for Https {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let asked = ask(self.roots.clone(), request);
        Box::pin(async {
            let answer = timeout(PATIENCE, asked).await;
            let answer = answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            answer.map_err(|error| Error::Other(error.into()))
        })
    }
}

async fn ask(roots: Roots, mut request: Request<BodyWrapper<Bytes>>) -> io::Result<BytesResponse> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what);
    let uri = std::mem::take(request.uri_mut());
    if uri.scheme_str() != Some("https") {
        return Err(invalid("the authority names an address without https"));
    }
    let authority = uri.authority().ok_or_else(|| invalid("no host"))?.clone();
    let host = authority.host().trim_matches(['[', ']']);
    let path = uri.path_and_query().ok_or_else(|| invalid("no path"))?;
    *request.uri_mut() = path.as_str().parse().map_err(io::Error::other)?;
    let name = authority.as_str().parse().map_err(io::Error::other)?;
    request.headers_mut().insert(axum::http::header::HOST, name);
    let port = authority.port_u16().unwrap_or(PORT);
    let stream = TcpStream::connect((host, port)).await?;
    let stream = TokioIo::new(roots.connect(host, stream).await?);
    let (mut sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
    let answered = async {
        let answer = sender.send_request(request).await;
        let (parts, body) = answer.map_err(io::Error::other)?.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await;
        let body = Full::new(body.map_err(io::Error::other)?.to_bytes());
        Ok(axum::http::Response::from_parts(parts, body).into())
    };
    tokio::pin!(answered, connection);
    tokio::select! {
        answer = &mut answered => answer,
        // The connection may end with the answer.
        ended = &mut connection => {
            ended.map_err(io::Error::other)?;
            answered.await
        }
    }
}
