//! Values on the command line.

use std::{str::FromStr, time::Duration};

/// A time on the command line: a whole number of seconds, minutes, hours or days, a second to ten
/// years.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const MOST: u64 = 10 * 365 * 86_400;
        let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
        let found = units
            .iter()
            .find_map(|(unit, seconds)| Some((text.strip_suffix(*unit)?, seconds)));
        let (number, unit) = found.ok_or("its unit is none of s, m, h and d")?;
        let number: u64 = number.parse().map_err(|_| "not a whole number")?;
        let seconds = number.saturating_mul(*unit);
        match (1..=MOST).contains(&seconds) {
            true => Ok(Self(Duration::from_secs(seconds))),
            false => Err(String::from("not within a second to ten years")),
        }
    }
}

/// A duration on the command line: seconds with a fraction, 0 to a day.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seconds(pub(crate) Duration);

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds: f64 = text.parse().map_err(|_| String::from("not a number"))?;
        if !(0.0..=86_400.0).contains(&seconds) {
            return Err(String::from("not within 0 to 86400 seconds"));
        }
        Ok(Self(Duration::from_secs_f64(seconds)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_have_a_range() {
        assert_eq!("0.5".parse::<Seconds>().unwrap().0.as_millis(), 500);
        for bad in ["", "x", "-1", "NaN", "inf", "86401"] {
            assert!(bad.parse::<Seconds>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_have_a_unit_and_a_range() {
        let seconds = |text: &str| text.parse::<Span>().map(|span| span.0.as_secs());
        assert_eq!(seconds("30d"), Ok(2_592_000));
        assert_eq!(seconds("90m"), Ok(5400));
        for bad in [
            "",
            "d",
            "30",
            "0s",
            "-1d",
            "1.5h",
            "3651d",
            "99999999999999999999s",
        ] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
