//! `throughline netcheck`.

mod verdict;

use std::time::Duration;

use serde_json::json;
use throughline::{
    Config, Connector, Error, ErrorKind, NatFiltering, NatMapping, NatPorts, NatReport,
    PortMappingState, RelayReport, Report, TurnReport,
};

use self::verdict::{Facts, is_dead};
use crate::{
    args::PeerArgs,
    output::{Output, millis},
    peer, signal,
};

/// How long to wait beyond the longest deadline: for the questions about filters, which come after the
/// others, and for the round trip to a relay.
const GRACE: Duration = Duration::from_secs(5);
/// How often the report is read again.
const INTERVAL: Duration = Duration::from_millis(50);
/// The most relays with a reservation (`relay_reservations`).
const MOST_RELAYS: usize = 16;

pub(crate) async fn run(args: PeerArgs, output: Output) -> Result<(), Error> {
    let stopped = signal::stopped(output)?;
    let mut config = peer::config(&args)?;
    // Each relay is asked, whether this peer would need it or not.
    config.reserve = true;
    config.relay_reservations = config.relays.len().clamp(1, MOST_RELAYS);
    tokio::select! {
        result = check(&args, config, output) => result,
        error = stopped => Err(error),
    }
}

async fn check(args: &PeerArgs, config: Config, output: Output) -> Result<(), Error> {
    let connector = peer::builder(args, config.clone())?.start()?;
    let (report, servers) = tokio::join!(settled(&connector, &config), config.check_turn());
    connector.close().await;
    let (report, servers) = (report?, servers?);
    let verdict = Facts::of(&report, config.direct).verdict();
    let mut fields = json!(report);
    fields["turn"] = json!(servers);
    fields["verdict"] = verdict.sentence.as_str().into();
    fields["reachable"] = verdict.reachable.into();
    for (at, relay) in report.relays.iter().enumerate() {
        fields["relays"][at]["dead"] = is_dead(relay).into();
    }
    let marks = Marks(output.is_coloured());
    output.result("report", fields, || {
        format!("{}\n{}", verdict.sentence, text(&report, &servers, marks))
    });
    let dead = report.relays.iter().filter(|relay| is_dead(relay)).count();
    if dead > 0 {
        let all = report.relays.len();
        let message = format!("{dead} of {all} relays cannot be used");
        return Err(Error::new(ErrorKind::NoRelay, message));
    }
    if !verdict.reachable {
        let message = "nobody outside of this network can reach this machine";
        return Err(Error::new(ErrorKind::Unreachable, message));
    }
    Ok(())
}

/// Returns the report when every question in it has been answered or given up.
async fn settled(connector: &Connector, config: &Config) -> Result<Report, Error> {
    let longest = config.relay_timeout.max(config.stun_timeout);
    let patience = longest.max(config.port_mapping_timeout) + GRACE;
    let deadline = tokio::time::Instant::now() + patience;
    let mut interval = tokio::time::interval(INTERVAL);
    loop {
        interval.tick().await;
        let report = connector.report().await?;
        let relays = report.relays.iter().all(relay_is_settled);
        let done = report.nat.is_settled() && relays;
        if done || tokio::time::Instant::now() > deadline {
            return Ok(report);
        }
    }
}

fn relay_is_settled(relay: &RelayReport) -> bool {
    (relay.reserved && relay.rtt.is_some()) || relay.last_error.is_some()
}

/// The marks before what answers and what does not, with or without colours.
#[derive(Clone, Copy)]
struct Marks(bool);

impl Marks {
    fn of(self, answers: bool) -> &'static str {
        match (answers, self.0) {
            (true, false) => "ok  ",
            (true, true) => "\x1b[32mok\x1b[0m  ",
            (false, false) => "DEAD",
            (false, true) => "\x1b[1;31mDEAD\x1b[0m",
        }
    }
}

fn text(report: &Report, servers: &[TurnReport], marks: Marks) -> String {
    let mut lines = Vec::new();
    for relay in &report.relays {
        let mark = marks.of(!is_dead(relay));
        lines.push(format!(
            "  {mark} relay {}: {}",
            relay.peer_id,
            of_relay(relay)
        ));
    }
    for server in &report.nat.stun {
        let state = match (&server.mapped, &server.error) {
            (Some(mapped), _) => format!("sees {mapped}{}", round_trip(server.rtt)),
            (None, Some(error)) => error.clone(),
            (None, None) => "there is no usable address, or no answer yet".into(),
        };
        let mark = marks.of(server.mapped.is_some());
        lines.push(format!("  {mark} STUN {}: {state}", server.server));
    }
    for server in servers {
        let state = match &server.error {
            Some(error) => error.clone(),
            None => format!(
                "gives {}{}",
                server.relayed.join(" and "),
                round_trip(server.took)
            ),
        };
        let mark = marks.of(server.error.is_none());
        lines.push(format!("  {mark} TURN {}: {state}", server.server));
    }
    let mut fact = |name: &str, value: String| {
        if !value.is_empty() {
            lines.push(format!("  {name:<12} {value}"));
        }
    };
    fact("NAT", of_nat(&report.nat));
    fact("port mapping", port_mapping(&report.nat));
    fact("seen as", report.observed.join(", "));
    fact("reached at", report.confirmed.join(", "));
    // The addresses through relays are above.
    let own = |address: &&String| !address.contains("/p2p-circuit");
    let own: Vec<_> = report.listening.iter().filter(own).cloned().collect();
    fact("listens at", own.join(", "));
    let names: Vec<_> = report.strategies.iter().map(|s| s.as_str()).collect();
    fact("can try", names.join(", "));
    fact("peer id", report.peer_id.clone());
    lines.join("\n")
}

fn of_relay(relay: &RelayReport) -> String {
    let state = match (relay.reserved, relay.connected) {
        (true, _) => "holds a reservation",
        (false, true) => "grants no reservation",
        (false, false) => "not reached",
    };
    let rtt = round_trip(relay.rtt);
    let reason = relay.last_error.as_deref().filter(|_| !relay.reserved);
    let reason = reason.map(|reason| format!(": {reason}"));
    format!("{state}{rtt}{}", reason.unwrap_or_default())
}

fn round_trip(rtt: Option<Duration>) -> String {
    rtt.map(|rtt| format!(", {} ms", millis(rtt)))
        .unwrap_or_default()
}

fn of_nat(nat: &NatReport) -> String {
    let mapping = match nat.mapping {
        NatMapping::None => "none in front of this machine",
        NatMapping::EndpointIndependent => "one address for all peers",
        NatMapping::AddressDependent => "another address for each peer",
        NatMapping::AddressAndPortDependent => "another address for each peer and port (symmetric)",
        _ => "unknown; two STUN servers would tell",
    };
    let ports = match nat.ports {
        NatPorts::Preserved => ", ports kept",
        NatPorts::Contiguous => ", ports in sequence",
        NatPorts::Random if nat.mapping != NatMapping::None => ", other ports",
        _ => "",
    };
    let filtering = match nat.filtering {
        NatFiltering::EndpointIndependent => "everybody",
        NatFiltering::AddressDependent => "addresses that were sent to",
        NatFiltering::AddressAndPortDependent => "addresses and ports that were sent to",
        _ => "unknown; a STUN server with RFC 5780 would tell",
    };
    format!("{mapping}{ports}; lets in: {filtering}")
}

fn port_mapping(nat: &NatReport) -> String {
    let spoken = [
        ("PCP", nat.protocols.pcp),
        ("NAT-PMP", nat.protocols.nat_pmp),
        ("UPnP", nat.protocols.upnp),
    ];
    let spoken = spoken.iter().filter(|(_, on)| *on).map(|(name, _)| *name);
    let spoken = match spoken.collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => none,
        names => format!(" (router speaks {names})"),
    };
    let state = match nat.port_mapping {
        PortMappingState::Mapped => match &nat.mapped {
            Some(mapped) => format!("the router forwards {mapped}"),
            None => "the router forwards a port".into(),
        },
        PortMappingState::Useless => "the router itself is behind another NAT".into(),
        PortMappingState::Unavailable => "no router maps ports".into(),
        PortMappingState::Searching => "no answer yet".into(),
        _ => "off".into(),
    };
    state + &spoken
}
