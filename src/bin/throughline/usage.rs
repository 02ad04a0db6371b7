//! `throughline usage`.

use serde_json::json;
use throughline::{
    Error, ErrorKind,
    server::{ServerConfig, UsageBy, UsageRow, usage, usage_of_fleet},
};

use crate::{
    args::{By, UsageArgs},
    output::{Output, human_bytes},
    serve::file_of,
};

pub(crate) async fn run(args: UsageArgs, output: Output) -> Result<(), Error> {
    let (by, name) = match args.by {
        By::Day => (UsageBy::Day, "day"),
        By::Peer => (UsageBy::Peer, "peer"),
        By::Token => (UsageBy::Token, "token"),
    };
    let rows = match args.data {
        Some(data) => {
            let read = move || usage(&data, args.since, by);
            let rows = tokio::task::spawn_blocking(read).await;
            rows.map_err(|error| Error::new(ErrorKind::Internal, error.to_string()))??
        }
        None => {
            let mut config = match &args.config {
                Some(path) => file_of(path)?,
                None => ServerConfig::default(),
            };
            if !args.fleet.is_empty() {
                config.fleet.servers = args.fleet;
            }
            usage_of_fleet(&config.fleet, args.since, by).await?
        }
    };
    if output.is_json() {
        for row in rows {
            let fields = json!({
                name: row.name,
                "bytes": row.bytes,
                "circuits": row.circuits,
                "reservations": row.reservations,
                "allocations": row.allocations,
                "seconds": row.seconds,
            });
            output.result("usage", fields, String::new);
        }
        return Ok(());
    }
    output.result("usage", json!({}), || table(name, &rows));
    Ok(())
}

/// Returns the rows below a line with what they mean.
fn table(name: &str, rows: &[UsageRow]) -> String {
    let width = rows.iter().map(|row| row.name.len()).max();
    let width = width.unwrap_or(0).max(name.len());
    let heads = [
        "bytes",
        "circuits",
        "reservations",
        "allocations",
        "seconds",
    ];
    let mut text = format!("{name:width$}");
    for head in heads {
        text += &format!("  {head:>12}");
    }
    for row in rows {
        text += &format!("\n{:width$}  {:>12}", row.name, human_bytes(row.bytes));
        for amount in [row.circuits, row.reservations, row.allocations, row.seconds] {
            text += &format!("  {amount:>12}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_record_has_a_head() {
        let head = "day         bytes      circuits  reservations   allocations       seconds";
        assert_eq!(table("day", &[]), head);
    }
}
