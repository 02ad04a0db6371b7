//! A mapping by UPnP-IGD. [`core::upnp`](crate::core::upnp) decides which answers of a router
//! count.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    num::NonZeroU16,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, UdpSocket},
    time::timeout,
};

use super::towards;
use crate::core::upnp::{self, Action, CONFLICT, ONLY_PERMANENT, Place, Service};

/// How long the search for a router takes. The probe of PCP and NAT-PMP takes at most as long.
const SEARCH_TIME: Duration = Duration::from_secs(1);
/// The most answers that are looked at. A home network has one or two.
const MAX_ANSWERS: usize = 16;
/// How long a request may take in a home network.
const REQUEST_TIME: Duration = Duration::from_secs(1);
/// The longest answer that is read, in bytes. Descriptions have about 10 KiB.
const MAX_ANSWER: u64 = 64 * 1024;
/// The lease of a mapping in seconds, as with PCP and NAT-PMP.
const LEASE: u32 = 2 * 60 * 60;
/// The pause between two renewals of a mapping.
pub(super) const RENEWAL: Duration = Duration::from_secs(LEASE as u64 / 2);
/// The number of external ports that are tried after the wanted one.
const TRIES: u16 = 4;

/// A router that forwards ports.
pub(super) struct Gateway(Service);

/// A port that a gateway forwards.
#[derive(Debug)]
pub(super) struct Mapping {
    service: Service,
    to: SocketAddrV4,
    external: SocketAddrV4,
}

impl Gateway {
    /// Searches the local network for a gateway.
    pub(super) async fn search() -> Option<Self> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.ok()?;
        let search = upnp::SEARCH.as_bytes();
        socket.send_to(search, upnp::MULTICAST).await.ok()?;
        let first = async {
            let mut answer = [0; 1500];
            for _ in 0..MAX_ANSWERS {
                let (length, from) = socket.recv_from(&mut answer).await.ok()?;
                let answer = answer.get(..length)?;
                let Some(place) = upnp::location(answer, from.ip()) else {
                    tracing::debug!(%from, "an answer to the search for routers is not believed");
                    continue;
                };
                if let Some(gateway) = Self::at(&place).await {
                    return Some(gateway);
                }
            }
            None
        };
        timeout(SEARCH_TIME, first).await.ok()?
    }

    /// Reads the description at `place` and returns its gateway.
    async fn at(place: &Place) -> Option<Self> {
        let description = ask(place.at, &upnp::get(place)).await.ok()?.ok()?;
        upnp::service(&description, place.at).map(Self)
    }

    /// Asks the gateway to forward `port`. The external port is the same number if that is free.
    pub(super) async fn map(self, port: NonZeroU16) -> Option<Mapping> {
        let Self(service) = self;
        let here = match towards(service.control.at)? {
            std::net::IpAddr::V4(here) => here,
            std::net::IpAddr::V6(_) => return None,
        };
        let to = SocketAddrV4::new(here, port.get());
        let address = said(&service, Action::ExternalAddress).await.ok()?;
        let address = upnp::external_address(&address.ok()?)?;
        for nth in 0..=TRIES {
            let external = match nth {
                0 => port.get(),
                _ => random_port()?,
            };
            let mapping = Mapping {
                service: service.clone(),
                to,
                external: SocketAddrV4::new(address, external),
            };
            match mapping.add().await {
                Ok(()) => return Some(mapping),
                Err(CONFLICT) => {}
                Err(code) => {
                    tracing::debug!(code, "a router does not forward a port");
                    return None;
                }
            }
        }
        None
    }
}

/// A random port from the dynamic range (RFC 6335 section 6).
fn random_port() -> Option<u16> {
    let random = getrandom::u32().ok()?;
    Some(49_152 | (random as u16 & 0x3fff))
}

impl Mapping {
    /// The external address of the mapping.
    pub(super) fn external(&self) -> SocketAddr {
        self.external.into()
    }

    /// Adds the mapping for another [`LEASE`], or without a lease if the gateway knows only
    /// permanent ones.
    async fn add(&self) -> Result<(), u16> {
        match self.add_for(LEASE).await {
            Err(ONLY_PERMANENT) => self.add_for(0).await,
            added => added,
        }
    }

    async fn add_for(&self, seconds: u32) -> Result<(), u16> {
        let add = Action::Add {
            external: self.external.port(),
            to: self.to,
            seconds,
        };
        said(&self.service, add).await.map_err(|_| 0_u16)?.map(drop)
    }

    /// Renews the mapping. Returns whether it succeeded and the external address is still the same.
    pub(super) async fn renew(&self) -> bool {
        if self.add().await.is_err() {
            return false;
        }
        let address = said(&self.service, Action::ExternalAddress).await;
        let address = address.ok().and_then(Result::ok);
        let address = address.and_then(|body| upnp::external_address(&body));
        address == Some(*self.external.ip())
    }

    /// Removes the mapping.
    pub(super) async fn remove(&self) {
        let external = self.external.port();
        // If the removal fails, the mapping ends with its lease, if it has one.
        let _ = said(&self.service, Action::Delete { external }).await;
    }
}

/// Sends `action` to the gateway and returns its answer.
async fn said(service: &Service, action: Action) -> io::Result<Result<String, u16>> {
    ask(service.control.at, &service.request(action)).await
}

/// Sends one request and returns the body of its answer, or the error code.
async fn ask(at: SocketAddr, request: &str) -> io::Result<Result<String, u16>> {
    let answered = async {
        // `core::upnp` accepts only the address of the router that answered.
        let mut stream = TcpSocket::new_v4()?.connect(at).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
        Ok(upnp::body(&answer))
    };
    timeout(REQUEST_TIME, answered).await?
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// Starts a router on loopback that gives these answers in order, and returns the requests at
    /// its end.
    async fn router(
        answers: Vec<&'static str>,
    ) -> (SocketAddr, tokio::task::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = listener.local_addr().unwrap();
        let asked = tokio::spawn(async move {
            let mut asked = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let length = stream.read(&mut request).await.unwrap();
                asked.push(String::from_utf8_lossy(&request[..length]).into_owned());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
            asked
        });
        (at, asked)
    }

    const DESCRIPTION: &str = "HTTP/1.1 200 OK\r\n\r\n<root><service>\
        <serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
        <controlURL>/ctl</controlURL></service></root>";
    const ADDRESS: &str = "HTTP/1.1 200 OK\r\n\r\n\
        <NewExternalIPAddress>203.0.113.1</NewExternalIPAddress>";
    const DONE: &str = "HTTP/1.1 200 OK\r\n\r\n";

    async fn gateway(at: SocketAddr) -> Option<Gateway> {
        let path = String::from("/root.xml");
        Gateway::at(&Place { at, path }).await
    }

    #[tokio::test]
    async fn a_port_is_mapped_renewed_and_removed() {
        let taken = "HTTP/1.1 500 No\r\n\r\n<errorCode>718</errorCode>";
        let permanent = "HTTP/1.1 500 No\r\n\r\n<errorCode>725</errorCode>";
        let answers = vec![
            DESCRIPTION,
            ADDRESS,
            taken,
            permanent,
            DONE,
            DONE,
            ADDRESS,
            DONE,
        ];
        let (at, asked) = router(answers).await;
        let gateway = gateway(at).await.unwrap();
        let mapping = gateway.map(NonZeroU16::new(4001).unwrap()).await.unwrap();
        let external = mapping.external();
        assert_eq!(external.ip().to_string(), "203.0.113.1");
        assert!(external.port() >= 49_152, "another port than the taken one");
        assert!(mapping.renew().await);
        mapping.remove().await;
        let asked = asked.await.unwrap();
        let names = [
            "GET /root.xml",
            "GetExternal",
            "AddPort",
            "AddPort",
            "AddPort",
        ];
        let names = names
            .iter()
            .chain(&["AddPort", "GetExternal", "DeletePort"]);
        for (asked, name) in asked.iter().zip(names) {
            assert!(asked.contains(name), "{name}: {asked}");
        }
        assert!(asked[4].contains("<NewLeaseDuration>0<"));
    }

    #[tokio::test]
    async fn a_router_that_says_nonsense_or_too_much_maps_nothing() {
        let endless: &'static str = Box::leak("a".repeat(100_000).into_boxed_str());
        for nonsense in ["", "SSH-2.0\r\n", "HTTP/1.1 404 No\r\n\r\n", DONE, endless] {
            let (at, _asked) = router(vec![nonsense]).await;
            assert!(gateway(at).await.is_none());
        }
        // The description names a control URL at another host.
        let elsewhere: &'static str = Box::leak(
            DESCRIPTION
                .replace("/ctl", "http://192.0.2.1/ctl")
                .into_boxed_str(),
        );
        let (at, _asked) = router(vec![elsewhere]).await;
        assert!(gateway(at).await.is_none());
    }
}
