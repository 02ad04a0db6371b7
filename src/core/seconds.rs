//! Durations in messages for people.

use std::{fmt, time::Duration};

/// A duration in seconds, to the millisecond, without zeros at the end: `30` or `0.25`.
///
/// It is formatted from integers, because the code that formats floating-point numbers is large and
/// nothing else in the npm package needs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seconds(pub(crate) Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.as_secs())?;
        match self.0.subsec_millis() {
            0 => Ok(()),
            millis if millis % 100 == 0 => write!(f, ".{}", millis / 100),
            millis if millis % 10 == 0 => write!(f, ".{:02}", millis / 10),
            millis => write!(f, ".{millis:03}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn reads_as_a_floating_point_number_does(millis in prop_oneof![0u64..10_000, 0u64..100_000_000]) {
            let seconds = millis as f64 / 1000.0; // The nearest number there is, which a sum would miss.
            prop_assert_eq!(Seconds(Duration::from_millis(millis)).to_string(), seconds.to_string());
        }
    }
}
