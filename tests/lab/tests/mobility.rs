//! What a change of the network costs a connection that is in use: the longest stall, and when the
//! path is direct again.

use std::{
    process::Command,
    time::{Duration, Instant},
};

use throughline_lab::{Lab, Link, Listener, NatKind, Parts, Peer, Program, Spec, Stage};

mod common;

/// How long a connection may take to be direct, at first and after a change.
const DIRECT_WITHIN: Duration = Duration::from_secs(75);

/// How long a connection is watched after a change at least.
const WATCHED: Duration = Duration::from_secs(6);

/// How long the relay is away. A loss of the link is known long before.
const AWAY: Duration = Duration::from_secs(5);

/// How long a program stands still. Every connection has given up by then.
const STILL: Duration = Duration::from_secs(20);

/// Two programs that are connected.
struct Scene {
    stage: Stage,
    listener: Listener,
    dialler: Program,
}

/// A change of the network that a person can name.
struct Change {
    name: &'static str,
    /// Whether both programs have only the relay.
    relayed: bool,
    make: fn(&mut Scene),
    /// The longest stall that is allowed, in milliseconds.
    stall: f64,
    /// How long after the change the path has to be direct again, if it can be.
    direct: Option<Duration>,
}

/// What a change has cost.
struct Cost {
    stall_ms: f64,
    direct: Option<Duration>,
}

impl Scene {
    fn up(relayed: bool, parts: &Parts) -> Self {
        let mut stage = Stage::up(spec(), parts).unwrap();
        stage.add_arguments(relayed.then(|| "--relay-only".to_owned()));
        let listener = stage.listen(Peer::Native, "b").unwrap();
        let dialler = stage
            .dial("a", &listener.ticket, &["--ping", "2000"])
            .unwrap();
        let wanted = if relayed { "relayed" } else { "direct" };
        dialler
            .wait_for(DIRECT_WITHIN, wanted, |event| event["path"] == wanted)
            .unwrap();
        pongs(&dialler, 3);
        Self {
            stage,
            listener,
            dialler,
        }
    }

    fn lab(&mut self) -> &mut Lab {
        &mut self.stage.lab
    }
}

/// Stops a program for [`STILL`], as the sleep of a machine does.
fn stand_still(program: &Program) {
    let signal = |name: &str| {
        let id = program.id().to_string();
        let status = Command::new("kill").args([name, &id]).status().unwrap();
        assert!(status.success());
    };
    signal("-STOP");
    // This is the change itself, and no wait for something.
    std::thread::sleep(STILL);
    signal("-CONT");
}

fn run(lab: &Lab, host: &str, script: &str) {
    let host = lab.host(host).unwrap();
    let mut command: Command = host.command("sh");
    let output = command.args(["-ec", script]).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {errors}");
}

/// Lets the router of `a` drop packets to the router of `b`, from it, or both.
fn block(lab: &Lab, matches: &[&str]) {
    let other = lab.host("b-router").unwrap().ip().unwrap();
    let mut script = "nft add table ip block\n\
        nft add chain ip block forward '{ type filter hook forward priority -10; }'\n"
        .to_owned();
    for side in matches {
        script += &format!("nft add rule ip block forward ip {side} {other} drop\n");
    }
    run(lab, "a-router", &script);
}

/// Replaces the address of a host by another one of its network, after a gap.
fn renumber(lab: &Lab, host: &str, gap: &str) {
    let index = if host == "a" { 1 } else { 2 };
    let script = format!(
        "ip addr flush dev eth0 scope global\nsleep {gap}\n\
         ip addr add 192.168.{index}.77/24 dev eth0\nip route add default via 192.168.{index}.1"
    );
    run(lab, host, &script);
}

const CHANGES: &[Change] = &[
    Change {
        name: "the dialler's NAT gives a new port",
        relayed: false,
        make: |scene| scene.lab().set_nat("a", NatKind::NonPreserving).unwrap(),
        stall: 1_500.0,
        direct: Some(Duration::from_secs(5)),
    },
    Change {
        name: "the listener's NAT gives a new port",
        relayed: false,
        make: |scene| scene.lab().set_nat("b", NatKind::NonPreserving).unwrap(),
        stall: 1_500.0,
        direct: Some(Duration::from_secs(5)),
    },
    Change {
        name: "the dialler's address is replaced",
        relayed: false,
        make: |scene| renumber(scene.lab(), "a", "0"),
        stall: 1_000.0,
        direct: Some(Duration::from_secs(2)),
    },
    Change {
        name: "the dialler's address is replaced after a gap of 2 s",
        relayed: false,
        make: |scene| renumber(scene.lab(), "a", "2"),
        stall: 3_500.0,
        direct: Some(Duration::from_secs(8)),
    },
    Change {
        name: "the listener's address is replaced",
        relayed: false,
        make: |scene| renumber(scene.lab(), "b", "0"),
        stall: 1_000.0,
        direct: Some(Duration::from_secs(2)),
    },
    Change {
        name: "the direct path is blocked",
        relayed: false,
        make: |scene| block(scene.lab(), &["daddr", "saddr"]),
        stall: 1_500.0,
        direct: None,
    },
    Change {
        name: "one direction of the direct path is lost",
        relayed: false,
        make: |scene| block(scene.lab(), &["daddr"]),
        stall: 1_500.0,
        direct: None,
    },
    Change {
        name: "the relay that carries the path is killed, and is back after 5 s",
        relayed: true,
        make: |scene| scene.stage.restart_relay(AWAY).unwrap(),
        stall: 8_000.0,
        direct: None,
    },
    Change {
        name: "the relay that carries the path is restarted",
        relayed: true,
        make: |scene| scene.stage.restart_relay(Duration::ZERO).unwrap(),
        stall: 3_000.0,
        direct: None,
    },
    Change {
        name: "the dialler stands still for 20 s",
        relayed: false,
        make: |scene| stand_still(&scene.dialler),
        stall: 22_000.0,
        direct: Some(Duration::from_secs(25)),
    },
    Change {
        name: "the listener stands still for 20 s",
        relayed: false,
        make: |scene| stand_still(scene.listener.program.as_ref().unwrap()),
        stall: 23_000.0,
        direct: Some(Duration::from_secs(25)),
    },
];

fn spec() -> Spec {
    let mut spec = Spec::pair(NatKind::PortRestricted, NatKind::PortRestricted);
    for site in &mut spec.sites {
        site.link = Some(Link::default());
    }
    spec.figure_delays()
}

/// Makes a change while a stream is in use, and measures what it costs.
fn cost(change: &Change, parts: &Parts) -> Cost {
    let mut scene = Scene::up(change.relayed, parts);
    let start = Instant::now();
    (change.make)(&mut scene);
    let dialler = &scene.dialler;
    let (mut stall_ms, mut direct, mut relayed) = (0.0f64, None, false);
    let mut quiet = 0;
    // A pong or a change of the path comes at least every few seconds.
    while quiet < 15 {
        let Some(event) = dialler.next(Instant::now() + DIRECT_WITHIN) else {
            panic!("{}: the dialler has ended\n{}", change.name, dialler.log());
        };
        if event["event"] == "pong" {
            let rtt = event["rtt_ms"].as_f64().unwrap();
            stall_ms = stall_ms.max(rtt);
            let settled = change.direct.is_none() || event["path"] == "direct";
            let watched = start.elapsed() > WATCHED;
            quiet = match watched && settled || start.elapsed() > DIRECT_WITHIN {
                true => quiet + 1,
                false => 0,
            };
        }
        match event["path"].as_str() {
            Some("relayed") => {
                relayed = true;
                direct = None;
            }
            Some("direct") if relayed && direct.is_none() => direct = Some(start.elapsed()),
            _ => {}
        }
        assert_ne!(event["event"], "error", "{}: {event}", change.name);
    }
    Cost { stall_ms, direct }
}

fn pongs(program: &Program, count: usize) {
    for _ in 0..count {
        program.wait("pong", DIRECT_WITHIN).unwrap();
    }
}

#[test]
fn a_change_of_the_network_is_mended_in_about_a_second() {
    let Some(parts) = common::parts_or_skip(false) else {
        return;
    };
    let only = std::env::var("MOBILITY").unwrap_or_default();
    let mut failed = Vec::new();
    for change in CHANGES.iter().filter(|change| change.name.contains(&only)) {
        let Cost { stall_ms, direct } = cost(change, &parts);
        let again = direct.map_or("not relayed".to_owned(), |after| {
            format!("direct again after {} ms", after.as_millis())
        });
        println!("{}: {stall_ms:.0} ms, {again}", change.name);
        if stall_ms > change.stall
            || direct
                .zip(change.direct)
                .is_some_and(|(took, most)| took > most)
        {
            failed.push(change.name);
        }
    }
    assert!(failed.is_empty(), "{failed:?}");
}
