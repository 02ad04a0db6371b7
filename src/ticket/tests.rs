use proptest::prelude::*;

use super::*;
use crate::Identity;

fn sample() -> Ticket {
    let relay = Identity::generate().peer_id();
    Ticket::from_parts(
        Identity::generate().peer_id(),
        [format!("/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{relay}")],
        ["/ip4/192.0.2.7/udp/9/quic-v1".to_owned()],
    )
    .unwrap()
    .with_mapped(["203.0.113.5:7", "[2001:db8::1]:8"].map(|a| a.parse().unwrap()))
}

#[test]
fn prints_url_safe_and_parses_back() {
    let mut resumable = sample();
    resumable.resumable = true;
    let early = [(true, None), (false, Some([7; 8])), (true, Some([8; 8]))];
    let early = early.map(|(forwarded, run)| resumable.clone().with_early(forwarded, run));
    for ticket in [sample(), resumable].into_iter().chain(early) {
        let text = ticket.to_string();
        assert!(
            text.chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        );
        assert_eq!(text.parse::<Ticket>().unwrap(), ticket);
    }
}

#[test]
fn what_was_copied_along_is_ignored() {
    let ticket = sample();
    let text = ticket.to_string();
    let (head, tail) = text.split_at(70);
    for copied in [
        format!("  {text}\n"),
        format!("\"{text}\""),
        format!("‘{text}’,"),
        format!("<{text}>."),
        format!("{head}\n{tail}"),
        format!("> {head}\r\n> {tail}\r\n"),
        format!("https://a.example/tl1/?x=tl1#{text}"),
        format!("http://127.0.0.1:4001/#ticket={text}&y=1"),
        format!("The ticket is: {text}"),
    ] {
        assert_eq!(copied.parse::<Ticket>().as_ref(), Ok(&ticket), "{copied}");
    }
    assert!(refusal(&text[..60]).contains("copy the whole"));
}

#[test]
fn what_a_dialler_may_send_early_is_told() {
    let plain = sample();
    assert!(!plain.is_resumable() && !plain.is_forwarded());
    assert_eq!(plain.incarnation(), None);
    let early = Ticket::checked(plain.peer, true, Vec::new(), Vec::new()).unwrap();
    let early = early.with_early(true, Some([7; 8]));
    assert!(early.is_resumable() && early.is_forwarded());
    assert_eq!(early.incarnation(), Some([7; 8]));
}

#[test]
fn an_error_names_the_part_of_the_ticket() {
    let cases = [
        ("xyz", "tl1"),
        ("tl1!!", "base64url"),
        ("htl1AA", "tl1"),
        ("tl1AAAA", "peer id"),
    ];
    for (text, part) in cases {
        let error = text.parse::<Ticket>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidTicket);
        assert!(error.message().contains(part), "{error}");
    }
    let peer = Identity::generate().peer_id();
    let error = Ticket::from_parts(peer, ["/ip4/192.0.2.1/tcp/1"], []).unwrap_err();
    assert!(error.message().contains("relay 0"), "{error}");
}

#[test]
fn an_address_with_chosen_bytes_is_refused_by_name() {
    let peer = Identity::generate().peer_id();
    for address in [
        "/ip4/192.0.2.1/tcp/1/x-parity-ws/%2Fa%0D%0AHost:%20b",
        "/dns4/a b/tcp/1/ws",
        "/ip4/192.0.2.1/tcp/1/ip4/127.0.0.1/tcp/6379/ws",
    ] {
        let error = Ticket::from_parts(peer, [], [address]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidTicket);
        assert!(error.message().contains(address), "{error}");
        let mut aimed = sample();
        aimed.addresses.push(address.parse().unwrap());
        let error = aimed.to_string().parse::<Ticket>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidTicket);
        assert!(error.message().contains(address), "{error}");
    }
}

#[test]
fn the_first_character_that_no_ticket_has_is_named() {
    assert_eq!(
        refusal("tl1AZaz09-_!A"),
        "the ticket is not base64url at character 8"
    );
}

fn refusal(text: &str) -> String {
    let error = text.parse::<Ticket>().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidTicket);
    error.message().to_owned()
}

#[test]
fn text_is_looked_at_up_to_its_bound() {
    let long = |length| format!("{PREFIX}{}", "!".repeat(length - PREFIX.len()));
    assert!(refusal(&long(MAX_TEXT)).contains("base64url"));
    assert!(refusal(&long(MAX_TEXT + 1)).contains("longer than 8192"));
}

#[test]
fn lists_are_bounded() {
    let peer = Identity::generate().peer_id();
    let relays = |count| vec![format!("/ip4/192.0.2.1/tcp/1/p2p/{peer}"); count];
    let addresses = |count| vec!["/ip4/192.0.2.1/tcp/1".to_owned(); count];
    for (of_relays, others) in [(MAX_ADDRESSES, 0), (0, MAX_ADDRESSES), (16, 16)] {
        let most = Ticket::from_parts(peer, relays(of_relays), addresses(others)).unwrap();
        assert_eq!(most.to_string().parse::<Ticket>().unwrap(), most);
        let more = Ticket::from_parts(peer, relays(of_relays), addresses(others + 1));
        assert!(more.unwrap_err().message().contains("more than 32"));
    }
    let mut ticket = sample();
    ticket.addresses = vec![ticket.addresses[0].clone(); MAX_ADDRESSES + 1];
    assert!(refusal(&ticket.to_string()).contains("address: there are more than 32"));
    let mapped = "192.0.2.1:9".parse().unwrap();
    let ticket = sample().with_mapped([mapped; MAX_MAPPED + 1]);
    assert_eq!(ticket.mapped_addrs(), [mapped; MAX_MAPPED]);
    assert_eq!(ticket.to_string().parse::<Ticket>().unwrap(), ticket);
    let mut ticket = ticket;
    ticket.mapped.push(mapped);
    assert!(refusal(&ticket.to_string()).contains("mapped address: there are more than 4"));
}

#[test]
fn addresses_are_bounded() {
    let long = |length: usize| {
        let path = |length| Protocol::Ws(format!("/{}", "a".repeat(length)).into());
        let start: Multiaddr = "/ip4/192.0.2.1/tcp/1".parse().unwrap();
        let rest = start.clone().with(path(400)).len() - 400;
        start.with(path(length - rest))
    };
    assert_eq!(long(MAX_ADDRESS_BYTES).len(), MAX_ADDRESS_BYTES);
    check_address(&long(MAX_ADDRESS_BYTES)).unwrap();
    let error = check_address(&long(MAX_ADDRESS_BYTES + 1)).unwrap_err();
    assert!(error.contains("over 512 bytes"), "{error}");
}

#[test]
fn flags_of_later_versions_are_refused() {
    for bit in 0..8 {
        let flags: u8 = 1 << bit;
        let known = flags & (RESUMABLE | EARLY | FORWARDED) != 0;
        let why = refusal(&format!("{PREFIX}{}", Base64Url.encode([flags])));
        assert_eq!(why.contains("flag"), !known, "{flags}: {why}");
    }
}

#[test]
fn relays_and_addresses_are_kept_apart() {
    let ticket = sample();
    let address: Multiaddr = "/ip4/192.0.2.7/udp/9/quic-v1".parse().unwrap();
    assert_eq!(ticket.direct_addrs(), std::slice::from_ref(&address));
    assert_eq!(ticket.addresses(), [address.to_string()]);
    assert_eq!(ticket.relays(), [ticket.relay_addrs()[0].to_string()]);
    assert_eq!(ticket.mapped_addrs().len(), 2);
    let relayed = ticket.clone().without_addresses();
    assert_eq!(relayed.relay_addrs(), ticket.relay_addrs());
    assert!(relayed.direct_addrs().is_empty() && relayed.mapped_addrs().is_empty());
}

#[test]
fn a_relay_is_reached_without_another() {
    let peer = Identity::generate().peer_id();
    let relay = format!("/ip4/192.0.2.1/tcp/1/p2p/{peer}/p2p-circuit/p2p/{peer}");
    let error = Ticket::from_parts(peer, [relay], []).unwrap_err();
    assert!(error.message().contains("through another"), "{error}");
}

#[test]
fn a_log_shows_how_much_and_not_where() {
    let shown = format!("{:?}", sample());
    assert!(
        shown.contains("relays: 1, addresses: 1, mapped: 2"),
        "{shown}"
    );
    assert!(!shown.contains("192.0.2"), "{shown}");
}

#[test]
fn json_holds_the_text() {
    let ticket = sample();
    let json = serde_json::to_value(&ticket).unwrap();
    assert_eq!(json, ticket.to_string());
    assert_eq!(serde_json::from_value::<Ticket>(json).unwrap(), ticket);
    assert!(serde_json::from_value::<Ticket>("tl1".into()).is_err());
}

#[test]
fn bytes_behind_the_end_are_refused() {
    let text = sample().to_string();
    let mut bytes = Base64Url.decode(&text[PREFIX.len()..]).unwrap();
    bytes.push(0);
    let longer = format!("{PREFIX}{}", Base64Url.encode(&bytes));
    assert!(refusal(&longer).contains("left over"));
}

proptest! {
    #[test]
    fn never_panics_on_text(text in "\\PC{0,300}") {
        let _ = text.parse::<Ticket>();
    }

    #[test]
    fn never_panics_on_bytes(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = format!("{PREFIX}{}", Base64Url.encode(&bytes)).parse::<Ticket>();
    }

    #[test]
    fn a_cut_ticket_is_refused(cut in 0usize..200) {
        let text = sample().to_string();
        prop_assume!(cut < text.len());
        prop_assert!(text[..cut].parse::<Ticket>().is_err());
    }
}
