//! Compares the file that the npm build compiles in the place of multibase with that crate.

use proptest::prelude::*;

#[allow(clippy::pedantic, reason = "it has the interface of the crate")]
#[path = "../js/crate/multibase.rs"]
mod ours;

/// The bases that occur in addresses, by their codes.
const CODES: [char; 7] = ['f', 'b', 'z', 'm', 'M', 'u', 'U'];

proptest! {
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
