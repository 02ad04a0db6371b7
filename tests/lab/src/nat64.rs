//! Routers behind which hosts have only IPv6 and reach IPv4 by NAT64 and DNS64 (RFC 6146, RFC 6147), with
//! Debian's tayga and dnsmasq.
//!
//! tayga gives each host a private IPv4 address, and the router's NAT does the rest. So each kind of NAT
//! is a kind of NAT64, too.

use std::{
    fs,
    net::Ipv6Addr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    error::{Context, LabError, Result},
    host::Host,
    namespace::{feed, sysctl},
    topology::RELAY,
};

const READY_WITHIN: Duration = Duration::from_secs(5);

/// The IPv4 addresses of the hosts. The first one is tayga's own.
const POOL: (&str, &str) = ("192.168.255.1", "192.168.255.0/24");
const PREFIX: &str = "64:ff9b::";

/// The name of our server, which has IPv4 alone.
const RELAY_NAME: &str = "relay.example";

/// The running programs of one router. Dropping this ends them.
pub(crate) struct Nat64(Vec<Child>);

impl Nat64 {
    /// Starts the programs on `router`, whose inner address is `lan`, and waits until names are resolved.
    pub(crate) fn start(router: &Host, lan: Ipv6Addr, directory: &Path) -> Result<Self> {
        let file = |kind: &str| directory.join(format!("{}.{kind}", router.name()));
        let (address, pool) = POOL;
        // tayga needs an IPv6 address of its own besides the well-known prefix.
        let own = Ipv6Addr::from_bits(lan.to_bits() | 0x6464_0000);
        let data = file("tayga");
        fs::create_dir_all(&data).context("make tayga's folder")?;
        let configuration = format!(
            "tun-device nat64\nipv4-addr {address}\nipv6-addr {own}\nprefix {PREFIX}/96\ndynamic-pool {pool}\n\
             data-dir {}\n",
            data.display()
        );
        fs::write(file("tayga.conf"), configuration).context("write tayga's configuration")?;
        let tayga = |more: &str| {
            let mut command = router.command("tayga");
            command.arg("--config").arg(file("tayga.conf")).arg(more);
            command
        };
        let made = tayga("--mktun").output().context("start tayga")?;
        if !made.status.success() {
            let said = String::from_utf8_lossy(&made.stderr);
            return Err(LabError::Program(format!("tayga: {said}")));
        }
        router.namespace.within(|| {
            sysctl(&[("net/ipv6/conf/nat64/accept_dad", "0")])?;
            let commands = format!(
                "link set nat64 up\nroute add {pool} dev nat64\nroute add {PREFIX}/96 dev nat64\n\
                 route add {own}/128 dev nat64\n"
            );
            feed("ip", &["-batch", "-"], &commands)
        })?;
        let mut dnsmasq = router.command("dnsmasq");
        dnsmasq.args([
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--user=root",
        ]);
        dnsmasq.args(["--no-resolv", "--no-hosts", "--bind-interfaces"]);
        dnsmasq
            .arg("--pid-file")
            .arg(format!("--listen-address={lan}"));
        let relay = RELAY[0];
        for (name, ip) in [
            ("ipv4only.arpa", "192.0.0.170".to_owned()),
            (RELAY_NAME, relay.to_string()),
        ] {
            dnsmasq.arg(format!("--address=/{name}/{ip}"));
            dnsmasq.arg(format!("--address=/{name}/{PREFIX}{ip}"));
        }
        let mut this = Self(Vec::new());
        this.spawn(&file("tayga.log"), tayga("--nodetach"))?;
        this.spawn(&file("dnsmasq.log"), dnsmasq)?;
        fs::write(
            resolver(directory, router.name()),
            format!("nameserver {lan}\n"),
        )
        .context("write the list of name servers")?;
        this.wait(router, lan, &file("dnsmasq.log"))?;
        Ok(this)
    }

    fn spawn(&mut self, log: &Path, mut command: Command) -> Result<()> {
        let log = fs::File::create(log).context("make a log")?;
        let again = log.try_clone().context("share the log")?;
        command.stdin(Stdio::null()).stdout(again).stderr(log);
        self.0
            .push(command.spawn().context("start a NAT64's program")?);
        Ok(())
    }

    fn wait(&self, router: &Host, lan: Ipv6Addr, log: &Path) -> Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        while !router.run(async move || resolves(lan).await)? {
            if Instant::now() > deadline {
                return Err(LabError::Timeout {
                    what: "dnsmasq to answer".into(),
                    after: READY_WITHIN,
                    log: fs::read_to_string(log).unwrap_or_default(),
                });
            }
            // It does not report that it is ready, so it is asked again and again.
            thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Nat64 {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The file that names the name server of the hosts behind `router`.
pub(crate) fn resolver(directory: &Path, router: &str) -> PathBuf {
    directory.join(format!("{router}.resolv.conf"))
}

/// Whether the name server at `at` answers.
async fn resolves(at: Ipv6Addr) -> bool {
    let ask = async {
        let socket = tokio::net::UdpSocket::bind("[::]:0").await?;
        socket.connect((at, 53)).await?;
        // The AAAA records of `ipv4only.arpa` (RFC 1035 section 4).
        let question = b"\0\x01\x01\0\0\x01\0\0\0\0\0\0\x08ipv4only\x04arpa\0\0\x1c\0\x01";
        socket.send(question).await?;
        socket.recv(&mut [0; 512]).await
    };
    let asked = tokio::time::timeout(Duration::from_millis(100), ask).await;
    matches!(asked, Ok(Ok(_)))
}
