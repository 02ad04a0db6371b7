//! `throughline listen`.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicBool},
};

use futures::StreamExt as _;
use serde_json::json;
use throughline::{Connector, Error, Reachability, StatusChanges};
use tokio::sync::mpsc;

use crate::{
    args::ListenArgs,
    output::{Output, io_error},
    peer,
    places::AllPlaces,
    protocols::file::{Inbox, active::Active, partial},
    service::{Chat, Service},
    signal,
};

pub(crate) async fn run(args: ListenArgs, output: Output) -> Result<(), Error> {
    let stopped = signal::stopped(output)?;
    if let Some(directory) = &args.recv {
        // An error shows now and not with the first file.
        std::fs::create_dir_all(directory)
            .map_err(|error| io_error(format_args!("--recv {}", directory.display()), error))?;
        sweep(directory, output);
    }
    let (ended, mut chat_ended) = mpsc::channel(1);
    let allows = !args.allow.allow.is_empty() || !args.allow.allow_bind.is_empty();
    let serves = args.echo || args.recv.is_some() || allows;
    let chat = match (serves, output.is_json()) {
        (true, _) => Chat::Off,
        (false, true) => Chat::Events,
        (false, false) => Chat::Terminal {
            taken: AtomicBool::new(false),
            ended: ended.clone(),
        },
    };
    let service = Service {
        output,
        inbox: args.recv.map(|directory| Inbox {
            directory,
            max_size: args.max_size,
            active: Active::default(),
        }),
        chat,
        allow: args.allow,
        places: AllPlaces::default(),
    };
    let connector = peer::bind(&args.peer, true).await?;
    announce(&connector, output);
    tokio::spawn(tell_status(connector.status_changes(), output));
    warn_without_relay(&connector, output);
    tokio::spawn(Arc::new(service).run(connector.clone()));
    let result = tokio::select! {
        error = stopped => signal::ended(error),
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

/// Says who can connect if no relay helps. Relays may be configured in a file, so the ticket tells.
fn warn_without_relay(connector: &Connector, output: Output) {
    if connector.ticket().relays().is_empty() {
        let message = "no relay is configured, so only peers that reach an address of this machine \
                       can connect; --relay names a relay";
        let fields = json!({ "code": "no_relay", "message": message });
        output.event("warning", fields, || format!("warning: {message}"));
    }
}

/// Removes old parts of files, and says how many there are.
fn sweep(directory: &Path, output: Output) {
    let (left, removed) = match partial::sweep(directory) {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "the parts of files could not be looked at");
            return;
        }
    };
    if left + removed > 0 {
        let fields = json!({ "left": left, "removed": removed });
        output.event("parts", fields, || {
            format!(
                "{left} files have arrived in part, and go on when they are sent again; {removed} \
                 older ones were removed"
            )
        });
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
