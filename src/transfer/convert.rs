//! Formats other than raw: `qemu-img` reads and writes them, and reaches the volume over NBD, through a
//! socket of this process that nobody else may open. It skips holes both ways, and writes in order, so a copy
//! that was cut off can go on.

use super::export::read_error;
use super::image::Qcow2;
use super::program;
use super::progress::Progress;
use super::watched::Watched;
use crate::device::{BlockDevice, Checked};
use crate::error::{Error, Result};
use crate::frontend::nbd::{Exports, Listen, Server};
use crate::units::{SECTOR_SIZE, Sector};
use serde_json::json;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use tokio::process::Command;

/// The name of the export.
const EXPORT: &str = "volume";

/// A socket at which a copy may meet `qemu-img`: one that nobody else uses.
#[derive(Clone, Copy, Debug)]
pub struct Meeting<'a>(pub &'a Path);

/// Exit code of `qemu-img check` for an image that merely wastes space.
const LEAKS: i32 = 3;

/// Looks whether the tables of the qcow2 image at `path`, which goes by `name`, are whole, and whether it ends
/// where they say, but for less than a cluster: of one that was cut off, `qemu-img convert` would take the rest
/// for zeros.
///
/// Errors: usage, where that is not so; failed, where there is no qemu-img.
pub(super) async fn verify_qcow2(path: &Path, name: &str, header: &Qcow2) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["check", "--output=json"]).arg(format!("json:{}", qcow2(path)));
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = program::output(&mut command, "qemu-img").await?;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let end = report["image-end-offset"].as_u64().unwrap_or_default();
    let length = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let is_cut_off = length > 0 && end >= length.saturating_add(header.cluster);
    let is_whole = output.status.success() || output.status.code() == Some(LEAKS);
    if is_whole && !is_cut_off {
        return Ok(());
    }
    let error = Error::usage(format!("the qcow2 image {name} is damaged or incomplete"));
    let said = String::from_utf8_lossy(&output.stderr);
    let error = match said.lines().next() {
        Some(why) => error.because(why.to_owned()),
        None => error,
    };
    Err(error.hint("get it again, or look at it with `qemu-img check`"))
}

/// The image at `path`, in the words of QEMU. Whatever its header says, no other file is opened.
fn qcow2(path: &Path) -> serde_json::Value {
    let file = json!({ "driver": "file", "filename": path });
    json!({ "driver": "qcow2", "file": file, "backing": null })
}

/// Copies the qcow2 image at `image` to the device, from the byte `from` on. What it wrote is not durable yet.
///
/// Errors: failed, where there is no qemu-img, or it cannot read the image; those of the device.
///
/// Cancellation: ends qemu-img; what was written stays, and the copy can go on.
pub async fn fill_from_qcow2<D: BlockDevice>(
    image: &Path,
    device: &Arc<Checked<D>>,
    from: u64,
    (meeting, progress): (Meeting<'_>, &Arc<Progress>),
) -> Result<()> {
    let from = Sector(from / SECTOR_SIZE);
    let watched = Watched::new(Arc::clone(device), from, Arc::clone(progress));
    let source = json!({ "driver": "raw", "offset": from.bytes(), "file": qcow2(image) });
    let arguments = |uri: &str| {
        // What is not written has never been: it is zero.
        let fixed = ["-n", "--target-is-zero", "-O", "raw"].map(str::to_owned);
        [&fixed[..], &[format!("json:{source}"), uri.to_owned()]].concat()
    };
    let failed = || Error::failed(format!("cannot copy {}", image.display()));
    with_qemu_img(watched, meeting, arguments, failed).await
}

/// Copies the device into a new qcow2 image at `file`, compressed or not.
///
/// Errors: failed, where there is no qemu-img, or it cannot write there; corrupt, where the device cannot be read.
///
/// Cancellation: ends qemu-img; the file is unfinished.
pub async fn save_as_qcow2<D: BlockDevice>(
    device: &Arc<Checked<D>>,
    (file, compress): (&Path, bool),
    (meeting, progress): (Meeting<'_>, &Arc<Progress>),
) -> Result<()> {
    let watched = Watched::new(Arc::clone(device), Sector(0), Arc::clone(progress));
    let arguments = |uri: &str| {
        let mut arguments: Vec<String> = ["-f", "raw", "-O", "qcow2"].map(str::to_owned).into();
        if compress {
            arguments.push("-c".into());
        }
        arguments.extend([uri.to_owned(), file.display().to_string()]);
        arguments
    };
    let failed = || Error::failed(format!("cannot write {}", file.display()));
    with_qemu_img(watched, meeting, arguments, failed).await
}

/// Runs `qemu-img convert` while it may reach the device.
async fn with_qemu_img<D: BlockDevice>(
    device: Watched<D>,
    Meeting(socket): Meeting<'_>,
    arguments: impl FnOnce(&str) -> Vec<String>,
    failed: impl FnOnce() -> Error,
) -> Result<()> {
    let device = Arc::new(Checked::new(device));
    let mut exports = Exports::new();
    exports.add(EXPORT, "", Arc::clone(&device))?;
    let server = Server::bind(&Listen::Unix(socket.into()), exports).await?;
    let uri = server.uris().into_iter().next().unwrap_or_default();
    let mut command = Command::new("qemu-img");
    command.arg("convert").args(arguments(&uri)).stdin(Stdio::null()).kill_on_drop(true);
    let run = program::output(&mut command, "qemu-img");
    let output = tokio::select! {
        output = run => output?,
        // Only an error ends it.
        ended = server.run(std::future::pending()) => return ended,
    };
    if let Some((range, e)) = device.inner().failure() {
        return Err(read_error(&**device.inner().device(), range, e).await);
    }
    match output.status.success() {
        true => Ok(()),
        false => {
            Err(failed()
                .because(String::from_utf8_lossy(&output.stderr).trim().replace('\n', ", ")))
        }
    }
}
