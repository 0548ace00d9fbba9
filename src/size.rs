//! Sizes as users write and read them: binary units.

use crate::error::{Error, Result};

const UNITS: [(char, u32); 5] = [('K', 10), ('M', 20), ('G', 30), ('T', 40), ('P', 50)];

/// The bytes that `text` names: digits, then K, M, G, T or P (1024 and its powers), with an
/// optional `B` or `iB`. `argument` is what it was given for. Errors: usage.
pub fn parse(argument: &str, text: &str) -> Result<u64> {
    let wrong = |why: &str| {
        Err(Error::usage(format!("{argument} {text:?} is no size: {why}"))
            .hint("write it as 512, 64K, 10G or 2TiB"))
    };
    if text.starts_with('-') {
        return wrong("it is negative");
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return wrong("it does not begin with a digit");
    }
    let unit = unit.to_ascii_uppercase();
    let unit = unit.strip_suffix("IB").or_else(|| unit.strip_suffix('B')).unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        unit => match UNITS.iter().find(|(name, _)| unit.chars().eq([*name])) {
            Some((_, shift)) => *shift,
            None => return wrong("its unit is not one of K, M, G, T and P"),
        },
    };
    let number: u64 = match number.parse() {
        Ok(number) => number,
        Err(_) => return wrong("it is too large"),
    };
    match number.checked_mul(1 << shift) {
        Some(bytes) => Ok(bytes),
        None => wrong("it is too large"),
    }
}

/// The size for people: exact where a unit divides it, else with three digits.
pub fn show(bytes: u64) -> String {
    let Some((name, shift)) = UNITS.iter().rev().find(|(_, shift)| bytes >> shift > 0) else {
        return format!("{bytes} B");
    };
    let whole = bytes >> shift;
    if bytes.is_multiple_of(1 << shift) {
        return format!("{whole} {name}iB");
    }
    let value = bytes as f64 / (1u64 << shift) as f64;
    let decimals = match whole {
        0..10 => 2,
        10..100 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {name}iB")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("64k", 64 << 10),
            ("4M", 4 << 20),
            ("100GiB", 100 << 30),
            ("2tb", 2 << 40),
            ("1P", 1 << 50),
        ] {
            assert_eq!(parse("--size", text).unwrap(), bytes, "{text}");
        }
        for bad in
            ["", "-1", "-5G", "1.5G", "G", "1X", "1KK", "1 G", "99999999999999999999", "65536P"]
        {
            let e = parse("--size", bad).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Usage, "{bad}");
        }
        assert_eq!(
            parse("--size", "-5G").unwrap_err().to_string(),
            r#"--size "-5G" is no size: it is negative; write it as 512, 64K, 10G or 2TiB"#
        );
    }

    #[test]
    fn shown() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (1024, "1 KiB"),
            (1536, "1.50 KiB"),
            (100 << 30, "100 GiB"),
            ((10 << 30) + (1 << 29), "10.5 GiB"),
            (1 << 50, "1 PiB"),
        ] {
            assert_eq!(show(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn parsing_is_total(text in ".{0,12}") {
            let _ = parse("--size", &text);
        }
    }
}
