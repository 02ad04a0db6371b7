use std::{fs, path::Path};

use super::*;

/// How many mutated copies of each file are tried, which is enough to notice that a target
/// breaks. `FUZZ_COPIES` asks for more.
const COPIES: u64 = 200;

fn copies() -> u64 {
    let asked = std::env::var("FUZZ_COPIES").ok();
    asked
        .and_then(|copies| copies.parse().ok())
        .unwrap_or(COPIES)
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// xorshift64, which makes the same copies on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % end.max(1) as u64) as usize
    }

    fn mutate(&mut self, data: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let (at, other) = (self.below(data.len()), self.below(data.len()));
            match self.below(5) {
                _ if data.is_empty() => data.push(self.below(256) as u8),
                0 => data[at] ^= 1 << self.below(8),
                1 => data[at] = [0, 1, 0x7f, 0x80, 0xff][self.below(5)],
                2 => data.truncate(at),
                3 => data.insert(at, self.below(256) as u8),
                _ => data.extend_from_within(at.min(other)..at.max(other)),
            }
        }
    }
}

#[test]
fn every_target_survives_its_corpus_and_mutated_copies() {
    for (name, target) in TARGETS {
        let files = corpus(name);
        let read = files.iter().filter(|file| target(file)).count();
        assert!(
            read * 2 > files.len(),
            "{name}: {read} of {} read",
            files.len()
        );
        for (index, file) in files.iter().enumerate() {
            let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ index as u64);
            for _ in 0..copies() {
                let mut data = file.clone();
                random.mutate(&mut data);
                target(&data);
            }
        }
    }
}

#[test]
fn each_target_has_a_fuzzer() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/fuzz_targets");
    for (name, _) in TARGETS {
        let text = fs::read_to_string(folder.join(format!("{name}.rs"))).unwrap();
        assert!(text.contains(&format!("fuzzing::{name}(")), "{name}");
    }
}

/// RFC 5769 sections 2.1 to 2.4 have these messages, and the corpus contains them.
#[test]
fn the_sample_messages_of_rfc_5769_are_read_correctly() {
    let file = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fuzz/corpus/stun")
            .join(name);
        fs::read(path).unwrap()
    };
    let mapped = |data: &[u8]| StunMessage::parse(data).unwrap().mapped_address().unwrap();
    let (v4, v6) = (file("rfc5769-ipv4-response"), file("rfc5769-ipv6-response"));
    assert_eq!(mapped(&v4).to_string(), "192.0.2.1:32853");
    assert_eq!(
        mapped(&v6).to_string(),
        "[2001:db8:1234:5678:11:2233:4455:6677]:32853"
    );

    let request = file("rfc5769-request");
    let message = StunMessage::parse(&request).unwrap();
    assert_eq!(message.split_username(), Some(("evtj", "h6vY")));
    assert_eq!(message.prio(), Some(0x6e00_01ff));
    // PRIORITY is for peers. A server has to refuse it (RFC 8489 section 6.3.1).
    assert!(matches!(
        stun::answer(&request, SOURCE, 0, &layout()),
        stun::Outcome::Refuse(_)
    ));
    // FINGERPRINT covers the bytes before it. Its own head identifies it.
    for at in (0..request.len() - 8).chain(request.len() - 4..request.len()) {
        let mut damaged = request.clone();
        damaged[at] ^= 1;
        assert_eq!(
            stun::answer(&damaged, SOURCE, 0, &layout()),
            stun::Outcome::Ignore,
            "byte {at}"
        );
    }
}

#[test]
fn bytes_move_through_a_stream_in_memory() {
    transfer(&vec![1; 1 << 20]);
}
