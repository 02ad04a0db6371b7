//! `throughline serve --check`: what the settings are, and what a server would do with them.

use serde_json::{Map, Value, json};
use throughline::{
    Error,
    server::{Plan, ServerConfig},
};

use crate::{
    args::ServeArgs,
    output::Output,
    serve::{file_of, settings},
};

/// What stands for a secret.
const HIDDEN: &str = "(hidden)";

/// A setting, its value, and what gives it that value.
struct Setting {
    name: String,
    value: Value,
    source: &'static str,
}

/// Prints the settings and what a server would do with them.
///
/// # Errors
/// The first reason why no server would start.
pub(crate) async fn run(args: ServeArgs, output: Output) -> Result<(), Error> {
    let mut config = settings(args.clone())?;
    if !args.no_turn && config.turn.secret.is_none() {
        // A start makes a secret. Only that there is one matters here.
        config.turn.secret = Some(HIDDEN.into());
    }
    let settings = explain(args, &config)?;
    let plan = Plan::of(&config).await;
    print(&settings, &plan, output);
    match plan.faults.into_iter().next() {
        Some(fault) => Err(fault),
        None => Ok(()),
    }
}

/// Lists every setting of `config`, which `args` have made.
fn explain(args: ServeArgs, config: &ServerConfig) -> Result<Vec<Setting>, Error> {
    let file = match &args.config {
        Some(path) => flat(&file_of::<toml::Table>(path)?),
        None => Vec::new(),
    };
    // What would be different without the command line comes from there.
    let no_turn = args.no_turn;
    let unchanged = ServeArgs {
        config: args.config,
        ..ServeArgs::default()
    };
    let unchanged = flat(&self::settings(unchanged)?.without_secrets());
    let all = flat(&config.without_secrets());
    let all = all.into_iter().map(|(name, value)| {
        let in_file = file.iter().any(|(given, _)| *given == name);
        // A start may have made it.
        let by_argument = match name == "turn.secret" {
            true => no_turn,
            false => !unchanged.contains(&(name.clone(), value.clone())),
        };
        Setting {
            source: match (by_argument, in_file) {
                (true, _) => "argument",
                (false, true) => "file",
                (false, false) => "default",
            },
            value,
            name,
        }
    });
    Ok(all.collect())
}

/// Returns every setting that `settings` name, as `table.name`.
fn flat(settings: &impl serde::Serialize) -> Vec<(String, Value)> {
    fn below(prefix: &str, table: Map<String, Value>, all: &mut Vec<(String, Value)>) {
        for (name, value) in table {
            let name = format!("{prefix}{name}");
            match value {
                Value::Object(table) => below(&format!("{name}."), table, all),
                value => all.push((name, value)),
            }
        }
    }
    let mut all = Vec::new();
    if let Ok(Value::Object(settings)) = serde_json::to_value(settings) {
        below("", settings, &mut all);
    }
    all
}

fn print(settings: &[Setting], plan: &Plan, output: Output) {
    let explained = settings.iter().map(
        |setting| json!({"name": setting.name, "value": setting.value, "source": setting.source}),
    );
    let binds = plan.binds.iter().map(
        |bind| json!({"service": bind.service, "protocol": bind.protocol, "address": bind.address}),
    );
    let faults = plan.faults.iter();
    let faults = faults.map(|fault| json!({"code": fault.code(), "message": fault.message()}));
    let mut fields = Map::new();
    fields.insert("settings".into(), explained.collect());
    fields.insert(
        "peer_id".into(),
        json!(plan.peer_id.map(|id| id.to_string())),
    );
    fields.insert("binds".into(), binds.collect());
    fields.insert("announces".into(), json!(plan.announces));
    fields.insert("faults".into(), faults.collect());
    output.result("check", fields.into(), || {
        let mut text = String::from("settings\n");
        for Setting {
            name,
            value,
            source,
        } in settings
        {
            text += &format!("  {name} = {value} ({source})\n");
        }
        text += "binds\n";
        for bind in &plan.binds {
            text += &format!("  {} {} {}\n", bind.protocol, bind.address, bind.service);
        }
        text += "announces\n";
        for address in &plan.announces {
            text += &format!("  {address}\n");
        }
        text += "faults\n";
        for fault in &plan.faults {
            text += &format!("  {}\n", fault.message());
        }
        if plan.faults.is_empty() {
            text += "  none\n";
        }
        text.trim_end().to_owned()
    });
}
