//! Amounts of data, as operators write them: `10GB/day` and `10Mbit`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: u64 = 24 * 60 * 60;

/// When a quota begins anew, in universal time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Period {
    Day,
    /// A month of the calendar.
    Month,
}

/// How many bytes may be carried in each period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    pub(crate) bytes: u64,
    pub(crate) period: Period,
}

impl Quota {
    /// Reads a quota such as `500MB/day` or `1.5TB/month`. The units are decimal.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (amount, period) = text.split_once('/')?;
        let period = match period {
            "day" => Period::Day,
            "month" => Period::Month,
            _ => return None,
        };
        let bytes = scaled(amount.strip_suffix('B')?)?;
        Some(Self { bytes, period })
    }
}

/// Reads a rate such as `10Mbit`, which is in bits per second. Returns bytes per second.
pub(crate) fn rate(text: &str) -> Option<u64> {
    let bytes = scaled(text.strip_suffix("bit")?)? / 8;
    (bytes > 0).then_some(bytes)
}

/// Reads a number with a decimal prefix.
fn scaled(text: &str) -> Option<u64> {
    let prefixes = [("k", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12)];
    let found = prefixes
        .iter()
        .find_map(|(prefix, factor)| Some((text.strip_suffix(prefix)?, *factor)));
    let (number, factor) = found.unwrap_or((text, 1.0));
    let is_plain = number
        .bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.');
    let amount = number.parse::<f64>().ok().filter(|_| is_plain)? * factor;
    // Above this, not every whole number is an `f64`.
    (1.0..=9e15).contains(&amount).then_some(amount as u64)
}

impl Period {
    /// Returns the number of the period that `now` lies in, and when it ends.
    pub(crate) fn at(self, now: SystemTime) -> (u64, Duration) {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let day = now.as_secs() / DAY;
        let (number, ends) = match self {
            Self::Day => (day, day + 1),
            Self::Month => {
                let (number, first) = month(day);
                // No month is longer than 31 days, and none shorter than 28.
                let next = (first + 28..=first + 31).find(|day| month(*day).0 != number);
                (number, next.unwrap_or(first + 31))
            }
        };
        (number, Duration::from_secs(ends * DAY).saturating_sub(now))
    }
}

/// Returns the number of the month in which a day since 1970 lies, and the first day of the month.
fn month(day: u64) -> (u64, u64) {
    // Years that begin in March have their leap day at the end.
    const MARCH_0000: u64 = 719_468;
    const DAYS_OF_400_YEARS: u64 = 146_097;
    let day = day + MARCH_0000;
    let (era, of_era) = (day / DAYS_OF_400_YEARS, day % DAYS_OF_400_YEARS);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5;
    ((era * 400 + year) * 12 + month, day - of_month - MARCH_0000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_decimal_units() {
        let day = |bytes| {
            Some(Quota {
                bytes,
                period: Period::Day,
            })
        };
        assert_eq!(Quota::parse("10GB/day"), day(10_000_000_000));
        assert_eq!(Quota::parse("7B/day"), day(7));
        assert_eq!(Quota::parse("1.5kB/day"), day(1500));
        let month = Quota::parse("2TB/month").unwrap();
        assert_eq!(
            (month.bytes, month.period),
            (2_000_000_000_000, Period::Month)
        );
        assert_eq!(rate("10Mbit"), Some(1_250_000));
        assert_eq!(rate("8bit"), Some(1));
        for text in [
            "",
            "10GB",
            "10GB/week",
            "GB/day",
            "-1B/day",
            "0B/day",
            "1e3B/day",
            "10gb/day",
        ] {
            assert_eq!(Quota::parse(text), None, "{text}");
        }
        for text in ["", "10M", "4bit", "infbit", "NaNbit", "9999999Tbit"] {
            assert_eq!(rate(text), None, "{text}");
        }
    }

    #[test]
    fn periods_end_at_midnight_and_with_the_month() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!(Period::Day.at(at(0)), (0, Duration::from_secs(DAY)));
        assert_eq!(Period::Day.at(at(DAY - 1)), (0, Duration::from_secs(1)));
        let days = |period: Period, day: u64| period.at(at(day * DAY)).1.as_secs() / DAY;
        // 1970-01-01, 1970-02-01, 2000-02-10 and 2100-02-10.
        for (day, left) in [(0, 31), (31, 28), (10_997, 20), (47_522, 19)] {
            assert_eq!(days(Period::Month, day), left, "{day}");
        }
        let number = |day: u64| Period::Month.at(at(day * DAY)).0;
        assert_eq!(number(31), number(0) + 1);
        assert_eq!(number(365), number(0) + 12);
    }
}
