//! Rules of the source tree that a reviewer would otherwise have to hold up (DESIGN: the house).

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

/// Lines outside of tests, which stand at the end of their file, and outside of comments.
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

/// The wall clock jumps. Only what carries a date may ask for it: credentials for TURN, reservations,
/// and sealed offers, which leave it to the circuit when the clocks differ.
#[test]
fn time_is_measured_by_a_clock_that_does_not_jump() {
    let allowed = [
        "src/native/offer.rs",
        "src/server/hop.rs",
        "src/server/http.rs",
        "src/server/mod.rs",
    ];
    let found = breaches("src", &["SystemTime"], |name, _| {
        name.starts_with("src/server/turn/") || allowed.contains(&name)
    });
    assert!(found.is_empty(), "{found:#?}");
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
fn targets_differ_only_where_a_backend_is_chosen() {
    let found = breaches("src", &["target_arch"], |name, _| {
        name == "src/lib.rs" || name.starts_with("src/wasm/")
    });
    assert_eq!(found, Vec::<String>::new());
    let chosen = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs"));
    assert_eq!(chosen.unwrap().matches("target_arch").count(), 4);
}

#[test]
fn javascript_is_met_in_one_folder() {
    let found = breaches("src", &["#[wasm_bindgen"], |name, _| {
        name.starts_with("src/wasm/js/")
    });
    assert_eq!(found, Vec::<String>::new());
}

/// A server that connects to what a stranger names can be aimed. Only the AutoNAT server does, and
/// `core::dial_back` says where to.
#[test]
fn a_server_dials_nobody_but_who_asks_to_be_tested() {
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
        name == "src/server/autonat.rs" || name.ends_with("tests.rs")
    });
    assert_eq!(found, Vec::<String>::new());
}

/// Whoever names an address aims us. So sockets connect and agents send in few places, each of which
/// asks `core::dial` first or goes where the user's configuration says.
#[test]
fn nobody_is_dialled_past_the_guard() {
    let candidates = "src/native/rtc/session/candidates.rs";
    let guard = "src/native/guard.rs";
    let transports = "src/native/transports.rs";
    let turn = "src/native/turn/mod.rs";
    let expected: [(&str, &[&str]); 11] = [
        // The transports, and what is between them and whoever dials.
        ("tcp::tokio::Transport::new", &[transports]),
        ("quic::tokio::Transport::new", &[transports]),
        ("super::quic::Transport::new", &[transports]),
        ("with_dns(", &[guard, transports]),
        ("guard.over(", &[transports]),
        ("guard.named(", &[transports]),
        ("policy.check(", &["src/node/dials.rs"]),
        // Candidates that the session allows, a socket for one of these, configured TURN servers
        // and where they may refer us to, and what sends nothing.
        ("ice.add_remote_candidate(", &[candidates]),
        ("TcpStream::connect", &["src/native/turn/stream.rs"]),
        (
            "socket.connect(",
            &["src/native/portmap.rs", "src/native/rtc/burst.rs", turn],
        ),
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
    let down = [
        "crate::node",
        "crate::native",
        "crate::wasm",
        "crate::backend",
    ];
    assert_eq!(breaches("src/core", &down, none), Vec::<String>::new());
}

/// What stands for a length after `word` in a line.
fn length_after<'l>(line: &'l str, word: &str) -> Option<&'l str> {
    let (_, rest) = line.split_once(word)?;
    let mut depth = 0;
    let end = rest.find(|c| {
        depth += i32::from("([".contains(c)) - i32::from(")]".contains(c));
        depth < 0 || depth == 0 && c == ','
    });
    rest.get(..end?)
}

/// Made of constants, and of the lengths of what is there.
fn is_known(length: &str) -> bool {
    let mut words = length.split(['+', '-', '*']).map(str::trim);
    words.all(|word| {
        let name = word.rsplit("::").next().unwrap_or(word);
        word.ends_with(".len()") || !name.contains(|c: char| c.is_lowercase())
    })
}

/// Memory grows with what has arrived, never with what was announced: `arriving::read` takes what
/// stands behind a length, and a buffer for what is to come has a constant length.
#[test]
fn nothing_is_allocated_by_announcement() {
    let allowed = [
        // A piece at a time.
        ("src/native/offer", "wanted"),
        // At most three bytes.
        ("src/native/turn/frame.rs", "stream.len() + padding"),
        // What is sent, with its padding.
        (
            "src/server/turn/stream.rs",
            "frame.len().next_multiple_of(4)",
        ),
        // A piece of a file, of a constant length, or what is left of it.
        ("src/server/assets.rs", "most"),
        // What we send: a piece of a constant length, and what is left after that.
        ("src/core/autonat.rs", "piece"),
        // What the page asks for, and no more than a constant.
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
