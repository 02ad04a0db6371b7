//! Coturn serves STUN and TURN to hosts behind every kind of firewall. Its own client checks that.

use throughline_lab::{Coturn, Lab, NatKind, Site, Spec};

mod common;

/// Relays some messages from `host` through coturn and back with coturn's own client. Returns its
/// output.
fn relayed(lab: &Lab, host: &str, port: u16, arguments: &[&str]) -> String {
    let server = lab.host("relay").unwrap().ipv4().unwrap();
    let output = lab
        .host(host)
        .unwrap()
        .command("turnutils_uclient")
        .args([
            "-u",
            Coturn::USER,
            "-w",
            Coturn::PASSWORD,
            "-y",
            "-c",
            "-n",
            "3",
            "-m",
            "1",
            "-p",
        ])
        .arg(port.to_string())
        .args(arguments)
        .arg(server.to_string())
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn coturn_relays_for_hosts_behind_hostile_nats() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let spec = Spec::default()
        .site(Site::new("symmetric", NatKind::SymmetricRandom))
        .site(Site::new("blocked", NatKind::UdpBlocked))
        .site(Site::new("strict", NatKind::Tcp443));
    let lab = Lab::up(spec).unwrap();
    let usual = Coturn::start(&lab).unwrap();
    let strict = Coturn::start_at(&lab, 443).unwrap();
    let (usual, strict) = (usual.address().port(), strict.address().port());
    std::thread::scope(|scope| {
        for (host, port, arguments) in [
            ("symmetric", usual, &[][..]),
            ("blocked", usual, &["-t"]),
            ("strict", strict, &["-t"]),
        ] {
            let lab = &lab;
            scope.spawn(move || {
                let said = relayed(lab, host, port, arguments);
                assert!(said.contains("Total lost packets 0"), "{host}: {said}");
            });
        }
    });
    let refused = relayed(&lab, "symmetric", usual, &["-w", "wrong"]);
    assert!(!refused.contains("Total lost packets 0"), "{refused}");
}
