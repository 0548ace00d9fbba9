//! Output: one document on standard output, as a table, as lines or as JSON.

use super::size;
use crate::clock;
pub(super) use crate::clock::show as time;
use crate::error::{Error, Result};
use crate::format::scrub::ScrubPass;
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

/// The last scrub of a volume.
pub(super) fn scrubbed(last: Option<&ScrubPass>) -> String {
    let Some(last) = last else { return "never complete".into() };
    let (ended, bytes) = (time(last.ended_at_ms), size::show(last.bytes));
    let found = match (last.damaged, last.left()) {
        (0, _) => "nothing damaged".into(),
        (damaged, left) => format!("{damaged} objects damaged, {left} still are"),
    };
    format!("complete at {ended}, {bytes}, {found}")
}

/// A time as `20261121T030405.678Z`, from milliseconds since 1970: fit for names.
pub(super) fn stamp(ms: u64) -> String {
    let digits: String = clock::show(ms).chars().filter(char::is_ascii_digit).collect();
    format!("{}T{}.{:03}Z", &digits[..8], &digits[8..], ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_plain_and_aligned() {
        let rows = vec![vec!["a".into(), "1 GiB".into()], vec!["long".into(), "12 GiB".into()]];
        let text = table(&["NAME", "SIZE"], &[1], rows);
        assert_eq!(text, "NAME    SIZE\na      1 GiB\nlong  12 GiB");
        let text = fields(&[("name", "a".into()), ("id", "".into())]);
        assert_eq!(text, "name  a\nid");
    }
}
