//! Offers and answers: the descriptions that the peers exchange before candidates.

use bytes::Bytes;
use data_encoding::BASE64;
use str0m::IceCreds;

use super::{IceSession, Phase, Secure};
use crate::{
    core::{
        candidate::Candidate,
        sdp::{Description, Setup},
    },
    native::ice::webrtc::association::{self, Inits, MAX_MESSAGE_SIZE},
    webrtc::backend::BackendError,
};

/// The longest user name that the agent writes: the fragments of both sides, and a colon. Those in use
/// have at most 32 characters, and stock peers' 4.
const MAX_USERNAME: usize = 128;

impl IceSession {
    pub(in crate::native::ice::webrtc) fn create_offer(&mut self, sealed: bool) {
        self.ice.set_controlling(true);
        // A client begins DTLS when it has been checked. A page begins it only when its own check was
        // answered. Stock peers expect to choose.
        self.setup = if sealed {
            Setup::Active
        } else {
            Setup::ActPass
        };
        self.init = association::init();
        self.phase = Phase::Offering;
    }

    pub(in crate::native::ice::webrtc) fn accept_offer(&mut self, sdp: &str) {
        // Descriptions that do not parse were refused before they came here.
        match Description::parse(sdp) {
            Ok(remote) => {
                self.mid = remote.mid.clone();
                // RFC 8445 section 6.1.1: the full agent controls a lite one.
                self.ice.set_controlling(remote.ice_lite);
                // RFC 8842 section 5.3: the active role saves a round trip for the offerer's first
                // flight.
                self.setup = match remote.setup {
                    Setup::Active => Setup::Passive,
                    Setup::ActPass | Setup::Passive => Setup::Active,
                };
                self.phase = Phase::Answering;
                self.no_turn |= remote.no_turn;
                self.decide(remote.quic);
                // Whoever offers none does not expect one.
                let offered = sctp_init(&remote).filter(|_| self.secure == Secure::Dtls);
                self.init = offered.and_then(|_| association::init());
                self.describe_remote(remote);
            }
            Err(error) => self.fail(BackendError::Description(error.to_string())),
        }
    }

    pub(in crate::native::ice::webrtc) fn accept_answer(&mut self, sdp: &str) {
        match Description::parse(sdp) {
            Ok(remote) => {
                self.setup = match remote.setup {
                    Setup::Active => Setup::Passive,
                    Setup::Passive => Setup::Active,
                    Setup::ActPass => {
                        let what = "the setup of an answer must be active or passive".to_owned();
                        return self.fail(BackendError::Description(what));
                    }
                };
                self.decide(remote.quic);
                self.describe_remote(remote);
                self.settle_quic();
            }
            Err(error) => self.fail(BackendError::Description(error.to_string())),
        }
    }

    fn describe_remote(&mut self, mut remote: Description) {
        // Barred candidates are removed here, because guessing ports uses this list too.
        remote.candidates.retain(|candidate| self.allows(candidate));
        if remote.fingerprint.hash != "sha-256" {
            let what = format!(
                "a fingerprint by {} is not supported",
                remote.fingerprint.hash
            );
            return self.fail(BackendError::Description(what));
        }
        // The agent panics at longer ones.
        let own = self.ice.local_credentials().ufrag.len();
        if remote.ufrag.len() + 1 + own > MAX_USERNAME {
            let what = "the ice-ufrag is too long".to_owned();
            return self.fail(BackendError::Description(what));
        }
        self.ice.set_remote_credentials(IceCreds {
            ufrag: remote.ufrag.clone(),
            pass: remote.pwd.clone(),
        });
        for candidate in &remote.candidates {
            self.add_remote(candidate);
        }
        self.remote = Some(remote);
        self.plan_guess();
        self.plan_relayed();
        if self.secure == Secure::Dtls {
            self.make_dtls();
        }
    }

    /// The first chunks of both SCTP handshakes, if both descriptions have one.
    pub(super) fn inits(&self) -> Option<Inits> {
        let theirs = sctp_init(self.remote.as_ref()?)?;
        let ours = self.init.clone()?;
        // libdatachannel copies what it does not know from an offer into its answer.
        (ours != theirs).then_some(Inits { ours, theirs })
    }

    pub(super) fn describe(&self, candidates: Vec<Candidate>) -> String {
        let credentials = self.ice.local_credentials();
        let description = Description {
            ufrag: credentials.ufrag.clone(),
            pwd: credentials.pass.clone(),
            libdatachannel: false,
            firefox: false,
            ice_lite: false,
            fingerprint: self
                .identity
                .fingerprint(&self.identity.certificate.certificate),
            setup: self.setup,
            mid: self.mid.clone(),
            max_message_size: MAX_MESSAGE_SIZE,
            quic: self.secure != Secure::Dtls,
            side: self.side.filter(|_| self.effort.is_some()),
            no_turn: self.no_turn,
            late_turn: self.may_ask_turn(),
            sctp_init: self.init.as_ref().map(|init| BASE64.encode(init)),
            candidates,
        };
        description.to_sdp(getrandom::u64().unwrap_or_default())
    }
}

/// The first chunk of the SCTP handshake of whoever wrote `description`, if it can be read.
fn sctp_init(description: &Description) -> Option<Bytes> {
    let init = BASE64.decode(description.sctp_init.as_ref()?.as_bytes());
    init.ok().map(Bytes::from).filter(|init| !init.is_empty())
}
