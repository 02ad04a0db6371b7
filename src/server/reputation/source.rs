//! Where scores come from.

use std::{collections::HashMap, fmt, sync::Arc, time::SystemTime};

use data_encoding::BASE64URL_NOPAD;
use ed25519_dalek::{Signature, VerifyingKey};
use futures::{FutureExt as _, future::BoxFuture};
use hyper::{
    Method, StatusCode,
    header::{self, HeaderName, HeaderValue},
};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use tokio::task;

use super::kept::time;
use crate::{
    core::reputation::MOST_SCORE,
    error::{Error, ErrorKind},
    identity::PeerId as PublicPeerId,
    server::{
        config::ReputationConfig,
        web::{Answer, Question, Web},
    },
};

/// The longest answer.
pub(super) const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// The most scores of peers, and of relays. The longest answer has no more, if each id is that of a key.
const MAX_SCORES: usize = 300_000;
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
    /// When they were made, if that is known. Their age counts from then, whatever the source says
    /// later, and scores that are older than the last ones do not count. Without it, their age counts
    /// from the last answer.
    pub issued: Option<SystemTime>,
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

pub(super) fn bounded(score: i32) -> i32 {
    score.clamp(-MOST_SCORE, MOST_SCORE)
}

impl fmt::Debug for Scores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scores")
            .field("version", &self.version)
            .field("issued", &self.issued)
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
    /// dropped. While it gives an error, the last scores count, for
    /// [`max_age_seconds`](crate::server::ReputationConfig::max_age_seconds) at most.
    fn scores<'a>(
        &'a self,
        version: Option<&'a str>,
    ) -> BoxFuture<'a, Result<Option<Scores>, Error>>;
}

/// A URL of JSON.
pub(super) struct HttpSource {
    web: Web,
    key: Arc<Option<VerifyingKey>>,
}

/// The answer as it stands in JSON.
#[derive(Deserialize)]
struct Written {
    #[serde(default)]
    peers: Ids,
    #[serde(default)]
    relays: Ids,
    #[serde(default)]
    issued: u64,
}

/// Scores by peer id as they stand in JSON. A name that is no peer id takes no memory, and those above the
/// most are left out.
#[derive(Default)]
pub(super) struct Ids(pub(super) HashMap<multiaddr::PeerId, i32>);

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Ids::default())
    }
}

impl<'de> Visitor<'de> for Ids {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("scores by peer id")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some((name, score)) = map.next_entry::<String, i32>()? {
            if let Ok(id) = name.parse()
                && self.0.len() < MAX_SCORES
            {
                self.0.insert(id, bounded(score));
            }
        }
        Ok(self)
    }
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
        let key = Arc::new(key);
        Ok(Self { web, key })
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
        let answer = answer.map_err(|error| failed(&error.to_string()))?;
        match answer.status {
            StatusCode::NOT_MODIFIED => return Ok(None),
            StatusCode::OK => {}
            other => return Err(failed(&format!("its status is {}", other.as_u16()))),
        }
        read_aside(answer, self.key.clone()).await.map(Some)
    }
}

/// Reads an answer beside the tasks of the runtime, because a long one takes seconds.
async fn read_aside(answer: Answer, key: Arc<Option<VerifyingKey>>) -> Result<Scores, Error> {
    let read = task::spawn_blocking(move || read(&answer, key.as_ref().as_ref()));
    read.await.map_err(|error| failed(&error.to_string()))?
}

/// Reads an answer, which has to be signed if there is a key. What is signed has a date.
fn read(answer: &Answer, key: Option<&VerifyingKey>) -> Result<Scores, Error> {
    if let Some(key) = key {
        let signature = answer.headers.get(SIGNATURE);
        let signature = signature.and_then(|text| signed(text.as_bytes()));
        let signature = signature.ok_or_else(|| failed("it is not signed"))?;
        let verified = key.verify_strict(&answer.body, &signature);
        verified.map_err(|_| failed("its signature is wrong"))?;
    }
    let written: Written = serde_json::from_slice(&answer.body)
        // The message of the error could repeat the answer.
        .map_err(|_| failed("its answer is malformed"))?;
    let version = answer.headers.get(header::ETAG);
    let version = version.and_then(|text| text.to_str().ok());
    // Nobody vouches for the date of an answer that is not signed, and TLS says that it is new.
    let issued = key.map(|_| time(written.issued).ok_or_else(|| failed("it has no date")));
    Ok(Scores {
        version: version
            .filter(|text| text.len() <= MAX_VERSION)
            .map(str::to_owned),
        issued: issued.transpose()?,
        peers: written.peers.0,
        relays: written.relays.0,
    })
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
        let (peer, relay) = (PeerId::random(), PeerId::random());
        let body = format!(r#"{{"peers":{{"{peer}":-500,"nobody":1}},"relays":{{"{relay}":7}}}}"#);
        let scores = read(&answer(&body, None), None).unwrap();
        assert_eq!(scores.version.as_deref(), Some("\"1\""));
        assert_eq!(scores.issued, None);
        assert_eq!(scores.peers, HashMap::from([(peer, -100)]));
        assert_eq!(scores.relays, HashMap::from([(relay, 7)]));
        for wrong in ["7", r#"{"peers":7}"#] {
            assert!(read(&answer(wrong, None), None).is_err());
        }
        let strangers = (0..1000).map(|n| format!(r#""no-id-{n}":1"#));
        let body = format!(
            r#"{{"peers":{{{}}}}}"#,
            strangers.collect::<Vec<_>>().join(",")
        );
        let scores = read(&answer(&body, None), None).unwrap();
        assert_eq!(
            scores.peers.capacity(),
            0,
            "a name that is no id takes no memory"
        );
    }

    #[test]
    fn a_key_wants_a_signature_and_gives_a_date() {
        let signer = SigningKey::from_bytes(&[7; 32]);
        let other = SigningKey::from_bytes(&[8; 32]);
        let mut config = config("http://a.example");
        assert!(HttpSource::new(&config).is_err(), "anybody could answer");
        config.key = Some(BASE64URL_NOPAD.encode(signer.verifying_key().as_bytes()));
        let source = HttpSource::new(&config).unwrap();
        let read = |issued: u64, signer: Option<&SigningKey>| {
            let body = format!(r#"{{"issued":{issued}}}"#);
            let scores = read(&answer(&body, signer), source.key.as_ref().as_ref());
            scores.map(|scores| scores.issued)
        };
        assert!(read(10, None).is_err() && read(10, Some(&other)).is_err());
        assert_eq!(read(10, Some(&signer)).unwrap(), time(10));
        assert!(read(u64::MAX, Some(&signer)).is_err());
        config.key = Some("short".into());
        assert!(HttpSource::new(&config).is_err());
    }

    #[tokio::test]
    async fn a_long_answer_keeps_no_other_task_waiting() {
        let peers = (0..50_000).map(|_| format!(r#""{}":1"#, PeerId::random()));
        let body = format!(r#"{{"peers":{{{}}}}}"#, peers.collect::<Vec<_>>().join(","));
        let read = tokio::spawn(read_aside(answer(&body, None), Arc::default()));
        // The runtime has one thread. If it did the reading, this task would have a turn before and after.
        let mut turns = 0;
        while !read.is_finished() {
            task::yield_now().await;
            turns += 1;
        }
        let scores = read.await.unwrap().unwrap();
        assert_eq!(scores.peers.len(), 50_000);
        assert!(turns > 100, "{turns}");
    }
}
