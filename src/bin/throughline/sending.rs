//! `throughline connect --send`: files, one after the other.

use std::{path::PathBuf, time::Instant};

use serde_json::json;
use throughline::{Connection, Error, ErrorKind};

use crate::{
    output::{Output, human_bytes},
    progress::Progress,
    protocols::file::{self, Source, Transferred, Version, send::is_changed, source},
};

/// What one command sends.
pub(crate) struct Files(Vec<Source>);

impl Files {
    /// Finds the files before there is a connection, and says which ones are left out.
    pub(crate) fn find(
        paths: &[PathBuf],
        rename: Option<&str>,
        output: Output,
    ) -> Result<Self, Error> {
        if paths.is_empty() {
            return Ok(Self(Vec::new()));
        }
        if rename.is_some() && paths.len() > 1 {
            let message = "--as: it names one file, and there are several";
            return Err(Error::new(ErrorKind::InvalidConfig, message));
        }
        let (found, skipped) = source::find(paths, rename)?;
        for file::Skipped { path, why } in skipped {
            let fields = json!({ "path": path.to_string_lossy(), "reason": why });
            output.event("skipped", fields, || {
                format!("not sent: {}: {why}", path.display())
            });
        }
        Ok(Self(found))
    }

    /// Sends all files. The first failure ends it, and a later call goes on from there.
    pub(crate) async fn send(&self, connection: &Connection, output: Output) -> Result<(), Error> {
        let mut version = Version::Resumed;
        for source in &self.0 {
            let start = Instant::now();
            let sent = match one(connection, source, version, output).await {
                // An earlier version of this program takes files only as a whole.
                Err(error) if version == Version::Resumed && is_unknown(&error) => {
                    version = Version::Whole;
                    one(connection, source, version, output).await
                }
                sent => sent,
            };
            report(source, &sent?, start.elapsed().as_secs_f64(), output);
        }
        Ok(())
    }
}

fn is_unknown(error: &Error) -> bool {
    error.kind() == ErrorKind::ProtocolRefused
}

async fn one(
    connection: &Connection,
    source: &Source,
    version: Version,
    output: Output,
) -> Result<Transferred, Error> {
    match attempt(connection, source, version, false, output).await {
        Err(error) if is_changed(&error) => {
            attempt(connection, source, version, true, output).await
        }
        sent => sent,
    }
}

async fn attempt(
    connection: &Connection,
    source: &Source,
    version: Version,
    fresh: bool,
    output: Output,
) -> Result<Transferred, Error> {
    let protocol = match version {
        Version::Whole => file::PROTOCOL,
        Version::Resumed => file::RESUMED,
    };
    let (writer, reader) = connection.open(protocol).await?.split();
    let mut progress = Progress::start(output, &source.name, source.size);
    let shown = |done| progress.at(done);
    file::send(reader, writer, source, version, fresh, shown).await
}

fn report(source: &Source, sent: &Transferred, seconds: f64, output: Output) {
    let Transferred {
        bytes,
        resumed,
        sha256,
    } = sent;
    let moved = bytes - resumed;
    let fields = json!({
        "name": source.name,
        "path": source.path.to_string_lossy(),
        "bytes": bytes,
        "resumed": resumed,
        "sha256": sha256,
        "seconds": seconds,
        "mbit_s": moved as f64 * 8.0 / 1e6 / seconds,
    });
    output.result("sent", fields, || {
        let size = human_bytes(*bytes);
        let before = match resumed {
            0 => String::new(),
            resumed => format!(", of which {} were there", human_bytes(*resumed)),
        };
        format!(
            "sent {size} in {seconds:.2} s{before}, SHA-256 {sha256}  {}",
            source.name
        )
    });
}
