//! The one table of the server's options: name, range, unit and meaning. The defaults are those of
//! [`ServerConfig::default`].
//!
//! [`ServerConfig::validate`] and `docs/options.md` are made from it; see [`crate::config::options`].

use std::{
    net::IpAddr,
    num::{NonZeroU32, NonZeroUsize},
};

use super::ServerConfig;
#[cfg(test)]
use crate::config::options::{Place, Row};
use crate::{
    config::options::{Range, Ranged as _, ranged},
    error::Error,
};

ranged! {
    Vec<IpAddr>: |list| list.len() as u64;
    NonZeroU32: |number| number.get().into();
    NonZeroUsize: |number| number.get() as u64;
    u8: |number| (*number).into();
    u64: |number| *number;
    String: |text| text.len() as u64;
}

/// Checks the value of a row, if it has a range.
macro_rules! check {
    ($this:ident.$field:ident $(. $part:ident)*, $faults:ident,) => {};
    ($this:ident.$field:ident $(. $part:ident)*, $faults:ident, $($range:literal),+) => {
        let [range] = range!($field $(. $part)*, $($range),+);
        let is_free = free!($this.$field $(. $part)*, $($range),+);
        if !is_free {
            $faults.extend($this.$field $(. $part)*.check(range).err());
        }
    };
}

/// Whether the value of a row means that it has no range.
macro_rules! free {
    ($value:expr, $least:literal, $most:literal, $unit:literal) => {
        false
    };
    ($value:expr, $least:literal, $most:literal, $unit:literal, $other:literal) => {
        $value == $other
    };
}

/// The range of a row, if it has one.
macro_rules! range {
    ($field:ident $(. $part:ident)*,) => {
        &[]
    };
    ($field:ident $(. $part:ident)*, $least:literal, $most:literal, $unit:literal $(, $other:literal)?) => {
        &[Range {
            name: concat!(stringify!($field) $(, ".", stringify!($part))*),
            least: $least,
            most: $most,
            unit: $unit,
        }]
    };
}

/// Takes over the value of a row, or notes the name of a row that differs and is kept.
macro_rules! take {
    ($this:ident.$field:ident $(. $part:ident)*, $new:ident, $kept:ident,) => {
        $this.$field $(. $part)*.clone_from(&$new.$field $(. $part)*);
    };
    ($this:ident.$field:ident $(. $part:ident)*, $new:ident, $kept:ident, restart) => {
        if $this.$field $(. $part)* != $new.$field $(. $part)* {
            $kept.push(concat!(stringify!($field) $(, ".", stringify!($part))*));
        }
    };
}

/// Whether the value of a row is kept until a restart.
#[cfg(test)]
macro_rules! kept {
    () => {
        false
    };
    (restart) => {
        true
    };
}

/// A row is: field, `in` range "unit" or the value that means no range, meaning, and `until restart` if
/// the value cannot change while a server runs.
macro_rules! options {
    ($(
        $field:ident $(. $part:ident)*,
        $(in $least:literal..=$most:literal $unit:literal $(or $other:literal)?,)?
        $meaning:literal $(until $restart:ident)?;
    )*) => {
        impl ServerConfig {
            /// Notes every value that is out of its range.
            pub(super) fn check_ranges(&self, faults: &mut Vec<Error>) {
                $(check!(self.$field $(. $part)*, faults, $($least, $most, $unit $(, $other)?)?);)*
            }

            /// Takes over what can change while a server runs. Returns the names of the other
            /// settings that differ.
            pub(crate) fn take(&mut self, new: &Self) -> Vec<&'static str> {
                let mut kept = Vec::new();
                $(take!(self.$field $(. $part)*, new, kept, $($restart)?);)*
                kept
            }
        }

        /// The names of the settings that cannot change while a server runs.
        #[cfg(test)]
        pub(crate) fn kept_until_restart() -> Vec<&'static str> {
            OPTIONS.iter().zip([$(kept!($($restart)?)),*]).filter_map(|(row, kept)| kept.then_some(row.name)).collect()
        }

        #[cfg(test)]
        pub(crate) const OPTIONS: &[Row] = &[$(Row {
            name: concat!(stringify!($field) $(, ".", stringify!($part))*),
            ranges: range!($field $(. $part)*, $($least, $most, $unit)?),
            place: Place::Everywhere,
            meaning: $meaning,
        },)*];
    };
}

// Where the type has no other limit, the most is that of 32 bits.
options! {
    hosts, in 1..=16 "addresses",
        "The addresses that every listener binds." until restart;
    port, in 0..=65_531 "",
        "The port where every protocol comes in, over TCP and UDP; 0 lets the system choose each port." until restart;
    layout,
        "Whether everything is at the first port (`one`), or protocols have ports of their own, as in earlier versions (`five`)." until restart;
    data,
        "The folder of the identity and of the certificate; without one, both are made at each start." until restart;
    announce, in 0..=16 "addresses",
        "Multiaddresses to announce besides those that are bound.";
    external_ip,
        "The address that others reach the server at, where a one-to-one NAT stands before it." until restart;
    proxy_protocol, in 0..=64 "prefixes",
        "Prefixes of proxies that begin each connection to the first TCP port with a header of PROXY protocol v2." until restart;
    log_addresses,
        "Whether the log names the addresses that were refused.";

    tls.cert,
        "A PEM file of the certificate for the first port, which is read again when it has changed." until restart;
    tls.key,
        "The PEM file of the certificate's private key." until restart;
    tls.domains, in 0..=16 "names or addresses",
        "Whom an authority is asked for a certificate for, by ACME; needs `data`." until restart;
    tls.contact,
        "The mail address for the authority." until restart;
    tls.directory, in 1..=2_048 "bytes",
        "The directory of the authority." until restart;
    tls.directory_ca,
        "A PEM file of certificate authorities to trust for the directory, in addition to the public ones." until restart;
    tls.handshakes_per_source, in 1..=4_294_967_295 "handshakes/s",
        "How many TLS handshakes one IPv4 address or one IPv6 /64 may begin, and twice as many in a burst.";
    tls.handshakes, in 1..=4_294_967_295 "handshakes/s",
        "How many TLS handshakes all sources may begin together.";

    relay.reservations, in 1..=4_294_967_295 "peers",
        "How many peers hold a reservation at a time.";
    relay.reservations_per_peer, in 1..=4_294_967_295 "reservations",
        "How many reservations one peer holds at a time.";
    relay.reservation_seconds, in 180..=86_400 "s",
        "How long a reservation lasts; clients of this library renew it after 100 seconds.";
    relay.circuits, in 1..=4_294_967_295 "circuits",
        "How many circuits are open at a time.";
    relay.circuits_per_peer, in 1..=4_294_967_295 "circuits",
        "How many circuits one peer has open at a time as the dialler.";
    relay.circuit_seconds, in 0..=4_294_967_295 "s",
        "How long a circuit may live; 0 is as long as the protocol can say.";
    relay.circuit_bytes,
        "How many bytes one circuit may carry in both directions together; 0 is no limit.";
    // Yamux gives every stream 256 KiB from its beginning: with less, a circuit could stop the connection.
    relay.circuit_window, in 262_144..=16_777_216 "bytes",
        "How many bytes of one circuit may wait in the server, for each direction and at each of both connections." until restart;
    relay.reservation_burst, in 1..=4_294_967_295 "requests",
        "How many reservations one peer may ask for at once; each comes back after two seconds.";
    relay.circuit_burst, in 1..=4_294_967_295 "requests",
        "How many circuits one peer may ask for at once; each comes back after a second.";

    stun.per_source, in 1..=4_294_967_295 "answers/s",
        "How many answers one IPv4 address or one IPv6 /64 gets, and twice as many in a burst.";
    stun.total, in 1..=4_294_967_295 "answers/s",
        "How many answers all sources get together.";
    stun.alternate_port,
        "The second UDP port of STUN, by which clients learn more of their NAT; 0 is none, and by default it is the one after the first." until restart;

    turn.secret,
        "What credentials are made from; without one there is no TURN server." until restart;
    turn.realm, in 1..=128 "bytes",
        "The realm of the credentials, without control characters." until restart;
    turn.credential_seconds, in 60..=31_536_000 "s",
        "How long the credentials last that are made at the start." until restart;
    turn.external_ip,
        "The address that clients are told for relayed ones, if it is not `external_ip`." until restart;
    turn.first_port, in 1..=65_535 "",
        "The first UDP port to relay on." until restart;
    turn.last_port, in 1..=65_535 "",
        "The last UDP port to relay on." until restart;
    turn.allocations, in 1..=4_294_967_295 "relayed addresses",
        "How many relayed addresses there are at a time.";
    turn.allocations_per_user, in 1..=4_294_967_295 "relayed addresses",
        "How many relayed addresses one user name has at a time.";
    turn.connections, in 1..=4_294_967_295 "connections",
        "How many TCP connections are open at a time.";
    turn.requests_per_source, in 1..=4_294_967_295 "requests/s",
        "How many requests one IPv4 address or one IPv6 /64 may make, and twice as many in a burst.";
    // The longest datagram passes.
    turn.bytes_per_source, in 16_384..=1_000_000_000_000 "bytes/s, or 0 for no limit" or 0,
        "How much is relayed for one IPv4 address or one IPv6 /64, and twice as much in a burst.";
    turn.bytes_total, in 16_384..=1_000_000_000_000 "bytes/s, or 0 for no limit" or 0,
        "How much is relayed for all clients together.";
    turn.allow_private_peers,
        "Whether clients may reach private, loopback and link-local addresses through the server." until restart;

    traffic.total, in 16_384..=1_000_000_000_000 "bytes/s, or 0 for no limit" or 0,
        "How much is carried for all together, divided fairly between names of tokens and peers without one.";
    traffic.per_peer, in 16_384..=1_000_000_000_000 "bytes/s, or 0 for no limit" or 0,
        "How much is carried for one peer.";
    traffic.per_circuit, in 16_384..=1_000_000_000_000 "bytes/s, or 0 for no limit" or 0,
        "How much one circuit carries.";
    traffic.per_allocation, in 16_384..=1_000_000_000_000 "bytes/s, or 0 for no limit" or 0,
        "How much one allocation on the TURN server carries.";
    traffic.peer_quota,
        "How much may be carried for one peer, such as `10GB/day, 100GB/month`.";

    usage.record,
        "Whether what peers take is recorded in the data directory, for `throughline usage`." until restart;
    usage.days, in 1..=3_660 "days",
        "How many days of the record are kept, today included." until restart;
    usage.peers_per_day, in 1..=10_000_000 "peers",
        "How many peers of a day have a row of their own; further ones share one." until restart;

    access.mode,
        "Who may use the server: `open`, `list`, `token` or `hook`; without it everybody, and a public server warns." until restart;
    access.dialers,
        "Whether a peer needs admission to dial others, too. Otherwise the admission of the peer that it dials is enough." until restart;
    access.list,
        "The file of the peer ids that `list` admits, one a line; it is read again when it changes." until restart;
    access.keys, in 0..=16 "keys",
        "The public keys whose tokens `token` admits, as `throughline token key` prints them." until restart;
    access.revoked,
        "The file of the ids of tokens that no longer count, one a line; it is read again when it changes." until restart;
    access.hook.url,
        "The http or https URL that `hook` asks." until restart;
    access.hook.ca,
        "A PEM file of certificate authorities to trust for this URL, besides the public ones." until restart;
    access.hook.timeout_ms, in 100..=60_000 "ms",
        "How long an answer may take." until restart;
    access.hook.fresh_seconds, in 0..=86_400 "s",
        "How long an answer counts without asking again." until restart;
    access.hook.max_age_seconds, in 0..=2_592_000 "s",
        "How long an answer counts if the hook cannot be asked." until restart;
    access.hook.questions_per_second, in 1..=1_000_000 "questions/s",
        "How often the program is asked about all peers together." until restart;
    access.hook.answers, in 1..=4_294_967_295 "answers",
        "How many answers are kept." until restart;

    reputation.url,
        "The URL of scores of peers and relays, in JSON." until restart;
    reputation.ca,
        "A PEM file of certificate authorities to trust for this URL, besides the public ones." until restart;
    reputation.key,
        "The public key that signs the scores; without one, TLS proves where they come from." until restart;
    reputation.interval_seconds, in 1..=86_400 "s",
        "How often the scores are asked for.";
    reputation.max_age_seconds, in 60..=31_536_000 "s",
        "How long scores count, from when they were issued if they are signed.";
    reputation.observe,
        "Whether floods, refused circuits and failed handshakes lower a score for a while.";
    reputation.refuse_below,
        "The score, from -1000 to 100, below which peers get nothing.";
    reputation.slow_below,
        "The score, from -1000 to 100, below which peers are slowed down.";
    reputation.prefer_from,
        "The score, from -1000 to 101, from which on peers get twice the share of others.";
    reputation.slow_rate, in 1_024..=1_000_000_000_000 "bytes/s",
        "How much a circuit or an allocation of a peer carries that is slowed down.";

    autonat.allow_private,
        "Whether peers at private and loopback addresses, and at the server's own, are dialled.";
    autonat.per_source, in 1..=4_294_967_295 "dials/s",
        "How many dials one IPv4 address or one IPv6 /64 gets, and twice as many in a burst.";
    autonat.total, in 1..=4_294_967_295 "dials/s",
        "How many dials all sources get together, and twice as many in a burst.";

    connections.established, in 1..=4_294_967_295 "connections",
        "How many connections of peers are open at a time.";
    connections.per_peer, in 1..=4_294_967_295 "connections",
        "How many connections one peer has at a time.";
    connections.pending, in 1..=4_294_967_295 "handshakes",
        "How many handshakes of each kind are under way at a time.";
    connections.idle_seconds, in 1..=86_400 "s",
        "How long a connection stays open that no reservation, circuit or offer needs.";
    // Two offers of the largest size fit.
    connections.window, in 65_536..=16_777_216 "bytes",
        "How many bytes of one connection may wait in the server; each circuit over it adds its own." until restart;
    connections.http, in 1..=4_294_967_295 "connections",
        "How many HTTP connections are open at a time.";
    connections.share_per_address, in 1..=100 "%",
        "The share of every pool that one IPv4 address or one IPv6 /64 may hold.";

    http.www,
        "The folder of the page at `/`; without one, a built-in page names the addresses." until restart;
    http.npm,
        "The folder of the npm package, which is served under `/npm/`." until restart;
    http.admin,
        "The operator's own address, where metrics and the state of every pool are served." until restart;
    http.trusted_proxies, in 0..=64 "prefixes",
        "Prefixes of reverse proxies whose `X-Forwarded-For` names the client." until restart;
    http.requests_per_source, in 1..=4_294_967_295 "requests/s",
        "How many requests one IPv4 address or one IPv6 /64 may make, and twice as many in a burst.";
    http.requests, in 1..=4_294_967_295 "requests/s",
        "How many requests all sources may make together.";

    drain.seconds, in 0..=86_400 "s",
        "How long circuits and allocations may go on after SIGTERM; 0 ends them at once.";
    drain.to, in 0..=4 "addresses",
        "The relays that clients may move to then if they know no other one.";

    fleet.servers, in 0..=16 "URLs",
        "The URLs of the NATS servers, `nats://` or `tls://`, in which the servers of a fleet share what they know; a URL may have a user and a password." until restart;
    fleet.credentials,
        "The file with the JWT and the key of the NATS user." until restart;
    fleet.ca,
        "A PEM file of certificate authorities to trust for NATS, besides the public ones." until restart;
    fleet.replicas, in 1..=5 "servers",
        "On how many NATS servers each bucket is kept that this server makes." until restart;
}
