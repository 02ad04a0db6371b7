//! The STUN server, as its clients see it.

use std::{
    net::{SocketAddr, UdpSocket},
    num::NonZeroU32,
};

use super::{PATIENCE, config, start, until};
use stun_types::{
    attribute::XorMappedAddress,
    message::{BINDING, Message, MessageWrite as _, MessageWriteVec},
};

fn stun_address(url: &str) -> SocketAddr {
    url.strip_prefix("stun:").unwrap().parse().unwrap()
}

fn ask(socket: &UdpSocket, server: SocketAddr, request: &[u8]) -> Option<Vec<u8>> {
    socket.send_to(request, server).unwrap();
    let mut buffer = [0; 1500];
    let (length, from) = socket.recv_from(&mut buffer).ok()?;
    assert_eq!(from, server);
    Some(buffer[..length].to_vec())
}

fn binding_request() -> Vec<u8> {
    Message::builder_request(BINDING, MessageWriteVec::new()).finish()
}

#[tokio::test]
async fn stun_tells_the_source_on_both_ports_and_ignores_what_is_malformed() {
    let server = start(config()).await;
    let urls: Vec<SocketAddr> = server
        .stun_urls()
        .iter()
        .map(|url| stun_address(url))
        .collect();
    assert_eq!(urls.len(), 2);
    let asked = tokio::task::spawn_blocking(move || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        for server in urls {
            // These get no answer, so the next answer on the socket is for the request after them.
            for malformed in [
                &b""[..],
                b"\0",
                &[0; 20],
                &[0xff; 1400],
                b"GET / HTTP/1.1\r\n\r\n",
            ] {
                socket.send_to(malformed, server).unwrap();
            }
            let request = binding_request();
            let answer = ask(&socket, server, &request).expect("an answer");
            let answer = Message::from_bytes(&answer).unwrap();
            let mapped = answer.attribute::<XorMappedAddress>().unwrap();
            assert_eq!(
                mapped.addr(answer.transaction_id()),
                socket.local_addr().unwrap()
            );
            assert_eq!(
                answer.transaction_id(),
                Message::from_bytes(&request).unwrap().transaction_id()
            );
        }
    });
    asked.await.unwrap();
    let metrics = server.metrics();
    assert!(
        metrics.contains("stun_requests_total{outcome=\"answered\"} 2\n"),
        "{metrics}"
    );
    // What is no STUN by its first byte goes elsewhere.
    assert!(
        metrics.contains("stun_requests_total{outcome=\"ignored\"} 4\n"),
        "{metrics}"
    );
}

#[tokio::test]
async fn stun_answers_no_flood() {
    let mut config = config();
    config.stun.per_source = NonZeroU32::new(1).unwrap();
    let server = start(config).await;
    let address = stun_address(&server.stun_urls()[0]);
    tokio::task::spawn_blocking(move || {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // A burst of twice the rate is answered. Requests that follow at once are not.
        assert!(ask(&socket, address, &binding_request()).is_some());
        assert!(ask(&socket, address, &binding_request()).is_some());
        for _ in 0..20 {
            socket.send_to(&binding_request(), address).unwrap();
        }
    })
    .await
    .unwrap();
    until(|| server.metrics().contains("outcome=\"limited\"")).await;
}
