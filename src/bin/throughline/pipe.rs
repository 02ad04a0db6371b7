//! `throughline pipe`: stdin and stdout to a peer.

use std::time::Instant;

use serde_json::json;
use throughline::{Connection, Connector, Error, ErrorKind, Stream};
use tokio::task::JoinSet;

use crate::{
    args::PipeArgs,
    forward,
    output::Output,
    peer,
    protocols::chat::{self, Until},
    signal,
    watch::PathWatch,
};

/// The bytes of stdin, as they are.
const PROTOCOL: &str = "pipe/1";

pub(crate) async fn run(args: PipeArgs, output: Output) -> Result<(), Error> {
    if output.is_json() {
        let message = "--json: stdout belongs to the peer; `listen` and `connect` have events";
        return Err(Error::new(ErrorKind::InvalidConfig, message));
    }
    let stopped = signal::stopped(output)?;
    let ticket = args.ticket.as_deref().map(peer::ticket).transpose()?;
    let connector = peer::bind(&args.peer, ticket.is_none()).await?;
    let piped = async {
        let start = Instant::now();
        // The connection is kept until both directions have ended.
        let (connection, stream) = match &ticket {
            None => awaited(&connector, output).await?,
            Some(ticket) => {
                let connection = connector.connect(ticket).await?;
                let stream = match &args.to {
                    Some(to) => forward::single(&connection, to).await?,
                    None => connection.open(PROTOCOL).await?,
                };
                (connection, stream)
            }
        };
        let _paths = PathWatch::start(&connection, start, output);
        let (writer, reader) = stream.split();
        let until = match args.to {
            Some(_) => Until::PeerEnds,
            None => Until::BothEnd,
        };
        Ok(chat::pipe(reader, writer, until, output).await?)
    };
    let result = tokio::select! {
        result = piped => result,
        error = stopped => Err(error),
    };
    connector.close().await;
    result
}

/// Waits for the one peer that opens the pipe. Others are refused.
async fn awaited(connector: &Connector, output: Output) -> Result<(Connection, Stream), Error> {
    let ticket = connector.ticket().to_string();
    let fields = json!({ "ticket": ticket });
    output.event("ready", fields, || {
        format!("waiting for: throughline pipe {ticket}")
    });
    let mut connected = JoinSet::new();
    loop {
        tokio::select! {
            connection = connector.accept() => match connection {
                Some(connection) => _ = connected.spawn(pipe_of(connection)),
                None => return Err(Error::new(ErrorKind::ConnectorClosed, "nobody came")),
            },
            Some(ended) = connected.join_next() => if let Ok(Some(found)) = ended {
                return Ok(found);
            },
        }
    }
}

/// Returns the first stream of a pipe that the peer opens.
async fn pipe_of(connection: Connection) -> Option<(Connection, Stream)> {
    while let Some((protocol, stream)) = connection.accept_stream().await {
        if protocol == PROTOCOL {
            return Some((connection, stream));
        }
        stream.refuse();
    }
    None
}
