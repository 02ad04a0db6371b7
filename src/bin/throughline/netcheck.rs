//! `throughline netcheck`.

use std::time::Duration;

use serde_json::json;
use throughline::{
    Connector, Error, NatFiltering, NatMapping, NatPorts, NatReport, PortMappingState, RelayReport,
    Report, TurnReport,
};

use crate::{
    args::PeerArgs,
    output::{Output, millis},
    peer,
};

/// How long to wait for answers at most. This covers the default timeouts of STUN and of the
/// router, and the questions about filters that come after them.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often the report is read again.
const INTERVAL: Duration = Duration::from_millis(50);

pub(crate) async fn run(args: PeerArgs, output: Output) -> Result<(), Error> {
    let config = peer::config(&args)?;
    let connector = peer::bind(&args, true).await?;
    let (report, servers) = tokio::join!(settled(&connector), config.check_turn());
    connector.close().await;
    let (report, servers) = (report?, servers?);
    let mut fields = json!(report);
    fields["turn"] = json!(servers);
    output.result("report", fields, || text(&report, &servers));
    Ok(())
}

/// Returns the report when every question in it has been answered or given up.
async fn settled(connector: &Connector) -> Result<Report, Error> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
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
    (relay.connected && relay.rtt.is_some()) || relay.last_error.is_some()
}

fn text(report: &Report, servers: &[TurnReport]) -> String {
    let mut lines = vec![format!("peer {}", report.peer_id)];
    if report.relays.is_empty() {
        let text =
            "no relay is configured: only peers that can reach the addresses below can connect";
        lines.push(text.into());
    }
    lines.extend(report.relays.iter().map(relay));
    lines.extend(servers.iter().map(turn));
    lines.extend(nat(&report.nat));
    for address in &report.observed {
        lines.push(format!("seen by others as {address}"));
    }
    for address in &report.confirmed {
        lines.push(format!("reached by others at {address}"));
    }
    // The addresses through relays are above.
    let own = |address: &&String| !address.contains("/p2p-circuit");
    for address in report.listening.iter().filter(own) {
        lines.push(format!("listening on {address}"));
    }
    let names: Vec<_> = report.strategies.iter().map(|s| s.as_str()).collect();
    lines.push(format!("can try: {}", names.join(", ")));
    lines.push(meaning(&report.nat).into());
    lines.join("\n")
}

fn relay(relay: &RelayReport) -> String {
    let state = match (relay.reserved, relay.connected) {
        (true, _) => "reachable through it",
        (false, true) => "connected, no reservation",
        (false, false) => "not reached",
    };
    let rtt = round_trip(relay.rtt);
    let reason = relay.last_error.as_deref().unwrap_or_default();
    format!("relay {}: {state}{rtt} {reason}", relay.peer_id)
        .trim_end()
        .to_owned()
}

fn turn(server: &TurnReport) -> String {
    let state = match &server.error {
        Some(error) => error.clone(),
        None => {
            let took = server.took.map(millis).unwrap_or_default();
            format!("gives {} after {took} ms", server.relayed.join(" and "))
        }
    };
    format!("TURN {}: {state}", server.server)
}

fn round_trip(rtt: Option<Duration>) -> String {
    rtt.map(|rtt| format!(", {} ms", millis(rtt)))
        .unwrap_or_default()
}

fn nat(nat: &NatReport) -> Vec<String> {
    let mut lines = Vec::new();
    for server in &nat.stun {
        let state = match (&server.mapped, &server.error) {
            (Some(mapped), _) => format!("sees us as {mapped}{}", round_trip(server.rtt)),
            (None, Some(error)) => error.clone(),
            (None, None) => "there is no usable address, or no answer yet".into(),
        };
        lines.push(format!("STUN {}: {state}", server.server));
    }
    let mapping = match nat.mapping {
        NatMapping::None => "none in front of this machine",
        NatMapping::EndpointIndependent => "one address for all peers",
        NatMapping::AddressDependent => "another address for each peer",
        NatMapping::AddressAndPortDependent => "another address for each peer and port (symmetric)",
        _ => "unknown; configure two STUN servers to know",
    };
    let ports = match nat.ports {
        NatPorts::Preserved => ", ports kept",
        NatPorts::Contiguous => ", ports in sequence",
        NatPorts::Random if nat.mapping != NatMapping::None => ", other ports",
        _ => "",
    };
    lines.push(format!("NAT: {mapping}{ports}"));
    let filtering = match nat.filtering {
        NatFiltering::EndpointIndependent => "everybody",
        NatFiltering::AddressDependent => "addresses we have sent to",
        NatFiltering::AddressAndPortDependent => "addresses and ports we have sent to",
        _ => "unknown; configure a STUN server with RFC 5780 to know",
    };
    lines.push(format!("lets in: {filtering}"));
    lines.push(format!("port mapping: {}", port_mapping(nat)));
    lines
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

/// Says what the NAT means for connections.
fn meaning(nat: &NatReport) -> &'static str {
    let answered = nat.stun.iter().any(|server| server.mapped.is_some());
    if nat.port_mapping == PortMappingState::Mapped {
        return "=> peers can connect directly if the router forwards as it says";
    }
    match (nat.mapping, nat.ports) {
        (NatMapping::None, _) => "=> peers can connect directly unless a firewall is in the way",
        (NatMapping::EndpointIndependent, _) => {
            "=> direct connections to most peers; a relay helps with the rest"
        }
        (_, NatPorts::Contiguous) => {
            "=> direct connections to most peers, by guessing the next port"
        }
        (NatMapping::AddressDependent | NatMapping::AddressAndPortDependent, _) => {
            "=> direct connections to peers behind open NATs or none; a relay or TURN for the others"
        }
        _ if nat.stun.is_empty() => "=> configure STUN servers to know more",
        _ if answered => "=> direct connections are likely; configure a second STUN server to know",
        _ => "=> no STUN server answers: UDP may be blocked, and connections go through relays",
    }
}
