//! Tests faults that must do no harm, or none after they have ended: a relay that is killed, peers
//! that fall silent, descriptors and disks that run out.
#![cfg(target_os = "linux")]

use std::{fs, net::TcpStream, path::Path, process::Command, time::Duration};

use futures::{AsyncReadExt as _, AsyncWriteExt as _};
use libp2p::{Multiaddr, multiaddr::Protocol};
use serde_json::Value;
use throughline::{Config, PathKind};
use tokio::time::timeout;

use common::{
    PATIENCE, config, echoed, echoing, free_ports, peer, program::Program, until, until_path,
    until_polled,
};

#[path = "../common/mod.rs"]
mod common;
mod silent;

/// Starts a relay at this port and the next ones. Returns its `ready` event as well.
fn serve(port: u16, data: &Path) -> (Program, Value) {
    let (port, data) = (port.to_string(), data.to_str().unwrap());
    let serve = [
        "serve",
        "--host",
        "127.0.0.1",
        "--port",
        &port,
        "--data",
        data,
    ];
    let program = Program::start(&serve);
    let ready = program.event("ready");
    (program, ready)
}

fn address(ready: &Value, has: &str) -> String {
    let addresses = ready["addresses"].as_array().unwrap();
    let mut addresses = addresses.iter().filter_map(Value::as_str);
    addresses.find(|text| text.contains(has)).unwrap().into()
}

fn descriptors(program: &Program) -> usize {
    let folder = format!("/proc/{}/fd", program.id());
    fs::read_dir(folder).unwrap().count()
}

fn limit_descriptors(program: &Program, most: usize) {
    let (pid, limit) = (program.id().to_string(), format!("--nofile={most}:"));
    let mut prlimit = Command::new("prlimit");
    let limited = prlimit.args(["--pid", &pid, &limit]).status();
    assert!(limited.unwrap().success());
}

/// Returns the configuration of a peer that stays on its relay.
fn relayed(relay: &str) -> Config {
    let mut config = config();
    config.relays = vec![relay.into()];
    config.direct = false;
    config
}

fn dialling(mut config: Config) -> Config {
    config.reserve = false;
    config
}

/// Returns the byte at `offset` of a stream. It depends on its place.
fn byte(offset: usize) -> u8 {
    (offset.wrapping_mul(2_654_435_761) >> 13) as u8
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_killed_under_load_costs_no_byte() {
    const BYTES: usize = 8 << 20;
    let (port, home) = (free_ports(), tempfile::tempdir().unwrap());
    let (relay, ready) = serve(port, home.path());
    // Over TCP, a peer learns at once that the relay is dead.
    let address = address(&ready, "/tcp/");
    let bob = echoing(relayed(&address)).await;
    let alice = peer(dialling(relayed(&address))).await;
    let mut direct = relayed(&address);
    direct.direct = true;
    let carol = echoing(direct.clone()).await;
    let dave = peer(dialling(direct)).await;

    let direct = dave.connect(&carol.ticket()).await.unwrap();
    until_path(&direct, PathKind::Direct).await;
    let connection = alice.connect(&bob.ticket()).await.unwrap();
    let stream = connection.open("echo/1").await.unwrap();
    let (mut send, mut recv) = stream.split();
    let write = async move {
        for start in (0..BYTES).step_by(1 << 16) {
            let piece: Vec<_> = (start..start + (1 << 16)).map(byte).collect();
            send.write_all(&piece).await.unwrap();
        }
        send.close().await.unwrap();
    };
    let mut relay = Some(relay);
    let read = async {
        let (mut at, mut buffer, mut killed) = (0, vec![0; 1 << 16], false);
        loop {
            let read = recv.read(&mut buffer).await.unwrap();
            if read == 0 {
                break;
            }
            assert!(
                buffer[..read]
                    .iter()
                    .zip(at..)
                    .all(|(b, at)| *b == byte(at))
            );
            at += read;
            if at > BYTES / 8 && !killed {
                killed = relay.take().is_some();
                // Peers that need no relay notice nothing.
                echoed(&direct).await;
                let again = tokio::task::block_in_place(|| serve(port, home.path()));
                relay = Some(again.0);
            }
        }
        assert_eq!(at, BYTES);
    };
    let both = async { tokio::join!(write, read) };
    timeout(PATIENCE, both).await.expect("all bytes come back");
    // Bob's reservation may have to wait for its turn.
    until(|| !bob.ticket().relays().is_empty()).await;
    echoed(&alice.connect(&bob.ticket()).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_without_descriptors_left_serves_those_it_has() {
    let home = tempfile::tempdir().unwrap();
    let (relay, ready) = serve(free_ports(), home.path());
    let (quic, tcp) = (address(&ready, "/quic-v1"), address(&ready, "/tcp/"));
    let bob = echoing(relayed(&quic)).await;
    let alice = peer(dialling(relayed(&tcp))).await;
    let before = alice.connect(&bob.ticket()).await.unwrap();
    let limit = descriptors(&relay) + 4;
    limit_descriptors(&relay, limit);
    let tcp_port: Multiaddr = tcp.parse().unwrap();
    let port = tcp_port.iter().find_map(|part| match part {
        Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    let flood: Vec<_> = (0..32)
        .map(|_| TcpStream::connect(("127.0.0.1", port.unwrap())).unwrap())
        .collect();
    until_polled(|| descriptors(&relay) >= limit).await;
    echoed(&before).await;
    // A QUIC connection needs no descriptor of its own.
    let carol = peer(dialling(relayed(&quic))).await;
    echoed(&carol.connect(&bob.ticket()).await.unwrap()).await;
    drop(flood);
    let dave = peer(dialling(relayed(&tcp))).await;
    echoed(&dave.connect(&bob.ticket()).await.unwrap()).await;
}

/// Returns the last line of a program that cannot start.
fn failure(script: &str) -> Value {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().last().unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|_| {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        panic!("{text}{errors}")
    })
}

#[test]
fn a_peer_that_gets_no_descriptor_says_so() {
    let program = env!("CARGO_BIN_EXE_throughline");
    // This is enough for the runtime, and not for the sockets.
    let error = failure(&format!(
        "ulimit -n 9; exec {program} listen --no-port-mapping --json"
    ));
    assert_eq!(error["code"], "io", "{error}");
    assert!(
        error["message"]
            .as_str()
            .unwrap()
            .contains("Too many open files"),
        "{error}"
    );
}

#[test]
fn a_full_disk_is_said_and_nothing_is_lost() {
    let home = tempfile::tempdir().unwrap();
    let (program, home) = (env!("CARGO_BIN_EXE_throughline"), home.path().display());
    let serve = format!("{program} serve --host 127.0.0.1 --port 0 --data {home} --json");
    // A disk of 32 KiB in a mount namespace of its own. A server that starts is told to stop.
    let script = format!(
        "set -e; mount -t tmpfs -o size=32k,mode=700 tmpfs {home}
         full() {{ cat /dev/zero > {home}/filler 2>/dev/null || true; }}
         starts() {{ mkfifo {home}.out; {serve} > {home}.out & exec 3< {home}.out; read -r line <&3
                    kill $!; wait $! || true; exec 3<&-; rm {home}.out; printf '%s\\n' \"$line\"; }}
         full; if {serve}; then exit 1; fi
         rm {home}/filler; [ -z \"$(ls -A {home})\" ]
         starts
         cp -r {home} {home}.before; rm {home}/webrtc-direct.pem; full
         if {serve}; then exit 1; fi
         rm {home}/filler {home}.before/webrtc-direct.pem; diff -r -x usage.redb {home} {home}.before; rm -r {home}.before
         starts"
    );
    let output = Command::new("unshare")
        .args(["--mount", "--map-root-user", "sh", "-c", &script])
        .output()
        .unwrap();
    let (text, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    if errors.contains("unshare:") && std::env::var_os("CI").is_none() {
        eprintln!("skipped: {errors}");
        return;
    }
    assert!(output.status.success(), "{text}{errors}");
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let [no_identity, first, no_certificate, second] = &lines[..] else {
        panic!("{text}{errors}");
    };
    for error in [no_identity, no_certificate] {
        assert_eq!(error["code"], "io", "{error}");
        assert!(
            error["message"].as_str().unwrap().contains("No space left"),
            "{error}"
        );
    }
    assert_eq!(first["event"], "ready");
    assert_eq!(first["peer_id"], second["peer_id"]);
}
