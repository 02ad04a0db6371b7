//! A page and a program on one LAN. The program's firewall lets in only those whom the program has
//! sent to, so the program needs the page's address, which the page hides behind an mDNS name.

use std::time::Duration;

use throughline_lab::{Lab, Nat, NatKind, Pairing, Peer, Program, Run, Site, Spec, Stage};

mod common;

/// How long a direct path may take. An answer by mDNS takes an eighth of a second, and the next
/// question comes after a second.
const WITHIN: Duration = Duration::from_secs(6);

/// The rules of a desktop system's public profile, which lets mDNS in.
const FIREWALL: &str = "table inet firewall {
    chain input {
        type filter hook input priority 0; policy drop;
        iif lo accept
        ct state established,related accept
        meta l4proto { icmp, ipv6-icmp } accept
        udp dport 5353 accept
    }
}";

fn meet(pairing: Pairing, setting: &str) -> Option<Run> {
    let parts = common::parts_or_skip(true)?;
    let nat = Nat {
        hairpin: false,
        ..NatKind::PortRestricted.into()
    };
    let spec = Spec::default().site(Site::new("a", nat).hosts(2));
    let mut stage = Stage::up(spec.figure_delays(), &parts).unwrap();
    stage.add_arguments(["--set", setting, "--no-port-mapping"].map(str::to_owned));
    let native = match pairing.dialler {
        Peer::Native => "a",
        Peer::Browser => "a2",
    };
    let firewall = stage
        .lab
        .host(native)
        .unwrap()
        .command("nft")
        .arg(FIREWALL)
        .status();
    assert!(firewall.unwrap().success());
    Some(stage.meet(pairing, "a", "a2", WITHIN).unwrap())
}

const TO_PAGE: Pairing = Pairing {
    dialler: Peer::Native,
    listener: Peer::Browser,
};

#[test]
fn the_mdns_name_of_a_page_gives_a_direct_path() {
    let from_page = Pairing {
        dialler: Peer::Browser,
        listener: Peer::Native,
    };
    for pairing in [TO_PAGE, from_page] {
        let Some(run) = meet(pairing, "mdns=true") else {
            return;
        };
        println!("{pairing:?}: direct after {:?} ms", run.direct_ms);
        assert_eq!(run.path.as_deref(), Some("direct"), "{run:#?}");
        assert_eq!(run.strategy.as_deref(), Some("direct"), "{run:#?}");
    }
}

#[test]
fn without_mdns_there_is_no_direct_path() {
    let Some(run) = meet(TO_PAGE, "mdns=false") else {
        return;
    };
    assert_eq!(run.path.as_deref(), Some("turn"), "{run:#?}");
}

/// How long finding a peer by its id may take, with the connection.
const FOUND_WITHIN: f64 = 1000.0;

#[test]
fn programs_find_each_other_by_their_ids_without_any_relay() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let spec = Spec::default().site(Site::new("a", NatKind::PortRestricted).hosts(2));
    let lab = Lab::up(spec).unwrap();
    let start = |host: &str, arguments: &[&str], setting: &str| {
        let mut command = lab.host(host).unwrap().command(&parts.program);
        command
            .args(arguments)
            .args(["--json", "--no-port-mapping", "--set", setting]);
        Program::start(format!("throughline on {host}"), command).unwrap()
    };
    let listener = start("a", &["listen", "--echo"], "lan_discovery=true");
    let ready = listener.wait("ready", WITHIN).unwrap();
    let id = ready["peer_id"].as_str().unwrap();
    let dial = ["connect", id, "--ping", "1"];
    let dialler = start("a2", &dial, "lan_discovery=true");
    let connected = dialler.wait("connected", WITHIN).unwrap();
    println!("connected after {} ms", connected["ms"]);
    assert_eq!(connected["path"], "direct", "{connected}");
    assert!(
        connected["ms"].as_f64().unwrap() < FOUND_WITHIN,
        "{connected}"
    );

    let without = start("a2", &dial, "lan_discovery=false");
    let refused = without.wait("connected", WITHIN).unwrap_err().to_string();
    assert!(refused.contains("no_relay"), "{refused}");
}
