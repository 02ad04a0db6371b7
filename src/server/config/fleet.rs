//! The servers that are one for their clients.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, ErrorKind},
    server::web::shown,
};

/// The servers that are one for their clients: a peer that one of them knows is found through each of
/// them, and a room is the same at all. They share what they know in the buckets of NATS JetStream.
/// `docs/fleet.md` says how to run them.
///
/// ```
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.fleet.servers = vec!["tls://nats.example.org".into()];
/// config.fleet.credentials = Some("/etc/throughline/relay.creds".into());
/// ```
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct FleetConfig {
    /// The URLs of servers of one NATS cluster, such as `nats://user:password@a.example:4222`, or
    /// `tls://a.example` to insist on TLS. 0 to 16. Default none: the server is alone. The user and the
    /// password are the same for all, so one URL that has them is enough. The port is 4222 by default.
    pub servers: Vec<String>,
    /// The file with the JWT and the key of the user, as `nsc generate creds` writes it. Default none.
    pub credentials: Option<PathBuf>,
    /// A PEM file of certificate authorities to trust for TLS, besides the public ones. Default none.
    pub ca: Option<PathBuf>,
    /// On how many servers of the cluster each bucket is kept, 1 to 5. Default 3: one server may fail.
    /// It counts when the first server of the fleet makes the buckets. A NATS server that is alone
    /// needs 1.
    pub replicas: u8,
}

/// A URL may hold a password.
impl fmt::Debug for FleetConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let servers: Vec<_> = self.servers.iter().map(|url| shown(url)).collect();
        f.debug_struct("FleetConfig")
            .field("servers", &servers)
            .field("credentials", &self.credentials)
            .field("ca", &self.ca)
            .field("replicas", &self.replicas)
            .finish()
    }
}

impl Default for FleetConfig {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            credentials: None,
            ca: None,
            replicas: 3,
        }
    }
}

/// The name and the password of a user.
pub(crate) type User = (String, String);

impl FleetConfig {
    /// Returns the URLs without the user, who is in none of the client's logs then, and the user.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] if a URL cannot be read. The message does not show it.
    pub(crate) fn parsed(&self) -> Result<(Vec<String>, Option<User>), Error> {
        let mut user = None;
        let parse = |text: &String| {
            let url: async_nats::ServerAddr = text.parse().ok()?;
            if !matches!(url.scheme(), "nats" | "tls") || url.host().is_empty() {
                return None;
            }
            if let Some(name) = url.username() {
                let password = decoded(url.password().unwrap_or_default())?;
                user.get_or_insert((decoded(name)?, password));
            }
            let host = match url.host() {
                host if host.contains(':') => format!("[{host}]"),
                host => host.to_owned(),
            };
            Some(format!("{}://{host}:{}", url.scheme(), url.port()))
        };
        let urls: Option<_> = self.servers.iter().map(parse).collect();
        let invalid = "fleet.servers: must be nats:// or tls:// URLs";
        let urls = urls.ok_or_else(|| Error::new(ErrorKind::InvalidConfig, invalid))?;
        Ok((urls, user))
    }
}

/// Decodes what has a percent sign before it (RFC 3986 section 2.1).
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        bytes.push(match first {
            b'%' => {
                let (digits, after) = after.split_at_checked(2)?;
                rest = after;
                let digit = |digit: u8| char::from(digit).to_digit(16);
                let value = digit(digits[0])? * 16 + digit(digits[1])?;
                u8::try_from(value).ok()?
            }
            byte => *byte,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_read_from_a_url_and_shown_nowhere() {
        let servers = [
            "nats://u%40x:s%3Acret@a.example",
            "tls://[::1]:7",
            "b.example:9",
        ];
        let mut fleet = FleetConfig {
            servers: servers.map(str::to_owned).to_vec(),
            ..FleetConfig::default()
        };
        let (urls, user) = fleet.parsed().unwrap();
        assert_eq!(
            urls,
            [
                "nats://a.example:4222",
                "tls://[::1]:7",
                "nats://b.example:9"
            ]
        );
        assert_eq!(user, Some(("u@x".into(), "s:cret".into())));
        let text = format!("{fleet:?}");
        assert!(
            !text.contains("cret") && text.contains("(hidden)@a.example"),
            "{text}"
        );
        for wrong in [
            "",
            "http://a.example",
            "nats://",
            "ws://a.example",
            "nats://u:%4@a",
        ] {
            fleet.servers = vec![wrong.into()];
            let error = fleet.parsed().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidConfig, "{wrong}");
        }
        assert_eq!(decoded("a%zz"), None);
    }
}
