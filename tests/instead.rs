//! Compares the files that the npm build compiles in the place of crates with these crates.

use proptest::prelude::*;

#[allow(clippy::pedantic, reason = "it has the interface of the crate")]
#[path = "../js/crate/multibase.rs"]
mod ours;

#[allow(
    clippy::pedantic,
    clippy::new_without_default,
    reason = "it has the interface of the crate"
)]
#[path = "../js/crate/dtoa.rs"]
mod our_dtoa;

/// The bases that occur in addresses, by their codes.
const CODES: [char; 7] = ['f', 'b', 'z', 'm', 'M', 'u', 'U'];

proptest! {
    /// A number with more decimals is rounded.
    #[test]
    fn numbers_with_six_decimals_are_written_the_same(micros in -1_000_000_000_000_i64..1_000_000_000_000) {
        let number = micros as f64 / 1e6;
        let (mut ours, mut theirs) = (our_dtoa::Buffer::new(), dtoa::Buffer::new());
        let (ours, theirs) = (ours.format(number), theirs.format(number));
        // Its text is not the shortest one for one number in a thousand, and that of the standard library is.
        prop_assert_eq!(ours.parse::<f64>().unwrap(), theirs.parse::<f64>().unwrap());
        let shortest = number.to_string();
        let point = if shortest.contains('.') { "" } else { ".0" };
        prop_assert_eq!(ours, shortest + point);
    }

    #[test]
    fn bytes_are_written_the_same(bytes: Vec<u8>) {
        for code in CODES {
            let (ours, theirs) = (ours::Base::from_code(code).unwrap(), multibase::Base::from_code(code).unwrap());
            let text = ours::encode(ours, &bytes);
            prop_assert_eq!(&text, &multibase::encode(theirs, &bytes));
            prop_assert_eq!(ours::decode(&text), Ok((ours, bytes.clone())));
        }
    }

    #[test]
    fn text_is_read_the_same(text in "[a-zA-Z0-9+/_=-]{0,40}|[a-f0-9]{0,20}|[a-z2-7]{0,20}|\\PC{0,10}") {
        for code in CODES {
            let (ours, theirs) = (ours::Base::from_code(code).unwrap(), multibase::Base::from_code(code).unwrap());
            prop_assert_eq!(ours.decode(&text).ok(), theirs.decode(&text).ok(), "{} {}", code, text);
        }
    }
}

#[test]
fn what_is_no_base_is_the_same_error() {
    for text in ["", "x", "€abc", "!"] {
        let (ours, theirs) = (
            ours::decode(text).unwrap_err(),
            multibase::decode(text).unwrap_err(),
        );
        assert_eq!(ours.to_string(), theirs.to_string());
    }
}

#[test]
fn every_number_has_a_text() {
    let mut buffer = our_dtoa::Buffer::new();
    for (number, text) in [
        (0.0, "0.0"),
        (0.000_001, "0.000001"),
        (0.123_456_7, "0.123457"),
        (-2.5, "-2.5"),
        (f64::MIN, "-18446744073709.551615"),
        (f64::INFINITY, "18446744073709.551615"),
        (f64::NAN, "0.0"),
    ] {
        assert_eq!(buffer.format(number), text);
    }
}
