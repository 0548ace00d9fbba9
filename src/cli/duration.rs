//! Times as users write them: a number and its unit.

use crate::error::{Error, Result};
use std::time::Duration;

/// The unit, in milliseconds.
const UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// The time that `text` names: digits, then ms, s, m, h or d. `argument` is what it was given for.
/// Errors: usage.
pub fn parse(argument: &str, text: &str) -> Result<Duration> {
    let wrong = |why: &str| {
        Err(Error::usage(format!("{argument} {text:?} is no time: {why}"))
            .hint("write it as 500ms, 30s, 2m or 1h"))
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return wrong("it does not begin with a digit");
    }
    let Ok(number) = number.parse::<u64>() else {
        return wrong("it is too large");
    };
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return wrong("its unit is not one of ms, s, m, h and d");
    };
    match number.checked_mul(*factor) {
        Some(ms) => Ok(Duration::from_millis(ms)),
        None => wrong("it is too large"),
    }
}

/// As [`parse`], and more than no time at all.
pub fn parse_some(argument: &str, text: &str) -> Result<Duration> {
    match parse(argument, text)? {
        Duration::ZERO => Err(Error::usage(format!("{argument} {text:?} leaves no time"))
            .hint("write it as 500ms, 30s, 2m or 1h")),
        time => Ok(time),
    }
}

/// As [`parse`]; `0` (of any unit, or none) and `off` are never.
pub fn parse_or_off(argument: &str, text: &str) -> Result<Option<Duration>> {
    match text {
        "off" | "0" => Ok(None),
        text => Ok(Some(parse(argument, text)?).filter(|time| !time.is_zero())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    #[test]
    fn times() {
        for (text, ms) in [
            ("0s", 0),
            ("500ms", 500),
            ("30s", 30_000),
            ("2m", 120_000),
            ("1h", 3_600_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(parse("--x", text).unwrap(), Duration::from_millis(ms), "{text}");
        }
        for bad in ["", "s", "-1s", "1.5s", "30", "1 s", "1S", "9e9s", "18446744073709551616s"] {
            let e = parse("--x", bad).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Usage, "{bad}");
        }
        assert!(parse("--x", "18446744073709551615d").is_err());
        assert_eq!(
            parse("--io-timeout", "30").unwrap_err().to_string(),
            r#"--io-timeout "30" is no time: its unit is not one of ms, s, m, h and d; write it as 500ms, 30s, 2m or 1h"#
        );
    }

    #[test]
    fn none_and_never() {
        assert!(parse_some("--x", "0s").is_err());
        assert_eq!(parse_some("--x", "1ms").unwrap(), Duration::from_millis(1));
        for never in ["0", "off", "0s", "0ms"] {
            assert_eq!(parse_or_off("--x", never).unwrap(), None);
        }
        assert_eq!(parse_or_off("--x", "10s").unwrap(), Some(Duration::from_secs(10)));
        assert!(parse_or_off("--x", "never").is_err());
    }

    proptest! {
        #[test]
        fn parsing_is_total(text in ".{0,12}") {
            let _ = (parse("--x", &text), parse_some("--x", &text), parse_or_off("--x", &text));
        }
    }
}
