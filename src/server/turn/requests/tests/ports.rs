//! Ports that are even, come in pairs, and are kept for the next request.

use turn_client_proto::types::attribute::{EvenPort, ReservationToken};

use super::*;

fn even(next: bool) -> impl Fn(&mut MessageWriteVec) {
    move |message| {
        udp(message);
        message.add_attribute(&EvenPort::new(next)).unwrap();
    }
}

fn kept(token: u64) -> impl Fn(&mut MessageWriteVec) {
    move |message| {
        udp(message);
        message
            .add_attribute(&ReservationToken::new(token))
            .unwrap();
    }
}

/// Returns the port and the token of an allocation.
fn allocated(answer: &[u8]) -> (u16, Option<u64>) {
    let answer = Message::from_bytes(answer).unwrap();
    let transaction = answer.transaction_id();
    let relayed = answer.attribute::<XorRelayedAddress>().unwrap();
    let token = answer.attribute::<ReservationToken>().ok();
    (
        relayed.addr(transaction).port(),
        token.map(|token| token.token()),
    )
}

#[tokio::test]
async fn a_client_gets_an_even_port_and_the_next_one() {
    let mut net = Net::new(|_| {});
    let request = net.signed(ALLOCATE, even(true));
    let answer = net.send(&request).unwrap();
    let (port, token) = allocated(&answer);
    let token = token.expect("the next port is kept");
    assert!(port.is_multiple_of(2));
    assert_eq!(allocated(&net.send(&request).unwrap()), (port, Some(token)));
    assert_eq!(net.requests.places.taken(), 2);

    net.client = client(2);
    let bob = net.fresh_user("bob");
    let ann = std::mem::replace(&mut net.user, bob);
    assert_eq!(
        net.ask(ALLOCATE, kept(token)),
        508,
        "the port is another user's"
    );
    net.user = ann;
    assert_eq!(net.ask(ALLOCATE, kept(token ^ 1)), 508);
    let request = net.signed(ALLOCATE, kept(token));
    assert_eq!(allocated(&net.send(&request).unwrap()), (port + 1, None));
    net.client = client(3);
    assert_eq!(net.ask(ALLOCATE, kept(token)), 508, "the port is taken");
    let request = net.signed(ALLOCATE, even(false));
    let (port, token) = allocated(&net.send(&request).unwrap());
    assert_eq!((port % 2, token), (0, None));
    assert_eq!(net.requests.places.taken(), 3);
}

#[tokio::test]
async fn a_port_is_kept_within_the_limits_and_for_a_time() {
    let mut net = Net::new(|config| {
        config.allocations_per_user = 3.try_into().unwrap();
    });
    for (port, expected) in [(1, 0), (2, 486)] {
        net.client = client(port);
        assert_eq!(net.ask(ALLOCATE, even(true)), expected);
    }
    assert_eq!(net.ask(ALLOCATE, udp), 0);
    assert_eq!(net.requests.places.taken(), 3);
    net.requests
        .expire(Instant::now() + Duration::from_secs(29));
    assert_eq!(net.requests.places.taken(), 3);
    net.requests
        .expire(Instant::now() + Duration::from_secs(31));
    assert_eq!(net.requests.places.taken(), 2);
}

#[tokio::test]
async fn a_pair_of_ports_does_not_go_with_families() {
    let mut net = Net::on(&["127.0.0.1", "::1"], |_| {});
    let v6 = AddressFamily::IPV6;
    let family = |m: &mut MessageWriteVec| {
        m.add_attribute(&RequestedAddressFamily::new(v6)).unwrap();
    };
    let both = |m: &mut MessageWriteVec| {
        m.add_attribute(&AdditionalAddressFamily::new(v6)).unwrap();
    };
    let mut then = |first: &dyn Fn(&mut MessageWriteVec), then: &dyn Fn(&mut MessageWriteVec)| {
        let request = net.signed(ALLOCATE, |m| {
            first(m);
            then(m);
        });
        code(&net.send(&request).unwrap())
    };
    assert_eq!(then(&kept(1), &family), 400);
    assert_eq!(then(&kept(1), &both), 400);
    assert_eq!(then(&even(true), &both), 400);
    assert_eq!(
        then(&kept(1), &|m| m
            .add_attribute(&EvenPort::new(false))
            .unwrap()),
        400
    );
    assert_eq!(then(&even(true), &family), 0);
    assert_eq!(net.requests.places.taken(), 2);
}
