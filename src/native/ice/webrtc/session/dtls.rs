//! DTLS over the nominated pair, and SCTP within it.

use str0m::{config::DtlsVersion, crypto::dtls::DtlsOutput};

use super::{
    IceSession, LIBDATACHANNEL_PAUSE, MAX_RECORD, MTU, SessionEvent, direct::HANDSHAKE_CHANNEL,
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

    /// There is a path to send on.
    pub(super) fn begin_dtls(&mut self) {
        let remote = self.remote.as_ref();
        if remote.is_some_and(|remote| remote.libdatachannel) && !self.dtls_started {
            self.dtls_timeout = Some(self.now + LIBDATACHANNEL_PAUSE);
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
                DtlsOutput::Packet(packet) => send(packet),
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
