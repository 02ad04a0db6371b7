//! The transports of the relay.

use libp2p::{
    Transport as _,
    core::{muxing::StreamMuxerBox, transport::timeout::TransportTimeout},
    identity,
};
use libp2p_metrics::BandwidthTransport;

use super::{Bound, start::io_error, traffic::Traffic};
use crate::{
    error::Error,
    native::{
        ice::webrtc::direct::{self, Buffers, DirectTransport},
        transports::{self, Bounds, DEFAULT_CONNECT_TIMEOUT},
    },
    server::{
        CERTIFICATE_FILE, autonat, certificate, config::ServerConfig, metrics::Metrics, pool::Pools,
    },
};

/// Joins all transports of the relay and counts their bytes.
pub(super) fn transport(
    config: &ServerConfig,
    bound: Bound,
    keypair: &identity::Keypair,
    metrics: &Metrics,
    pools: &Pools,
    traffic: &Traffic,
) -> Result<transports::BoxedTransport, Error> {
    let certificate = match &config.data {
        Some(directory) => certificate::load_or_create(&directory.join(CERTIFICATE_FILE))?,
        None => certificate::generate().map_err(|e| io_error("cannot set up the transports", e))?,
    };
    let (sizes, timeout) = (pools.windows.sizes(), DEFAULT_CONNECT_TIMEOUT);
    let clients = direct::Bounds {
        handshakes: pools.webrtc.clone(),
        buffers: Buffers {
            receive: sizes.connection.saturating_add(sizes.circuit),
            send: sizes.circuit as usize,
        },
        timeout,
    };
    let webrtc = DirectTransport::new(keypair.clone(), certificate, clients, bound.direct)
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .boxed();
    let bounds = Bounds {
        handshakes: pools.handshakes.clone(),
        windows: pools.windows.clone(),
        forwarded: pools.limits.forwarded.clone(),
    };
    let internet = transports::server(
        keypair,
        bound.quic,
        bound.arrivals,
        &pools.quic,
        &bounds,
        timeout,
    )
    .map_err(|e| io_error("cannot set up the transports", e))?;
    let internet = TransportTimeout::with_outgoing_timeout(internet, autonat::DIAL_TIMEOUT);
    let all = transports::join(webrtc, internet.boxed());
    let traffic = traffic.clone();
    let all = all.map(move |(peer, muxer), at| {
        let counted = traffic.count(muxer, at.get_remote_address());
        (peer, StreamMuxerBox::new(counted))
    });
    let counted = metrics.with_registry(|registry| BandwidthTransport::new(all, registry));
    Ok(counted
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed())
}
