//! Measures how long datagrams take beside a stream that fills the path, where the network loses
//! packets.

use std::time::Duration;

use throughline_lab::{Link, NatKind, PEER_ROUND_TRIP, Peer, Spec, Stage};

mod common;

const LOSS: f64 = 0.05;

/// Returns two sites. The link of one of them loses packets in both directions.
fn spec(loss: f64) -> Spec {
    let mut spec = Spec::pair(NatKind::PortRestricted, NatKind::PortRestricted);
    for site in &mut spec.sites {
        site.link = Some(Link::default());
    }
    let mut spec = spec.figure_delays();
    if let Some(link) = &mut spec.sites[0].link {
        link.loss = loss;
    }
    spec
}

/// A stream fills the path, which loses one packet in twenty, and a datagram goes out every 20 ms.
/// Of the datagrams that arrive, 99 of 100 take at most three round trips. One is the way itself.
/// In the other two, the congestion window that they share with the stream may have no room. The
/// time is measured when a datagram is back, without the way back, which counts as half of the
/// fastest round trip.
#[test]
fn no_datagram_waits_for_a_stream() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let round_trip = PEER_ROUND_TRIP.as_secs_f64() * 1000.0;
    for loss in [0.0, LOSS] {
        let mut stage = Stage::up(spec(loss), &parts).unwrap();
        let listener = stage.listen(Peer::Native, "b").unwrap();
        let bulk = ["--wait-direct", "30", "--bench", "10", "--ticks"];
        let dialler = stage.dial("a", &listener.ticket, &bulk).unwrap();
        let ticks = dialler.wait("ticks", Duration::from_secs(90)).unwrap();
        let number = |name: &str| ticks[name].as_f64().unwrap();
        let (sent, arrived) = (number("sent"), number("arrived"));
        println!("{loss}: {ticks}");
        assert!(sent > 450.0, "{ticks}");
        let lost = 1.0 - arrived / sent;
        assert!(lost <= 2.0 * loss + 0.05, "{ticks}");
        let there = number("p99_ms") - number("min_ms") / 2.0;
        assert!(there < 3.0 * round_trip, "{loss}: {there} ms, {ticks}");
    }
}
