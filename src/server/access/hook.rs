//! Asks the operator's own program whether a peer may use the server.
//!
//! [`HookConfig`] describes the question and the answer. Nothing waits for an answer but the request
//! that needs it.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::body::{Body, to_bytes};
use futures::{FutureExt as _, future::BoxFuture};
use hyper::{Request, StatusCode, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::json;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
    time::timeout,
};

use super::{
    amount,
    answers::{Answer, Answers, Known, Question},
    meter::Limits,
};
use crate::{
    core::{access::Denial, quota::Holder},
    error::{Error, ErrorKind},
    native::ice::turn::Roots,
    server::{
        config::HookConfig,
        pool::{Place, Pool, Pools},
    },
};

/// The longest answer that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024;

/// An answer, or a task that gets it.
pub(crate) enum Asked {
    Known(Answer),
    Under(BoxFuture<'static, Answer>),
}

/// The hook of a server.
pub(crate) struct Hook {
    target: Target,
    roots: Roots,
    timeout: Duration,
    /// The questions that are being asked.
    asking: Pool,
    answers: Mutex<Answers>,
}

/// Where the hook is.
struct Target {
    uri: Uri,
    host: String,
    port: u16,
    is_secure: bool,
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

impl Hook {
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] if the URL or the file of authorities cannot be used.
    pub(crate) fn new(config: &HookConfig, pools: &Pools) -> Result<Self, Error> {
        let invalid = |what: &str, why: String| {
            Error::new(
                ErrorKind::InvalidConfig,
                format!("access.hook.{what}: {why}"),
            )
        };
        let target = config.url.as_deref().and_then(Target::parse);
        let target = target.ok_or_else(|| invalid("url", "must be an http or https URL".into()))?;
        let roots = Roots::load(config.ca.as_deref());
        let roots = roots.map_err(|error| invalid("ca", error.to_string()))?;
        let seconds = Duration::from_secs;
        Ok(Self {
            target,
            roots,
            timeout: Duration::from_millis(config.timeout_ms),
            asking: pools.hook.clone(),
            answers: Mutex::new(Answers::new(
                pools.hook_answers.clone(),
                seconds(config.fresh_seconds),
                seconds(config.max_age_seconds),
            )),
        })
    }

    fn answers(&self) -> MutexGuard<'_, Answers> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sweep(&self, now: Instant) {
        self.answers().sweep(now);
    }

    /// Gets the answer to a question. If the hook cannot be asked, the last answer counts, and
    /// without one there is no room for the peer.
    pub(crate) fn ask(self: &Arc<Self>, question: Question) -> Asked {
        let known = self.answers().known(&question, Instant::now());
        let otherwise = match known {
            Some(Known::Fresh(answer)) => return Asked::Known(answer),
            other => other.map_or(Answer::Deny(Denial::Limit), Known::answer),
        };
        let holder = Holder {
            ip: question.address,
            peer: Some(question.peer),
        };
        let Ok(place) = self.asking.take(holder) else {
            return Asked::Known(otherwise);
        };
        Asked::Under(self.clone().answer(question, otherwise, place).boxed())
    }

    async fn answer(self: Arc<Self>, question: Question, otherwise: Answer, _: Place) -> Answer {
        let asked = match timeout(self.timeout, self.post(&question)).await {
            Ok(Ok(reply)) => reply.read().ok_or_else(malformed),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        match asked {
            Ok((answer, lasts)) => {
                let now = Instant::now();
                self.answers().learn(&question, answer.clone(), lasts, now);
                answer
            }
            Err(error) => {
                // Neither the question nor the URL belongs in the log: both may hold secrets.
                tracing::warn!(%error, "access.hook does not answer, so the last answers count");
                otherwise
            }
        }
    }

    async fn post(&self, question: &Question) -> io::Result<Reply> {
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
        let body = json!({
            "peer": question.peer.to_string(),
            "address": question.address.map(|address| address.to_string()),
            "token": question.token.as_deref(),
            "what": question.what.name(),
        });
        let request = Request::post(path)
            .header(header::HOST, uri.authority().map_or("", |all| all.as_str()))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Body::from(body.to_string()))
            .map_err(io::Error::other)?;
        let response = sender
            .send_request(request)
            .await
            .map_err(io::Error::other)?;
        if response.status() != StatusCode::OK {
            let status = response.status().as_u16();
            return Err(io::Error::other(format!("its status is {status}")));
        }
        let body = to_bytes(Body::new(response.into_body()), MAX_ANSWER).await;
        let body = body.map_err(io::Error::other)?;
        serde_json::from_slice(&body).map_err(|_| malformed())
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "its answer is malformed")
}

/// The answer as it stands in JSON.
#[derive(Deserialize)]
struct Reply {
    allow: bool,
    name: Option<String>,
    quota: Option<String>,
    rate: Option<String>,
    reason: Option<String>,
    seconds: Option<u64>,
}

impl Reply {
    /// Returns the answer, and how long it counts if the hook says so. Returns `None` if an amount
    /// cannot be read, because that must not mean that there is no limit.
    fn read(self) -> Option<(Answer, Option<Duration>)> {
        let lasts = self.seconds.map(Duration::from_secs);
        let quota = self.quota.map(|text| amount::quota(&text));
        let rate = self.rate.map(|text| amount::rate(&text));
        let answer = match self.allow {
            true => Answer::Allow {
                name: self.name,
                limits: Limits {
                    quota: quota.map_or(Some(None), |quota| quota.map(Some))?,
                    rate: rate.map_or(Some(None), |rate| rate.map(Some))?,
                },
            },
            false => Answer::Deny(match self.reason.as_deref() {
                Some("quota") => Denial::Quota(lasts.unwrap_or_default()),
                Some("limit") => Denial::Limit,
                _ => Denial::Access,
            }),
        };
        Some((answer, lasts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Option<(Answer, Option<Duration>)> {
        serde_json::from_str::<Reply>(json).ok()?.read()
    }

    #[test]
    fn answers_allow_with_limits_or_deny_with_a_reason() {
        let free = Answer::Allow {
            name: None,
            limits: Limits::default(),
        };
        assert_eq!(read(r#"{"allow":true}"#), Some((free, None)));
        let (answer, lasts) =
            read(r#"{"allow":true,"name":"a","quota":"1B/day","rate":"8bit","seconds":5}"#)
                .unwrap();
        let Answer::Allow { name, limits } = answer else {
            panic!("it is allowed");
        };
        assert_eq!((name.as_deref(), limits.rate), (Some("a"), Some(1)));
        assert_eq!(limits.quota.and_then(|quota| quota.day), Some(1));
        let five = Duration::from_secs(5);
        assert_eq!(lasts, Some(five));
        for (reason, denial) in [
            ("quota", Denial::Quota(five)),
            ("limit", Denial::Limit),
            ("whatever", Denial::Access),
        ] {
            let json = format!(r#"{{"allow":false,"reason":"{reason}","seconds":5}}"#);
            assert_eq!(read(&json), Some((Answer::Deny(denial), Some(five))));
        }
        for malformed in [
            "{}",
            "[]",
            r#"{"allow":1}"#,
            r#"{"allow":true,"quota":"much"}"#,
            r#"{"allow":true,"rate":"fast"}"#,
        ] {
            assert_eq!(read(malformed), None, "{malformed}");
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
    }
}
