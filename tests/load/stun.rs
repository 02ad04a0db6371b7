//! STUN servers that are all dead, each in its own way. Nothing may wait for them.

use std::{
    fmt,
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use crate::{
    Form, Row, common, peers,
    report::{Times, ms},
};

/// A delay that counts as noticeable. It is a tenth of the promise, above any noise and far below
/// any timeout of STUN.
const NOTICEABLE: Duration = Duration::from_secs(2);
const PROMISED: Duration = Duration::from_secs(20);
/// How late the late server answers. Everything that matters has ended by then.
const LATE: Duration = Duration::from_secs(3);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Silent,
    Refusing,
    Garbage,
    Late,
}

impl Fault {
    const ALL: [Self; 5] = [
        Self::None,
        Self::Silent,
        Self::Refusing,
        Self::Garbage,
        Self::Late,
    ];
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "working",
            Self::Silent => "silent",
            Self::Refusing => "refusing",
            Self::Garbage => "answering garbage",
            Self::Late => "answering 3 s late",
        })
    }
}

pub(crate) async fn run(form: Form) -> Vec<Row> {
    let relay = peers::relay(64).await;
    let servers = Fault::ALL.map(|fault| match fault {
        Fault::None => relay.stun_urls()[0].clone(),
        fault => format!("stun:{}", start(fault)),
    });
    let mut first_byte: [Vec<Duration>; 5] = Default::default();
    let mut direct: [Vec<Duration>; 5] = Default::default();
    let mut relayed = [0; 5];
    // The servers take turns, so that other work of the machine affects all of them alike.
    for _ in 0..form.pick(3, 20) {
        for (index, server) in servers.iter().enumerate() {
            let mut config = peers::config(&relay);
            config.stun = vec![server.clone()];
            let listener = common::echoing(config.clone()).await;
            let dialler = peers::dialler(config).await;
            let start = Instant::now();
            let (connection, time) = peers::meet(&dialler, &listener).await.unwrap();
            first_byte[index].push(time);
            if peers::until_direct(&connection).await {
                direct[index].push(start.elapsed());
            } else {
                relayed[index] += 1;
            }
            dialler.close().await;
            listener.close().await;
        }
    }
    let all = first_byte.map(Times::new);
    let working = all[0].median();
    let rows = Fault::ALL
        .into_iter()
        .zip(&all)
        .zip(direct)
        .zip(relayed)
        .skip(1);
    rows.map(|(((fault, times), direct), relayed)| {
        let median = times.median();
        let direct = match relayed {
            0 => format!("direct after {}", ms(Times::new(direct).median())),
            relayed => format!("{relayed} stayed relayed"),
        };
        Row {
            scenario: format!("all STUN servers dead: {fault}"),
            promised: "< 20 s more",
            aim: "first byte no later than with working ones; direct where another candidate allows it",
            measured: format!(
                "first byte median {}, with working ones {}; {direct}",
                ms(median),
                ms(working)
            ),
            kept: median < working + NOTICEABLE && times.worst() < PROMISED,
            reached: relayed == 0 && median < working.mul_f64(1.25) + Duration::from_millis(10),
            known: None,
        }
    })
    .collect()
}

/// Starts a server with this fault. It runs as long as the process.
fn start(fault: Fault) -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    // The refusing server is a port that nobody has bound.
    if fault != Fault::Refusing {
        std::thread::spawn(move || serve(fault, &socket));
    }
    address
}

fn serve(fault: Fault, socket: &UdpSocket) {
    let mut buffer = [0; 1500];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let request = &buffer[..length];
        match fault {
            Fault::Garbage => {
                // One answer is not STUN, and the other is cut in the middle of an attribute.
                let mut cut = request.to_vec();
                cut.extend([0, 0x20, 0xff, 0xff, 0]);
                for answer in [&b"\x01\x01 nonsense"[..], &cut] {
                    let _ = socket.send_to(answer, from);
                }
            }
            Fault::Late if length >= 20 => {
                let (socket, answer) = (socket.try_clone().unwrap(), success(request, from));
                std::thread::spawn(move || {
                    // The pause is the fault that this server has.
                    std::thread::sleep(LATE);
                    let _ = socket.send_to(&answer, from);
                });
            }
            _ => {}
        }
    }
}

/// Makes a Binding success response (RFC 8489 section 14.2) to `request`.
fn success(request: &[u8], from: SocketAddr) -> Vec<u8> {
    let cookie = [0x21, 0x12, 0xa4, 0x42];
    let mut answer = vec![1, 1, 0, 12];
    answer.extend(&request[4..20]);
    answer.extend([0, 0x20, 0, 8, 0, 1]);
    answer.extend((from.port() ^ 0x2112).to_be_bytes());
    let std::net::IpAddr::V4(ip) = from.ip() else {
        return answer;
    };
    answer.extend(
        ip.octets()
            .iter()
            .zip(cookie)
            .map(|(byte, mask)| byte ^ mask),
    );
    answer
}
