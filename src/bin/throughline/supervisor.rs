//! Tells the service manager how the program is, by the protocol of systemd (`sd_notify(3)`).

use std::time::Duration;

use tokio::time::interval;

/// How long a goodbye may take: peers hear of the end, and the last batch of the record is written.
const GOODBYE: Duration = Duration::from_secs(10);

/// The service manager that has started the program, if it wants to be told anything.
pub(crate) struct Supervisor {
    #[cfg(unix)]
    socket: Option<(
        std::os::unix::net::UnixDatagram,
        std::os::unix::net::SocketAddr,
    )>,
    /// How often it wants to hear that the program works.
    watchdog: Option<Duration>,
}

impl Supervisor {
    pub(crate) fn from_env() -> Self {
        let variable = |name| std::env::var(name).ok();
        let ours = variable("WATCHDOG_PID").is_none_or(|id| id == std::process::id().to_string());
        let usec = variable("WATCHDOG_USEC").filter(|_| ours);
        let usec = usec
            .and_then(|usec| usec.parse().ok())
            .filter(|usec| *usec > 0);
        Self {
            #[cfg(unix)]
            socket: variable("NOTIFY_SOCKET").and_then(|name| unix::socket(&name)),
            watchdog: usec.map(Duration::from_micros),
        }
    }

    /// The program serves.
    pub(crate) fn ready(&self) {
        self.tell("READY=1");
    }

    /// The program reads its settings again, and tells when it is ready.
    pub(crate) fn reloading(&self) {
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={}", monotonic_usec()));
    }

    /// The program is about to end. It drains for `longest`, and then says goodbye.
    pub(crate) fn stopping(&self, longest: Duration) {
        let usec = (longest + GOODBYE).as_micros();
        self.tell(&format!("STOPPING=1\nEXTEND_TIMEOUT_USEC={usec}"));
    }

    /// Tells again and again that the program works, as long as `is_alive` says so. Never completes.
    pub(crate) async fn watch(&self, is_alive: impl Fn() -> bool) {
        let Some(patience) = self.watchdog else {
            return std::future::pending().await;
        };
        // Half of the patience leaves room for a delay (`sd_watchdog_enabled(3)`).
        let mut tick = interval(patience / 2);
        loop {
            tick.tick().await;
            if is_alive() {
                self.tell("WATCHDOG=1");
            }
        }
    }

    #[cfg(unix)]
    fn tell(&self, state: &str) {
        if let Some((socket, manager)) = &self.socket
            && let Err(error) = socket.send_to_addr(state.as_bytes(), manager)
        {
            tracing::debug!(%error, "the service manager is not told");
        }
    }

    #[cfg(not(unix))]
    fn tell(&self, _: &str) {}
}

#[cfg(unix)]
mod unix {
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    /// Returns a socket that sends to `name`.
    pub(super) fn socket(name: &str) -> Option<(UnixDatagram, SocketAddr)> {
        let manager = address(name)?;
        let socket = UnixDatagram::unbound().ok()?;
        // A manager that does not read must not hold the program up.
        socket.set_nonblocking(true).ok()?;
        Some((socket, manager))
    }

    #[cfg(target_os = "linux")]
    fn address(name: &str) -> Option<SocketAddr> {
        use std::os::linux::net::SocketAddrExt as _;
        match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name).ok(),
            None => SocketAddr::from_pathname(name).ok(),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn address(name: &str) -> Option<SocketAddr> {
        SocketAddr::from_pathname(name).ok()
    }
}

/// The clock by which systemd tells a reload from an earlier one.
#[cfg(target_os = "linux")]
fn monotonic_usec() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec * 1_000_000 + now.tv_nsec / 1000
}

#[cfg(not(target_os = "linux"))]
fn monotonic_usec() -> i64 {
    0
}
