//! Where TCP connections lead, on the command line.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
};

use clap::Args;
use throughline::PeerId;

use super::PeerArgs;

/// What a peer lets others do by `forward`. Without it, nothing is reachable.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct AllowArgs {
    /// Let peers connect to this host and port from here by `forward`, or to all its ports with `*`;
    /// repeatable. The host is compared as it is written. Nothing else is reachable.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) allow: Vec<Allowed>,
    /// Let peers listen here, by `forward --remote`; repeatable. Without an IP it is 127.0.0.1.
    #[arg(long, value_name = "[IP:]PORT")]
    pub(crate) allow_bind: Vec<Bind>,
    /// Let only these peers forward and send files; repeatable [default: whoever has the ticket].
    #[arg(long, value_name = "ID")]
    pub(crate) allow_peer: Vec<PeerId>,
}

impl AllowArgs {
    /// Whether `peer` may forward and send files at all.
    pub(crate) fn admits(&self, peer: &PeerId) -> bool {
        self.allow_peer.is_empty() || self.allow_peer.contains(peer)
    }

    /// Whether connections may lead to `target`.
    pub(crate) fn allows(&self, target: &Target) -> bool {
        self.allow.iter().any(|allowed| allowed.covers(target))
    }

    /// Whether a peer may listen at `address`.
    pub(crate) fn allows_bind(&self, address: SocketAddr) -> bool {
        self.allow_bind.contains(&Bind(address))
    }
}

/// `throughline forward`.
#[derive(Debug, Args)]
pub(crate) struct ForwardArgs {
    /// The ticket that the other peer printed.
    pub(crate) ticket: String,
    /// Listen at this port here, and connect from the peer to the host and port; repeatable. The peer
    /// must allow it with `--allow`. Without an IP it listens at 127.0.0.1.
    #[arg(
        short = 'L',
        long,
        value_name = "[IP:]PORT:HOST:PORT",
        required_unless_present = "remote"
    )]
    pub(crate) local: Vec<Route>,
    /// Listen at this port at the peer, and connect from here to the host and port; repeatable. The
    /// peer must allow it with `--allow-bind`.
    #[arg(short = 'R', long, value_name = "[IP:]PORT:HOST:PORT")]
    pub(crate) remote: Vec<Route>,
    #[command(flatten)]
    pub(crate) peer: PeerArgs,
}

/// `throughline pipe`.
#[derive(Debug, Args)]
pub(crate) struct PipeArgs {
    /// The ticket that the other peer printed [default: print one, and wait for the other peer].
    pub(crate) ticket: Option<String>,
    /// Connect to this host and port from the peer, which must allow it with `--allow`, as for the
    /// ProxyCommand of ssh.
    #[arg(long, value_name = "HOST:PORT", requires = "ticket")]
    pub(crate) to: Option<Target>,
    #[command(flatten)]
    pub(crate) peer: PeerArgs,
}

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    /// A name or an IP address, in small letters. An IPv6 address has no brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// The longest name in the DNS.
const MAX_HOST: usize = 253;

/// Splits `HOST:PORT`. An IPv6 address stands in brackets.
fn split(text: &str) -> Result<(String, &str), String> {
    let missing = || format!("`{}` is not HOST:PORT", text.escape_debug());
    let (host, port) = text.rsplit_once(':').ok_or_else(missing)?;
    let bare = match host.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']').filter(|v6| v6.contains(':')),
        None => Some(host).filter(|host| !host.contains(':')),
    };
    let host = bare.ok_or("an IPv6 address stands in [], as in [::1]:80")?;
    let of_a_name = |c: char| c.is_ascii_alphanumeric() || "-._:%".contains(c);
    match (1..=MAX_HOST).contains(&host.len()) && host.chars().all(of_a_name) {
        true => Ok((host.to_ascii_lowercase(), port)),
        false => Err(missing()),
    }
}

fn port(text: &str) -> Result<u16, String> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port != 0);
    port.ok_or_else(|| format!("`{}` is no port from 1 to 65535", text.escape_debug()))
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, number) = split(text)?;
        let port = port(number)?;
        Ok(Self { host, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// What `--allow` names: one port of a host, or all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Allowed {
    host: String,
    port: Option<u16>,
}

impl Allowed {
    pub(crate) fn only(target: &Target) -> Self {
        Self {
            host: target.host.clone(),
            port: Some(target.port),
        }
    }

    fn covers(&self, target: &Target) -> bool {
        self.host == target.host && self.port.is_none_or(|port| port == target.port)
    }
}

impl FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (host, number) = split(text)?;
        let port = match number {
            "*" => None,
            number => Some(port(number)?),
        };
        Ok(Self { host, port })
    }
}

/// An address to listen at. A port alone is one of 127.0.0.1, so that only this machine reaches it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bind(pub(crate) SocketAddr);

impl FromStr for Bind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let at = match digits {
            true => text
                .parse()
                .ok()
                .map(|port| (Ipv4Addr::LOCALHOST, port).into()),
            false => text.parse().ok(),
        };
        let refused = || format!("`{}` is neither a port nor IP:PORT", text.escape_debug());
        at.map(Self).ok_or_else(refused)
    }
}

/// Where to listen, and where its connections lead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) bind: SocketAddr,
    pub(crate) to: Target,
}

impl FromStr for Route {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = "the form is [IP:]PORT:HOST:PORT, as in 8080:localhost:80";
        // The host may hold colons only within brackets, so the target begins after the third part from
        // the end.
        let (rest, number) = text.rsplit_once(':').ok_or(form)?;
        let start = match rest.ends_with(']') {
            true => rest.rfind("[").ok_or(form)?,
            false => rest.rfind(':').ok_or(form)? + 1,
        };
        let bind = rest[..start].strip_suffix(':').ok_or(form)?;
        let to = format!("{}:{number}", &rest[start..]);
        Ok(Self {
            bind: bind.parse::<Bind>()?.0,
            to: to.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(text: &str) -> Target {
        text.parse().unwrap()
    }

    #[test]
    fn targets_are_hosts_with_a_port() {
        for (text, host, port) in [
            ("localhost:80", "localhost", 80),
            ("A.Example:1", "a.example", 1),
            ("[::1]:22", "::1", 22),
            ("192.0.2.1:65535", "192.0.2.1", 65535),
        ] {
            let parsed = target(text);
            assert_eq!((parsed.host.as_str(), parsed.port), (host, port));
            assert_eq!(parsed.to_string(), text.to_lowercase());
        }
        for bad in [
            "", "a", ":1", "a:", "a:0", "a:65536", "a:+1", "::1:22", "[a]:1", "a b:1", "a\n:1",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn routes_are_those_of_ssh() {
        for (text, bind, to) in [
            ("8080:localhost:80", "127.0.0.1:8080", "localhost:80"),
            ("0.0.0.0:8080:a.example:80", "0.0.0.0:8080", "a.example:80"),
            ("[::]:1:[::1]:2", "[::]:1", "[::1]:2"),
            ("0:[fe80::1]:2", "127.0.0.1:0", "[fe80::1]:2"),
        ] {
            let route: Route = text.parse().unwrap();
            assert_eq!(route.bind.to_string(), bind, "{text}");
            assert_eq!(route.to.to_string(), to, "{text}");
        }
        for bad in [
            "",
            "80",
            "localhost:80",
            "x:localhost:80",
            "8080:localhost",
            "1:2:3:4:5",
            "1:]:2",
        ] {
            assert!(bad.parse::<Route>().is_err(), "{bad}");
        }
    }

    #[test]
    fn nothing_is_allowed_but_what_is_named() {
        let mut args = AllowArgs::default();
        assert!(!args.allows(&target("localhost:80")));
        args.allow = ["localhost:80", "[::1]:*"]
            .map(|text| text.parse().unwrap())
            .to_vec();
        for (text, allowed) in [
            ("localhost:80", true),
            ("LOCALHOST:80", true),
            ("[::1]:7", true),
            ("localhost:81", false),
            ("127.0.0.1:80", false),
            ("localhost.:80", false),
        ] {
            assert_eq!(args.allows(&target(text)), allowed, "{text}");
        }
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        args.allow_bind = vec!["9000".parse().unwrap()];
        assert!(args.allows_bind(at("127.0.0.1:9000")));
        assert!(!args.allows_bind(at("0.0.0.0:9000")) && !args.allows_bind(at("127.0.0.1:0")));
        let peer = throughline::Identity::generate().peer_id();
        assert!(args.admits(&peer));
        args.allow_peer = vec![throughline::Identity::generate().peer_id()];
        assert!(!args.admits(&peer));
    }
}
