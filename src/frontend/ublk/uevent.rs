//! Tells udev whose disk a block device is.
//!
//! The kernel knows nothing of volumes, and says that there is a device before anything of it can be read
//! elsewhere. Once it is served, a synthetic event says which volume it is, and udev's rules make links
//! of that without asking anybody, in particular not the device (`examples/90-objblk.rules`).
//!
//! Source: Linux Documentation/ABI/testing/sysfs-uevent: keys and values are letters and digits, and come
//! as `SYNTH_ARG_KEY`.

use super::node;
use std::fs;

/// Lets udev know that device `dev_id` is in service and shows the volume with this id. Where nobody
/// listens nothing happens.
pub fn announce(dev_id: u32, volume: &str) {
    let path = format!("/sys/block/{}/uevent", node::block_name(dev_id));
    let value: String = volume.chars().filter(char::is_ascii_alphanumeric).collect();
    let event = format!("change {} OBJBLKVOLUME={value}", uuid::Uuid::new_v4());
    if let Err(e) = fs::write(&path, event) {
        tracing::debug!("udev is not told of {path}: {e}");
    }
}
