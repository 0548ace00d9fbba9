//! Output: one document on standard output, as a table, as lines or as JSON.

use crate::error::{Error, Result};
use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use std::io::{ErrorKind, Write};

/// Prints `text` and a line feed. A reader that has gone (`objblk list | head`) has seen enough:
/// that is no error. Errors: failed.
pub(super) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let printed = out.write_all(format!("{text}\n").as_bytes()).and_then(|()| out.flush());
    match printed {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Error::failed("cannot write to standard output").because(e))
        }
        _ => Ok(()),
    }
}

/// Prints one JSON document.
pub(super) fn json<T: Serialize + ?Sized>(document: &T) -> Result<()> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|e| Error::failed("cannot write JSON").because(e))?;
    print(&text)
}

/// An aligned table; numbers and sizes in the columns of `right` stand to the right.
pub(super) fn table(header: &[&str], right: &[usize], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(header.to_vec()).add_rows(rows);
    table.set_content_arrangement(comfy_table::ContentArrangement::Disabled);
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    trimmed(&table.to_string())
}

/// Names and values, one a line.
pub(super) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    let lines: Vec<String> =
        fields.iter().map(|(name, value)| format!("{name:width$}  {value}")).collect();
    trimmed(&lines.join("\n"))
}

fn trimmed(text: &str) -> String {
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// A time as `20261121T030405.678Z`, from milliseconds since 1970: fit for names.
pub(super) fn stamp(ms: u64) -> String {
    let digits: String = time(ms).chars().filter(char::is_ascii_digit).collect();
    format!("{}T{}.{:03}Z", &digits[..8], &digits[8..], ms % 1000)
}

/// A time as `2026-11-21 03:04:05 UTC`, from milliseconds since 1970.
pub(super) fn time(ms: u64) -> String {
    let (days, seconds) = (ms / 86_400_000, ms / 1000 % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
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
        assert_eq!(time(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(time(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(time(1_795_230_245_999), "2026-11-21 03:04:05 UTC");
        assert_eq!(time(4_107_542_399_000), "2100-02-28 23:59:59 UTC");
        assert_eq!(time(4_107_542_400_000), "2100-03-01 00:00:00 UTC");
    }

    #[test]
    fn tables_are_plain_and_aligned() {
        let rows = vec![vec!["a".into(), "1 GiB".into()], vec!["long".into(), "12 GiB".into()]];
        let text = table(&["NAME", "SIZE"], &[1], rows);
        assert_eq!(text, "NAME    SIZE\na      1 GiB\nlong  12 GiB");
        let text = fields(&[("name", "a".into()), ("id", "".into())]);
        assert_eq!(text, "name  a\nid");
    }
}
