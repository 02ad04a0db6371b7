//! The page and the other HTTP resources, as a browser asks for them.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use throughline::{
    Identity,
    server::{AccessMode, Layout},
};

use super::{PATIENCE, config, start};

fn http(url: &str, request: &str) -> String {
    let address: SocketAddr = url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(url: &str, path: &str) -> String {
    http(
        url,
        &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn http_serves_the_page_and_no_other_file() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("www/index.html", "<h1>page</h1>");
    write("npm/dist/index.js", "export {}");
    write("npm/pkg/a.wasm", "wasm");
    write("npm/pkg/a.wasm.br", "small");
    write("npm/package.json", "{}");
    write("secret", "secret");
    let mut config = config();
    config.http.www = Some(home.path().join("www"));
    config.http.npm = Some(home.path().join("npm"));
    let server = start(config).await;
    let url = server.http_url().to_owned();
    let peer = server.peer_id().to_string();
    tokio::task::spawn_blocking(move || {
        let page = get(&url, "/");
        assert!(
            page.starts_with("HTTP/1.1 200") && page.ends_with("<h1>page</h1>"),
            "{page}"
        );
        assert!(page.contains("nosniff"));
        assert!(get(&url, "/npm/dist/index.js").contains("text/javascript"));
        let wasm = get(&url, "/npm/pkg/a.wasm");
        assert!(
            wasm.contains("application/wasm") && wasm.ends_with("wasm"),
            "{wasm}"
        );
        let ask = |method: &str, path: &str, field: &str| {
            let request = format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{field}\r\n\r\n"
            );
            http(&url, &request)
        };
        let small = ask("GET", "/npm/pkg/a.wasm", "Accept-Encoding: br, gzip");
        assert!(
            small.contains("content-encoding: br") && small.ends_with("small"),
            "{small}"
        );
        let part = ask("GET", "/npm/pkg/a.wasm", "Range: bytes=1-2");
        assert!(
            part.starts_with("HTTP/1.1 206") && part.ends_with("\r\n\r\nas"),
            "{part}"
        );
        let tag = wasm
            .lines()
            .find_map(|line| line.strip_prefix("etag: "))
            .unwrap();
        let same = ask("GET", "/npm/pkg/a.wasm", &format!("If-None-Match: {tag}"));
        assert!(
            same.starts_with("HTTP/1.1 304") && same.ends_with("\r\n\r\n"),
            "{same}"
        );
        for (path, length) in [
            ("/npm/pkg/a.wasm", "content-length: 4\r\n"),
            ("/config.json", "content-length: "),
        ] {
            let head = ask("HEAD", path, "X: y");
            assert!(
                head.contains(length) && head.ends_with("\r\n\r\n"),
                "{head}"
            );
        }
        for path in [
            "/no",
            "/npm/package.json",
            "/../secret",
            "/..%2fsecret",
            "/npm/dist/../../secret",
        ] {
            let answer = get(&url, path);
            assert!(answer.starts_with("HTTP/1.1 404"), "{path}: {answer}");
        }
        assert!(get(&url, "/health").ends_with("ok\n"));
        assert!(get(&url, "/ready").ends_with("ok\n"));
        let config = get(&url, "/config.json");
        let json = config.split_once("\r\n\r\n").unwrap().1;
        let config: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(config["peer_id"], peer);
        assert_eq!(config["addresses"].as_array().unwrap().len(), 4);
        assert_eq!(config["stun"].as_array().unwrap().len(), 2);
        assert_eq!(config["turn"], serde_json::json!([]), "no secret, no TURN");
        assert!(config["demo"].is_null());
        let metrics = get(&url, "/metrics");
        assert!(metrics.contains("throughline_connections 0\n"), "{metrics}");
        assert!(
            metrics.contains("http_requests_total{outcome=\"client_error\"} 5\n"),
            "{metrics}"
        );
        let bad = http(&url, "GET \0\r\n\r\n");
        assert!(bad.starts_with("HTTP/1.1 400"), "{bad}");
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_says_all_that_a_peer_needs() {
    let sister = format!(
        "/dns4/b.example/tcp/443/tls/ws/p2p/{}",
        Identity::generate().peer_id()
    );
    for (mode, credentials) in [(AccessMode::Open, true), (AccessMode::List, false)] {
        let mut config = config();
        config.turn.secret = Some("secret".into());
        config.access.mode = Some(mode);
        let list = tempfile::NamedTempFile::new().unwrap();
        config.access.list = Some(list.path().to_owned());
        config.drain.to = vec![sister.clone()];
        let server = start(config).await;
        let url = server.http_url().to_owned();
        let answer = tokio::task::block_in_place(|| get(&url, "/.well-known/throughline"));
        let (head, json) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        assert!(head.contains("access-control-allow-origin: *"), "{head}");
        let whose = if credentials { "private" } else { "public" };
        assert!(
            head.contains(&format!("cache-control: {whose}, max-age=300")),
            "{head}"
        );
        let said: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(said["version"], 1);
        assert_eq!(said["peer_id"], server.peer_id().to_string());
        assert_eq!(said["addresses"], serde_json::json!(server.addresses()));
        assert_eq!(said["stun"], serde_json::json!(server.stun_urls()));
        assert_eq!(
            said["turn"][0]["urls"],
            serde_json::json!(server.turn_urls())
        );
        assert_eq!(
            said["turn"][0]["credential"].is_string(),
            credentials,
            "{said}"
        );
        let protocols = said["protocols"].as_array().unwrap();
        assert!(
            protocols.contains(&"/libp2p/circuit/relay/0.2.0/hop".into()),
            "{said}"
        );
        assert_eq!(said["sisters"], serde_json::json!([sister]));
        assert_eq!(said["max_age"], 300);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_page_gets_its_own_turn_credentials() {
    let mut config = config();
    config.turn.secret = Some("secret".into());
    let server = start(config).await;
    let url = server.http_url().to_owned();
    let turn = || {
        let answer = get(&url, "/config.json");
        let json = answer.split_once("\r\n\r\n").unwrap().1;
        let config: serde_json::Value = serde_json::from_str(json).unwrap();
        config["turn"][0].clone()
    };
    let (first, second) = tokio::task::block_in_place(|| (turn(), turn()));
    assert_eq!(first["urls"], serde_json::json!(server.turn_urls()));
    let urls = server.turn_urls();
    assert!(urls[0].starts_with("turn:127.0.0.1:") && urls[1].ends_with("?transport=tcp"));
    assert_ne!(first["username"], second["username"]);
    assert_ne!(first["credential"], second["credential"]);
    let shared = server.turn_credentials().unwrap();
    assert!(shared.username.ends_with(":peer") && !shared.credential.is_empty());
    assert!(
        server
            .metrics()
            .contains("throughline_turn_allocations 0\n")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_operators_part_can_have_its_own_address() {
    let mut config = config();
    config.http.admin = Some("127.0.0.1:0".parse().unwrap());
    let server = start(config).await;
    let (public, admin) = (server.http_url(), server.admin_url().unwrap());
    tokio::task::block_in_place(|| {
        assert!(get(admin, "/metrics").contains("throughline_connections 0\n"));
        assert!(get(admin, "/health").ends_with("ok\n"));
        assert!(get(admin, "/ready").ends_with("ok\n"));
        assert!(get(admin, "/config.json").starts_with("HTTP/1.1 404"));
        assert!(get(public, "/metrics").starts_with("HTTP/1.1 404"));
        assert!(get(public, "/health").ends_with("ok\n"));
        assert!(get(public, "/ready").ends_with("ok\n"));
        assert!(get(public, "/config.json").starts_with("HTTP/1.1 200"));
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_port_tells_the_operators_part_to_this_machine_only() {
    let mut config = config();
    config.layout = Layout::Five;
    config.http.trusted_proxies = vec!["127.0.0.1".into()];
    let server = start(config).await;
    let first = format!("http://{}", super::secured::port(&server));
    let page = server.http_url();
    let from = |url: &str, client: &str, path: &str| {
        http(
            url,
            &format!(
                "GET {path} HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {client}\r\nConnection: close\r\n\r\n"
            ),
        )
    };
    tokio::task::block_in_place(|| {
        assert!(get(&first, "/metrics").contains("throughline_connections 0\n"));
        assert!(from(&first, "198.51.100.1", "/metrics").starts_with("HTTP/1.1 404"));
        assert!(from(&first, "198.51.100.1", "/health").ends_with("ok\n"));
        assert!(from(&first, "198.51.100.1", "/ready").ends_with("ok\n"));
        // The port for HTTP of the old layout stays as it was.
        assert!(from(page, "198.51.100.1", "/metrics").starts_with("HTTP/1.1 200"));
    });
}
