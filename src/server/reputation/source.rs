//! Where scores come from.

use std::{
    collections::HashMap,
    fmt,
    sync::atomic::{AtomicU64, Ordering},
};

use data_encoding::BASE64URL_NOPAD;
use ed25519_dalek::{Signature, VerifyingKey};
use futures::{FutureExt as _, future::BoxFuture};
use hyper::{
    Method, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use serde::Deserialize;

use crate::{
    core::reputation::MOST_SCORE,
    error::{Error, ErrorKind},
    identity::PeerId as PublicPeerId,
    server::{
        config::ReputationConfig,
        web::{Answer, Question, Web},
    },
};

/// The longest answer. It has room for some 200,000 peers.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// The longest ETag that is sent back.
const MAX_VERSION: usize = 256;
const SIGNATURE: HeaderName = HeaderName::from_static("x-signature");

/// Scores of peers and of relays, from -100 to 100.
///
/// ```
/// use throughline::{Identity, server::Scores};
///
/// let mut scores = Scores::default();
/// scores.set_peer(&Identity::generate().peer_id(), -80);
/// ```
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Scores {
    /// What the source wants to be told when it is asked again.
    pub version: Option<String>,
    pub(super) peers: HashMap<multiaddr::PeerId, i32>,
    pub(super) relays: HashMap<multiaddr::PeerId, i32>,
}

impl Scores {
    /// Sets the score of a peer. Scores outside of -100 to 100 count as the nearest one.
    pub fn set_peer(&mut self, peer: &PublicPeerId, score: i32) {
        self.peers.insert(peer.0, bounded(score));
    }

    /// Sets the score of a relay, by which clients of a server that ends are sent to others.
    pub fn set_relay(&mut self, relay: &PublicPeerId, score: i32) {
        self.relays.insert(relay.0, bounded(score));
    }
}

fn bounded(score: i32) -> i32 {
    score.clamp(-MOST_SCORE, MOST_SCORE)
}

impl fmt::Debug for Scores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scores")
            .field("version", &self.version)
            .field("peers", &self.peers.len())
            .field("relays", &self.relays.len())
            .finish()
    }
}

/// A place where scores come from, such as a database of the program.
///
/// ```
/// use futures::future::{BoxFuture, FutureExt as _};
/// use throughline::{Error, server::{ScoreSource, Scores}};
///
/// struct Nobody;
///
/// impl ScoreSource for Nobody {
///     fn scores<'a>(
///         &'a self,
///         _version: Option<&'a str>,
///     ) -> BoxFuture<'a, Result<Option<Scores>, Error>> {
///         async { Ok(Some(Scores::default())) }.boxed()
///     }
/// }
/// ```
pub trait ScoreSource: Send + Sync + 'static {
    /// Returns all scores, or `None` if they are still those of `version`, which is what the last
    /// answer had. It is asked in the background and has 30 seconds, after which its future is
    /// dropped. While it gives an error, the last scores count.
    fn scores<'a>(
        &'a self,
        version: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Option<Scores>, Error>>;
}

/// A URL of JSON.
pub(super) struct HttpSource {
    web: Web,
    key: Option<VerifyingKey>,
    /// When the last signed answer was issued.
    issued: AtomicU64,
}

/// The answer as it stands in JSON.
#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    peers: HashMap<String, i32>,
    #[serde(default)]
    relays: HashMap<String, i32>,
    #[serde(default)]
    issued: u64,
}

impl HttpSource {
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] if a setting cannot be used.
    pub(super) fn new(config: &ReputationConfig) -> Result<Self, Error> {
        let invalid = |field: &str, why: &str| {
            let message = format!("reputation.{field}: {why}");
            Error::new(ErrorKind::InvalidConfig, message)
        };
        let web = Web::new(config.url.as_deref(), config.ca.as_deref());
        let web = web.map_err(|(field, why)| invalid(field, &why))?;
        let key = match &config.key {
            None => None,
            Some(text) => Some(key(text).ok_or_else(|| invalid("key", "is no public key"))?),
        };
        if key.is_none() && !web.is_secure() {
            return Err(invalid("url", "must be an https URL, or have a key"));
        }
        Ok(Self {
            web,
            key,
            issued: AtomicU64::new(0),
        })
    }

    async fn ask(&self, version: Option<&str>) -> Result<Option<Scores>, Error> {
        let mut headers = Vec::new();
        if let Some(Ok(version)) = version.map(HeaderValue::from_str) {
            headers.push((header::IF_NONE_MATCH, version));
        }
        let question = Question {
            method: Method::GET,
            headers,
            body: String::new(),
        };
        // Neither the URL nor the answer belongs in the log.
        let answer = self.web.ask(question, MAX_ANSWER).await;
        self.read(answer.map_err(|error| failed(&error.to_string()))?)
    }

    fn read(&self, answer: Answer) -> Result<Option<Scores>, Error> {
        match answer.status {
            StatusCode::NOT_MODIFIED => return Ok(None),
            StatusCode::OK => {}
            other => return Err(failed(&format!("its status is {}", other.as_u16()))),
        }
        if let Some(key) = &self.key {
            let signature = answer.headers.get(SIGNATURE);
            let signature = signature.and_then(|text| signed(text.as_bytes()));
            let signature = signature.ok_or_else(|| failed("it is not signed"))?;
            let verified = key.verify_strict(&answer.body, &signature);
            verified.map_err(|_| failed("its signature is wrong"))?;
        }
        let written: Written = serde_json::from_slice(&answer.body)
            // The message of the error could repeat the answer.
            .map_err(|_| failed("its answer is malformed"))?;
        if self.key.is_some()
            && self.issued.fetch_max(written.issued, Ordering::Relaxed) > written.issued
        {
            return Err(failed("its answer is older than the last one"));
        }
        let version = answer.headers.get(header::ETAG);
        let version = version.and_then(|text| text.to_str().ok());
        let read = |scores: HashMap<String, i32>| {
            let scores = scores.into_iter();
            let scores = scores.filter_map(|(id, score)| Some((id.parse().ok()?, bounded(score))));
            scores.collect()
        };
        Ok(Some(Scores {
            version: version
                .filter(|text| text.len() <= MAX_VERSION)
                .map(str::to_owned),
            peers: read(written.peers),
            relays: read(written.relays),
        }))
    }
}

impl ScoreSource for HttpSource {
    fn scores<'a>(
        &'a self,
        version: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Option<Scores>, Error>> {
        self.ask(version).boxed()
    }
}

fn failed(why: &str) -> Error {
    Error::new(ErrorKind::Io, format!("reputation.url: {why}"))
}

fn key(text: &str) -> Option<VerifyingKey> {
    let bytes = BASE64URL_NOPAD.decode(text.trim().as_bytes()).ok()?;
    let key = VerifyingKey::from_bytes(&bytes.try_into().ok()?).ok()?;
    (!key.is_weak()).then_some(key)
}

fn signed(text: &[u8]) -> Option<Signature> {
    let bytes = BASE64URL_NOPAD.decode(text).ok()?;
    Signature::from_slice(&bytes).ok()
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use ed25519_dalek::{Signer as _, SigningKey};
    use hyper::HeaderMap;
    use multiaddr::PeerId;

    use super::*;

    fn config(url: &str) -> ReputationConfig {
        ReputationConfig {
            url: Some(url.into()),
            ..ReputationConfig::default()
        }
    }

    fn answer(body: &str, signer: Option<&SigningKey>) -> Answer {
        let mut headers = HeaderMap::new();
        headers.insert(header::ETAG, HeaderValue::from_static("\"1\""));
        if let Some(signer) = signer {
            let signature = BASE64URL_NOPAD.encode(&signer.sign(body.as_bytes()).to_bytes());
            headers.insert(SIGNATURE, signature.parse().unwrap());
        }
        Answer {
            status: StatusCode::OK,
            headers,
            body: Bytes::from(body.to_owned()),
        }
    }

    #[test]
    fn scores_are_read_and_bounded() {
        let source = HttpSource::new(&config("https://a.example")).unwrap();
        let (peer, relay) = (PeerId::random(), PeerId::random());
        let body = format!(r#"{{"peers":{{"{peer}":-500,"nobody":1}},"relays":{{"{relay}":7}}}}"#);
        let scores = source.read(answer(&body, None)).unwrap().unwrap();
        assert_eq!(scores.version.as_deref(), Some("\"1\""));
        assert_eq!(scores.peers, HashMap::from([(peer, -100)]));
        assert_eq!(scores.relays, HashMap::from([(relay, 7)]));
        let mut same = answer("", None);
        same.status = StatusCode::NOT_MODIFIED;
        assert_eq!(source.read(same).unwrap(), None);
        let mut gone = answer("{}", None);
        gone.status = StatusCode::NOT_FOUND;
        for wrong in [gone, answer("7", None), answer(r#"{"peers":7}"#, None)] {
            assert!(source.read(wrong).is_err());
        }
    }

    #[test]
    fn a_key_wants_a_signature_and_nothing_older() {
        let signer = SigningKey::from_bytes(&[7; 32]);
        let other = SigningKey::from_bytes(&[8; 32]);
        let mut config = config("http://a.example");
        assert!(HttpSource::new(&config).is_err(), "anybody could answer");
        config.key = Some(BASE64URL_NOPAD.encode(signer.verifying_key().as_bytes()));
        let source = HttpSource::new(&config).unwrap();
        let read = |issued: u64, signer: Option<&SigningKey>| {
            let body = format!(r#"{{"issued":{issued}}}"#);
            source.read(answer(&body, signer)).is_ok()
        };
        assert!(!read(10, None) && !read(10, Some(&other)));
        assert!(read(10, Some(&signer)) && read(10, Some(&signer)));
        assert!(read(11, Some(&signer)) && !read(10, Some(&signer)));
        config.key = Some("short".into());
        assert!(HttpSource::new(&config).is_err());
    }
}
