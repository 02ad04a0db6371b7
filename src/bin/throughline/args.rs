//! The command line. `help` adds the examples, the groups of commands and the exit statuses.

mod tunnels;
mod values;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand};
use throughline::{PeerId, server::Day};

pub(crate) use self::{
    tunnels::{AllowArgs, Allowed, ForwardArgs, PipeArgs, Route, Target},
    values::{Seconds, Span},
};

/// The headings of options that many commands have.
const OUTPUT: &str = "Output";
const NETWORK: &str = "Network";
const SETTINGS: &str = "Identity and settings";

/// Connect two peers behind NATs and firewalls.
#[derive(Debug, Parser)]
#[command(name = "throughline", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Print one JSON object a line on stdout and nothing else there. Events that are not read in
    /// time are dropped, and the event `dropped` says how many.
    #[arg(long, global = true, help_heading = OUTPUT)]
    pub(crate) json: bool,
    /// Log more to stderr: -v what happens, -vv every detail, with addresses. RUST_LOG overrides.
    #[arg(short, long, global = true, action = clap::ArgAction::Count, help_heading = OUTPUT)]
    pub(crate) verbose: u8,
    /// How the log looks.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text", help_heading = OUTPUT)]
    pub(crate) log: LogFormat,
}

/// How the log looks.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a relay with STUN, TURN, WebSocket, webrtc-direct and HTTP.
    Serve(ServeArgs),
    /// Wait for peers: receive files, offer TCP ports, echo, or chat on stdin and stdout.
    Listen(ListenArgs),
    /// Connect to the peer that a ticket names.
    Connect(ConnectArgs),
    /// Measure round trips to the peer that a ticket names.
    Ping(PingArgs),
    /// Forward TCP ports through a peer that allows it.
    Forward(ForwardArgs),
    /// Join stdin and stdout to a peer.
    Pipe(PipeArgs),
    /// Say who can reach this machine and how, and which relays and servers answer.
    Netcheck(PeerArgs),
    /// Say what peers took of a relay on this machine, also while it runs.
    Usage(UsageArgs),
    /// Run a relay and a demo peer on this machine and print the URL of a page to try them.
    Demo(DemoArgs),
    /// Make the tokens by which a relay knows who may use it.
    Token(TokenArgs),
    /// Print the completions of the commands and options for a shell.
    Completions(CompletionsArgs),
    /// Print the manual, as a page for `man`.
    Man(ManArgs),
}

/// `throughline serve`.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ServeArgs {
    /// Only say what the settings are, where they come from, and what would be bound and announced;
    /// fail if no server would start.
    #[arg(long)]
    pub(crate) check: bool,
    /// IP address to bind and announce; repeat it for several [default: 0.0.0.0].
    #[arg(long, value_name = "IP")]
    pub(crate) host: Vec<IpAddr>,
    /// Port of everything, over TCP and UDP; 0 for any [default: 4001, or 443 with --domain].
    #[arg(long, value_name = "N")]
    pub(crate) port: Option<u16>,
    /// Name or IP address to get a certificate for, by ACME; repeatable. It agrees to the terms of
    /// service of Let's Encrypt, or of `tls.directory`.
    #[arg(long, value_name = "NAME")]
    pub(crate) domain: Vec<String>,
    /// Mail address for whoever issues the certificate.
    #[arg(long, value_name = "MAIL", requires = "domain")]
    pub(crate) contact: Option<String>,
    /// PEM file of a certificate for the first port; read again when it changes.
    #[arg(
        long,
        value_name = "FILE",
        requires = "tls_key",
        conflicts_with = "domain"
    )]
    pub(crate) tls_cert: Option<PathBuf>,
    /// PEM file of the key of --tls-cert.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub(crate) tls_key: Option<PathBuf>,
    /// Directory of the identity, the certificates and the secret of TURN, made on first use.
    /// Without it all are new at each start; with --domain, it is $STATE_DIRECTORY,
    /// $XDG_DATA_HOME/throughline or ~/.local/share/throughline.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// IP address that others reach this server at, where a one-to-one NAT stands before it.
    #[arg(long, value_name = "IP")]
    pub(crate) external_ip: Option<IpAddr>,
    /// Multiaddress to announce besides the bound ones; repeatable.
    #[arg(long, value_name = "ADDR")]
    pub(crate) announce: Vec<String>,
    /// Second UDP port of STUN, by which clients learn more of their NAT; 0 is none [default: the
    /// port after the first].
    #[arg(long, value_name = "N")]
    pub(crate) stun_alternate: Option<u16>,
    /// Do not run the TURN server.
    #[arg(long)]
    pub(crate) no_turn: bool,
    /// Folder of the page to serve at `/`.
    #[arg(long, value_name = "DIR")]
    pub(crate) www: Option<PathBuf>,
    /// Folder of the npm package (with dist/ and pkg/) to serve at `/npm/`.
    #[arg(long, value_name = "DIR")]
    pub(crate) npm: Option<PathBuf>,
    /// Serve /metrics at this address and no longer for everybody, and at /ready there why the
    /// server takes no more peers when it does not.
    #[arg(long, value_name = "IP:PORT")]
    pub(crate) admin: Option<SocketAddr>,
    /// Print a user name and password for the TURN server that last for 30 days.
    #[arg(long)]
    pub(crate) print_turn_credentials: bool,
    /// Circuits open at once, all peers together [default: 1024].
    #[arg(long, value_name = "N")]
    pub(crate) max_circuits: Option<std::num::NonZeroUsize>,
    /// Circuits open at once from one peer [default: 16].
    #[arg(long, value_name = "N")]
    pub(crate) max_circuits_per_peer: Option<std::num::NonZeroUsize>,
    /// NATS server, as in nats://USER:PASSWORD@HOST:4222 or tls://HOST, in which the relays of a fleet
    /// share what they know; repeatable.
    #[arg(long, value_name = "URL")]
    pub(crate) fleet: Vec<String>,
    /// TOML file with these and all other settings; the command line wins. It is read again when it
    /// changes and on SIGHUP.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
}

/// The options of every command that is a peer.
#[derive(Debug, Default, Args)]
pub(crate) struct PeerArgs {
    /// Relay to be reached through: its name, as in relay.example.org, its URL, HOST:PORT, or a
    /// multiaddress ending in /p2p/ID; repeatable.
    #[arg(long, help_heading = NETWORK, value_name = "RELAY")]
    pub(crate) relay: Vec<String>,
    /// STUN server, stun:HOST[:PORT]; repeatable [default: those that the relays name].
    #[arg(long, help_heading = NETWORK, value_name = "URL")]
    pub(crate) stun: Vec<String>,
    /// TURN server, turn:HOST[:PORT][?transport=tcp] or turns:HOST[:PORT]; repeatable.
    #[arg(long, help_heading = NETWORK, value_name = "URL", requires_all = ["turn_user", "turn_pass"])]
    pub(crate) turn: Vec<String>,
    /// PEM file of certificate authorities to trust for relays over TLS, besides the public ones.
    #[arg(long, value_name = "FILE")]
    pub(crate) relay_ca: Option<PathBuf>,
    /// PEM file of certificate authorities to trust for turns:, besides the public ones.
    #[arg(long, help_heading = NETWORK, value_name = "FILE")]
    pub(crate) turn_ca: Option<PathBuf>,
    /// User name at the TURN servers.
    #[arg(long, help_heading = NETWORK, value_name = "U", requires = "turn")]
    pub(crate) turn_user: Option<String>,
    /// Password at the TURN servers.
    #[arg(long, help_heading = NETWORK, value_name = "P", requires = "turn")]
    pub(crate) turn_pass: Option<String>,
    /// File that holds the token for relays that admit only its holders. It is read again for each
    /// link to a relay.
    #[arg(long, help_heading = NETWORK, value_name = "FILE")]
    pub(crate) relay_token: Option<PathBuf>,
    /// Address to listen on, a multiaddress; repeatable [default: any port, QUIC and TCP].
    #[arg(long, help_heading = NETWORK, value_name = "ADDR")]
    pub(crate) bind: Vec<String>,
    /// Identity file, made on first use [default: a fresh identity].
    #[arg(long, help_heading = SETTINGS, value_name = "FILE")]
    pub(crate) identity: Option<PathBuf>,
    /// Stay on the relay: keeps the addresses of this machine from the other side.
    #[arg(long, help_heading = NETWORK)]
    pub(crate) relay_only: bool,
    /// Do not ask the router to forward a port.
    #[arg(long, help_heading = NETWORK)]
    pub(crate) no_port_mapping: bool,
    /// TOML file with these and all other settings of the connector; the command line adds to it.
    #[arg(long, help_heading = SETTINGS, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Any setting of that file, as in `--set strategy_timeout_ms=5000`; repeatable, wins over it.
    #[arg(long, help_heading = SETTINGS, value_name = "NAME=VALUE")]
    pub(crate) set: Vec<String>,
    /// Serve this peer's counters over HTTP at /metrics, in the OpenMetrics text format.
    #[arg(long, help_heading = SETTINGS, value_name = "IP:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
}

/// `throughline listen`.
#[derive(Debug, Args)]
pub(crate) struct ListenArgs {
    #[command(flatten)]
    pub(crate) peer: PeerArgs,
    /// Answer echo and bench streams and datagrams only, and leave stdin alone.
    #[arg(long, conflicts_with = "recv")]
    pub(crate) echo: bool,
    /// Receive files into this directory, made if it is missing; nothing in it is overwritten.
    #[arg(long, value_name = "DIR")]
    pub(crate) recv: Option<PathBuf>,
    /// Refuse files of more bytes than this.
    #[arg(long, value_name = "BYTES", default_value_t = 16 << 30)]
    pub(crate) max_size: u64,
    #[command(flatten)]
    pub(crate) allow: AllowArgs,
}

/// `throughline connect`.
#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    /// The ticket that the other peer printed.
    pub(crate) ticket: String,
    #[command(flatten)]
    pub(crate) peer: PeerArgs,
    /// First wait until the relays of --relay hold a reservation, as in a program that has run for
    /// a while; times count from the connect after that.
    #[arg(long)]
    pub(crate) warm: bool,
    /// Wait up to this long for a direct path; without one fail with the code `timeout`.
    #[arg(long, value_name = "SECONDS")]
    pub(crate) wait_direct: Option<Seconds>,
    /// Send these files, and all files of these directories. What was interrupted goes on from what the
    /// receiver has.
    #[arg(long, value_name = "PATH", num_args = 1.., group = "action")]
    pub(crate) send: Vec<PathBuf>,
    /// With --send: the name that the receiver gets for the one file or directory.
    #[arg(long = "as", value_name = "NAME", requires = "send")]
    pub(crate) rename: Option<String>,
    /// Measure throughput to the peer for this long, 0.1 to 60.
    #[arg(long, value_name = "SECONDS", group = "action")]
    pub(crate) bench: Option<Seconds>,
    /// With --bench: measure from the peer to here.
    #[arg(long, requires = "bench")]
    pub(crate) download: bool,
    /// With --bench: also send a datagram every 20 ms, and measure how long each takes to come back.
    #[arg(long, requires = "bench")]
    pub(crate) ticks: bool,
    /// Measure this many round trips.
    #[arg(long, value_name = "N", group = "action")]
    pub(crate) ping: Option<u32>,
}

/// `throughline ping`.
#[derive(Debug, Args)]
pub(crate) struct PingArgs {
    /// The ticket that the other peer printed.
    pub(crate) ticket: String,
    #[command(flatten)]
    pub(crate) peer: PeerArgs,
    /// How many round trips to measure.
    #[arg(short, long, value_name = "N", default_value_t = 4)]
    pub(crate) count: u32,
}

/// `throughline usage`.
#[derive(Debug, Args)]
pub(crate) struct UsageArgs {
    /// Data directory of the relay.
    #[arg(long, value_name = "DIR", required_unless_present_any = ["fleet", "config"])]
    pub(crate) data: Option<PathBuf>,
    /// NATS server of a fleet, whose relays are added up; repeatable.
    #[arg(long, value_name = "URL", conflicts_with = "data")]
    pub(crate) fleet: Vec<String>,
    /// TOML file of a relay of the fleet, whose settings for NATS are used.
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    pub(crate) config: Option<PathBuf>,
    /// What is summed up.
    #[arg(long, value_enum, default_value = "day")]
    pub(crate) by: By,
    /// First day that counts, in UTC, as in 2026-11-30 [default: the first one].
    #[arg(long, value_name = "DAY")]
    pub(crate) since: Option<Day>,
}

/// By what usage is summed up.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum By {
    Day,
    Peer,
    Token,
}

/// `throughline demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    #[command(flatten)]
    pub(crate) serve: ServeArgs,
    /// Where the demo peer stores the files it receives [default: a temporary directory].
    #[arg(long, value_name = "DIR")]
    pub(crate) recv: Option<PathBuf>,
}

/// `throughline completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

/// `throughline man`.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// Write a page for each command into this directory, made if it is missing, and print none.
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
}

/// `throughline token`.
#[derive(Debug, Args)]
pub(crate) struct TokenArgs {
    #[command(subcommand)]
    pub(crate) command: TokenCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Print the public key for `access.keys` of the relay. The key is made on first use.
    Key(TokenKeyArgs),
    /// Make a token and print it.
    New(NewTokenArgs),
}

/// Where the operator's key is.
#[derive(Debug, Args)]
pub(crate) struct TokenKeyArgs {
    /// File of the key that signs tokens, made on first use. Whoever reads it can make tokens.
    #[arg(long, value_name = "FILE", default_value = "token-key.pem")]
    pub(crate) key: PathBuf,
}

/// `throughline token new`.
#[derive(Debug, Args)]
pub(crate) struct NewTokenArgs {
    #[command(flatten)]
    pub(crate) key: TokenKeyArgs,
    /// Whom the token is for.
    #[arg(long = "for", value_name = "NAME")]
    pub(crate) name: String,
    /// The only peer that may use it [default: whoever has it].
    #[arg(long, value_name = "ID")]
    pub(crate) peer: Option<PeerId>,
    /// How long it is valid: a number with s, m, h or d.
    #[arg(long, value_name = "TIME", default_value = "30d")]
    pub(crate) expires: Span,
    /// How much may be carried for it, such as 10GB/day or 1TB/month [default: no quota].
    #[arg(long, value_name = "AMOUNT")]
    pub(crate) quota: Option<String>,
    /// How fast that may be, such as 10Mbit [default: no limit].
    #[arg(long, value_name = "RATE")]
    pub(crate) rate: Option<String>,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn actions_exclude_each_other_and_turn_needs_its_credentials() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        parse("throughline connect T --send f --wait-direct 5").unwrap();
        parse("throughline connect T --send f --ping 5").unwrap_err();
        parse("throughline connect T --download").unwrap_err();
        parse("throughline connect T --ticks").unwrap_err();
        parse("throughline listen --turn turn:h").unwrap_err();
        parse("throughline listen --turn turn:h --turn-user u --turn-pass p").unwrap();
        parse("throughline listen --echo --recv d").unwrap_err();
        parse("throughline serve --domain a.example --domain 192.0.2.1 --contact a@b.example")
            .unwrap();
        parse("throughline serve --contact a@b.example").unwrap_err();
        parse("throughline serve --tls-cert c").unwrap_err();
        parse("throughline serve --tls-cert c --tls-key k").unwrap();
        parse("throughline serve --tls-cert c --tls-key k --domain a.example").unwrap_err();
    }
}
