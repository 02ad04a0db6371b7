//! `/webrtc-direct` as a libp2p transport. A page uses it to reach a server, usually a relay, that
//! has neither a domain name nor a certificate that browsers trust. The transport only dials.
//!
//! There is no signalling. The address has the hash of the server's certificate. The server learns
//! the page's ICE credentials from the first connectivity check. In version 1 of the protocol, the
//! page changes its own offer so that both sides have the same credentials. Browsers are about to
//! forbid that. In version 2, the page leaves its offer as it is, and its password is a part of the
//! server's credentials.
//!
//! A page dials version 1 if the browser lets it, and else version 2. Nothing can tell beforehand
//! that a server knows version 2: stock peers refuse addresses with further components, and identify
//! comes later. A server that does not know it stays silent. But every server knows version 1, and a
//! browser that forbids it says so at once. So the order costs no round trip.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{FutureExt, future::BoxFuture};
use libp2p::{
    PeerId,
    core::{
        transport::{
            DialOpts, ListenerId, Transport as Libp2pTransport, TransportError, TransportEvent,
        },
        upgrade::InboundConnectionUpgrade,
    },
    identity::Keypair,
};
use multiaddr::Multiaddr;
use send_wrapper::SendWrapper;

use super::rtc::{PeerConnection, Rtc};
use crate::{
    core::webrtc_direct::{self, CREDENTIALS_LEN, DirectServer},
    webrtc::{
        FinAck,
        backend::{BackendError, PeerConnection as _, PeerEvent},
        direct::{self, DirectConnection, DirectError, Secured},
    },
};

type Output = (PeerId, DirectConnection<PeerConnection>);

/// Dials `/webrtc-direct` servers.
pub(crate) struct DirectTransport {
    keypair: Keypair,
}

impl DirectTransport {
    pub(crate) fn new(keypair: Keypair) -> Self {
        Self { keypair }
    }
}

impl Libp2pTransport for DirectTransport {
    type Output = Output;
    type Error = DirectError;
    type ListenerUpgrade = futures::future::Pending<Result<Output, DirectError>>;
    type Dial = BoxFuture<'static, Result<Output, DirectError>>;

    fn listen_on(
        &mut self,
        _: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        Err(TransportError::MultiaddrNotSupported(address))
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        false
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        match DirectServer::from_multiaddr(&address) {
            Some(server) if options.role.is_dialer() => {
                let dial = connect(self.keypair.clone(), server);
                Ok(SendWrapper::new(dial).boxed())
            }
            _ => Err(TransportError::MultiaddrNotSupported(address)),
        }
    }

    fn poll(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Poll::Pending
    }
}

async fn connect(keypair: Keypair, server: DirectServer) -> Result<Output, DirectError> {
    let mut random = [0; CREDENTIALS_LEN];
    getrandom::fill(&mut random)
        .map_err(|error| DirectError::Connection(BackendError::Unavailable(error.to_string())))?;
    // The server's address is known, so no STUN server is asked for the page's own address.
    let mut connection = Rtc::default().open().map_err(DirectError::Connection)?;
    let certificate = *server.certificate();
    let answers = move |credentials: &str| server.answer(credentials);
    let channel = connection
        .connect_to(webrtc_direct::credentials(random), answers)
        .map_err(DirectError::Connection)?;

    let mut early = VecDeque::new();
    loop {
        match poll_fn(|cx| connection.poll_event(cx)).await {
            PeerEvent::Connected => break,
            PeerEvent::Failed(error) => return Err(DirectError::Connection(error)),
            event => early.push_back(event),
        }
    }
    let client = connection
        .fingerprint()
        .and_then(|fingerprint| webrtc_direct::multihash(&fingerprint))
        .ok_or(DirectError::Fingerprint)?;
    let secured = Secured {
        connection,
        channel,
        early,
        // Servers on rust-libp2p do not know FIN_ACK. Others soon show that they do.
        fin_ack: FinAck::default(),
        certificates: [client, certificate],
    };
    direct::authenticate(&keypair, secured, |noise, stream| {
        noise.upgrade_inbound(stream, "/noise")
    })
    .await
}
