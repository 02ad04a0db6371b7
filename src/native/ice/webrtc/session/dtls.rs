//! DTLS over the nominated pair, and SCTP within it.

use std::{net::SocketAddr, time::Instant};

use str0m::{config::DtlsVersion, crypto::dtls::DtlsOutput};

use super::{
    IceSession, MAX_RECORD, MTU, NOMINATION_PAUSE, SessionEvent, direct::HANDSHAKE_CHANNEL,
};
use crate::{
    core::sdp::Setup, native::ice::webrtc::association::Association, webrtc::backend::BackendError,
};

impl IceSession {
    pub(super) fn make_dtls(&mut self) {
        let dtls = self.identity.crypto.dtls_provider.new_dtls(
            &self.identity.certificate,
            self.now,
            DtlsVersion::Auto,
            Some(MTU),
        );
        match dtls {
            Ok(mut dtls) => {
                self.scratch.resize(MAX_RECORD, 0);
                dtls.set_active(self.setup == Setup::Active);
                self.dtls = Some(dtls);
                if self.setup != Setup::Active || self.nominated.is_some() {
                    self.start_dtls();
                }
            }
            Err(error) => self.fail(BackendError::Dtls(error.to_string())),
        }
    }

    /// The pair that DTLS uses.
    pub(super) fn path(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.nominated.or(self.heard)
    }

    /// When DTLS repeats what it has sent. It repeats nothing until a pair is nominated, because whoever was
    /// heard may have given an address that is not its own. That address gets one `ClientHello`, and more
    /// only if it answers.
    pub(super) fn dtls_timeout(&self) -> Option<Instant> {
        self.dtls_timeout.filter(|_| self.nominated.is_some())
    }

    /// The agent has answered a check of the peer. A client begins DTLS over that pair, because the agent
    /// takes a round trip more to nominate one.
    pub(super) fn hear(&mut self, pair: (SocketAddr, SocketAddr)) {
        let is_client = self.setup == Setup::Active && self.dtls.is_some();
        let waits = self.waits_for_nomination() || self.left_out.contains(&pair.1);
        if self.path().is_none() && self.direct.is_none() && is_client && !waits {
            self.heard = Some(pair);
            self.start_dtls();
        }
    }

    /// libdatachannel and Firefox drop what comes too soon.
    fn waits_for_nomination(&self) -> bool {
        let remote = self.remote.as_ref();
        remote.is_some_and(|remote| remote.libdatachannel || remote.firefox)
    }

    /// There is a path to send on.
    pub(super) fn begin_dtls(&mut self) {
        let remote = self.remote.as_ref();
        // As the answerer, Firefox has nominated the pair itself.
        let firefox = remote.is_some_and(|remote| remote.firefox) && self.ice.controlling();
        let pauses = firefox || remote.is_some_and(|remote| remote.libdatachannel);
        if pauses && !self.dtls_started {
            self.dtls_timeout = Some(self.now + NOMINATION_PAUSE);
        } else {
            self.start_dtls();
        }
    }

    fn start_dtls(&mut self) {
        if let Some(dtls) = &mut self.dtls
            && !std::mem::replace(&mut self.dtls_started, true)
            && let Err(error) = dtls.handle_timeout(self.now)
        {
            self.fail(BackendError::Dtls(error.to_string()));
        }
    }

    pub(super) fn receive_dtls(&mut self, data: &[u8]) {
        let Some(dtls) = self.dtls.as_mut().filter(|_| self.dtls_started) else {
            return self.hold(data);
        };
        if let Err(error) = dtls.handle_packet(data) {
            return self.fail(BackendError::Dtls(error.to_string()));
        }
        let mut replies = Vec::new();
        self.poll_dtls(&mut |record| replies.push(record.to_vec()));
        self.records.append(&mut replies);
        self.association_changes();
    }

    pub(super) fn poll_dtls(&mut self, send: &mut impl FnMut(&[u8])) {
        loop {
            let Some(dtls) = self.dtls.as_mut().filter(|_| self.dtls_started) else {
                return;
            };
            match dtls.poll_output(&mut self.scratch) {
                DtlsOutput::Packet(packet) => {
                    self.sent += 1;
                    send(packet);
                }
                DtlsOutput::Timeout(timeout) => {
                    self.dtls_timeout = Some(timeout);
                    return;
                }
                DtlsOutput::PeerCert(certificate) => {
                    let actual = self.identity.fingerprint(certificate);
                    self.verified = match &mut self.direct {
                        // Noise will vouch for the certificate.
                        Some(direct) => {
                            direct.client = Some(actual);
                            true
                        }
                        None => self
                            .remote
                            .as_ref()
                            .is_some_and(|remote| remote.fingerprint == actual),
                    };
                    if !self.verified {
                        let what = "the certificate does not match the fingerprint".to_owned();
                        return self.fail(BackendError::Dtls(what));
                    }
                }
                DtlsOutput::Connected if self.verified => self.dtls_connected(),
                DtlsOutput::Connected => {
                    let what = "the peer showed no certificate".to_owned();
                    return self.fail(BackendError::Dtls(what));
                }
                DtlsOutput::ApplicationData(data) => {
                    if let Some(association) = &mut self.association {
                        association.receive(self.now, data);
                    }
                }
                DtlsOutput::CloseNotify => {
                    self.fail(BackendError::Closed);
                    return;
                }
                DtlsOutput::BufferTooSmall { needed } => {
                    let what = format!("a record has {needed} bytes, which is too many");
                    return self.fail(BackendError::Dtls(what));
                }
                _ => {}
            }
        }
    }

    pub(super) fn dtls_connected(&mut self) {
        if self.connected {
            return;
        }
        self.connected = true;
        let client = self.setup == Setup::Active;
        let size = match self.remote.as_ref().map(|remote| remote.max_message_size) {
            Some(0) | None => u32::MAX,
            Some(size) => size,
        };
        let association = match &mut self.direct {
            Some(direct) => Association::bounded(client, size, direct.buffers, self.now).map(
                |mut association| {
                    direct.channel = Some(association.negotiate(HANDSHAKE_CHANNEL));
                    association
                },
            ),
            None => Association::start(client, size, self.inits(), self.now),
        };
        match association {
            Ok(association) => {
                self.association = Some(association);
                self.event(SessionEvent::Connected);
            }
            Err(error) => self.fail(error),
        }
    }
}
