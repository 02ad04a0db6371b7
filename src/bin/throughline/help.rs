//! What the help and the manual say besides the options: the groups of the commands, examples, and the
//! exit statuses.

use std::{io::Write as _, path::Path};

use clap::{Command, CommandFactory as _};
use serde_json::json;
use throughline::Error;

use crate::{
    args::{Cli, CompletionsArgs, ManArgs},
    exit::STATUSES,
    output::{Output, io_error},
};

/// The commands, by what they are for.
const GROUPS: &[(&str, &[&str])] = &[
    (
        "Two peers",
        &["listen", "connect", "ping", "forward", "pipe"],
    ),
    ("This machine and its network", &["netcheck", "demo"]),
    ("A relay of your own", &["serve", "token", "usage"]),
    ("The shell", &["completions", "man", "help"]),
];

/// Two examples for each command. `RELAY` is an address that `serve` prints, and `TICKET` is what
/// `listen` prints.
const EXAMPLES: &[(&str, &[&str])] = &[
    (
        "listen",
        &[
            "throughline listen --relay RELAY --recv inbox",
            "throughline listen --relay RELAY --allow localhost:22",
        ],
    ),
    (
        "connect",
        &[
            "throughline connect TICKET --send photos holiday.mp4",
            "throughline connect TICKET --wait-direct 10 --bench 5",
        ],
    ),
    (
        "ping",
        &[
            "throughline ping TICKET",
            "throughline ping TICKET --count 100 --json",
        ],
    ),
    (
        "forward",
        &[
            "throughline forward TICKET --local 8080:localhost:80",
            "throughline forward TICKET --remote 9000:localhost:3000",
        ],
    ),
    (
        "pipe",
        &[
            "throughline pipe --relay RELAY",
            "throughline pipe TICKET --to localhost:22",
        ],
    ),
    (
        "netcheck",
        &[
            "throughline netcheck --relay RELAY --stun stun:stun.example.org",
            "throughline netcheck --config peer.toml --json",
        ],
    ),
    (
        "demo",
        &[
            "throughline demo",
            "throughline demo --host 0.0.0.0 --recv inbox",
        ],
    ),
    (
        "serve",
        &[
            "throughline serve --data relay",
            "throughline serve --domain relay.example.org --contact admin@example.org",
        ],
    ),
    (
        "token",
        &[
            "throughline token key",
            "throughline token new --for alice --expires 30d --quota 10GB/day",
        ],
    ),
    (
        "usage",
        &[
            "throughline usage --data relay",
            "throughline usage --data relay --by peer --since 2026-11-30",
        ],
    ),
    (
        "completions",
        &[
            "throughline completions bash > ~/.local/share/bash-completion/completions/throughline",
            "throughline completions fish > ~/.config/fish/completions/throughline.fish",
        ],
    ),
    (
        "man",
        &[
            "throughline man --dir ~/.local/share/man/man1",
            "throughline man | man -l -",
        ],
    ),
];

/// Returns the whole definition of the command line.
pub(crate) fn command() -> Command {
    let mut command = Cli::command();
    let template = format!(
        "{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{}Options:\n{{options}}{{after-help}}",
        groups(&command)
    );
    for (name, examples) in EXAMPLES {
        let text = format!("Examples:\n  {}", examples.join("\n  "));
        command = command.mut_subcommand(name, |sub| sub.after_help(text));
    }
    let statuses = STATUSES
        .iter()
        .map(|(status, meaning)| format!("\n  {status:<4} {meaning}"));
    let statuses: String = statuses.collect();
    command
        .after_help(format!(
            "Exit status:{statuses}\n\n`throughline help COMMAND` has the options of a command, and two \
             examples."
        ))
        .help_template(template)
}

/// Returns the commands below the headings of their groups.
fn groups(command: &Command) -> String {
    let mut text = String::new();
    for (heading, names) in GROUPS {
        text += &format!("{heading}:\n");
        for name in *names {
            let found = command.find_subcommand(name);
            let about = found.and_then(Command::get_about).map(ToString::to_string);
            let about = about.unwrap_or_else(|| String::from("Print the help of a command"));
            text += &format!("  {name:<12} {about}\n");
        }
        text.push('\n');
    }
    text
}

/// Prints the completions for a shell.
pub(crate) fn completions(args: &CompletionsArgs, output: Output) {
    let (mut text, mut command) = (Vec::new(), command());
    clap_complete::generate(args.shell, &mut command, env!("CARGO_BIN_NAME"), &mut text);
    let text = String::from_utf8_lossy(&text).trim_end().to_owned();
    output.result("completions", json!({ "text": text }), || text.clone());
}

/// Prints the manual, or writes a page for each command.
pub(crate) fn man(args: &ManArgs, output: Output) -> Result<(), Error> {
    let Some(directory) = &args.dir else {
        let page = page(command()).map_err(|error| io_error("the manual", error))?;
        let page = page.trim_end().to_owned();
        output.result("man", json!({ "text": page }), || page.clone());
        return Ok(());
    };
    let failed = |error| io_error(format_args!("--dir {}", directory.display()), error);
    std::fs::create_dir_all(directory).map_err(failed)?;
    let mut whole = command();
    whole.build();
    let name = whole.get_name().to_owned();
    write_page(directory, &name, whole.clone()).map_err(failed)?;
    for sub in whole
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
    {
        let name = format!("{name}-{}", sub.get_name());
        // A page is called as `man` finds it.
        let sub = sub.clone().display_name(name.clone());
        write_page(directory, &name, sub).map_err(failed)?;
    }
    Ok(())
}

fn write_page(directory: &Path, name: &str, command: Command) -> std::io::Result<()> {
    std::fs::write(directory.join(format!("{name}.1")), page(command)?)
}

fn page(command: Command) -> std::io::Result<String> {
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    page.flush()?;
    Ok(String::from_utf8_lossy(&page).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        let names = Cli::command();
        let names = names.get_subcommands().map(|sub| sub.get_name().to_owned());
        names.collect()
    }

    #[test]
    fn every_command_is_in_one_group_and_has_two_examples() {
        for name in names() {
            let grouped = GROUPS.iter().flat_map(|(_, names)| *names);
            assert_eq!(grouped.filter(|other| **other == name).count(), 1, "{name}");
            let examples = EXAMPLES.iter().find(|(other, _)| *other == name);
            let (_, examples) = examples.unwrap_or_else(|| panic!("{name} has no examples"));
            assert_eq!(examples.len(), 2, "{name}");
        }
    }

    #[test]
    fn examples_are_command_lines() {
        for example in EXAMPLES.iter().flat_map(|(_, examples)| *examples) {
            let line = example.split(['>', '|']).next().unwrap().trim();
            let parsed = command().try_get_matches_from(line.split(' '));
            assert!(parsed.is_ok(), "{example}: {}", parsed.unwrap_err());
        }
    }

    #[test]
    fn the_help_names_groups_and_statuses() {
        let help = command().render_help().to_string();
        for text in [
            "Two peers:\n  listen ",
            "Exit status:\n  0 ",
            "  130  Ctrl-C",
        ] {
            assert!(help.contains(text), "{help}");
        }
        assert!(!help.contains("Commands:"), "{help}");
        let connect = command()
            .find_subcommand_mut("connect")
            .unwrap()
            .render_help()
            .to_string();
        for text in [
            "Network:",
            "Identity and settings:",
            "Examples:\n  throughline connect TICKET",
        ] {
            assert!(connect.contains(text), "{connect}");
        }
    }
}
