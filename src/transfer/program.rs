//! Programs that do a part of the work.

use crate::error::{Error, Result};
use std::io;
use std::process::Output;
use tokio::process::{Child, Command};

/// Starts a program, which is killed when it is dropped if the command says so. Errors: failed.
pub(super) fn spawn(command: &mut Command, name: &str) -> Result<Child> {
    command.spawn().map_err(|e| cannot_run(name, e))
}

/// What a program prints. Errors: failed, where it cannot be run.
pub(super) async fn output(command: &mut Command, name: &str) -> Result<Output> {
    command.output().await.map_err(|e| cannot_run(name, e))
}

fn cannot_run(name: &str, e: io::Error) -> Error {
    let package = if name == "qemu-img" { "qemu-utils" } else { name };
    let missing = e.kind() == io::ErrorKind::NotFound;
    let error = Error::failed(format!("cannot run {name}")).because(e);
    match missing {
        true => error.hint(format!("install it, as with `apt-get install {package}`")),
        false => error,
    }
}
