//! `/webrtc` between two native peers over a relay. Sockets, DTLS, SCTP and circuits are real.

#[path = "../common/mod.rs"]
mod common;
mod node;

use std::time::Duration;

use common::{PATIENCE, until_polled};
use futures::{AsyncReadExt, AsyncWriteExt};
use node::{Node, Seen, is_webrtc, listener, relay};
use throughline::rtc;

/// Connects two peers. Returns each with its `/webrtc` connection.
async fn pair() -> (
    Node,
    libp2p::swarm::ConnectionId,
    Node,
    libp2p::swarm::ConnectionId,
) {
    let relay = relay().await;
    let (mut b, addr) = listener(&relay, rtc::Config::default()).await;
    let mut a = Node::start(rtc::Config::default());
    a.dial(b.id, addr);
    let at_a = a.webrtc(b.id).await;
    let at_b = b.webrtc(a.id).await;
    (a, at_a, b, at_b)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_work_both_ways() {
    let (mut a, at_a, mut b, at_b) = pair().await;
    for _ in 0..3 {
        for from_a in [true, false] {
            let (mut opened, mut accepted) = match from_a {
                true => (a.open(b.id, at_a).await, b.stream().await),
                false => (b.open(a.id, at_b).await, a.stream().await),
            };
            opened.write_all(b"question").await.unwrap();
            opened.close().await.unwrap();
            let mut question = Vec::new();
            accepted.read_to_end(&mut question).await.unwrap();
            assert_eq!(question, b"question");
            // The other half is still open.
            accepted.write_all(b"answer").await.unwrap();
            accepted.close().await.unwrap();
            let mut answer = Vec::new();
            opened.read_to_end(&mut answer).await.unwrap();
            assert_eq!(answer, b"answer");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_path_is_reported_for_its_connection() {
    let (mut a, at_a, mut b, at_b) = pair().await;
    for (node, connection) in [(&mut a, at_a), (&mut b, at_b)] {
        let (id, pair) = node
            .wait(|seen| match seen {
                Seen::Path(id, pair) => Some((id, pair)),
                _ => None,
            })
            .await;
        assert_eq!(id, connection);
        assert_eq!(pair.local.kind, rtc::CandidateKind::Host);
        assert!(pair.remote.addr.is_some() && !pair.is_relayed());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_stream_is_a_reset_and_not_an_end() {
    let (a, at_a, mut b, _) = pair().await;
    let mut opened = a.open(b.id, at_a).await;
    opened.write_all(b"half a mess").await.unwrap();
    opened.flush().await.unwrap();
    let mut accepted = b.stream().await;
    let mut start = [0; 11];
    accepted.read_exact(&mut start).await.unwrap();
    drop(opened);
    let error = accepted.read(&mut start).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_peer_sees_a_close() {
    let (mut a, at_a, mut b, at_b) = pair().await;
    a.close(at_a);
    for (node, connection) in [(&mut a, at_a), (&mut b, at_b)] {
        node.wait(|seen| match seen {
            Seen::Closed(id) if id == connection => Some(()),
            _ => None,
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writing_to_one_who_stopped_reading_fails() {
    let (a, at_a, mut b, _) = pair().await;
    let mut opened = a.open(b.id, at_a).await;
    opened.write_all(b"x").await.unwrap();
    let mut accepted = b.stream().await;
    accepted.close().await.unwrap();
    drop(accepted);
    let chunk = [0; 1024];
    let stopped = async { while opened.write_all(&chunk).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, stopped).await.unwrap();
}

/// A reader that pauses stops the writer. The bytes on their way stay below the send buffer and the
/// receive window, which have 2 MiB each. Everything arrives when the reader goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_reader_bounds_memory() {
    const TOTAL: usize = 100 << 20;
    const BOUND: usize = (4 << 20) + (64 << 10);
    let (a, at_a, mut b, _) = pair().await;
    let mut opened = a.open(b.id, at_a).await;
    let chunk: Vec<u8> = (0..=255).cycle().take(64 << 10).collect();
    let mut written = 0;
    // The test waits for the stall, because it measures the stall.
    let stall = Duration::from_millis(500);
    while let Ok(result) = tokio::time::timeout(stall, opened.write(&chunk)).await {
        // Each write starts at the beginning of a chunk, because only the amount matters here.
        written += result.unwrap();
        assert!(written <= BOUND, "{written} bytes taken from the writer");
    }
    assert!(written >= 1 << 20, "only {written} bytes taken");

    let mut accepted = b.stream().await;
    let writer = tokio::spawn(async move {
        let mut left = TOTAL - written;
        while left > 0 {
            let n = left.min(chunk.len());
            opened.write_all(&chunk[..n]).await.unwrap();
            left -= n;
        }
        opened.close().await.unwrap();
    });
    let mut read = 0;
    let mut buffer = vec![0; 64 << 10];
    let reading = async {
        loop {
            match accepted.read(&mut buffer).await.unwrap() {
                0 => break read,
                n => read += n,
            }
        }
    };
    let read = tokio::time::timeout(Duration::from_secs(120), reading).await;
    assert_eq!(read.unwrap(), TOTAL);
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_dial_each_other_end_with_one_connection() {
    let relay = relay().await;
    for _ in 0..5 {
        let (mut a, to_a) = listener(&relay, rtc::Config::default()).await;
        let (mut b, to_b) = listener(&relay, rtc::Config::default()).await;
        a.dial(b.id, to_b);
        b.dial(a.id, to_a);
        let at_a = a.webrtc(b.id).await;
        let at_b = b.webrtc(a.id).await;
        // Both peers use the same connection: a stream that one opens is accepted by the other.
        let mut from_a = a.open(b.id, at_a).await;
        from_a.write_all(b"a").await.unwrap();
        b.stream().await;
        let mut from_b = b.open(a.id, at_b).await;
        from_b.write_all(b"b").await.unwrap();
        a.stream().await;
        for node in [&mut a, &mut b] {
            while let Ok(seen) = node.seen.try_recv() {
                match seen {
                    Seen::Connected(_, _, addr) if is_webrtc(&addr) => panic!("a second one"),
                    Seen::DialFailed(error) | Seen::IncomingFailed(error) => panic!("{error}"),
                    Seen::Closed(id) => panic!("{id} closed"),
                    _ => {}
                }
            }
        }
    }
}

/// Returns the answer of a peer that does not exist: the offer's own text with other credentials.
fn answer_to(offer: &str) -> String {
    let lines = offer.lines().filter(|l| !l.starts_with("a=candidate"));
    let lines = lines.map(|line| match line {
        l if l.starts_with("a=ice-ufrag") => "a=ice-ufrag:nobody".into(),
        l if l.starts_with("a=ice-pwd") => "a=ice-pwd:nobodynobodynobodynobody".into(),
        l if l.starts_with("a=setup") => "a=setup:active".into(),
        l => l.to_owned(),
    });
    let mut answer = lines.collect::<Vec<_>>().join("\r\n");
    answer.push_str("\r\na=candidate:1 1 udp 2130706431 127.0.0.1 9 typ host\r\n");
    answer
}

fn varint(mut value: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
    out
}

async fn read_message(stream: &mut libp2p::Stream) -> Vec<u8> {
    let (mut len, mut shift) = (0, 0);
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        len |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] < 0x80 {
            break;
        }
    }
    let mut message = vec![0; len];
    stream.read_exact(&mut message).await.unwrap();
    message
}

fn failure(seen: Seen) -> Option<String> {
    match seen {
        Seen::DialFailed(error) => Some(error),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_ice_and_a_silent_peer_are_different_errors() {
    let relay = relay().await;
    let (mut impostor, addr) = node::impostor(&relay).await;
    let mut config = rtc::Config::default();
    config.timeout = Duration::from_secs(1);
    let mut a = Node::start(config);

    a.dial(impostor.id, addr.clone());
    let silent = impostor.stream().await;
    let error = a.wait(failure).await;
    assert!(error.contains("Timeout(Description)"), "{error}");
    drop(silent);

    a.dial(impostor.id, addr.clone());
    let mut stream = impostor.stream().await;
    let offer = read_message(&mut stream).await;
    let start = offer.windows(3).position(|w| w == b"v=0").unwrap();
    let answer = answer_to(std::str::from_utf8(&offer[start..]).unwrap());
    let mut message = vec![0x08, 1, 0x12];
    message.extend(varint(answer.len()));
    message.extend(answer.as_bytes());
    let mut framed = varint(message.len());
    framed.extend(message);
    stream.write_all(&framed).await.unwrap();
    stream.flush().await.unwrap();
    let error = a.wait(failure).await;
    assert!(error.contains("Timeout(Connectivity)"), "{error}");

    a.dial(impostor.id, addr);
    let mut stream = impostor.stream().await;
    stream.write_all(&[2, 0x08, 0]).await.unwrap();
    stream.flush().await.unwrap();
    let error = a.wait(failure).await;
    assert!(error.contains("Malformed(\"data is missing\")"), "{error}");
}

#[cfg(target_os = "linux")]
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Two hundred dials that fail halfway leave no task and no socket behind.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failed_dials_leave_nothing_behind() {
    let relay = relay().await;
    let (mut impostor, addr) = node::impostor(&relay).await;
    let mut a = Node::start(rtc::Config::default());
    let mut fail = async || {
        a.dial(impostor.id, addr.clone());
        let mut stream = impostor.stream().await;
        read_message(&mut stream).await;
        drop(stream);
        let error = a.wait(failure).await;
        assert!(error.contains("SignallingLost"), "{error}");
    };
    fail().await;
    let tasks = tokio::runtime::Handle::current().metrics();
    let before = (tasks.num_alive_tasks(), descriptors());
    for _ in 0..200 {
        fail().await;
    }
    until_polled(|| tasks.num_alive_tasks() <= before.0).await;
    // Other tests of this program open sockets at the same time. Two hundred more would show.
    assert!(descriptors() < before.1 + 100);
}
