//! A volume inside another program, in memory here: `cargo run --example embed`

use objblk::clock::SystemClock;
use objblk::device::{BlockDevice, Checked, WriteFlags};
use objblk::host::Host;
use objblk::pool::{NewVolume, Pool};
use objblk::store::Store;
use objblk::store::memory::MemoryStore;
use objblk::units::Sector;
use objblk::volume::{Env, Stores, Volume, VolumeOptions};
use std::error::Error;
use std::sync::Arc;
use tokio::runtime::Handle;

/// Makes a volume, writes to it, closes it.
#[tokio::main]
pub async fn main() -> Result<(), Box<dyn Error>> {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let pool = Pool::init(store.clone(), false).await?;
    let new = NewVolume::of_size(1 << 30);
    let id = pool.create(&"data".parse()?, new).await?;

    let env = Env { runtime: Handle::current(), clock: Arc::new(SystemClock) };
    let stores = Stores::one(store);
    let (owner, options) = (Host::local()?.owner(), VolumeOptions::default());
    let volume = Volume::open(env, stores, id, owner, options).await?;

    let disk = Checked::new(volume.clone());
    disk.write(Sector(8), &[7; 4096], WriteFlags::default()).await?;
    disk.flush().await?;
    let mut back = [0; 4096];
    disk.read(Sector(8), &mut back).await?;
    assert_eq!(back, [7; 4096]);
    Ok(volume.close().await?)
}
