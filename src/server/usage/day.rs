//! Days in UTC.

use std::{fmt, str::FromStr, time::SystemTime};

use time::{Date, Month, OffsetDateTime};

/// A day in UTC. It is written as `2026-11-30`.
///
/// ```
/// use throughline::server::Day;
///
/// let day: Day = "2026-11-30".parse()?;
/// assert!(day > "2026-02-28".parse()?);
/// assert_eq!(day.to_string(), "2026-11-30");
/// # Ok::<(), throughline::server::DayError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Day(Date);

impl Day {
    /// Returns the day of a time.
    pub fn of(time: SystemTime) -> Self {
        Self(OffsetDateTime::from(time).date())
    }

    /// Returns the number of the day. Consecutive days have consecutive numbers.
    pub(super) fn number(self) -> u32 {
        // The days before the epoch of the Julian calendar are not those of this program.
        u32::try_from(self.0.to_julian_day()).unwrap_or(0)
    }

    pub(super) fn from_number(number: u32) -> Option<Self> {
        let number = i32::try_from(number).ok()?;
        Date::from_julian_day(number).ok().map(Self)
    }
}

impl fmt::Display for Day {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = self.0.to_calendar_date();
        write!(f, "{year:04}-{:02}-{day:02}", u8::from(month))
    }
}

/// The text is not the date of a day.
///
/// ```
/// use throughline::server::Day;
///
/// let error = "2026-02-30".parse::<Day>().unwrap_err();
/// assert_eq!(error.to_string(), "a day is written as 2026-11-30");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DayError(());

impl fmt::Display for DayError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a day is written as 2026-11-30")
    }
}

impl std::error::Error for DayError {}

/// Reads a day as it is written.
impl FromStr for Day {
    type Err = DayError;

    fn from_str(text: &str) -> Result<Self, DayError> {
        let error = DayError(());
        let parts: Vec<&str> = text.split('-').collect();
        let [year, month, day] = parts[..] else {
            return Err(error);
        };
        let is_plain = |part: &&str, digits| {
            part.len() == digits && part.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !is_plain(&year, 4) || !is_plain(&month, 2) || !is_plain(&day, 2) {
            return Err(error);
        }
        let month: u8 = month.parse().map_err(|_| error)?;
        let month = Month::try_from(month).map_err(|_| error)?;
        let (year, day) = (year.parse(), day.parse());
        let (year, day) = (year.map_err(|_| error)?, day.map_err(|_| error)?);
        Date::from_calendar_date(year, month, day)
            .map(Self)
            .map_err(|_| error)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn days_are_written_and_read() {
        let day = |seconds| Day::of(UNIX_EPOCH + Duration::from_secs(seconds));
        assert_eq!(day(0).to_string(), "1970-01-01");
        assert_eq!(day(86_399), day(0));
        assert_eq!(day(86_400).number(), day(0).number() + 1);
        assert_eq!(day(951_782_400).to_string(), "2000-02-29");
        for seconds in [0, 951_782_400, 1_796_083_200] {
            let day = day(seconds);
            assert_eq!(day.to_string().parse(), Ok(day));
            assert_eq!(Day::from_number(day.number()), Some(day));
        }
        for text in [
            "",
            "2026",
            "2026-13-01",
            "2026-02-30",
            "+026-01-01",
            "2026-1-1",
            "2026-01-01-",
        ] {
            assert!(text.parse::<Day>().is_err(), "{text}");
        }
    }
}
