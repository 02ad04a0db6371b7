//! The memory, descriptors and tasks of a process, and what each connection adds.
//!
//! The peer that is measured runs in its own process, so that the resources of the many peers that
//! connect to it are not counted.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _, future::join_all, stream};
use throughline::{Config, Connection, Ticket};

use crate::{Form, Row, common, peers, report};

/// The argument that makes this program the peer that is measured. The address of its relay
/// follows.
pub(crate) const MEASURED: &str = "--measured";
/// How many bytes an active connection has carried in each direction on its open stream.
const CARRIED: usize = 1 << 20;
/// How many peers connect at the same time.
const COMING: usize = 8;
/// The aim for an idle connection with both its paths, in KiB. A TLS server needs as much.
const IDLE_AIM: i64 = 128;
/// The aim for the tasks of an idle connection. Each path has one task for the connection and a few
/// below it.
const TASKS_AIM: i64 = 8;

/// How long nothing must change. This is longer than the signalling stream of an answerer lingers,
/// which waits 5 s for its peer.
const STILL: Duration = Duration::from_secs(6);
/// How long to wait at most. Resources that are not released by then stay.
const STAYS: Duration = Duration::from_secs(40);

/// The resources that this process holds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) resident_kib: i64,
    pub(crate) descriptors: i64,
    pub(crate) tasks: i64,
}

impl Held {
    fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.unwrap().trim().trim_end_matches(" kB");
        Self {
            resident_kib: resident.parse().unwrap(),
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count() as i64,
            tasks: tokio::runtime::Handle::current()
                .metrics()
                .num_alive_tasks() as i64,
        }
    }

    /// Waits until closed connections have released their resources. Returns the least that was
    /// held until nothing was released for [`STILL`].
    pub(crate) async fn settled() -> Self {
        let mut least = Self::now();
        let (start, mut last) = (Instant::now(), Instant::now());
        while last.elapsed() < STILL && start.elapsed() < STAYS {
            // This is a measurement. No event says that memory or descriptors are released.
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = Self::now();
            if now.tasks < least.tasks || now.descriptors < least.descriptors {
                last = Instant::now();
            }
            least.resident_kib = least.resident_kib.min(now.resident_kib);
            least.descriptors = least.descriptors.min(now.descriptors);
            least.tasks = least.tasks.min(now.tasks);
        }
        least
    }

    fn since(self, before: Self) -> Self {
        Self {
            resident_kib: self.resident_kib - before.resident_kib,
            descriptors: self.descriptors - before.descriptors,
            tasks: self.tasks - before.tasks,
        }
    }
}

/// Runs the peer that is measured. It prints its ticket, and then what it holds, once for each line
/// on its standard input.
pub(crate) async fn measured(relay: String) {
    let mut config = peers::quiet();
    config.relays = vec![relay];
    config.idle_timeout = Duration::ZERO;
    let listener = common::echoing(config).await;
    println!("{}", listener.ticket());
    let mut asked = tokio::task::spawn_blocking(next_line);
    while asked.await.is_ok_and(|line| line.is_some()) {
        let held = Held::settled().await;
        println!("{} {} {}", held.resident_kib, held.descriptors, held.tasks);
        asked = tokio::task::spawn_blocking(next_line);
    }
}

fn next_line() -> Option<String> {
    std::io::stdin().lines().next()?.ok()
}

/// A process that runs [`measured`]. Dropping it ends the process.
struct Measured {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Measured {
    fn start(relay: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([MEASURED, relay])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (asks, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let answers = BufReader::new(answers);
        Self {
            child,
            asks,
            answers,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn held(&mut self) -> Held {
        writeln!(self.asks).unwrap();
        let line = tokio::task::block_in_place(|| self.line());
        let numbers: Vec<_> = line.split(' ').map(|n| n.parse().unwrap()).collect();
        Held {
            resident_kib: numbers[0],
            descriptors: numbers[1],
            tasks: numbers[2],
        }
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) async fn run(form: Form) -> Vec<Row> {
    let count: usize = form.pick(40, 400);
    let relay = peers::relay(2 * count).await;
    let config = peers::config(&relay);
    let mut peer = Measured::start(&config.relays[0]);
    let ticket: Ticket = peer.line().parse().unwrap();
    // The first connections make the process allocate what it allocates once.
    drop(connected(&config, &ticket, 4).await);
    let before = peer.held();
    let connections = connected(&config, &ticket, count).await;
    let idle = peer.held().since(before);
    let streams = join_all(connections.iter().map(|(_, connection)| carry(connection))).await;
    let active = peer.held().since(before);
    drop(streams);
    join_all(connections.iter().map(|(dialler, _)| dialler.close())).await;
    let left = peer.held().since(before);
    let connections = connected(&config, &ticket, count).await;
    let again = peer.held().since(before);
    drop(connections);

    let each = |all: i64| all as f64 / count as f64;
    let row = |scenario: String, aim, held: Held, reached| Row {
        scenario,
        promised: report::NONE,
        aim,
        measured: format!(
            "{:.0} KiB, {:.1} descriptors, {:.1} tasks each",
            each(held.resident_kib),
            each(held.descriptors),
            each(held.tasks)
        ),
        kept: true,
        reached,
        known: None,
    };
    let mut idle = row(
        format!("{count} idle connections, direct, at one peer"),
        "< 128 KiB, no descriptor, at most 8 tasks each",
        idle,
        idle.resident_kib < IDLE_AIM * count as i64
            && idle.descriptors <= 0
            && idle.tasks <= TASKS_AIM * count as i64,
    );
    // The allocator keeps freed memory to use it again.
    idle.measured += &format!(
        "; when they are closed {:+} descriptors, {:+} tasks in all; as many again: {:.0} KiB each",
        left.descriptors,
        left.tasks,
        each(again.resident_kib)
    );
    let active = row(
        "the same, each with an open stream that has carried 1 MiB there and back".into(),
        "< 1 MiB, no descriptor each",
        active,
        active.resident_kib < 1024 * count as i64 && active.descriptors <= 0,
    );
    vec![idle, active]
}

/// Starts `count` peers that are connected directly.
async fn connected(
    config: &Config,
    ticket: &Ticket,
    count: usize,
) -> Vec<(throughline::Connector, Connection)> {
    let ticket = ticket.clone().without_addresses();
    let peers = (0..count).map(async |_| {
        let dialler = peers::dialler(config.clone()).await;
        let connection = dialler.connect(&ticket).await.unwrap();
        assert!(peers::until_direct(&connection).await, "no direct path");
        peers::round_trip(&connection).await.unwrap();
        (dialler, connection)
    });
    stream::iter(peers).buffered(COMING).collect().await
}

/// Opens a stream and sends [`CARRIED`] bytes there and back.
async fn carry(connection: &Connection) -> throughline::Stream {
    let mut stream = connection.open(peers::PROTOCOL).await.unwrap();
    let (bytes, mut back) = (vec![7; CARRIED / 16], vec![0; CARRIED / 16]);
    for _ in 0..16 {
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
        stream.read_exact(&mut back).await.unwrap();
    }
    stream
}
