//! `throughline netcheck`.

use serde_json::json;
use throughline::Error;

use crate::{args::PeerArgs, output::Output, peer};

pub(crate) async fn run(args: PeerArgs, output: Output) -> Result<(), Error> {
    let connector = peer::bind(&args, true).await?;
    let report = connector.report().await;
    connector.close().await;
    let report = report?;
    output.result("report", json!(report), || {
        let mut text = format!("peer {}\n", report.peer_id);
        if report.relays.is_empty() {
            text +=
                "no relay configured: only peers that can reach the addresses below can connect\n";
        }
        for relay in &report.relays {
            let state = match (relay.reserved, relay.connected) {
                (true, _) => "reachable through it",
                (false, true) => "connected, no reservation",
                (false, false) => "not reached",
            };
            let reason = relay.last_error.as_deref().unwrap_or_default();
            text += &format!("relay {}: {state} {reason}\n", relay.peer_id);
        }
        for address in &report.observed {
            text += &format!("seen by others as {address}\n");
        }
        for address in &report.confirmed {
            text += &format!("reached by others at {address}\n");
        }
        // The relays' own are above.
        let own = |address: &&String| !address.contains("/p2p-circuit");
        for address in report.listening.iter().filter(own) {
            text += &format!("listening on {address}\n");
        }
        let names: Vec<_> = report.strategies.iter().map(|s| s.as_str()).collect();
        text + &format!("can try: {}", names.join(", "))
    });
    Ok(())
}
