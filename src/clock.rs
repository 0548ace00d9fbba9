//! Wall clock, for timestamps that people read and times that they state; safety never rests on it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Tells the time of day.
pub trait Clock: Send + Sync + std::fmt::Debug + 'static {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

/// The host's clock.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_millis() as u64)
    }
}

/// A time as `2026-11-21 03:04:05 UTC`, from milliseconds since 1970.
pub fn show(ms: u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1000 % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// The milliseconds since 1970 of a time as RFC 3339 has it, `2026-11-21T03:04:05.678Z`, in UTC (or with an offset),
/// or as [`show`] does. `None` where it is none, or before 1970.
pub fn parse(text: &str) -> Option<u64> {
    if let Some(shown) = text.strip_suffix(" UTC") {
        return parse(&format!("{shown}Z"));
    }
    let (date, rest) = text.split_once(['T', 't', ' '])?;
    let zone = rest.rfind(['Z', 'z', '+', '-'])?;
    let (time, zone) = rest.split_at(zone);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    let days = days_since_1970(year, month, day)?;
    if hour > 23 || minute > 59 || second > 59 || civil(days) != (year, month, day) {
        return None;
    }
    if fraction.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let ms: u64 = format!("{fraction:0<3}")[..3].parse().ok()?;
    let seconds = days * 86_400 + hour * 3600 + minute * 60 + second;
    let seconds = match zone {
        "Z" | "z" => seconds,
        zone => {
            let [hours, minutes] = numbers(&zone[1..], ':', [2, 2])?;
            let offset = hours * 3600 + minutes * 60;
            match zone.as_bytes()[0] {
                b'+' => seconds.checked_sub(offset)?,
                _ => seconds + offset,
            }
        }
    };
    Some(seconds * 1000 + ms)
}

/// Numbers of so many digits, with `separator` between them.
fn numbers<const N: usize>(text: &str, separator: char, digits: [usize; N]) -> Option<[u64; N]> {
    let mut parts = text.split(separator);
    let mut numbers = [0; N];
    for (number, digits) in numbers.iter_mut().zip(digits) {
        let part = parts.next()?;
        let plain = part.len() == digits && part.bytes().all(|b| b.is_ascii_digit());
        *number = part.parse().ok().filter(|_| plain)?;
    }
    parts.next().is_none().then_some(numbers)
}

fn days_since_1970(year: u64, month: u64, day: u64) -> Option<u64> {
    if year < 1970 || !(1..=12).contains(&month) || day == 0 {
        return None;
    }
    // As in `civil`.
    let year = if month > 2 { year } else { year - 1 };
    let from_march = if month > 2 { month - 3 } else { month + 9 };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * from_march + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(era * 146_097 + day_of_era - 719_468)
}

/// Year, month and day of a day since 1970-01-01 (proleptic Gregorian calendar).
fn civil(days: u64) -> (u64, u64, u64) {
    // Years are counted from March, so that the leap day is the last of its year.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let leaps = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leaps) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(show(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(show(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(show(1_795_230_245_999), "2026-11-21 03:04:05 UTC");
        assert_eq!(show(4_107_542_399_000), "2100-02-28 23:59:59 UTC");
        assert_eq!(show(4_107_542_400_000), "2100-03-01 00:00:00 UTC");
    }

    #[test]
    fn times_are_parsed() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T00:00:00Z", 951_782_400_000),
            ("2026-11-21T03:04:05.999Z", 1_795_230_245_999),
            ("2026-11-21t03:04:05.9z", 1_795_230_245_900),
            ("2026-11-21 05:04:05.999123+02:00", 1_795_230_245_999),
            ("2026-11-21 03:04:05 UTC", 1_795_230_245_000),
            ("2026-11-20T22:34:05-04:30", 1_795_230_245_000),
        ] {
            assert_eq!(parse(text), Some(ms), "{text}");
        }
        for bad in [
            "",
            "T",
            "Z",
            "2026-11-21",
            "2026-11-21T03:04:05",
            "2026-02-29T00:00:00Z",
            "2026-13-01T00:00:00Z",
            "2026-1-01T00:00:00Z",
            "2026-11-21T24:00:00Z",
            "1969-12-31T00:00:00Z",
            "2026-11-21T03:04Z",
            "2026-11-21T03:04:05.Z",
            "2026-11-21T03:04:05+2",
            "+026-11-21T03:04:05Z",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
