//! Verbs that examine, as they were typed.

use clap::Args;

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
}
