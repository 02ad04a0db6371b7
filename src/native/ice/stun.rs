//! The STUN client, which sends Binding requests (RFC 8489). Most go over the shared sockets.
//! Discovery needs sockets that the NAT has not seen before.

pub(crate) mod discovery;
pub(crate) mod message;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use str0m::ice::StunMessage;
use stun_types::message::TransactionId;
use tokio::{sync::oneshot, time};

use self::message::{Change, Response};
use crate::{
    core::nat::Observation,
    native::udp::{Receiver, Sockets, any_source},
};

/// The pause before the first retransmission of a request. RFC 8489 section 6.2.1 recommends 500
/// ms, which would be most of a connection's set-up when a packet is lost. It allows less where the
/// round trip is known to be less. An answer that comes later is still taken.
const RTO: Duration = Duration::from_millis(200);
/// How often a request is sent at most (Rc, RFC 8489 section 6.2.1).
const RC: u32 = 7;
/// How many RTOs to wait after the last sending (Rm, RFC 8489 section 6.2.1).
const RM: u32 = 16;

/// The pauses after each sending of a request. Each is twice the one before it, except the last
/// one, after which the client gives up (RFC 8489 section 6.2.1).
fn retransmissions() -> impl Iterator<Item = Duration> {
    (0..RC).map(|n| match n + 1 {
        RC => RTO * RM,
        _ => RTO * (1 << n),
    })
}

/// The reasons why a server gave no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StunError {
    /// No answer came.
    Silent,
    /// The server answered with this error code.
    Refused(u16),
}

impl std::fmt::Display for StunError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Silent => f.write_str("no answer"),
            Self::Refused(code) => write!(f, "refused with error {code}"),
        }
    }
}

/// A server's answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) seen: Observation,
    pub(crate) discovers: bool,
    pub(crate) other: Option<SocketAddr>,
    pub(crate) rtt: Duration,
}

/// A client that sends Binding requests on the shared sockets.
#[derive(Default)]
pub(crate) struct StunClient {
    pending: Mutex<HashMap<TransactionId, Pending>>,
    /// Counts requests.
    order: AtomicU64,
}

struct Pending {
    /// The server that the request went to. The answer must come from it.
    server: SocketAddr,
    answer: oneshot::Sender<(Response, SocketAddr)>,
}

impl StunClient {
    fn pending(&self) -> MutexGuard<'_, HashMap<TransactionId, Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the server at an address, with retransmissions. This takes as long as [`RC`] and [`RM`]
    /// allow, which is longer than most callers wait. Nothing remains when the future ends or is
    /// dropped.
    pub(crate) async fn ask(
        &self,
        sockets: &Sockets,
        server: SocketAddr,
    ) -> Result<Answer, StunError> {
        let (id, request) = message::request(Change::default());
        let (sender, mut receiver) = oneshot::channel();
        let pending = Pending {
            server,
            answer: sender,
        };
        self.pending().insert(id, pending);
        let _forget = Forget { client: self, id };
        let order = self.order.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        for pause in retransmissions() {
            sockets
                .send(any_source(server), server, &request, request.len())
                .await;
            let Ok(answer) = time::timeout(pause, &mut receiver).await else {
                continue;
            };
            return match answer.map_err(|_| StunError::Silent)? {
                (
                    Response::Success {
                        mapped,
                        discovers,
                        other,
                    },
                    local,
                ) => Ok(Answer {
                    seen: Observation {
                        server,
                        local,
                        mapped,
                        order,
                    },
                    discovers,
                    other,
                    rtt: started.elapsed(),
                }),
                (Response::Error(code), _) => Err(StunError::Refused(code)),
            };
        }
        Err(StunError::Silent)
    }
}

/// Removes a transaction when its request ends, however it ends.
struct Forget<'a> {
    client: &'a StunClient,
    id: TransactionId,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        let mut pending = self.client.pending();
        pending.remove(&self.id);
        if pending.is_empty() {
            // This frees the memory that a burst of requests took.
            pending.shrink_to_fit();
        }
    }
}

impl Receiver for StunClient {
    fn receive(&self, _: Instant, source: SocketAddr, destination: SocketAddr, data: &[u8]) {
        let Some((id, response)) = message::response(data) else {
            return;
        };
        let mut pending = self.pending();
        // A forged answer must guess 96 bits and come from the address of the server.
        if pending.get(&id).is_some_and(|asked| asked.server == source)
            && let Some(asked) = pending.remove(&id)
        {
            let _ = asked.answer.send((response, destination));
        }
    }

    fn accepts(&self, _: &StunMessage<'_>) -> bool {
        // `receive` checks the transaction and the source.
        true
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::StreamExt as _;
    use stun_types::{
        attribute::XorMappedAddress,
        message::{Message, MessageWrite as _, MessageWriteExt as _, MessageWriteVec},
    };
    use tokio::net::UdpSocket;

    use super::*;
    use crate::native::udp::Addresses;

    const SOON: Duration = Duration::from_secs(10);

    fn client() -> (Arc<StunClient>, Sockets) {
        let sockets = Sockets::bind(Addresses::default()).unwrap();
        let client = Arc::<StunClient>::default();
        let receiver: Arc<dyn Receiver> = client.clone();
        sockets.route_stun_client(&receiver);
        (client, sockets)
    }

    async fn server() -> (UdpSocket, SocketAddr) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = socket.local_addr().unwrap();
        (socket, addr)
    }

    fn success(request: &[u8], mapped: SocketAddr) -> Vec<u8> {
        let request = Message::from_bytes(request).unwrap();
        let mut answer = Message::builder_success(&request, MessageWriteVec::new());
        answer
            .add_attribute(&XorMappedAddress::new(mapped, request.transaction_id()))
            .unwrap();
        answer.finish()
    }

    #[test]
    fn requests_are_repeated_as_rfc_8489_says() {
        let pauses: Vec<_> = retransmissions().map(|p| p.as_millis()).collect();
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 6400, 3200]);
    }

    #[tokio::test]
    async fn only_an_answer_of_the_asked_server_is_taken() {
        let (client, sockets) = client();
        let (server, addr) = server().await;
        let (stranger, _) = self::server().await;
        let wrong: SocketAddr = "192.0.2.66:6".parse().unwrap();
        let right: SocketAddr = "192.0.2.7:7".parse().unwrap();
        let serve = async {
            let mut buffer = [0; 100];
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            let request = &buffer[..length];
            // The forgeries: another source, another transaction, garbage, and an answer without
            // content.
            let forged = success(request, wrong);
            stranger.send_to(&forged, from).await.unwrap();
            let mut other = forged.clone();
            other[10] ^= 1;
            server.send_to(&other, from).await.unwrap();
            server.send_to(b"\x01\x01garbage", from).await.unwrap();
            server.send_to(&forged[..20], from).await.unwrap();
            // The second answer is late.
            for mapped in [right, wrong] {
                let answer = success(request, mapped);
                server.send_to(&answer, from).await.unwrap();
            }
        };
        let (answer, ()) = tokio::join!(client.ask(&sockets, addr), serve);
        let seen = answer.unwrap().seen;
        assert_eq!((seen.mapped, seen.server), (right, addr));
        assert_eq!(seen.local.port(), sockets.port(addr.ip()).unwrap());
        assert!(client.pending().is_empty());
    }

    #[tokio::test]
    async fn a_lost_request_is_sent_again_and_a_late_answer_is_taken() {
        let (client, sockets) = client();
        let (server, addr) = server().await;
        let mapped: SocketAddr = "192.0.2.7:7".parse().unwrap();
        let serve = async {
            let mut buffer = [0; 100];
            let (_, _) = server.recv_from(&mut buffer).await.unwrap();
            let first = buffer;
            let (length, from) = server.recv_from(&mut buffer).await.unwrap();
            assert_eq!(first[..length], buffer[..length], "it is another request");
            let answer = success(&buffer[..length], mapped);
            server.send_to(&answer, from).await.unwrap();
        };
        let asked = time::timeout(SOON, client.ask(&sockets, addr));
        let (answer, ()) = tokio::join!(asked, serve);
        assert_eq!(answer.unwrap().unwrap().seen.mapped, mapped);
    }

    fn descriptors() -> usize {
        std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
    }

    /// The test runs in a process of its own, because other tests open descriptors too.
    #[test]
    fn nothing_outlives_a_failed_attempt() {
        if std::env::var_os("THROUGHLINE_ALONE").is_some() {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            return runtime.unwrap().block_on(ten_thousand_failing_attempts());
        }
        let alone = std::process::Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                concat!(module_path!(), "::nothing_outlives_a_failed_attempt")
                    .trim_start_matches("throughline::"),
            ])
            .env("THROUGHLINE_ALONE", "1")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&alone.stdout);
        assert!(
            alone.status.success() && said.contains("1 passed"),
            "{said}"
        );
    }

    /// Half of the servers refuse, because nothing is bound at their address. The other half are
    /// silent.
    async fn ten_thousand_failing_attempts() {
        let (client, sockets) = client();
        let (silent, silent_addr) = server().await;
        let (gone, refusing) = server().await;
        drop(gone);
        let metrics = tokio::runtime::Handle::current().metrics();
        let before = (descriptors(), metrics.num_alive_tasks());
        let attempts = futures::stream::iter(0..10_000).map(|i| {
            let server = if i % 2 == 0 { silent_addr } else { refusing };
            time::timeout(Duration::from_millis(2), client.ask(&sockets, server))
        });
        let failed = attempts
            .buffer_unordered(100)
            .filter(|outcome| std::future::ready(!matches!(outcome, Ok(Ok(_)))))
            .count()
            .await;
        assert_eq!(failed, 10_000);
        let after = (descriptors(), metrics.num_alive_tasks());
        assert_eq!(after, before);
        assert_eq!(client.pending().capacity(), 0);
        drop(silent);
    }
}
