//! Routers that grant port mappings, with Debian's miniupnpd in the router's namespace.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    error::{Context, LabError, Result},
    host::Host,
    spec::PortMapping,
};

const HTTP_PORT: u16 = 5_000;
/// The port of NAT-PMP and PCP (RFC 6886 section 3.2, RFC 6887 section 19).
const PCP_PORT: u16 = 5_351;
const READY_WITHIN: Duration = Duration::from_secs(5);

/// A running daemon. Dropping it ends it.
pub(crate) struct Daemon(Child);

impl Daemon {
    /// Starts the daemon on `router`, whose inner address is `lan`, and waits until it answers.
    pub(crate) fn start(
        router: &Host,
        lan: Ipv4Addr,
        offers: PortMapping,
        directory: &Path,
    ) -> Result<Self> {
        let file = |kind: &str| directory.join(format!("{}.miniupnpd.{kind}", router.name()));
        fs::write(file("conf"), configuration(offers))
            .context("write the port-mapping daemon's configuration")?;
        let log = fs::File::create(file("log")).context("make the port-mapping daemon's log")?;
        let child = router
            .command("miniupnpd")
            .args(["-d", "-f"])
            .arg(file("conf"))
            .arg("-P")
            .arg(file("pid"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log)
            .spawn()
            .context("start miniupnpd")?;
        let daemon = Self(child);
        let deadline = Instant::now() + READY_WITHIN;
        while !router.run(async move || answers(offers, lan).await)? {
            if Instant::now() > deadline {
                let log = fs::read_to_string(file("log")).unwrap_or_default();
                return Err(LabError::Timeout {
                    what: "miniupnpd to answer".into(),
                    after: READY_WITHIN,
                    log,
                });
            }
            // The daemon does not report that it is ready, so it is asked again and again.
            thread::sleep(Duration::from_millis(10));
        }
        Ok(daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn configuration(offers: PortMapping) -> String {
    let yes = |on: bool| if on { "yes" } else { "no" };
    // A lying router writes its rules into a table that no packet passes.
    let table = if offers.lies { "upnp_unhooked" } else { "upnp" };
    format!(
        "ext_ifname=wan
listening_ip=lan
http_port={HTTP_PORT}
enable_upnp={}
enable_natpmp={}
ipv6_disable=yes
min_lifetime=2
secure_mode=yes
uuid=5f6c7d5e-0b5c-4b3a-9f2e-7a1d1c0f9e00
upnp_table_name={table}
upnp_nat_table_name={table}
upnp_forward_chain=forward
upnp_nat_chain=prerouting
upnp_nat_postrouting_chain=postrouting
allow 1024-65535 0.0.0.0/0 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
",
        yes(offers.upnp),
        yes(offers.pcp),
    )
}

async fn answers(offers: PortMapping, lan: Ipv4Addr) -> bool {
    let upnp = async {
        !offers.upnp
            || tokio::net::TcpStream::connect(SocketAddrV4::new(lan, HTTP_PORT))
                .await
                .is_ok()
    };
    let pcp = async {
        if !offers.pcp {
            return true;
        }
        let Ok(socket) = tokio::net::UdpSocket::bind("0.0.0.0:0").await else {
            return false;
        };
        let to = SocketAddrV4::new(lan, PCP_PORT);
        // NAT-PMP asks for the external address with version 0 and opcode 0 (RFC 6886 section 3.2).
        if socket.send_to(&[0, 0], to).await.is_err() {
            return false;
        }
        let mut answer = [0; 16];
        tokio::time::timeout(Duration::from_millis(100), socket.recv(&mut answer))
            .await
            .is_ok_and(|read| read.is_ok())
    };
    upnp.await && pcp.await
}
