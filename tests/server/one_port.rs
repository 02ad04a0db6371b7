//! STUN and TURN at the one port, as coturn's own clients see them.

use std::process::Command;

use throughline::server::Server;

use super::{config, free_ports, start};

fn run(program: &str, arguments: &[&str]) -> String {
    let mut bounded = Command::new("timeout");
    let output = bounded.args(["60", program]).args(arguments).output();
    let output = output.expect("coturn's clients are there; see scripts/setup");
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).into_owned()
}

async fn started() -> (Server, String) {
    let mut config = config();
    config.port = free_ports();
    config.turn.secret = Some("secret".into());
    config.turn.allow_private_peers = true;
    let port = config.port.to_string();
    (start(config).await, port)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_of_coturn_relays_in_every_mode() {
    let (server, port) = started().await;
    let user = server.turn_credentials().unwrap().clone();
    let modes = [
        &[][..],
        &["-s"],
        &["-t"],
        &["-t", "-s"],
        &["-D"],
        &["-D", "-t"],
        &["-g"],
        &["-X"],
        &["-G"],
        &["-M"],
        &["-N"],
        &["-y", "-n", "3"],
    ];
    let with_rtcp = modes.len() - 1;
    let runs = modes.into_iter().enumerate().map(|(n, mode)| {
        let (port, user) = (port.clone(), user.clone());
        tokio::task::spawn_blocking(move || {
            let mut arguments = vec!["-y", "-n", "3", "-m", "1", "-p", &port];
            // Without it, the client asks for a pair of ports (EVEN-PORT and RESERVATION-TOKEN).
            arguments.extend((n != with_rtcp).then_some("-c"));
            arguments.extend(["-u", &user.username, "-w", &user.credential]);
            arguments.extend(mode);
            arguments.push("127.0.0.1");
            let said = run("turnutils_uclient", &arguments);
            assert!(said.contains("Total lost packets 0"), "{mode:?}: {said}");
        })
    });
    for run in futures::future::join_all(runs).await {
        run.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stun_clients_of_coturn_are_answered() {
    let (_server, port) = started().await;
    tokio::task::spawn_blocking(move || {
        let said = run("turnutils_stunclient", &["-p", &port, "127.0.0.1"]);
        assert_eq!(
            said.matches("UDP reflexive addr: 127.0.0.1").count(),
            2,
            "{said}"
        );
        let said = run(
            "turnutils_natdiscovery",
            &["-m", "-f", "-p", &port, "127.0.0.1"],
        );
        assert_eq!(
            said.matches("UDP reflexive addr: 127.0.0.1").count(),
            3,
            "{said}"
        );
    })
    .await
    .unwrap();
}
