//! Checks the documentation of public items. Every type has an example, and every async function
//! says what dropping its future does.

use std::{collections::BTreeSet, fs, path::Path};

/// Collects the text of every source file of the library.
fn sources(folder: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("bin") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(fs::read_to_string(&path).unwrap());
        }
    }
}

fn all_sources() -> Vec<String> {
    let mut found = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut found,
    );
    found
}

/// Returns the types that a module exports with `pub use`.
fn shown(module: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(module)).unwrap();
    let used = text.split("pub use ").skip(1);
    let names = used.flat_map(|used| {
        let list = used.split(';').next().unwrap();
        list.split(|c: char| !c.is_alphanumeric() && c != '_')
    });
    // Functions and modules begin with a small letter, and constants have no small letter.
    names
        .filter(|name| name.starts_with(char::is_uppercase))
        .filter(|name| name.chars().any(char::is_lowercase))
        .map(str::to_owned)
        .collect()
}

/// Returns the documentation above the line that contains `at`.
fn documentation(source: &str, at: usize) -> String {
    let above = source[..at].lines().rev();
    let above = above.skip_while(|line| !line.trim().starts_with("///"));
    let lines = above.take_while(|line| line.trim().starts_with("///"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn every_public_type_has_an_example() {
    let sources = all_sources();
    let mut without = Vec::new();
    for module in ["src/lib.rs", "src/rtc.rs", "src/server/mod.rs"] {
        let names = shown(module);
        assert!(names.len() > 5, "{module}: {names:?}");
        for name in names {
            let definitions = ["struct", "enum", "trait"].map(|kind| format!("pub {kind} {name}"));
            let documented = sources.iter().flat_map(|source| {
                let found = definitions.iter().filter_map(|wanted| {
                    let at = source.find(wanted)?;
                    let rest = &source[at + wanted.len()..];
                    let whole = !rest.starts_with(|c: char| c.is_alphanumeric());
                    let whole = whole && source[..at].ends_with(char::is_whitespace);
                    whole.then(|| documentation(source, at))
                });
                found.collect::<Vec<_>>()
            });
            let documented: Vec<_> = documented.collect();
            if documented.is_empty() || !documented.iter().all(|text| text.contains("```")) {
                without.push(format!("{module}: {name}"));
            }
        }
    }
    assert!(without.is_empty(), "{without:#?}");
}

#[test]
fn every_public_async_function_documents_its_cancel_safety() {
    let mut functions = 0;
    for source in all_sources() {
        for (at, _) in source.match_indices("pub async fn ") {
            let doc = documentation(&source, at);
            let name = source[at..].lines().next().unwrap();
            let hidden = source[..at].trim_end().ends_with("#[doc(hidden)]");
            assert!(hidden || doc.contains("# Cancel safety"), "{name}");
            functions += 1;
        }
    }
    assert!(functions > 10, "{functions}");
}
