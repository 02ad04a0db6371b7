//! A page and a program on one LAN, where the program's firewall lets nobody in who was not spoken to first: the
//! page's address, which it hides behind an mDNS name, is all that helps.

use std::time::Duration;

use throughline_lab::{Nat, NatKind, Pairing, Peer, Run, Site, Spec, Stage};

mod common;

/// An answer by mDNS takes an eighth of a second, and the next question comes after a second.
const WITHIN: Duration = Duration::from_secs(6);

/// What a desktop system calls its public profile; mDNS is let in.
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
fn the_name_of_a_page_leads_to_it() {
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
fn nothing_else_does() {
    let Some(run) = meet(TO_PAGE, "mdns=false") else {
        return;
    };
    assert_eq!(run.path.as_deref(), Some("relayed"), "{run:#?}");
}
