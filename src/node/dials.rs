//! Dials that can be taken back one by one.
//!
//! libp2p aborts pending dials only all at once, together with every connection to their peer. A
//! transport above all others sees which futures belong to a dial of ours, and ends them. It also
//! sees every address whole, whoever named it, and refuses those that nobody may have us dial.

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use futures::{
    FutureExt as _,
    future::{AbortHandle, Abortable, BoxFuture},
};
use libp2p::{
    Multiaddr, PeerId,
    core::{
        muxing::StreamMuxerBox,
        transport::{self, Boxed, DialOpts, ListenerId, TransportError, TransportEvent},
    },
};

use crate::core::dial::Policy;

type Output = (PeerId, StreamMuxerBox);

/// Notes which futures the transport makes for a dial.
#[derive(Clone, Default)]
pub(super) struct Recorder(Arc<Mutex<Option<Vec<AbortHandle>>>>);

/// A dial under way. Dropping it takes the dial back; after the dial's end that means nothing.
pub(super) struct Dialling(Vec<AbortHandle>);

impl Drop for Dialling {
    fn drop(&mut self) {
        for handle in &self.0 {
            handle.abort();
        }
    }
}

impl Recorder {
    /// Calls `dial`, within which the swarm asks the transport for one future per address.
    pub(super) fn record<R>(&self, dial: impl FnOnce() -> R) -> (R, Dialling) {
        *self.lock() = Some(Vec::new());
        let result = dial();
        let handles = self.lock().take().unwrap_or_default();
        (result, Dialling(handles))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<AbortHandle>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dials through `inner`, and tells the recorder.
pub(super) struct Transport {
    inner: Boxed<Output>,
    recorder: Recorder,
    policy: Policy,
}

impl Transport {
    pub(super) fn new(inner: Boxed<Output>, recorder: Recorder, policy: Policy) -> Self {
        Self {
            inner,
            recorder,
            policy,
        }
    }
}

impl transport::Transport for Transport {
    type Output = Output;
    type Error = io::Error;
    type ListenerUpgrade = <Boxed<Output> as transport::Transport>::ListenerUpgrade;
    type Dial = BoxFuture<'static, io::Result<Output>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        addr: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        self.inner.listen_on(id, addr)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.remove_listener(id)
    }

    fn dial(
        &mut self,
        addr: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        if let Err(barred) = self.policy.check(&addr) {
            return Err(TransportError::Other(io::Error::other(barred)));
        }
        let dial = self.inner.dial(addr, opts)?;
        let Some(handles) = &mut *self.recorder.lock() else {
            return Ok(dial);
        };
        let (handle, registration) = AbortHandle::new_pair();
        handles.push(handle);
        let dial = Abortable::new(dial, registration);
        Ok(dial
            .map(|result| result.unwrap_or_else(|_| Err(io::Error::other("taken back"))))
            .boxed())
    }

    fn poll(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut self.inner).poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use libp2p::{
        Transport as _,
        core::{Endpoint, transport::PortUse},
    };

    use super::*;

    /// Dials that never end.
    fn endless(recorder: &Recorder) -> Transport {
        let never = transport::dummy::DummyTransport::<Output>::new().boxed();
        Transport::new(never, recorder.clone(), Policy::new(true, Vec::new()))
    }

    #[test]
    fn nothing_is_recorded_outside_of_a_dial_of_ours() {
        let recorder = Recorder::default();
        let mut transport = endless(&recorder);
        let opts = DialOpts {
            role: Endpoint::Dialer,
            port_use: PortUse::Reuse,
        };
        let addr: Multiaddr = "/memory/1".parse().unwrap();
        let (_, dialling) = recorder.record(|| transport.dial(addr.clone(), opts).is_ok());
        assert!(dialling.0.is_empty());
        assert!(transport.dial(addr, opts).is_err());
        assert!(recorder.lock().is_none());
    }
}
