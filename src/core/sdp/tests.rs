use super::*;
use proptest::prelude::*;

pub(crate) const CHROMIUM_OFFER: &str = "v=0\r\no=- 4215775240449105457 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\na=extmap-allow-mixed\r\na=msid-semantic: WMS\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\nc=IN IP4 0.0.0.0\r\na=candidate:1 1 udp 2113937151 0c8a7c2e-1b1d-4e62-9a1e-2f5c5e6ad0b1.local 51000 typ host generation 0\r\na=ice-ufrag:EsAw\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\na=ice-options:trickle\r\na=fingerprint:sha-256 D2:FA:0E:C3:22:59:5E:14:95:69:92:3D:13:B4:84:24:2C:C2:A2:C0:3E:FD:34:8E:5E:EA:6F:AF:52:CE:E6:0F\r\na=setup:actpass\r\na=mid:0\r\na=sctp-port:5000\r\na=max-message-size:262144\r\n";

#[test]
fn reads_what_chromium_writes() {
    let description = Description::parse(CHROMIUM_OFFER).unwrap();
    assert_eq!(description.ufrag, "EsAw");
    assert_eq!(description.setup, Setup::ActPass);
    assert_eq!(description.mid, "0");
    assert_eq!(description.max_message_size, 262_144);
    assert_eq!(description.fingerprint.digest[..2], [0xd2, 0xfa]);
    assert_eq!(description.candidates.len(), 1);
    assert_eq!(description.candidates[0].socket_addr(), None);
}

#[test]
fn the_origin_names_some_implementations() {
    for (origin, libdatachannel, firefox) in [
        ("-", false, false),
        ("rtc", true, false),
        ("mozilla...THIS_IS_SDPARTA-99.0", false, true),
    ] {
        let sdp = CHROMIUM_OFFER.replace("o=- ", &format!("o={origin} "));
        let read = Description::parse(&sdp).unwrap();
        assert_eq!(
            (read.libdatachannel, read.firefox),
            (libdatachannel, firefox),
            "{origin}"
        );
    }
}

#[test]
fn a_session_level_fingerprint_counts() {
    // Firefox writes the fingerprint above the section.
    let line = CHROMIUM_OFFER
        .lines()
        .find(|line| line.starts_with("a=fingerprint"))
        .unwrap();
    let moved = CHROMIUM_OFFER
        .replace(&format!("{line}\r\n"), "")
        .replace("t=0 0\r\n", &format!("t=0 0\r\n{line}\r\n"));
    assert_eq!(
        Description::parse(&moved).unwrap(),
        Description::parse(CHROMIUM_OFFER).unwrap()
    );
}

#[test]
fn errors_name_the_field() {
    let without = |start: &str| {
        let sdp: String = CHROMIUM_OFFER
            .split_inclusive("\r\n")
            .filter(|line| !line.starts_with(start))
            .collect();
        Description::parse(&sdp).unwrap_err()
    };
    assert_eq!(without("v="), SdpError::Missing("v"));
    assert_eq!(without("m="), SdpError::Missing("m"));
    for field in ["ice-ufrag", "ice-pwd", "fingerprint", "setup"] {
        assert_eq!(without(&format!("a={field}")), SdpError::Missing(field));
    }
    let replaced =
        |from: &str, to: &str| Description::parse(&CHROMIUM_OFFER.replace(from, to)).unwrap_err();
    assert_eq!(replaced("EsAw", "x"), SdpError::Invalid("ice-ufrag"));
    assert_eq!(replaced("actpass", "maybe"), SdpError::Invalid("setup"));
    assert_eq!(replaced("D2:FA", "D2FA"), SdpError::Invalid("fingerprint"));
    assert_eq!(replaced("m=application", "m=audio"), SdpError::Invalid("m"));
    assert_eq!(
        replaced("262144", "many"),
        SdpError::Invalid("max-message-size")
    );
}

fn with_lines(lines: &str) -> Result<Description, SdpError> {
    Description::parse(&format!("{CHROMIUM_OFFER}{lines}"))
}

#[test]
fn descriptions_are_bounded() {
    let filled = |length: usize| {
        let line = "a=x-filler:";
        let left = length - CHROMIUM_OFFER.len() - line.len();
        with_lines(&format!("{line}{}", "x".repeat(left)))
    };
    assert!(filled(16_384).is_ok());
    assert_eq!(filled(16_385), Err(SdpError::TooLong));
    let candidate = "a=candidate:1 1 udp 1 192.0.2.1 9 typ host\r\n";
    let many = with_lines(&candidate.repeat(MAX_CANDIDATES + 5)).unwrap();
    assert_eq!(many.candidates.len(), MAX_CANDIDATES);
}

#[test]
fn attributes_that_may_be_absent() {
    let plain = Description::parse(CHROMIUM_OFFER).unwrap();
    assert!(!plain.ice_lite && !plain.quic);
    assert!(with_lines("a=ice-lite\r\n").unwrap().ice_lite);
    let line = "a=max-message-size:262144\r\n";
    let silent = Description::parse(&CHROMIUM_OFFER.replace(line, "")).unwrap();
    assert_eq!(silent.max_message_size, 65_536);
    let unnamed = Description::parse(&CHROMIUM_OFFER.replace("a=mid:0\r\n", "")).unwrap();
    assert_eq!(unnamed.mid, "0");
}

/// libdatachannel copies the attributes that it does not know from an offer into its answer.
#[test]
fn an_echo_of_our_attributes_says_nothing() {
    let ours = Description {
        ufrag: "ours".into(),
        quic: true,
        side: Some(Side::Hard),
        no_turn: true,
        sctp_init: Some("AQAAFA==".into()),
        ..Description::parse(CHROMIUM_OFFER).unwrap()
    };
    let offer = ours.to_sdp(1);
    assert_eq!(Description::parse(&offer), Ok(ours));
    let echoed: String = offer
        .split_inclusive("\r\n")
        .filter(|line| line.starts_with("a=x-"))
        .collect();
    assert_eq!(echoed.lines().count(), 3);
    let answer = with_lines(&echoed).unwrap();
    assert!(!answer.quic && answer.side.is_none() && !answer.no_turn);
    let late = Description {
        no_turn: false,
        late_turn: true,
        ..Description::parse(&offer).unwrap()
    };
    assert_eq!(Description::parse(&late.to_sdp(1)), Ok(late));
    // The answerer's own attributes count, wherever the echo stands.
    let own = "a=x-throughline-quic:EsAw\r\na=x-throughline-nat:EsAw easy\r\n";
    let answer = with_lines(&format!("{echoed}{own}")).unwrap();
    assert!(answer.quic && answer.side == Some(Side::Easy));
}

#[test]
fn the_first_chunk_of_sctp_is_read_unless_it_is_too_long() {
    let read = |length| {
        let init = "A".repeat(length);
        let read = with_lines(&format!("a=sctp-init:{init}\r\n")).unwrap();
        read.sctp_init.map(|read| read == init)
    };
    assert_eq!(read(MAX_SCTP_INIT), Some(true));
    assert_eq!(read(MAX_SCTP_INIT + 1), None);
}

#[test]
fn roles_and_names_are_read() {
    let replaced = |from: &str, to: &str| Description::parse(&CHROMIUM_OFFER.replace(from, to));
    for (text, setup) in [("active", Setup::Active), ("passive", Setup::Passive)] {
        assert_eq!(replaced("actpass", text).unwrap().setup, setup);
    }
    let named = |mid: &str| replaced("a=mid:0", &format!("a=mid:{mid}")).map(|read| read.mid);
    let longest = "d".repeat(16);
    assert_eq!(named(&longest), Ok(longest));
    for mid in ["d".repeat(17), "a b".to_owned(), "a\u{7f}".to_owned()] {
        assert_eq!(named(&mid), Err(SdpError::Invalid("mid")), "{mid:?}");
    }
}

#[test]
fn of_several_fingerprints_the_one_that_all_compute_counts() {
    let line = CHROMIUM_OFFER
        .lines()
        .find(|line| line.starts_with("a=fingerprint"))
        .unwrap();
    let of = |hash: &str, length| {
        let digest = vec![7; length];
        let hash = hash.to_owned();
        Fingerprint { hash, digest }
    };
    for (hash, length) in [
        ("sha-1", 20),
        ("sha-224", 28),
        ("sha-256", 32),
        ("sha-384", 48),
        ("sha-512", 64),
    ] {
        let own = format!("a=fingerprint:{}", of(hash, length));
        let read = Description::parse(&CHROMIUM_OFFER.replace(line, &own)).unwrap();
        assert_eq!(read.fingerprint, of(hash, length));
        let short = format!("a=fingerprint:{}", of(hash, length - 1));
        let read = Description::parse(&CHROMIUM_OFFER.replace(line, &short));
        assert_eq!(read, Err(SdpError::Invalid("fingerprint")));
        // The order of the two and the letter case do not matter.
        let other = line.replace("sha-256", "SHA-256");
        for both in [format!("{own}\r\n{other}"), format!("{other}\r\n{own}")] {
            let read = Description::parse(&CHROMIUM_OFFER.replace(line, &both)).unwrap();
            let last_of_two = hash == "sha-256" && both.ends_with(&own);
            assert_eq!(read.fingerprint.hash, "sha-256");
            assert_eq!(read.fingerprint == of("sha-256", 32), last_of_two, "{both}");
        }
    }
}

#[test]
fn a_session_id_is_positive() {
    let written = Description::parse(CHROMIUM_OFFER).unwrap().to_sdp(u64::MAX);
    assert!(
        written.contains(&format!("o=- {} 2 ", i64::MAX)),
        "{written}"
    );
}

proptest! {
    #[test]
    fn never_panics(text in "(v=0\r\n)?([am]=[ -~]{0,60}\r?\n){0,12}") {
        let _ = Description::parse(&text);
    }

    #[test]
    fn a_written_description_is_read_back(
        ufrag in "[a-zA-Z0-9+/]{4,32}",
        pwd in "[a-zA-Z0-9+/]{22,64}",
        digest in proptest::collection::vec(any::<u8>(), 32),
        session in any::<u64>(),
        quic in any::<bool>(),
        side in prop::sample::select(&[None, Some(Side::Easy), Some(Side::Unsure), Some(Side::Hard)]),
    ) {
        let description = Description {
            ufrag,
            pwd,
            ..Description::parse(CHROMIUM_OFFER).unwrap()
        };
        let description = Description {
            fingerprint: Fingerprint { hash: "sha-256".into(), digest },
            quic,
            side,
            ..description
        };
        prop_assert_eq!(Description::parse(&description.to_sdp(session)).unwrap(), description);
    }
}
