//! What a listening peer does with those who connect.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use futures::StreamExt as _;
use serde_json::json;
use throughline::{Connection, Connector, Error, ErrorKind, Path, PathEvent, PathEvents, Stream};
use tokio::sync::mpsc;

use crate::{
    output::{Output, human_bytes},
    protocols::{self, bench, chat, file},
    watch,
};

/// What is served besides echo and bench.
pub(crate) struct Service {
    pub(crate) output: Output,
    /// Where files go, and the longest that is taken.
    pub(crate) inbox: Option<(PathBuf, u64)>,
    pub(crate) chat: Chat,
}

/// Who answers `chat/1`.
pub(crate) enum Chat {
    /// Nobody.
    Off,
    /// Lines become events.
    Events,
    /// The first stream gets stdin and stdout, and its end ends the program.
    Terminal {
        taken: AtomicBool,
        ended: mpsc::Sender<Result<(), Error>>,
    },
    /// A friendly machine.
    Demo,
}

impl Service {
    /// Serves every connection until the connector is closed.
    pub(crate) async fn run(self: Arc<Self>, connector: Connector) {
        while let Some(connection) = connector.accept().await {
            tokio::spawn(Arc::clone(&self).serve(connection));
        }
    }

    async fn serve(self: Arc<Self>, connection: Connection) {
        let peer = connection.peer_id().to_string();
        let events = connection.path_events();
        let path = connection.path();
        let paths = tokio::spawn(report_paths(self.output, peer.clone(), path, events));
        while let Some((protocol, stream)) = connection.accept_stream().await {
            let (service, peer) = (Arc::clone(&self), peer.clone());
            tokio::spawn(async move { service.handle(&peer, &protocol, stream).await });
        }
        // Ends with the event that says why the connection closed.
        let _ = paths.await;
    }

    async fn handle(&self, peer: &str, protocol: &str, mut stream: Stream) {
        let served = match protocol {
            protocols::ECHO => {
                let (writer, reader) = stream.split();
                protocols::echo(reader, writer)
                    .await
                    .map(|_| ())
                    .map_err(Error::from)
            }
            bench::PROTOCOL => {
                let (writer, reader) = stream.split();
                bench::serve(reader, writer).await
            }
            file::PROTOCOL if self.inbox.is_some() => self.receive(peer, stream).await,
            chat::PROTOCOL if !matches!(self.chat, Chat::Off) => self.chat(peer, stream).await,
            _ => {
                // The code of an unknown protocol; nobody needs more.
                stream.reset(0);
                Ok(())
            }
        };
        if let Err(error) = served {
            tracing::info!(protocol, %error, "a stream failed");
        }
    }

    async fn receive(&self, peer: &str, stream: Stream) -> Result<(), Error> {
        let Some((directory, max_size)) = &self.inbox else {
            return Ok(());
        };
        let (writer, reader) = stream.split();
        let progress = |header: &file::Header, done| self.output.progress(done, header.size);
        match file::receive(reader, writer, directory, *max_size, progress).await {
            Ok((path, file)) => {
                let name = path.file_name().map(|name| name.to_string_lossy());
                let fields = json!({
                    "peer_id": peer,
                    "name": name,
                    "path": path,
                    "bytes": file.bytes,
                    "sha256": file.sha256,
                });
                self.output.event("file", fields, || {
                    let size = human_bytes(file.bytes);
                    format!(
                        "{} from {peer}, {size}, SHA-256 {}",
                        path.display(),
                        file.sha256
                    )
                });
                Ok(())
            }
            Err(error) => {
                let fields = json!({
                    "peer_id": peer,
                    "code": error.code(),
                    "message": error.message(),
                });
                self.output.event("file_failed", fields, || {
                    format!("a file from {peer} was not received: {}", error.message())
                });
                Err(error)
            }
        }
    }

    async fn chat(&self, peer: &str, mut stream: Stream) -> Result<(), Error> {
        match &self.chat {
            Chat::Terminal { taken, .. } if taken.swap(true, Ordering::Relaxed) => {
                stream.reset(0);
                Err(Error::new(
                    ErrorKind::LimitExceeded,
                    "stdin and stdout serve another chat",
                ))
            }
            Chat::Terminal { ended, .. } => {
                let (writer, reader) = stream.split();
                let result = chat::pipe(reader, writer).await.map_err(Error::from);
                // Nobody waits any more: the program ends anyway.
                let _ = ended.send(result).await;
                Ok(())
            }
            Chat::Events | Chat::Demo | Chat::Off => {
                let (writer, reader) = stream.split();
                chat::answer_lines(reader, writer, |line| self.answer(peer, line)).await
            }
        }
    }

    fn answer(&self, peer: &str, line: &str) -> Option<String> {
        let fields = json!({ "peer_id": peer, "text": line });
        self.output.event("message", fields, || {
            let printable = line.chars().filter(|c| !c.is_control());
            format!("{peer}: {}", printable.collect::<String>())
        });
        matches!(self.chat, Chat::Demo).then(|| {
            let letters = line.chars().count();
            format!("The native peer got your {letters} characters: {line}")
        })
    }
}

async fn report_paths(output: Output, peer: String, path: Option<Path>, mut events: PathEvents) {
    let connected = |path: &Path| {
        let mut fields = json!(path);
        fields["peer_id"] = peer.as_str().into();
        output.event("connection", fields.clone(), || {
            format!("{peer} connected, {}", watch::describe(&fields))
        });
    };
    // Early data comes before the first path.
    let mut waits = path.is_none();
    path.iter().for_each(connected);
    while let Some(event) = events.next().await {
        match &event {
            PathEvent::Changed { path, .. } if waits => {
                waits = false;
                connected(path);
            }
            PathEvent::Changed { path, .. } => {
                let mut fields = json!(event);
                fields["peer_id"] = peer.as_str().into();
                let text = watch::describe(&watch::path_fields(Some(path)));
                output.event("path", fields, || format!("{peer} is now {text}"));
            }
            PathEvent::Closed { code, .. } => {
                let fields = json!({ "peer_id": peer, "code": code });
                output.event("disconnected", fields, || {
                    format!("{peer} is gone ({code})")
                });
            }
            _ => {}
        }
    }
}
