//! What `packaging/` says of the server must be true of it.

use std::{collections::BTreeSet, fs, path::Path};

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)).unwrap()
}

/// Returns every metric that `text` names, without what the format of the metrics adds to its name.
fn named(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter_map(|word| word.strip_prefix("throughline_"));
    names
        .map(|name| name.trim_end_matches("_total").trim_end_matches("_bytes"))
        .collect()
}

/// Returns every metric that the server registers.
fn registered(source: &str) -> BTreeSet<&str> {
    let calls = source.split(".register").skip(1);
    let mut names: BTreeSet<&str> = calls.filter_map(|call| call.split('"').nth(1)).collect();
    // libp2p counts the bytes of the transports.
    names.insert("libp2p_bandwidth");
    names
}

#[test]
fn the_dashboard_and_the_alerts_are_about_metrics_that_exist() {
    let source = read("src/server/metrics.rs") + &read("src/server/fleet/metrics.rs");
    let exist = registered(&source);
    assert!(
        exist.contains("turn_relayed") && exist.len() > 12,
        "{exist:?}"
    );
    let dashboard = read("packaging/grafana/dashboard.json");
    let alerts = read("packaging/grafana/alerts.yml");
    let named: BTreeSet<&str> = named(&dashboard).union(&named(&alerts)).copied().collect();
    assert_eq!(
        named.difference(&exist).collect::<Vec<_>>(),
        <[&&str; 0]>::default()
    );
    // A limit that is mostly none needs no panel.
    let unseen: Vec<_> = exist.difference(&named).collect();
    assert_eq!(unseen, [&"relay_circuit_limit"], "nobody looks at these");
    serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
}

#[test]
fn the_packaged_settings_are_names_of_options() {
    let (options, settings) = (read("docs/options.md"), read("packaging/serve.toml"));
    let mut table = String::new();
    let mut seen = 0;
    for line in settings.lines() {
        let line = line.trim_start_matches('#');
        if let Some(name) = line
            .strip_prefix('[')
            .and_then(|line| line.strip_suffix(']'))
        {
            table = format!("{name}.");
        } else if let Some((name, _)) = line.split_once(" = ")
            && !name.starts_with(' ')
        {
            seen += 1;
            assert!(
                options.contains(&format!("| `{table}{name}` |")),
                "{table}{name}"
            );
        }
    }
    assert!(seen > 4, "{settings}");
}
