//! What `packaging/` says of the server must be true of it.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{config, start};

fn packaged(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("packaging")
        .join(name);
    fs::read_to_string(path).unwrap()
}

/// Returns every name of a metric in `text`.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with("throughline_"))
        .collect()
}

#[tokio::test]
async fn the_dashboard_and_the_alerts_are_about_metrics_that_exist() {
    let server = start(config()).await;
    let metrics = server.metrics();
    let types = metrics
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE "));
    let exist: BTreeSet<String> = types
        .map(|line| match line.split_once(' ').unwrap() {
            (name, "counter") => format!("{name}_total"),
            (name, _) => name.to_owned(),
        })
        .collect();
    let (dashboard, alerts) = (
        packaged("grafana/dashboard.json"),
        packaged("grafana/alerts.yml"),
    );
    let named: BTreeSet<&str> = names(&dashboard).union(&names(&alerts)).copied().collect();
    let unknown: Vec<_> = named
        .iter()
        .filter(|name| !exist.contains(**name))
        .collect();
    assert!(
        unknown.is_empty(),
        "no server has {unknown:?}, only {exist:?}"
    );
    let shown = |name: &&String| named.contains(name.as_str());
    let unseen: Vec<_> = exist.iter().filter(|name| !shown(name)).collect();
    assert_eq!(
        unseen,
        ["throughline_relay_circuit_limit_bytes"],
        "nobody looks at these"
    );
    serde_json::from_str::<serde_json::Value>(&dashboard).unwrap();
}

#[test]
fn the_packaged_settings_are_names_of_options() {
    let options = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/options.md"));
    let (options, settings) = (options.unwrap(), packaged("serve.toml"));
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
