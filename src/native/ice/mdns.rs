//! Asks the local network for the address behind a browser's `<uuid>.local` name, by multicast DNS
//! (RFC 6762).
//!
//! A responder may answer to the asker alone or to everybody. Browsers answer to everybody, so this
//! module hears both. The identity of the responder is not proved. ICE checks prove whether the
//! address works.

use std::{net::IpAddr, time::Duration};

use tokio::time;

use crate::{
    core::mdns::Name,
    native::multicast::{self, Ear, MAX_PACKET},
};

/// How often a name is asked for. A responder answers within 120 ms (RFC 6762 section 6).
const ASKS: usize = 3;
/// The pause between two questions, which must be at least this long (RFC 6762 section 5.2).
const PAUSE: Duration = Duration::from_secs(1);

/// The most addresses that are taken of one name: one of each family, and those that a second
/// network adds.
const MAX_ADDRESSES: usize = 4;

/// Resolves `name` in the networks in which the machine has the addresses `hosts`. Returns no
/// address if nobody answers within 3 s. Needs a Tokio runtime.
///
/// # Cancel safety
/// Dropping the future ends the resolution.
pub(crate) async fn resolve(name: &Name, hosts: &[IpAddr]) -> Vec<IpAddr> {
    ask(name, multicast::open(hosts)).await
}

async fn ask(name: &Name, ears: Vec<Ear>) -> Vec<IpAddr> {
    let question = name.question();
    let mut buffer = vec![0; MAX_PACKET];
    for _ in 0..ASKS {
        multicast::tell(&ears, &question).await;
        let pause = time::sleep(PAUSE);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                () = &mut pause => break,
                (length, ..) = multicast::heard(&ears, &mut buffer) => {
                    let mut found = name.answers(&buffer[..length]);
                    found.retain(|ip| !ip.is_unspecified() && !ip.is_multicast());
                    found.truncate(MAX_ADDRESSES);
                    if !found.is_empty() {
                        return found;
                    }
                }
            }
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use tokio::net::UdpSocket;

    use super::*;
    use crate::core::mdns::tests::{NAME, answer};

    #[tokio::test]
    async fn the_address_is_taken_from_the_answer_for_the_name() {
        let responder = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let ours = Ear {
            socket: UdpSocket::bind("127.0.0.1:0").await.unwrap(),
            group: Some(responder.local_addr().unwrap()),
            only_for_all: false,
        };
        let name = Name::parse(NAME).unwrap();
        let other = Name::parse(&NAME.replace('0', "1")).unwrap();
        let address = "192.168.1.7".parse().unwrap();
        let answering = async {
            let mut asked = vec![0; MAX_PACKET];
            let (length, from) = responder.recv_from(&mut asked).await.unwrap();
            assert_eq!(asked[..length], name.question());
            let nowhere = answer(&name, &["0.0.0.0".parse().unwrap()]);
            let elsewhere = answer(&other, &["192.168.1.8".parse().unwrap()]);
            for said in [
                &[7; 12][..],
                &nowhere,
                &elsewhere,
                &answer(&name, &[address]),
            ] {
                responder.send_to(said, from).await.unwrap();
            }
        };
        let (found, ()) = tokio::join!(ask(&name, vec![ours]), answering);
        assert_eq!(found, [address]);
    }
}
