//! Routers with UPnP-IGD, NAT-PMP and PCP. The mappings of honest routers carry traffic, and those
//! of lying routers do not.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use throughline_lab::{Host, Lab, NatKind, PortMapping, Site, Spec};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
    time::timeout,
};

mod common;
use common::{SOON, receives};

const LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
const INNER: u16 = 6_000;
const LEASE: u32 = 120;

/// Asks by NAT-PMP for an external UDP port (RFC 6886 section 3.3). Returns the granted port, or
/// the result code.
async fn nat_pmp(wanted: u16) -> Option<Result<u16, u16>> {
    let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    let mut request = vec![0, 1, 0, 0];
    request.extend_from_slice(&INNER.to_be_bytes());
    request.extend_from_slice(&wanted.to_be_bytes());
    request.extend_from_slice(&LEASE.to_be_bytes());
    socket.send_to(&request, (LAN, 5_351)).await.unwrap();
    let mut answer = [0; 64];
    timeout(SOON, socket.recv(&mut answer)).await.ok()?.ok()?;
    let word = |i: usize| u16::from_be_bytes([answer[i], answer[i + 1]]);
    Some(if word(2) == 0 {
        Ok(word(10))
    } else {
        Err(word(2))
    })
}

/// Asks by PCP MAP for an external UDP port (RFC 6887 section 11).
async fn pcp(own: Ipv4Addr, wanted: u16) -> Option<Result<u16, u16>> {
    let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    let mut request = vec![2, 1, 0, 0];
    request.extend_from_slice(&LEASE.to_be_bytes());
    request.extend_from_slice(&own.to_ipv6_mapped().octets());
    request.extend_from_slice(&[7; 12]);
    request.extend_from_slice(&[17, 0, 0, 0]);
    request.extend_from_slice(&INNER.to_be_bytes());
    request.extend_from_slice(&wanted.to_be_bytes());
    request.extend_from_slice(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets());
    socket.send_to(&request, (LAN, 5_351)).await.unwrap();
    let mut answer = [0; 128];
    timeout(SOON, socket.recv(&mut answer)).await.ok()?.ok()?;
    Some(if answer[3] == 0 {
        Ok(u16::from_be_bytes([answer[42], answer[43]]))
    } else {
        Err(answer[3].into())
    })
}

/// Asks by UPnP-IGD for an external UDP port, at the address that SSDP finds.
async fn upnp(own: Ipv4Addr, wanted: u16) -> Option<Result<u16, u16>> {
    let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
    let search = "M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n\
                  ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n";
    socket
        .send_to(search.as_bytes(), "239.255.255.250:1900")
        .await
        .unwrap();
    let mut answer = [0; 1_500];
    let length = timeout(4 * SOON, socket.recv(&mut answer))
        .await
        .ok()?
        .ok()?;
    let found = String::from_utf8_lossy(&answer[..length]).to_lowercase();
    let location = found
        .lines()
        .find_map(|line| line.strip_prefix("location:"))
        .unwrap()
        .trim()
        .to_owned();
    assert!(
        location.starts_with(&format!("http://{LAN}:")),
        "{location}"
    );

    let body = format!(
        "<?xml version=\"1.0\"?><s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>\
         <u:AddPortMapping xmlns:u=\"urn:schemas-upnp-org:service:WANIPConnection:1\"><NewRemoteHost></NewRemoteHost>\
         <NewExternalPort>{wanted}</NewExternalPort><NewProtocol>UDP</NewProtocol><NewInternalPort>{INNER}</NewInternalPort>\
         <NewInternalClient>{own}</NewInternalClient><NewEnabled>1</NewEnabled>\
         <NewPortMappingDescription>lab</NewPortMappingDescription><NewLeaseDuration>{LEASE}</NewLeaseDuration>\
         </u:AddPortMapping></s:Body></s:Envelope>"
    );
    let mut stream = TcpStream::connect((LAN, 5_000)).await.unwrap();
    let request = format!(
        "POST /ctl/IPConn HTTP/1.1\r\nHost: {LAN}:5000\r\nContent-Type: text/xml\r\nConnection: close\r\n\
         SOAPAction: \"urn:schemas-upnp-org:service:WANIPConnection:1#AddPortMapping\"\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).await.unwrap();
    Some(if said.starts_with("HTTP/1.1 200") {
        Ok(wanted)
    } else {
        Err(500)
    })
}

/// Whether a stranger's datagram to the router's `port` reaches the host's inner port, and the
/// answer comes back.
fn forwards(lab: &Lab, port: u16) -> bool {
    let external = SocketAddr::new(lab.host("a-router").unwrap().ip().unwrap(), port);
    let (ready, started) = std::sync::mpsc::channel();
    let inner = lab
        .host("a")
        .unwrap()
        .spawn(async move || {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, INNER))
                .await
                .unwrap();
            ready.send(()).unwrap();
            if let Some(from) = receives(&socket).await {
                socket.send_to(b"welcome", from).await.unwrap();
            }
        })
        .unwrap();
    started.recv().unwrap();
    let answered = lab
        .host("other")
        .unwrap()
        .run(async move || {
            let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
            socket.send_to(b"stranger", external).await.unwrap();
            receives(&socket).await == Some(external)
        })
        .unwrap();
    inner.join().unwrap().unwrap();
    answered
}

/// Returns what each protocol grants: UPnP, NAT-PMP, PCP.
fn grants(host: &Host) -> [Option<Result<u16, u16>>; 3] {
    let own = host.ipv4().unwrap();
    host.run(async move || {
        [
            upnp(own, 7_001).await,
            nat_pmp(7_002).await,
            pcp(own, 7_003).await,
        ]
    })
    .unwrap()
}

fn home(kind: NatKind, port_mapping: PortMapping) -> Spec {
    Spec::default().site(Site::new("a", kind).port_mapping(port_mapping))
}

#[test]
fn mappings_let_strangers_in_even_behind_a_symmetric_nat() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    for kind in [NatKind::PortRestricted, NatKind::SymmetricRandom] {
        let lab = Lab::up(home(kind, PortMapping::ALL)).unwrap();
        println!("{kind} with miniupnpd up in {:?}", lab.setup_time());
        assert!(!forwards(&lab, 7_001));
        assert_eq!(
            grants(&lab.host("a").unwrap()),
            [Some(Ok(7_001)), Some(Ok(7_002)), Some(Ok(7_003))]
        );
        for port in [7_001, 7_002, 7_003] {
            assert!(forwards(&lab, port), "{kind} {port}");
        }
        assert!(!forwards(&lab, 7_004));
    }
}

#[test]
fn a_router_speaks_only_the_configured_protocols() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let upnp = Lab::up(home(NatKind::PortRestricted, PortMapping::UPNP)).unwrap();
    assert_eq!(
        grants(&upnp.host("a").unwrap()),
        [Some(Ok(7_001)), None, None]
    );
    let pcp = Lab::up(home(NatKind::PortRestricted, PortMapping::PCP)).unwrap();
    assert_eq!(
        grants(&pcp.host("a").unwrap()),
        [None, Some(Ok(7_002)), Some(Ok(7_003))]
    );
    let none = Lab::up(Spec::default().site(Site::new("a", NatKind::PortRestricted))).unwrap();
    assert_eq!(grants(&none.host("a").unwrap()), [None, None, None]);
}

#[test]
fn a_lying_router_grants_and_forwards_nothing() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let lab = Lab::up(home(NatKind::PortRestricted, PortMapping::LYING)).unwrap();
    assert_eq!(
        grants(&lab.host("a").unwrap()),
        [Some(Ok(7_001)), Some(Ok(7_002)), Some(Ok(7_003))]
    );
    for port in [7_001, 7_002, 7_003] {
        assert!(!forwards(&lab, port), "{port}");
    }
}

#[test]
fn a_router_behind_a_carrier_grants_no_mapping() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let lab = Lab::up(
        Spec::default()
            .carrier("isp", NatKind::PortRestricted)
            .site(
                Site::new("a", NatKind::PortRestricted)
                    .behind("isp")
                    .port_mapping(PortMapping::ALL),
            ),
    )
    .unwrap();
    assert_eq!(
        lab.host("a-router").unwrap().ip().unwrap(),
        IpAddr::from([100, 64, 1, 11])
    );
    let [_, nat_pmp, _] = grants(&lab.host("a").unwrap());
    assert!(matches!(nat_pmp, Some(Err(_))), "{nat_pmp:?}");
}
