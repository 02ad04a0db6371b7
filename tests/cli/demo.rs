//! The demo: one command for a relay, a peer and the page.

use std::{io::Write as _, path::Path};

use super::{Program, has_fields};

/// The page is part of the program only where `page/` was there when it was built.
#[cfg(feature = "demo")]
#[test]
fn the_page_is_within_the_program() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("page/index.html.gz");
    if !page.exists() && std::env::var_os("CI").is_none() {
        eprintln!("skipped: `make page` makes the page, and then the program has it");
        return;
    }
    let demo = Program::start(&["demo", "--port", "0"]);
    let url = demo.event("demo")["url"].as_str().unwrap().to_owned();
    let at = url
        .trim_start_matches("http://")
        .trim_end_matches('/')
        .to_owned();
    for name in [
        "",
        "main.js",
        "npm/dist/index.js",
        "npm/pkg/throughline_bg.wasm",
    ] {
        let mut socket = std::net::TcpStream::connect(&at).unwrap();
        let request = format!("GET /{name} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        std::io::Read::read_to_end(&mut socket, &mut answer).unwrap();
        let text = String::from_utf8_lossy(&answer).to_lowercase();
        assert!(
            text.starts_with("http/1.1 200") && text.contains("content-encoding: gzip"),
            "{name}"
        );
    }
}

#[test]
fn the_demo_is_one_command() {
    let demo = Program::start(&["demo", "--port", "0"]);
    has_fields(
        &demo.event("ready"),
        &["peer_id", "addresses", "stun", "turn", "http"],
    );
    let ready = demo.event("demo");
    has_fields(&ready, &["url", "peer_id", "ticket", "inbox"]);
    let ticket = ready["ticket"].as_str().unwrap();
    let mut connect = Program::start(&["connect", ticket]);
    let mut stdin = connect.stdin();
    writeln!(stdin, "hello").unwrap();
    let answer = connect.event("message");
    assert!(
        answer["text"].as_str().unwrap().contains("hello"),
        "{answer}"
    );
    drop(stdin);
    assert!(connect.finish().1.success());
    demo.signal("-TERM");
    assert!(demo.finish().1.success());
}

/// Browsers of other devices take the page over https only. So with a certificate, it is for them, too.
#[cfg(target_os = "linux")]
#[test]
fn the_demo_is_for_other_devices_where_it_has_a_certificate() {
    let home = tempfile::tempdir().unwrap();
    let [cert, key] = ["cert.pem", "key.pem"].map(|name| home.path().join(name));
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let [cert, key] = [cert.to_str().unwrap(), key.to_str().unwrap()];
    let line = ["demo", "--port", "0", "--tls-cert", cert, "--tls-key", key];
    let demo = Program::start(&line);
    let ready = demo.event("demo");
    let url = ready["url"].as_str().unwrap().trim_end_matches('/');
    let port = url.strip_prefix("https://localhost:").unwrap();
    // Whoever listens at 127.0.0.1 only does not listen there.
    std::net::TcpStream::connect(("127.0.0.2", port.parse().unwrap())).unwrap();
}
