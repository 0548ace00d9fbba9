//! A RAM disk over NBD: the null target that the NBD frontend is measured with.
//!
//! `cargo run --release --example nbd_ram -- --size-mib 1024 --listen /tmp/ram.sock`

use clap::Parser;
use objblk::device::Checked;
use objblk::device::ram::RamDisk;
use objblk::error::Error;
use objblk::frontend::nbd::{Exports, Listen, Server};
use objblk::units::{BlockSize, SectorCount};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

#[derive(Parser)]
#[command(about = "Serves a RAM disk over NBD until interrupted")]
struct Args {
    /// Size of the disk in MiB.
    #[arg(long, default_value_t = 1024)]
    size_mib: u64,
    /// Logical block size in bytes: 512 or 4096.
    #[arg(long, default_value_t = 512)]
    block_size: u32,
    /// Path of a Unix socket, HOST:PORT, or a port of 127.0.0.1.
    #[arg(long, default_value = "10809")]
    listen: Listen,
    /// Completes each request this many microseconds late.
    #[arg(long, default_value_t = 0)]
    delay_us: u64,
    /// Refuses writes.
    #[arg(long)]
    read_only: bool,
}

async fn serve(args: Args) -> Result<(), Error> {
    let block_size = BlockSize::from_bytes(args.block_size)
        .ok_or_else(|| Error::usage("--block-size must be 512 or 4096"))?;
    let mut disk = RamDisk::new(SectorCount(args.size_mib << 11), block_size);
    if args.read_only {
        disk = disk.read_only();
    }
    if args.delay_us > 0 {
        let delay = Duration::from_micros(args.delay_us);
        disk = disk.delayed(tokio::runtime::Handle::current(), delay);
    }
    let mut exports = Exports::new();
    exports.add("ram", "a disk in memory", Arc::new(Checked::new(disk)))?;
    let server = Server::bind(&args.listen, exports).await?;
    server.uris().iter().for_each(|uri| println!("{uri}"));
    let exports = server.exports();
    let interrupted = async {
        // Without a signal handler the default action ends the process all the same.
        let _ = tokio::signal::ctrl_c().await;
    };
    server.run(interrupted).await?;
    for export in exports.status() {
        eprintln!("{} requests, {} errors", export.requests, export.errors);
    }
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    match serve(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nbd_ram: {error}");
            ExitCode::from(error.kind().exit_code())
        }
    }
}
