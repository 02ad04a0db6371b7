use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use futures::future;
use libp2p::core::{Endpoint, transport::PortUse};
use tokio::{net::UdpSocket, task::JoinHandle};

use super::*;
use crate::{native::environment::replace, testing::PATIENCE};

/// A name server that knows every name, or none.
struct Server {
    ip: IpAddr,
    port: u16,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Answers every question for an address with `answer`, or says that there is no such name.
    async fn start(at: SocketAddr, answer: Option<Ipv4Addr>) -> Self {
        let socket = UdpSocket::bind(at).await.unwrap();
        let at = socket.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut question = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut question).await {
                let answer = reply(&question[..length], answer);
                let _ = socket.send_to(&answer, from).await;
            }
        });
        Self {
            ip: at.ip(),
            port: at.port(),
            task,
        }
    }
}

/// Answers a question (RFC 1035 section 4.1).
fn reply(question: &[u8], answer: Option<Ipv4Addr>) -> Vec<u8> {
    let name = question[12..].iter().position(|byte| *byte == 0).unwrap();
    let end = 12 + name + 5;
    let asks_v4 = question[end - 4..end - 2] == [0, 1];
    let (code, count, authorities) = match answer {
        None => (3, 0, 1),
        Some(_) => (0, u8::from(asks_v4), 0),
    };
    let mut reply = question[..end].to_vec();
    // A response with the recursion that was desired, one question, and the answers.
    let counts = [0, 1, 0, count, 0, authorities, 0, 0];
    reply[2..4].copy_from_slice(&[0x81, 0x80 | code]);
    reply[4..12].copy_from_slice(&counts);
    if authorities > 0 {
        // The name of the question, SOA, IN, and that the answer is good for an hour (RFC 2308).
        reply.extend([0xc0, 12, 0, 6, 0, 1, 0, 0, 14, 16, 0, 22, 0, 0]);
        reply.extend([[0, 0, 14, 16]; 5].concat());
    }
    if let Some(ip) = answer.filter(|_| asks_v4) {
        // The name of the question, A, IN, an hour.
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 14, 16, 0, 4]);
        reply.extend(ip.octets());
    }
    reply
}

/// A transport whose connections are the addresses that were dialled.
struct Dialled;

impl transport::Transport for Dialled {
    type Output = Multiaddr;
    type Error = io::Error;
    type ListenerUpgrade = future::Pending<io::Result<Multiaddr>>;
    type Dial = future::Ready<io::Result<Multiaddr>>;

    fn listen_on(
        &mut self,
        _: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        Err(TransportError::MultiaddrNotSupported(address))
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        false
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        _: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        match address.to_string().contains("192.0.2.66") {
            true => Err(TransportError::MultiaddrNotSupported(address)),
            false => Ok(future::ready(Ok(address))),
        }
    }

    fn poll(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Poll::Pending
    }
}

/// A system with its files.
struct System {
    home: tempfile::TempDir,
    names: Names,
}

impl System {
    fn new(port: u16) -> Self {
        let home = tempfile::tempdir().unwrap();
        let names = Names::of(&Files {
            servers: home.path().join("resolv.conf"),
            hosts: home.path().join("hosts"),
            port,
        });
        Self { home, names }
    }

    fn set_server(&self, ip: IpAddr) {
        let text = format!("nameserver {ip}\noptions timeout:1 attempts:1\n");
        replace(&self.home.path().join("resolv.conf"), &text);
    }

    fn set_hosts(&self, text: &str) {
        replace(&self.home.path().join("hosts"), text);
    }

    async fn dial(&self, address: &str) -> io::Result<String> {
        let options = DialOpts {
            role: Endpoint::Dialer,
            port_use: PortUse::New,
        };
        let mut transport = self.names.over(Dialled);
        let dial = transport::Transport::dial(&mut transport, address.parse().unwrap(), options);
        dial.unwrap().await.map(|dialled| dialled.to_string())
    }

    /// Dials again and again, as a link to a relay does, until `address` leads to `expected`.
    async fn until(&self, address: &str, expected: &str) {
        let dialled = async {
            while self.dial(address).await.ok().as_deref() != Some(expected) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let dialled = tokio::time::timeout(PATIENCE, dialled).await;
        dialled.expect("the change is seen");
    }
}

const NAME: &str = "/dns/relay.example/tcp/1";

#[tokio::test]
async fn a_change_of_the_name_servers_is_seen() {
    let here = SocketAddr::from(([127, 0, 0, 1], 0));
    let first = Server::start(here, Some([192, 0, 2, 1].into())).await;
    let system = System::new(first.port);
    // The program was started before the network was there.
    assert!(system.dial(NAME).await.is_err());
    system.set_server(first.ip);
    system.until(NAME, "/ip4/192.0.2.1/tcp/1").await;
    // The machine joins another network, with another server. The answer would be good for an hour.
    let there = SocketAddr::from(([127, 0, 0, 2], first.port));
    let second = Server::start(there, Some([192, 0, 2, 2].into())).await;
    system.set_server(second.ip);
    system.until(NAME, "/ip4/192.0.2.2/tcp/1").await;
}

#[tokio::test]
async fn a_change_of_the_hosts_is_seen() {
    let system = System::new(53);
    system.set_hosts("192.0.2.1 relay.example\n");
    system.until(NAME, "/ip4/192.0.2.1/tcp/1").await;
    system.set_hosts("192.0.2.2 relay.example\n2001:db8::1 relay.example\n");
    system
        .until(
            "/dns4/relay.example/udp/1/quic-v1",
            "/ip4/192.0.2.2/udp/1/quic-v1",
        )
        .await;
    system
        .until("/dns6/relay.example/tcp/1", "/ip6/2001:db8::1/tcp/1")
        .await;
    let known = system.dial("/ip4/192.0.2.3/tcp/1").await.unwrap();
    assert_eq!(known, "/ip4/192.0.2.3/tcp/1");
}

/// A network that has no way out yet says that there is no such name.
#[tokio::test]
async fn a_name_that_was_not_there_is_asked_for_again() {
    let here = SocketAddr::from(([127, 0, 0, 3], 0));
    let captive = Server::start(here, None).await;
    let system = System::new(captive.port);
    system.set_server(captive.ip);
    let refused = async {
        while !system
            .dial(NAME)
            .await
            .unwrap_err()
            .to_string()
            .contains("record")
        {}
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    let here = SocketAddr::new(captive.ip, captive.port);
    captive.task.abort();
    drop(captive);
    let open = async {
        loop {
            if let Ok(socket) = UdpSocket::bind(here).await {
                break drop(socket);
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, open).await.unwrap();
    let _open = Server::start(here, Some([192, 0, 2, 1].into())).await;
    system.until(NAME, "/ip4/192.0.2.1/tcp/1").await;
}

/// An answer that is good for an hour is used for as long, whatever becomes of other names.
#[tokio::test]
async fn a_lookup_that_fails_takes_no_other_answer_away() {
    let here = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::start(here, Some([192, 0, 2, 1].into())).await;
    let system = System::new(server.port);
    system.set_server(server.ip);
    system.until(NAME, "/ip4/192.0.2.1/tcp/1").await;
    // From now on, nobody answers. The files are looked at again after the first of these failures.
    drop(server);
    for _ in 0..2 {
        assert!(system.dial("/dns/other.example/tcp/1").await.is_err());
    }
    let known = system.dial(NAME).await.unwrap();
    assert_eq!(known, "/ip4/192.0.2.1/tcp/1");
}

#[tokio::test]
async fn the_reasons_of_all_addresses_are_told() {
    let system = System::new(53);
    system.set_hosts("192.0.2.66 relay.example\n");
    let refused = async {
        loop {
            let error = system.dial(NAME).await.unwrap_err().to_string();
            if error == "unsupported resolved address: /ip4/192.0.2.66/tcp/1" {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    let both = joined(vec![io::Error::other("a"), io::Error::other("b")]);
    assert_eq!(both.to_string(), "a, b");
    let same = joined(vec![io::Error::other("a"), io::ErrorKind::TimedOut.into()]);
    assert_eq!(same.kind(), io::ErrorKind::TimedOut);
}

#[test]
fn text_records_refer_to_addresses() {
    let found = referred(b"dnsaddr=/ip4/192.0.2.1/tcp/1").unwrap();
    assert_eq!(found.to_string(), "/ip4/192.0.2.1/tcp/1");
    assert_eq!(referred(b"/ip4/192.0.2.1/tcp/1"), None);
    assert_eq!(referred(b"dnsaddr=\xff"), None);
}
