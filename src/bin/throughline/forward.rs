//! `throughline forward`: TCP ports through a peer.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use throughline::{Connection, Error, Stream};
use tokio::{net::TcpListener, sync::Semaphore, task::JoinSet};

use crate::{
    args::{AllowArgs, Allowed, ForwardArgs, Route, Target},
    output::{Output, io_error},
    peer,
    places::{AllPlaces, Share, TUNNELS},
    protocols::tunnel::{self, Answer, Carried, ListenRequest, Refusal, Request},
    signal,
    watch::PathWatch,
};

/// The pause after the system had no socket for a connection.
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) async fn run(args: ForwardArgs, output: Output) -> Result<(), Error> {
    let stopped = signal::stopped(output)?;
    let ticket = peer::ticket(&args.ticket)?;
    // A port that is taken shows before anything is sent.
    let mut listeners = Vec::new();
    for route in args.local {
        let listener = bind(route.bind).await?;
        listeners.push((listener, route.to));
    }
    let connector = peer::bind(&args.peer, false).await?;
    let forwarded = async {
        let start = Instant::now();
        let connection = connector.connect(&ticket).await?;
        let _paths = PathWatch::start(&connection, start, output);
        forward(&connection, listeners, &args.remote, output).await
    };
    let result = tokio::select! {
        result = forwarded => result,
        error = stopped => signal::ended(error),
    };
    connector.close().await;
    result
}

async fn bind(at: SocketAddr) -> Result<TcpListener, Error> {
    let bound = TcpListener::bind(at).await;
    bound.map_err(|error| io_error(format_args!("cannot listen at {at}"), error))
}

/// Forwards until the connection ends.
async fn forward(
    connection: &Connection,
    listeners: Vec<(TcpListener, Target)>,
    remote: &[Route],
    output: Output,
) -> Result<(), Error> {
    let mut tasks = JoinSet::new();
    for (listener, to) in listeners {
        let at = listener
            .local_addr()
            .map_err(|error| io_error("TCP", error))?;
        announce("local", at, &to, output);
        let connection = connection.clone();
        tasks.spawn(async move {
            serve(&connection, &listener, &to.to_string(), output).await;
        });
    }
    // The peer listens for as long as these streams are open.
    let mut open = Vec::new();
    for Route { bind, to } in remote {
        let mut stream = connection.open(tunnel::LISTEN).await?;
        let request = ListenRequest {
            bind: *bind,
            to: to.to_string(),
        };
        let answer = tunnel::ask(&mut stream, &request).await?;
        announce("remote", answer.bind.unwrap_or(*bind), to, output);
        open.push(stream);
    }
    // Only what was named here can be reached from the peer.
    let allow = AllowArgs {
        allow: remote
            .iter()
            .map(|route| Allowed::only(&route.to))
            .collect(),
        ..AllowArgs::default()
    };
    let allow = Arc::new(allow);
    let places = AllPlaces::default().of_connection().tunnels;
    while let Some((protocol, stream)) = connection.accept_stream().await {
        while tasks.try_join_next().is_some() {}
        if protocol == tunnel::PROTOCOL {
            let (allow, places) = (Arc::clone(&allow), places.clone());
            tasks.spawn(async move { offer(stream, &allow, &places, output).await });
        } else {
            stream.refuse();
        }
    }
    let kind = connection.closed().await;
    Err(Error::new(kind, "the connection to the peer has ended"))
}

fn announce(direction: &str, at: SocketAddr, to: &Target, output: Output) {
    let fields = json!({ "direction": direction, "bind": at, "to": to.to_string() });
    output.event("forward", fields, || match direction {
        "local" => format!("{at} here leads to {to} at the peer"),
        _ => format!("{at} at the peer leads to {to} here"),
    });
}

/// Takes connections at `listener`, and carries each to `to` at the other side.
pub(crate) async fn serve(
    connection: &Connection,
    listener: &TcpListener,
    to: &str,
    output: Output,
) {
    // Further connections wait.
    let places = Arc::new(Semaphore::new(TUNNELS));
    let mut tunnels = JoinSet::new();
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "no socket for a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        while tunnels.try_join_next().is_some() {}
        let (connection, to) = (connection.clone(), to.to_owned());
        tunnels.spawn(async move {
            let _place = place;
            let carried = async {
                let stream = connection.open(tunnel::PROTOCOL).await?;
                tunnel::open(socket, stream, &to).await
            };
            report(&to, carried.await, output);
        });
    }
}

/// Answers a peer that asks for a connection.
pub(crate) async fn offer(stream: Stream, allow: &AllowArgs, places: &Share, output: Output) {
    let (mut writer, mut reader) = stream.split();
    let asked = async {
        let mut place = places.take().ok_or_else(Refusal::busy)?;
        let asked = async {
            let Request { to } = tunnel::request(&mut reader).await?;
            let target: Target = to
                .parse()
                .map_err(|why: String| Refusal::new("bad_request", why))?;
            if !allow.allows(&target) {
                return Err(Refusal::not_allowed(&target.to_string()));
            }
            Ok((tunnel::dial(&target).await?, target))
        };
        let (socket, target) = tokio::select! {
            biased;
            () = place.lost() => Err(Refusal::busy()),
            asked = asked => asked,
        }?;
        Ok((socket, target, place))
    };
    match asked.await {
        Ok((socket, target, mut place)) => {
            let carried = tokio::select! {
                biased;
                () = place.lost() => Err(Refusal::busy().into()),
                carried = tunnel::accept(socket, writer, reader) => carried,
            };
            report(&target.to_string(), carried, output);
        }
        Err(refusal) => {
            // The peer may be gone.
            let _ = tunnel::answer(&mut writer, &Answer::from(&refusal)).await;
            tunnel::drain(&mut reader).await;
            report("", Err(refusal.into()), output);
        }
    }
}

/// Listens for a peer that asks for it, until it ends its stream.
pub(crate) async fn listen(
    connection: &Connection,
    stream: Stream,
    allow: &AllowArgs,
    places: &Share,
    output: Output,
) -> Result<(), Error> {
    let (mut writer, mut reader) = stream.split();
    let asked = async {
        let mut place = places.take().ok_or_else(Refusal::busy)?;
        let ListenRequest { bind, to } = tokio::select! {
            biased;
            () = place.lost() => Err(Refusal::busy()),
            request = tunnel::request(&mut reader) => request,
        }?;
        if !allow.allows_bind(bind) {
            return Err(Refusal::not_allowed(&format!("to listen at {bind}")));
        }
        let listener = TcpListener::bind(bind).await;
        let listener = listener.map_err(|error| Refusal::new("failed", format!("{bind}: {error}")));
        Ok((listener?, to, place))
    };
    let (listener, to, mut place) = match asked.await {
        Ok(asked) => asked,
        Err(refusal) => {
            tunnel::answer(&mut writer, &Answer::from(&refusal)).await?;
            return Err(refusal.into());
        }
    };
    let at = listener
        .local_addr()
        .map_err(|error| io_error("TCP", error))?;
    tunnel::answer(&mut writer, &Answer::accepted(Some(at))).await?;
    tokio::select! {
        biased;
        () = place.lost() => return Err(Refusal::busy().into()),
        () = tunnel::ended(&mut reader) => {}
        () = serve(connection, &listener, &to, output) => {}
    }
    Ok(())
}

/// Says how a connection has ended.
fn report(to: &str, carried: Result<Carried, Error>, output: Output) {
    match carried {
        Ok(Carried { sent, received }) => {
            let fields = json!({ "to": to, "sent": sent, "received": received });
            output.event("tunnel", fields, String::new);
        }
        Err(error) => {
            let (code, message) = (error.code(), error.message());
            let fields = json!({ "to": to, "code": code, "message": message });
            output.event("tunnel", fields, || {
                format!("a connection failed: {code}: {message}")
            });
        }
    }
}

/// Connects to a host at the peer for a single connection, without a socket here.
pub(crate) async fn single(connection: &Connection, to: &Target) -> Result<Stream, Error> {
    let mut stream = connection.open(tunnel::PROTOCOL).await?;
    let to = to.to_string();
    tunnel::ask(&mut stream, &Request { to }).await?;
    Ok(stream)
}
