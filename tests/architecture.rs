//! Rules of the source tree that a reviewer would otherwise have to check (docs/architecture.md).

use std::{
    fs,
    path::{Path, PathBuf},
};

fn sources(under: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.join(under)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "{under} holds no sources");
    found
}

/// Returns the lines that are neither in tests, which stand at the end of their file, nor in
/// comments.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(at, line)| (at + 1, line))
        .take_while(|(_, line)| !line.starts_with("mod test"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn breaches(under: &str, forbidden: &[&str], allowed: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in sources(under) {
        for (at, line) in code(&text) {
            let breach = forbidden.iter().any(|word| line.contains(word));
            if breach && !allowed(&name, line) {
                found.push(format!("{name}:{at}: {}", line.trim()));
            }
        }
    }
    found
}

/// The wall clock jumps, so only code that handles dates may read it: tokens, quotas, credentials for
/// TURN, reservations, sealed offers, signed records, scores and the record of usage. If the clocks of two
/// peers differ, a sealed offer fails and the circuit takes over.
#[test]
fn time_is_measured_by_a_clock_that_does_not_jump() {
    let allowed = [
        // The times of files are only compared with each other.
        "src/native/environment.rs",
        // A part of a file that is a week old is removed.
        "src/bin/throughline/protocols/file/partial.rs",
        "src/envelope.rs",
        "src/offer.rs",
        // Quinn needs this type. Its value comes from a clock that does not jump.
        "src/native/quic/admission.rs",
        // A jump against the other clock says that the machine has slept. It brings probes and ends
        // nothing.
        "src/native/signals.rs",
        "src/server/hop.rs",
        // Until when a certificate is valid.
        "src/server/metrics.rs",
        "src/server/profile.rs",
        "src/server/start.rs",
        "src/server/tls/acme.rs",
    ];
    let dated = [
        "src/server/access/",
        "src/server/reputation/",
        "src/server/turn/",
        "src/server/usage/",
    ];
    let found = breaches("src", &["SystemTime"], |name, _| {
        dated.iter().any(|folder| name.starts_with(folder)) || allowed.contains(&name)
    });
    assert!(found.is_empty(), "{found:#?}");
}

/// Only the threads of the printers write to stdout and stderr, so no task waits for a reader.
/// `main.rs` writes there while no runtime exists.
#[test]
fn nothing_is_printed_past_the_printers() {
    let forbidden = ["print!(", "println!(", "dbg!(", "io::stdout", "io::stderr"];
    let allowed = [
        "src/bin/throughline/main.rs",
        "src/bin/throughline/output.rs",
    ];
    let found = breaches("src", &forbidden, |name, _| {
        allowed.contains(&name) || name.ends_with("tests.rs")
    });
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn core_is_pure() {
    let forbidden = [
        "cfg(",
        "tokio",
        "web_sys",
        "js_sys",
        "UdpSocket",
        "Instant::now",
        "SystemTime",
        "async ",
        "static mut",
        "OnceLock",
        "thread_rng",
        "rand::rng",
        "getrandom",
        "std::fs",
        "futures",
    ];
    let found = breaches("src/core", &forbidden, |_, line| line.contains("cfg(test)"));
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn only_the_choice_of_the_backend_depends_on_the_target() {
    let found = breaches("src", &["target_arch"], |name, _| {
        name == "src/lib.rs" || name.starts_with("src/wasm/")
    });
    assert_eq!(found, Vec::<String>::new());
    // Four uses choose the backend, and three say that a page has no server.
    let chosen = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"));
    assert_eq!(chosen.unwrap().matches("target_arch").count(), 7);
}

/// Tests whose features are off are silently left out, so this test reports them.
#[test]
fn no_test_is_left_out() {
    let features = [
        ("cli", cfg!(feature = "cli")),
        ("server", cfg!(feature = "server")),
        ("libp2p", cfg!(feature = "libp2p")),
        ("tokio", cfg!(feature = "tokio")),
    ];
    let off = features.iter().filter(|(_, is_on)| !is_on);
    let off: Vec<_> = off.map(|(name, _)| name).collect();
    assert!(
        off.is_empty(),
        "the tests of the features {off:?} are left out: run `cargo test --all-features`"
    );
}

/// Nothing compiles `src/wasm/` for tests, so a test there would never run. Code that needs no
/// browser belongs in `src/core/`. The rest is tested from JavaScript.
#[test]
fn the_wasm_backend_has_no_rust_tests() {
    let found = breaches("src/wasm", &["cfg(test)", "test]"], |_, _| false);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn only_one_folder_exports_to_javascript() {
    let found = breaches("src", &["#[wasm_bindgen"], |name, _| {
        name.starts_with("src/wasm/js/")
    });
    assert_eq!(found, Vec::<String>::new());
}

/// Strangers could aim a server that connects to the addresses that they name. Only the AutoNAT
/// server does so, and `core::dial_back` decides which addresses it dials. The authority that issues the
/// certificate, the hook, the source of reputations and the fleet's NATS are the operator's choice.
#[test]
fn a_server_dials_only_peers_that_ask_for_an_autonat_test() {
    let forbidden = [
        "DialOpts",
        "ToSwarm::Dial",
        ".dial(",
        ".connect(",
        "TcpStream::connect",
        "TcpSocket",
        "lookup_host",
        "to_socket_addrs",
    ];
    let found = breaches("src/server", &forbidden, |name, _| {
        [
            "src/server/autonat.rs",
            "src/server/fleet/mod.rs",
            "src/server/fleet/nats.rs",
            "src/server/fleet/usage.rs",
            "src/server/tls/directory.rs",
            "src/server/web.rs",
        ]
        .contains(&name)
            || name.ends_with("tests.rs")
    });
    assert_eq!(found, Vec::<String>::new());
}

/// Whoever names an address could aim us at it. So there are few places where sockets connect and
/// ICE agents send. Each of them asks `core::dial` first, or uses an address of the user's
/// configuration.
#[test]
fn nobody_is_dialled_past_the_guard() {
    let candidates = "src/native/ice/webrtc/session/candidates.rs";
    let guard = "src/native/transports/guard.rs";
    let transports = "src/native/transports/mod.rs";
    let turn = "src/native/ice/turn/mod.rs";
    let expected: [(&str, &[&str]); 14] = [
        // These are the transports, and the checks between them and their callers.
        ("Inner::new(tcp::", &["src/native/transports/tcp.rs"]),
        ("tcp::tokio::Transport::new", &[]),
        ("Tcp::new", &[transports]),
        ("quic::tokio::Transport::new", &[transports]),
        // A peer makes one transport, and a server one for each address.
        ("super::quic::QuicTransport::new", &[transports]),
        ("names.over(", &[guard, transports]),
        ("guard.over(", &[transports]),
        ("guard.named(", &[transports]),
        (
            "policy.check(",
            &[
                "src/core/profile.rs",
                "src/fuzzing/relays.rs",
                "src/swarm/dials.rs",
            ],
        ),
        // These are candidates that the session allows, a socket for one of them, TURN servers that
        // are configured or at the host of a configured relay, and the servers that they may refer us
        // to, the sites of relays that `core::site` has checked, the hook of a server's operator, and
        // sockets that send nothing.
        ("ice.add_remote_candidate(", &[candidates]),
        (
            "TcpStream::connect",
            &[
                "src/native/ice/turn/stream.rs",
                "src/native/site.rs",
                "src/server/tls/directory.rs",
                "src/server/web.rs",
            ],
        ),
        (
            "socket.connect(",
            &[
                "src/native/ice/port_mapping.rs",
                turn,
                "src/native/ice/webrtc/burst.rs",
                // It answers a question from the local network (`core::lan`).
                "src/native/multicast.rs",
                // It asks the system for a route, and sends nothing.
                "src/native/nat64.rs",
            ],
        ),
        // This is a router in the local network that has answered from there (`core::upnp`).
        ("TcpSocket::new", &["src/native/ice/port_mapping/upnp.rs"]),
        ("may_refer(", &["src/core/dial.rs", turn, turn]),
    ];
    for (word, places) in expected {
        let found = breaches("src", &[word], |name, _| {
            name.starts_with("src/bin/") || name.ends_with("tests.rs")
        });
        let mut files: Vec<_> = found.iter().filter_map(|at| at.split(':').next()).collect();
        files.sort_unstable();
        assert_eq!(files, places, "{word}: {found:#?}");
    }
}

/// Returns the layers of the crate, from the top, as the documentation of `src/lib.rs` lists them.
/// One line lists the modules of one layer.
fn layers() -> Vec<Vec<String>> {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let list = text.lines().skip_while(|line| *line != "//! # Layers");
    let lines = list.filter_map(|line| line.strip_prefix("//! - "));
    let names = |line: &str| {
        let (names, _) = line.split_once(':').expect("`names`: meaning");
        let quoted = names.split('`').skip(1).step_by(2);
        quoted.map(str::to_owned).collect()
    };
    lines.map(names).collect()
}

/// Returns the module of the crate to which a file belongs. The interface to JavaScript stands
/// above everything, as the program does.
fn module(file: &str) -> &str {
    let path = file.trim_start_matches("src/").trim_end_matches(".rs");
    match path {
        path if path.starts_with("wasm/js/") => "wasm::js",
        path => path.split('/').next().unwrap(),
    }
}

/// Returns what a file's code imports from the crate: the first word after each `crate::`, and each
/// first word of a group.
fn imported(text: &str) -> Vec<String> {
    let code: String = code(text).map(|(_, line)| format!("{line}\n")).collect();
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let word = |text: &str| {
            let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
            text[..end.unwrap_or(text.len())].to_owned()
        };
        let Some(group) = rest.strip_prefix('{') else {
            found.push(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut start = 0;
        for (at, c) in group.char_indices() {
            let ends = depth == 0 && (c == ',' || c == '}');
            if ends {
                found.push(word(group[start..at].trim()));
                start = at + 1;
            }
            depth += i32::from(c == '{') - i32::from(c == '}');
            if depth < 0 {
                break;
            }
        }
    }
    found.retain(|word| !word.is_empty());
    found
}

/// An import from a higher layer makes a circle sooner or later, and then no module can be read
/// alone.
#[test]
fn a_layer_knows_only_those_below() {
    let layers = layers();
    let level = |name: &str| {
        layers
            .iter()
            .position(|layer| layer.iter().any(|n| n == name))
    };
    // A handle and the event loop know each other.
    let pairs = [("node", "connection")];
    let mut found = Vec::new();
    for (file, text) in sources("src") {
        let own = module(&file);
        let outside = ["bin", "lib", "fuzzing", "wasm::js"].contains(&own);
        // Code that is compiled only for tests may import everything.
        let is_test = ["tests.rs", "testing.rs", "config/documents.rs"];
        if outside || is_test.iter().any(|name| file.ends_with(name)) {
            continue;
        }
        let at = level(own).unwrap_or_else(|| panic!("{own} is in no layer"));
        for name in imported(&text) {
            // The crate's root re-exports these names of the public interface.
            let name = match name.as_str() {
                "Config" => "config",
                "Error" | "ErrorKind" => "error",
                "backend" => "native",
                name => name,
            };
            let is_pair = pairs.contains(&(own, name));
            match level(name) {
                Some(below) if below >= at || is_pair => {}
                _ => found.push(format!("{file}: {name}")),
            }
        }
    }
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn backends_do_not_know_each_other() {
    let none = |_: &str, _: &str| false;
    assert_eq!(
        breaches("src/native", &["crate::wasm"], none),
        Vec::<String>::new()
    );
    assert_eq!(
        breaches("src/wasm", &["crate::native"], none),
        Vec::<String>::new()
    );
}

/// Returns the text of the length that follows `word` in a line.
fn length_after<'l>(line: &'l str, word: &str) -> Option<&'l str> {
    let (_, rest) = line.split_once(word)?;
    let mut depth = 0;
    let end = rest.find(|c| {
        depth += i32::from("([".contains(c)) - i32::from(")]".contains(c));
        depth < 0 || depth == 0 && c == ','
    });
    rest.get(..end?)
}

/// Whether a length consists of constants and of the lengths of existing data.
fn is_known(length: &str) -> bool {
    let mut words = length.split(['+', '-', '*']).map(str::trim);
    words.all(|word| {
        let name = word.rsplit("::").next().unwrap_or(word);
        word.ends_with(".len()") || !name.contains(|c: char| c.is_lowercase())
    })
}

/// Memory grows with the data that has arrived, and never with an announced length.
/// `arriving::read` reads data that follows its length, and every other buffer for incoming data
/// has a constant length.
#[test]
fn no_allocation_has_an_announced_length() {
    let allowed = [
        // It is read in pieces.
        ("src/offer", "wanted"),
        // The padding has three bytes at most.
        ("src/native/ice/turn/frame.rs", "stream.len() + padding"),
        // It is a frame that is sent, with its padding.
        (
            "src/server/turn/stream.rs",
            "frame.len().next_multiple_of(4)",
        ),
        // It is a piece of a file, of a constant length or shorter.
        ("src/server/assets.rs", "most"),
        // It is a piece that we send, of a constant length or shorter.
        ("src/core/autonat.rs", "piece"),
        // The page asks for this length, and a constant bounds it.
        ("src/wasm/js/stream.rs", "max.clamp(1, MAX_READ)"),
    ];
    let mut found = Vec::new();
    for word in ["with_capacity(", "vec![0; ", ".resize("] {
        found.extend(breaches("src", &[word], |name, line| {
            let length = length_after(line, word).unwrap_or(line);
            let is_test = ["test", "simulation", "fuzzing"]
                .iter()
                .any(|part| name.contains(part));
            let is_allowed =
                |(file, text): &(&str, &str)| name.starts_with(file) && length.starts_with(text);
            is_test || is_known(length) || allowed.iter().any(is_allowed)
        }));
    }
    assert_eq!(found, Vec::<String>::new());
    assert!(is_known("2 * KEY + plain.len()") && !is_known("length") && !is_known("a.len() + b"));
    assert_eq!(
        length_after("x.resize(f(a, b), 0);", ".resize("),
        Some("f(a, b)")
    );
}

/// A file that has moved would leave the list in silence.
#[test]
fn what_mutants_change_is_there() {
    let list = include_str!("../.cargo/mutants.toml");
    let paths = list.split('"').filter(|text| text.starts_with("src/"));
    let paths: Vec<_> = paths.map(|path| path.trim_end_matches("/**")).collect();
    assert!(paths.len() > 3, "{paths:?}");
    for path in paths {
        assert!(Path::new(path).exists(), "{path}");
    }
}
