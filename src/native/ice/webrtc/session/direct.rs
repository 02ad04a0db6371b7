//! The server of a `/webrtc-direct` client. There are no descriptions: the client's first check has
//! the credentials of both sides, and Noise vouches for the certificates.
//!
//! This side is a lite agent (RFC 8445 section 2.5), which only answers checks. But an address that
//! has only sent something may be forged. So this side answers an authentic check from a new address
//! with a check of its own, which every agent answers, and uses the address only when it has the
//! answer. There is no DTLS before. For each datagram from a new address, two datagrams go back,
//! which together are less than twice as long.

use std::{collections::VecDeque, net::SocketAddr};

use str0m::{IceCreds, ice::StunMessage};

use super::{IceSession, Phase};
use crate::{
    core::{
        sdp::{Fingerprint, Setup},
        webrtc_direct::Credentials,
    },
    native::ice::{
        stun::message,
        webrtc::association::{Buffers, ChannelId},
    },
};

/// The most addresses whose proof is awaited, and the most that are remembered as proven. A client
/// has one, and another one when its NAT maps it anew.
const MAX_ADDRESSES: usize = 8;

/// The transaction id in a STUN message (RFC 8489 section 5).
const TRANSACTION: std::ops::Range<usize> = 8..20;

/// The bytes of DTLS that are held for a client whose address is about to be proven. They have room
/// for a first flight in two datagrams. Its answer to the check overtakes them at most by chance, and
/// a lost datagram is repeated.
const MAX_EARLY: usize = 3_000;

/// The id of the channel that both sides have from the beginning.
pub(super) const HANDSHAKE_CHANNEL: u16 = 0;

/// A local and a remote address.
type Pair = (SocketAddr, SocketAddr);

/// The state of a session that is such a server.
pub(super) struct Direct {
    pub(super) buffers: Buffers,
    credentials: Credentials,
    /// The checks that wait for an answer, the oldest first.
    checks: VecDeque<(Pair, Vec<u8>)>,
    /// The checks that are still to be sent.
    due: Vec<(Pair, Vec<u8>)>,
    /// The pairs whose remote address is proven, the oldest first.
    proven: VecDeque<Pair>,
    /// The pair that the client wants to be used.
    wanted: Option<Pair>,
    /// DTLS that has come before any address was proven.
    early: Vec<Vec<u8>>,
    /// The fingerprint of the client's certificate.
    pub(super) client: Option<Fingerprint>,
    /// The channel of the handshake of Noise.
    pub(super) channel: Option<ChannelId>,
}

impl IceSession {
    /// Makes this side the server of the client with these credentials.
    pub(in crate::native::ice::webrtc) fn serve(
        &mut self,
        credentials: Credentials,
        buffers: Buffers,
    ) {
        self.ice.set_ice_lite(true);
        self.ice.set_controlling(false);
        self.ice.set_local_credentials(IceCreds {
            ufrag: credentials.server.clone(),
            pass: credentials.server.clone(),
        });
        self.ice.set_remote_credentials(IceCreds {
            ufrag: credentials.client.clone(),
            pass: credentials.client_pwd.clone(),
        });
        self.setup = Setup::Passive;
        self.phase = Phase::Described;
        self.direct = Some(Direct {
            buffers,
            credentials,
            checks: VecDeque::new(),
            due: Vec::new(),
            proven: VecDeque::new(),
            wanted: None,
            early: Vec::new(),
            client: None,
            channel: None,
        });
    }

    /// Checks a pair over which an authentic check of the client has come, if it is a new one.
    pub(super) fn check(&mut self, pair: Pair) {
        let Some(direct) = self.direct.as_mut().filter(|d| !d.proven.contains(&pair)) else {
            return;
        };
        // A check that comes again gets the same answer.
        let known = direct.checks.iter().find(|(checked, _)| *checked == pair);
        let check = match known {
            Some((_, check)) => check.clone(),
            None => {
                let Credentials { server, client, .. } = &direct.credentials;
                let username = format!("{client}:{server}");
                let Some(check) = message::check(&username, &direct.credentials.client_pwd) else {
                    return;
                };
                if direct.checks.len() == MAX_ADDRESSES {
                    direct.checks.pop_front();
                }
                direct.checks.push_back((pair, check.clone()));
                check
            }
        };
        direct.due.push((pair, check));
    }

    /// The next check to send.
    pub(super) fn poll_check(&mut self) -> Option<(Pair, Vec<u8>)> {
        self.direct.as_mut()?.due.pop()
    }

    /// Whether a STUN response may be the answer to one of this side's checks.
    pub(super) fn may_prove(&self, message: &StunMessage<'_>) -> bool {
        let hmac = self.identity.crypto.sha1_hmac_provider;
        self.direct.as_ref().is_some_and(|direct| {
            let key = direct.credentials.client_pwd.as_bytes();
            message.is_successful_binding_response()
                && message.verify(key, |key, parts| hmac.sha1_hmac(key, parts))
        })
    }

    /// Handles a response that [may be an answer](Self::may_prove). If it is one, the client is at this
    /// address. DTLS begins over the first such pair, without waiting for the client to nominate one.
    pub(super) fn answered(&mut self, pair: Pair, response: &[u8]) {
        let Some(direct) = &mut self.direct else {
            return;
        };
        let answers = |(checked, check): &(Pair, Vec<u8>)| {
            *checked == pair && check.get(TRANSACTION) == response.get(TRANSACTION)
        };
        let Some(at) = direct.checks.iter().position(answers) else {
            return;
        };
        direct.checks.remove(at);
        if direct.proven.len() == MAX_ADDRESSES {
            direct.proven.pop_front();
        }
        direct.proven.push_back(pair);
        let early = std::mem::take(&mut direct.early);
        if self.dtls.is_none() {
            self.use_pair(pair.0, pair.1);
            self.make_dtls();
            for datagram in early {
                self.receive_dtls(&datagram);
            }
        } else if direct.wanted == Some(pair) {
            self.use_pair(pair.0, pair.1);
        }
    }

    /// Whether the pair that the client has nominated can be used. If it is not proven, it is used when
    /// it is.
    pub(super) fn nominate(&mut self, pair: Pair) -> bool {
        let Some(direct) = &mut self.direct else {
            return true;
        };
        direct.wanted = Some(pair);
        direct.proven.contains(&pair) && self.nominated != Some(pair)
    }

    /// Holds DTLS that has come before the address of the client is proven.
    pub(super) fn hold(&mut self, data: &[u8]) {
        let Some(direct) = self.direct.as_mut().filter(|d| d.proven.is_empty()) else {
            return;
        };
        let held: usize = direct.early.iter().map(Vec::len).sum();
        if held + data.len() <= MAX_EARLY {
            direct.early.push(data.to_vec());
        }
    }

    /// The fingerprint of the client's certificate, once DTLS is up.
    pub(in crate::native::ice::webrtc) fn client(&self) -> Option<&Fingerprint> {
        self.direct.as_ref()?.client.as_ref()
    }

    /// The channel with id 0, once DTLS is up.
    pub(in crate::native::ice::webrtc) fn handshake_channel(&self) -> Option<ChannelId> {
        self.direct.as_ref()?.channel
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        core::webrtc_direct::{self, DirectServer},
        native::ice::webrtc::session::{
            SessionEvent,
            tests::{Net, addr, connected, host},
        },
    };

    /// A server of a client that speaks this version of the protocol, at the address that it expects.
    fn net(is_v2: bool) -> Net {
        let mut net = Net::new();
        let identity = &net.ends[1].identity;
        let fingerprint = identity.fingerprint(&identity.certificate.certificate);
        let hash = webrtc_direct::multihash(&fingerprint).unwrap();
        let hash = multiaddr::Protocol::Certhash(hash);
        let address = format!("/ip4/192.0.2.2/udp/1000/webrtc-direct{hash}");
        let server = DirectServer::from_multiaddr(&address.parse().unwrap()).unwrap();
        let client = &mut net.ends[0];
        let own = match is_v2 {
            true => client.ice.local_credentials().clone(),
            false => {
                let both = webrtc_direct::credentials([7; 32]);
                IceCreds {
                    ufrag: both.clone(),
                    pass: both,
                }
            }
        };
        let of_server = match is_v2 {
            true => webrtc_direct::credentials_for(&own.pass),
            false => own.ufrag.clone(),
        };
        client.ice.set_local_credentials(own.clone());
        client.create_offer(false);
        net.description(0);
        net.ends[0].accept_answer(&server.answer(&of_server));
        let credentials = Credentials::read(&of_server, &own.ufrag).unwrap();
        assert_eq!(credentials.is_v2, is_v2);
        net.ends[1].serve(credentials, Buffers::default());
        net.ends[1].set_local_candidates(&host(1));
        net
    }

    /// The datagrams to `end` that are on their way.
    fn flying(net: &Net, end: usize) -> impl Iterator<Item = &[u8]> {
        let to = net.flying.iter().filter(move |(_, to, ..)| *to == end);
        to.map(|(.., data)| &data[..])
    }

    #[test]
    fn clients_of_both_versions_connect_within_four_round_trips() {
        for is_v2 in [false, true] {
            let mut net = net(is_v2);
            net.run(80);
            assert!(net.saw(0, connected) && net.saw(1, connected), "{is_v2}");
            let client = &net.ends[0].identity;
            let fingerprint = client.fingerprint(&client.certificate.certificate);
            assert_eq!(net.ends[1].client(), Some(&fingerprint));
            // Both have the channel with id 0, and data goes through it.
            let here = net.ends[1].handshake_channel().unwrap();
            let there = net.association(0).negotiate(HANDSHAKE_CHANNEL);
            net.run(80);
            net.association(1).send(here, b"hello").unwrap();
            net.run(20);
            let waker = futures::task::noop_waker();
            let mut cx = std::task::Context::from_waker(&waker);
            let read = net.association(0).poll_next(there, &mut cx);
            assert!(matches!(read, std::task::Poll::Ready(Some(data)) if data == b"hello"[..]));
        }
    }

    #[test]
    fn an_address_that_does_not_answer_gets_little_and_no_dtls() {
        let mut net = net(true);
        let (mut came, mut went) = (0, 0);
        for _ in 0..2_000 {
            net.step();
            let arrives = net.now + Duration::from_millis(10);
            for (at, to, .., data) in &net.flying {
                match (*at == arrives, to) {
                    (true, 1) => came += data.len(),
                    (true, _) => went += data.len(),
                    _ => {}
                }
            }
            net.flying.retain(|(_, to, ..)| *to == 1);
        }
        assert!(came > 500 && went > 0, "{came} {went}");
        assert!(went < 2 * came, "{went} bytes for {came}");
        assert!(net.ends[1].dtls.is_none() && net.ends[1].nominated.is_none());
        // The bytes that the client sends before its proof are held within bounds.
        net.ends[1].hold(&[22; 1200]);
        net.ends[1].hold(&[22; MAX_EARLY]);
        assert_eq!(net.ends[1].direct.as_ref().unwrap().early.len(), 1);
    }

    #[test]
    fn only_the_answer_to_this_sides_check_proves_an_address() {
        let mut net = net(false);
        while flying(&net, 0).count() == 0 {
            net.step();
        }
        let check = flying(&net, 0).find(|data| data.starts_with(&[0, 1]));
        let check = StunMessage::parse(check.unwrap()).unwrap();
        // The client's own key signs these answers. One of them has a guessed transaction.
        let key = net.ends[0].ice.local_credentials().pass.clone();
        let answer = |session: &IceSession, id| {
            let hmac = session.identity.crypto.sha1_hmac_provider;
            let reply = StunMessage::binding_reply(id, addr(1));
            let mut bytes = vec![0; 200];
            let hmac = |key: &[u8], parts: &[&[u8]]| hmac.sha1_hmac(key, parts);
            let len = reply.to_bytes(Some(key.as_bytes()), &mut bytes, hmac);
            bytes.truncate(len.unwrap());
            bytes
        };
        let guess = answer(&net.ends[1], str0m::ice::TransId::new());
        let right = answer(&net.ends[1], check.trans_id());
        let server = &mut net.ends[1];
        let elsewhere = ([192, 0, 2, 9], 1).into();
        for (from, data) in [(addr(0), &guess), (elsewhere, &right)] {
            server.receive(server.now, from, addr(1), data);
            assert!(server.dtls.is_none());
        }
        server.receive(server.now, addr(0), addr(1), &right);
        assert!(server.dtls.is_some());
    }

    /// A NAT that has forgotten the client gives it another port.
    #[test]
    fn a_client_is_followed_to_an_address_that_answers() {
        let mut net = net(true);
        net.run(100);
        assert!(net.saw(1, connected));
        let nat: SocketAddr = ([192, 0, 2, 1], 2000).into();
        for answers in [false, true] {
            for _ in 0..10_000 {
                net.step();
                net.flying.retain_mut(|(_, to, source, destination, _)| {
                    if *to == 1 {
                        *source = nat;
                    } else if *destination == nat {
                        *destination = addr(0);
                        return answers;
                    }
                    true
                });
            }
            let expected = if answers { nat } else { addr(0) };
            assert_eq!(net.ends[1].nominated, Some((addr(1), expected)));
        }
        assert!(!net.saw(1, |event| matches!(event, SessionEvent::Failed(_))));
    }

    #[test]
    fn a_client_that_is_gone_is_given_up() {
        let mut net = net(true);
        net.run(100);
        net.cut = true;
        net.run(20_000);
        assert!(net.saw(1, |event| matches!(event, SessionEvent::Failed(_))));
    }
}
