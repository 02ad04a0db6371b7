//! TCP through a peer: HTTP, keystrokes, halves that end alone, resets, many connections, a path that
//! moves, and what nobody has allowed.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Stdio,
    sync::mpsc,
    thread,
    time::Duration,
};

use socket2::SockRef;

use super::{
    Program, Value,
    common::{PATIENCE, until_polled},
    listening, throughline,
};

/// Starts a TCP server, and calls `serve` on a thread of its own for each connection.
fn server(serve: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    thread::spawn(move || {
        for socket in listener.incoming().flatten() {
            let serve = serve.clone();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            thread::spawn(move || serve(socket));
        }
    });
    at
}

fn connect(at: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect(at).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Ends a connection as a program that crashes does.
fn crash(socket: TcpStream) {
    SockRef::from(&socket)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

/// Sends everything back.
fn echo(mut socket: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = socket.read(&mut buffer) {
        socket.write_all(&buffer[..length]).unwrap();
    }
}

/// A running `forward`, with where it listens.
struct Forward {
    program: Program,
    at: SocketAddr,
}

fn forward(ticket: &str, arguments: &[&str]) -> Forward {
    let mut line = vec!["forward", ticket];
    line.extend(arguments);
    line.extend(["--bind", "/ip4/127.0.0.1/udp/0/quic-v1"]);
    let program = Program::start(&line);
    let event = program.event("forward");
    let at = event["bind"].as_str().unwrap().parse().unwrap();
    Forward { program, at }
}

/// Starts a relay, a listener that allows `to`, and a forward to it.
fn forwarded(to: SocketAddr) -> (Program, Program, Forward) {
    let allowed = to.to_string();
    let (relay, listener, ticket) = listening(&["--allow", &allowed]);
    let forward = forward(&ticket, &["--local", &format!("0:{to}")]);
    (relay, listener, forward)
}

/// Answers requests of HTTP/1.1 with a body of the length in their path.
fn http(socket: TcpStream) {
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    let mut socket = socket;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let length: usize = line.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
        while line.trim() != "" {
            line.clear();
            reader.read_line(&mut line).unwrap();
        }
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        socket.write_all(head.as_bytes()).unwrap();
        socket.write_all(&vec![b'x'; length]).unwrap();
    }
}

/// Requests a body of this length on a connection that stays open.
fn get(socket: &mut BufReader<TcpStream>, length: usize) {
    let request = format!("GET /{length} HTTP/1.1\r\nHost: a\r\n\r\n");
    socket.get_mut().write_all(request.as_bytes()).unwrap();
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        assert_ne!(socket.read_line(&mut line).unwrap(), 0);
    }
    let mut body = vec![0; length];
    socket.read_exact(&mut body).unwrap();
    assert!(body.iter().all(|byte| *byte == b'x'));
}

#[test]
fn http_keeps_its_connection() {
    let (_relay, _listener, forward) = forwarded(server(http));
    let mut socket = BufReader::new(connect(forward.at));
    for length in [0, 1, 100_000, 3_000_000, 7] {
        get(&mut socket, length);
    }
}

#[test]
fn keystrokes_come_back_at_once_beside_a_bulk_transfer() {
    let (_relay, _listener, forward) = forwarded(server(echo));
    let mut socket = connect(forward.at);
    socket.set_nodelay(true).unwrap();
    let mut bulk = connect(forward.at);
    let sender = thread::spawn(move || {
        let mut back = bulk.try_clone().unwrap();
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            back.read_to_end(&mut all).unwrap();
            all.len()
        });
        bulk.write_all(&vec![9; 8_000_000]).unwrap();
        bulk.shutdown(Shutdown::Write).unwrap();
        reader.join().unwrap()
    });
    for key in 0..200u8 {
        socket.write_all(&[key]).unwrap();
        let mut back = [0];
        socket.read_exact(&mut back).unwrap();
        assert_eq!(back, [key]);
    }
    assert_eq!(sender.join().unwrap(), 8_000_000);
}

#[test]
fn each_direction_ends_by_itself() {
    // The server answers only when it has seen the end, and says nothing to whoever speaks.
    let at = server(|mut socket| {
        let mut all = Vec::new();
        socket.read_to_end(&mut all).unwrap();
        socket.write_all(all.len().to_string().as_bytes()).unwrap();
    });
    let (_relay, _listener, forward) = forwarded(at);
    let mut socket = connect(forward.at);
    socket.write_all(&vec![1; 1_000_000]).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "1000000");
    let event = forward.program.event("tunnel");
    assert_eq!(
        (&event["sent"], &event["received"]),
        (&1_000_000.into(), &7.into())
    );

    // Here the server ends first, and goes on to read.
    let (heard, hears) = mpsc::channel();
    let at = server(move |mut socket| {
        socket.shutdown(Shutdown::Write).unwrap();
        let mut all = Vec::new();
        socket.read_to_end(&mut all).unwrap();
        heard.send(all.len()).unwrap();
    });
    let (_relay, _listener, forward) = forwarded(at);
    let mut socket = connect(forward.at);
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
    socket.write_all(&[1; 50_000]).unwrap();
    drop(socket);
    assert_eq!(hears.recv_timeout(PATIENCE), Ok(50_000));
}

#[test]
fn a_reset_is_a_reset_at_the_other_end() {
    let at = server(|mut socket| {
        socket.read_exact(&mut [0]).unwrap();
        crash(socket);
    });
    let (_relay, _listener, forward) = forwarded(at);
    let mut socket = connect(forward.at);
    socket.write_all(&[1]).unwrap();
    let error = socket.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);

    let (heard, hears) = mpsc::channel();
    let at = server(move |mut socket| {
        socket.write_all(&[1]).unwrap();
        heard
            .send(socket.read(&mut [0]).map_err(|error| error.kind()))
            .unwrap();
    });
    let (_relay, _listener, forward) = forwarded(at);
    let mut socket = connect(forward.at);
    socket.read_exact(&mut [0]).unwrap();
    crash(socket);
    assert_eq!(
        hears.recv_timeout(PATIENCE),
        Ok(Err(ErrorKind::ConnectionReset))
    );
}

#[test]
fn many_connections_go_side_by_side() {
    let (_relay, _listener, forward) = forwarded(server(echo));
    let at = forward.at;
    let clients = (0..60u8).map(|n| {
        thread::spawn(move || {
            let mut socket = connect(at);
            let bytes = vec![n; 20_000 + usize::from(n)];
            socket.write_all(&bytes).unwrap();
            socket.shutdown(Shutdown::Write).unwrap();
            let mut back = Vec::new();
            socket.read_to_end(&mut back).unwrap();
            assert!(back == bytes);
        })
    });
    for client in clients.collect::<Vec<_>>() {
        client.join().unwrap();
    }
}

#[test]
fn a_tunnel_moves_with_its_path() {
    let to = server(echo);
    let (_relay, _listener, ticket) = listening(&["--allow", &to.to_string()]);
    let late = ["direct", "stun"].map(|way| format!("start_delays_ms.{way}=1500"));
    let route = format!("0:{to}");
    let forward = forward(
        &ticket,
        &["--local", &route, "--set", &late[0], "--set", &late[1]],
    );
    let mut socket = connect(forward.at);
    let moved = || {
        let picked = |event: &Value| event["event"] == "path" && event["path"] == "direct";
        forward.program.find(picked)
    };
    let mut back = socket.try_clone().unwrap();
    let (stop, stopped) = mpsc::channel::<()>();
    let sender = thread::spawn(move || {
        let mut sent = 0u64;
        while stopped.try_recv() == Err(mpsc::TryRecvError::Empty) {
            let piece: Vec<u8> = (0..10_000).map(|n| (sent + n) as u8).collect();
            socket.write_all(&piece).unwrap();
            sent += 10_000;
        }
        socket.shutdown(Shutdown::Write).unwrap();
        sent
    });
    let reader = thread::spawn(move || {
        let mut all = Vec::new();
        back.read_to_end(&mut all).unwrap();
        all
    });
    moved().expect("a direct path");
    drop(stop);
    let sent = sender.join().unwrap();
    let all = reader.join().unwrap();
    assert_eq!(all.len() as u64, sent);
    assert!(all.iter().enumerate().all(|(n, byte)| *byte == n as u8));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_at_the_peer_leads_here() {
    let to = server(echo);
    let (_relay, _listener, ticket) = listening(&["--allow-bind", "127.0.0.1:0"]);
    let forward = forward(&ticket, &["--remote", &format!("0:{to}")]);
    assert_ne!(forward.at.port(), 0);
    let mut socket = connect(forward.at);
    socket.write_all(b"hello").unwrap();
    let mut back = [0; 5];
    socket.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
    drop(socket);
    // The peer listens only as long as the forward lasts.
    let at = forward.at;
    forward.program.signal("-TERM");
    assert!(forward.program.finish().1.success());
    until_polled(|| TcpStream::connect(at).is_err()).await;
}

#[test]
fn nothing_is_reachable_that_nobody_has_allowed() {
    let to = server(echo);
    let refused = |listener: &[&str], code: &str| {
        let (_relay, _listener, ticket) = listening(listener);
        let forward = forward(&ticket, &["--local", &format!("0:{to}")]);
        let mut socket = connect(forward.at);
        socket.write_all(b"hello").ok();
        let read = socket.read(&mut [0]);
        assert!(read.is_err(), "a reset, and no end: {read:?}");
        assert_eq!(forward.program.event("tunnel")["code"], code);
    };
    refused(&["--echo"], "protocol_refused");
    refused(&["--allow", "localhost:9"], "access_denied");
    let stranger = throughline::Identity::generate().peer_id().to_string();
    let allowed = to.to_string();
    refused(
        &["--allow", &allowed, "--allow-peer", &stranger],
        "protocol_refused",
    );

    let (_relay, _listener, ticket) = listening(&["--allow", &allowed]);
    let route = format!("0:{to}");
    super::refused(
        &["forward", &ticket, "--remote", &route],
        "protocol_refused",
        "",
    );
    let (_relay, _listener, ticket) = listening(&["--allow-bind", "9"]);
    super::refused(
        &["forward", &ticket, "--remote", &route],
        "access_denied",
        "list",
    );
}

#[test]
fn a_host_that_refuses_is_named() {
    let nobody = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap();
    let (_relay, _listener, forward) = forwarded(nobody);
    let mut socket = connect(forward.at);
    assert!(socket.read(&mut [0]).is_err());
    let event = forward.program.event("tunnel");
    assert_eq!(event["code"], "unreachable", "{event}");
}

#[test]
fn a_pipe_carries_stdin_both_ways() {
    let (relay, ready) = super::serve();
    let address = super::relay(&ready, "quic-v1");
    let mut waiting = throughline(&["pipe", "--relay", address]);
    waiting.args(["--bind", "/ip4/127.0.0.1/udp/0/quic-v1"]);
    let (mut waiting, mut heard) = Program::unread(waiting.stderr(Stdio::piped()));
    let mut line = String::new();
    BufReader::new(waiting.stderr())
        .read_line(&mut line)
        .unwrap();
    let ticket = line.trim().rsplit(' ').next().unwrap().to_owned();

    let (mut dialled, mut answered) = Program::unread(&mut throughline(&["pipe", &ticket]));
    let bytes: Vec<u8> = (0..2_000_000u32).map(|n| (n / 3) as u8).collect();
    let (mut there, mut back) = (dialled.stdin(), waiting.stdin());
    let sent = bytes.clone();
    let sender = thread::spawn(move || {
        there.write_all(&sent).unwrap();
        there
    });
    back.write_all(b"welcome").unwrap();
    drop(back);
    let mut all = Vec::new();
    // The end comes while the other direction is open.
    answered.read_to_end(&mut all).unwrap();
    assert_eq!(all, b"welcome");
    drop(sender.join().unwrap());
    all.clear();
    heard.read_to_end(&mut all).unwrap();
    assert!(all == bytes);
    for program in [dialled, waiting] {
        assert!(program.finish().1.success());
    }
    drop(relay);
}

#[test]
fn a_pipe_leads_to_a_port_of_the_peer() {
    let to = server(echo).to_string();
    let (_relay, _listener, ticket) = listening(&["--allow", &to]);
    let (mut pipe, mut back) = Program::unread(&mut throughline(&["pipe", &ticket, "--to", &to]));
    let mut stdin = pipe.stdin();
    stdin.write_all(b"SSH-2.0-test\r\n").unwrap();
    let mut line = String::new();
    back.read_line(&mut line).unwrap();
    assert_eq!(line, "SSH-2.0-test\r\n");
    drop(stdin);
    assert!(pipe.finish().1.success());
    let output = throughline(&["pipe", &ticket, "--to", "localhost:9"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(5));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("not_allowed"), "{text}");
}
