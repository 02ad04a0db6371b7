//! The addresses of this machine's interfaces, as they come and go.

use std::{io, net::IpAddr, time::Duration};

use futures::{Stream, StreamExt as _};
use if_watch::{IfEvent, tokio::IfWatcher};
use tokio::time;

#[cfg(feature = "server")]
use crate::core::{bridges, prefix::Prefix};

/// How long to wait before the system is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// A list that was asked for again counts as complete when nothing has come for this long.
const COMPLETE: Duration = Duration::from_millis(500);

/// Calls `tell` with the addresses of all interfaces, now and whenever they change. Asks the system
/// again when it stops telling, as Linux does when there is more news than room for it.
pub(crate) async fn follow(tell: impl FnMut(&[IpAddr])) {
    let ask = || {
        let watcher = IfWatcher::new()?;
        let known = watcher.iter().map(|net| net.addr()).collect();
        Ok((known, watcher))
    };
    follow_with(ask, tell).await;
}

/// Returns the addresses of all interfaces.
#[cfg(feature = "server")]
pub(crate) async fn now() -> Vec<IpAddr> {
    let mut ips = Vec::new();
    // The system does not say when the list is complete.
    let _ = time::timeout(COMPLETE, follow(|now| ips = now.to_vec())).await;
    ips
}

/// Returns the networks between this machine and its own containers and virtual machines, as far as the
/// system tells.
#[cfg(feature = "server")]
pub(crate) fn bridges() -> Vec<Prefix> {
    // Other systems have no such file.
    let routes = std::fs::read_to_string("/proc/net/route");
    bridges::networks(&routes.unwrap_or_default())
}

async fn follow_with<S: Stream<Item = io::Result<IfEvent>> + Unpin>(
    mut ask: impl FnMut() -> io::Result<(Vec<IpAddr>, S)>,
    mut tell: impl FnMut(&[IpAddr]),
) {
    let mut first = true;
    loop {
        match ask() {
            Ok((known, events)) => until_silent(known, events, first, &mut tell).await,
            Err(error) => {
                tracing::warn!(%error, "the interfaces cannot be watched, so addresses may be missing");
                if first {
                    tell(&[]);
                }
            }
        }
        first = false;
        time::sleep(AGAIN).await;
    }
}

/// Tells the addresses until the system stops telling. Unless the list is `complete` from the start,
/// it is told once it is.
async fn until_silent(
    mut ips: Vec<IpAddr>,
    mut events: impl Stream<Item = io::Result<IfEvent>> + Unpin,
    mut complete: bool,
    tell: &mut impl FnMut(&[IpAddr]),
) {
    loop {
        if complete {
            tell(&ips);
        }
        let event = match complete {
            true => events.next().await,
            false => match time::timeout(COMPLETE, events.next()).await {
                Ok(event) => event,
                Err(_) => {
                    complete = true;
                    continue;
                }
            },
        };
        match event {
            Some(Ok(IfEvent::Up(net))) if !ips.contains(&net.addr()) => ips.push(net.addr()),
            Some(Ok(IfEvent::Up(_))) => {}
            Some(Ok(IfEvent::Down(net))) => ips.retain(|ip| *ip != net.addr()),
            Some(Err(error)) => {
                tracing::debug!(%error, "the interfaces are no longer told");
                return;
            }
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use futures::stream;
    use tokio::sync::mpsc;

    use super::*;
    use crate::testing::PATIENCE;

    #[tokio::test]
    async fn the_system_is_asked_again_when_it_stops_telling() {
        let up = |ip: &str| Ok(IfEvent::Up(format!("{ip}/24").parse().unwrap()));
        let lost = Err(io::ErrorKind::BrokenPipe.into());
        let mut lists: VecDeque<Vec<io::Result<IfEvent>>> = VecDeque::from([
            vec![up("10.0.0.1"), up("10.0.0.2"), lost],
            vec![up("10.0.0.2"), up("10.0.0.3")],
        ]);
        let ask = move || {
            let list = lists.pop_front().ok_or(io::ErrorKind::Other)?;
            let events = stream::iter(list).chain(stream::pending());
            Ok((Vec::new(), events.boxed()))
        };
        let (told, mut heard) = mpsc::unbounded_channel();
        let task = tokio::spawn(follow_with(ask, move |ips: &[IpAddr]| {
            let _ = told.send(ips.len());
        }));
        // The second list is told as a whole, so no address seems to be gone meanwhile.
        for count in [0, 1, 2, 2] {
            let told = time::timeout(PATIENCE, heard.recv()).await.unwrap();
            assert_eq!(told, Some(count));
        }
        task.abort();
    }
}
