//! `throughline listen`.

use std::sync::{Arc, atomic::AtomicBool};

use futures::StreamExt as _;
use serde_json::json;
use throughline::{Connector, Error, Reachability, StatusChanges};
use tokio::sync::mpsc;

use crate::{
    args::ListenArgs,
    output::{Output, io_error},
    peer,
    service::{Chat, Service},
    signal,
};

pub(crate) async fn run(args: ListenArgs, output: Output) -> Result<(), Error> {
    let stopped = signal::stopped(output)?;
    if let Some(directory) = &args.recv {
        // An error shows now and not with the first file.
        std::fs::create_dir_all(directory)
            .map_err(|error| io_error(format_args!("--recv {}", directory.display()), error))?;
    }
    let (ended, mut chat_ended) = mpsc::channel(1);
    let chat = match (args.echo || args.recv.is_some(), output.is_json()) {
        (true, _) => Chat::Off,
        (false, true) => Chat::Events,
        (false, false) => Chat::Terminal {
            taken: AtomicBool::new(false),
            ended: ended.clone(),
        },
    };
    let service = Service {
        output,
        inbox: args.recv.map(|directory| (directory, args.max_size)),
        chat,
    };
    let connector = peer::bind(&args.peer, true).await?;
    announce(&connector, output);
    tokio::spawn(tell_status(connector.status_changes(), output));
    tokio::spawn(Arc::new(service).run(connector.clone()));
    let result = tokio::select! {
        _ = stopped => Ok(()),
        // `ended` above keeps the channel open if there is no terminal chat.
        Some(result) = chat_ended.recv() => result,
    };
    connector.close().await;
    result
}

/// Prints each change of the status. A person gets a line when others can no longer reach the peer, and
/// when they can again.
async fn tell_status(mut changes: StatusChanges, output: Output) {
    let mut before = Reachability::Reachable;
    while let Some(status) = changes.next().await {
        let fields = json!(status);
        if output.is_json() {
            output.event("status", fields, String::new);
        } else if status.state != before {
            before = status.state;
            output.event("status", fields, || match status.reason {
                Some(why) => format!("{}: {why}", status.state),
                None => status.state.to_string(),
            });
        }
    }
}

/// Prints the ticket. Only the ticket goes to stdout, so that a script without JSON can read it.
fn announce(connector: &Connector, output: Output) {
    let (peer, ticket) = (
        connector.peer_id().to_string(),
        connector.ticket().to_string(),
    );
    let fields = json!({ "peer_id": peer, "ticket": ticket });
    output.result("ready", fields, || ticket);
}
