//! `delete` and `trash`, as they were typed.

use clap::{Args, Subcommand};

#[derive(Args, Debug)]
pub(in crate::cli) struct Delete {
    pub(in crate::cli) name: String,
    /// For how long it can be restored at least, before `trash empty --expired` removes it [default: 7d]
    #[arg(long, value_name = "T", conflicts_with = "now")]
    pub(in crate::cli) keep: Option<String>,
    /// Not into the trash: remove it with all its data at once
    #[arg(long)]
    pub(in crate::cli) now: bool,
    /// Also when somebody owns it (who is fenced) or it is damaged; with --now, when it has snapshots
    #[arg(long)]
    pub(in crate::cli) force: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(in crate::cli) yes: bool,
}

#[derive(Debug, Subcommand)]
pub(in crate::cli) enum Trash {
    /// List what is in the trash
    List {
        /// List volumes instead that nothing leads to: their making was cut off, or they lost their name
        #[arg(long)]
        orphans: bool,
    },
    /// Bring a volume back
    Restore {
        #[arg(value_name = "NAME|ID")]
        what: String,
        /// Under another name
        #[arg(long = "as", value_name = "NEW")]
        new: Option<String>,
    },
    /// Remove volumes in the trash for good, with their snapshots: all, or some of them
    Empty(Empty),
}

#[derive(Args, Debug)]
pub(in crate::cli) struct Empty {
    /// Only these
    #[arg(value_name = "NAME|ID", conflicts_with_all = ["expired", "older_than", "orphans"])]
    pub(in crate::cli) what: Vec<String>,
    /// Only those whose time has passed
    #[arg(long, conflicts_with_all = ["older_than", "orphans"])]
    pub(in crate::cli) expired: bool,
    /// Only those that were deleted longer ago than this; of orphans: made longer ago [default there: 1d]
    #[arg(long, value_name = "T")]
    pub(in crate::cli) older_than: Option<String>,
    /// What is left of volumes whose making or removal was cut off, and nothing that was ever in use
    #[arg(long)]
    pub(in crate::cli) orphans: bool,
    /// Also what somebody owns (who is fenced) or is damaged
    #[arg(long)]
    pub(in crate::cli) force: bool,
    /// Do not ask
    #[arg(long, short)]
    pub(in crate::cli) yes: bool,
}
