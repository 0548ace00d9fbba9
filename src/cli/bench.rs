//! Load on a volume or on the bare store.

use super::{Context, args, confirm, duration, render, size, volume};
use crate::bench::device::{Kind, Load, Pattern};
use crate::bench::{Effort, Figures, device, store};
use crate::daemon::RunDir;
use crate::device::Checked;
use crate::error::{Error, Result};
use crate::format::keys;
use crate::pool::VolumeName;
use crate::pool::backend::Backend;
use crate::store::metrics::MetricsSnapshot;
use crate::units::SECTOR_SIZE;
use serde_json::json;
use std::sync::Arc;
use uuid::Uuid;

/// The most bytes of one request.
const IO_SIZE_MAX: u64 = 64 << 20;
/// The most requests in flight.
const DEPTH_MAX: usize = 1024;

pub(super) async fn bench(context: &Context, bench: args::Bench) -> Result<()> {
    match &bench.name {
        Some(name) => of_volume(context, &bench, &name.parse()?).await,
        None => of_store(context, &bench).await,
    }
}

fn effort(bench: &args::Bench, io_size: &str, depth: usize) -> Result<Effort> {
    let io_size = size::parse("--io-size", bench.io_size.as_deref().unwrap_or(io_size))?;
    if io_size == 0 || io_size > IO_SIZE_MAX {
        let most = size::show(IO_SIZE_MAX);
        return Err(Error::usage(format!("--io-size is from 1 byte to {most}")));
    }
    let depth = bench.depth.unwrap_or(depth);
    if depth == 0 || depth > DEPTH_MAX {
        return Err(Error::usage(format!("--depth is from 1 to {DEPTH_MAX}")));
    }
    Ok(Effort { io_size, depth, time: duration::parse_some("--time", &bench.time)? })
}

async fn of_volume(context: &Context, bench: &args::Bench, name: &VolumeName) -> Result<()> {
    let load = Load {
        kind: match bench.io_type.as_str() {
            "write" => Kind::Write,
            "rw" => Kind::Mixed,
            _ => Kind::Read,
        },
        pattern: if bench.io_pattern == "seq" { Pattern::Sequential } else { Pattern::Random },
        effort: effort(bench, "4K", 32)?,
        flush_every: bench.flush_every,
    };
    if !load.effort.io_size.is_multiple_of(SECTOR_SIZE) {
        return Err(Error::usage("--io-size of a load on a volume is in sectors of 512 bytes"));
    }
    let backend = context.open().await?;
    let (id, _) = backend.pool.lookup(name).await?;
    if load.kind != Kind::Read {
        confirm::confirm(&format!("this overwrites what is in {name}"), bench.yes)?;
    }
    let held = RunDir::open()?.take(&[(id, name.clone().into())])?;
    let measured = async {
        let volume = volume::own(&backend, id, name).await?;
        let before = backend.metrics();
        let device = Arc::new(Checked::new(volume.clone()));
        let figures = device::run(&device, load, rand::random()).await;
        let asked = requests(&before, &backend.metrics());
        volume.close().await?;
        let failed = |e| Error::failed(format!("cannot measure {name}")).because(e);
        Ok::<_, Error>((figures.map_err(failed)?, asked))
    };
    let measured = measured.await;
    held.release();
    let (figures, asked) = measured?;
    let document = json!({ "name": name, "load": &figures, "store_requests": &asked });
    context.show(&document, || {
        let asked: Vec<String> = asked.iter().map(|(op, count)| format!("{count} {op}")).collect();
        format!("{}\nrequests to the store: {}", table(&[figures]), asked.join(", "))
    })
}

async fn of_store(context: &Context, bench: &args::Bench) -> Result<()> {
    let effort = effort(bench, "4M", 16)?;
    let backend: Backend = context.open().await?;
    let run = Uuid::new_v4();
    let names: store::Names = Arc::new(move |number| keys::bench(run, number));
    let stores = (&backend.stores.live, &backend.stores.setup);
    let figures = store::run(stores, effort, &names, rand::random()).await?;
    let url = backend.pool.store().url();
    context.show(&json!({ "store": url, "load": &figures }), || table(&figures))
}

/// Requests of each kind between two looks.
fn requests(before: &MetricsSnapshot, after: &MetricsSnapshot) -> Vec<(String, u64)> {
    let of = |snapshot: &MetricsSnapshot, name: &str| {
        snapshot.operations.get(name).map_or(0, |operation| operation.requests)
    };
    let each =
        after.operations.keys().map(|name| (name.clone(), of(after, name) - of(before, name)));
    each.filter(|(_, count)| *count > 0).collect()
}

fn table(figures: &[Figures]) -> String {
    let header = ["WORK", "REQUESTS", "PER S", "MB/S", "P50", "P99", "MAX"];
    let ms = |us: u64| format!("{:.2} ms", us as f64 / 1e3);
    let rows = figures.iter().map(|f| {
        vec![
            f.work.to_owned(),
            f.operations.to_string(),
            format!("{:.0}", f.ops_per_second),
            format!("{:.1}", f.mb_per_second),
            ms(f.p50_us),
            ms(f.p99_us),
            ms(f.max_us),
        ]
    });
    render::table(&header, &[1, 2, 3, 4, 5, 6], rows.collect())
}
