//! Mounted directories, as they were typed.

use super::Open;
use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(in crate::cli) struct Mount {
    /// The directory
    pub(in crate::cli) dir: PathBuf,
    #[command(flatten)]
    pub(in crate::cli) open: Open,
    /// Let other users of this host use it: they may read and write every volume
    #[arg(long)]
    pub(in crate::cli) allow_other: bool,
    /// Stay in the foreground and log to standard error
    #[arg(long)]
    pub(in crate::cli) foreground: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Umount {
    /// The directory
    pub(in crate::cli) dir: PathBuf,
    /// Also when in use; give up what the store does not take within seconds
    #[arg(long)]
    pub(in crate::cli) force: bool,
}
