//! The life of `throughline serve`: what it checks before it starts, what it reads again while it
//! runs, and how it ends.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::Value;
use tempfile::TempDir;
use throughline::{Config, Connection, Connector, Stream};

use crate::{
    common::{
        self,
        program::{Program, throughline},
        until, until_polled,
    },
    failure, relay,
};

/// A file of settings that tests edit.
struct Settings {
    _home: TempDir,
    path: PathBuf,
}

impl Settings {
    fn new(text: &str) -> Self {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("serve.toml");
        let settings = Self { _home: home, path };
        settings.write(text);
        settings
    }

    fn write(&self, text: &str) {
        let text = format!("hosts = [\"127.0.0.1\"]\n{text}");
        std::fs::write(&self.path, text).unwrap();
    }

    fn argument(&self) -> &str {
        self.path.to_str().unwrap()
    }

    fn serve(&self) -> (Program, Value) {
        let server = Program::start(&["serve", "--port", "0", "--config", self.argument()]);
        let ready = server.event("ready");
        (server, ready)
    }
}

/// What `path` of the page answers.
fn get(ready: &Value, path: &str) -> String {
    let to = ready["http"].as_str().unwrap();
    let mut stream = TcpStream::connect(to.trim_start_matches("http://")).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn limit(ready: &Value, resource: &str) -> String {
    let metrics = get(ready, "/metrics");
    let name = format!("throughline_limit{{resource=\"{resource}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&name));
    line.unwrap().to_owned()
}

/// A peer that stays on its relays, and reserves on one of them at a time.
fn relayed(relays: &[&Value]) -> Config {
    let mut config = common::config();
    config.relays = relays
        .iter()
        .map(|ready| relay(ready, "quic-v1").into())
        .collect();
    config.relay_reservations = 1;
    config.direct = false;
    config
}

/// A peer that echoes behind the relays, a peer that is connected to it, and their stream.
async fn talking(relays: &[&Value]) -> (Connector, Connector, Connection, Stream) {
    let bob = common::echoing(relayed(relays)).await;
    until(|| !bob.ticket().relays().is_empty()).await;
    let alice = common::peer(relayed(&[])).await;
    let connection = alice.connect(&bob.ticket()).await.unwrap();
    let stream = common::echo(&connection).await.unwrap();
    (bob, alice, connection, stream)
}

fn setting<'a>(check: &'a Value, name: &str) -> &'a Value {
    let mut settings = check["settings"].as_array().unwrap().iter();
    settings.find(|setting| setting["name"] == name).unwrap()
}

#[test]
fn a_check_explains_every_setting_and_binds_nothing() {
    let text = "announce = [\"/dns4/relay.example/tcp/443/wss\"]\n[relay]\ncircuits = 7\n[turn]\nsecret = \"hush\"\n[access.hook]\nurl = \"http://a.example/x?key=hush\"";
    let settings = Settings::new(text);
    let port = common::free_ports().to_string();
    let _taken = std::net::TcpListener::bind(format!("127.0.0.1:{port}")).unwrap();
    let mut line = vec!["serve", "--check", "--port", &port, "--config"];
    line.extend([settings.argument(), "--max-circuits-per-peer", "3"]);
    let (events, status) = Program::start(&line).finish();
    assert!(status.success(), "{events:#?}");
    let check = &events[0];
    for (name, value, source) in [
        ("port", port.parse::<u16>().unwrap().into(), "argument"),
        ("relay.circuits", 7.into(), "file"),
        ("relay.circuits_per_peer", 3.into(), "argument"),
        ("relay.reservations", 4096.into(), "default"),
        ("turn.secret", Value::from("(hidden)"), "file"),
        (
            "access.hook.url",
            Value::from("http://a.example/x?(hidden)"),
            "file",
        ),
        ("access.hook.timeout_ms", 2000.into(), "default"),
    ] {
        let found = setting(check, name);
        assert_eq!(
            (&found["value"], found["source"].as_str()),
            (&value, Some(source))
        );
    }
    let bound = format!("127.0.0.1:{port}");
    assert_eq!(check["binds"][0]["address"], bound.as_str());
    let announced = check["announces"].as_array().unwrap();
    assert!(announced.contains(&"/dns4/relay.example/tcp/443/wss".into()));
    assert!(!format!("{check}").contains("hush"));

    settings.write("[connections]\nper_peer = 0\nidle_seconds = 0");
    let line = ["serve", "--check", "--config", settings.argument()];
    let error = failure(&line);
    assert!(
        error["message"].as_str().unwrap().contains("connections."),
        "{error}"
    );
    let (events, _) = Program::start(&line).finish();
    assert_eq!(events[0]["faults"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_drops_nothing_and_a_faulty_one_changes_nothing() {
    let settings = Settings::new("");
    let (server, ready) = settings.serve();
    let (_bob, _alice, _connection, mut stream) = talking(&[&ready]).await;
    assert_eq!(limit(&ready, "circuits"), "1024");

    settings.write("[relay]\ncircuits = 7\n[connections]\nwindow = 65536");
    server.signal("-HUP");
    assert_eq!(
        server.event("reloaded")["kept"],
        serde_json::json!(["connections.window"])
    );
    assert_eq!(limit(&ready, "circuits"), "7");
    common::exchange(&mut stream, b"after a signal")
        .await
        .unwrap();

    // Nobody says that the file has changed. The change that came with the signal is seen as well.
    let changed = "announce = [\"/dns4/relay.example/tcp/443/wss\"]\n[relay]\ncircuits = 8";
    settings.write(changed);
    while limit(&ready, "circuits") != "8" {
        server.event("reloaded");
    }
    // The server says so when it comes to it.
    until_polled(|| get(&ready, "/config.json").contains("relay.example")).await;
    common::exchange(&mut stream, b"after an edit")
        .await
        .unwrap();

    settings.write("[relay]\ncircuits = 9\nreservation_seconds = 1");
    let failed = server.event("reload_failed");
    let message = failed["message"].as_str().unwrap();
    assert!(message.starts_with("relay.reservation_seconds"), "{failed}");
    assert_eq!(limit(&ready, "circuits"), "8");
    common::exchange(&mut stream, b"after a fault")
        .await
        .unwrap();
    server.signal("-INT");
    assert_eq!(server.finish().1.code(), Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_sends_clients_to_another_relay_before_it_ends() {
    let settings = Settings::new("");
    let ((first, ready), (_other, other)) = (settings.serve(), settings.serve());
    let (bob, _alice, _connection, mut stream) = talking(&[&ready, &other]).await;
    let is_at = |ready: &Value| {
        let relays = bob.ticket().relays();
        let peer = ready["peer_id"].as_str().unwrap();
        relays.iter().all(|relay| relay.ends_with(peer)) && !relays.is_empty()
    };
    assert!(is_at(&ready));
    first.signal("-TERM");
    first.event("draining");
    until(|| {
        assert!(!bob.ticket().relays().is_empty(), "there is no gap");
        is_at(&other)
    })
    .await;
    assert!(get(&ready, "/ready").ends_with("unready: draining\n"));
    assert!(get(&ready, "/health").ends_with("ok\n"));
    assert!(get(&other, "/ready").ends_with("ok\n"));
    common::exchange(&mut stream, b"over the old relay")
        .await
        .unwrap();
    let carol = common::peer(relayed(&[])).await;
    let connection = carol.connect(&bob.ticket()).await.unwrap();
    common::echoed(&connection).await;
    first.signal("-TERM");
    assert!(first.finish().1.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_names_relays_to_those_that_know_no_other() {
    let settings = Settings::new("");
    let (_other, other) = settings.serve();
    settings.write(&format!("[drain]\nto = [\"{}\"]", relay(&other, "quic-v1")));
    let (first, ready) = settings.serve();
    let (bob, _alice, _connection, _stream) = talking(&[&ready]).await;
    first.signal("-TERM");
    let peer = other["peer_id"].as_str().unwrap();
    until(|| {
        bob.ticket()
            .relays()
            .iter()
            .all(|relay| relay.ends_with(peer))
    })
    .await;
    first.signal("-INT");
    assert_eq!(first.finish().1.code(), Some(130));
}

/// What a service manager hears.
#[cfg(unix)]
struct Manager(std::os::unix::net::UnixDatagram);

#[cfg(unix)]
impl Manager {
    fn new(path: &Path) -> Self {
        let socket = std::os::unix::net::UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(common::PATIENCE)).unwrap();
        Self(socket)
    }

    /// Waits for `state`.
    fn hears(&self, state: &str) {
        let mut buffer = [0; 256];
        loop {
            let length = self.0.recv(&mut buffer).unwrap();
            let told = std::str::from_utf8(&buffer[..length]).unwrap();
            if told.starts_with(state) {
                return;
            }
        }
    }
}

#[cfg(unix)]
#[test]
fn the_service_manager_hears_how_the_server_is() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join("notify");
    let manager = Manager::new(&path);
    let settings = Settings::new("");
    let line = [
        "serve",
        "--port",
        "0",
        "--config",
        settings.argument(),
        "--json",
    ];
    let mut command = throughline(&line);
    command
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "100000");
    let server = Program::spawn(&mut command);
    manager.hears("READY=1");
    manager.hears("WATCHDOG=1");
    server.signal("-HUP");
    manager.hears("RELOADING=1\nMONOTONIC_USEC=");
    manager.hears("READY=1");
    server.signal("-TERM");
    manager.hears("STOPPING=1");
    assert!(server.finish().1.success());
}

/// A program with sockets that a service manager keeps.
#[cfg(target_os = "linux")]
fn with_sockets(
    listener: &std::net::TcpListener,
    socket: &std::net::UdpSocket,
    port: u16,
) -> Program {
    use std::os::fd::OwnedFd;
    // The shell moves them to the numbers that `sd_listen_fds(3)` says.
    let script = "exec 3<&0 4<&2 0</dev/null 2>/dev/null; LISTEN_PID=$$ LISTEN_FDS=2 exec \"$@\"";
    let mut command = std::process::Command::new("sh");
    command.args([
        "-c",
        script,
        "sh",
        env!("CARGO_BIN_EXE_throughline"),
        "serve",
        "--json",
    ]);
    command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    let (listener, socket) = (listener.try_clone().unwrap(), socket.try_clone().unwrap());
    Program::with_streams(
        &mut command,
        Stdio::from(OwnedFd::from(listener)),
        Stdio::from(OwnedFd::from(socket)),
    )
}

#[cfg(target_os = "linux")]
#[test]
fn a_new_program_takes_over_the_sockets_without_a_refused_connection() {
    let port = common::free_ports();
    let at = |port: u16| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let listener = std::net::TcpListener::bind(at(port)).unwrap();
    let quic = std::net::UdpSocket::bind(at(port)).unwrap();
    let old = with_sockets(&listener, &quic, port);
    let ready = old.event("ready");
    assert!(get(&ready, "/health").ends_with("ok\n"));
    old.signal("-INT");
    assert_eq!(old.finish().1.code(), Some(130));
    // Nobody serves now.
    let early = std::thread::spawn({
        let ready = ready.clone();
        move || get(&ready, "/health")
    });
    let new = with_sockets(&listener, &quic, port);
    let ready = new.event("ready");
    assert!(early.join().unwrap().ends_with("ok\n"));
    let relay = relay(&ready, "quic-v1");
    let line = [
        "netcheck",
        "--relay",
        relay,
        "--bind",
        "/ip4/127.0.0.1/udp/0/quic-v1",
    ];
    let (events, status) = Program::start(&line).finish();
    assert!(status.success(), "{events:#?}");
    assert_eq!(
        events[0]["relays"][0]["reserved"], true,
        "over the socket that was passed on"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_can_be_json_and_has_a_line_for_each_connection() {
    let settings = Settings::new("");
    let line = [
        "serve",
        "--port",
        "0",
        "--config",
        settings.argument(),
        "--log",
        "json",
    ];
    let mut command = throughline(&line);
    let mut server = Program::spawn(command.args(["-v", "--json"]).stderr(Stdio::piped()));
    let ready = server.event("ready");
    let (bob, _alice, connection, stream) = talking(&[&ready]).await;
    let peer = bob.peer_id().to_string();
    drop((connection, stream));
    bob.close().await;
    let stderr = BufReader::new(server.stderr());
    server.signal("-HUP");
    server.event("reloaded");
    server.signal("-INT");
    assert_eq!(server.finish().1.code(), Some(130));
    let lines = stderr.lines().map(|line| -> Value {
        let line = line.unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    });
    let lines: Vec<Value> = lines.collect();
    let is_of_bob =
        |line: &&Value| line["message"] == "a connection ended" && line["peer"] == peer.as_str();
    let ended = lines.iter().find(is_of_bob).unwrap();
    assert!(ended["received"].as_u64().unwrap() > 0, "{ended}");
    assert!(ended["seconds"].as_f64().unwrap() > 0.0, "{ended}");
    assert!(!ended["reason"].as_str().unwrap().is_empty(), "{ended}");
    assert!(
        ended["address"].is_null(),
        "nobody asked for addresses: {ended}"
    );
    let reload = lines
        .iter()
        .find(|line| line["message"] == "the settings are read again");
    assert_eq!(reload.unwrap()["level"], "INFO");
}

#[test]
fn a_new_token_has_an_id_by_which_it_can_be_revoked() {
    let home = tempfile::tempdir().unwrap();
    let key = home.path().join("key.pem");
    let mut new = throughline(&[
        "token",
        "new",
        "--json",
        "--for",
        "alice",
        "--expires",
        "1d",
    ]);
    let output = new.arg("--key").arg(&key).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let made: Value = serde_json::from_str(&text).expect(&text);
    let id = made["id"].as_str().unwrap();
    assert_eq!(id.len(), 32);
    let claims = made["token"].as_str().unwrap().split('.').nth(1).unwrap();
    let claims = data_encoding::BASE64URL_NOPAD.decode(claims.as_bytes());
    assert!(String::from_utf8(claims.unwrap()).unwrap().contains(id));
}
