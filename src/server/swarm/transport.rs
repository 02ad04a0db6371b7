//! The transports of the relay.

use std::net::SocketAddr;

use libp2p::{
    Transport as _,
    core::{muxing::StreamMuxerBox, transport::timeout::TransportTimeout},
    identity,
};
use libp2p_metrics::BandwidthTransport;

use super::io_error;
use crate::{
    error::Error,
    native::transports::{self, Bounds, DEFAULT_CONNECT_TIMEOUT},
    server::{autonat, certificate, config::ServerConfig, metrics::Metrics, pool::Pools},
};

/// The file of the `/webrtc-direct` certificate in the data directory.
const CERTIFICATE_FILE: &str = "webrtc-direct.pem";

/// Joins all transports of the relay and counts their bytes.
pub(super) fn transport(
    config: &ServerConfig,
    keypair: &identity::Keypair,
    metrics: &Metrics,
    pools: &Pools,
) -> Result<transports::BoxedTransport, Error> {
    let certificate = match &config.data {
        Some(directory) => certificate::load_or_create(&directory.join(CERTIFICATE_FILE))?,
        None => certificate::generate().map_err(|e| io_error("cannot set up the transports", e))?,
    };
    // The DTLS of webrtc-rs panics at the first handshake if rustls is built with several
    // cryptography providers and none is chosen. An error means that the program has already chosen
    // one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let webrtc = libp2p_webrtc::tokio::Transport::new(keypair.clone(), certificate)
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)));
    // Without this limit, the transport would wait for a handshake forever.
    let webrtc = TransportTimeout::new(webrtc, DEFAULT_CONNECT_TIMEOUT).boxed();
    let hosts = config.hosts.iter();
    let quic: Vec<_> = hosts
        .map(|host| SocketAddr::new(*host, config.port))
        .collect();
    let bounds = Bounds {
        handshakes: pools.handshakes.clone(),
        windows: pools.windows.clone(),
        forwarded: pools.limits.forwarded.clone(),
    };
    let (admission, timeout) = (&pools.quic, DEFAULT_CONNECT_TIMEOUT);
    let internet = transports::server(keypair, &quic, admission, &bounds, timeout)
        .map_err(|e| io_error("cannot set up the transports", e))?;
    let internet = TransportTimeout::with_outgoing_timeout(internet, autonat::DIAL_TIMEOUT);
    let all = transports::join(webrtc, internet.boxed());
    let counted = metrics.with_registry(|registry| BandwidthTransport::new(all, registry));
    Ok(counted
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed())
}
