//! Links have the conditions that were asked for, as datagrams measure.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use throughline_lab::{Host, Lab, Link, NatKind, PEER_ROUND_TRIP, RELAY_ROUND_TRIP, Spec};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    time::timeout,
};

mod common;
use common::echo;

const MS: Duration = Duration::from_millis(1);

/// Returns the round trips of `count` questions to an echo server, sorted. Lost ones are left out.
fn round_trips(from: &Host, server: SocketAddr, count: usize) -> Vec<Duration> {
    from.run(async move || {
        let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
        let mut times = Vec::new();
        for _ in 0..count {
            let start = Instant::now();
            if timeout(300 * MS, common::seen_by(&socket, server))
                .await
                .is_ok_and(|seen| seen.is_some())
            {
                times.push(start.elapsed());
            }
        }
        times.sort();
        times
    })
    .unwrap()
}

fn pair(link: Link) -> Lab {
    let mut spec = Spec::pair(NatKind::None, NatKind::None);
    spec.sites[0].link = Some(link);
    Lab::up(spec).unwrap()
}

/// Sends 1,000 datagrams to the relay. Returns how many arrive, and how many of these arrive after
/// one that was sent later.
fn shower(lab: &Lab) -> (usize, usize) {
    let relay = lab.host("relay").unwrap();
    let address = SocketAddr::new(relay.ip().unwrap(), 9_000);
    let (ready, started) = std::sync::mpsc::channel();
    let receiver = relay
        .spawn(async move || {
            let socket = UdpSocket::bind(address).await.unwrap();
            ready.send(()).unwrap();
            let (mut count, mut late, mut highest) = (0, 0, 0);
            let mut buffer = [0; 4];
            while timeout(500 * MS, socket.recv(&mut buffer))
                .await
                .is_ok_and(|r| r.is_ok())
            {
                let number = u32::from_be_bytes(buffer);
                count += 1;
                late += usize::from(number < highest);
                highest = highest.max(number);
            }
            (count, late)
        })
        .unwrap();
    started.recv().unwrap();
    lab.host("a")
        .unwrap()
        .run(async move || {
            let socket = UdpSocket::bind("0.0.0.0:0").await.unwrap();
            for number in 0..1_000u32 {
                socket
                    .send_to(&number.to_be_bytes(), address)
                    .await
                    .unwrap();
                if number % 20 == 0 {
                    // The pause keeps the traffic below the rate of the link.
                    tokio::time::sleep(MS).await;
                }
            }
        })
        .unwrap();
    receiver.join().unwrap().unwrap()
}

#[test]
fn figure_delays_hold_between_peers_and_to_the_relay() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let lab = Lab::up(Spec::pair(NatKind::None, NatKind::None).figure_delays()).unwrap();
    let (relay, peer) = (
        echo(&lab.host("relay").unwrap()),
        echo(&lab.host("b").unwrap()),
    );
    let a = lab.host("a").unwrap();
    for (server, asked) in [(relay, RELAY_ROUND_TRIP), (peer, PEER_ROUND_TRIP)] {
        let times = round_trips(&a, server, 20);
        // The fastest shows the link. The machine adds time to the others.
        let (fastest, median, worst) = (times[0], times[10], times[19]);
        println!("asked {asked:?}: first to last {fastest:?} .. {worst:?}, median {median:?}");
        assert_eq!(times.len(), 20);
        assert!(fastest >= asked, "faster than the link: {fastest:?}");
        assert!(fastest < asked + 3 * MS, "{fastest:?} for {asked:?}");
        assert!(median < asked + 10 * MS, "{median:?} for {asked:?}");
    }
}

#[test]
fn conditions_change_while_it_runs() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let lab = pair(Link::default());
    let server = echo(&lab.host("relay").unwrap());
    let a = lab.host("a").unwrap();
    assert!(round_trips(&a, server, 5)[2] < 5 * MS);
    lab.set_link("a", Link::delay(30 * MS)).unwrap();
    let slow = round_trips(&a, server, 5)[2];
    assert!((60 * MS..65 * MS).contains(&slow), "{slow:?}");
    lab.cut("a").unwrap();
    assert!(round_trips(&a, server, 2).is_empty());
    lab.mend("a").unwrap();
    assert_eq!(round_trips(&a, server, 5).len(), 5);
    assert!(lab.cut("b").is_err(), "a bare cable cannot be cut");
}

#[test]
fn jitter_spreads_and_keeps_order() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let lab = pair(Link {
        jitter: 10 * MS,
        ..Link::delay(20 * MS)
    });
    let times = round_trips(
        &lab.host("a").unwrap(),
        echo(&lab.host("relay").unwrap()),
        40,
    );
    assert!(
        times[0] >= 20 * MS && times[39] - times[0] > 10 * MS,
        "{:?} to {:?}",
        times[0],
        times[39]
    );
    assert_eq!(shower(&lab), (1_000, 0));
}

#[test]
fn loss_duplicates_and_reordering_have_the_configured_share() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let lab = pair(Link {
        loss: 0.1,
        ..Link::default()
    });
    let (arrived, _) = shower(&lab);
    assert!((860..940).contains(&arrived), "{arrived}");
    lab.set_link(
        "a",
        Link {
            duplicate: 0.1,
            ..Link::default()
        },
    )
    .unwrap();
    let (arrived, _) = shower(&lab);
    assert!((1_060..1_140).contains(&arrived), "{arrived}");
    lab.set_link(
        "a",
        Link {
            reorder: 0.05,
            ..Link::delay(10 * MS)
        },
    )
    .unwrap();
    let (arrived, late) = shower(&lab);
    assert_eq!(arrived, 1_000);
    assert!(late > 500, "too few were overtaken: {late}");
}

#[test]
fn a_rate_is_kept() {
    let Some(()) = common::lab_or_skip() else {
        return;
    };
    let lab = pair(Link {
        rate_kbit: 20_000,
        ..Link::delay(5 * MS)
    });
    let relay = lab.host("relay").unwrap();
    let address = SocketAddr::new(relay.ip().unwrap(), 9_001);
    const BYTES: usize = 2_500_000;
    let (ready, started) = std::sync::mpsc::channel();
    let receiver = relay
        .spawn(async move || {
            let listener = TcpListener::bind(address).await.unwrap();
            ready.send(()).unwrap();
            let (mut stream, _) = listener.accept().await.unwrap();
            let start = Instant::now();
            let mut buffer = vec![0; 65_536];
            let mut total = 0;
            while let Ok(n @ 1..) = stream.read(&mut buffer).await {
                total += n;
            }
            (total, start.elapsed())
        })
        .unwrap();
    started.recv().unwrap();
    lab.host("a")
        .unwrap()
        .run(async move || {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&vec![0; BYTES]).await.unwrap();
            stream.shutdown().await.unwrap();
        })
        .unwrap();
    let (total, time) = receiver.join().unwrap().unwrap();
    let megabits = total as f64 * 8.0 / 1e6 / time.as_secs_f64();
    println!("asked 20 Mbit/s, got {megabits:.1}");
    assert_eq!(total, BYTES);
    assert!((14.0..20.5).contains(&megabits), "{megabits}");
}
