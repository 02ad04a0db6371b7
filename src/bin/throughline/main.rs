//! The `throughline` program: a relay server, a peer for scripts and terminals, a demo.
//!
//! With `--json`, stdout carries one JSON object a line and nothing else. Logs go to stderr.

mod args;
mod attempts;
mod check;
mod connect;
mod demo;
mod exit;
mod forward;
mod help;
mod listen;
mod netcheck;
mod output;
mod page;
mod peer;
mod ping;
mod pipe;
mod places;
mod printer;
mod progress;
mod protocols;
mod reloads;
mod sending;
mod serve;
mod service;
mod signal;
mod supervisor;
#[cfg(test)]
#[path = "../../testing.rs"]
mod testing;
mod token;
mod usage;
mod watch;

use std::{
    backtrace::{Backtrace, BacktraceStatus},
    io::{self, IsTerminal as _, Write as _},
    process::ExitCode,
    thread,
};

use clap::FromArgMatches as _;
use throughline::{Error, ErrorKind};
use tracing_subscriber::EnvFilter;

use self::{
    args::{Cli, Command, LogFormat},
    output::{Output, wants_colours},
};

fn main() -> ExitCode {
    let parsed = help::command().try_get_matches();
    match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => printing(cli.json, |output| start(cli, output)),
        Err(error) => misused(&error),
    }
}

/// Calls `run`, and gives the exit status when everything is printed.
fn printing(json: bool, run: impl FnOnce(Output) -> Result<(), Error>) -> ExitCode {
    let output = match Output::start(json) {
        Ok(output) => output,
        Err(error) => {
            // Nothing else runs that could wait for this, and if it fails, nobody reads it.
            let _ = writeln!(io::stderr(), "error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let result = run(output);
    // The output on stdout is the purpose of the command, so the command fails if it cannot be
    // printed.
    let status = match result.and(output.drain()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => output.fail(&error),
    };
    let _ = output.drain();
    status
}

fn start(cli: Cli, output: Output) -> Result<(), Error> {
    // An operator gets warnings without asking for them.
    let quiet = match &cli.command {
        // The relay itself says when the NATS of its fleet is away.
        Command::Serve(_) => "error,async_nats=off,throughline=warn",
        _ => "error",
    };
    log_to_stderr(cli.verbose, quiet, cli.log, output);
    print_panics(output);
    let runtime = tokio::runtime::Runtime::new()
        .map_err(|error| output::io_error("cannot start threads", error))?;
    let result = runtime.block_on(run(cli.command, output));
    // A read of stdin cannot be cancelled and must not hold the exit.
    runtime.shutdown_background();
    result
}

async fn run(command: Command, output: Output) -> Result<(), Error> {
    match command {
        Command::Serve(args) => serve::run(args, output).await,
        Command::Listen(args) => listen::run(args, output).await,
        Command::Connect(args) => connect::run(args, output).await,
        Command::Ping(args) => ping::run(args, output).await,
        Command::Forward(args) => forward::run(args, output).await,
        Command::Pipe(args) => pipe::run(args, output).await,
        Command::Netcheck(args) => netcheck::run(args, output).await,
        Command::Usage(args) => usage::run(args, output).await,
        Command::Demo(args) => demo::run(args, output).await,
        Command::Token(args) => token::run(args.command, output),
        Command::Completions(args) => {
            help::completions(&args, output);
            Ok(())
        }
        Command::Man(args) => help::man(&args, output),
    }
}

/// Help and version go to stdout; a mistake is an error like all others, named by its argument.
fn misused(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        // If nobody reads the help, nothing can be done about it.
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
        let error = Error::new(ErrorKind::InvalidConfig, message);
        return printing(true, |_| Err(error));
    }
    let _ = error.print();
    ExitCode::from(exit::USAGE)
}

fn log_to_stderr(verbose: u8, quiet: &str, format: LogFormat, output: Output) {
    let level = match verbose {
        0 => quiet,
        1 => "error,async_nats=off,throughline=info",
        2 => "info,throughline=trace",
        _ => "debug,throughline=trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(wants_colours(
            io::stderr().is_terminal(),
            std::env::var_os("NO_COLOR").as_deref(),
        ))
        .with_writer(move || output.log())
        // The subscriber would write its own errors past the printer.
        .log_internal_errors(false);
    match format {
        LogFormat::Text => log.init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
}

/// Prints panics as Rust does, but without waiting for a reader.
fn print_panics(output: Output) {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = thread::current();
        let name = thread.name().unwrap_or("<unnamed>");
        output.log().line(format!("thread '{name}' {panic}"));
        let backtrace = Backtrace::capture();
        if backtrace.status() == BacktraceStatus::Captured {
            output.log().line(backtrace.to_string());
        }
        if name == "main" {
            // The program ends with this thread.
            let _ = output.drain();
        }
    }));
}
