//! What `serve` prints, refuses and keeps.

use super::*;

#[test]
fn serve_prints_where_it_is_and_stops_in_good_order() {
    for signal in ["-TERM", "-INT"] {
        let (server, ready) = serve();
        has_fields(&ready, &["peer_id", "addresses", "stun", "turn", "http"]);
        assert!(!fields(&ready).contains(&"turn_pass"), "nobody asked");
        let peer = ready["peer_id"].as_str().unwrap();
        for kind in ["/quic-v1/", "/tcp/", "/ws/", "/webrtc-direct/certhash/"] {
            assert!(relay(&ready, kind).ends_with(&format!("/p2p/{peer}")));
        }
        assert!(
            ready["stun"][0]
                .as_str()
                .unwrap()
                .starts_with("stun:127.0.0.1:")
        );
        assert!(
            ready["turn"][0]
                .as_str()
                .unwrap()
                .starts_with("turn:127.0.0.1:")
        );
        assert!(
            ready["http"]
                .as_str()
                .unwrap()
                .starts_with("http://127.0.0.1:")
        );
        server.signal(signal);
        let (rest, status) = server.finish();
        let told: Vec<_> = rest
            .iter()
            .map(|event| event["event"].as_str().unwrap())
            .collect();
        let expected = match signal {
            "-TERM" => (["draining"], 0),
            _ => (["error"], 130),
        };
        assert_eq!(
            (&told[..], status.code()),
            (&expected.0[..], Some(expected.1))
        );
    }
}

#[test]
fn credentials_are_printed_to_whoever_asks() {
    let arguments = ["serve", "--host", "127.0.0.1", "--port", "0"];
    let mut more = arguments.to_vec();
    more.extend(["--print-turn-credentials", "--admin", "127.0.0.1:0"]);
    let ready = Program::start(&more).event("ready");
    has_fields(&ready, &["turn_user", "turn_pass", "admin"]);
    let mut child = throughline(&arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    // The URL of the page is the last line.
    let text: Vec<String> = lines
        .map(Result::unwrap)
        .take_while(|line| !line.contains("http://"))
        .collect();
    let _ = child.kill();
    let _ = child.wait();
    assert!(!text.concat().contains("turn-pass"), "{text:?}");
}

#[test]
fn serve_refuses_what_cannot_work_by_name() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("serve.toml");
    let arguments = ["serve", "--host", "127.0.0.1", "--port", "0", "--config"];
    for (text, named) in [
        ("[connections]\nestablished = 0", "connections.established"),
        ("[connections]\npending = 0", "connections.pending"),
        ("[connections]\nper_peer = 0", "connections.per_peer"),
        (
            "[connections]\nidle_seconds = 0",
            "connections.idle_seconds",
        ),
        ("[http]\nwww = \"/no/such/folder\"", "http.www"),
        ("[http]\nnpm = \"/no/such/folder\"", "http.npm"),
        ("[turn]\nexternal_ip = \"0.0.0.0\"", "turn.external_ip"),
    ] {
        std::fs::write(&file, text).unwrap();
        let mut arguments = arguments.to_vec();
        arguments.push(file.to_str().unwrap());
        refused(&arguments, "invalid_config", named);
    }
}

#[test]
fn serve_keeps_its_name_in_the_data_directory() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("data");
    let start = || {
        let data = data.to_str().unwrap();
        let server = Program::start(&[
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--data",
            data,
        ]);
        let ready = server.event("ready");
        let peer = ready["peer_id"].clone();
        server.signal("-TERM");
        assert!(server.finish().1.success());
        peer
    };
    assert_eq!(start(), start());
}
