//! Tests floods of signalling, each limit at its edge, and peers that stop half-way through DTLS.

use libp2p::Stream;
use str0m::{
    Candidate, Input, Output, Rtc,
    change::SdpAnswer,
    net::{Protocol, Receive},
};
use tokio::{net::UdpSocket, runtime::Runtime, task::AbortHandle};

use super::{common::program::Program, *};

/// The limits of src/core/signalling.rs, src/core/sdp.rs, src/webrtc/dials.rs and
/// src/webrtc/mod.rs.
const MESSAGES: usize = 128;
const HELD_CANDIDATES: usize = 64;
const CANDIDATE_LEN: usize = 2 * 1024;
const MESSAGE_LEN: usize = 32 * 1024;
const SDP_LEN: usize = 16 * 1024;
const ANSWERS_TO_A_PEER: usize = 4;
const ANSWERS: usize = 32;

const OFFER: u8 = 0;
const ANSWER: u8 = 1;
const CANDIDATE: u8 = 2;

/// One negotiation, in which the hostile peer sends what it likes.
struct Signalling(Stream);

fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

fn message(kind: u8, data: &str) -> Vec<u8> {
    [&[8, kind, 18], &varint(data.len())[..], data.as_bytes()].concat()
}

impl Signalling {
    async fn open(control: &mut libp2p_stream::Control, to: PeerId) -> Self {
        let protocol = StreamProtocol::new("/webrtc-signaling/0.0.1");
        Self(control.open_stream(to, protocol).await.unwrap())
    }

    /// Sends a message. The victim may refuse it before all of it is written.
    async fn say(&mut self, message: &[u8]) {
        let _ = self.0.write_all(&varint(message.len())).await;
        let _ = self.0.write_all(message).await;
        let _ = self.0.flush().await;
    }

    /// Returns the next message that is no candidate, or `None` when the victim has hung up.
    async fn hear(&mut self) -> Option<(u8, String)> {
        let next = async {
            loop {
                let length = self.varint().await?;
                let mut message = vec![0; length];
                self.0.read_exact(&mut message).await.ok()?;
                if message[1] != CANDIDATE {
                    let data = message.iter().skip(3).skip_while(|byte| **byte >= 0x80);
                    let data = data.skip(1).copied().collect();
                    return Some((message[1], String::from_utf8(data).unwrap()));
                }
            }
        };
        timeout(SOON, next).await.expect("something")
    }

    async fn varint(&mut self) -> Option<usize> {
        let mut value = 0;
        for shift in [0, 7, 14] {
            let mut byte = [0];
            self.0.read_exact(&mut byte).await.ok()?;
            value |= usize::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    async fn is_answered(&mut self) -> bool {
        self.hear().await.is_some_and(|(kind, _)| kind == ANSWER)
    }
}

fn candidate(priority: u32, port: usize) -> String {
    format!(
        r#"{{"candidate":"candidate:{port} 1 udp {priority} 127.0.0.1 {port} typ host","sdpMid":"0"}}"#
    )
}

/// Makes an offer, and pads it to exactly `length` bytes if that is given.
fn offer(length: Option<usize>) -> String {
    let digest = ["AB"; 32].join(":");
    let mut sdp = format!(
        "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n\
         m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\n\
         a=mid:0\r\na=ice-ufrag:nobody\r\na=ice-pwd:nobodynobodynobodynobody\r\n\
         a=fingerprint:sha-256 {digest}\r\na=setup:actpass\r\na=sctp-port:5000\r\n"
    );
    if let Some(length) = length {
        let padding = length - sdp.len() - "a=x-\r\n".len();
        sdp += &format!("a=x-{}\r\n", "x".repeat(padding));
    }
    sdp
}

#[tokio::test]
async fn messages_beyond_a_limit_end_the_negotiation() {
    let victim = victim(config()).await;
    let (_honest, connection) = connect(&victim).await;
    let plain = message(OFFER, &offer(None));
    let candidates = |count| {
        (1..=count)
            .map(|n| message(CANDIDATE, &candidate(1, n)))
            .collect()
    };
    let long = |length: usize| {
        let candidate = candidate(1, 1);
        let padding = "x".repeat(length - candidate.len());
        let candidate = candidate.replace(" host", &format!(" host{padding}"));
        vec![message(CANDIDATE, &candidate)]
    };
    let padded = |length: usize| {
        let offer = message(OFFER, &offer(None));
        // This field is in no specification.
        let padding = length - offer.len() - 4;
        [&offer, &[122][..], &varint(padding), &vec![0; padding]].concat()
    };
    // The messages before the offer, the offer, and whether that is allowed.
    let edges: [(Vec<Vec<u8>>, Vec<u8>, bool); 8] = [
        (candidates(HELD_CANDIDATES), plain.clone(), true),
        (candidates(HELD_CANDIDATES + 1), plain.clone(), false),
        (long(CANDIDATE_LEN), plain.clone(), true),
        (long(CANDIDATE_LEN + 1), plain, false),
        (vec![], message(OFFER, &offer(Some(SDP_LEN))), true),
        (vec![], message(OFFER, &offer(Some(SDP_LEN + 1))), false),
        (vec![], padded(MESSAGE_LEN), true),
        (vec![], padded(MESSAGE_LEN + 1), false),
    ];
    for (nth, (before, offer, allowed)) in edges.into_iter().enumerate() {
        // Each negotiation has another peer, because one peer is answered only a few times.
        let mut control = connected(&victim).await;
        let mut signalling = Signalling::open(&mut control, id(&victim)).await;
        for message in before {
            signalling.say(&message).await;
        }
        signalling.say(&offer).await;
        assert_eq!(signalling.is_answered().await, allowed, "edge {nth}");
        echoed(&connection).await;
    }
}

#[tokio::test]
async fn a_flood_of_candidates_ends_the_negotiation_and_hides_none() {
    let victim = victim(config()).await;
    let (_honest, connection) = connect(&victim).await;
    let mut control = connected(&victim).await;
    let mut signalling = Signalling::open(&mut control, id(&victim)).await;
    signalling.say(&message(OFFER, &offer(None))).await;
    assert!(signalling.is_answered().await);
    // As many candidates come as may come. The best one is the last, and is checked.
    for port in 1..MESSAGES - 1 {
        signalling
            .say(&message(CANDIDATE, &candidate(1, port)))
            .await;
    }
    let real = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let port = real.local_addr().unwrap().port().into();
    let best = candidate(u32::MAX >> 1, port);
    signalling.say(&message(CANDIDATE, &best)).await;
    let check = timeout(PATIENCE, real.recv_from(&mut [0; 1500])).await;
    check.expect("a check").unwrap();
    echoed(&connection).await;
    signalling.say(&message(CANDIDATE, &best)).await;
    assert_eq!(signalling.hear().await, None);
    echoed(&connection).await;
}

#[tokio::test]
async fn one_peer_is_answered_so_often_and_all_so_often() {
    let victim = victim(config()).await;
    let (_honest, connection) = connect(&victim).await;
    let mut held = Vec::new();
    for peer in 0..ANSWERS / ANSWERS_TO_A_PEER {
        let mut control = connected(&victim).await;
        for nth in 0..=ANSWERS_TO_A_PEER {
            let mut signalling = Signalling::open(&mut control, id(&victim)).await;
            signalling.say(&message(OFFER, &offer(None))).await;
            let allowed = nth < ANSWERS_TO_A_PEER;
            assert_eq!(signalling.is_answered().await, allowed, "{peer}, {nth}");
            held.extend(allowed.then_some((signalling, control.clone())));
        }
    }
    let mut control = connected(&victim).await;
    let mut again = async || {
        let mut signalling = Signalling::open(&mut control, id(&victim)).await;
        signalling.say(&message(OFFER, &offer(None))).await;
        signalling.is_answered().await
    };
    // Negotiations that have had their time give way, long before they time out.
    let given_way = async { while !again().await {} };
    timeout(SOON, given_way).await.expect("a place");
    let (first, _control) = &mut held[0];
    assert_eq!(first.hear().await, None);
    // Other connections are made meanwhile.
    let (_late, late) = connect(&victim).await;
    echoed(&late).await;
    echoed(&connection).await;
    // A peer that breaks the protocol makes room.
    let (mut one, _control) = held.pop().unwrap();
    one.say(&message(OFFER, "")).await;
    assert_eq!(one.hear().await, None);
    assert!(again().await);
}

/// How much the victim may grow while it is flooded. It is half of what is sent.
const GROWTH_KIB: u64 = 32 << 10;

fn resident_kib(program: &Program) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.id())).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.unwrap().trim().trim_end_matches(" kB");
    resident.parse().unwrap()
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_signalling_takes_no_memory() {
    let relay = common::relay().await;
    let quic = relay.addresses().iter().find(|a| a.contains("/quic-v1"));
    let bind = ["--bind", "/ip4/127.0.0.1/udp/0/quic-v1"];
    let listen = ["listen", "--echo", "--relay", quic.unwrap()];
    let victim = Program::start(&[&listen[..], &bind].concat());
    let ready = tokio::task::block_in_place(|| victim.event("ready"));
    let ticket: Ticket = ready["ticket"].as_str().unwrap().parse().unwrap();
    let honest = peer(config()).await;
    let connection = honest.connect(&ticket).await.unwrap();
    let before = resident_kib(&victim);
    let to: PeerId = ticket.peer_id().to_string().parse().unwrap();
    let road: Multiaddr = ticket.addresses()[0].parse().unwrap();
    let long = candidate(1, 1).replace("typ host", &"x".repeat(MESSAGE_LEN - 200));
    let floods = (0..8).map(async |_| {
        let mut swarm = hostile();
        let dial = DialOpts::peer_id(to).addresses(vec![road.clone()]);
        swarm.dial(dial.build()).unwrap();
        let mut control = swarm.behaviour().new_control();
        let peer = tokio::spawn(swarm.for_each(|_| future::ready(())));
        let mut held = Vec::new();
        for _ in 0..ANSWERS_TO_A_PEER {
            let mut signalling = Signalling::open(&mut control, to).await;
            for _ in 0..HELD_CANDIDATES {
                signalling.say(&message(CANDIDATE, &long)).await;
            }
            held.push(signalling);
        }
        (held, peer)
    });
    let _held = join_all(floods).await;
    echoed(&connection).await;
    let grown = resident_kib(&victim).saturating_sub(before);
    assert!(grown < GROWTH_KIB, "{grown} KiB");
}

/// Drives a peer connection that sends `records` datagrams of DTLS and no more, but everything of
/// ICE.
async fn half_open(mut rtc: Rtc, socket: UdpSocket, mut records: usize) {
    let local = socket.local_addr().unwrap();
    let mut buffer = [0; 2048];
    loop {
        let due = match rtc.poll_output().unwrap() {
            Output::Timeout(due) => due,
            Output::Transmit(datagram) => {
                let is_dtls = (20..64).contains(&datagram.contents[0]);
                if !is_dtls || records > 0 {
                    records -= usize::from(is_dtls);
                    let to = datagram.destination;
                    let _ = socket.send_to(&datagram.contents, to).await;
                }
                continue;
            }
            Output::Event(_) => continue,
        };
        let received = tokio::select! {
            received = socket.recv_from(&mut buffer) => Some(received.unwrap()),
            () = tokio::time::sleep_until(due.into()) => None,
        };
        let now = std::time::Instant::now();
        let input = match received {
            Some((length, from)) => {
                let datagram = Receive::new(Protocol::Udp, from, local, &buffer[..length]);
                Input::Receive(now, datagram.unwrap())
            }
            None => Input::Timeout(now),
        };
        rtc.handle_input(input).unwrap();
    }
}

/// Begins a connection to the victim, and stops half-way. `client` says whether the victim is to be
/// the client of DTLS or the server.
async fn stop_half_way(signalling: &mut Signalling, client: bool, records: usize) -> AbortHandle {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let local = socket.local_addr().unwrap();
    let mut rtc = Rtc::new(std::time::Instant::now());
    rtc.add_local_candidate(Candidate::host(local, "udp").unwrap());
    let mut sdp = rtc.sdp_api();
    sdp.add_channel(String::new());
    let (offer, pending) = sdp.apply().unwrap();
    let role = if client {
        "setup:passive"
    } else {
        "setup:active"
    };
    let offer = offer.to_sdp_string().replace("setup:actpass", role);
    signalling.say(&message(OFFER, &offer)).await;
    let (_, answer) = signalling.hear().await.expect("an answer");
    let answer = SdpAnswer::from_sdp_string(&answer).unwrap();
    rtc.sdp_api().accept_answer(pending, answer).unwrap();
    tokio::spawn(half_open(rtc, socket, records)).abort_handle()
}

/// How long a peer of ours may take to reach another here.
const LIMIT: Duration = Duration::from_secs(2);

#[test]
fn handshakes_of_dtls_that_stop_half_way_end_in_time() {
    // The victim has a runtime of its own, so that its tasks can be counted.
    let own = Runtime::new().unwrap();
    let tasks = || own.metrics().num_alive_tasks();
    Runtime::new().unwrap().block_on(async {
        let mut impatient = config();
        impatient.strategy_timeout = LIMIT;
        let victim = own.spawn(victim(impatient)).await.unwrap();
        let (_honest, connection) = connect(&victim).await;
        let mut control = connected(&victim).await;
        echoed(&connection).await;
        let before = tasks();
        let begun = std::time::Instant::now();
        let mut held = Vec::new();
        for (client, records) in [(true, 0), (true, 1), (false, 1), (false, 2)] {
            let mut signalling = Signalling::open(&mut control, id(&victim)).await;
            let peer = stop_half_way(&mut signalling, client, records).await;
            held.push((signalling, peer));
        }
        assert!(tasks() > before);
        echoed(&connection).await;
        let ends = held.iter_mut().map(|(signalling, _)| signalling.hear());
        let ends = join_all(ends).await;
        let time = begun.elapsed();
        assert!(ends.iter().all(Option::is_none));
        // The ends come neither at once nor late.
        assert!((LIMIT / 2..LIMIT * 2).contains(&time), "{time:?}");
        until_polled(|| tasks() <= before).await;
        echoed(&connection).await;
        let (_late, late) = connect(&victim).await;
        echoed(&late).await;
        for (_, peer) in held {
            peer.abort();
        }
    });
}
