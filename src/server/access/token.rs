//! The operator's tokens: JWTs (RFC 7519) that are signed with Ed25519 (RFC 8037).
//!
//! A token says who may use the server, for how long and how much. Any program that has the key can
//! make tokens, so an application's own back end does not need this library.

use std::{
    io,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use data_encoding::{BASE64, BASE64URL_NOPAD, HEXLOWER};
use ed25519_dalek::{SigningKey, VerifyingKey};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use libp2p::PeerId;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{amount, meter::Limits};
use crate::{
    core::access::MAX_TOKEN,
    error::{Error, ErrorKind},
    identity::PeerId as PublicPeerId,
    native::secret::{self, Fault as FileFault},
};

/// By how much the clock of the program that made a token may be ahead of ours.
const SKEW: u64 = 60;
/// The longest name in a token, in bytes.
const MAX_NAME: usize = 256;
/// The longest id of a token, in bytes. It becomes a part of TURN user names.
const MAX_ID: usize = 64;
/// The longest file of a key.
const MAX_KEY_FILE: u64 = 4096;
/// What stands before the 32 bytes of an Ed25519 key in PKCS #8 (RFC 8410 section 7).
const PKCS8: [u8; 16] = [
    0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20,
];
const PEM: [&str; 2] = ["-----BEGIN PRIVATE KEY-----", "-----END PRIVATE KEY-----"];

/// What a token that is valid says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Claims {
    pub(crate) name: String,
    /// It is what a revocation names.
    pub(crate) id: Option<String>,
    pub(crate) ends: SystemTime,
    pub(crate) limits: Limits,
}

/// Why a token is not accepted. The names are labels of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is no JWT, has no signature by one of our keys, or lacks a claim.
    Invalid,
    Expired,
    /// It is for another peer, or for another relay.
    NotForUs,
    Revoked,
}

impl Fault {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Invalid => "invalid_token",
            Self::Expired => "expired_token",
            Self::NotForUs => "foreign_token",
            Self::Revoked => "revoked_token",
        }
    }
}

/// The claims as they stand in a token. Dates may have fractions (RFC 7519 section 2).
#[derive(Deserialize)]
struct Written {
    sub: String,
    exp: f64,
    nbf: Option<f64>,
    jti: Option<String>,
    aud: Option<Value>,
    peer: Option<String>,
    quota: Option<String>,
    rate: Option<String>,
}

/// The public keys whose tokens count, and the relay that they are for.
pub(crate) struct Verifier {
    keys: Vec<DecodingKey>,
    relay: PeerId,
}

impl Verifier {
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] if one of `keys` is no key that
    /// [`TokenKey::public`] returns.
    pub(crate) fn new(keys: &[String], relay: PeerId) -> Result<Self, Error> {
        let keys = keys.iter().map(|text| key(text));
        let keys = keys.collect::<Result<_, _>>()?;
        Ok(Self { keys, relay })
    }

    /// Checks everything about a token except whether it is revoked.
    pub(crate) fn verify(
        &self,
        token: &str,
        peer: PeerId,
        now: SystemTime,
    ) -> Result<Claims, Fault> {
        // The dates are checked below, by a clock that tests can set.
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.required_spec_claims.clear();
        validation.validate_exp = false;
        validation.validate_aud = false;
        if token.len() > MAX_TOKEN {
            return Err(Fault::Invalid);
        }
        let decoded = |key| jsonwebtoken::decode::<Written>(token, key, &validation).ok();
        let written = self.keys.iter().find_map(decoded);
        self.check(written.ok_or(Fault::Invalid)?.claims, peer, now)
    }

    fn check(&self, written: Written, peer: PeerId, now: SystemTime) -> Result<Claims, Fault> {
        let Written {
            sub,
            exp,
            nbf,
            jti,
            aud,
            peer: bound,
            quota,
            rate,
        } = written;
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let ends = Duration::try_from_secs_f64(exp).map_err(|_| Fault::Invalid)?;
        let ends_at = UNIX_EPOCH.checked_add(ends).ok_or(Fault::Invalid)?;
        if sub.is_empty() || sub.len() > MAX_NAME || !jti.as_deref().is_none_or(is_id) {
            return Err(Fault::Invalid);
        }
        if ends <= now || nbf.is_some_and(|nbf| nbf > (now.as_secs() + SKEW) as f64) {
            return Err(Fault::Expired);
        }
        let is_ours = |text: &str, id: PeerId| text.parse().is_ok_and(|named: PeerId| named == id);
        let bound_elsewhere = bound.is_some_and(|bound| !is_ours(&bound, peer));
        // RFC 7519 section 4.1.3.
        let other_relay = aud.is_some_and(|aud| match aud {
            Value::String(relay) => !is_ours(&relay, self.relay),
            Value::Array(relays) => {
                let mut relays = relays.iter().filter_map(Value::as_str);
                !relays.any(|relay| is_ours(relay, self.relay))
            }
            _ => true,
        });
        if bound_elsewhere || other_relay {
            return Err(Fault::NotForUs);
        }
        // A TURN user name has the id, and so leads to these limits.
        if jti.is_none() && (quota.is_some() || rate.is_some()) {
            return Err(Fault::Invalid);
        }
        // An amount that we cannot read must not mean that there is no limit.
        let quota = quota.map(|text| amount::quota(&text).ok_or(Fault::Invalid));
        let rate = rate.map(|text| amount::rate(&text).ok_or(Fault::Invalid));
        Ok(Claims {
            name: sub,
            id: jti,
            ends: ends_at,
            limits: Limits {
                quota: quota.transpose()?,
                rate: rate.transpose()?,
            },
        })
    }
}

/// Whether this can be the id of a token.
pub(crate) fn is_id(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=MAX_ID).contains(&text.len()) && text.bytes().all(plain)
}

/// Reads a public key.
fn key(text: &str) -> Result<DecodingKey, Error> {
    let bytes = BASE64URL_NOPAD.decode(text.trim().as_bytes()).ok();
    let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
    let sound = bytes.filter(|bytes| {
        let key = VerifyingKey::from_bytes(bytes);
        key.is_ok_and(|key| !key.is_weak())
    });
    let message = format!("access.keys: `{text}` is not a key that `throughline token key` prints");
    let bytes = sound.ok_or_else(|| Error::new(ErrorKind::InvalidConfig, message))?;
    Ok(DecodingKey::from_ed_der(&bytes))
}

/// The operator's key, which signs tokens. Whoever has it can let anybody use the server.
///
/// The file is PKCS #8 in PEM (RFC 8410), which libraries for JWTs read in every language.
///
/// ```no_run
/// use std::time::Duration;
/// use throughline::server::{NewToken, TokenKey};
///
/// # fn main() -> Result<(), throughline::Error> {
/// let key = TokenKey::load_or_create("token-key.pem")?;
/// println!("access.keys = [\"{}\"]", key.public());
/// let month = Duration::from_secs(30 * 24 * 60 * 60);
/// let token = key.sign(&NewToken::new("alice", month))?;
/// # Ok(()) }
/// ```
pub struct TokenKey(SigningKey);

/// What a new token says.
///
/// ```
/// use std::time::Duration;
/// use throughline::server::NewToken;
///
/// let mut token = NewToken::new("alice", Duration::from_secs(3600));
/// token.quota = Some("10GB/day".into());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NewToken {
    /// The holder's name, 1 to 256 bytes.
    pub name: String,
    /// How long the token is valid.
    pub expires: Duration,
    /// The only peer that may use it. Default none: whoever has the token may use it.
    pub peer: Option<PublicPeerId>,
    /// How much may be carried for the holders of all tokens with this name together, such as
    /// `10GB/day`, `1TB/month`, or `10GB/day, 100GB/month`. Default none: no quota.
    pub quota: Option<String>,
    /// How fast that may be, such as `10Mbit`. Default none: no limit.
    pub rate: Option<String>,
}

impl NewToken {
    /// A token for `name` that expires after `expires`, for any peer and without limits.
    pub fn new(name: impl Into<String>, expires: Duration) -> Self {
        Self {
            name: name.into(),
            expires,
            peer: None,
            quota: None,
            rate: None,
        }
    }
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("TokenKey").field(&self.public()).finish()
    }
}

impl TokenKey {
    /// Reads the key at `path`. If there is no file, makes a key that only its owner can read.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the file cannot be read or written, or others can read it.
    /// [`ErrorKind::InvalidIdentity`] if it holds no Ed25519 key.
    pub fn load_or_create(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        match Self::load(path) {
            Err(None) => {}
            Err(Some(error)) => return Err(error),
            Ok(key) => return Ok(key),
        }
        let failed = |fault: FileFault| Error::new(ErrorKind::Io, fault.describe(path));
        let mut seed = [0; 32];
        let filled = getrandom::fill(&mut seed);
        filled.map_err(|error| failed(FileFault::Io(io::Error::other(error))))?;
        let key = Self(SigningKey::from_bytes(&seed));
        let body = BASE64.encode(&key.pkcs8());
        let pem = format!("{}\n{body}\n{}\n", PEM[0], PEM[1]);
        let published = secret::publish(path, pem.as_bytes());
        published.map_err(|error| failed(FileFault::Io(error)))?;
        Ok(key)
    }

    /// Reads the key at `path`. The error is `None` if there is no file.
    fn load(path: &Path) -> Result<Self, Option<Error>> {
        let read = secret::read(path, MAX_KEY_FILE);
        let read = read.map_err(|fault| Error::new(ErrorKind::Io, fault.describe(path)))?;
        let bytes = read.ok_or(None)?;
        let key = str::from_utf8(&bytes).ok().and_then(Self::from_pem);
        let message = format!("{}: not an Ed25519 key in PKCS #8", path.display());
        key.ok_or_else(|| Some(Error::new(ErrorKind::InvalidIdentity, message)))
    }

    fn from_pem(text: &str) -> Option<Self> {
        let body = text.trim().strip_prefix(PEM[0])?.strip_suffix(PEM[1])?;
        let body: String = body.split_whitespace().collect();
        let der = BASE64.decode(body.as_bytes()).ok()?;
        let seed = der.strip_prefix(&PKCS8)?.try_into().ok()?;
        Some(Self(SigningKey::from_bytes(&seed)))
    }

    fn pkcs8(&self) -> Vec<u8> {
        [&PKCS8[..], &self.0.to_bytes()].concat()
    }

    /// Returns the public key, as the setting [`keys`](super::AccessConfig::keys) takes it: the 32
    /// bytes in base64url without padding, like the `x` of a JWK.
    pub fn public(&self) -> String {
        BASE64URL_NOPAD.encode(self.0.verifying_key().as_bytes())
    }

    /// Makes a token. It has a random id, by which it can be revoked.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] if the name, the quota or the rate cannot be used.
    pub fn sign(&self, token: &NewToken) -> Result<String, Error> {
        self.sign_at(token, SystemTime::now())
    }

    fn sign_at(&self, token: &NewToken, now: SystemTime) -> Result<String, Error> {
        let invalid = |what: &str, form: &str| {
            Error::new(ErrorKind::InvalidConfig, format!("{what}: must be {form}"))
        };
        if token.name.is_empty() || token.name.len() > MAX_NAME {
            return Err(invalid("name", "of 1 to 256 bytes"));
        }
        if token
            .quota
            .as_deref()
            .is_some_and(|text| amount::quota(text).is_none())
        {
            return Err(invalid("quota", "like 10GB/day or 1TB/month"));
        }
        if token
            .rate
            .as_deref()
            .is_some_and(|text| amount::rate(text).is_none())
        {
            return Err(invalid("rate", "like 10Mbit"));
        }
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(|error| Error::new(ErrorKind::Io, error.to_string()))?;
        let mut claims = json!({
            "sub": token.name,
            "iat": now.as_secs(),
            "exp": now.saturating_add(token.expires).as_secs(),
            "jti": HEXLOWER.encode(&id),
        });
        let peer = token.peer.map(|peer| peer.to_string());
        let others = [
            ("peer", &peer),
            ("quota", &token.quota),
            ("rate", &token.rate),
        ];
        for (name, value) in others {
            if let Some(value) = value {
                claims[name] = value.as_str().into();
            }
        }
        let key = EncodingKey::from_ed_der(&self.pkcs8());
        jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), &claims, &key)
            .map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    struct Scene {
        key: TokenKey,
        verifier: Verifier,
        relay: PeerId,
        peer: PeerId,
    }

    impl Scene {
        fn new() -> Self {
            let key = TokenKey(SigningKey::from_bytes(&[7; 32]));
            let relay = PeerId::random();
            Self {
                verifier: Verifier::new(&[key.public()], relay).unwrap(),
                key,
                relay,
                peer: PeerId::random(),
            }
        }

        fn sign(&self, claims: &Value) -> String {
            let key = EncodingKey::from_ed_der(&self.key.pkcs8());
            jsonwebtoken::encode(&Header::new(Algorithm::EdDSA), claims, &key).unwrap()
        }

        fn verify(&self, token: &str) -> Result<Claims, Fault> {
            self.verifier.verify(token, self.peer, at(1000))
        }

        fn of(&self, claims: &Value) -> Result<Claims, Fault> {
            self.verify(&self.sign(claims))
        }
    }

    #[test]
    fn a_token_says_what_its_maker_wrote() {
        let scene = Scene::new();
        let mut new = NewToken::new("alice", Duration::from_secs(60));
        new.peer = Some(PublicPeerId(scene.peer));
        new.quota = Some("10GB/day".into());
        new.rate = Some("10Mbit".into());
        let claims = scene.verify(&scene.key.sign_at(&new, at(1000)).unwrap());
        let claims = claims.unwrap();
        assert_eq!((claims.name.as_str(), claims.ends), ("alice", at(1060)));
        assert!(claims.id.is_some_and(|id| id.len() == 32));
        let limits = Limits {
            quota: amount::quota("10GB/day"),
            rate: Some(1_250_000),
        };
        assert_eq!(claims.limits, limits);
        for (edit, field) in [
            (
                (|new| new.name = String::new()) as fn(&mut NewToken),
                "name",
            ),
            (|new| new.quota = Some("much".into()), "quota"),
            (|new| new.rate = Some("fast".into()), "rate"),
        ] {
            let mut new = new.clone();
            edit(&mut new);
            let error = scene.key.sign(&new).unwrap_err();
            assert!(error.message().starts_with(field), "{error}");
        }
    }

    #[test]
    fn a_token_of_anybody_else_is_invalid() {
        let scene = Scene::new();
        let claims = json!({"sub": "a", "exp": 2000});
        let good = scene.sign(&claims);
        assert!(scene.verify(&good).is_ok());
        let other = Scene {
            key: TokenKey(SigningKey::from_bytes(&[8; 32])),
            ..Scene::new()
        };
        let parts: Vec<_> = good.split('.').collect();
        let text = |value: Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let none = text(json!({"alg": "none"}));
        let hmac = Header::new(Algorithm::HS256);
        // The public key is no secret of a MAC.
        let secret = BASE64URL_NOPAD
            .decode(scene.key.public().as_bytes())
            .unwrap();
        let secret = EncodingKey::from_secret(&secret).unwrap();
        let more = text(json!({"sub": "a", "exp": 9000}));
        for forged in [
            other.sign(&claims),
            format!("{none}.{}.", parts[1]),
            format!("{none}.{}.{}", parts[1], parts[2]),
            jsonwebtoken::encode(&hmac, &claims, &secret).unwrap(),
            format!("{}.{more}.{}", parts[0], parts[2]),
            format!("{}.{}.", parts[0], parts[1]),
            format!("{good}.{good}"),
            format!("{good}{}", " ".repeat(MAX_TOKEN)),
            String::new(),
        ] {
            assert_eq!(scene.verify(&forged), Err(Fault::Invalid), "{forged}");
        }
    }

    #[test]
    fn claims_bind_a_token_to_a_time_a_peer_and_a_relay() {
        let scene = Scene::new();
        let of = |claims: Value| scene.of(&claims).map(|claims| claims.ends);
        assert_eq!(
            of(json!({"sub": "a", "exp": 1000.5})),
            Ok(at(1000) + Duration::from_millis(500))
        );
        assert_eq!(of(json!({"sub": "a", "exp": 1000})), Err(Fault::Expired));
        let soon = json!({"sub": "a", "exp": 2000, "nbf": 1060});
        assert_eq!(of(soon), Ok(at(2000)), "clocks differ");
        let later = json!({"sub": "a", "exp": 2000, "nbf": 1061});
        assert_eq!(of(later), Err(Fault::Expired));
        let bound = |peer: &str| of(json!({"sub": "a", "exp": 2000, "peer": peer}));
        assert_eq!(bound(&scene.peer.to_string()), Ok(at(2000)));
        assert_eq!(bound(&scene.relay.to_string()), Err(Fault::NotForUs));
        assert_eq!(bound(""), Err(Fault::NotForUs));
        let meant = |relay: Value| of(json!({"sub": "a", "exp": 2000, "aud": relay}));
        let relay = scene.relay.to_string();
        assert_eq!(meant(json!(relay)), Ok(at(2000)));
        assert_eq!(meant(json!(["another", relay])), Ok(at(2000)));
        for other in [json!("another"), json!([]), json!(7)] {
            assert_eq!(meant(other), Err(Fault::NotForUs));
        }
        for lacking in [
            json!({"sub": "a"}),
            json!({"exp": 2000}),
            json!({"sub": "", "exp": 2000}),
            json!({"sub": "a", "exp": -1}),
            json!({"sub": "a", "exp": 1e300}),
            json!({"sub": "a", "exp": "2000"}),
            json!({"sub": "a", "exp": 2000, "jti": "a:b"}),
            json!({"sub": "a", "exp": 2000, "jti": "b", "quota": "all"}),
            json!({"sub": "a", "exp": 2000, "jti": "b", "rate": 7}),
            json!({"sub": "a", "exp": 2000, "quota": "1GB/day"}),
        ] {
            assert_eq!(of(lacking.clone()), Err(Fault::Invalid), "{lacking}");
        }
    }

    #[test]
    fn a_key_is_kept_in_a_file_for_its_owner() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("key.pem");
        let made = TokenKey::load_or_create(&path).unwrap();
        let read = TokenKey::load_or_create(&path).unwrap();
        assert_eq!(made.public(), read.public());
        assert!(!format!("{made:?}").contains(&BASE64.encode(&made.pkcs8())));
        std::fs::write(&path, "no key").unwrap();
        let error = TokenKey::load_or_create(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidIdentity);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let open = std::fs::Permissions::from_mode(0o644);
            std::fs::set_permissions(&path, open).unwrap();
            let error = TokenKey::load_or_create(&path).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Io);
        }
    }

    #[test]
    fn only_public_keys_are_taken() {
        let key = TokenKey(SigningKey::from_bytes(&[7; 32])).public();
        assert!(Verifier::new(std::slice::from_ref(&key), PeerId::random()).is_ok());
        let weak = BASE64URL_NOPAD.encode(&[0; 32]);
        for wrong in ["", "abc", &key[1..], &weak] {
            let error = Verifier::new(&[wrong.to_owned()], PeerId::random())
                .err()
                .unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        }
    }
}
