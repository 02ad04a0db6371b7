//! Dials that wait for their turn, and can be taken back one by one.
//!
//! libp2p can only abort all pending dials to a peer at once, together with every connection to
//! that peer, and it counts addresses that this machine cannot dial when it orders the others. The
//! transport here stands above all others. It sees which futures belong to one of our dials, tells each
//! when to start, and ends them. It also sees every complete address, whoever named it, and refuses
//! addresses that nobody may make us dial. A stranger that answers at one address ends only the dial of
//! that address, and not those of the others.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt as _,
    channel::oneshot,
    future::{AbortHandle, Abortable},
};
use futures_timer::Delay;
use libp2p::{
    Multiaddr, PeerId,
    core::{
        muxing::StreamMuxerBox,
        transport::{Boxed, DialOpts, Transport as _, TransportError},
    },
    multiaddr::Protocol,
};

use super::dial_layer::{Begun, DialLayer, Dials};
use crate::core::{dial::Policy, dial_order};

/// How the error begins if another peer than the one that was dialled has answered.
pub(crate) const WRONG_PEER: &str = "another peer answered";

type Output = (PeerId, StreamMuxerBox);

/// Records the futures that the transport makes for a dial.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Option<Vec<Made>>>>);

/// A future that the transport has made.
struct Made {
    address: Multiaddr,
    handle: AbortHandle,
    /// Takes how long the future waits for its turn.
    turn: oneshot::Sender<Duration>,
}

/// A dial that is under way. Dropping it takes the dial back. After the end of the dial, dropping
/// it has no effect.
pub(crate) struct Dialling(Vec<AbortHandle>);

impl Drop for Dialling {
    fn drop(&mut self) {
        for handle in &self.0 {
            handle.abort();
        }
    }
}

impl Recorder {
    /// Calls `dial`. During the call, the swarm asks the transport for one future per address. Then
    /// it is known which of them this machine can dial, and each future gets its turn among these.
    pub(crate) fn record<R>(&self, dial: impl FnOnce() -> R) -> (R, Dialling) {
        *self.lock() = Some(Vec::new());
        let result = dial();
        let made = self.lock().take().unwrap_or_default();
        let addresses: Vec<_> = made.iter().map(|made| made.address.clone()).collect();
        let begun = made.into_iter().zip(dial_order::pauses(&addresses));
        let handles = begun.map(|(made, pause)| {
            // A future that is gone needs no turn.
            let _ = made.turn.send(pause);
            made.handle
        });
        (result, Dialling(handles.collect()))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Made>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A layer that reports each dial to the recorder.
pub(crate) struct Recorded {
    recorder: Recorder,
    policy: Policy,
}

impl Recorded {
    /// The layer stands above `below`.
    pub(crate) fn over(
        below: Boxed<Output>,
        recorder: Recorder,
        policy: Policy,
    ) -> DialLayer<Boxed<Output>, Self> {
        DialLayer::new(below, Self { recorder, policy })
    }
}

impl Dials<Boxed<Output>> for Recorded {
    fn dial(
        &mut self,
        below: &mut Boxed<Output>,
        address: Multiaddr,
        options: DialOpts,
    ) -> Begun<Output> {
        if let Err(barred) = self.policy.check(&address) {
            return Err(TransportError::Other(io::Error::other(barred)));
        }
        let expected = match address.iter().last() {
            Some(Protocol::P2p(peer)) => Some(peer),
            _ => None,
        };
        let dial = below
            .dial(address.clone(), options)?
            .map(move |result| match result {
                Ok((peer, _)) if expected.is_some_and(|expected| expected != peer) => {
                    Err(io::Error::other(format!("{WRONG_PEER}: {peer}")))
                }
                result => result,
            });
        let dial = dial.boxed();
        let Some(made) = &mut *self.recorder.lock() else {
            return Ok(dial);
        };
        let (handle, registration) = AbortHandle::new_pair();
        let (turn, pause) = oneshot::channel();
        made.push(Made {
            address,
            handle,
            turn,
        });
        let dial = async {
            let pause = pause.await.unwrap_or_default();
            if !pause.is_zero() {
                Delay::new(pause).await;
            }
            dial.await
        };
        let dial = Abortable::new(dial, registration);
        Ok(dial
            .map(|result| {
                result.unwrap_or_else(|_| Err(io::Error::other("the dial was taken back")))
            })
            .boxed())
    }
}

#[cfg(test)]
mod tests {
    use libp2p::core::{
        Endpoint,
        transport::{PortUse, dummy::DummyTransport},
    };

    use super::*;

    /// Makes a transport whose dials never end.
    fn endless(recorder: &Recorder) -> DialLayer<Boxed<Output>, Recorded> {
        let never = DummyTransport::<Output>::new().boxed();
        Recorded::over(never, recorder.clone(), Policy::new(true, Vec::new()))
    }

    #[test]
    fn dials_are_recorded_only_within_record() {
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
