//! Checksums of images, as the reader and `sha256sum` print them.

use crate::script::{Answer, run};
use std::path::Path;
use std::process::Command;

/// Of all files in a directory, by name.
pub fn of(images: &Path) -> Vec<String> {
    let mut command = Command::new("sh");
    command.args(["-c", "sha256sum -- *"]).current_dir(images);
    printed(run(command))
}

/// The lines of a program that had nothing to complain of, sorted.
#[track_caller]
pub fn printed(answer: Answer) -> Vec<String> {
    assert!(answer.code == 0 && answer.err.is_empty(), "{answer:?}");
    let mut lines: Vec<String> = answer.out.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}
