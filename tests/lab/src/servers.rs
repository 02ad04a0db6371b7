//! Servers on the lab's internet: our own, and coturn as an independent STUN and TURN server.

use std::{
    fmt, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    available,
    classify::{STUN_PORT, external},
    error::{Context, LabError, Result},
    lab::Lab,
    program::Program,
    topology::{RELAY, RELAY6},
};

const READY_WITHIN: Duration = Duration::from_secs(10);

/// Debian's coturn on the `relay` host. It has STUN with RFC 5780, and TURN over UDP and TCP.
/// Dropping it ends it.
pub struct Coturn {
    child: Child,
    port: u16,
    authority: Option<PathBuf>,
}

impl Coturn {
    /// The user that may allocate.
    pub const USER: &'static str = "lab";
    /// That user's password.
    pub const PASSWORD: &'static str = "lab-password";

    /// Starts coturn on STUN's port, with its alternate port one above, and waits until it answers.
    ///
    /// # Errors
    /// [`LabError::Missing`] if coturn is not installed, [`LabError::Timeout`] with its log if it
    /// does not answer.
    pub fn start(lab: &Lab) -> Result<Self> {
        Self::start_at(lab, STUN_PORT)
    }

    /// Starts coturn as [`start`](Self::start) does, but on another port. A `tcp443` site can reach
    /// port 443 over TCP.
    ///
    /// # Errors
    /// The errors of [`start`](Self::start).
    pub fn start_at(lab: &Lab, port: u16) -> Result<Self> {
        let mut command = Self::command(lab, port)?;
        command
            .args(["--no-tls", "--no-dtls"])
            .arg(format!("--listening-port={port}"));
        for ip in RELAY {
            command.arg("-L").arg(ip.to_string());
        }
        for ip in RELAY6 {
            command.arg("-L").arg(ip.to_string());
        }
        let coturn = Self::spawn(command, port, None)?;
        for ip in RELAY {
            let server = SocketAddr::new(ip.into(), port);
            let answered = move || async move { wait_for_stun(server).await };
            coturn.ready(lab, lab.host("relay")?.run(answered)?)?;
        }
        Ok(coturn)
    }

    /// Starts a coturn that speaks TLS over TCP and nothing else, on port 443 of the host's second
    /// addresses. Its self-signed certificate is in [`authority`](Self::authority).
    ///
    /// # Errors
    /// The errors of [`start`](Self::start).
    pub fn start_tls(lab: &Lab) -> Result<Self> {
        const PORT: u16 = 443;
        let addresses = [RELAY[1].to_string(), RELAY6[1].to_string()];
        let made = rcgen::generate_simple_self_signed(addresses.clone())
            .map_err(|error| LabError::Program(format!("no certificate: {error}")))?;
        let [certificate, key] = ["cert.pem", "key.pem"].map(|name| lab.directory().join(name));
        fs::write(&certificate, made.cert.pem()).context("write a certificate")?;
        fs::write(&key, made.key_pair.serialize_pem()).context("write a key")?;
        let mut command = Self::command(lab, PORT)?;
        command
            .args(["--no-udp", "--no-tcp", "--no-dtls"])
            .args(addresses.iter().flat_map(|address| ["-L", address]))
            .arg(format!("--tls-listening-port={PORT}"))
            .arg(format!("--cert={}", certificate.display()))
            .arg(format!("--pkey={}", key.display()));
        let coturn = Self::spawn(command, PORT, Some(certificate))?;
        let server = SocketAddr::new(RELAY[1].into(), PORT);
        let answered = move || async move { wait_for_tcp(server).await };
        coturn.ready(lab, lab.host("relay")?.run(answered)?)?;
        Ok(coturn)
    }

    fn command(lab: &Lab, port: u16) -> Result<Command> {
        available::check(&[available::COTURN]).map_err(LabError::Missing)?;
        let file = |kind: &str| lab.directory().join(format!("coturn-{port}.{kind}"));
        let mut command = lab.host("relay")?.command("turnserver");
        command
            .args([
                "-n",
                "--no-cli",
                "--no-dynamic-ip-list",
                "--no-dynamic-realms",
                "--fingerprint",
            ])
            .args([
                "--simple-log",
                "--lt-cred-mech",
                "--realm=lab.example",
                "-m",
                "1",
            ])
            .arg(format!("--user={}:{}", Self::USER, Self::PASSWORD))
            .arg(format!("--pidfile={}", file("pid").display()))
            .arg(format!("--log-file={}", file("log").display()))
            .arg(format!("--userdb={}", file("db").display()));
        command
            .arg("-E")
            .arg(RELAY[0].to_string())
            .arg("-E")
            .arg(RELAY6[0].to_string());
        Ok(command)
    }

    fn spawn(mut command: Command, port: u16, authority: Option<PathBuf>) -> Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start turnserver")?;
        Ok(Self {
            child,
            port,
            authority,
        })
    }

    fn ready(&self, lab: &Lab, answered: bool) -> Result<()> {
        if answered {
            return Ok(());
        }
        let log = lab.directory().join(format!("coturn-{}.log", self.port));
        Err(LabError::Timeout {
            what: "coturn to answer".into(),
            after: READY_WITHIN,
            log: fs::read_to_string(log).unwrap_or_default(),
        })
    }

    /// The address where it answers STUN over IPv4.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(RELAY[0].into(), self.port)
    }

    /// The address where it answers STUN over IPv6.
    pub fn address6(&self) -> SocketAddr {
        SocketAddr::new(RELAY6[0].into(), self.port)
    }

    /// The `stun:` URL (RFC 7064).
    pub fn stun_url(&self) -> String {
        format!("stun:{}", self.address())
    }

    /// The `turn:` URL (RFC 7065) with the given transport, `udp` or `tcp`.
    pub fn turn_url(&self, transport: &str) -> String {
        format!("turn:{}?transport={transport}", self.address())
    }

    /// The `turn:` URL over IPv6.
    pub fn turn_url6(&self, transport: &str) -> String {
        format!("turn:{}?transport={transport}", self.address6())
    }

    /// The `turns:` URL of a coturn that was [started for TLS](Self::start_tls).
    pub fn turns_url(&self) -> String {
        format!("turns:{}:{}", RELAY[1], self.port)
    }

    /// The `turns:` URL over IPv6.
    pub fn turns_url6(&self) -> String {
        format!("turns:[{}]:{}", RELAY6[1], self.port)
    }

    /// The PEM file of the certificate to trust, for TLS.
    pub fn authority(&self) -> Option<&Path> {
        self.authority.as_deref()
    }
}

/// Waits until a STUN server answers. It does not report that it is ready, so it is asked again and
/// again.
async fn wait_for_stun(server: SocketAddr) -> bool {
    let deadline = Instant::now() + READY_WITHIN;
    while Instant::now() < deadline {
        // Each question has a new socket, because a refusal stays with the old one.
        if let Ok(socket) = tokio::net::UdpSocket::bind(("0.0.0.0", 0)).await
            && let Ok(Some(_)) = external(&socket, server).await
        {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

/// Waits until a server accepts TCP connections, as [`wait_for_stun`] does.
async fn wait_for_tcp(server: SocketAddr) -> bool {
    let deadline = Instant::now() + READY_WITHIN;
    while Instant::now() < deadline {
        if TcpStream::connect(server).await.is_ok() {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

impl Drop for Coturn {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl fmt::Debug for Coturn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Coturn")
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

/// The port of our server in the lab, which strict firewalls let out over TCP.
const SERVE_PORT: u16 = 443;
/// The address at which it serves its counters, on its own loopback.
const SERVE_ADMIN: &str = "127.0.0.1:9464";

/// How often a server is asked for its counters that is asked too often.
const PATIENT_ASKS: usize = 10;

/// Asks the server on this host for its counters.
async fn metrics() -> std::io::Result<String> {
    let mut stream = TcpStream::connect(SERVE_ADMIN).await?;
    let request = b"GET /metrics HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n";
    stream.write_all(request).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    Ok(text)
}

/// Our own server, `throughline serve`, on the `relay` host. Dropping it ends it.
#[derive(Debug)]
pub struct Serve {
    /// The program, which runs as long as this value.
    pub program: Program,
    /// The program's `ready` event.
    pub ready: Value,
}

impl Serve {
    /// Starts `throughline serve` from the executable at `path`, with the npm package in the folder
    /// `npm`, and waits until it is ready. It listens on IPv6 too if a site of the lab has IPv6 and none has a
    /// NAT64.
    ///
    /// # Errors
    /// [`LabError::Io`] if there is no such program, [`LabError::Timeout`] or [`LabError::Program`]
    /// with its log.
    pub fn start(lab: &Lab, path: &Path, npm: &Path) -> Result<Self> {
        let mut command = lab.host("relay")?.command(path);
        command
            .args(["serve", "--json"])
            .args(["--port", &SERVE_PORT.to_string(), "--admin", SERVE_ADMIN])
            .args(lab.spec().no_turn.then_some("--no-turn"));
        command.arg("--data").arg(lab.directory().join("serve"));
        command.arg("--host").arg(RELAY[0].to_string());
        let sites = &lab.spec().sites;
        if sites.iter().any(|site| site.ipv6) && !sites.iter().any(|site| site.nat64) {
            command.arg("--host").arg(RELAY6[0].to_string());
        }
        if npm.is_dir() {
            command.arg("--npm").arg(npm);
        }
        let program = Program::start("throughline serve", command)?;
        let ready = program.wait("ready", READY_WITHIN)?;
        Ok(Self { program, ready })
    }

    /// The addresses for reservations and dials.
    pub fn addresses(&self) -> Vec<String> {
        strings(&self.ready["addresses"])
    }

    /// Returns the server's `stun:` URLs.
    pub fn stun(&self) -> Vec<String> {
        strings(&self.ready["stun"])
    }

    /// Returns one of its counters or gauges, by its name and labels. One that has counted nothing is 0.
    ///
    /// # Errors
    /// [`LabError::Io`] if it cannot be asked, [`LabError::Program`] if it has none of that name.
    pub fn metric(&self, lab: &Lab, name: &str) -> Result<f64> {
        let family = name.split([' ', '{']).next().unwrap_or_default();
        let family = family.trim_end_matches("_total");
        let mut text = String::new();
        for _ in 0..PATIENT_ASKS {
            let answer = lab.host("relay")?.run(async || metrics().await)?;
            text = answer.context("ask the server for its counters")?;
            if !text.starts_with("HTTP/1.1 429 ") {
                break;
            }
            // The server has a rate for its askers, and says that a second is enough.
            std::thread::sleep(Duration::from_secs(1));
        }
        // A family whose members have labels is not told of before one of them has counted.
        if !name.contains('{') && !text.contains(&format!("# TYPE {family} ")) {
            let told = text.lines().next().unwrap_or_default();
            return Err(LabError::Program(format!("no metric {family}: {told}")));
        }
        let mut lines = text.lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Ok(value.unwrap_or_default())
    }

    /// The root URL of its HTTP service, with its IPv6 address if `ipv6`.
    ///
    /// # Errors
    /// [`LabError::Program`] if it has none.
    pub fn http(&self, ipv6: bool) -> Result<String> {
        let url = self.ready["http"]
            .as_str()
            .ok_or_else(|| LabError::Program(format!("no http in {}", self.ready)))?;
        let url = url.trim_end_matches('/');
        Ok(if ipv6 {
            url.replace(&RELAY[0].to_string(), &format!("[{}]", RELAY6[0]))
        } else {
            url.to_owned()
        })
    }
}

fn strings(value: &Value) -> Vec<String> {
    value
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect()
}
