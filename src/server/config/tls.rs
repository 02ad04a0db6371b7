//! TLS on the first TCP port.

use std::{num::NonZeroU32, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::nonzero_u32;
use crate::{
    core::subject::Subject,
    error::{Error, ErrorKind},
};

/// TLS on the first TCP port. The certificate is in files, or an authority issues it by ACME
/// (RFC 8555). Without either, there is no TLS.
///
/// ```
/// use throughline::server::ServerConfig;
///
/// let mut config = ServerConfig::default();
/// config.port = 443; // where an authority checks who is there
/// config.data = Some("/var/lib/throughline".into());
/// config.tls.domains = vec!["relay.example.org".into()];
/// config.tls.contact = Some("admin@example.org".into());
/// config.validate()?;
/// # Ok::<(), throughline::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct TlsConfig {
    /// A PEM file of a certificate and of those that lead to its authority. It is read again when it
    /// has changed. Files that cannot be used do not replace the certificate that is served. Default
    /// none.
    pub cert: Option<PathBuf>,
    /// The PEM file of the certificate's private key. Default none.
    pub key: Option<PathBuf>,
    /// Names and IP addresses for which an authority is asked for a certificate, 0 to 16. The authority
    /// connects to TCP port 443 of each of them, which has to lead to the first port of this server.
    /// Needs [`data`](super::ServerConfig::data). For an address, the profile `shortlived` is asked for if the
    /// authority has it. Default none.
    pub domains: Vec<String>,
    /// The mail address for the authority, to which it may write about the certificate. Default none.
    pub contact: Option<String>,
    /// The directory of the authority, 1 to 2048 bytes. Whoever names domains agrees to its terms of
    /// service. Default Let's Encrypt.
    pub directory: String,
    /// A PEM file of certificate authorities to trust for the directory, in addition to the public ones
    /// of the web. Default none.
    pub directory_ca: Option<PathBuf>,
    /// TLS handshakes per second that one IPv4 address, or one IPv6 /64, may begin on average. In a
    /// burst, it may begin twice as many. Default 50, which is enough for an office behind one address.
    pub handshakes_per_source: NonZeroU32,
    /// TLS handshakes per second that all sources may begin together. Default 1000, about a core.
    pub handshakes: NonZeroU32,
}

/// The directory of Let's Encrypt.
const LETS_ENCRYPT: &str = "https://acme-v02.api.letsencrypt.org/directory";

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            cert: None,
            key: None,
            domains: Vec::new(),
            contact: None,
            directory: LETS_ENCRYPT.to_owned(),
            directory_ca: None,
            handshakes_per_source: nonzero_u32(50),
            handshakes: nonzero_u32(1000),
        }
    }
}

impl TlsConfig {
    /// Whom a certificate is ordered for.
    pub(crate) fn subjects(&self) -> Result<Vec<Subject>, Error> {
        let parse = |text: &String| {
            text.parse().map_err(|_| {
                let message =
                    format!("tls.domains: `{text}` is neither a name nor an address of a host");
                Error::new(ErrorKind::InvalidConfig, message)
            })
        };
        self.domains.iter().map(parse).collect()
    }
}
