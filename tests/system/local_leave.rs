//! A detach by force while the store is down: the journal keeps what was written, for the next attach.

use crate::local::{Local, behind_proxy};
use crate::world::World;
use serde_json::Value;
use std::time::Duration;

const MIB: usize = 1 << 20;

fn detached(world: &World) -> Value {
    world.json(&["detach", "disk", "--force"])
}

#[test]
fn s3_forced_detach_leaves_what_the_store_lacks_in_the_journal() {
    let (world, _direct, proxy) = behind_proxy();
    let local = Local::new("64M");
    world.run(&["create", "disk", "--size", "64M", "--chunk-size", "256K"]);
    let server = world.serve("disk", &local.args());
    let mut client = server.connect();
    proxy.outage(true);
    for number in 0..6 {
        client.write(number * MIB as u64, &vec![number as u8 + 1; MIB]).unwrap();
    }
    drop(client);
    // Nothing was flushed: in an orderly end, all of it is kept all the same.
    let told = detached(&world);
    assert_eq!(told["lost_bytes"], 0, "{told}");
    let kept = told["kept_bytes"].as_u64();
    assert!(kept.is_some_and(|kept| kept >= 6 * MIB as u64), "{told}");
    let (code, said) = server.ended(Duration::from_secs(60));
    assert_eq!(code, 0, "{said}");
    proxy.outage(false);
    let server = world.serve("disk", &local.args());
    let mut client = server.connect();
    for number in 0..6 {
        let found = client.read(number * MIB as u64, MIB).unwrap();
        assert!(found == vec![number as u8 + 1; MIB], "MiB {number}");
    }
    drop(client);
    server.stop();
}
