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
