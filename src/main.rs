//! The `objblk` program.

use std::process::ExitCode;

fn main() -> ExitCode {
    objblk::cli::run(std::env::args_os())
}
