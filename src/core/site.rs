//! What a user writes to name a relay, and where the relay then says of itself how it is reached.
//!
//! A text is a multiaddress, or it names the *site* of a relay: a host name, a URL, a host with a port, or
//! an IP address, with `/p2p/<id>` behind it if only that relay will do. The profile of the relay
//! ([`profile`]) is at the site. Over https, the certificate proves the name. Without it, nothing does, so
//! that a name needs https, and only a user may name an IP address without it.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use multiaddr::{Multiaddr, PeerId};

use super::{
    address::is_host_name,
    dial::{Barred, Policy, is_localhost},
    profile,
    scope::{Scope, scope},
    websocket_address::authority,
};

/// The port of a relay on this machine for which none is named: the first port of `throughline serve`.
const LOCAL_PORT: u16 = 4001;

/// A text that names a relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RelayText {
    Site(Site),
    Address(Multiaddr),
}

/// Where a relay says of itself how it is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Site {
    pub(crate) is_secure: bool,
    /// A name in lower case, or an address. An IPv6 address has no brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The only relay that will do, if there is one.
    pub(crate) pin: Option<PeerId>,
}

/// Who has named a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The user, in the configuration.
    User,
    /// A ticket, or another stranger.
    Stranger,
}

/// Why nothing was learnt from a site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Barred(Barred),
    /// A stranger has named a site without https.
    Insecure,
    /// The request failed. The text says how.
    Failed(String),
    TimedOut,
    Status(u16),
    Redirected,
    TooLong,
    /// What came is no profile. The text says why.
    Malformed(String),
    WrongPeer(PeerId),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Barred(why) => why.fmt(f),
            Self::Insecure => f.write_str("not asked: only its owner may name a relay without https"),
            Self::Failed(why) => write!(f, "{why}; check the name, and that the relay runs"),
            Self::TimedOut => f.write_str("no answer in time; check that the relay runs"),
            Self::Status(404) => f.write_str(
                "the server answered with status 404; check that it is a relay of `throughline serve`",
            ),
            Self::Status(status) => write!(f, "the server answered with status {status}"),
            Self::Redirected => f.write_str("the server redirects; name the host where the relay is"),
            Self::TooLong => f.write_str("the answer is too long"),
            Self::Malformed(why) => {
                write!(f, "the answer is not that of a relay: {why}; check the name")
            }
            Self::WrongPeer(peer) => write!(f, "another relay is there: {peer}"),
        }
    }
}

impl RelayText {
    /// The site, if the text names one.
    pub(crate) fn into_site(self) -> Option<Site> {
        match self {
            Self::Site(site) => Some(site),
            Self::Address(_) => None,
        }
    }
}

/// Reads a text.
///
/// # Errors
/// Says what is wrong with it.
impl FromStr for RelayText {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            let address = text.parse::<Multiaddr>();
            let address = address.map_err(|error| format!("is not a multiaddress: {error}"))?;
            return Ok(Self::Address(address));
        }
        let (rest, pin) = match text.split_once("/p2p/") {
            Some((rest, pin)) => {
                let pin = pin.parse().map_err(|_| "does not end in a peer id")?;
                (rest, Some(pin))
            }
            None => (text, None),
        };
        let (scheme, rest) = match rest.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, rest),
        };
        let (host, port) = host_and_port(rest.strip_suffix('/').unwrap_or(rest))?;
        let ip = host.parse::<IpAddr>().ok();
        if ip.is_some_and(|ip| scope(ip) == Scope::Forbidden) {
            return Err("is link-local, multicast, reserved or for metadata".to_owned());
        }
        let is_local = is_of_this_machine(&host);
        let (is_secure, usual) = match scheme {
            Some("https") => (true, HTTPS_PORT),
            Some("http") if ip.is_some() || is_local => (false, 80),
            Some("http") => return Err("needs https, because it is a name".to_owned()),
            Some(_) => return Err("begins with another scheme than https".to_owned()),
            None if is_local => (false, LOCAL_PORT),
            None => (true, HTTPS_PORT),
        };
        Ok(Self::Site(Site {
            is_secure,
            host,
            port: port.unwrap_or(usual),
            pin,
        }))
    }
}

/// The port of https, which texts leave out.
pub(crate) const HTTPS_PORT: u16 = 443;

/// The longest time for an answer. A relay that needs longer is no help to anybody.
pub(crate) const LONGEST: Duration = Duration::from_secs(10);

fn host_and_port(text: &str) -> Result<(String, Option<u16>), String> {
    const HOST: &str = "has no host: a name, an IPv4 address, or an IPv6 address";
    if let Ok(ip) = text.parse::<Ipv6Addr>() {
        return Ok((ip.to_string(), None));
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']').ok_or(HOST)?;
            let ip: Ipv6Addr = host.parse().map_err(|_| HOST)?;
            let port = rest.strip_prefix(':');
            if port.is_none() && !rest.is_empty() {
                return Err(HOST.to_owned());
            }
            (ip.to_string(), port)
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host.to_ascii_lowercase(), Some(port)),
            None => (text.to_ascii_lowercase(), None),
        },
    };
    if host.parse::<IpAddr>().is_err() && (!is_host_name(&host) || host.ends_with('.')) {
        return Err(HOST.to_owned());
    }
    let port = match port {
        None => None,
        Some(port) => {
            let digits = port.bytes().all(|b| b.is_ascii_digit());
            let port = port.parse().ok().filter(|port| digits && *port != 0);
            Some(port.ok_or("has no port from 1 to 65535 after the colon")?)
        }
    };
    Ok((host, port))
}

/// Whether a host is this machine.
fn is_of_this_machine(host: &str) -> bool {
    match host.parse() {
        Ok(ip) => scope(ip) == Scope::Loopback,
        Err(_) => is_localhost(host),
    }
}

impl Site {
    /// The URL of the profile.
    pub(crate) fn url(&self) -> String {
        let scheme = if self.is_secure { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), profile::PATH)
    }

    /// The host with its port, as in a request.
    pub(crate) fn authority(&self) -> String {
        let usual = if self.is_secure { HTTPS_PORT } else { 80 };
        let whole = authority(&self.host, self.port);
        match self.port == usual {
            true => whole[..whole.rfind(':').unwrap_or(whole.len())].to_owned(),
            false => whole,
        }
    }

    /// Checks whether the site may be asked, as far as this is known before its name is resolved.
    ///
    /// # Errors
    /// Says why it may not.
    pub(crate) fn check(&self, by: By, policy: &Policy) -> Result<(), Fault> {
        if by == By::User {
            return Ok(());
        }
        if !self.is_secure {
            return Err(Fault::Insecure);
        }
        match self.host.parse() {
            Ok(ip) => self.check_ip(ip, by, policy),
            Err(_) if is_localhost(&self.host) => Err(Fault::Barred(Barred::Chosen)),
            Err(_) => Ok(()),
        }
    }

    /// Checks whether the site may be asked at `ip`, to which its name leads.
    ///
    /// # Errors
    /// Says why it may not.
    pub(crate) fn check_ip(&self, ip: IpAddr, by: By, policy: &Policy) -> Result<(), Fault> {
        // The user has named this very address, or this machine.
        let is_users = by == By::User && scope(ip) != Scope::Forbidden;
        let is_named = self.host.parse::<IpAddr>().is_ok() || is_localhost(&self.host);
        if is_users && is_named {
            return Ok(());
        }
        let to = SocketAddr::new(ip, self.port);
        policy.allows_named(to).map_err(Fault::Barred)
    }

    /// Whether others may be told of the site: it has https, and is not on this machine.
    pub(crate) fn is_for_strangers(&self) -> bool {
        let policy = Policy::new(true, Vec::new());
        self.check(By::Stranger, &policy).is_ok()
    }

    /// Reads the profile that came from the site.
    ///
    /// # Errors
    /// Says why it does not count.
    pub(crate) fn read(&self, json: &[u8], policy: &Policy) -> Result<profile::Learnt, Fault> {
        let learnt = profile::read(json, policy).map_err(Fault::Malformed)?;
        match self.pin {
            Some(pin) if pin != learnt.peer => Err(Fault::WrongPeer(learnt.peer)),
            _ => Ok(learnt),
        }
    }
}

/// Writes the shortest text that names the site.
impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_local = is_of_this_machine(&self.host);
        let scheme = match (self.is_secure, is_local) {
            (true, false) | (false, true) => "",
            (true, true) => "https://",
            (false, false) => "http://",
        };
        let usual = match (self.is_secure, is_local) {
            (true, _) => HTTPS_PORT,
            (false, true) => LOCAL_PORT,
            (false, false) => 80,
        };
        let whole = authority(&self.host, self.port);
        let at = match self.port == usual {
            true => &whole[..whole.rfind(':').unwrap_or(whole.len())],
            false => &whole,
        };
        write!(f, "{scheme}{at}")?;
        self.pin.map_or(Ok(()), |pin| write!(f, "/p2p/{pin}"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    fn site(text: &str) -> Site {
        match text.parse() {
            Ok(RelayText::Site(site)) => site,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_text_leads_to_a_url() {
        let pinned = format!("https://R.example/p2p/{PEER}");
        for (text, url, shortest) in [
            ("relay.example", "https://relay.example", "relay.example"),
            (
                "relay.example:8443",
                "https://relay.example:8443",
                "relay.example:8443",
            ),
            (
                "https://relay.example/",
                "https://relay.example",
                "relay.example",
            ),
            ("192.0.2.1", "https://192.0.2.1", "192.0.2.1"),
            ("2001:db8::1", "https://[2001:db8::1]", "[2001:db8::1]"),
            (
                "[2001:db8::1]:7",
                "https://[2001:db8::1]:7",
                "[2001:db8::1]:7",
            ),
            (
                "http://192.168.1.5:4001",
                "http://192.168.1.5:4001",
                "http://192.168.1.5:4001",
            ),
            ("http://10.0.0.1", "http://10.0.0.1", "http://10.0.0.1"),
            ("localhost", "http://localhost:4001", "localhost"),
            ("127.0.0.1:7", "http://127.0.0.1:7", "127.0.0.1:7"),
            ("http://127.0.0.1:7", "http://127.0.0.1:7", "127.0.0.1:7"),
            (
                "https://localhost:7",
                "https://localhost:7",
                "https://localhost:7",
            ),
            (
                &pinned,
                "https://r.example",
                &format!("r.example/p2p/{PEER}"),
            ),
        ] {
            let site = site(text);
            assert_eq!(
                site.url(),
                format!("{url}/.well-known/throughline"),
                "{text}"
            );
            assert_eq!(site.to_string(), *shortest, "{text}");
            assert_eq!(self::site(shortest), site, "{text}");
        }
        let address = format!("/ip4/192.0.2.1/tcp/1/p2p/{PEER}");
        let parsed: RelayText = address.parse().unwrap();
        assert_eq!(parsed, RelayText::Address(address.parse().unwrap()));
    }

    #[test]
    fn what_names_no_relay_is_refused() {
        for (text, why) in [
            ("", "no host"),
            ("a b", "no host"),
            ("relay.example.", "no host"),
            ("https://", "no host"),
            ("https://user@relay.example", "no host"),
            ("https://relay.example/path", "no host"),
            ("relay.example?x", "no host"),
            ("relay.example:0", "no port"),
            ("relay.example:+1", "no port"),
            ("relay.example:70000", "no port"),
            ("[::1", "no host"),
            ("[::1]7", "no host"),
            ("http://relay.example", "needs https"),
            ("ftp://relay.example", "another scheme"),
            ("169.254.169.254", "metadata"),
            ("https://[fe80::1]", "link-local"),
            ("relay.example/p2p/x", "peer id"),
            ("/ip4/192.0.2.1/nothing", "multiaddress"),
        ] {
            let error = text.parse::<RelayText>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_stranger_may_name_less_than_the_user() {
        let open = Policy::new(true, Vec::new());
        let closed = Policy::new(false, Vec::new());
        let barred = |text: &str, by, policy: &Policy| site(text).check(by, policy).is_err();
        for (text, without_private, with_private) in [
            ("relay.example", false, false),
            ("https://192.0.2.1", false, false),
            ("https://10.0.0.1", true, false),
            ("https://127.0.0.1", true, true),
            ("https://localhost", true, true),
            ("http://192.0.2.1", true, true),
        ] {
            assert_eq!(
                barred(text, By::Stranger, &closed),
                without_private,
                "{text}"
            );
            assert_eq!(barred(text, By::Stranger, &open), with_private, "{text}");
            assert!(!barred(text, By::User, &closed), "{text}");
        }
    }

    #[test]
    fn where_a_name_leads_is_checked() {
        let closed = Policy::new(false, Vec::new());
        let open = Policy::new(true, Vec::new());
        let ok = |text: &str, ip: &str, by, policy: &Policy| {
            site(text).check_ip(ip.parse().unwrap(), by, policy).is_ok()
        };
        for by in [By::User, By::Stranger] {
            assert!(ok("relay.example", "192.0.2.1", by, &closed));
            assert!(!ok("relay.example", "10.0.0.1", by, &closed));
            assert!(ok("relay.example", "10.0.0.1", by, &open));
            assert!(!ok("relay.example", "127.0.0.1", by, &open));
            assert!(!ok("relay.example", "169.254.169.254", by, &open));
        }
        assert!(ok("localhost", "127.0.0.1", By::User, &closed));
        assert!(ok("http://10.0.0.1", "10.0.0.1", By::User, &closed));
        assert!(!ok("https://10.0.0.1", "10.0.0.1", By::Stranger, &closed));
    }

    #[test]
    fn only_the_pinned_relay_will_do() {
        let json =
            format!(r#"{{"version":1,"peer_id":"{PEER}","addresses":["/ip4/192.0.2.1/tcp/1"]}}"#);
        let policy = Policy::new(false, Vec::new());
        let read = |text: &str| site(text).read(json.as_bytes(), &policy);
        assert!(read("relay.example").is_ok());
        assert!(read(&format!("relay.example/p2p/{PEER}")).is_ok());
        let other = "12D3KooWQYhTNQdmr3ArTeUHRYzFg94BKyTkoWBDWez9kSCVe2Xo";
        let error = read(&format!("relay.example/p2p/{other}")).unwrap_err();
        assert_eq!(error, Fault::WrongPeer(PEER.parse().unwrap()));
        let error = site("relay.example").read(b"<html>", &policy).unwrap_err();
        assert!(error.to_string().contains("not that of a relay"), "{error}");
    }

    proptest! {
        #[test]
        fn the_shortest_text_names_the_same_site(text in "(https?://)?([a-z0-9.:\\[\\]-]{0,20}|localhost|127.0.0.1)(:[0-9]{1,5})?") {
            if let Ok(RelayText::Site(site)) = text.parse::<RelayText>() {
                prop_assert_eq!(site.to_string().parse(), Ok(RelayText::Site(site)));
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC{0,60}") {
            let _ = text.parse::<RelayText>();
        }
    }
}
