//! The `throughline` program: a relay server, a peer for scripts and terminals, a demo.
//!
//! With `--json` stdout carries one JSON object a line and nothing else; logs go to stderr.

mod args;
mod connect;
mod demo;
mod listen;
mod netcheck;
mod output;
mod peer;
mod ping;
mod protocols;
mod serve;
mod service;
mod signal;
mod watch;

use std::{io::IsTerminal as _, process::ExitCode};

use clap::Parser as _;
use throughline::{Error, ErrorKind};
use tracing_subscriber::EnvFilter;

use self::{
    args::{Cli, Command},
    output::Output,
};

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    // What an operator has to know is said without being asked for.
    let quiet = match &cli.command {
        Command::Serve(_) => "error,throughline=warn",
        _ => "error",
    };
    log_to_stderr(cli.verbose, quiet);
    let output = Output::new(cli.json);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return output.fail(&output::io_error("cannot start threads", error)),
    };
    let result = runtime.block_on(run(cli.command, output));
    // A read of stdin cannot be cancelled and must not hold the exit.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output.fail(&error),
    }
}

async fn run(command: Command, output: Output) -> Result<(), Error> {
    match command {
        Command::Serve(args) => serve::run(args, output).await,
        Command::Listen(args) => listen::run(args, output).await,
        Command::Connect(args) => connect::run(args, output).await,
        Command::Ping(args) => ping::run(args, output).await,
        Command::Netcheck(args) => netcheck::run(args, output).await,
        Command::Demo(args) => demo::run(args, output).await,
    }
}

/// Help and version go to stdout; a mistake is an error like all others, named by its argument.
fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // Nobody reads the help: nothing to do about it.
        let _ = error.print();
        return ExitCode::SUCCESS;
    }
    if std::env::args_os().any(|argument| argument == "--json") {
        let message = error.to_string();
        let message = message
            .lines()
            .next()
            .unwrap_or_default()
            .trim_start_matches("error: ");
        return Output::new(true).fail(&Error::new(ErrorKind::InvalidConfig, message));
    }
    let _ = error.print();
    ExitCode::FAILURE
}

fn log_to_stderr(verbose: u8, quiet: &str) {
    let level = match verbose {
        0 => quiet,
        1 => "error,throughline=info",
        2 => "info,throughline=debug",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        // Whoever reads a file of it, or watches one, wants no colours.
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
}
