use super::{candidates::MAX_NAMES, *};
use crate::{
    core::{
        candidate::{CandidateAddr, CandidateKind},
        nat64::Prefix,
        signalling::IceCandidate,
    },
    native::ice::gather::Origin,
};
use futures::task::noop_waker;
use std::task::{Context, Poll};

/// Two sessions, a network with a delay of 10 ms, and a clock.
pub(super) struct Net {
    pub(super) now: Instant,
    pub(super) ends: [IceSession; 2],
    seen: [Vec<SessionEvent>; 2],
    pub(super) flying: VecDeque<(Instant, usize, SocketAddr, SocketAddr, Vec<u8>)>,
    pub(super) cut: bool,
}

pub(super) fn addr(end: usize) -> SocketAddr {
    ([192, 0, 2, end as u8 + 1], 1000).into()
}

pub(super) fn host(end: usize) -> [LocalCandidate; 1] {
    [LocalCandidate {
        origin: Origin::Interface,
        addr: addr(end),
        base: addr(end),
    }]
}

impl Net {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let end = || IceSession::new(Arc::new(Identity::generate().unwrap()), None, now);
        Self {
            now,
            ends: [end(), end()],
            seen: [Vec::new(), Vec::new()],
            flying: VecDeque::new(),
            cut: false,
        }
    }

    pub(super) fn description(&mut self, end: usize) -> String {
        self.ends[end].set_local_candidates(&host(end));
        match self.ends[end].poll_event(&noop_waker()) {
            Some(SessionEvent::Description(sdp)) => sdp,
            other => panic!("{other:?}"),
        }
    }

    fn negotiate(&mut self, change: impl Fn(String) -> String) {
        self.ends[0].create_offer(false);
        let offer = self.description(0);
        self.ends[1].accept_offer(&offer);
        let answer = self.description(1);
        self.ends[0].accept_answer(&change(answer));
    }

    /// Lets one millisecond pass for both sessions and the network.
    pub(super) fn step(&mut self) {
        self.now += Duration::from_millis(1);
        while self.flying.front().is_some_and(|(at, ..)| *at <= self.now) {
            let (_, to, source, destination, data) = self.flying.pop_front().unwrap();
            self.ends[to].receive(self.now, source, destination, &data);
        }
        for end in 0..2 {
            let session = &mut self.ends[end];
            if session.poll_timeout().is_some_and(|at| at <= self.now) {
                session.handle_timeout(self.now);
            }
            let (flying, at) = (&mut self.flying, self.now + Duration::from_millis(10));
            let cut = self.cut;
            session.poll_transmit(self.now, |out| {
                if !cut {
                    let data = out.data.to_vec();
                    flying.push_back((at, 1 - end, out.source, out.destination, data));
                }
            });
            while let Some(event) = session.poll_event(&noop_waker()) {
                self.seen[end].push(event);
            }
        }
    }

    pub(super) fn run(&mut self, millis: usize) {
        for _ in 0..millis {
            self.step();
        }
    }

    pub(super) fn saw(&self, end: usize, wanted: impl Fn(&SessionEvent) -> bool) -> bool {
        self.seen[end].iter().any(wanted)
    }

    pub(super) fn association(&mut self, end: usize) -> &mut Association {
        self.ends[end].association.as_mut().unwrap()
    }
}

pub(super) fn connected(event: &SessionEvent) -> bool {
    matches!(event, SessionEvent::Connected)
}

#[test]
fn two_sessions_connect_within_five_round_trips() {
    let mut net = Net::new();
    net.negotiate(|answer| answer);
    net.run(100);
    assert!(net.saw(0, connected) && net.saw(1, connected));
    assert!(net.saw(0, |e| matches!(e, SessionEvent::Path(_))));
}

/// The handshake of SCTP is over with the descriptions, unless the answer only repeats the offer's part of it,
/// as libdatachannel's does.
#[test]
fn the_first_chunks_of_sctp_go_with_the_descriptions() {
    let init = |sdp: &str| {
        let line = sdp
            .split_inclusive("\r\n")
            .find(|line| line.starts_with("a=sctp-init:"));
        line.map(str::to_owned)
    };
    for (offers, echoes) in [(true, false), (true, true), (false, false)] {
        let mut net = Net::new();
        net.ends[0].create_offer(false);
        let mut offer = net.description(0);
        let ours = init(&offer).unwrap();
        if !offers || echoes {
            offer = offer.replace(&ours, "");
        }
        net.ends[1].accept_offer(&offer);
        let mut answer = net.description(1);
        assert_eq!(
            init(&answer).is_some(),
            offers && !echoes,
            "it is never echoed"
        );
        if echoes {
            answer += &ours;
        }
        net.ends[0].accept_answer(&answer);
        for end in &net.ends {
            assert_eq!(end.inits().is_some(), offers && !echoes);
        }
        net.run(200);
        assert!(net.saw(0, connected) && net.saw(1, connected));
        net.association(0).open().unwrap();
        let begun = net.now;
        while !net.saw(1, |event| matches!(event, SessionEvent::Channel(_))) {
            net.step();
            assert!(net.now - begun < Duration::from_secs(1));
        }
    }
}

/// libdatachannel refuses a certificate that comes too soon after the answer. Firefox drops what comes
/// before it knows that a pair is nominated.
#[test]
fn dtls_waits_for_a_moment_where_it_would_be_lost() {
    for (client, origin) in [(1, "o=rtc"), (0, "o=mozilla")] {
        let mut net = Net::new();
        net.ends[0].create_offer(client == 0);
        let offer = net.description(0).replace("o=-", origin);
        net.ends[1].accept_offer(&offer);
        let answer = net.description(1).replace("o=-", origin);
        net.ends[0].accept_answer(&answer);
        while net.ends[client].nominated.is_none() {
            net.step();
        }
        let nominated = net.now;
        while !net.flying.iter().any(|(.., data)| data[0] == 22) {
            net.step();
        }
        assert_eq!(net.now - nominated, NOMINATION_PAUSE);
        net.run(200);
        assert!(net.saw(0, connected) && net.saw(1, connected));
    }
}

/// Whoever checks a pair may give an address that is not its own.
#[test]
fn an_address_that_does_not_answer_gets_one_client_hello() {
    let mut net = Net::new();
    net.negotiate(|answer| answer);
    let mut hellos = 0;
    for _ in 0..5_000 {
        hellos += net
            .flying
            .iter()
            .filter(|(_, to, _, _, data)| *to == 0 && data[0] == 22)
            .count();
        // The offerer hears nothing, so it answers nothing.
        net.flying.retain(|(_, to, ..)| *to != 0);
        net.step();
    }
    assert_eq!(hellos, 1);
    assert!(net.ends[1].nominated.is_none());
}

/// The client's own check takes a round trip more. It is the answerer, or whoever sends a sealed offer.
#[test]
fn dtls_begins_when_the_peer_has_checked_a_pair() {
    for (client, sealed) in [(0, true), (1, false)] {
        let mut net = Net::new();
        net.ends[0].create_offer(sealed);
        let offer = net.description(0);
        net.ends[1].accept_offer(&offer);
        let answer = net.description(1);
        net.ends[0].accept_answer(&answer);
        // The client's checks meet a NAT that is closed for now.
        let passes =
            |flying: &(_, usize, _, _, Vec<u8>)| flying.1 == client || flying.4[..2] != [0, 1];
        while net.ends[client].heard.is_none() {
            net.flying.retain(passes);
            net.step();
        }
        let heard = net.now;
        while !net.flying.iter().any(|(.., data)| data[0] == 22) {
            net.step();
        }
        assert_eq!(net.now, heard);
        assert!(net.ends[client].nominated.is_none());
        net.run(200);
        assert!(net.saw(0, connected) && net.saw(1, connected));
    }
}

/// A page checks what it is told first, and its second pair 50 ms later.
#[test]
fn an_answer_to_a_peer_behind_another_nat_leaves_hosts_for_later() {
    let hosts_within = |ours: [u8; 4], theirs: &str| {
        let mut net = Net::new();
        net.ends[0].create_offer(false);
        let offer = net.description(0);
        let line = format!("a=candidate:1 1 udp 9 {theirs} 9 typ srflx raddr 0.0.0.0 rport 0\r\n");
        net.ends[1].accept_offer(&(offer + &line));
        let reflexive = LocalCandidate {
            origin: Origin::Stun,
            addr: (ours, 2000).into(),
            base: addr(1),
        };
        let end = &mut net.ends[1];
        end.set_local_candidates(&[host(1)[0], reflexive]);
        let mut told = std::iter::from_fn(|| end.poll_event(&noop_waker()));
        let Some(SessionEvent::Description(sdp)) = told.next() else {
            panic!("there is no answer");
        };
        assert!(sdp.contains("typ srflx"), "{sdp}");
        let late = told.filter(|event| matches!(event, SessionEvent::Candidate(_)));
        let within = sdp.contains("typ host");
        assert_eq!(late.count(), usize::from(!within));
        within
    };
    assert!(!hosts_within([198, 51, 100, 1], "198.51.100.2"));
    assert!(hosts_within([198, 51, 100, 1], "198.51.100.1"));
}

/// The agent writes both fragments into each check, and its writer panics at long ones.
#[test]
fn a_fragment_that_no_check_has_room_for_is_refused() {
    for (len, allowed) in [(32, true), (200, false)] {
        let mut net = Net::new();
        net.negotiate(|answer| {
            let line = answer.lines().find(|line| line.starts_with("a=ice-ufrag:"));
            answer.replace(line.unwrap(), &format!("a=ice-ufrag:{}", "a".repeat(len)))
        });
        net.run(20);
        assert_eq!(
            net.saw(0, |e| matches!(e, SessionEvent::Failed(_))),
            !allowed
        );
    }
}

/// The first check of one side meets a NAT that the other side has not opened yet.
#[test]
fn a_check_that_was_dropped_is_repeated_when_the_peer_is_heard() {
    let mut net = Net::new();
    net.negotiate(|answer| answer);
    while net.flying.iter().all(|(_, to, ..)| *to == 0) {
        net.step();
    }
    net.flying.retain(|(_, to, ..)| *to == 0);
    net.run(60);
    let path = |e: &SessionEvent| matches!(e, SessionEvent::Path(_));
    assert!(net.saw(0, path), "the check waits for its timer");
}

#[test]
fn another_certificate_is_refused() {
    let mut net = Net::new();
    net.negotiate(|answer| {
        let at = answer.find("sha-256 ").unwrap() + 8;
        let flipped = if &answer[at..at + 1] == "0" { "1" } else { "0" };
        format!("{}{flipped}{}", &answer[..at], &answer[at + 1..])
    });
    net.run(500);
    let refused = |e: &SessionEvent| matches!(e, SessionEvent::Failed(BackendError::Dtls(_)));
    assert!(net.saw(0, refused));
    assert!(!net.saw(0, connected) && net.ends[0].is_closed());
}

#[test]
fn a_dead_path_fails_in_time() {
    let mut net = Net::new();
    net.negotiate(|answer| answer);
    net.run(200);
    net.cut = true;
    net.run(30_000);
    let failed = |e: &SessionEvent| matches!(e, SessionEvent::Failed(BackendError::Ice));
    assert!(net.saw(0, failed) && net.saw(1, failed));
}

#[test]
fn stream_ids_come_back_after_their_reset() {
    let mut net = Net::new();
    net.negotiate(|answer| answer);
    net.run(200);
    for _ in 0..3 {
        // This is more than there are, unless the ids are freed.
        let ids: Vec<_> = (0..200)
            .map(|_| net.association(0).open().unwrap())
            .collect();
        net.run(100);
        for id in ids {
            net.association(0).detach(id);
        }
        net.run(100);
        let opened: Vec<_> = net.seen[1]
            .drain(..)
            .filter_map(|e| match e {
                SessionEvent::Channel(id) => Some(id),
                _ => None,
            })
            .collect();
        assert_eq!(opened.len(), 200);
        for id in opened {
            net.association(1).detach(id);
        }
        net.run(300);
        assert_eq!((net.association(0).len(), net.association(1).len()), (0, 0));
    }
}

/// Chromium opens a stream again as soon as it may, even if the handle of the last channel still
/// lives.
#[test]
fn a_stream_is_used_again_while_an_old_handle_lives() {
    let mut net = Net::new();
    net.negotiate(|answer| answer);
    net.run(200);
    let mut handles = Vec::new();
    // Every stream of this side is used twice.
    for _ in 0..1024 {
        let id = net.association(0).open().unwrap();
        net.run(20);
        net.association(0).detach(id);
        net.run(80);
        handles.extend(net.seen[1].drain(..).filter_map(|e| match e {
            SessionEvent::Channel(id) => Some(id),
            _ => None,
        }));
    }
    assert_eq!(handles.len(), 1024);
    let last = net.association(0).open().unwrap();
    net.run(100);
    for id in handles {
        net.association(1).detach(id);
    }
    net.run(100);
    let waker = noop_waker();
    let mut cx = Context::from_waker(&waker);
    let ready = net.association(0).poll_ready(last, &mut cx);
    assert!(
        matches!(ready, Poll::Ready(Ok(()))),
        "an old handle reset the stream: {ready:?}"
    );
}

/// A sender that a full window stopped goes on as soon as the reader has made room.
#[test]
fn a_reader_that_resumes_opens_the_window() {
    let mut net = Net::new();
    net.negotiate(|answer| answer);
    net.run(200);
    let waker = noop_waker();
    let mut cx = Context::from_waker(&waker);
    let id = net.association(0).open().unwrap();
    let mut sent = 0;
    for _ in 0..1500 {
        while net.association(0).poll_ready(id, &mut cx).is_ready() {
            net.association(0).send(id, &[7; 16_000]).unwrap();
            sent += 16_000;
        }
        net.step();
    }
    assert!(sent >= super::super::association::RECEIVE_WINDOW as usize);
    let theirs = net.seen[1]
        .iter()
        .find_map(|e| match e {
            SessionEvent::Channel(id) => Some(*id),
            _ => None,
        })
        .unwrap();
    // The next window probe is more than a second away.
    let window = super::super::association::RECEIVE_WINDOW as usize;
    let mut read = 0;
    for millis in 0..5_000 {
        while let Poll::Ready(Some(data)) = net.association(1).poll_next(theirs, &mut cx) {
            read += data.len();
        }
        assert!(millis < 200 || read > window + 20_000, "{read} bytes");
        net.step();
    }
    assert_eq!(read, sent);
}

#[test]
fn a_candidate_with_a_name_is_skipped() {
    let mut net = Net::new();
    net.negotiate(|answer| answer);
    net.ends[0].add_remote_candidate(&IceCandidate {
        candidate: "candidate:1 1 udp 1 aa.local 9 typ host".into(),
        ..IceCandidate::default()
    });
    net.run(100);
    assert!(net.saw(0, connected));
}

#[test]
fn a_name_is_looked_up_once_and_its_address_connects() {
    let named = |name: &str| Candidate {
        addr: CandidateAddr::Name(name.to_owned(), addr(1).port()),
        ..format!("candidate:1 1 udp 2113937151 {} 1 typ host", addr(1).ip())
            .parse()
            .unwrap()
    };
    let mut net = Net::new();
    // The answer has no candidates, like that of a page.
    net.negotiate(|answer| {
        answer
            .lines()
            .filter(|line| !line.starts_with("a=candidate"))
            .fold(String::new(), |all, line| format!("{all}{line}\r\n"))
    });
    let name = named("a.local");
    net.ends[0].add_remote(&name);
    assert_eq!(net.ends[0].take_named(), std::slice::from_ref(&name));
    assert_eq!(net.ends[0].take_named(), []);
    net.ends[0].resolved(&name, addr(1).ip());
    net.run(100);
    assert!(net.saw(0, |e| matches!(e, SessionEvent::Path(pair)
        if pair.remote.kind == CandidateKind::Host)));
    // The number of names is limited.
    for nth in 0..2 * MAX_NAMES {
        net.ends[0].add_remote(&named(&format!("{nth}.local")));
    }
    assert_eq!(net.ends[0].take_named().len(), MAX_NAMES - 1);
}

#[test]
fn behind_a_nat64_the_address_that_stands_for_a_candidate_is_checked() {
    let mut net = Net::new();
    let nat64 = Nat64::default();
    nat64.set(Prefix::found_in(&["64:ff9b::192.0.0.170".parse().unwrap()]));
    net.ends[0].keep_to(Policy::new(true, Vec::new()), nat64);
    net.negotiate(|answer| {
        let told = "a=candidate:1 1 udp 1 203.0.113.7 9 typ srflx\r\n\
                    a=candidate:1 1 udp 1 64:ff9b::10.0.0.1 9 typ srflx\r\n\
                    a=candidate:1 1 udp 1 10.0.0.1 9 typ host\r\n";
        answer + told
    });
    let sources = net.ends[0].sources();
    let expects = |text: &str| sources.contains(&text.parse().unwrap());
    assert!(expects("[64:ff9b::203.0.113.7]:9"), "{sources:?}");
    assert!(expects("203.0.113.7:9"), "for a relayed address");
    assert!(
        expects("10.0.0.1:9") && !expects("[64:ff9b::10.0.0.1]:9"),
        "{sources:?}"
    );
}

#[test]
fn nothing_is_sent_to_a_barred_candidate() {
    let barred = [
        "169.254.169.254",
        "224.0.0.1",
        "0.0.0.0",
        "10.0.0.1",
        "127.0.0.1",
    ];
    for (private, allowed) in [(true, 2), (false, 0)] {
        let mut net = Net::new();
        net.ends[0].keep_to(Policy::new(private, Vec::new()), Nat64::default());
        net.ends[0].set_side(Some(Side::Easy));
        // Barred addresses come in the answer, one by one, and as the address of a name.
        net.negotiate(|answer| {
            let lines = barred.map(|ip| format!("a=candidate:1 1 udp 1 {ip} 9 typ srflx\r\n"));
            answer + &lines.concat()
        });
        for ip in barred {
            net.ends[0].add_remote_candidate(&IceCandidate {
                candidate: format!("candidate:1 1 udp 1 {ip} 8 typ host"),
                ..IceCandidate::default()
            });
            let named = "candidate:1 1 udp 1 a.local 7 typ host".parse().unwrap();
            net.ends[0].resolved(&named, ip.parse().unwrap());
        }
        let remote = net.ends[0].remote.as_ref().unwrap();
        assert_eq!(remote.candidates.len(), 1 + allowed);
        let sources = net.ends[0].sources();
        assert_eq!(sources.len(), 1 + 3 * allowed, "{sources:?}");
        for _ in 0..200 {
            net.step();
            let aimed = |to: &SocketAddr| *to != addr(0) && *to != addr(1);
            let sent = net.flying.iter().map(|(_, _, _, to, _)| *to);
            let sent: Vec<_> = sent.filter(aimed).collect();
            let forbidden = |to: &SocketAddr| scope(to.ip()) == Scope::Forbidden;
            assert!(!sent.iter().any(forbidden), "{sent:?}");
            assert!(private || sent.is_empty(), "{sent:?}");
        }
        assert!(net.saw(0, connected));
    }
}
