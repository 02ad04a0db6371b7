//! Servers of NATS on loopback.

use std::{
    fs,
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tokio::{
    net,
    sync::{Semaphore, SemaphorePermit, watch},
};

use super::common::{free_ports, until_polled};

/// What the user may do, as docs/fleet.md says it.
const RIGHTS: &str = r#"
    publish: ["$KV.throughline_peers.>", "$KV.throughline_rooms.>", "$KV.throughline_relays.>",
              "$KV.throughline_revoked.>", "$KV.throughline_usage.>", "$KV.throughline_quotas.>",
              "$JS.API.>", "$JS.FC.>"]
    subscribe: ["throughline.>", "_INBOX.>"]
"#;

/// A cluster of NATS servers with JetStream, whose data outlives them.
pub(crate) struct Nats {
    nodes: Vec<Node>,
    /// The server that the others do not reach.
    apart: watch::Sender<Option<usize>>,
    _home: tempfile::TempDir,
    _alone: SemaphorePermit<'static>,
}

/// There is one cluster at a time, because the tests say how long a cluster takes.
static ALONE: Semaphore = Semaphore::const_new(1);

struct Node {
    port: u16,
    settings: PathBuf,
    data: PathBuf,
    child: Option<Child>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Node {
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it is our child");
            child.wait().expect("it has ended");
        }
    }

    fn run(&mut self) {
        let program = match fs::exists("/usr/sbin/nats-server") {
            Ok(true) => "/usr/sbin/nats-server",
            _ => "nats-server",
        };
        let child = Command::new(program)
            .arg("-c")
            .arg(&self.settings)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect("nats-server is there; see scripts/setup"));
    }

    fn listens(&self) -> bool {
        TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok()
    }

    fn signal(&self, signal: &str) {
        let child = self.child.as_ref().expect("it runs");
        let id = child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status();
        assert!(sent.unwrap().success());
    }

    fn backup(&self) -> PathBuf {
        self.data.with_extension("backup")
    }
}

/// Carries the routes from one server to another, unless one of the two is apart.
async fn carry(
    listener: net::TcpListener,
    to: u16,
    ends: [usize; 2],
    apart: watch::Receiver<Option<usize>>,
) {
    let is_cut = move |apart: &Option<usize>| apart.is_some_and(|node| ends.contains(&node));
    while let Ok((mut near, _)) = listener.accept().await {
        let mut apart = apart.clone();
        tokio::spawn(async move {
            let carried = async {
                let mut far = net::TcpStream::connect((Ipv4Addr::LOCALHOST, to)).await?;
                tokio::io::copy_bidirectional(&mut near, &mut far).await
            };
            tokio::select! {
                biased;
                _ = apart.wait_for(is_cut) => {}
                _ = carried => {}
            }
        });
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}

impl Nats {
    /// Starts so many servers, which know the user `relay` with the password `s3cret`.
    pub(crate) async fn start(nodes: usize) -> Self {
        let _alone = ALONE.acquire().await.unwrap();
        let home = tempfile::tempdir().unwrap();
        let ports: Vec<_> = (0..nodes).map(|_| free_ports()).collect();
        let apart = watch::Sender::new(None);
        let mut all = Vec::new();
        for (from, port) in ports.iter().enumerate() {
            // They find each other by what the test carries, and by nothing else.
            let mut routes = String::new();
            for (to, target) in ports.iter().enumerate().filter(|(to, _)| *to != from) {
                let at = port + 2 + (to - usize::from(to > from)) as u16;
                let listener = net::TcpListener::bind((Ipv4Addr::LOCALHOST, at)).await;
                let ends = [from, to];
                tokio::spawn(carry(
                    listener.unwrap(),
                    target + 1,
                    ends,
                    apart.subscribe(),
                ));
                routes += &format!("\"nats-route://127.0.0.1:{at}\",");
            }
            let cluster = match nodes {
                1 => String::new(),
                _ => format!(
                    "cluster {{ name: fleet, listen: \"127.0.0.1:{}\", advertise: \"127.0.0.1:1\", \
                     no_advertise: true, routes: [{routes}] }}\n",
                    port + 1
                ),
            };
            let data = home.path().join(port.to_string());
            let settings = home.path().join(format!("{port}.conf"));
            let text = format!(
                "server_name: n{port}\n\
                 listen: \"127.0.0.1:{port}\"\n\
                 {cluster}\
                 jetstream {{ store_dir: \"{}\", max_mem: 64M, max_file: 64M }}\n\
                 authorization {{ users: [{{ user: relay, password: s3cret, permissions: {{{RIGHTS}}} }}] }}\n",
                data.display()
            );
            fs::write(&settings, text).unwrap();
            all.push(Node {
                port: *port,
                settings,
                data,
                child: None,
            });
        }
        let mut nats = Self {
            nodes: all,
            apart,
            _home: home,
            _alone,
        };
        nats.run().await;
        nats
    }

    /// Starts the servers that do not run, and waits until they listen.
    pub(crate) async fn run(&mut self) {
        for node in self.nodes.iter_mut().filter(|node| node.child.is_none()) {
            node.run();
        }
        until_polled(|| self.nodes.iter().all(Node::listens)).await;
    }

    pub(crate) fn kill(&mut self, node: usize) {
        self.nodes[node].kill();
    }

    pub(crate) fn kill_all(&mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
    }

    /// Stops a server where it is, with all its connections.
    pub(crate) fn pause(&self, node: usize) {
        self.nodes[node].signal("-STOP");
    }

    pub(crate) fn resume(&self, node: usize) {
        self.nodes[node].signal("-CONT");
    }

    /// From now on, this server and the others do not reach each other. Clients reach each.
    pub(crate) fn part(&self, node: usize) {
        self.apart.send_replace(Some(node));
    }

    /// They reach each other again.
    pub(crate) fn join(&self) {
        self.apart.send_replace(None);
    }

    /// Kills all servers and keeps a copy of their data.
    pub(crate) fn back_up(&mut self) {
        self.kill_all();
        for node in &self.nodes {
            copy(&node.data, &node.backup());
        }
    }

    /// Kills all servers and puts the copy in the place of their data.
    pub(crate) fn restore(&mut self) {
        self.kill_all();
        for node in &self.nodes {
            fs::remove_dir_all(&node.data).unwrap();
            fs::rename(node.backup(), &node.data).unwrap();
        }
    }

    pub(crate) fn replicas(&self) -> u8 {
        self.nodes.len() as u8
    }

    /// The URLs. The first has the user.
    pub(crate) fn urls(&self) -> Vec<String> {
        let others = self.nodes.iter().skip(1);
        let others = others.map(|node| format!("nats://127.0.0.1:{}", node.port));
        std::iter::once(self.url(0)).chain(others).collect()
    }

    /// The URL of one server, with the user.
    pub(crate) fn url(&self, node: usize) -> String {
        format!("nats://relay:s3cret@127.0.0.1:{}", self.nodes[node].port)
    }
}
