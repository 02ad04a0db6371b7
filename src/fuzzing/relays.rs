//! The targets of what peers and relays say to each other about circuits, access and addresses.

use std::{net::Ipv4Addr, time::Duration};

use multiaddr::{Multiaddr, PeerId, Protocol};

use super::{SOURCE, unframed};
use crate::{
    core::{
        self, autonat,
        circuit::{Answer, CircuitError},
        dial::Policy,
        dial_back::Server,
        directory,
        drain::Drain,
        first_bytes::{self, Sniffed},
        fleet::{Held, Status},
        lease::Leases,
        notice,
        proxy::{self, Parsed},
        record::Record,
        reservation,
        room::Member,
        server_url::ServerUrl,
        site::RelayText,
        webrtc_direct::Credentials,
    },
    envelope,
    server::{access::messages, hop},
};

/// A request for access to a relay, and the relay's answer.
pub fn access(data: &[u8]) -> bool {
    let request = messages::Request::decode(data);
    if let Some(request) = &request {
        let token = request.token.as_deref();
        assert!(token.is_none_or(|token| token.len() <= core::access::MAX_TOKEN));
        let again = core::access::request(token, request.reserve, request.turn);
        assert!(messages::Request::decode(unframed(&again)).as_ref() == Some(request));
    }
    let answer = core::access::answered(data);
    if let Some(answer) = &answer {
        let again = messages::answer(answer);
        assert!(core::access::answered(unframed(&again)).as_ref() == Some(answer));
        let link = Multiaddr::from(Ipv4Addr::LOCALHOST);
        let turn = answer
            .as_ref()
            .ok()
            .and_then(|admitted| admitted.turn.as_ref());
        for url in turn.map_or_else(Vec::new, |turn| turn.urls(&link)) {
            assert_eq!(url.parse::<ServerUrl>().unwrap().host, "127.0.0.1");
        }
    }
    request.is_some() || answer.is_some()
}

/// A request to the directory of a relay, and its answer.
pub fn directory(data: &[u8]) -> bool {
    let request = directory::Request::decode(data);
    if let Some(request) = &request {
        let again = request.encode();
        assert_eq!(
            directory::Request::decode(unframed(&again)).as_ref(),
            Some(request)
        );
    }
    let answer = directory::Answer::decode(data);
    if let Some(answer) = &answer {
        let again = answer.encode();
        assert_eq!(
            directory::Answer::decode(unframed(&again)).as_ref(),
            Some(answer)
        );
    }
    request.is_some() || answer.is_some()
}

/// The id of the server whose addresses are in the corpus of [`fleet`].
const SERVER: [u8; 38] = {
    let mut id = [7; 38];
    (id[0], id[1], id[2], id[3], id[4], id[5]) = (0, 36, 8, 1, 18, 32);
    id
};

/// What the servers of a fleet share: an envelope, what a server says of itself, and the leases of a quota.
pub fn fleet(data: &[u8]) -> bool {
    let held = Held::decode(data);
    if let Some(held) = &held {
        assert_eq!(Held::decode(&held.encode()).as_ref(), Some(held));
    }
    let server = PeerId::from_bytes(&SERVER).unwrap();
    let status = Status::decode(data, server);
    if let Some(status) = &status {
        assert_eq!(
            Status::decode(&status.encode(), server).as_ref(),
            Some(status)
        );
    }
    if let Some(leases) = Leases::decode(data) {
        assert_eq!(Leases::decode(&leases.encode()), Some(leases));
    }
    held.is_some() || status.is_some()
}

/// The record of a peer, and that of a member of a room, alone and in an envelope.
pub fn record(data: &[u8]) -> bool {
    let record = Record::decode(data);
    if let Some(record) = &record {
        let again = record.encode();
        assert!(again.len() < core::record::MAX_RECORD);
        assert!(Record::decode(&again).is_some_and(|again| again.peer == record.peer));
    }
    let member = Member::decode(data);
    if let Some(member) = &member {
        assert_eq!(Member::decode(&member.encode()).as_ref(), Some(member));
    }
    let opened = envelope::open(data, Duration::from_secs(1_800_000_000));
    record.is_some() || member.is_some() || opened.is_some()
}

/// The user name in a check of a `/webrtc-direct` client.
pub fn direct_client(data: &[u8]) -> bool {
    let name = str::from_utf8(data).ok();
    let Some((server, client)) = name.and_then(|name| name.split_once(':')) else {
        return false;
    };
    let Some(read) = Credentials::read(server, client) else {
        return false;
    };
    assert_eq!((&*read.server, &*read.client), (server, client));
    assert!(server.ends_with(&read.client_pwd) && read.client_pwd.len() >= 22);
    true
}

/// The first bytes of a TCP client. What is known of them is the same however they come.
pub fn first_bytes(data: &[u8]) -> bool {
    let all = first_bytes::sniff(data);
    let parts = (0..data.len().min(256)).map(|length| first_bytes::sniff(&data[..length]));
    for known in parts {
        assert!(known == Sniffed::More || known == all);
    }
    assert!(all != Sniffed::More || data.len() < first_bytes::MOST);
    matches!(all, Sniffed::Is(_))
}

/// An AutoNAT server's answer, and the proof that it reached us.
pub fn autonat(data: &[u8]) -> bool {
    let answer = autonat::answer(data);
    if let Some(autonat::Answer::Wants(bytes)) = answer {
        assert!(autonat::data(bytes).len() < 2 * 100_000);
    }
    autonat::proof(data).is_some() || answer.is_some()
}

/// A request to a relay, and the answer of a peer that is asked to accept a circuit.
pub fn relay_request(data: &[u8]) -> bool {
    let asked = hop::Request::decode(data).is_some();
    hop::stop_status(data).is_some() || asked
}

/// A relay's answer to a request for a reservation, and the message that announces a circuit.
pub fn reservation(data: &[u8]) -> bool {
    let granted = reservation::granted(data).is_ok();
    reservation::source(data).is_some() || granted
}

/// What a relay says before it ends.
pub fn drain(data: &[u8]) -> bool {
    let Some(drain) = Drain::decode(data) else {
        return false;
    };
    let again = drain.encode();
    let length = again
        .iter()
        .position(|byte| byte & 0x80 == 0)
        .map_or(0, |at| at + 1);
    assert_eq!(Drain::decode(&again[length..]), Some(drain));
    true
}

/// What a relay says of a quota.
pub fn notice(data: &[u8]) -> bool {
    let Some(left) = notice::decode(data) else {
        return false;
    };
    assert!(left.left <= left.all);
    assert_eq!(notice::decode(unframed(&notice::encode(&left))), Some(left));
    true
}

/// The header by which a proxy names its client. It is the same however it comes.
pub fn proxy(data: &[u8]) -> bool {
    let all = proxy::parse(data);
    for length in 0..data.len().min(256) {
        match proxy::parse(&data[..length]) {
            Parsed::More(needed) => assert!((length + 1..=proxy::MOST).contains(&needed)),
            known => assert_eq!(known, all),
        }
    }
    match all {
        Parsed::Header { length, .. } => length <= data.len(),
        _ => false,
    }
}

/// A relay's answer to a request for a circuit.
pub fn circuit(mut data: &[u8]) -> bool {
    let mut answer = Answer::default();
    loop {
        let wanted = answer.wanted();
        assert!(wanted > 0, "the answer never ends");
        let Some((bytes, rest)) = data.split_at_checked(wanted) else {
            return false;
        };
        data = rest;
        match answer.push(bytes) {
            Ok(false) => {}
            Err(CircuitError::Malformed(_)) => return false,
            Ok(true) | Err(_) => return true,
        }
    }
}

/// A request to an AutoNAT server.
pub fn dial_request(data: &[u8]) -> bool {
    if data.len() > autonat::MAX_REQUEST {
        return false;
    }
    let _ = autonat::is_taken(data);
    let Some(request) = autonat::read_request(data) else {
        return false;
    };
    let observed = Multiaddr::from(SOURCE.ip()).with(Protocol::Tcp(SOURCE.port()));
    let client = PeerId::from_bytes(&[0, 0]).expect("an identity of no bytes is valid");
    let server = Server::default();
    if let Some((index, address)) = server.choose(&request.addresses, &client, &observed) {
        assert!(index < request.addresses.len());
        assert_eq!(
            address.iter().next(),
            observed.iter().next(),
            "another host"
        );
        assert!((2..=3).contains(&address.iter().count()));
    }
    true
}

/// What a relay says of itself, or the text that names a relay.
pub fn profile(data: &[u8]) -> bool {
    if let Some(Ok(RelayText::Site(site))) = std::str::from_utf8(data).ok().map(str::parse) {
        assert_eq!(site.to_string().parse(), Ok(RelayText::Site(site)));
        return true;
    }
    let policy = Policy::new(false, Vec::new());
    let Ok(learnt) = core::profile::read(data, &policy) else {
        return false;
    };
    for address in &learnt.addresses {
        assert!(
            policy.check(address).is_ok()
                && address.iter().last() == Some(Protocol::P2p(learnt.peer))
        );
    }
    true
}
