//! What changed between two states.
//!
//! Rows are printed as they are found: there may be millions.

use super::{Context, args, size, view};
use crate::device::{BlockDevice, BlockState};
use crate::error::{Error, Result};
use crate::pool::VolumeSpec;
use crate::pool::backend::Backend;
use crate::transfer::stream::{Piece, pieces};
use crate::units::SectorRange;
use crate::volume::Volume;
use futures::stream::StreamExt;
use serde_json::json;
use std::io::{BufWriter, ErrorKind, Stdout, Write, stdout};
use std::pin::pin;

pub(super) async fn diff(context: &Context, diff: args::Diff) -> Result<()> {
    let backend = context.open().await?;
    let first: VolumeSpec = diff.first.parse()?;
    let Some(second) = &diff.second else {
        return view::with(&backend, &first, async |volume: &Volume| {
            show(context, (None, (&first, volume)), diff.exact).await
        })
        .await;
    };
    let second: VolumeSpec = second.parse()?;
    if first == second {
        return Err(Error::usage(format!("{first} is compared with itself"))
            .hint("name two snapshots, the older one first"));
    }
    both(context, &backend, (&first, &second), diff.exact).await
}

async fn both(
    context: &Context,
    backend: &Backend,
    (first, second): (&VolumeSpec, &VolumeSpec),
    exact: bool,
) -> Result<()> {
    view::with(backend, first, async |old: &Volume| {
        view::with(backend, second, async |new: &Volume| {
            show(context, (Some((first, old)), (second, new)), exact).await
        })
        .await
    })
    .await
}

type State<'a> = (&'a VolumeSpec, &'a Volume);

async fn show(
    context: &Context,
    (old, new): (Option<State<'_>>, State<'_>),
    exact: bool,
) -> Result<()> {
    let bytes = |state: &State<'_>| state.1.geometry().size.bytes();
    let head = json!({
        "from": old.as_ref().map(|old| old.0),
        "to": new.0,
        "from_size": old.as_ref().map(bytes),
        "to_size": bytes(&new),
        "exact": exact,
    });
    let base = old.as_ref().map(|old| old.1);
    let mut changes = new.1.changes_since(base).await?;
    let mut report = Report::begin(context.global.json, &head)?;
    if exact {
        let mut pieces = pin!(pieces(new.1, base));
        while let Some(piece) = pieces.next().await {
            match piece? {
                Piece::Data(range, _) => report.add(range, BlockState::Data)?,
                Piece::Zeros(range) => report.add(range, BlockState::Hole)?,
            }
        }
    } else {
        while let Some(changed) = changes.next().await? {
            for changed in changed {
                report.add(changed.range, changed.is)?;
            }
        }
    }
    report.end(old.as_ref().map(bytes), bytes(&new))
}

/// Rows on standard output, or one JSON document of them.
struct Report {
    json: bool,
    out: BufWriter<Stdout>,
    /// The last row, to which more may belong.
    last: Option<(SectorRange, BlockState)>,
    rows: u64,
    data_bytes: u64,
    zero_bytes: u64,
}

impl Report {
    fn begin(json: bool, head: &serde_json::Value) -> Result<Report> {
        let out = BufWriter::new(stdout());
        let (rows, data_bytes, zero_bytes) = (0, 0, 0);
        let mut report = Report { json, out, last: None, rows, data_bytes, zero_bytes };
        match json {
            true => {
                let head = serde_json::to_string(head)
                    .map_err(|e| Error::failed("cannot write JSON").because(e))?;
                let head = head.trim_end_matches('}');
                report.put(&format!("{head},\"runs\":["))?;
            }
            false => report.put(&format!("{:>16} {:>16}  TYPE\n", "OFFSET", "LENGTH"))?,
        }
        Ok(report)
    }

    fn add(&mut self, range: SectorRange, is: BlockState) -> Result<()> {
        if let Some((last, kind)) = &mut self.last
            && *kind == is
            && last.end() == range.start()
        {
            *last = SectorRange::between(last.start(), range.end());
            return Ok(());
        }
        let before = self.last.replace((range, is));
        before.map_or(Ok(()), |(range, is)| self.row(range, is))
    }

    fn row(&mut self, range: SectorRange, is: BlockState) -> Result<()> {
        let (offset, length) = (range.start().bytes(), range.len().bytes());
        let (total, kind) = match is {
            BlockState::Data => (&mut self.data_bytes, "data"),
            BlockState::Hole => (&mut self.zero_bytes, "zero"),
        };
        *total += length;
        self.rows += 1;
        match self.json {
            true => {
                let comma = if self.rows > 1 { "," } else { "" };
                let row = json!({ "offset": offset, "length": length, "type": kind });
                self.put(&format!("{comma}\n{row}"))
            }
            false => self.put(&format!("{offset:>16} {length:>16}  {kind}\n")),
        }
    }

    fn end(mut self, old: Option<u64>, new: u64) -> Result<()> {
        if let Some((range, is)) = self.last.take() {
            self.row(range, is)?;
        }
        let (rows, data, zeros) = (self.rows, self.data_bytes, self.zero_bytes);
        let text = if self.json {
            format!("\n],\"data_bytes\":{data},\"zero_bytes\":{zeros}}}\n")
        } else {
            let resized = match old.filter(|old| *old != new) {
                Some(old) => format!(", size {} -> {}", size::show(old), size::show(new)),
                None => String::new(),
            };
            let (data, zeros) = (size::show(data), size::show(zeros));
            format!("{data} of data and {zeros} of zeros in {rows} runs{resized}\n")
        };
        self.put(&text)?;
        allow_gone(self.out.flush())
    }

    fn put(&mut self, text: &str) -> Result<()> {
        allow_gone(self.out.write_all(text.as_bytes()))
    }
}

/// A reader that has gone has seen enough.
fn allow_gone(written: std::io::Result<()>) -> Result<()> {
    match written {
        Err(e) if e.kind() != ErrorKind::BrokenPipe => {
            Err(Error::failed("cannot write to standard output").because(e))
        }
        _ => Ok(()),
    }
}
