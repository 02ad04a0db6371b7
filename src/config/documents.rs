//! Writes the types of the npm package and `docs/options.md` from the tables of options. The tests
//! fail when one of them, or the documentation of the fields, differs from the tables.

use std::{fs, path::Path};

use serde_json::Value;

use super::{
    Config,
    options::{OPTIONS, Place, Range, Row},
};

/// If this variable is set, the files are written and not compared. `make options` sets it.
const WRITE: &str = "THROUGHLINE_WRITE_OPTIONS";

fn holds(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if std::env::var_os(WRITE).is_some() {
        fs::write(path, text).unwrap();
    } else if path.parent().is_some_and(Path::is_dir) {
        // The published crate has no `js/`.
        let written = fs::read_to_string(path).unwrap_or_default();
        assert!(
            written == text,
            "{name} differs from the table of options: run `make options`"
        );
    }
}

/// Writes a number with separators: `1,024`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Writes a number with its unit as people do: `10 min`, `4 MiB`.
fn plain(number: u64, unit: &str) -> String {
    let larger: &[(u64, &str)] = match unit {
        "ms" => &[(3_600_000, "h"), (60_000, "min"), (1_000, "s"), (1, "ms")],
        "bytes" => &[(1 << 20, "MiB"), (1 << 10, "KiB"), (1, "bytes")],
        _ => &[],
    };
    let fits = |(size, _): &&(u64, &str)| number > 0 && number.is_multiple_of(*size);
    match larger.iter().find(fits) {
        Some((size, unit)) => format!("{} {unit}", grouped(number / size)),
        None => grouped(number),
    }
}

fn range(range: &Range) -> String {
    let (least, most, unit) = (range.least, range.most, range.unit);
    match unit {
        "bytes" if least >= 1024 => format!("{} to {}", plain(least, unit), plain(most, unit)),
        // Ports and shares.
        "%" | "" => format!("{least} to {most} {unit}").trim_end().to_owned(),
        _ => format!("{} to {} {unit}", grouped(least), grouped(most)),
    }
}

fn ranges(row: &Row) -> String {
    let ranges: Vec<_> = row.ranges.iter().map(range).collect();
    ranges.join(", ")
}

/// Returns the value at `a.b`.
fn at<'v>(defaults: &'v Value, name: &str) -> &'v Value {
    let pointer = format!("/{}", name.replace('.', "/"));
    let value = defaults.pointer(&pointer);
    value.unwrap_or_else(|| panic!("`{name}` is in the table but is no option"))
}

fn default_of(row: &Row, value: &Value) -> String {
    let unit = row.ranges.first().map_or("", |range| range.unit);
    match value {
        Value::Null => String::from("none"),
        Value::Array(list) if list.is_empty() => String::from("none"),
        Value::Number(number) if unit == "bytes" => plain(number.as_u64().unwrap(), unit),
        Value::Number(number) if unit.is_empty() => number.to_string(),
        Value::Number(number) => grouped(number.as_u64().unwrap()),
        Value::Object(parts) => {
            let is_set = |(_, value): &(&String, &Value)| value.as_u64() != Some(0);
            let set = parts.iter().filter(is_set);
            let set = set.map(|(name, value)| {
                let value = grouped(value.as_u64().unwrap());
                format!(", and {value} for `{name}`")
            });
            format!("0{}", set.collect::<String>())
        }
        other => format!("`{other}`"),
    }
}

fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |name, part| {
        name + &part[..1].to_uppercase() + &part[1..]
    })
}

/// Writes a comment of one line if it fits, and of several lines if not.
fn comment(text: &str) -> String {
    const WIDTH: usize = 108;
    if text.len() <= WIDTH {
        return format!("  /** {text} */\n");
    }
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let line = lines.last_mut().unwrap();
        if line.len() + word.len() > WIDTH {
            lines.push(word.to_owned());
        } else {
            *line += if line.is_empty() { "" } else { " " };
            *line += word;
        }
    }
    let lines: String = lines.iter().map(|line| format!("   * {line}\n")).collect();
    format!("  /**\n{lines}   */\n")
}

fn typescript() -> String {
    let defaults = serde_json::to_value(Config::default()).unwrap();
    let mut text = String::from(
        "// Written from the table in src/config/options.rs by `make options`; a test compares the two.\n\
         import type { RelayTokens, StartDelays } from \"./config.js\";\n\n\
         /** The options of a connector that Rust and JavaScript share. */\n\
         export interface Options {\n",
    );
    for row in OPTIONS.iter().filter(|row| row.place == Place::Everywhere) {
        let value = at(&defaults, row.name);
        let kind = match value {
            Value::Bool(_) => "boolean",
            Value::Number(_) => "number",
            Value::Array(_) => "readonly string[]",
            Value::Null => "RelayTokens",
            _ => "StartDelays",
        };
        let default = default_of(row, value);
        let limits = match ranges(row) {
            none if none.is_empty() => format!("Defaults to {default}."),
            some => format!("{some}; defaults to {default}."),
        };
        text += &comment(&format!("{} {limits}", row.meaning));
        text += &format!("  readonly {}?: {kind};\n", camel(row.name));
    }
    text + "}\n"
}

#[cfg(feature = "server")]
fn table(rows: &[Row], defaults: &Value, kept: &[&str]) -> String {
    let mut text =
        String::from("| name | range | default | meaning |\n| --- | --- | --- | --- |\n");
    for row in rows {
        let place = match row.place {
            Place::Everywhere => "",
            Place::Native => " A page ignores it.",
            Place::Apart => " A page has `iceServers`.",
        };
        let kept = match kept.contains(&row.name) {
            true => " A reload does not change it.",
            false => "",
        };
        text += &format!(
            "| `{}` | {} | {} | {}{place}{kept} |\n",
            row.name,
            ranges(row),
            default_of(row, at(defaults, row.name)),
            row.meaning
        );
    }
    text
}

#[test]
fn the_types_of_the_npm_package_are_those_of_the_table() {
    holds("js/src/options.ts", &typescript());
}

#[cfg(feature = "server")]
#[test]
fn the_documented_options_are_those_of_the_tables() {
    use crate::server::{ServerConfig, options};

    let connector = serde_json::to_value(Config::default()).unwrap();
    let server = serde_json::to_value(ServerConfig::default()).unwrap();
    let text = format!(
        "<!-- Written from src/config/options.rs and src/server/config/options.rs by `make options`. -->\n\
         # Options\n\n\
         The names are those of TOML, JSON and Rust. A page writes them in camel case. In Rust, a time in\n\
         milliseconds is a `Duration`, and its name has no `_ms`. An unknown name or a value out of range is\n\
         refused, and the error names the option, the value, the range and the unit.\n\n\
         ## A connector\n\
         These are the options of `Config` in Rust, of `Connector.create` in a page, and of `--config` and\n\
         `--set` of the program.\n\n\
         {}\n## A server\n\
         These are the options of `ServerConfig` in Rust and of `throughline serve --config`. In TOML, the part\n\
         before a dot is the name of a table. The program reads its file again when that changes and on\n\
         SIGHUP. `throughline serve --check` says what each option is, and where its value comes from.\n\n\
         {}",
        table(OPTIONS, &connector, &[]),
        table(options::OPTIONS, &server, &options::kept_until_restart()),
    );
    holds("docs/options.md", &text);
    covers(options::OPTIONS, &server);
}

/// Checks that every option has a row.
fn covers(rows: &[Row], defaults: &Value) {
    covers_part(rows, defaults, "");
}

fn covers_part(rows: &[Row], part: &Value, within: &str) {
    for (name, value) in part.as_object().unwrap() {
        let name = format!("{within}{name}");
        if !rows.iter().any(|row| row.name == name) {
            assert!(value.is_object(), "`{name}` has no row");
            covers_part(rows, value, &format!("{name}."));
        }
    }
}

#[test]
fn every_option_is_in_the_table() {
    covers(OPTIONS, &serde_json::to_value(Config::default()).unwrap());
}

/// Returns the documentation of each field with the field's name in Rust.
fn documented(source: &str, of: &str) -> Vec<(String, String)> {
    let body = source.split(&format!("pub struct {of} {{\n")).nth(1);
    let body = body.unwrap().split("\n}\n").next().unwrap();
    let (mut doc, mut fields) = (String::new(), Vec::new());
    for line in body.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            doc += text;
        } else if let Some(field) = line.strip_prefix("pub ") {
            let (name, _) = field.split_once(": ").unwrap();
            fields.push((name.to_owned(), std::mem::take(&mut doc)));
        }
    }
    fields
}

#[test]
fn the_documentation_of_every_field_says_its_range_and_default() {
    let defaults = serde_json::to_value(Config::default()).unwrap();
    let fields = documented(include_str!("../config.rs"), "Config");
    assert_eq!(fields.len(), OPTIONS.len());
    for (row, (name, doc)) in OPTIONS.iter().zip(fields) {
        assert_eq!(row.name.trim_end_matches("_ms"), name);
        for range in row.ranges {
            let (least, most) = (range.least, range.most);
            let said = match range.unit {
                unit @ ("ms" | "bytes") => [least, most].map(|number| plain(number, unit)),
                _ => [least, most].map(grouped),
            };
            // The first of two ranges is written in other words.
            let said = match row.ranges {
                [first, _] if std::ptr::eq(first, range) => format!("{most} {}", range.unit),
                _ => said.join(" to "),
            };
            assert!(doc.contains(&said), "{name}: its range is {said}");
        }
        let unit = row.ranges.first().map_or("", |range| range.unit);
        let default = match at(&defaults, row.name) {
            Value::Number(number) => plain(number.as_u64().unwrap(), unit),
            Value::Bool(value) => format!("`{value}`"),
            Value::Object(_) => String::from("0"),
            // An empty default has words of its own.
            _ => String::new(),
        };
        let said = format!("efaults to {default}");
        assert!(doc.contains(&said), "{name}: its default is {default}");
    }
}

#[cfg(feature = "server")]
#[test]
fn the_documentation_of_the_server_says_its_ranges_and_defaults() {
    use crate::server::{ServerConfig, options};

    let source = concat!(
        include_str!("../server/config.rs"),
        include_str!("../server/config/access.rs"),
        include_str!("../server/config/connections.rs"),
        include_str!("../server/config/drain.rs"),
        include_str!("../server/config/fleet.rs"),
        include_str!("../server/config/relay.rs"),
        include_str!("../server/config/reputation.rs"),
        include_str!("../server/config/stun.rs"),
        include_str!("../server/config/tls.rs"),
        include_str!("../server/config/traffic.rs"),
        include_str!("../server/config/turn.rs"),
        include_str!("../server/config/usage.rs"),
    );
    let defaults = serde_json::to_value(ServerConfig::default()).unwrap();
    let structs = [
        ("", "ServerConfig"),
        ("relay.", "RelayLimits"),
        ("stun.", "StunConfig"),
        ("turn.", "TurnConfig"),
        ("traffic.", "TrafficConfig"),
        ("reputation.", "ReputationConfig"),
        ("autonat.", "AutonatConfig"),
        ("access.", "AccessConfig"),
        ("access.hook.", "HookConfig"),
        ("connections.", "ConnectionLimits"),
        ("http.", "HttpConfig"),
        ("drain.", "DrainConfig"),
        ("fleet.", "FleetConfig"),
    ];
    let fields = structs.iter().flat_map(|(prefix, of)| {
        let named = move |(name, doc)| (format!("{prefix}{name}"), doc);
        documented(source, of).into_iter().map(named)
    });
    for (name, doc) in fields {
        let Some(row) = options::OPTIONS.iter().find(|row| row.name == name) else {
            continue;
        };
        let words = doc.replace(',', "");
        for range in row.ranges {
            // The documentation does not repeat the range of the type.
            let said = format!("{} to {}", range.least, range.most);
            let by_type =
                (range.least, range.most) == (1, u32::MAX.into()) || name.ends_with("_port");
            assert!(
                by_type || words.contains(&said),
                "{name}: its range is {said}"
            );
        }
        if let Value::Number(default) = at(&defaults, &name) {
            let said = format!("efault {default}");
            assert!(words.contains(&said), "{name}: its default is {default}");
        }
    }
}
