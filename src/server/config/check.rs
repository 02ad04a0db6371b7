//! What the types of the settings cannot express: texts that are read, and what has to be so together.

use libp2p::Multiaddr;

use super::ServerConfig;
use crate::{
    config::options::Range,
    core::{
        prefix::Prefix,
        scope::{Scope, scope},
    },
    error::{Error, ErrorKind},
    ticket::relay_id,
};

impl ServerConfig {
    /// Checks what the types cannot express.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] naming the first field that is out of its range.
    /// [`ErrorKind::InvalidAddress`] if an address to announce is not a multiaddress.
    pub fn validate(&self) -> Result<(), Error> {
        match self.faults().into_iter().next() {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }

    /// Returns everything that [`validate`](Self::validate) refuses.
    pub(crate) fn faults(&self) -> Vec<Error> {
        let mut faults = Vec::new();
        self.check_ranges(&mut faults);
        let mut check = |holds: bool, field: &str, range: &str| {
            if !holds {
                let message = format!("{field}: must be {range}");
                faults.push(Error::new(ErrorKind::InvalidConfig, message));
            }
        };
        let turn = &self.turn;
        check(
            turn.secret.as_ref().is_none_or(|secret| !secret.is_empty()),
            "turn.secret",
            "some text, or left out",
        );
        check(
            !turn.realm.contains(char::is_control),
            "turn.realm",
            "text without control characters",
        );
        check(
            turn.external_ip
                .is_none_or(|ip| scope(ip) != Scope::Forbidden),
            "turn.external_ip",
            "an address that clients can send to",
        );
        check(
            self.external_ip
                .is_none_or(|ip| scope(ip) != Scope::Forbidden),
            "external_ip",
            "an address that clients can send to",
        );
        check(
            self.port == 0 || self.stun_alternate() != Some(self.port),
            "stun.alternate_port",
            "another port than `port`",
        );
        let tls = &self.tls;
        check(
            tls.cert.is_some() == tls.key.is_some(),
            if tls.cert.is_some() {
                "tls.key"
            } else {
                "tls.cert"
            },
            "given, because the other file is",
        );
        check(
            tls.cert.is_none() || tls.domains.is_empty(),
            "tls.domains",
            "left out where there is a tls.cert",
        );
        check(
            tls.domains.is_empty() || self.data.is_some(),
            "data",
            "a folder for the account and the certificate of tls.domains",
        );
        check(
            tls.directory.starts_with("https://"),
            "tls.directory",
            "an address with https",
        );
        let is_mail = |to: &String| to.contains('@') && to.chars().all(|c| c.is_ascii_graphic());
        check(
            tls.contact.as_ref().is_none_or(is_mail),
            "tls.contact",
            "a mail address",
        );
        check(
            self.reputation.is_sound(),
            "reputation",
            "thresholds from -1000 to 100",
        );
        check(
            self.traffic.is_sound(),
            "traffic.peer_quota",
            "like 10GB/day, 1TB/month, or both with a comma",
        );
        let ports = Range {
            name: "turn.first_port",
            least: 1,
            most: turn.last_port.into(),
            unit: "(turn.last_port)",
        };
        faults.extend(ports.check(turn.first_port.into()).err());
        faults.extend(self.tls.subjects().err());
        faults.extend(self.announced().err());
        faults.extend(self.successors().err());
        faults.extend(self.fleet.parsed().err());
        faults.extend(self.trusted_proxies().err());
        faults.extend(self.naming_proxies().err());
        faults
    }

    /// Returns the prefixes of the proxies whose `X-Forwarded-For` is trusted.
    pub(crate) fn trusted_proxies(&self) -> Result<Vec<Prefix>, Error> {
        prefixes("http.trusted_proxies", &self.http.trusted_proxies)
    }

    /// Returns the prefixes of the proxies that name their clients by PROXY protocol.
    pub(crate) fn naming_proxies(&self) -> Result<Vec<Prefix>, Error> {
        prefixes("proxy_protocol", &self.proxy_protocol)
    }

    /// Returns the relays that clients may move to.
    pub(crate) fn successors(&self) -> Result<Vec<Multiaddr>, Error> {
        let parse = |text: &String| {
            let address = text.parse().ok();
            let named = address.filter(|address| relay_id(address).is_some());
            named.ok_or_else(|| {
                let message = format!(
                    "drain.to: `{text}` is not a multiaddress that ends in /p2p/ and a peer id"
                );
                Error::new(ErrorKind::InvalidAddress, message)
            })
        };
        self.drain.to.iter().map(parse).collect()
    }

    pub(crate) fn announced(&self) -> Result<Vec<Multiaddr>, Error> {
        let parse = |text: &String| {
            text.parse().map_err(|error| {
                Error::new(
                    ErrorKind::InvalidAddress,
                    format!("announce: `{text}` is not a multiaddress: {error}"),
                )
            })
        };
        self.announce.iter().map(parse).collect()
    }
}

fn prefixes(field: &str, texts: &[String]) -> Result<Vec<Prefix>, Error> {
    let parse = |text: &String| {
        text.parse().map_err(|_| {
            let message = format!("{field}: `{text}` is not a prefix of addresses");
            Error::new(ErrorKind::InvalidConfig, message)
        })
    };
    texts.iter().map(parse).collect()
}
