//! The candidate pair in use, from `RTCPeerConnection.getStats()`.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use js_sys::Map;
use wasm_bindgen::{JsCast, JsValue};
use wasm_bindgen_futures::JsFuture;
use web_sys::RtcPeerConnection;

use crate::{
    core::candidate::CandidateKind,
    wasm::value::{get, is_true, string},
    webrtc::backend::{CandidatePair, Endpoint},
};

/// The pair that carries `connection`, or `None` when the browser does not know it yet.
pub(super) async fn selected_pair(connection: RtcPeerConnection) -> Option<CandidatePair> {
    let report = JsFuture::from(connection.get_stats()).await.ok()?;
    // RTCStatsReport is "maplike" in its interface definition.
    let report: Map = report.unchecked_into();
    let pair = find_pair(&report)?;
    let end = |field| endpoint(&report.get(&get(&pair, field)?));
    let mut found = CandidatePair::new(end("localCandidateId")?, end("remoteCandidateId")?);
    found.rtt = get(&pair, "currentRoundTripTime")
        .and_then(|seconds| seconds.as_f64())
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    Some(found)
}

/// Finds the pair that the transport names as selected. If the transport names none, this finds a
/// pair that looks selected.
fn find_pair(report: &Map) -> Option<JsValue> {
    let mut selected = None;
    let mut candidate = None;
    report.for_each(&mut |entry, _| match string(&entry, "type").as_deref() {
        Some("transport") => {
            if let Some(id) = get(&entry, "selectedCandidatePairId") {
                selected = Some(report.get(&id));
            }
        }
        Some("candidate-pair")
            if is_true(&entry, "selected")
                || (is_true(&entry, "nominated")
                    && string(&entry, "state").as_deref() == Some("succeeded")) =>
        {
            candidate = Some(entry);
        }
        _ => {}
    });
    selected
        .filter(|pair: &JsValue| pair.is_object())
        .or(candidate)
}

fn endpoint(candidate: &JsValue) -> Option<Endpoint> {
    let kind = match string(candidate, "candidateType")?.as_str() {
        "host" => CandidateKind::Host,
        "srflx" => CandidateKind::ServerReflexive,
        "prflx" => CandidateKind::PeerReflexive,
        "relay" => CandidateKind::Relayed,
        _ => return None,
    };
    // The address is absent, empty or a `.local` name where the browser hides it.
    let ip = string(candidate, "address").and_then(|ip| ip.parse::<IpAddr>().ok());
    let port = get(candidate, "port").and_then(|port| port.as_f64());
    let addr = ip
        .zip(port)
        .map(|(ip, port)| SocketAddr::new(ip, port as u16));
    let mapped = false;
    Some(Endpoint { kind, addr, mapped })
}
