//! Texts: names, sizes, addresses, the configuration file, the control socket.

use super::alloc::Bound;
use objblk::cli::size as sizes;
use objblk::daemon::control::{self, Reply, Request};
use objblk::daemon::mount::MountSpec;
use objblk::daemon::{TargetSpec, TargetState};
use objblk::format::{VolumeId, keys};
use objblk::pool::VolumeName;
use objblk::settings::Named;
use objblk::store::Key;
use objblk::store::url::StoreUrl;
use objblk::transfer::answer::Answer;
use objblk::transfer::image::{Qcow2, detect};
use std::fmt::Debug;

/// A text that is copied, and an error that quotes it twice: a control character as six, in strings
/// that grow by doubling.
const QUOTED: Bound = Bound { factor: 64, constant: 4096 };

/// A tree of values is made of it first: a value of 2 bytes (`0,`) takes 32, and twice that where
/// its vector has just grown. Lines are bounded (1 MiB), so this is.
const TREE: Bound = Bound { factor: 96, constant: 8192 };

/// The parser keeps every token, node and mistake of the document.
const TOML: Bound = Bound { factor: 256, constant: 128 << 10 };

pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let name = QUOTED.check(text.len(), || text.parse::<VolumeName>());
    assert_eq!(name.is_ok(), keys::is_valid_name(text));
    assert_eq!(keys::name(text).is_some(), keys::is_valid_name(text));
    if let Ok(name) = name {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(id) = QUOTED.check(text.len(), || text.parse::<VolumeId>()) {
        assert_eq!(id.to_string().parse::<VolumeId>(), Ok(id));
    }
    let id = VolumeId::from_bytes([7; 16]);
    check_key(id, text);
    check_key(id, &format!("{}{text}", keys::epochs(id)));
    check_key(id, &format!("{}{text}", keys::checkpoints(id)));
    check_key(id, &format!("{}{text}", keys::requests(id)));
}

/// What is read out of a key makes that key again.
fn check_key(id: VolumeId, text: &str) {
    let Some(key) = QUOTED.check(text.len(), || Key::new(text)) else { return };
    assert_eq!(key.as_str(), text);
    if let Some(epoch) = keys::parse_epoch(id, &key) {
        assert_eq!(keys::epoch(id, epoch), key);
    }
    if let Some((of, part)) = keys::parse_request(id, &key) {
        assert_eq!(keys::request(id, of, part), key);
    }
    if let Some((seq, epoch)) = keys::parse_checkpoint(id, &key) {
        assert_eq!(keys::checkpoint(id, seq, epoch), key);
    }
}

pub fn size(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(bytes) = QUOTED.check(text.len(), || sizes::parse("--size", text)) else { return };
    let shown = sizes::show(bytes);
    // Beyond that, rounding may lead out of what 64 bits hold.
    if !shown.contains('.') && bytes < 1 << 63 {
        let back = sizes::parse("--size", &shown.replace(' ', "")).expect("what is shown parses");
        assert!(back.abs_diff(bytes) <= bytes / 100, "{bytes}: {shown}");
    }
}

pub fn store_url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(url) = QUOTED.check(text.len(), || text.parse::<StoreUrl>()) {
        let shown = url.to_string();
        assert_eq!(shown.parse::<StoreUrl>().expect("what is shown parses"), url, "{shown}");
    }
}

pub fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match TOML.check(text.len(), || Named::parse("objblk.toml", text)) {
        // Known keys only, each at most once, so the texts in it are parts of the input.
        Ok(named) => {
            let texts = [named.store, named.bucket, named.prefix, named.region];
            let long: usize = texts.iter().flatten().map(String::len).sum();
            let endpoints: usize = named.endpoint_url.0.iter().map(String::len).sum();
            assert!(long + endpoints <= text.len());
        }
        Err(e) => assert!(e.to_string().starts_with("objblk.toml"), "{e}"),
    }
}

/// What arrives on the control socket, on the pipe of a background target, and in its state file.
pub fn control(data: &[u8]) {
    check_message::<Request>(data);
    check_message::<Reply>(data);
    check_message::<TargetSpec>(data);
    check_message::<MountSpec>(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = TREE.check(text.len(), || TargetState::parse(text));
    }
}

fn check_message<T>(data: &[u8])
where
    T: Clone + Debug + PartialEq + serde::Serialize + serde::de::DeserializeOwned,
{
    if let Ok(message) = TREE.check(data.len(), || control::decode::<T>(data)) {
        let back = control::decode::<T>(&control::encode(message.clone()));
        assert_eq!(back.expect("what was encoded parses"), message);
    }
}

/// The first bytes of an image, and what a web server says before them.
pub fn image(data: &[u8]) {
    let _ = QUOTED.check(0, || detect("x", data));
    if let Ok(image) = QUOTED.check(0, || Qcow2::parse("x", data)) {
        assert!(image.size > 0);
    }
    if let Some((_, body)) = QUOTED.check(data.len(), || Answer::parse(data)) {
        assert!(data[..body].ends_with(b"\r\n\r\n"));
    }
}
