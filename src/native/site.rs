//! Asks the site of a relay for its profile, over HTTP with or without TLS. Redirections are not
//! followed, because a server could use them to make its client attack others.

use std::{future::Future, io, net::IpAddr, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{StreamExt as _, stream::FuturesUnordered};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::{Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{self, sleep},
};

use super::{nat64::Nat64, roots::Roots, transports::names::Names};
use crate::core::{
    dial::{Policy, is_localhost},
    profile::{self, Learnt},
    site::{By, Fault, LONGEST, Site},
};

/// The most addresses of a name that are tried.
const MAX_DIALS: usize = 4;
/// The pause between dials of them (RFC 8305 section 5).
const STEP: Duration = Duration::from_millis(250);

/// What is needed to ask. Clones share it.
#[derive(Clone)]
pub(crate) struct Asker {
    pub(crate) names: Names,
    pub(crate) roots: Roots,
    pub(crate) policy: Arc<Policy>,
    pub(crate) nat64: Nat64,
}

impl Asker {
    /// Asks `site`, which `by` has named, for at most `patience`.
    ///
    /// # Errors
    /// Says why nothing was learnt.
    pub(crate) fn ask(
        &self,
        site: Site,
        by: By,
        patience: Duration,
    ) -> impl Future<Output = Result<Learnt, Fault>> + Send + 'static {
        let this = self.clone();
        async move {
            site.check(by, &this.policy)?;
            let asked = time::timeout(patience.min(LONGEST), this.get(&site, by));
            let json = asked.await.map_err(|_| Fault::TimedOut)??;
            site.read(&json, &this.policy)
        }
    }

    async fn get(&self, site: &Site, by: By) -> Result<Bytes, Fault> {
        let stream = self.connect(site, by).await?;
        if !site.is_secure {
            return request(site, stream).await;
        }
        let secured = self.roots.connect(&site.host, stream).await;
        request(site, secured.map_err(failed)?).await
    }

    /// Connects to the first address that answers.
    async fn connect(&self, site: &Site, by: By) -> Result<TcpStream, Fault> {
        let mut barred = None;
        let mut dials = FuturesUnordered::new();
        for ip in self.addresses(&site.host).await.map_err(failed)? {
            if let Err(fault) = site.check_ip(ip, by, &self.policy) {
                barred = Some(fault);
                continue;
            }
            let turn = dials.len();
            if turn < MAX_DIALS
                && let Some(to) = self.nat64.route((ip, site.port).into())
            {
                dials.push(async move {
                    sleep(STEP * turn as u32).await;
                    TcpStream::connect(to).await
                });
            }
        }
        let mut last = None;
        while let Some(dialled) = dials.next().await {
            match dialled {
                Ok(stream) => return Ok(stream),
                Err(error) => last = Some(failed(error)),
            }
        }
        let nowhere = || failed(io::Error::other("the name has no address"));
        Err(last.or(barred).unwrap_or_else(nowhere))
    }

    async fn addresses(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        if let Ok(ip) = host.parse() {
            return Ok(vec![ip]);
        }
        // RFC 6761 section 6.3 keeps it from the resolver.
        if is_localhost(host) {
            return Ok(vec![
                [127, 0, 0, 1].into(),
                std::net::Ipv6Addr::LOCALHOST.into(),
            ]);
        }
        self.names.look_up_ips(host).await
    }
}

fn failed(error: impl std::fmt::Display) -> Fault {
    Fault::Failed(error.to_string())
}

async fn request(
    site: &Site,
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
) -> Result<Bytes, Fault> {
    let request = Request::get(profile::PATH)
        .header(header::HOST, site.authority())
        .header(header::ACCEPT, "application/json")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(failed)?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let answered = async {
        let answer = sender.send_request(request).await.map_err(failed)?;
        match answer.status() {
            StatusCode::OK => {}
            status if status.is_redirection() => return Err(Fault::Redirected),
            status => return Err(Fault::Status(status.as_u16())),
        }
        let body = Limited::new(answer.into_body(), profile::MAX_BYTES).collect();
        match body.await {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(Fault::TooLong),
            Err(error) => Err(failed(error)),
        }
    };
    let (mut answered, connection) = (pin!(answered), pin!(connection));
    tokio::select! {
        answer = &mut answered => answer,
        // The connection may end with the answer.
        ended = connection => {
            ended.map_err(failed)?;
            answered.await
        }
    }
}
