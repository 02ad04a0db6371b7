//! Credentials of the TURN server: a user name, and a password that is made from the server's
//! secret.
//!
//! A user name is `expiry:id`, with the expiry in seconds since 1970. Its password is the HMAC-SHA1
//! of the user name, in base64. Whoever has the secret can make credentials, and nobody has to keep
//! a list.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use data_encoding::{BASE64, HEXLOWER};

use crate::{
    core::{access::TurnAccess, quota::network, scope::is_global},
    error::{Error, ErrorKind},
    native::secret::{self, Fault},
};

/// How long a nonce may be used. After that, the server answers 438 (RFC 8489 section 9.2.5).
const NONCE: Duration = Duration::from_secs(60 * 60);

/// How long the credentials of an admitted peer last. Clients renew them sooner.
const ACCESS: Duration = Duration::from_secs(60 * 60);

/// The length of a secret that is made here, in bytes.
const SECRET: usize = 32;

/// The file of the secret in the data directory.
const SECRET_FILE: &str = "turn-secret";

/// The longest file of a secret that is read.
const MAX_SECRET_FILE: u64 = 4096;

/// Returns the secret of `directory`. It is made on first use, and only its owner can read it.
/// Without a directory, a fresh secret is returned.
///
/// # Errors
/// [`ErrorKind::Io`] if the file cannot be read or written, if others can read or replace it, or if
/// there is no randomness.
pub fn turn_secret(directory: Option<&Path>) -> Result<String, Error> {
    let fresh = || {
        let mut bytes = [0; SECRET];
        match getrandom::fill(&mut bytes) {
            Ok(()) => Ok(HEXLOWER.encode(&bytes)),
            Err(error) => Err(Error::new(ErrorKind::Io, error.to_string())),
        }
    };
    let Some(directory) = directory else {
        return fresh();
    };
    secret::check_directory(directory)
        .map_err(|fault| Error::new(ErrorKind::Io, fault.describe(directory)))?;
    let path = directory.join(SECRET_FILE);
    let failed = |fault: Fault| Error::new(ErrorKind::Io, fault.describe(&path));
    let read = || secret::read(&path, MAX_SECRET_FILE).map_err(failed);
    let bytes = match read()? {
        Some(bytes) => bytes,
        None => match secret::publish(&path, (fresh()? + "\n").as_bytes()) {
            // Another program was faster, so its secret counts.
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(failed(Fault::Io(error)));
            }
            _ => read()?.unwrap_or_default(),
        },
    };
    match str::from_utf8(&bytes).unwrap_or_default().trim() {
        "" => Err(failed(Fault::Io(io::Error::other(
            "the file holds no secret",
        )))),
        secret => Ok(secret.to_owned()),
    }
}

/// A user name and its password.
///
/// ```no_run
/// use throughline::{TurnServer, server::Server};
///
/// /// The server's own TURN, as a connector takes it.
/// fn turn(server: &Server) -> Option<TurnServer> {
///     let credentials = server.turn_credentials()?;
///     Some(TurnServer {
///         url: server.turn_urls().first()?.clone(),
///         username: credentials.username.clone(),
///         credential: credentials.credential.clone(),
///     })
/// }
/// ```
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TurnCredentials {
    /// `expiry:id`.
    pub username: String,
    /// The password. Never printed by `Debug`.
    pub credential: String,
}

impl fmt::Debug for TurnCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TurnCredentials")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// What admitted peers get for the TURN server.
pub(crate) struct TurnOffer {
    /// Its ports over UDP and over TCP.
    pub(crate) ports: [u16; 2],
    pub(crate) authority: Arc<Authority>,
}

impl TurnOffer {
    /// Makes credentials for `id`, who is admitted for as long as `admitted` says.
    pub(crate) fn issue(&self, id: &str, admitted: Option<Duration>) -> TurnAccess {
        let lasts = admitted.map_or(ACCESS, |admitted| admitted.min(ACCESS));
        let credentials = self.authority.issue(id, lasts, SystemTime::now());
        let [udp, tcp] = self.ports;
        TurnAccess {
            udp,
            tcp,
            username: credentials.username,
            credential: credentials.credential,
            lasts,
        }
    }
}

/// Makes and checks credentials and nonces.
pub(crate) struct Authority {
    secret: String,
    /// The key of nonces and of page users. It is new at each start.
    key: [u8; SECRET],
    crypto: str0m::crypto::CryptoProvider,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Authority {
    pub(crate) fn new(secret: &str) -> Result<Self, Error> {
        let mut key = [0; SECRET];
        getrandom::fill(&mut key).map_err(|error| Error::new(ErrorKind::Io, error.to_string()))?;
        Ok(Self {
            secret: secret.to_owned(),
            key,
            crypto: str0m::crypto::from_feature_flags(),
        })
    }

    fn hmac(&self, key: &[u8], payloads: &[&[u8]]) -> [u8; 20] {
        self.crypto.sha1_hmac_provider.sha1_hmac(key, payloads)
    }

    /// Makes credentials for `id` that expire after `lifetime`.
    pub(crate) fn issue(&self, id: &str, lifetime: Duration, now: SystemTime) -> TurnCredentials {
        let expiry = seconds(now).saturating_add(lifetime.as_secs());
        let username = format!("{expiry}:{id}");
        TurnCredentials {
            credential: self.password(&username),
            username,
        }
    }

    /// Returns the id of the user for a page at `source`. There is one id for each IPv4 address or
    /// IPv6 /64, so that loading the page again and again brings no further quota. Without the
    /// server's key, nobody can tell the address from the id.
    ///
    /// A source that is not global may be a proxy, whose clients must not share a quota. So each
    /// request from there gets its own id.
    pub(crate) fn page_user(&self, source: IpAddr) -> String {
        let tag = match is_global(source) {
            true => self.hmac(&self.key, &[b"page", &octets(network(source))]),
            false => rand::random(),
        };
        format!("page-{}", HEXLOWER.encode(&tag[..8]))
    }

    /// Returns the password of a user, or `None` if the user name is malformed or has expired.
    pub(crate) fn check(&self, username: &str, now: SystemTime) -> Option<String> {
        let (expiry, _) = username.split_once(':')?;
        let ended = expiry.parse::<u64>().ok()? <= seconds(now);
        (!ended).then(|| self.password(username))
    }

    /// Returns the password of a user, whether or not it has expired.
    pub(super) fn password(&self, username: &str) -> String {
        BASE64.encode(&self.hmac(self.secret.as_bytes(), &[username.as_bytes()]))
    }

    /// Makes a nonce that only `client` can use. The server keeps no state for it.
    pub(crate) fn nonce(&self, client: SocketAddr, now: SystemTime) -> String {
        self.nonce_of(client, seconds(now))
    }

    fn nonce_of(&self, client: SocketAddr, made: u64) -> String {
        let ip = octets(client.ip());
        let (port, time) = (client.port().to_be_bytes(), made.to_be_bytes());
        let tag = self.hmac(&self.key, &[&time, &ip, &port]);
        HEXLOWER.encode(&time) + &HEXLOWER.encode(&tag[..12])
    }

    /// Whether `nonce` was made for `client` and may still be used.
    pub(crate) fn is_fresh(&self, nonce: &str, client: SocketAddr, now: SystemTime) -> bool {
        let made = nonce
            .get(..16)
            .and_then(|hex| u64::from_str_radix(hex, 16).ok());
        made.is_some_and(|made| {
            let age = seconds(now).checked_sub(made);
            age.is_some_and(|age| age <= NONCE.as_secs()) && self.nonce_of(client, made) == nonce
        })
    }
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// The password is what `echo -n 1433895918:user | openssl dgst -sha1 -hmac north -binary |
    /// base64` prints.
    #[test]
    fn passwords_are_the_same_as_those_of_other_servers() {
        let authority = Authority::new("north").unwrap();
        let password = authority
            .check("1433895918:user", at(1_433_895_917))
            .unwrap();
        assert_eq!(password, PASSWORD);
        assert_eq!(authority.check("1433895918:user", at(1_433_895_918)), None);
    }

    const PASSWORD: &str = "/gk4t5tUc08OpM3NjrVjHSFVNmY=";

    #[test]
    fn issued_credentials_expire_after_their_lifetime() {
        let authority = Authority::new("s").unwrap();
        let issued = authority.issue("ann", HOUR, at(1000));
        assert_eq!(issued.username, "4600:ann");
        assert_eq!(
            authority.check(&issued.username, at(4599)),
            Some(issued.credential.clone())
        );
        assert_eq!(authority.check(&issued.username, at(4600)), None);
        for stranger in [
            "",
            "ann",
            ":ann",
            "x:ann",
            "-1:ann",
            "99999999999999999999999:ann",
        ] {
            assert_eq!(authority.check(stranger, at(0)), None, "{stranger}");
        }
        assert!(!format!("{issued:?}").contains(&issued.credential));
    }

    #[test]
    fn pages_of_one_network_share_a_user() {
        let (authority, other) = (Authority::new("s").unwrap(), Authority::new("s").unwrap());
        let user = |ip: &str| authority.page_user(ip.parse().unwrap());
        assert_eq!(user("192.0.2.1"), user("::ffff:192.0.2.1"));
        assert_ne!(user("192.0.2.1"), user("192.0.2.2"));
        assert_eq!(user("2001:db8::1"), user("2001:db8::ffff:1"));
        assert_ne!(user("2001:db8::1"), user("2001:db8:0:1::1"));
        let of_other = other.page_user("192.0.2.1".parse().unwrap());
        assert_ne!(user("192.0.2.1"), of_other, "each server has its own key");
        for proxy in ["127.0.0.1", "10.0.0.1", "::1"] {
            assert_ne!(user(proxy), user(proxy), "{proxy}");
        }
        assert_eq!(user("192.0.2.1").len(), "page-".len() + 16);
    }

    #[test]
    fn a_nonce_is_valid_for_one_client_and_one_hour() {
        let authority = Authority::new("s").unwrap();
        let client = "192.0.2.1:5".parse().unwrap();
        let nonce = authority.nonce(client, at(1000));
        assert!(authority.is_fresh(&nonce, client, at(4600)));
        assert!(!authority.is_fresh(&nonce, client, at(4601)));
        assert!(!authority.is_fresh(&nonce, client, at(999)));
        assert!(!authority.is_fresh(&nonce, "192.0.2.1:6".parse().unwrap(), at(1000)));
        for forged in [
            "",
            "é",
            &nonce[..30],
            &nonce.to_uppercase(),
            "00000000000003e8",
        ] {
            assert!(!authority.is_fresh(forged, client, at(1000)), "{forged}");
        }
    }

    #[test]
    fn the_secret_is_kept_and_only_its_owner_may_read_it() {
        let home = tempfile::tempdir().unwrap();
        let secret = turn_secret(Some(home.path())).unwrap();
        assert_eq!(secret.len(), 2 * SECRET);
        assert_eq!(turn_secret(Some(home.path())).unwrap(), secret);
        assert_ne!(turn_secret(None).unwrap(), secret);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let mode = std::fs::metadata(home.path().join(SECRET_FILE)).unwrap();
            assert_eq!(mode.permissions().mode() & 0o777, 0o600);
            let open = std::fs::Permissions::from_mode(0o644);
            std::fs::set_permissions(home.path().join(SECRET_FILE), open).unwrap();
            let error = turn_secret(Some(home.path())).unwrap_err();
            assert!(error.message().contains("chmod 600"), "{error}");
            let private = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(home.path().join(SECRET_FILE), private).unwrap();
            let shared = std::fs::Permissions::from_mode(0o770);
            std::fs::set_permissions(home.path(), shared).unwrap();
            let error = turn_secret(Some(home.path())).unwrap_err();
            assert!(error.message().contains("chmod go-w"), "{error}");
            let private = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(home.path(), private).unwrap();
        }
        std::fs::write(home.path().join(SECRET_FILE), "\n").unwrap();
        assert_eq!(
            turn_secret(Some(home.path())).unwrap_err().kind(),
            ErrorKind::Io
        );
    }
}
