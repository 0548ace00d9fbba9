//! Verbs that examine, as they were typed.

use clap::Args;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub(in crate::cli) struct Check {
    /// The volume, with its snapshots; all of the pool if none is named
    #[arg(conflicts_with = "all")]
    pub(in crate::cli) name: Option<String>,
    /// Every volume of the pool, and the pool itself (the default)
    #[arg(long)]
    pub(in crate::cli) all: bool,
    /// Read and verify every byte, not only what names it
    #[arg(long)]
    pub(in crate::cli) data: bool,
    /// Read at most so many bytes a second
    #[arg(long, value_name = "S")]
    pub(in crate::cli) rate: Option<String>,
    /// Show how far it is even where standard error is no terminal
    #[arg(long)]
    pub(in crate::cli) progress: bool,
    /// Then make whole what is damaged, where its bytes are found: in the caches of the volume's owner on
    /// this host, or in --cache-dir while nobody has it
    #[arg(long)]
    pub(in crate::cli) repair: bool,
    /// Only say what would be repaired
    #[arg(long, requires = "repair")]
    pub(in crate::cli) dry_run: bool,
    /// Do not ask
    #[arg(long, requires = "repair")]
    pub(in crate::cli) yes: bool,
    /// The directory of a cache on a local disk that the volumes had
    #[arg(long, value_name = "DIR", requires = "repair")]
    pub(in crate::cli) cache_dir: Option<PathBuf>,
}
