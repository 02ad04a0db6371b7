//! Serves the peers that connect to a listening peer.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use futures::{AsyncWriteExt as _, StreamExt as _};
use serde_json::json;
use throughline::{
    Connection, Connector, ConnectorEvent, ConnectorEvents, Error, ErrorKind, Path, PathEvent,
    PathEvents, Stream,
};
use tokio::sync::mpsc;
use tracing::Instrument as _;

use crate::{
    args::AllowArgs,
    forward,
    output::{Output, human_bytes},
    places::{AllPlaces, Place, Shares},
    progress::Progress,
    protocols::{self, bench, chat, file, ticks, tunnel},
    watch,
};

/// The services besides `echo/1`, `bench/1` and the echo of datagrams.
pub(crate) struct Service {
    pub(crate) output: Output,
    /// Where files are stored.
    pub(crate) inbox: Option<file::Inbox>,
    pub(crate) chat: Chat,
    /// What peers may reach by `forward`.
    pub(crate) allow: AllowArgs,
    pub(crate) places: AllPlaces,
}

/// The part of the program that answers `chat/1`.
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
    /// The demo peer, which answers each line.
    Demo,
}

impl Service {
    /// Serves every connection until the connector is closed.
    pub(crate) async fn run(self: Arc<Self>, connector: Connector) {
        tokio::spawn(report_events(self.output, connector.events()));
        while let Some(connection) = connector.accept().await {
            tokio::spawn(Arc::clone(&self).serve(connection));
        }
    }

    async fn serve(self: Arc<Self>, connection: Connection) {
        let peer = connection.peer_id().to_string();
        let events = connection.path_events();
        let path = connection.path();
        let paths = tokio::spawn(report_paths(self.output, peer.clone(), path, events));
        tokio::spawn(ticks::echo(connection.clone()));
        let shares = Arc::new(self.places.of_connection());
        while let Some((protocol, stream)) = connection.accept_stream().await {
            let (service, peer) = (Arc::clone(&self), peer.clone());
            let span = tracing::info_span!("connection", %peer);
            let (connection, shares) = (connection.clone(), Arc::clone(&shares));
            let handled = async move {
                let (peer, protocol) = (peer.as_str(), protocol.as_str());
                service
                    .handle(&connection, &shares, peer, protocol, stream)
                    .await;
            };
            tokio::spawn(handled.instrument(span));
        }
        // This ends with the event that says why the connection closed.
        let _ = paths.await;
    }

    async fn handle(
        &self,
        connection: &Connection,
        shares: &Shares,
        peer: &str,
        protocol: &str,
        stream: Stream,
    ) {
        let admitted = self.allow.admits(&connection.peer_id());
        let served = match protocol {
            protocols::ECHO => {
                let (mut writer, reader) = stream.split();
                let echoed = protocols::echo(reader, &mut writer).await;
                let echoed = echoed.map(|_| ()).map_err(Error::from);
                // If the peer cuts the stream short, its echo is cut short for the same reason.
                if let Some(code) = echoed.as_ref().err().and_then(Error::reset_code) {
                    writer.reset(code);
                }
                echoed
            }
            bench::PROTOCOL => {
                let (writer, reader) = stream.split();
                bench::serve(reader, writer).await
            }
            tunnel::PROTOCOL if admitted && !self.allow.allow.is_empty() => {
                forward::offer(stream, &self.allow, &shares.tunnels, self.output).await;
                Ok(())
            }
            tunnel::LISTEN if admitted && !self.allow.allow_bind.is_empty() => {
                let (allow, places) = (&self.allow, &shares.listeners);
                forward::listen(connection, stream, allow, places, self.output).await
            }
            file::PROTOCOL | file::RESUMED if admitted && self.inbox.is_some() => {
                let resumes = protocol == file::RESUMED;
                self.receive(peer, shares.files.take(), stream, resumes)
                    .await
            }
            chat::PROTOCOL if !matches!(self.chat, Chat::Off) => self.chat(peer, stream).await,
            _ => {
                stream.refuse();
                Ok(())
            }
        };
        if let Err(error) = served {
            tracing::info!(protocol, %error, "a stream failed");
        }
    }

    async fn receive(
        &self,
        peer: &str,
        place: Option<Place>,
        stream: Stream,
        resumes: bool,
    ) -> Result<(), Error> {
        let Some(inbox) = &self.inbox else {
            return Ok(());
        };
        let (writer, reader) = stream.split();
        let mut shown = None;
        let progress = |header: &file::Header, done| {
            let start = || Progress::start(self.output, &header.name, header.size);
            shown.get_or_insert_with(start).at(done);
        };
        let received = match place {
            Some(mut place) => {
                file::receive(reader, writer, inbox, resumes, place.lost(), progress).await
            }
            None => Err(file::turn_away(writer).await),
        };
        drop(shown);
        match received {
            Ok((path, file)) => {
                let name = path.file_name().map(|name| name.to_string_lossy());
                let fields = json!({
                    "peer_id": peer,
                    "name": name,
                    "path": path.to_string_lossy(),
                    "bytes": file.bytes,
                    "resumed": file.resumed,
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
                    "stdin and stdout serve another chat already",
                ))
            }
            Chat::Terminal { ended, .. } => {
                let (writer, reader) = stream.split();
                let result = chat::pipe(reader, writer, chat::Until::BothEnd, self.output)
                    .await
                    .map_err(Error::from);
                // If nobody receives this, the program is ending already.
                let _ = ended.send(result).await;
                Ok(())
            }
            Chat::Events | Chat::Demo | Chat::Off => {
                let (mut writer, reader) = stream.split();
                let mut lines = chat::Lines::new(reader);
                while let Some(line) = lines.next().await? {
                    if let Some(mut answer) = self.answer(peer, &line).await {
                        answer.push('\n');
                        writer.write_all(answer.as_bytes()).await?;
                    }
                }
                writer.close().await?;
                Ok(())
            }
        }
    }

    async fn answer(&self, peer: &str, line: &str) -> Option<String> {
        let fields = json!({ "peer_id": peer, "text": line });
        let text = || {
            let printable = line.chars().filter(|c| !c.is_control());
            format!("{peer}: {}", printable.collect::<String>())
        };
        self.output.message(fields, text).await;
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
    // A stream with early data comes before the first path.
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
            PathEvent::Closed { kind, .. } => {
                let fields = json!({ "peer_id": peer, "code": kind });
                output.event("disconnected", fields, || {
                    format!("{peer} is gone ({kind})")
                });
            }
            _ => {}
        }
    }
}

/// Reports what a relay says about this peer's quota.
async fn report_events(output: Output, mut events: ConnectorEvents) {
    while let Some(event) = events.next().await {
        if let ConnectorEvent::Quota { left, total, .. } = &event {
            output.event("quota", json!(event), || {
                let (left, total) = (human_bytes(*left), human_bytes(*total));
                format!("a relay carries {left} more of {total}")
            });
        }
    }
}
