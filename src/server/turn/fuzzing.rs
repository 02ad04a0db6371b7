//! A client for the fuzz target. It sends the fuzzer's frames unchanged, and it sends requests with
//! the fuzzer's attributes and a valid signature, because no fuzzer guesses a signature.

use std::{
    net::IpAddr,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, SystemTime},
};

use stun_types::{
    attribute::{
        AttributeStaticType as _, AttributeType, Fingerprint, MessageIntegrity,
        MessageIntegritySha256, Nonce, RawAttribute, Realm, Username,
    },
    message::{
        IntegrityAlgorithm, LongTermKeyCredentials, Message, MessageWrite as _,
        MessageWriteExt as _, MessageWriteVec, Method,
    },
};
use tokio::runtime::Runtime;
use turn_client_proto::types::message::{ALLOCATE, CHANNEL_BIND, CREATE_PERMISSION, REFRESH};

use super::{
    Authority, Own, RelayAddresses, Setup,
    allocation::Reply,
    requests::{Client, Requests},
    stream,
};
use crate::server::{
    ServerConfig, TurnCredentials, access::Access, metrics::Metrics, pool::Pools,
    settings::Settings,
};

/// How many bytes an answer may be longer than its request. It adds names, a nonce and a signature.
const MOST_MORE: usize = 160;

/// A server on loopback, which can reach nobody from there, and one client.
pub(crate) struct TurnSession {
    /// The runtime of the sockets of relayed addresses.
    runtime: Runtime,
    requests: Requests,
    authority: Arc<Authority>,
    user: TurnCredentials,
    client: Client,
}

impl TurnSession {
    /// Returns `None` if the system has no sockets to give.
    pub(crate) fn new() -> Option<Self> {
        let mut config = ServerConfig::default();
        config.turn.requests_per_source = NonZeroU32::MAX;
        let authority = Arc::new(Authority::new("secret").ok()?);
        let user = authority.issue("ann", Duration::from_secs(86_400), SystemTime::now());
        let loopback = IpAddr::from([127, 0, 0, 1]);
        let metrics = Metrics::new(&config);
        let pools = Pools::new(&Settings::fixed(config), &metrics);
        let setup = Setup {
            access: Access::open(&pools),
            authority: authority.clone(),
            addresses: RelayAddresses::new(vec![loopback], vec![], None),
            own: Arc::new(Own::new([3478], [loopback])),
            pools,
            usage: crate::server::usage::Usage::default(),
            metrics,
        };
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        Some(Self {
            runtime: runtime.enable_io().build().ok()?,
            requests: Requests::new(setup),
            authority,
            user,
            client: Client {
                over_tcp: true,
                local: (loopback, 3478).into(),
                address: ([192, 0, 2, 1], 5000).into(),
            },
        })
    }

    /// Plays all frames of one client. Returns how many were answered.
    pub(crate) fn play<'a>(&self, frames: impl Iterator<Item = &'a [u8]>) -> usize {
        let answered = {
            let _entered = self.runtime.enter();
            self.ask(frames)
        };
        // This lets the sockets close that were opened.
        self.runtime.block_on(tokio::task::yield_now());
        answered
    }

    fn ask<'a>(&self, frames: impl Iterator<Item = &'a [u8]>) -> usize {
        let (queue, mut answers) = stream::queue(64 * 1024);
        let reply = Reply::Stream(queue);
        let mut answered = 0;
        for frame in frames {
            let signed = match frame {
                [kind @ (0xf0..=0xf3), attributes @ ..] => self.signed(kind & 3, attributes),
                _ => None,
            };
            let frame = signed.as_deref().unwrap_or(frame);
            self.requests.receive(self.client, &reply, frame);
            let mut more = 0;
            while let Some(answer) = answers.try_next() {
                assert!(
                    Message::from_bytes(&answer).is_ok(),
                    "an answer is not STUN"
                );
                assert!(
                    answer.len() <= frame.len() + MOST_MORE,
                    "an answer amplifies"
                );
                more += 1;
            }
            assert!(more <= 1, "{more} answers");
            answered += more;
        }
        self.requests.close(self.client);
        answered
    }

    /// Makes a signed request with `attributes`. Each consists of its type, the length of its value
    /// in one byte, and the value.
    fn signed(&self, kind: u8, mut attributes: &[u8]) -> Option<Vec<u8>> {
        let method: Method = match kind {
            0 => ALLOCATE,
            1 => REFRESH,
            2 => CREATE_PERMISSION,
            _ => CHANNEL_BIND,
        };
        let mut message = Message::builder_request(method, MessageWriteVec::new());
        while let [high, low, length, rest @ ..] = attributes {
            let (value, rest) = rest.split_at_checked(usize::from(*length))?;
            attributes = rest;
            let kind = AttributeType::new(u16::from_be_bytes([*high, *low]));
            let own = [
                MessageIntegrity::TYPE,
                MessageIntegritySha256::TYPE,
                Fingerprint::TYPE,
            ];
            if !own.contains(&kind) {
                message
                    .add_attribute(&RawAttribute::new(kind, value))
                    .ok()?;
            }
        }
        let nonce = self.authority.nonce(self.client.address, SystemTime::now());
        let (user, realm) = (self.user.username.clone(), "throughline");
        message.add_attribute(&Username::new(&user).ok()?).ok()?;
        message.add_attribute(&Realm::new(realm).ok()?).ok()?;
        message.add_attribute(&Nonce::new(&nonce).ok()?).ok()?;
        let password = self.user.credential.clone();
        let key = LongTermKeyCredentials::new(user, password, realm.to_owned());
        message
            .add_message_integrity(&key.into(), IntegrityAlgorithm::Sha1)
            .ok()?;
        Some(message.finish())
    }
}
