//! Amounts of data, as operators write them: `10GB/day` and `10Mbit`.

use crate::core::allowance::Quota;

/// Reads a quota such as `500MB/day`, or `10GB/day, 1.5TB/month`. The units are decimal.
pub(crate) fn quota(text: &str) -> Option<Quota> {
    let mut quota = Quota::default();
    for part in text.split(',') {
        let (amount, period) = part.trim().split_once('/')?;
        let slot = match period {
            "day" => &mut quota.day,
            "month" => &mut quota.month,
            _ => return None,
        };
        let bytes = scaled(amount.strip_suffix('B')?)?;
        if slot.replace(bytes).is_some() {
            return None;
        }
    }
    Some(quota)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_decimal_units() {
        let of = |day, month| Some(Quota { day, month });
        assert_eq!(quota("10GB/day"), of(Some(10_000_000_000), None));
        assert_eq!(quota("7B/day"), of(Some(7), None));
        assert_eq!(quota("1.5kB/day"), of(Some(1500), None));
        assert_eq!(quota("2TB/month"), of(None, Some(2_000_000_000_000)));
        let both = of(Some(10_000), Some(20_000));
        assert_eq!(quota("20kB/month, 10kB/day"), both);
        assert_eq!(quota("10kB/day,20kB/month"), both);
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
            "1B/day,",
            "1B/day, 2B/day",
        ] {
            assert_eq!(quota(text), None, "{text}");
        }
        for text in ["", "10M", "4bit", "infbit", "NaNbit", "9999999Tbit"] {
            assert_eq!(rate(text), None, "{text}");
        }
    }
}
