//! The helpers with which tests wait: one deadline, and an event for each line of the log. The
//! files under `tests/` include this file.
#![allow(dead_code, reason = "each taker uses its part")]

use std::{
    collections::VecDeque,
    fmt::Debug,
    future::{Future, ready},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    sync::{
        LazyLock, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{sync::watch, time::timeout};
use tracing::{
    Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

/// The deadline of a test. It is long enough for a loaded machine, because tests wait for events.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The pause between two checks of a condition for which there is no event.
const PACE: Duration = Duration::from_millis(5);

/// Waits for a condition that only a snapshot shows: a ticket, a report or a metric. It checks
/// again at each line of this process's log, because the library logs each change of these.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    until_some(|| ready(condition().then_some(()))).await;
}

/// Waits until `look` returns a value, as [`until`] does.
pub(crate) async fn until_some<T, F>(look: impl Fn() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let mut lines = LINES.subscribe();
    let found = async {
        loop {
            lines.mark_unchanged();
            if let Some(found) = look().await {
                return found;
            }
            lines.changed().await.expect("the sender is static");
        }
    };
    let found = timeout(PATIENCE, found).await;
    found.expect("the condition comes true")
}

/// Waits for a condition for which there is no event, by checking it again and again. The kernel
/// does not tell when memory, a descriptor or a port is free, and the runtime does not tell when a
/// task has ended.
pub(crate) async fn until_polled(condition: impl Fn() -> bool) {
    let turned = async {
        while !condition() {
            tokio::time::sleep(PACE).await;
        }
    };
    let turned = timeout(PATIENCE, turned).await;
    turned.expect("the condition comes true");
}

/// The first of five ports of loopback that nobody uses. The system gives them to no socket by itself,
/// so nobody takes them while a server is restarted.
pub(crate) fn free_ports() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let is_free = |port: u16| {
        let address = (Ipv4Addr::LOCALHOST, port);
        TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok()
    };
    loop {
        // Two processes begin at different places.
        let turn = NEXT.fetch_add(1, Ordering::Relaxed);
        let turn = std::process::id().wrapping_mul(31).wrapping_add(turn);
        let first = 10_000 + (turn % 4_000) as u16 * 5;
        if (first..first + 5).all(is_free) {
            return first;
        }
    }
}

/// Lets every other task run until all of them wait. It needs a runtime of one thread: there, a
/// task that yields runs again after each ready task has had its turn.
pub(crate) async fn settle() {
    const TURNS: usize = 1000;
    for _ in 0..TURNS {
        tokio::task::yield_now().await;
    }
}

/// The number of lines that have been logged.
static LINES: LazyLock<watch::Sender<u64>> = LazyLock::new(|| {
    tracing::subscriber::set_global_default(Lines).expect("nobody else takes the log");
    watch::Sender::new(0)
});

/// The last warnings and errors of the log.
static WARNINGS: Mutex<VecDeque<String>> = Mutex::new(VecDeque::new());
/// The most of them that are kept.
const MAX_WARNINGS: usize = 256;

/// Whether the log has warned of this lately, after a call of [`until`].
pub(crate) fn warned(text: &str) -> bool {
    let warnings = WARNINGS.lock().expect("no holder panics");
    warnings.iter().any(|warning| warning.contains(text))
}

/// The message of a log line.
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

/// Counts the library's log lines of every level, and keeps the warnings.
struct Lines;

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && metadata.target().starts_with("throughline")
    }

    fn event(&self, event: &Event<'_>) {
        if *event.metadata().level() <= Level::WARN {
            let mut message = Message(String::new());
            event.record(&mut message);
            let mut warnings = WARNINGS.lock().expect("no holder panics");
            warnings.truncate(MAX_WARNINGS - 1);
            warnings.push_front(message.0);
        }
        LINES.send_modify(|lines| *lines += 1);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}
