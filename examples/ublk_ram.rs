//! A disk in memory on `/dev/ublkbN`: the limit that a volume's frontend is measured against, and
//! the vehicle of the frontend's tests.
//!
//! Prints the device's path when it is ready, runs until SIGTERM, SIGINT or until the device is
//! deleted, then prints what the device did as one line of JSON.
//!
//!     cargo run --example ublk_ram -- --size 1G --queues 2 --delay-us 500

use clap::Parser;
use objblk::device::ram::RamDisk;
use objblk::device::{
    BlockDevice, BlockState, Checked, DeviceError, DeviceResult, Geometry, StatusExtent,
    WriteFlags, ZeroFlags,
};
use objblk::error::{Error, Result};
use objblk::frontend::ublk::{self, Ublk, UblkOptions};
use objblk::units::{BlockSize, Sector, SectorCount, SectorRange};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::{Handle, Runtime};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
struct Args {
    /// Size, with K, M, G or T.
    #[arg(long, default_value = "1G", value_parser = parse_size)]
    size: SectorCount,
    /// Name of the symlink under /dev/objblk.
    #[arg(long, default_value = "ram")]
    name: String,
    /// The N of /dev/ublkbN instead of the kernel's choice.
    #[arg(long)]
    id: Option<u32>,
    #[arg(long, default_value_t = 1)]
    queues: u16,
    #[arg(long, default_value_t = 128)]
    depth: u16,
    /// Largest request, in bytes.
    #[arg(long, default_value_t = 512 << 10)]
    max_io: u32,
    #[arg(long, default_value = "512", value_parser = parse_block_size)]
    block_size: BlockSize,
    #[arg(long)]
    read_only: bool,
    /// Completes every request this much later, from another thread; without it, inline.
    #[arg(long)]
    delay_us: Option<u64>,
    /// Stores nothing: reads are not even zeroed. Any size is possible.
    #[arg(long, conflicts_with_all = ["delay_us", "read_only"])]
    null: bool,
    /// Answers no request from the moment the device is ready.
    #[arg(long, requires = "null")]
    stall: bool,
    /// Completes each request by another thread, as fast as that goes.
    #[arg(long, requires = "null")]
    hop: bool,
    /// Keeps the block device when this process is killed.
    #[arg(long)]
    recovery: bool,
    /// How long the start may take.
    #[arg(long, default_value_t = 30_000)]
    start_ms: u64,
    /// How long a stop waits for requests in flight.
    #[arg(long, default_value_t = 30_000)]
    drain_ms: u64,
    /// Only says what the host can do.
    #[arg(long)]
    check: bool,
    /// Only deletes the device that a killed process left.
    #[arg(long, value_name = "N")]
    reap: Option<u32>,
    /// Only removes a device, whoever serves it.
    #[arg(long, value_name = "N")]
    evict: Option<u32>,
}

fn parse_size(text: &str) -> std::result::Result<SectorCount, String> {
    let digits = text.trim_end_matches(['K', 'M', 'G', 'T']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        unit => return Err(format!("unknown unit {unit}")),
    };
    let count: u64 = digits.parse().map_err(|e| format!("{digits}: {e}"))?;
    let bytes = count.checked_mul(1 << shift).ok_or("too large")?;
    SectorCount::from_bytes(bytes).ok_or("not a multiple of 512".into())
}

fn parse_block_size(text: &str) -> std::result::Result<BlockSize, String> {
    let bytes = text.parse().map_err(|e| format!("{e}"))?;
    BlockSize::from_bytes(bytes).ok_or("use 512 or 4096".into())
}

/// A device that does nothing, as fast as that goes, or does not even do that.
struct Null {
    geometry: Geometry,
    stalled: Arc<AtomicBool>,
    hop: Option<Handle>,
}

impl Null {
    async fn request(&self) -> DeviceResult<()> {
        if self.stalled.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        if let Some(runtime) = &self.hop {
            let hop = runtime.spawn(async {});
            hop.await.map_err(|e| DeviceError::Io(e.to_string()))?;
        }
        Ok(())
    }
}

impl BlockDevice for Null {
    fn geometry(&self) -> Geometry {
        self.geometry
    }

    async fn read(&self, _start: Sector, _buf: &mut [u8]) -> DeviceResult<()> {
        self.request().await
    }

    async fn write(&self, _start: Sector, _data: &[u8], _flags: WriteFlags) -> DeviceResult<()> {
        self.request().await
    }

    async fn flush(&self) -> DeviceResult<()> {
        self.request().await
    }

    async fn discard(&self, _range: SectorRange) -> DeviceResult<()> {
        self.request().await
    }

    async fn write_zeroes(&self, _range: SectorRange, _flags: ZeroFlags) -> DeviceResult<()> {
        self.request().await
    }

    async fn block_status(
        &self,
        range: SectorRange,
        _max_extents: usize,
    ) -> DeviceResult<Vec<StatusExtent>> {
        Ok(vec![StatusExtent { len: range.len(), state: BlockState::Hole }])
    }

    fn prefetch(&self, _range: SectorRange) {}
}

fn main() -> ExitCode {
    if let Some(code) = ublk::errand(std::env::args_os()) {
        return code;
    }
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match run(Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.kind().exit_code())
        }
    }
}

fn run(args: Args) -> Result<()> {
    if args.check {
        println!("{:?}", ublk::check_host()?);
        return Ok(());
    }
    if let Some(dev_id) = args.reap {
        return ublk::reap(dev_id);
    }
    if let Some(dev_id) = args.evict {
        return ublk::evict(dev_id);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_start(|| {
            if let Err(error) = ublk::become_io_flusher() {
                tracing::warn!(%error, "PR_SET_IO_FLUSHER");
            }
        })
        .build()
        .map_err(|e| Error::failed("cannot start the runtime").because(e))?;
    let Args { size, block_size, read_only, .. } = args;
    if args.null {
        let geometry = Geometry { size, block_size, optimal_io: 4 << 20, read_only };
        let stalled = Arc::new(AtomicBool::new(false));
        let hop = args.hop.then(|| runtime.handle().clone());
        let stall = args.stall.then(|| stalled.clone());
        return serve(Null { geometry, stalled, hop }, args, runtime, stall);
    }
    let mut disk = RamDisk::new(size, block_size);
    if read_only {
        disk = disk.read_only();
    }
    if let Some(delay) = args.delay_us {
        disk = disk.delayed(runtime.handle().clone(), Duration::from_micros(delay));
    }
    serve(disk, args, runtime, None)
}

fn serve<D: BlockDevice>(
    disk: D,
    args: Args,
    runtime: Runtime,
    stall: Option<Arc<AtomicBool>>,
) -> Result<()> {
    let options = UblkOptions {
        id: args.id,
        queues: args.queues,
        depth: args.depth,
        max_io: args.max_io,
        recovery: args.recovery,
        start_timeout: Duration::from_millis(args.start_ms),
        drain_timeout: Duration::from_millis(args.drain_ms),
        ..UblkOptions::new(args.name)
    };
    let device = Ublk::start(Arc::new(Checked::new(disk)), options)?;
    if let Some(stall) = stall {
        stall.store(true, Ordering::Relaxed);
    }
    println!("{}", device.path().display());
    runtime.block_on(ended(&device))?;
    let stats = device.stop()?;
    println!("{}", serde_json::to_string(&stats).expect("counters are plain numbers"));
    Ok(())
}

/// Returns at a signal, or when someone else has ended the device.
async fn ended(device: &Ublk) -> Result<()> {
    let listen = |kind| signal(kind).map_err(|e| Error::failed("cannot take signals").because(e));
    let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
        () = device.wait() => println!("deleted by another"),
    }
    Ok(())
}
