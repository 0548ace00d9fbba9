//! Moments of the past as users write them: a time, how long ago, or a slot of the log.

use super::{duration, render};
use crate::clock::{self, Clock};
use crate::error::{Error, Result};
use crate::pool::VolumeSpec;
use crate::units::Seq;
use crate::volume::Moment;

/// The moment that `text` names: `2026-11-22T10:00:00Z`, `-2h` or `#1234`.
///
/// Errors: usage.
pub(super) fn parse(text: &str, clock: &dyn Clock) -> Result<Moment> {
    if let Some(ago) = text.strip_prefix('-') {
        let ago = u64::try_from(duration::parse("--at", ago)?.as_millis()).unwrap_or(u64::MAX);
        return Ok(Moment::Time(clock.now_ms().saturating_sub(ago)));
    }
    let slot = text.strip_prefix('#').unwrap_or(text);
    if let Ok(slot) = slot.parse() {
        return Ok(Moment::Slot(Seq(slot)));
    }
    clock::parse(text).map(Moment::Time).ok_or_else(|| {
        Error::usage(format!("--at {text:?} is no moment"))
            .hint("write it as 2026-11-22T10:00:00Z, as -2h for two hours ago, or as #1234 for a slot of the log")
    })
}

/// What `name` is called as of a moment, beside the volume itself: as a snapshot of it.
///
/// Errors: usage, where it is a snapshot already.
pub(super) fn view(name: &VolumeSpec, moment: Moment) -> Result<VolumeSpec> {
    if name.snapshot().is_some() {
        return Err(Error::usage(format!("{name} is what it was at one moment only"))
            .hint("give --at with the name of a volume"));
    }
    let label = match moment {
        Moment::Slot(slot) => format!("at-slot-{slot}"),
        Moment::Time(ms) => format!("at-{}", render::stamp(ms)),
    };
    format!("{name}@{label}").parse()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    #[derive(Debug)]
    struct Fixed;

    impl Clock for Fixed {
        fn now_ms(&self) -> u64 {
            10_000_000
        }
    }

    #[test]
    fn moments() {
        for (text, moment) in [
            ("1970-01-01T00:00:01Z", Moment::Time(1000)),
            ("-1h", Moment::Time(6_400_000)),
            ("-9d", Moment::Time(0)),
            ("#12", Moment::Slot(Seq(12))),
            ("12", Moment::Slot(Seq(12))),
        ] {
            assert_eq!(parse(text, &Fixed).unwrap(), moment, "{text}");
        }
        for bad in ["", "-", "--1h", "#", "# 1", "2h", "yesterday", "-2026-11-22T10:00:00Z"] {
            assert_eq!(parse(bad, &Fixed).unwrap_err().kind(), ErrorKind::Usage, "{bad}");
        }
        let name: VolumeSpec = "data".parse().unwrap();
        let at = view(&name, Moment::Time(1_795_230_245_999)).unwrap();
        assert_eq!(at.as_str(), "data@at-20261121T030405.999Z");
        assert!(view(&at, Moment::Slot(Seq(1))).is_err());
    }

    proptest! {
        #[test]
        fn parsing_is_total(text in ".{0,30}") {
            let _ = parse(&text, &Fixed);
        }
    }
}
