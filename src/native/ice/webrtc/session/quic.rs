//! QUIC in place of DTLS: who offers it, who begins, and when it counts.

use std::net::SocketAddr;

use super::{IceSession, Secure, SessionEvent};
use crate::webrtc::backend::BackendError;

impl IceSession {
    /// Decides between QUIC and DTLS. The descriptions of both sides are known.
    pub(super) fn decide(&mut self, remote_quic: bool) {
        self.secure = match self.link {
            Some(_) if remote_quic => Secure::Quic,
            _ => Secure::Dtls,
        };
    }

    /// Returns whether a QUIC handshake is to begin now, and on which side: `true` for the client,
    /// which is the offerer. Each handshake is returned once.
    pub(in crate::native::ice::webrtc) fn take_handshake(&mut self) -> Option<bool> {
        let client = self.ice.controlling();
        let due = match self.secure {
            _ if self.quic_begun || self.closed => false,
            Secure::Quic if !client => true,
            // A check of the peer is authenticated by a password that only the peer knows, so the
            // handshake may begin before the answer has come.
            Secure::Quic | Secure::Undecided => {
                self.link.as_ref().is_some_and(|link| link.pair().is_some())
            }
            Secure::Dtls => false,
        };
        self.quic_begun |= due;
        due.then_some(client)
    }

    /// Takes the result of the QUIC handshake.
    pub(in crate::native::ice::webrtc) fn quic_ended(&mut self, result: Result<(), BackendError>) {
        self.quic_ended = Some(result);
        self.settle_quic();
    }

    pub(super) fn settle_quic(&mut self) {
        if self.secure != Secure::Quic {
            return;
        }
        match self.quic_ended.take() {
            Some(Ok(())) => {
                self.connected = true;
                self.event(SessionEvent::Connected);
            }
            Some(Err(error)) => self.fail(error),
            None => {}
        }
    }

    /// Takes datagrams that begin a QUIC connection. Returns whether they are for this session.
    pub(in crate::native::ice::webrtc) fn receive_quic(
        &mut self,
        source: SocketAddr,
        destination: SocketAddr,
        data: &[u8],
        segment: usize,
    ) -> bool {
        let Some(link) = self.link.as_ref().filter(|_| self.secure == Secure::Quic) else {
            return false;
        };
        if self.ice.controlling() || self.connected {
            return false;
        }
        if link.pair().is_none() {
            link.set_pair(destination, source);
        }
        link.push(source, data, segment);
        true
    }
}
