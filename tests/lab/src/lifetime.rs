//! Routers that forget their mappings, once or periodically.

use std::{
    sync::mpsc,
    thread::{self, JoinHandle},
    time::Duration,
};

use crate::{
    conntrack,
    error::{Context, Result},
    host::Host,
    namespace::feed,
};

/// A timer that makes a router forget every mapping periodically.
pub(crate) struct Lifetime {
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Lifetime {
    /// Starts the timer on `router`. `maps` says whether the router's rules keep their own maps.
    pub(crate) fn start(router: Host, period: Duration, maps: bool) -> Result<Self> {
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = thread::Builder::new()
            .name(format!("lab-{}-lifetime", router.name))
            .spawn(move || {
                if router.namespace.enter().is_err() {
                    return;
                }
                while let Err(mpsc::RecvTimeoutError::Timeout) = stopped.recv_timeout(period) {
                    if let Err(error) = forget(maps) {
                        eprintln!("lab: {}: {error}", router.name);
                    }
                }
            })
            .context("start a lifetime timer")?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Lifetime {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Forgets every mapping of the calling thread's namespace.
pub(crate) fn forget(maps: bool) -> Result<()> {
    if !maps {
        return conntrack::flush().context("forget tracked flows");
    }
    // Nothing may pass until the maps and the tracker are both empty. A packet in between would
    // write its tracked mapping into the maps again, and on a busy machine there always is such a
    // packet.
    nft("add table ip pause\n\
         add chain ip pause gate { type filter hook prerouting priority -400; policy drop; }\n\
         flush map ip lab out\nflush map ip lab owner\nflush set ip lab sent\n")?;
    let forgotten = conntrack::flush().context("forget tracked flows");
    nft("delete table ip pause\n")?;
    forgotten
}

fn nft(rules: &str) -> Result<()> {
    feed("nft", &["-f", "-"], rules)
}
