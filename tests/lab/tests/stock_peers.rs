//! Stock rust-libp2p peers behind NATs. They punch holes by DCUtR only.

use std::time::{Duration, Instant};

use throughline_lab::{Lab, LabError, NatKind, Parts, Program, Serve, Spec};

mod common;

/// How long two peers may take from their start to a direct path.
const WITHIN: Duration = Duration::from_secs(10);

/// Starts a lab with our server, and a stock peer on host b that listens on a circuit. Returns them
/// and the peer's ticket.
fn stage(parts: &Parts) -> (Lab, Serve, Program, String) {
    let spec = Spec::pair(NatKind::PortRestricted, NatKind::PortRestricted).figure_delays();
    let lab = Lab::up(spec).unwrap();
    let serve = Serve::start(&lab, &parts.program, &parts.repository.join("js")).unwrap();
    // `cargo test` and `cargo build --examples` put the example there.
    let example = parts.program.with_file_name("examples/libp2p_dcutr");
    let mut command = lab.host("b").unwrap().command(&example);
    command.args(["listen", &quic(&serve)]);
    let stock = Program::start("libp2p_dcutr on b", command).unwrap();
    let ready = stock.wait("ready", WITHIN).unwrap();
    let ticket = ready["ticket"].as_str().unwrap().to_owned();
    (lab, serve, stock, ticket)
}

fn quic(serve: &Serve) -> String {
    let mut addresses = serve.addresses().into_iter();
    addresses
        .find(|a| a.contains("/ip4/") && a.contains("/quic-v1"))
        .unwrap()
}

#[test]
fn a_stock_peer_behind_a_nat_is_reached_directly() -> Result<(), LabError> {
    let Some(parts) = common::parts_or_skip(false) else {
        return Ok(());
    };
    let (lab, serve, stock, ticket) = stage(&parts);
    let mut command = lab.host("a")?.command(&parts.program);
    command
        .args([
            "connect",
            &ticket,
            "--json",
            "--wait-direct",
            "10",
            "--relay",
        ])
        .arg(quic(&serve));
    let ours = Program::start("throughline connect on a", command)?;
    let deadline = Instant::now() + WITHIN;
    let direct = std::iter::from_fn(|| ours.next(deadline))
        .inspect(|event| println!("{event}"))
        .find(|event| event["event"] == "path" && event["path"] == "direct");
    let direct = direct.unwrap_or_else(|| panic!("not direct; {}\n{}", ours.log(), stock.log()));
    assert_eq!(direct["strategy"], "stun");
    let seen = stock.wait("connection", WITHIN)?;
    assert_eq!(seen["path"], "relayed");
    assert_eq!(stock.wait("connection", WITHIN)?["path"], "direct");
    Ok(())
}
