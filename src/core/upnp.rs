//! The messages of UPnP-IGD, to and from routers (UPnP Forum, `WANIPConnection:2`).
//!
//! Any machine of the local network may answer a search. So an answer counts only if it names the
//! machine that sent it, and nothing in later answers can lead to another machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use super::{
    address::is_path,
    scope::{Scope, scope},
};

/// The destination of searches (UPnP Device Architecture 1.1 section 1.3.2).
pub(crate) const MULTICAST: SocketAddrV4 =
    SocketAddrV4::new(Ipv4Addr::new(239, 255, 255, 250), 1900);

/// A search for gateways.
pub(crate) const SEARCH: &str = "M-SEARCH * HTTP/1.1\r\n\
    HOST: 239.255.255.250:1900\r\n\
    MAN: \"ssdp:discover\"\r\n\
    MX: 1\r\n\
    ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n";

/// The longest path that this module accepts, in bytes.
const MAX_PATH: usize = 256;

/// The services that forward ports.
const SERVICES: [&str; 3] = [
    "urn:schemas-upnp-org:service:WANIPConnection:2",
    "urn:schemas-upnp-org:service:WANIPConnection:1",
    "urn:schemas-upnp-org:service:WANPPPConnection:1",
];

/// A resource of a router that is requested over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) at: SocketAddr,
    pub(crate) path: String,
}

/// Returns the place of the description that an answer to a search names. The answer counts only if
/// it names the private address that it comes from.
pub(crate) fn location(answer: &[u8], from: IpAddr) -> Option<Place> {
    let text = std::str::from_utf8(answer).ok()?;
    let mut headers = text.lines().skip(1).filter_map(|line| line.split_once(':'));
    let (_, url) = headers.find(|(name, _)| name.trim().eq_ignore_ascii_case("location"))?;
    let place = http(url.trim())?;
    let is_own = place.at.ip() == from && scope(from) == Scope::Private;
    is_own.then_some(place)
}

/// Reads `http://<ip>[:<port>]<path>`.
fn http(url: &str) -> Option<Place> {
    let rest = url.strip_prefix("http://")?;
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    let with_port = || authority.parse::<SocketAddr>().ok();
    let without = || Some(SocketAddr::new(authority.parse().ok()?, 80));
    Some(Place {
        at: with_port().or_else(without)?,
        path: own_path(path)?,
    })
}

fn own_path(path: &str) -> Option<String> {
    let fits = path.len() <= MAX_PATH && path.starts_with('/') && !path.starts_with("//");
    (fits && is_path(path)).then(|| path.to_owned())
}

/// The service that forwards ports, and the place of its control URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) control: Place,
    kind: &'static str,
}

/// Returns the service from a description that came from `at`. The service must be at the same
/// address.
pub(crate) fn service(description: &str, at: SocketAddr) -> Option<Service> {
    let blocks = description.split("<service>").skip(1);
    blocks.into_iter().find_map(|block| {
        let (block, _) = block.split_once("</service>")?;
        let wanted = element(block, "serviceType")?;
        let kind = SERVICES.into_iter().find(|kind| *kind == wanted)?;
        let url = element(block, "controlURL")?;
        let control = match url.starts_with("http://") {
            true => http(url).filter(|place| place.at.ip() == at.ip())?,
            false => Place {
                at,
                path: own_path(&format!("/{}", url.trim_start_matches('/')))?,
            },
        };
        Some(Service { control, kind })
    })
}

/// Returns the text of the first element `name` that has no attributes.
fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    Some(text.trim())
}

/// A request to a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    ExternalAddress,
    /// Forward UDP from the external port to the address `to`.
    Add {
        external: u16,
        to: SocketAddrV4,
        seconds: u32,
    },
    /// Stop forwarding this external port.
    Delete {
        external: u16,
    },
}

impl Service {
    /// Returns the complete request for `action`.
    pub(crate) fn request(&self, action: Action) -> String {
        let kind = self.kind;
        let (name, arguments) = match action {
            Action::ExternalAddress => ("GetExternalIPAddress", String::new()),
            Action::Add {
                external,
                to,
                seconds,
            } => (
                "AddPortMapping",
                format!(
                    "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort>\
                     <NewProtocol>UDP</NewProtocol><NewInternalPort>{}</NewInternalPort>\
                     <NewInternalClient>{}</NewInternalClient><NewEnabled>1</NewEnabled>\
                     <NewPortMappingDescription>throughline</NewPortMappingDescription>\
                     <NewLeaseDuration>{seconds}</NewLeaseDuration>",
                    to.port(),
                    to.ip()
                ),
            ),
            Action::Delete { external } => (
                "DeletePortMapping",
                format!(
                    "<NewRemoteHost></NewRemoteHost><NewExternalPort>{external}</NewExternalPort>\
                     <NewProtocol>UDP</NewProtocol>"
                ),
            ),
        };
        let body = format!(
            "<?xml version=\"1.0\"?>\r\n<s:Envelope \
             xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
             s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body>\
             <u:{name} xmlns:u=\"{kind}\">{arguments}</u:{name}></s:Body></s:Envelope>\r\n"
        );
        let Place { at, path } = &self.control;
        let length = body.len();
        // The request uses HTTP/1.0, because an answer in chunks would have to be reassembled.
        format!(
            "POST {path} HTTP/1.0\r\nHost: {at}\r\nConnection: close\r\n\
             Content-Type: text/xml; charset=\"utf-8\"\r\nSOAPAction: \"{kind}#{name}\"\r\n\
             Content-Length: {length}\r\n\r\n{body}"
        )
    }
}

/// Returns the request for a description.
pub(crate) fn get(place: &Place) -> String {
    let Place { at, path } = place;
    format!("GET {path} HTTP/1.0\r\nHost: {at}\r\nConnection: close\r\n\r\n")
}

/// Returns the body of an answer. An answer that is no success gives its error code, and an answer
/// that is not HTTP gives 0.
pub(crate) fn body(answer: &[u8]) -> Result<String, u16> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or(0_u16)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    match code.unwrap_or(0) {
        200 => Ok(body.to_owned()),
        // The error code of UPnP is more specific than the status of HTTP.
        code => Err(element(body, "errorCode")
            .and_then(|code| code.parse().ok())
            .unwrap_or(code)),
    }
}

/// Returns the address in the answer to [`Action::ExternalAddress`].
pub(crate) fn external_address(body: &str) -> Option<Ipv4Addr> {
    element(body, "NewExternalIPAddress")?.parse().ok()
}

/// The error code of a gateway that keeps only mappings without a lease
/// (`OnlyPermanentLeasesSupported`).
pub(crate) const ONLY_PERMANENT: u16 = 725;
/// The error code for a port that another machine has (`ConflictInMappingEntry`).
pub(crate) const CONFLICT: u16 = 718;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answered(location: &str) -> Option<Place> {
        let answer = format!("HTTP/1.1 200 OK\r\nST: x\r\nLocation: {location}\r\n\r\n");
        super::location(answer.as_bytes(), [192, 168, 1, 1].into())
    }

    #[test]
    fn an_answer_leads_to_who_sent_it_and_nowhere_else() {
        let place = answered("http://192.168.1.1:5000/root.xml").unwrap();
        assert_eq!(place.at.to_string(), "192.168.1.1:5000");
        assert_eq!(place.path, "/root.xml");
        assert_eq!(answered("http://192.168.1.1").unwrap().path, "/");
        for elsewhere in [
            "http://192.168.1.2:5000/root.xml",
            "http://169.254.169.254/latest",
            "http://127.0.0.1:6379/",
            "http://192.168.1.1:80@10.0.0.1/",
            "http://192.168.1.1.example/",
            "http://router/",
            "https://192.168.1.1/",
            "http://192.168.1.1//10.0.0.1/",
            "http://192.168.1.1/a b",
            "http://192.168.1.1/\u{7f}",
        ] {
            assert_eq!(answered(elsewhere), None, "{elsewhere}");
        }
        let long = format!("http://192.168.1.1/{}", "a".repeat(MAX_PATH));
        assert_eq!(answered(&long), None);
        for (from, url) in [
            ("203.0.113.1", "http://203.0.113.1/"),
            ("169.254.1.1", "http://169.254.1.1/"),
            ("127.0.0.1", "http://127.0.0.1/"),
        ] {
            let answer = format!("HTTP/1.1 200 OK\r\nLOCATION:{url}\r\n\r\n");
            assert_eq!(location(answer.as_bytes(), from.parse().unwrap()), None);
        }
    }

    fn described(control: &str) -> Option<Service> {
        let text = format!(
            "<root><service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1\
             </serviceType><controlURL>/no</controlURL></service><service><serviceType>\
             urn:schemas-upnp-org:service:WANIPConnection:1</serviceType>\
             <controlURL>{control}</controlURL></service></root>"
        );
        service(&text, "192.168.1.1:5000".parse().unwrap())
    }

    #[test]
    fn a_description_leads_nowhere_else_either() {
        for (control, path) in [
            ("/ctl/IPConn", "/ctl/IPConn"),
            ("ctl", "/ctl"),
            ("http://192.168.1.1:5001/ctl", "/ctl"),
            ("//10.0.0.1/ctl", "/10.0.0.1/ctl"),
            ("@10.0.0.1/ctl", "/@10.0.0.1/ctl"),
        ] {
            let service = described(control).unwrap();
            assert_eq!(service.control.path, path);
            assert_eq!(service.control.at.ip().to_string(), "192.168.1.1");
        }
        for elsewhere in ["http://10.0.0.1/ctl", "a\r\nHost: x", "a b"] {
            assert_eq!(described(elsewhere), None, "{elsewhere}");
        }
        assert_eq!(
            service("<service>", "192.168.1.1:5000".parse().unwrap()),
            None
        );
    }

    #[test]
    fn requests_and_answers_are_those_of_gateways() {
        let service = described("/ctl").unwrap();
        let request = service.request(Action::Add {
            external: 4001,
            to: "192.168.1.9:4000".parse().unwrap(),
            seconds: 7200,
        });
        let (head, body) = request.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /ctl HTTP/1.0\r\nHost: 192.168.1.1:5000\r\n"));
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())));
        assert!(body.contains("<NewInternalClient>192.168.1.9</NewInternalClient>"));
        let said =
            "HTTP/1.1 200 OK\r\n\r\n<NewExternalIPAddress>203.0.113.1</NewExternalIPAddress>";
        let said = super::body(said.as_bytes()).unwrap();
        assert_eq!(external_address(&said).unwrap().to_string(), "203.0.113.1");
        let said = "HTTP/1.1 500 Error\r\n\r\n<errorCode>725</errorCode>";
        assert_eq!(super::body(said.as_bytes()), Err(ONLY_PERMANENT));
        assert_eq!(super::body(b"HTTP/1.0 404 No\r\n\r\n"), Err(404));
        assert_eq!(super::body(b"SSH-2.0"), Err(0));
    }

    proptest! {
        #[test]
        fn nothing_that_is_said_leads_elsewhere(answer in prop::collection::vec(any::<u8>(), 0..200), url in ".*") {
            let from = IpAddr::from([192, 168, 1, 1]);
            let _ = location(&answer, from);
            if let Some(place) = answered(&url) {
                prop_assert_eq!(place.at.ip(), from);
            }
            if let Some(service) = described(&url) {
                prop_assert_eq!(service.control.at.ip(), from);
                prop_assert!(is_path(&service.control.path));
            }
            let _ = body(&answer).map(|body| external_address(&body));
        }
    }
}
