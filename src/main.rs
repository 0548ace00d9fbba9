//! The `objblk` program.

use std::process::ExitCode;

/// Heaps of the C library's allocator. It would make eight for each processor, and memory that one of
/// them has free is of no use to the others: on two processors that cost a fifth of a target's memory.
#[cfg(target_env = "gnu")]
const HEAPS: i32 = 2;

fn main() -> ExitCode {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator; no other thread exists yet.
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, HEAPS);
    }
    objblk::cli::run(std::env::args_os())
}
