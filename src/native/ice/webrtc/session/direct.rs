//! The server of a `/webrtc-direct` client. There are no descriptions: the client's first check has
//! the credentials of both sides, and Noise vouches for the certificates.
//!
//! The client takes the server for a lite agent (RFC 8445 section 2.5), which only answers checks. But
//! an address that has only sent something may be forged. So this side makes a check of its own, and
//! has no DTLS before the check is answered. Until then, it sends at most three times what has come
//! (as RFC 9000 section 8.1 has it for QUIC).

use std::net::SocketAddr;

use str0m::IceCreds;

use super::{IceSession, Phase};
use crate::{
    core::{
        sdp::{Fingerprint, Setup},
        webrtc_direct::Credentials,
    },
    native::ice::webrtc::association::{Buffers, ChannelId},
};

/// How many times what has come from an unproven address may be sent there.
const AMPLIFICATION: usize = 3;

/// The bytes of DTLS that are held for a client whose address is about to be proven. They have room
/// for a first flight in two datagrams. Its answer to the check overtakes them at most by chance, and
/// a lost datagram is repeated.
const MAX_EARLY: usize = 3_000;

/// The id of the channel that both sides have from the beginning.
pub(super) const HANDSHAKE_CHANNEL: u16 = 0;

/// What a session knows as such a server.
pub(super) struct Direct {
    pub(super) buffers: Buffers,
    /// The bytes that may be sent to an unproven address. `None` once it is proven.
    credit: Option<usize>,
    /// DTLS that has come before the address was proven.
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
        credentials: &Credentials,
        buffers: Buffers,
    ) {
        self.ice.set_local_credentials(IceCreds {
            ufrag: credentials.server.clone(),
            pass: credentials.server.clone(),
        });
        self.ice.set_remote_credentials(IceCreds {
            ufrag: credentials.client.clone(),
            pass: credentials.client_pwd.clone(),
        });
        self.ice.set_controlling(false);
        self.setup = Setup::Passive;
        self.phase = Phase::Described;
        self.direct = Some(Direct {
            buffers,
            credit: Some(0),
            early: Vec::new(),
            client: None,
            channel: None,
        });
    }

    /// What has come counts for what may be sent to an unproven address.
    pub(super) fn earn(&mut self, len: usize) {
        if let Some(credit) = self.direct.as_mut().and_then(|d| d.credit.as_mut()) {
            *credit = credit.saturating_add(len.saturating_mul(AMPLIFICATION));
        }
    }

    /// Whether a datagram of ICE may be sent. What may not is lost, as any datagram may be.
    pub(super) fn spend(&mut self, len: usize) -> bool {
        let Some(credit) = self.direct.as_mut().and_then(|d| d.credit.as_mut()) else {
            return true;
        };
        match credit.checked_sub(len) {
            Some(rest) => {
                *credit = rest;
                true
            }
            None => false,
        }
    }

    /// Holds DTLS that has come before the address of the client is proven.
    pub(super) fn hold(&mut self, data: &[u8]) {
        let Some(direct) = self.direct.as_mut().filter(|d| d.credit.is_some()) else {
            return;
        };
        let held: usize = direct.early.iter().map(Vec::len).sum();
        if held + data.len() <= MAX_EARLY {
            direct.early.push(data.to_vec());
        }
    }

    /// The client has answered a check, so it is at its address. DTLS begins over this pair without
    /// waiting for the client to nominate one.
    pub(super) fn prove(&mut self, source: SocketAddr, destination: SocketAddr) {
        let Some(direct) = &mut self.direct else {
            return;
        };
        if direct.credit.take().is_none() {
            return;
        }
        let early = std::mem::take(&mut direct.early);
        self.use_pair(source, destination);
        self.make_dtls();
        for datagram in early {
            self.receive_dtls(&datagram);
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
