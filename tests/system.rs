//! The whole product: the program on a real S3 server, used by real clients over NBD, killed,
//! fenced, cut off and damaged.
//!
//! Needs root, the programs of Debian's `libnbd-bin`, `qemu-utils`, `fio`, `e2fsprogs`,
//! `xfsprogs` and `util-linux`, and what `scripts/s3/ceph.sh` needs. With `OBJBLK_FULL=1`
//! (`make test-full`) the tests are long; `OBJBLK_SEED` repeats a random one.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "system/asked.rs"]
mod asked;
#[path = "system/cached.rs"]
mod cached;
#[path = "support/nbd_client.rs"]
mod client;
#[path = "system/crash_files.rs"]
mod crash_files;
#[path = "system/crash_fio.rs"]
mod crash_fio;
#[path = "system/crash_fsx.rs"]
mod crash_fsx;
#[path = "system/damage.rs"]
mod damage;
#[path = "system/database.rs"]
mod database;
#[path = "system/device.rs"]
mod device;
#[path = "support/fault_proxy.rs"]
mod fault_proxy;
#[path = "system/fence.rs"]
mod fence;
#[path = "system/filesystem.rs"]
mod filesystem;
#[path = "system/garbage.rs"]
mod garbage;
#[path = "system/hosts.rs"]
mod hosts;
#[path = "support/http.rs"]
mod http;
#[path = "system/kill.rs"]
mod kill;
#[path = "system/ledger.rs"]
mod ledger;
#[path = "system/leftovers.rs"]
mod leftovers;
#[path = "system/load.rs"]
mod load;
#[path = "system/local.rs"]
mod local;
#[path = "system/local_broken.rs"]
mod local_broken;
#[path = "system/local_kill.rs"]
mod local_kill;
#[path = "system/local_leave.rs"]
mod local_leave;
#[path = "system/local_lost.rs"]
mod local_lost;
#[path = "system/local_outage.rs"]
mod local_outage;
#[path = "system/long_outage.rs"]
mod long_outage;
#[path = "system/million.rs"]
mod million;
#[path = "support/nbd.rs"]
mod nbd;
#[path = "system/outage.rs"]
mod outage;
#[path = "support/proxy.rs"]
mod proxy;
#[path = "system/refusals.rs"]
mod refusals;
#[path = "system/rough.rs"]
mod rough;
#[path = "support/s3.rs"]
mod s3;
#[path = "system/scale.rs"]
mod scale;
#[path = "system/table.rs"]
mod table;
#[path = "system/takeover.rs"]
mod takeover;
#[path = "system/times.rs"]
mod times;
#[path = "system/tools.rs"]
mod tools;
#[path = "system/world.rs"]
mod world;
