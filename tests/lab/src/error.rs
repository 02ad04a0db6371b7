//! The errors of a lab that is built or used.

use std::{fmt, io, time::Duration};

/// Why the lab could not do what it was asked.
#[derive(Debug)]
#[non_exhaustive]
pub enum LabError {
    /// The machine lacks something. The text names it, and the command that installs it.
    Missing(String),
    /// The description of the lab contradicts itself. The text names the field.
    Spec(String),
    /// A helper program (`ip`, `nft`, ...) failed.
    Command {
        /// The program and its arguments.
        what: String,
        /// The program's standard error, and the input that it was given.
        output: String,
    },
    /// The system refused an operation.
    Io {
        /// The operation that was tried.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A program in the lab did not report the expected event in time.
    Timeout {
        /// The event that was waited for.
        what: String,
        /// How long the lab waited.
        after: Duration,
        /// The last lines that the program printed on its standard error.
        log: String,
    },
    /// A program in the lab ended or reported an error.
    Program(String),
}

impl fmt::Display for LabError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(text) => write!(f, "the lab cannot run here: {text}"),
            Self::Spec(text) => write!(f, "bad description of the lab: {text}"),
            Self::Command { what, output } => write!(f, "`{what}` failed: {output}"),
            Self::Io { what, source } => write!(f, "{what}: {source}"),
            Self::Timeout { what, after, log } => {
                write!(
                    f,
                    "gave up after waiting {} ms for {what}; last lines of the log:\n{log}",
                    after.as_millis()
                )
            }
            Self::Program(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for LabError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// The result type of the crate.
pub type Result<T, E = LabError> = std::result::Result<T, E>;

/// Adds what was tried to a system error.
pub(crate) trait Context<T> {
    fn context(self, what: impl Into<String>) -> Result<T>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|source| LabError::Io {
            what: what.into(),
            source,
        })
    }
}
