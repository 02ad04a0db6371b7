//! What can go wrong while a lab is built or used.

use std::{fmt, io, time::Duration};

/// Why the lab could not do what it was asked.
#[derive(Debug)]
#[non_exhaustive]
pub enum LabError {
    /// The machine lacks something; the text names it and the command that brings it.
    Missing(String),
    /// The description of the lab contradicts itself; the text names the field.
    Spec(String),
    /// A helper program (`ip`, `nft`, ...) refused; with what it was given and what it said.
    Command {
        /// Program and arguments.
        what: String,
        /// Its standard error and the input it was given.
        output: String,
    },
    /// The system refused an operation.
    Io {
        /// What was tried.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A program in the lab did not say what was expected of it in time.
    Timeout {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
        /// The last lines the program printed on its standard error.
        log: String,
    },
    /// A program in the lab ended or reported an error of its own.
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
                    "waited {} ms for {what} in vain; last lines of its log:\n{log}",
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

/// Shorthand used all over the crate.
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
